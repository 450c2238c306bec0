//! An agent that may no more than in its container: three capabilities, and `/proc/sys` read-only.

use harness::ping::ping;
use harness::{Lab, wait_for};
use libtest_mimic::Failed;

use crate::continuity::GENEROUS;
use crate::doctor::found;
use crate::ensure;

/// On a node that was just started, whose links check the reverse path strictly, it makes tunnel and routes all the same.
/// What only the host may do it asks for in words, and takes up as soon as it is done.
pub(crate) fn routes(lab: &mut Lab) -> Result<(), Failed> {
    lab.reboot(2)?;
    let host = &lab.node(2).namespace;
    let strict = ["net.ipv4.conf.default.rp_filter=1", "net.ipv4.ip_forward=0"];
    host.run("sysctl", &[&["-qw"], &strict[..]].concat())?;
    // Where new namespaces are given a tunl0, it is older than that.
    if host.ip("link show tunl0").is_ok() {
        host.run("sysctl", &["-qw", "net.ipv4.conf.tunl0.rp_filter=1"])?;
    }
    lab.agent(2).confine();
    lab.start_agent(2)?;
    wait_for("the agent to ask for forwarding", GENEROUS, || {
        let agent = &lab.node(2).agent;
        let text = agent
            .status_text(&["-o", "wide"])
            .map_err(|error| error.to_string())?;
        let asks = text.contains("run `sysctl -w net.ipv4.ip_forward=1` on the host");
        if asks { Ok(()) } else { Err(text) }
    })?;
    let agent = &lab.node(2).agent;
    found(
        agent,
        &[
            "this host does not forward packets",
            "net.ipv4.ip_forward is 0",
            "sysctl -w net.ipv4.ip_forward=1",
        ],
    )?;
    lab.node(2)
        .namespace
        .run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
    for name in ["n2p1", "n2p2"] {
        lab.detach(name)?;
        lab.attach(2, name)?;
    }
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    let filter = lab
        .node(2)
        .namespace
        .run("sysctl", &["-n", "net.ipv4.conf.tunl0.rp_filter"])?;
    ensure(filter.trim() == "2", || format!("rp_filter of tunl0 is {filter}"))?;
    ping(&lab.pod("n2p1").namespace, lab.pod("n1p1").address)?;
    ping(&lab.pod("n3p1").namespace, lab.pod("n2p2").address)?;
    Ok(())
}
