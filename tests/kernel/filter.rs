//! The packet filter with real tunnels: who is admitted, who is refused and told, and whose source is replaced.

use std::net::Ipv4Addr;
use std::time::Duration;

use harness::capture::Capture;
use harness::ping::ping;
use harness::{Lab, Layout, Namespace, wait_for};
use libtest_mimic::Failed;

use crate::ensure;
use crate::two_networks::{REPORTED, Wire, restart};

/// For what takes an agent a moment; an emulated machine on a busy one gets more.
const GENEROUS: Duration = Duration::from_secs(120);
/// An address that no node and no pool has.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// A service's address.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// One node sends from an address that none advertises, since its pins are off: the receiver drops the packets, counts
/// them by their source, and says whose they are and what is missing. With the pins back everybody is admitted.
pub(crate) fn unknown_sources(lab: &mut Lab) -> Result<(), Failed> {
    let receiver = Layout::lone_number();
    let (from, to) = (lab.pod("n4p1").clone(), lab.pod("n2p1").clone());
    for node in lab.nodes() {
        let status = node.agent.status_text(&[])?;
        ensure(!status.contains("filter"), || status.clone())?;
    }
    for other in lab.nodes().filter(|node| node.number != receiver) {
        ping(&lab.pod(&format!("n{}p1", other.number)).namespace, to.address)?;
    }
    let config = lab.node(REPORTED).agent.config();
    let before = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("{before}routes:\n  sourcePin: off\n"))?;
    restart(lab)?;
    let train = ["-n", "-c", "5", "-i", "0.2", "-W", "2", &to.address.to_string()];
    let pinged = from.namespace.run("ping", &train);
    ensure(pinged.is_err(), || format!("nothing is dropped: {pinged:?}"))?;

    let first = lab.layout().first_address(REPORTED);
    let cause = format!(
        "from {first}, which no node advertises; node4 advertises {} and owns that address: its source pin is missing",
        lab.node(REPORTED).address
    );
    let agent = &lab.node(receiver).agent;
    wait_for("the receiver to tell of five packets", GENEROUS, || {
        let status = agent.status_text(&[]).map_err(|e| e.to_string())?;
        if status.contains(&format!("5 packets {cause}")) {
            Ok(())
        } else {
            Err(status)
        }
    })?;
    let log = agent.log_text()?;
    ensure(log.contains(&cause), || "the log does not tell of it".to_owned())?;
    let counted = agent.metric("culvert_tunnel_packets_refused_total")?;
    ensure(counted == 5, || format!("the metric counts {counted}"))?;
    let listed = lab
        .node(receiver)
        .namespace
        .run("nft", &["list", "set", "ip", "culvert", "refused"])?;
    ensure(
        listed.contains(&first.to_string()) && listed.contains("counter packets 5"),
        || listed.clone(),
    )?;

    std::fs::write(&config, before)?;
    restart(lab)?;
    ping(&from.namespace, to.address)?;
    let counted = lab
        .node(receiver)
        .agent
        .metric("culvert_tunnel_packets_refused_total")?;
    ensure(counted == 5, || format!("the metric counts {counted} now"))
}

/// With natOutgoing a pod that talks to the outside has its node's address; one that talks to a pod or a node, through the
/// tunnel or not, has its own.
pub(crate) fn nat_outgoing(lab: &mut Lab) -> Result<(), Failed> {
    let pod = lab.pod("n1p1").clone();
    lab.fabric().ip(&format!("addr add {OUTSIDE}/32 dev near"))?;
    let pinged = pod
        .namespace
        .run("ping", &["-n", "-c", "1", "-W", "2", &OUTSIDE.to_string()]);
    ensure(pinged.is_err(), || {
        format!("answered without masquerade: {pinged:?}")
    })?;
    lab.set_in_pool(&[("natOutgoing", "true")])?;
    for node in lab.nodes() {
        wait_for("the pool to be masqueraded", GENEROUS, || {
            let set = ["list", "set", "ip", "culvert", "masqueraded"];
            let listed = node.namespace.run("nft", &set).map_err(|e| e.to_string())?;
            if listed.contains(harness::layout::POOL) {
                Ok(())
            } else {
                Err(listed)
            }
        })?;
    }
    let node = lab.node(1);
    let outside = Capture::start(&lab.fabric(), "second", "icmp")?;
    ping(&pod.namespace, OUTSIDE)?;
    let packet = outside.wait_for("the request", |p| {
        p.headers.last().is_some_and(|h| h.1 == OUTSIDE)
    })?;
    ensure(packet.headers == [(node.address, OUTSIDE)], || {
        packet.text.clone()
    })?;

    let third = lab.node(3);
    let inside = Capture::start(&third.namespace, "eth1", "icmp")?;
    ping(&pod.namespace, third.address)?;
    let packet = inside.wait_for("the request", |p| {
        p.headers.last().is_some_and(|h| h.1 == third.address)
    })?;
    ensure(packet.headers == [(pod.address, third.address)], || {
        packet.text.clone()
    })?;

    let wire = Wire::tap(lab)?;
    let remote = lab.pod("n3p1").address;
    ping(&pod.namespace, remote)?;
    wire.wait_for((pod.address, remote))?;
    lab.set_in_pool(&[("natOutgoing", "false")])?;
    Ok(())
}

/// A host that talks to a service whose pod is on another node chose its source before it knew that: what leaves through
/// the tunnel has the tunnel's address, and the answer comes back.
pub(crate) fn host_to_service(lab: &mut Lab) -> Result<(), Failed> {
    let node = lab.node(1).namespace.clone();
    let remote = lab.pod("n3p1").address;
    node.run(
        "nft",
        &[&format!(
            "add table ip services; \
             add chain ip services output {{ type nat hook output priority -100; }}; \
             add rule ip services output ip daddr {SERVICE} dnat to {remote}"
        )],
    )?;
    let text = node.ip("-oneline -4 addr show tunl0")?;
    let tunnel: Ipv4Addr = text
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1)
        .and_then(|net| net.split('/').next()?.parse().ok())
        .ok_or_else(|| format!("no address on tunl0: {text}"))?;
    let reached = reaches(lab, &node, (tunnel, remote));
    node.run("nft", &["delete table ip services"])?;
    reached
}

fn reaches(lab: &Lab, node: &Namespace, inner: (Ipv4Addr, Ipv4Addr)) -> Result<(), Failed> {
    let chosen = node.ip(&format!("route get {SERVICE}"))?;
    ensure(!chosen.contains(&format!("src {}", inner.0)), || {
        format!("the host chooses the tunnel's address by itself: {chosen}")
    })?;
    let wire = Capture::start(&lab.fabric(), "second", "ip proto 4")?;
    ping(node, SERVICE)?;
    wire.wait_for("the request", |p| p.inner() == Some(inner))?;
    wire.wait_for("the answer", |p| p.inner() == Some((inner.1, inner.0)))?;
    Ok(())
}
