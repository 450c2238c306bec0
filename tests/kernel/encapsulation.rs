//! That pods reach each other, in packets of the right form, by routes of the right form.

use std::collections::BTreeSet;
use std::fs;

use harness::capture::Capture;
use harness::ping::ping;
use harness::{Lab, Pod, wait_for};
use libtest_mimic::Failed;

use crate::continuity::GENEROUS;
use crate::ensure;

/// Every pod reaches every pod on another node; on the wire, request and reply have the outer addresses of the two
/// nodes where packets are tunnelled, and no outer addresses where they are not.
pub(crate) fn carries(lab: &mut Lab) -> Result<(), Failed> {
    for node in lab.nodes() {
        for other in lab.nodes().filter(|other| other.number != node.number) {
            let pods = |number| lab.pods().filter(move |pod: &&Pod| pod.node == number);
            let mut pairs = pods(node.number).flat_map(|from| pods(other.number).map(move |to| (from, to)));
            let first = pairs.next().ok_or("no pods")?;
            looks_right(lab, first.0, first.1)?;
            for (from, to) in pairs {
                ping(&from.namespace, to.address)?;
            }
        }
    }
    Ok(())
}

/// Pings once, and looks at the packets between the nodes.
fn looks_right(lab: &Lab, from: &Pod, to: &Pod) -> Result<(), Failed> {
    let (near, far) = (lab.node(from.node), lab.node(to.node));
    let capture = Capture::start(
        &near.namespace,
        lab.layout().device(near.number),
        "ip proto 4 or icmp",
    )?;
    ping(&from.namespace, to.address)?;
    let request = capture.wait_for("the request", |p| p.inner() == Some((from.address, to.address)))?;
    let reply = capture.wait_for("the reply", |p| p.inner() == Some((to.address, from.address)))?;
    let tunnelled = lab.layout().tunnelled(from.node, to.node);
    let wanted = |source, destination| {
        if tunnelled {
            Some((source, destination))
        } else {
            None
        }
    };
    for (packet, outer) in [
        (&request, wanted(near.address, far.address)),
        (&reply, wanted(far.address, near.address)),
    ] {
        ensure(packet.outer() == outer, || {
            format!(
                "from {} to {}: outer addresses {outer:?} wanted, seen: {}",
                from.name, to.name, packet.text
            )
        })?;
    }
    // Nothing of the other form passed beside it.
    let strays: Vec<_> = capture
        .packets()
        .into_iter()
        .filter(|p| p.outer().is_some() != tunnelled)
        .collect();
    ensure(strays.is_empty(), || {
        format!("tunnelled is {tunnelled}, and yet: {strays:?}")
    })
}

/// `10.65.17.64/26 via 172.18.0.12 dev tunl0 proto culvert onlink`, `blackhole 10.65.42.0/26 proto culvert`,
/// `10.65.42.1 dev cali19f6ea143e3 scope link`, the underlay, and nothing else; and a tunnel device that fits.
pub(crate) fn looks_like_calico(lab: &mut Lab) -> Result<(), Failed> {
    for node in lab.nodes() {
        let own = node.blocks()?;
        ensure(own.len() == 1, || {
            format!("node{} has the blocks {own:?}", node.number)
        })?;
        let mut wanted = BTreeSet::new();
        wanted.insert(format!("blackhole {} proto culvert", own[0]));
        for other in lab.nodes().filter(|other| other.number != node.number) {
            for block in other.blocks()? {
                wanted.insert(format!(
                    "{block} via {} dev tunl0 proto culvert onlink",
                    other.address
                ));
            }
        }
        for pod in lab.pods().filter(|pod| pod.node == node.number) {
            ensure(pod.host_interface.len() == "cali19f6ea143e3".len(), || {
                pod.host_interface.clone()
            })?;
            wanted.insert(format!("{} dev {} scope link", pod.address, pod.host_interface));
        }
        let underlay = |line: &String| line.starts_with("default ") || line.contains(" proto kernel ");
        let seen: BTreeSet<_> = node
            .namespace
            .routes()?
            .into_iter()
            .filter(|line| !underlay(line))
            .collect();
        ensure(seen == wanted, || {
            format!("node{}: wanted {wanted:#?}, there are {seen:#?}", node.number)
        })?;
        let tunnel = node.namespace.ip("-oneline link show tunl0")?;
        ensure(tunnel.contains("UP") && tunnel.contains("mtu 1480"), || {
            tunnel.clone()
        })?;
        let address = node.namespace.ip("-oneline -4 addr show tunl0")?;
        ensure(address.contains("/32") && address.contains("inet 10.65."), || {
            address.clone()
        })?;
    }
    Ok(())
}

/// Every outer header has DF, or only that of a packet that has it, as the configuration says; what hands change is put
/// back, and without a word in the configuration it stays as it is.
pub(crate) fn path_mtu_discovery(lab: &mut Lab) -> Result<(), Failed> {
    let config = lab.node(1).agent.config();
    let before = fs::read_to_string(&config)?;
    for (configured, word, df) in [
        (Some(true), "pmtudisc", true),
        (Some(false), "nopmtudisc", false),
        (None, "nopmtudisc", false),
    ] {
        let tunnel = configured.map_or_else(String::new, |on| format!("tunnel:\n  pathMtuDiscovery: {on}\n"));
        fs::write(&config, format!("{before}{tunnel}"))?;
        lab.agent(1).terminate()?;
        lab.start_agent(1)?;
        lab.wait_for_sessions()?;
        is_set(lab, word)?;
        outer_has_df(lab, df)?;
        if let Some(on) = configured {
            let other = if on { "nopmtudisc" } else { "pmtudisc" };
            lab.node(1)
                .namespace
                .ip(&format!("tunnel change tunl0 mode ipip {other}"))?;
            is_set(lab, word)?;
        }
    }
    lab.wait_for_routes()?;
    Ok(())
}

fn is_set(lab: &Lab, word: &str) -> Result<(), Failed> {
    Ok(wait_for(&format!("tunl0 to have {word}"), GENEROUS, || {
        let shown = lab
            .node(1)
            .namespace
            .ip("-details link show tunl0")
            .map_err(|e| e.to_string())?;
        if shown.split_whitespace().any(|seen| seen == word) {
            Ok(())
        } else {
            Err(shown)
        }
    })?)
}

/// Sends a packet without DF, and looks whether the outer one has it.
fn outer_has_df(lab: &Lab, df: bool) -> Result<(), Failed> {
    let (from, to) = (lab.pod("n1p1"), lab.pod("n2p1"));
    // RFC 791 §3.1: DF is the second bit of the octet after the identification.
    let filter = format!(
        "ip proto 4 and src {} and ip[6]&0x40{}0",
        lab.node(1).address,
        if df { "!=" } else { "=" }
    );
    let capture = Capture::start(&lab.node(2).namespace, "eth0", &filter)?;
    from.namespace.run(
        "ping",
        &["-n", "-M", "dont", "-c", "1", "-W", "5", &to.address.to_string()],
    )?;
    capture.wait_for("the request", |p| p.inner() == Some((from.address, to.address)))?;
    Ok(())
}
