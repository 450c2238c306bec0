//! A node that starts from nothing but its disk.

use std::net::Ipv4Addr;

use harness::ping::{PingTrain, ping};
use harness::{Lab, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{GENEROUS, INTERVAL, WAGONS, arrived, as_before, train};
use crate::ensure;

/// A node reboots while the datastore is away: its kernel has nothing, its disk the last good copy. Its routes and its
/// tunnel come back, and packets from other nodes' pods to it; nothing is lost between the others. When the datastore is
/// back, its pods are attached anew.
pub(crate) fn without_the_datastore(lab: &mut Lab) -> Result<(), Failed> {
    let before = ours(lab)?;
    let tunnel = tunnel_address(lab)?;
    let beside = train(lab, "n2p1", "n3p1")?;
    let through = PingTrain::start(&lab.pod("n2p1").namespace, tunnel, INTERVAL)?;
    lab.set_datastore_away(true)?;
    lab.reboot(1)?;
    let routes = lab.node(1).namespace.routes()?;
    ensure(!routes.iter().any(|r| r.contains("proto culvert")), || {
        routes.join("; ")
    })?;
    beside.wait_for_more(WAGONS)?;
    lab.start_agent(1)?;
    wait_for("the routes to come back without the datastore", GENEROUS, || {
        let now = ours(lab).map_err(|e| e.message().unwrap_or("unreadable").to_owned())?;
        if now == before {
            Ok(())
        } else {
            Err(now.join("; "))
        }
    })?;
    let status = lab.node(1).agent.status_text(&[])?;
    ensure(status.contains("serving the last good copy"), || status.clone())?;
    through.wait_for_more(WAGONS)?;
    let outcome = through.stop();
    println!(
        "  to the node that rebooted: {} packets answered, {} lost",
        outcome.answered,
        outcome.lost.len()
    );
    arrived(beside, 0)?;

    lab.set_datastore_away(false)?;
    lab.wait_for_sessions()?;
    for name in ["n1p1", "n1p2"] {
        lab.detach(name)?;
        lab.attach(1, name)?;
    }
    lab.wait_for_routes()?;
    ensure(tunnel_address(lab)? == tunnel, || {
        "another tunnel address".to_owned()
    })?;
    ping(&lab.pod("n1p1").namespace, lab.pod("n3p1").address)?;
    ping(&lab.pod("n2p1").namespace, lab.pod("n1p2").address)?;
    // Nothing is left to do once all is known.
    let node = lab.node(1);
    as_before(node, &crate::continuity::programmed(node)?)
}

/// The routes of node 1 that are ours, but for those to its own pods.
fn ours(lab: &Lab) -> Result<Vec<String>, Failed> {
    let routes = lab.node(1).namespace.ip("route show table all")?;
    let ours = routes.lines().filter(|line| line.contains("proto culvert"));
    let mut ours: Vec<_> = ours.map(|line| line.trim_end().to_owned()).collect();
    ours.sort_unstable();
    Ok(ours)
}

/// The address of the tunnel device of node 1.
fn tunnel_address(lab: &Lab) -> Result<Ipv4Addr, Failed> {
    let text = lab.node(1).namespace.ip("-oneline -4 addr show tunl0")?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "inet");
    let address = words.nth(1).and_then(|net| net.split('/').next()?.parse().ok());
    address.ok_or_else(|| format!("no address on tunl0: {text}").into())
}
