//! A node whose address is changed on purpose.

use std::net::Ipv4Addr;

use harness::capture::Capture;
use harness::ping::{PingTrain, ping};
use harness::{Lab, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{GENEROUS, WAGONS, arrived, train};
use crate::ensure;

/// What may be lost beside what is while neither address is on the NIC: the agent waits a second for the change to be
/// whole, and begins anew; the others hear of it. A few seconds are what is promised; a guest on a busy machine gets more.
const MAY_BE_LOST: usize = 1500;

/// A node gets another address, and later the former one again: first in the Node object and then on the NIC, then the
/// other way round. The agent says what it waits for, and then takes the change by itself: no process ends, nothing is lost
/// between the others, and all is as it was under the other address.
pub(crate) fn on_purpose(lab: &mut Lab) -> Result<(), Failed> {
    let old = lab.node(1).address;
    let [a, b, c, d] = old.octets();
    let new = Ipv4Addr::new(a, b, c, d.saturating_add(100));
    let process = lab.node(1).agent.pid();
    let beside = train(lab, "n3p1", "n2p1")?;

    let through = train(lab, "n1p1", "n2p1")?;
    lab.set_internal_ip(1, old, new)?;
    status(
        lab,
        &format!("it takes the new one as soon as this host has it and no longer has {old}"),
    )?;
    lab.node(1).namespace.ip(&format!("addr add {new}/32 dev eth0"))?;
    through.wait_for_more(WAGONS)?;
    ensure(lab.node(1).agent.status()?.address == Some(old), || {
        format!("{old} is given up although the host still has it")
    })?;
    lab.node(1).namespace.ip(&format!("addr del {new}/32 dev eth0"))?;
    replace(lab, old, new)?;
    settled(lab, through, new)?;

    let through = train(lab, "n1p1", "n2p1")?;
    replace(lab, new, old)?;
    status(
        lab,
        &format!("this node's address {new} is gone, and no other takes its place"),
    )?;
    lab.set_internal_ip(1, new, old)?;
    settled(lab, through, old)?;

    ensure(lab.node(1).agent.pid() == process, || {
        "another process".to_owned()
    })?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    arrived(beside, 0)
}

/// The NIC gets another address, as from a host's configuration: one is gone before the other is there.
fn replace(lab: &Lab, from: Ipv4Addr, to: Ipv4Addr) -> Result<(), Failed> {
    let node = &lab.node(1).namespace;
    node.ip(&format!("addr del {from}/24 dev eth0"))?;
    node.ip(&format!("addr add {to}/24 dev eth0"))?;
    node.ip(&format!("route replace default via {}", lab.layout().router(1)))?;
    Ok(())
}

/// Waits until all know node 1 by this address, and looks at the packets.
fn settled(lab: &mut Lab, through: PingTrain, to: Ipv4Addr) -> Result<(), Failed> {
    let blocks = lab.node(1).blocks()?;
    for other in lab.nodes().filter(|other| other.number != 1) {
        let wanted: Vec<_> = blocks
            .iter()
            .map(|block| format!("{block} via {to} dev tunl0 proto culvert onlink"))
            .collect();
        wait_for(&format!("node{}: {wanted:?}", other.number), GENEROUS, || {
            let routes = other.namespace.routes().map_err(|e| e.to_string())?;
            if wanted.iter().all(|route| routes.contains(route)) {
                Ok(())
            } else {
                Err(routes.join("; "))
            }
        })?;
    }
    through.wait_for_more(WAGONS)?;
    lab.wait_for_sessions()?;
    ensure(lab.node(1).agent.status()?.address == Some(to), || {
        format!("the status does not tell of {to}")
    })?;
    outer_source(lab, to)?;
    ping(&lab.pod("n3p1").namespace, lab.pod("n1p1").address)?;
    through.wait_for_more(WAGONS)?;
    arrived(through, MAY_BE_LOST)
}

/// Waits until the status of node 1 has this in it.
fn status(lab: &Lab, words: &str) -> Result<(), Failed> {
    Ok(wait_for(&format!("node1 to tell: {words}"), GENEROUS, || {
        let status = lab.node(1).agent.status_text(&[]).map_err(|e| e.to_string())?;
        if status.contains(words) {
            Ok(())
        } else {
            Err(status)
        }
    })?)
}

/// Packets from node 1 have this outer source.
fn outer_source(lab: &Lab, source: Ipv4Addr) -> Result<(), Failed> {
    let (from, to) = (lab.pod("n1p2"), lab.pod("n3p1"));
    let capture = Capture::start(&lab.node(3).namespace, "eth0", "ip proto 4")?;
    ping(&from.namespace, to.address)?;
    let packet = capture.wait_for("the request", |p| p.inner() == Some((from.address, to.address)))?;
    ensure(packet.outer() == Some((source, lab.node(3).address)), || {
        packet.text.clone()
    })
}
