//! What `culvert doctor` says of a node that is well, and of one that is not.

use std::time::Duration;

use harness::agent::Agent;
use harness::ping::ping;
use harness::{Lab, LabError, Layout, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// Far more than anything here takes.
const GENEROUS: Duration = Duration::from_secs(60);

/// What it prints, whatever it finds.
pub(crate) fn report(agent: &Agent) -> Result<String, LabError> {
    match agent.ask(&["doctor"]) {
        Err(LabError::Command { output, .. }) => Ok(output),
        other => other,
    }
}

/// Waits until the report of a node has all of these words in it.
pub(crate) fn found(agent: &Agent, words: &[&str]) -> Result<(), LabError> {
    wait_for(&format!("the report to say {words:?}"), GENEROUS, || {
        let text = report(agent).map_err(|error| error.to_string())?;
        if words.iter().all(|words| text.contains(words)) {
            Ok(())
        } else {
            Err(text)
        }
    })
}

/// No command finds anything, on any node or looking at all of them; nor do packets get lost.
fn is_well(lab: &Lab) -> Result<(), Failed> {
    for node in lab.nodes() {
        found(&node.agent, &["Nothing is wrong."])?;
    }
    let agent = &lab.node(1).agent;
    for (command, words) in [
        (&["status"][..], "Nothing is wrong."),
        (&["doctor", "--all-nodes"], "Nothing is wrong."),
        (&["ipam", "check"], "found 0 problems"),
    ] {
        let text = agent.by_configuration(command)?;
        ensure(text.contains(words), || format!("{command:?}: {text}"))?;
    }
    let (from, to) = (lab.pod("n1p1").address, lab.pod("n3p1").address);
    let text = agent.ask(&["trace", &from.to_string(), &to.to_string()])?;
    ensure(
        text.contains("All packets arrived, and all answers came back."),
        || text.clone(),
    )
}

/// Nothing is found on any node; then a wrong next hop, a strict filter, and a lost session are, and nothing again.
pub(crate) fn faults(lab: &mut Lab) -> Result<(), Failed> {
    is_well(lab)?;
    let node = lab.node(1);
    let (to, inside) = (lab.pod("n2p1").address, lab.pod("n3p1").address);
    node.namespace.ip(&format!(
        "route add {to} via {inside} dev tunl0 onlink proto static"
    ))?;
    let told = found(
        &node.agent,
        &[
            &format!("wrong next hop: {to}/32 is sent to {inside}, an address inside the pool"),
            &format!("ip route del {to} via {inside} dev tunl0 proto static onlink"),
            "1 finding.",
        ],
    );
    node.namespace.ip(&format!("route del {to} proto static"))?;
    told?;
    strict_filter(lab)?;
    tunnel_filter(lab)?;

    let (name, address) = (lab.node(2).agent.status()?.node, lab.node(2).address);
    lab.agent(2).kill()?;
    let told = found(
        &lab.node(1).agent,
        &[
            &format!("the BGP session with node {name} ({address}) is"),
            "its routes are kept",
        ],
    );
    lab.start_agent(2)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    told?;
    is_well(lab)
}

/// The node that is known by an address of the first network sends through the router, so that its packets come in on the
/// NIC of the second, which is not the way back to it: a strict filter there drops them.
fn strict_filter(lab: &Lab) -> Result<(), Failed> {
    let (node, lone) = (lab.node(1), lab.node(Layout::lone_number()));
    let set = |value: &str| {
        let setting = format!("net.ipv4.conf.eth1.rp_filter={value}");
        node.namespace
            .run("sysctl", &["-qw", "net.ipv4.conf.all.rp_filter=0", &setting])
    };
    let direct = "192.168.3.0/24 dev eth0";
    lone.namespace.ip(&format!("route del {direct}"))?;
    set("1")?;
    let words = format!(
        "a strict reverse-path filter on eth1 drops packets of node {}",
        lone.address
    );
    let told = wait_for("the strict filter to be found", GENEROUS, || {
        // Lost, of course.
        let _ = ping(&lab.pod("n2p1").namespace, lab.pod("n1p1").address);
        let text = report(&node.agent).map_err(|error| error.to_string())?;
        let is_found = text.contains(&words) && text.contains("sysctl -w net.ipv4.conf.eth1.rp_filter=2");
        if is_found { Ok(()) } else { Err(text) }
    });
    // What it would do it does not do unasked.
    let unasked = match node.agent.ask(&["doctor", "--fix"]) {
        Err(LabError::Command { output, .. }) => output,
        other => other?,
    };
    let mended = node.agent.ask(&["doctor", "--fix", "--yes"])?;
    for (words, text) in [
        (
            "nothing was changed: answer y on a terminal, or say --yes",
            &unasked,
        ),
        ("to undo it: sysctl -w net.ipv4.conf.eth1.rp_filter=1", &mended),
        ("Done: sysctl -w net.ipv4.conf.eth1.rp_filter=2", &mended),
    ] {
        ensure(text.contains(words), || text.clone())?;
    }
    let mended = wait_for("the pods to reach each other", GENEROUS, || {
        ping(&lab.pod("n2p1").namespace, lab.pod("n1p1").address).map_err(|error| error.to_string())
    });
    lone.namespace.ip(&format!("route add {direct}"))?;
    told?;
    Ok(mended.map(drop)?)
}

/// A filter of somebody else's drops all tunnelled packets: the doctor there names the rule once, for all nodes that it keeps
/// out.
fn tunnel_filter(lab: &Lab) -> Result<(), Failed> {
    let node = lab.node(1);
    let nft = |command: &str| node.namespace.run("nft", &[command]);
    nft(
        "add table inet guard; add chain inet guard input { type filter hook input priority 0; }; \
         add rule inet guard input ip protocol 4 counter drop",
    )?;
    let told = found(
        &node.agent,
        &[
            "a packet filter on this host drops tunnelled packets (IP protocol 4) from every other node",
            "nftables, table inet guard, chain input, rule with handle",
            "nft insert rule inet guard input ip protocol 4 accept",
        ],
    );
    nft("delete table inet guard")?;
    Ok(told?)
}
