//! Agents that end, in every way, while traffic flows.

use std::time::Duration;

use harness::Lab;
use harness::ping::{PingTrain, ping};
use libtest_mimic::Failed;

use crate::continuity::INTERVAL;
use crate::ensure;

/// Packets before and after each step of a restart.
const WAGONS: usize = 20;

/// The agent of each end of a train is killed in turn, and started again: every packet arrives.
pub(crate) fn kill(lab: &mut Lab) -> Result<(), Failed> {
    let (from, to) = (lab.pod("n1p1").clone(), lab.pod("n2p1").clone());
    let train = PingTrain::start(&from.namespace, to.address, INTERVAL)?;
    for number in [from.node, to.node] {
        lab.agent(number).kill()?;
        train.wait_for_more(WAGONS)?;
        lab.start_agent(number)?;
        lab.wait_for_sessions()?;
        lab.wait_for_routes()?;
        train.wait_for_more(WAGONS)?;
    }
    let outcome = train.stop();
    println!(
        "  {} packets answered, {} lost",
        outcome.answered,
        outcome.lost.len()
    );
    ensure(outcome.lost.is_empty(), || format!("lost: {outcome:?}"))
}

/// SIGTERM ends an agent soon; its routes stay as they are and carry traffic, also while it starts again.
pub(crate) fn terminate(lab: &mut Lab) -> Result<(), Failed> {
    let before = lab.node(1).namespace.routes()?;
    let (from, to) = (lab.pod("n1p1").clone(), lab.pod("n3p1").clone());
    let train = PingTrain::start(&from.namespace, to.address, INTERVAL)?;
    let took = lab.agent(1).terminate()?;
    println!("  ended after {took:?}");
    // One second is what is promised; a guest on a busy machine gets more.
    ensure(took < Duration::from_secs(5), || {
        format!("it took {took:?} to end")
    })?;
    train.wait_for_more(WAGONS)?;
    let after = lab.node(1).namespace.routes()?;
    ensure(after == before, || {
        format!("before {before:#?}, after {after:#?}")
    })?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    train.wait_for_more(WAGONS)?;
    let outcome = train.stop();
    ensure(outcome.lost.is_empty(), || format!("lost: {outcome:?}"))
}

/// What went wrong while nobody looked is put right at the start: a wrong next hop, a missing route, and one of ours
/// that leads to a block nobody has.
pub(crate) fn wrong_at_start(lab: &mut Lab) -> Result<(), Failed> {
    let before = lab.node(1).namespace.routes()?;
    let (second, third) = (
        lab.node(2).blocks()?.swap_remove(0),
        lab.node(3).blocks()?.swap_remove(0),
    );
    let pod = lab.pod("n2p1").address;
    lab.agent(1).terminate()?;
    let node = &lab.node(1).namespace;
    node.ip(&format!("route replace {second} via {pod} dev tunl0 onlink"))?;
    node.ip(&format!("route del {third}"))?;
    node.ip("route add 10.65.251.0/26 via 172.18.0.12 dev tunl0 proto 86 onlink")?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    let node = lab.node(1);
    harness::wait_for("the routes as they were", Duration::from_secs(20), || {
        let routes = node.namespace.routes().map_err(|e| e.to_string())?;
        if routes == before {
            Ok(())
        } else {
            Err(routes.join("; "))
        }
    })?;
    ping(&lab.pod("n1p1").namespace, pod)?;
    Ok(())
}

/// `culvert agent --cleanup` leaves the underlay, foreign routes and the pods; and an agent can start again after it.
pub(crate) fn clean_up(lab: &mut Lab) -> Result<(), Failed> {
    let foreign = "10.99.0.0/24 via 172.18.0.12 dev eth0 proto static";
    lab.node(1).namespace.ip(&format!("route add {foreign}"))?;
    let before = lab.node(1).namespace.routes()?;
    lab.agent(1).terminate()?;
    lab.node(1).agent.clean_up()?;
    let node = lab.node(1);
    let wanted: Vec<_> = before
        .iter()
        .filter(|line| !line.contains("proto culvert"))
        .cloned()
        .collect();
    let after = node.namespace.routes()?;
    ensure(after == wanted, || {
        format!("wanted {wanted:#?}, there are {after:#?}")
    })?;
    let address = node.namespace.ip("-oneline -4 addr show tunl0")?;
    ensure(address.trim().is_empty(), || format!("tunl0 still has {address}"))?;
    let links = node.namespace.ip("-oneline link show tunl0")?;
    ensure(!links.contains(",UP"), || format!("still up: {links}"))?;
    node.agent
        .clean_up()
        .map_err(|e| format!("the second time: {e}"))?;

    node.namespace.ip(&format!("route del {foreign}"))?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    ping(&lab.pod("n1p1").namespace, lab.pod("n2p1").address)?;
    Ok(())
}
