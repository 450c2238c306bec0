//! Pods that come and go.

use harness::Lab;
use harness::ping::ping;
use libtest_mimic::Failed;

use crate::ensure;

/// A new pod is reachable from everywhere and counted; a deleted one leaves no route, no link and no address in use; and
/// its address is not given out again at once.
pub(crate) fn come_and_go(lab: &mut Lab) -> Result<(), Failed> {
    let before = lab.node(1).agent.status()?.addresses_in_use;
    let pod = lab.attach(1, "passing")?;
    for from in ["n1p1", "n2p1", "n3p1"] {
        ping(&lab.pod(from).namespace, pod.address)?;
    }
    in_use(lab, before + 1)?;
    lab.detach("passing")?;
    in_use(lab, before)?;
    let routes = lab.node(1).namespace.routes()?.join("\n");
    ensure(!routes.contains(&pod.host_interface), || routes.clone())?;
    let links = lab.node(1).namespace.ip("-oneline link show")?;
    ensure(!links.contains(&pod.host_interface), || links.clone())?;

    let next = lab.attach(1, "next")?;
    ensure(next.address != pod.address, || {
        format!("{} is given out again at once", next.address)
    })?;
    lab.detach("next")?;
    in_use(lab, before)
}

fn in_use(lab: &Lab, wanted: u64) -> Result<(), Failed> {
    let what = format!("node1 to count {wanted} addresses in use");
    harness::wait_for(&what, std::time::Duration::from_secs(20), || {
        let count = lab
            .node(1)
            .agent
            .status()
            .map_err(|e| e.to_string())?
            .addresses_in_use;
        if count == wanted {
            Ok(())
        } else {
            Err(count.to_string())
        }
    })?;
    Ok(())
}
