//! An address that a pod has in the block of another node.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use harness::ping::{PingTrain, ping};
use harness::{Lab, wait_for};
use libtest_mimic::Failed;
use serde_yaml::Value;

use crate::ensure;

/// For what takes an agent a moment; a guest on a busy machine gets more.
const GENEROUS: Duration = Duration::from_secs(30);
/// Far from the addresses that pods get in a trial.
const ORDINAL: u8 = 60;

/// A pod of the first node has an address in the second node's block: it is reached from the third node, and from the
/// owner of the block past its blackhole; when it is given back the routes go, and nothing else was lost meanwhile.
pub(crate) fn reached(lab: &mut Lab) -> Result<(), Failed> {
    let train = PingTrain::start(
        &lab.pod("n3p1").namespace,
        lab.pod("n2p1").address,
        Duration::from_millis(10),
    )?;
    let blocks = lab.node(2).blocks()?;
    let block = blocks.first().ok_or("node2 has no block")?.clone();
    let address = address_in(&block)?;
    let pod = lab.pod("n1p1");
    let owner = lab.node(2);
    pod.namespace.ip(&format!("address add {address}/32 dev eth0"))?;
    let route = format!("{address} dev {} scope link", pod.host_interface);
    lab.node(1).namespace.ip(&format!("route add {route}"))?;

    lend(lab, &block, Some("node1"))?;
    for number in [2, 3] {
        let wanted = format!(
            "{address} via {} dev tunl0 proto culvert onlink",
            lab.node(1).address
        );
        has_route(lab, number, &wanted, true)?;
    }
    let routes = owner.namespace.routes()?;
    ensure(
        routes.contains(&format!("blackhole {block} proto culvert")),
        || routes.join("; "),
    )?;
    let routes = lab.node(1).namespace.routes()?;
    ensure(routes.contains(&route), || routes.join("; "))?;
    ping(&lab.pod("n3p1").namespace, address)?;
    ping(&lab.pod("n2p1").namespace, address)?;
    ping(&owner.namespace, address)?;

    lend(lab, &block, None)?;
    for number in [2, 3] {
        let gone = format!("{address} via");
        has_route(lab, number, &gone, false)?;
    }
    lab.node(1).namespace.ip(&format!("route delete {route}"))?;
    pod.namespace
        .ip(&format!("address delete {address}/32 dev eth0"))?;
    let outcome = train.stop();
    ensure(outcome.lost.is_empty() && outcome.answered > 0, || {
        format!("{outcome:?}")
    })
}

fn address_in(block: &str) -> Result<Ipv4Addr, Failed> {
    let first = block.split('/').next().unwrap_or_default();
    let first: Ipv4Addr = first.parse().map_err(|e| format!("{block}: {e}"))?;
    Ok(Ipv4Addr::from(first.to_bits() + u32::from(ORDINAL)))
}

/// Writes into the block's object that `node` has the address, or nobody.
fn lend(lab: &Lab, block: &str, node: Option<&str>) -> Result<(), Failed> {
    let name = block.replace(['.', '/'], "-");
    let file = lab.datastore().join("ipamblocks").join(format!("{name}.yaml"));
    let mut object: Value = serde_yaml::from_str(&fs::read_to_string(&file)?)?;
    let ordinal = usize::from(ORDINAL);
    let spec = &mut object["spec"];
    let free = spec["unallocated"]
        .as_sequence_mut()
        .ok_or("no list of free ordinals")?;
    free.retain(|free| free.as_u64() != Some(u64::from(ORDINAL)));
    if let Some(node) = node {
        let attributes = spec["attributes"].as_sequence_mut().ok_or("no attributes")?;
        attributes.push(serde_yaml::from_str(&format!(
            "{{handle_id: trial, secondary: {{node: {node}, namespace: trial, pod: borrower}}}}"
        ))?);
        spec["allocations"][ordinal] = Value::from(attributes_last(spec)?);
    } else {
        free.push(Value::from(ORDINAL));
        spec["allocations"][ordinal] = Value::Null;
        let attributes = spec["attributes"].as_sequence_mut().ok_or("no attributes")?;
        attributes.pop();
    }
    let beside = file.with_extension("new");
    fs::write(&beside, serde_yaml::to_string(&object)?)?;
    fs::rename(beside, file)?;
    Ok(())
}

fn attributes_last(spec: &Value) -> Result<u64, Failed> {
    let count = spec["attributes"].as_sequence().map_or(0, Vec::len);
    let last = count.checked_sub(1).ok_or("no attributes")?;
    Ok(u64::try_from(last)?)
}

fn has_route(lab: &Lab, number: u8, start: &str, wanted: bool) -> Result<(), Failed> {
    let what = format!("node{number} to have a route {start}: {wanted}");
    wait_for(&what, GENEROUS, || {
        let routes = lab.node(number).namespace.routes().map_err(|e| e.to_string())?;
        if routes.iter().any(|route| route.starts_with(start)) == wanted {
            Ok(())
        } else {
            Err(routes.join("; "))
        }
    })?;
    Ok(())
}
