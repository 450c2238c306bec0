//! Whose the blocks are, and how many are left.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{Check, Finding};
use crate::api::IpPoolSpec;
use crate::inquiry::Known;

/// Prefix lengths of blocks where a pool names none, as Calico has them.
const USUAL_BLOCK: (u8, u8) = (26, 122);

/// Blocks of nodes that there are none of, and pools without a block left.
pub(super) fn of(known: &Known<'_>) -> Vec<Finding> {
    // On half a view of the cluster every owner would be unknown.
    if !known.status.datastore.in_sync {
        return Vec::new();
    }
    let mut orphans: BTreeMap<&str, Vec<IpNet>> = BTreeMap::new();
    for (block, node) in known.cluster.claimed_blocks() {
        if known.cluster.node(node).is_none() {
            orphans.entry(node).or_default().push(block);
        }
    }
    let orphans = orphans.into_iter().map(|(node, blocks)| Finding {
        check: Check::Blocks,
        fix: None,
        finding: format!("{} to the node {node}, which does not exist", belong(&blocks)),
        evidence: format!(
            "there is no Node {node} in the datastore, and a confirmed claim of it to {}",
            named(&blocks)
        ),
        consequence: "nobody announces these addresses, and no other node may hand them out".to_owned(),
        cure: "the leading agent takes them back after a grace period; at once: culvert ipam check, then culvert ipam release"
            .to_owned(),
    });
    orphans.chain(exhausted(known)).collect()
}

fn belong(blocks: &[IpNet]) -> String {
    match blocks {
        [one] => format!("block {one} belongs"),
        more => format!("{} blocks belong", more.len()),
    }
}

/// The first few.
fn named(blocks: &[IpNet]) -> String {
    let names: Vec<String> = blocks.iter().take(3).map(ToString::to_string).collect();
    let more = blocks.len().saturating_sub(names.len());
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

/// A family of addresses of which no pool has a block left, and this node's own have no address left.
fn exhausted(known: &Known<'_>) -> Vec<Finding> {
    let of_family = |is_ipv4: bool| {
        let enabled = known.cluster.pools().filter(move |(_, pool)| {
            !pool.disabled && !pool.is_manual() && pool.cidr.addr().is_ipv4() == is_ipv4
        });
        let all: Option<Vec<Finding>> = enabled
            .map(|(name, pool)| exhausted_pool(known, name, pool))
            .collect();
        all.unwrap_or_default()
    };
    [true, false].into_iter().flat_map(of_family).collect()
}

/// None where the pool has room for this node.
fn exhausted_pool(known: &Known<'_>, name: &str, pool: &IpPoolSpec) -> Option<Finding> {
    let there_are = blocks_in(pool)?;
    let of_pool = |block: &IpNet| pool.cidr.contains(block);
    let claimed = known
        .cluster
        .claimed_blocks()
        .filter(|(block, _)| of_pool(block))
        .count() as u128;
    let own: Vec<IpNet> = known
        .cluster
        .blocks_of(&known.settings.node)
        .filter(of_pool)
        .collect();
    let room: u128 = own.iter().map(addresses_in).sum();
    let used: u128 = own
        .iter()
        .map(|block| known.cluster.in_use(block).unwrap_or(0) as u128)
        .sum();
    (claimed >= there_are && used >= room).then(|| Finding {
        check: Check::Blocks,
        fix: None,
        finding: format!("pool {name} is exhausted: this node has no address left of it, and can get no other block"),
        evidence: format!(
            "{claimed} of {there_are} blocks of {} are claimed, and of this node's {room} addresses {used} are in use",
            pool.cidr
        ),
        consequence: "new pods on this node get an address of another node's block, or none".to_owned(),
        cure: "create another pool; or look for what is left over: culvert ipam check, culvert ipam show --show-blocks"
            .to_owned(),
    })
}

fn addresses_in(net: &IpNet) -> u128 {
    1_u128
        .checked_shl(u32::from(net.max_prefix_len() - net.prefix_len()))
        .unwrap_or(u128::MAX)
}

/// How many blocks a pool has; none where its own sizes contradict each other.
fn blocks_in(pool: &IpPoolSpec) -> Option<u128> {
    let usual = match pool.cidr {
        IpNet::V4(_) => USUAL_BLOCK.0,
        IpNet::V6(_) => USUAL_BLOCK.1,
    };
    let bits = pool
        .block_size
        .unwrap_or(usual)
        .checked_sub(pool.cidr.prefix_len())?;
    1_u128.checked_shl(u32::from(bits))
}
