//! Two ways of a host's own to another node: both carry packets, and one alone does when the other's NIC is down.

use harness::{Lab, Mode, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{GENEROUS, WAGONS, arrived, train};
use crate::ensure;

/// The node with two NICs.
const HERE: u8 = 2;
/// The node behind the router.
const THERE: u8 = 3;
/// The router on the network of the second NIC.
const OTHER_ROUTER: &str = "192.168.3.1";

/// The host has two routers to a node on another subnet, one on each NIC, of which the second takes nearly all. When that
/// NIC goes down packets pass through the other one, and come back to it when it is up again: the route of the pods has
/// the host's next hops and shares, and stays in the kernel throughout.
pub(crate) fn nic_down(lab: &mut Lab) -> Result<(), Failed> {
    let (here, fabric) = (lab.node(HERE).namespace.clone(), lab.fabric());
    let there = lab.node(THERE).address;
    let near = lab.layout().router(HERE);
    let hops = format!("nexthop via {near} dev eth0 weight 1 nexthop via {OTHER_ROUTER} dev eth1 weight 200");
    // Without a tunnel the router must know the pods.
    let mut to_pods = Vec::new();
    for number in [HERE, THERE] {
        let node = lab.node(number);
        to_pods.extend(
            node.blocks()?
                .into_iter()
                .map(|block| format!("{block} via {}", node.address)),
        );
    }
    for route in &to_pods {
        fabric.ip(&format!("route replace {route}"))?;
    }
    here.ip(&format!("route add {there}/32 {hops}"))?;
    lab.set_in_pool(&[("ipipMode", Mode::Direct.ipip_mode())])?;
    let route = wait_for("the route to the pods to have both next hops", GENEROUS, || {
        let routes = here
            .ip("-oneline route show proto culvert")
            .map_err(|e| e.to_string())?;
        let both = |line: &&str| {
            line.contains("dev eth0 weight 1 onlink") && line.contains("dev eth1 weight 200 onlink")
        };
        routes.lines().find(both).map(str::to_owned).ok_or(routes)
    })?;
    ensure(route.contains(&format!("src {}", lab.node(HERE).address)), || {
        route.clone()
    })?;

    let (from, to) = flow(lab, "eth1")?.ok_or("no pods whose packets go through eth1")?;
    let train = train(lab, &from, &to)?;
    train.wait_for_more(WAGONS)?;
    for (state, nic) in [("down", "eth0"), ("up", "eth1")] {
        here.ip(&format!("link set eth1 {state}"))?;
        train.wait_for_more(4 * WAGONS)?;
        wait_for(&format!("packets to go through {nic}"), GENEROUS, || {
            let through = way(lab, &from, &to).map_err(|e| e.message().unwrap_or("unknown").to_owned())?;
            if through == nic { Ok(()) } else { Err(through) }
        })?;
        let routes = here.ip("-oneline route show proto culvert")?;
        let block = route.split_whitespace().next().unwrap_or_default();
        ensure(routes.contains(block), || format!("eth1 {state}: {routes}"))?;
    }
    let restored = here.ip("-oneline route show proto culvert")?;
    ensure(restored.contains(route.trim_end()), || {
        format!("{route} is not among {restored}")
    })?;
    // What was under way through the NIC is lost at most, and what waited for its neighbour.
    arrived(train, WAGONS)?;

    lab.set_in_pool(&[("ipipMode", Mode::CrossSubnet.ipip_mode())])?;
    lab.wait_for_routes()?;
    here.ip(&format!("route del {there}/32"))?;
    for route in &to_pods {
        fabric.ip(&format!("route del {route}"))?;
    }
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(())
}

/// Two pods on the two nodes whose packets leave through this NIC.
fn flow(lab: &Lab, nic: &str) -> Result<Option<(String, String)>, Failed> {
    for from in lab.pods().filter(|pod| pod.node == HERE) {
        for to in lab.pods().filter(|pod| pod.node == THERE) {
            if way(lab, &from.name, &to.name)? == nic {
                return Ok(Some((from.name.clone(), to.name.clone())));
            }
        }
    }
    Ok(None)
}

/// The NIC through which packets between these pods leave their node.
fn way(lab: &Lab, from: &str, to: &str) -> Result<String, Failed> {
    let (from, to) = (lab.pod(from), lab.pod(to));
    let shown = lab.node(from.node).namespace.ip(&format!(
        "route get {} from {} iif {}",
        to.address, from.address, from.host_interface
    ))?;
    let mut words = shown.split_whitespace().skip_while(|word| *word != "dev");
    Ok(words.nth(1).ok_or(shown.clone())?.to_owned())
}
