//! Packets that pass while something under or beside the agents goes away and comes back.

use std::time::Duration;

use harness::ping::{PingTrain, ping};
use harness::{Lab, Node, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// For what takes an agent a moment; a guest on a busy machine gets more.
pub(crate) const GENEROUS: Duration = Duration::from_secs(30);
/// Between two packets of a train.
pub(crate) const INTERVAL: Duration = Duration::from_millis(10);
/// Packets of a train after each step.
pub(crate) const WAGONS: usize = 50;

pub(crate) fn train(lab: &Lab, from: &str, to: &str) -> Result<PingTrain, Failed> {
    Ok(PingTrain::start(
        &lab.pod(from).namespace,
        lab.pod(to).address,
        INTERVAL,
    )?)
}

/// Stops a train that may have lost so many packets.
pub(crate) fn arrived(train: PingTrain, may_be_lost: usize) -> Result<(), Failed> {
    let outcome = train.stop();
    let lost = outcome.lost.len();
    println!("  {} packets answered, {lost} lost", outcome.answered);
    ensure(lost <= may_be_lost, || format!("lost: {outcome:?}"))
}

/// All that an agent keeps in the kernel: the routes of all tables, and the rules.
pub(crate) fn programmed(node: &Node) -> Result<String, Failed> {
    // What the kernel adds by itself for addresses and links is not ours to compare.
    let routes = node.namespace.ip("route show table all")?;
    let ours = routes.lines().filter(|line| line.contains("proto culvert"));
    let mut ours: Vec<_> = ours.map(str::trim_end).collect();
    ours.sort_unstable();
    Ok(format!(
        "{}\n{}",
        ours.join("\n"),
        node.namespace.ip("rule show")?
    ))
}

/// Waits until a node's kernel holds what it held before.
pub(crate) fn as_before(node: &Node, before: &str) -> Result<(), Failed> {
    let what = format!("node{} to have all that it had:\n{before}", node.number);
    Ok(wait_for(&what, GENEROUS, || {
        let now = programmed(node).map_err(|e| e.message().unwrap_or("unreadable").to_owned())?;
        if now == before { Ok(()) } else { Err(now) }
    })?)
}

/// Waits until the status of every node has, or has no more, this in it.
fn told(lab: &Lab, words: &str, wanted: bool) -> Result<(), Failed> {
    for node in lab.nodes() {
        let verb = if wanted { "tell" } else { "no longer tell" };
        let what = format!("the status of node{} to {verb}: {words}", node.number);
        wait_for(&what, GENEROUS, || {
            let status = node.agent.status_text(&[]).map_err(|e| e.to_string())?;
            if status.contains(words) == wanted {
                Ok(())
            } else {
                Err(status)
            }
        })?;
    }
    Ok(())
}

/// A new pod gets an address and is reachable: the agent reads and writes its datastore.
fn still_attaches(lab: &mut Lab) -> Result<(), Failed> {
    let pod = lab.attach(1, "late")?;
    ping(&lab.pod("n2p1").namespace, pod.address)?;
    lab.detach("late")?;
    Ok(())
}

/// Ended, started, and ended again before it has settled, and started: every packet arrives.
pub(crate) fn twice(lab: &mut Lab) -> Result<(), Failed> {
    let trains = [train(lab, "n1p1", "n2p1")?, train(lab, "n3p1", "n1p1")?];
    let before = programmed(lab.node(1))?;
    for _ in 0..2 {
        lab.agent(1).terminate()?;
        lab.start_agent(1)?;
    }
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    as_before(lab.node(1), &before)?;
    for train in trains {
        train.wait_for_more(WAGONS)?;
        arrived(train, 0)?;
    }
    Ok(())
}

/// Ended, and started from another copy of the binary: every packet arrives.
pub(crate) fn upgraded(lab: &mut Lab) -> Result<(), Failed> {
    let trains = [train(lab, "n1p1", "n2p1")?, train(lab, "n3p1", "n1p1")?];
    let before = programmed(lab.node(1))?;
    let former = lab.node(1).agent.executable()?;
    lab.agent(1).upgrade()?;
    lab.agent(1).terminate()?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    as_before(lab.node(1), &before)?;
    let now = lab.node(1).agent.executable()?;
    ensure(now != former, || format!("still {}", former.display()))?;
    for train in trains {
        train.wait_for_more(WAGONS)?;
        arrived(train, 0)?;
    }
    Ok(())
}

/// The datastore's folder is away until every agent says so, and comes back: nothing is lost, and it is read again.
pub(crate) fn datastore_away(lab: &mut Lab) -> Result<(), Failed> {
    let train = train(lab, "n1p1", "n2p1")?;
    let before: Vec<_> = lab.nodes().map(programmed).collect::<Result<_, _>>()?;
    lab.set_datastore_away(true)?;
    wait_for_datastore_words(lab, true)?;
    train.wait_for_more(4 * WAGONS)?;
    lab.set_datastore_away(false)?;
    wait_for_datastore_words(lab, false)?;
    still_attaches(lab)?;
    lab.wait_for_sessions()?;
    for (node, before) in lab.nodes().zip(before) {
        as_before(node, &before)?;
    }
    arrived(train, 0)
}

/// Waits until the status of every node names a problem of the datastore, or none any more.
fn wait_for_datastore_words(lab: &Lab, wanted: bool) -> Result<(), Failed> {
    for node in lab.nodes() {
        let what = format!(
            "node{} to say that the datastore has a problem: {wanted}",
            node.number
        );
        wait_for(&what, GENEROUS, || match node.agent.status_text(&[]) {
            Ok(text) if text.contains("Datastore: what was last read stands") == wanted => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
    }
    Ok(())
}

/// All manifests vanish: every agent says so, withdraws nothing, and is content when they are back.
pub(crate) fn datastore_emptied(lab: &mut Lab) -> Result<(), Failed> {
    const WORDS: &str = "objects have vanished from the datastore at once";

    let train = train(lab, "n1p1", "n2p1")?;
    let before: Vec<_> = lab.nodes().map(programmed).collect::<Result<_, _>>()?;
    lab.empty_datastore()?;
    told(lab, WORDS, true)?;
    train.wait_for_more(4 * WAGONS)?;
    for (node, before) in lab.nodes().zip(&before) {
        ensure(programmed(node)? == *before, || {
            format!("node{} changed something", node.number)
        })?;
    }
    lab.fill_datastore()?;
    told(lab, WORDS, false)?;
    lab.wait_for_sessions()?;
    still_attaches(lab)?;
    for (node, before) in lab.nodes().zip(before) {
        as_before(node, &before)?;
    }
    arrived(train, 0)
}

/// A node that is given up: its Node object is deleted while its agent runs, which does not make it anew: the others drop
/// the routes to it and keep their own. Added back, all is as it was.
pub(crate) fn node_deleted(lab: &mut Lab) -> Result<(), Failed> {
    let train = train(lab, "n1p1", "n2p1")?;
    let before: Vec<_> = lab.nodes().map(programmed).collect::<Result<_, _>>()?;
    let blocks = lab.node(3).blocks()?;
    let leads_there = |route: &String| blocks.iter().any(|block| route.starts_with(block.as_str()));
    for node in lab.nodes().filter(|node| node.number != 3) {
        let routes = node.namespace.routes()?;
        ensure(routes.iter().any(leads_there), || routes.join("; "))?;
    }
    let manifest = lab.delete_node_object(3)?;
    for node in lab.nodes().filter(|node| node.number != 3) {
        let what = format!("the routes of node{} to the deleted node to go", node.number);
        wait_for(&what, GENEROUS, || {
            let routes = node.namespace.routes().map_err(|e| e.to_string())?;
            if routes.iter().any(leads_there) {
                Err(routes.join("; "))
            } else {
                Ok(())
            }
        })?;
    }
    train.wait_for_more(WAGONS)?;
    lab.add_object(manifest)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    for (node, before) in lab.nodes().zip(before) {
        as_before(node, &before)?;
    }
    ping(&lab.pod("n1p1").namespace, lab.pod("n3p1").address)?;
    ping(&lab.pod("n3p1").namespace, lab.pod("n2p1").address)?;
    train.wait_for_more(WAGONS)?;
    arrived(train, 0)
}

/// The tunnel device goes down: the agent sets it up with its routes, and few packets are lost.
pub(crate) fn tunnel_down(lab: &mut Lab) -> Result<(), Failed> {
    // A second is what is promised; a guest on a busy machine gets more.
    const SMALL: usize = 200;

    let train = train(lab, "n1p1", "n2p1")?;
    let before = programmed(lab.node(1))?;
    lab.node(1).namespace.ip("link set tunl0 down")?;
    as_before(lab.node(1), &before)?;
    train.wait_for_more(WAGONS)?;
    arrived(train, SMALL)
}

/// Runs `break_it` on the underlay of a node and `mend` after a while. Between the others nothing is lost meanwhile; in the
/// end the routes and pins of the node are what they were, and its pods are reachable: at most `may_be_lost` packets are
/// lost more than pass between the others until `mend`.
pub(crate) fn recovers(
    lab: &mut Lab,
    number: u8,
    break_it: &str,
    mend: &[String],
    may_be_lost: usize,
) -> Result<(), Failed> {
    let before = programmed(lab.node(number))?;
    ensure(before.contains(" table 886 "), || format!("no pins: {before}"))?;
    let others: Vec<u8> = lab.layout().numbers().filter(|n| *n != number).take(2).collect();
    let pod = |number: u8| format!("n{number}p1");
    let through = train(lab, &pod(number), &pod(others[0]))?;
    let beside = train(lab, &pod(others[1]), &pod(others[0]))?;
    let node = lab.node(number).namespace.clone();
    let start = beside.answered();
    node.ip(break_it)?;
    beside.wait_for_more(4 * WAGONS)?;
    for command in mend {
        node.ip(command)?;
    }
    let outage = beside.answered() - start;
    through.wait_for_more(WAGONS)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    as_before(lab.node(number), &before)?;
    through.wait_for_more(WAGONS)?;
    let outcome = through.stop();
    let lost = outcome.lost.len();
    println!(
        "  ip {break_it}: {} packets answered, {lost} lost, of which {outage} until it was mended",
        outcome.answered
    );
    ping(&lab.pod(&pod(others[1])).namespace, lab.pod(&pod(number)).address)?;
    ensure(lost <= outage + may_be_lost, || {
        format!("too many are lost: {outcome:?}")
    })?;
    arrived(beside, 0)
}

/// What may be lost after a fault of the underlay is mended: the host has to find its neighbours again. A second is what is
/// promised; a guest on a busy machine gets more.
pub(crate) const AFTER_MENDING: usize = 500;

/// The NIC goes down and up; what configures the host puts its default route back.
pub(crate) fn nic_down(lab: &mut Lab) -> Result<(), Failed> {
    let default = format!("route replace default via {}", lab.layout().router(1));
    let mend = ["link set eth0 up".to_owned(), default];
    recovers(lab, 1, "link set eth0 down", &mend, AFTER_MENDING)
}

/// The advertised address is removed and added back; what configures the host puts its default route back.
pub(crate) fn address_gone(lab: &mut Lab) -> Result<(), Failed> {
    let address = lab.node(1).address;
    let default = format!("route replace default via {}", lab.layout().router(1));
    let mend = [format!("addr add {address}/24 dev eth0"), default];
    recovers(
        lab,
        1,
        &format!("addr del {address}/24 dev eth0"),
        &mend,
        AFTER_MENDING,
    )
}
