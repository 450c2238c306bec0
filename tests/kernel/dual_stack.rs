//! Nodes and pods with addresses of both families: IPv4 through the tunnel, IPv6 directly.

use std::net::Ipv6Addr;

use harness::ping::{PingTrain, ping};
use harness::{Lab, Node, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{GENEROUS, INTERVAL, WAGONS, arrived, train};
use crate::ensure;

/// Every pod has an address of each family, and reaches the other by both.
pub(crate) fn carries(lab: &mut Lab) -> Result<(), Failed> {
    let pods = pods(lab)?;
    for node in lab.nodes() {
        let forwarding = node
            .namespace
            .run("sysctl", &["-n", "net.ipv6.conf.all.forwarding"])?;
        ensure(forwarding.trim() == "1", || {
            format!("node{} forwards no IPv6", node.number)
        })?;
        let manifest = std::fs::read_to_string(lab.datastore().join("cluster.yaml"))?;
        let address = v6(lab, node.number)?;
        let published = format!("projectcalico.org/IPv6Address: {address}/64");
        ensure(manifest.contains(&published), || {
            format!("no {published} in {manifest}")
        })?;
    }
    for (from, to) in [(1, 2), (2, 1)] {
        routed(lab, from, to)?;
        let inside = &lab.pod(&format!("n{from}p1")).namespace;
        ping(inside, pods[usize::from(to) - 1])?;
        ping(inside, lab.pod(&format!("n{to}p1")).address)?;
        let ours = lab
            .node(from)
            .namespace
            .ip("route show proto culvert dev tunl0")?;
        ensure(ours.lines().count() == 1, || ours.clone())?;
    }
    // An address of a block that no pod has ends at its node, instead of going round.
    let block = block(lab.node(1))?;
    let blackhole = lab.node(1).namespace.ip(&format!("-6 route show {block}"))?;
    ensure(blackhole.starts_with("blackhole "), || blackhole.clone())
}

/// Killed, and started again: nothing is lost of either family, and the routes are what they were.
pub(crate) fn restarted(lab: &mut Lab) -> Result<(), Failed> {
    let pods = pods(lab)?;
    let trains = [
        PingTrain::start(&lab.pod("n1p1").namespace, pods[1], INTERVAL)?,
        PingTrain::start(&lab.pod("n2p1").namespace, pods[0], INTERVAL)?,
        train(lab, "n1p1", "n2p1")?,
    ];
    let before = ours(lab.node(1))?;
    ensure(before.len() == 2, || format!("{before:?}"))?;
    lab.agent(1).kill()?;
    trains[0].wait_for_more(WAGONS)?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    let after = ours(lab.node(1))?;
    ensure(before == after, || format!("{before:?}, then {after:?}"))?;
    for train in trains {
        train.wait_for_more(WAGONS)?;
        arrived(train, 0)?;
    }
    Ok(())
}

/// The pool of IPv6 is deleted: that is asked back, and moves nothing while its blocks are there. When they are gone too,
/// no route of IPv6 is left, and IPv4 has lost nothing.
pub(crate) fn pool_deleted(lab: &mut Lab) -> Result<(), Failed> {
    let pods = pods(lab)?;
    ping(&lab.pod("n1p1").namespace, pods[1])?;
    let train = train(lab, "n1p1", "n2p1")?;
    lab.delete_pool_v6()?;
    for node in lab.nodes() {
        let what = format!("node{} to ask whether the pool is to go", node.number);
        wait_for(&what, GENEROUS, || {
            let status = node.agent.status_text(&[]).map_err(|e| e.to_string())?;
            if status.contains("culvert node accept-withdrawal") {
                Ok(())
            } else {
                Err(status)
            }
        })?;
        ensure(!ours(node)?.is_empty(), || "gone without being asked".to_owned())?;
    }
    for node in lab.nodes() {
        node.agent.accept_withdrawal()?;
        ensure(ours(node)?.len() == 2, || {
            format!("node{}: gone with its pool", node.number)
        })?;
    }
    ping(&lab.pod("n1p1").namespace, pods[1])?;
    lab.delete_blocks_v6()?;
    for node in lab.nodes() {
        wait_for(
            &format!("the IPv6 routes of node{} to go", node.number),
            GENEROUS,
            || {
                let left = ours(node).map_err(|e| e.message().unwrap_or("unreadable").to_owned())?;
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(left.join("; "))
                }
            },
        )?;
    }
    lab.wait_for_routes()?;
    train.wait_for_more(WAGONS)?;
    arrived(train, 0)
}

fn v6(lab: &Lab, number: u8) -> Result<Ipv6Addr, Failed> {
    Ok(lab.layout().address_v6(number).ok_or("a layout without IPv6")?)
}

/// The agent's IPv6 routes of a node.
fn ours(node: &Node) -> Result<Vec<String>, Failed> {
    let shown = node.namespace.ip("-6 route show proto culvert")?;
    Ok(shown.lines().map(|line| line.trim_end().to_owned()).collect())
}

/// The IPv6 block of a node, once it has one.
fn block(node: &Node) -> Result<String, Failed> {
    let what = format!("node{} to have a block of IPv6", node.number);
    Ok(wait_for(&what, GENEROUS, || {
        let shown = node
            .namespace
            .ip("-6 route show type blackhole proto culvert")
            .map_err(|e| e.to_string())?;
        let block = shown.split_whitespace().nth(1).map(str::to_owned);
        block.ok_or(shown)
    })?)
}

/// Waits until a node has a direct route to the IPv6 block of another.
fn routed(lab: &Lab, from: u8, to: u8) -> Result<(), Failed> {
    let block = block(lab.node(to))?;
    let wanted = format!("{block} via {} dev eth0", v6(lab, to)?);
    let source = format!("src {}", v6(lab, from)?);
    Ok(wait_for(
        &format!("node{from} to have {wanted} … {source}"),
        GENEROUS,
        || {
            let routes = ours(lab.node(from)).map_err(|e| e.message().unwrap_or("unreadable").to_owned())?;
            let is_it = |line: &String| {
                line.starts_with(&wanted) && line.contains(&source) && line.contains("onlink")
            };
            if routes.iter().any(is_it) {
                Ok(())
            } else {
                Err(routes.join("; "))
            }
        },
    )?)
}

/// The IPv6 addresses that the first pods of the nodes were given, each in a block of its node; in the order of the nodes.
fn pods(lab: &Lab) -> Result<Vec<Ipv6Addr>, Failed> {
    let mut addresses = Vec::new();
    for node in lab.nodes() {
        let pod = lab.pod(&format!("n{}p1", node.number));
        let address = pod.address_v6.ok_or("a pod without IPv6")?;
        let block: ipnet::Ipv6Net = block(node)?.parse()?;
        ensure(block.contains(&address), || {
            format!("{address} of {} is not in {block}", pod.name)
        })?;
        addresses.push(address);
    }
    for (from, to) in [(1, 2), (2, 1)] {
        routed(lab, from, to)?;
    }
    Ok(addresses)
}
