//! What an operator is told who asks why packets go where they go.

use std::net::Ipv4Addr;
use std::time::Duration;

use harness::agent::Agent;
use harness::{Lab, LabError, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// Far more than anything here takes.
const GENEROUS: Duration = Duration::from_secs(60);

/// What `culvert route explain` prints, and whether it found nothing.
fn explained(agent: &Agent, destination: Ipv4Addr) -> Result<(bool, String), LabError> {
    match agent.ask(&["route", "explain", &destination.to_string()]) {
        Ok(text) => Ok((true, text)),
        Err(LabError::Command { output, .. }) => Ok((false, output)),
        Err(other) => Err(other),
    }
}

/// From every node to a pod of every node, the own one too: nothing is found.
pub(crate) fn well(lab: &mut Lab) -> Result<(), Failed> {
    for node in lab.nodes() {
        for pod in lab.pods() {
            let (is_well, text) = explained(&node.agent, pod.address)?;
            ensure(is_well && text.contains("nothing is wrong on this node"), || {
                format!("from node {} to {}: {text}", node.number, pod.name)
            })?;
            let (outer, address) = (text.contains("Outer header"), lab.node(pod.node).address);
            let known_by = format!("known by {address}");
            ensure(
                outer == (pod.node != node.number) && text.contains(&known_by),
                || text,
            )?;
        }
    }
    Ok(())
}

/// A route that another program makes inside a block, to a pod's address, as in the first field case; then a session that
/// is down while its routes are kept.
pub(crate) fn faults(lab: &mut Lab) -> Result<(), Failed> {
    let (to, inside) = (lab.pod("n2p1").address, lab.pod("n3p1").address);
    let node = lab.node(1);
    let wrong = format!("{to} via {inside} dev tunl0 onlink proto bird");
    node.namespace.ip(&format!("route add {wrong}"))?;
    let told = wait_for("the wrong next hop to be found", GENEROUS, || {
        let (_, text) = explained(&node.agent, to).map_err(|error| error.to_string())?;
        let next_hop =
            format!("wrong next hop: the kernel sends {to}/32 to {inside}, which lies inside the pool");
        let has_both =
            text.contains(&next_hop) && text.contains("a narrower route, of protocol bird, has the packets");
        if has_both { Ok(()) } else { Err(text) }
    });
    node.namespace.ip(&format!("route del {to} proto bird"))?;
    told?;

    let name = lab.node(2).agent.status()?.node;
    let words = format!("the BGP session with node {name} ({}) is", lab.node(2).address);
    lab.agent(2).kill()?;
    let node = lab.node(1);
    let told = wait_for("the lost session to be found", GENEROUS, || {
        let (_, text) = explained(&node.agent, to).map_err(|error| error.to_string())?;
        if text.contains(&words) { Ok(()) } else { Err(text) }
    });
    lab.start_agent(2)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(told?)
}

/// Routes received, advertised and in use; a session that is cleared comes back, and one with nobody is refused.
pub(crate) fn peers(lab: &mut Lab) -> Result<(), Failed> {
    let (node, other) = (lab.node(1), lab.node(2));
    let (own, theirs) = (node.blocks()?.swap_remove(0), other.blocks()?.swap_remove(0));
    let peer = other.address.to_string();
    for (table, block, word) in [
        ("received", &theirs, "yes"),
        ("advertised", &own, "100"),
        ("best", &theirs, peer.as_str()),
    ] {
        let text = node.agent.ask(&["bgp", "routes", table, "--peer", &peer])?;
        let line = text.lines().find(|line| line.starts_with(block.as_str()));
        ensure(line.is_some_and(|line| line.contains(word)), || {
            format!("{table}: {text}")
        })?;
    }
    let peers = node.agent.ask(&["bgp", "peers"])?;
    ensure(peers.contains(&peer) && peers.contains("Established"), || peers)?;

    let count = || -> Result<u64, LabError> {
        let status = node.agent.status()?;
        Ok(status
            .established_counts()
            .get(peer.as_str())
            .copied()
            .unwrap_or(0))
    };
    let before = count()?;
    let cleared = node.agent.ask(&["bgp", "clear", &peer])?;
    ensure(cleared == format!("Cleared: {peer}.\n"), || cleared.clone())?;
    wait_for("the cleared session to come back", GENEROUS, || {
        let now = count().map_err(|error| error.to_string())?;
        if now > before {
            Ok(())
        } else {
            Err(format!("it has come up {now} times"))
        }
    })?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    let refused = lab.node(1).agent.ask(&["bgp", "clear", "192.0.2.1"]);
    let words = refused.unwrap_or_else(|error| error.to_string());
    ensure(
        words.contains("192.0.2.1 is no BGP peer of this node; its peers are"),
        || words,
    )
}
