//! What hands do to a kernel behind the agent's back.

use std::time::{Duration, Instant};

use harness::ping::ping;
use harness::{Lab, Node, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// A second is what is promised on a machine of its own; a guest on a busy one gets more.
const GENEROUS: Duration = Duration::from_secs(20);

/// Does something to a node's routes by `ip`, and waits until they are again what they were.
fn repaired(node: &Node, by_hand: &str) -> Result<(), Failed> {
    let before = node.namespace.routes()?;
    let start = Instant::now();
    node.namespace.ip(by_hand)?;
    let what = format!("the repair of `ip {by_hand}`");
    wait_for(&what, GENEROUS, || {
        let routes = node.namespace.routes().map_err(|e| e.to_string())?;
        if routes == before {
            Ok(())
        } else {
            Err(routes.join("; "))
        }
    })?;
    println!(
        "  repaired within {:?} (with the time of `ip` itself): ip {by_hand}",
        start.elapsed()
    );
    Ok(())
}

/// A block is routed to a pod's address, as in the first field case.
pub(crate) fn wrong_next_hop(lab: &mut Lab) -> Result<(), Failed> {
    let block = lab.node(2).blocks()?.swap_remove(0);
    let (from, to) = (lab.pod("n1p1"), lab.pod("n2p1"));
    repaired(
        lab.node(1),
        &format!("route replace {block} via {} dev tunl0 onlink", to.address),
    )?;
    ping(&from.namespace, to.address)?;
    // The same with our own protocol number: it is not the number that makes a route right.
    repaired(
        lab.node(1),
        &format!(
            "route replace {block} via {} dev tunl0 proto 86 onlink",
            to.address
        ),
    )?;
    ping(&from.namespace, to.address)?;
    Ok(())
}

/// A route to another's block is deleted, then the blackhole of the own one.
pub(crate) fn deleted_routes(lab: &mut Lab) -> Result<(), Failed> {
    let (own, other) = (
        lab.node(1).blocks()?.swap_remove(0),
        lab.node(3).blocks()?.swap_remove(0),
    );
    repaired(lab.node(1), &format!("route del {other}"))?;
    repaired(lab.node(1), &format!("route del blackhole {own}"))
}

/// The kernel deletes the routes through a device that goes down.
pub(crate) fn tunnel_down(lab: &mut Lab) -> Result<(), Failed> {
    repaired(lab.node(1), "link set tunl0 down")?;
    ping(&lab.pod("n1p1").namespace, lab.pod("n2p1").address)?;
    Ok(())
}

/// Routes with other protocol numbers stay through repairs and a restart, inside the pool as well as outside.
pub(crate) fn foreign_routes(lab: &mut Lab) -> Result<(), Failed> {
    let foreign = [
        "10.99.0.0/24 via 172.18.0.12 dev eth0 proto static",
        "10.65.250.0/26 via 172.18.0.13 dev eth0 proto bird",
        "192.0.2.0/24 via 172.18.0.12 dev tunl0 proto bird onlink",
        "blackhole 198.51.100.0/24 proto 80",
    ];
    for route in foreign {
        lab.node(1).namespace.ip(&format!("route add {route}"))?;
    }
    let block = lab.node(2).blocks()?.swap_remove(0);
    repaired(lab.node(1), &format!("route del {block}"))?;
    lab.agent(1).terminate()?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    let routes = lab.node(1).namespace.routes()?;
    for route in foreign {
        ensure(routes.iter().any(|line| line == route), || {
            format!("{route} is gone: {routes:#?}")
        })?;
        lab.node(1).namespace.ip(&format!("route del {route}"))?;
    }
    Ok(())
}

/// Forwarding is switched off: the agent switches it on again, and says so.
pub(crate) fn forwarding_off(lab: &mut Lab) -> Result<(), Failed> {
    const SETTING: &str = "net.ipv4.ip_forward";
    const WORDS: &str = "net.ipv4.ip_forward was 0: switched on";
    let node = lab.node(1);
    let told = || node.agent.log_text().map(|log| log.matches(WORDS).count());

    let before = told()?;
    node.namespace.run("sysctl", &["-qw", &format!("{SETTING}=0")])?;
    wait_for("forwarding to be on again", GENEROUS, || {
        let value = node
            .namespace
            .run("sysctl", &["-n", SETTING])
            .map_err(|e| e.to_string())?;
        if value.trim() == "1" { Ok(()) } else { Err(value) }
    })?;
    ping(&lab.pod("n2p1").namespace, lab.pod("n1p1").address)?;
    let after = told()?;
    ensure(after == before + 1, || format!("told {} times", after - before))
}
