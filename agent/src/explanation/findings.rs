//! What differs between what should be and what is, in words: what is wrong, the two values, and what to do.

use std::net::IpAddr;

use super::{BlockPart, Explanation, leads_to_link, next_hop};
use crate::cluster::Cluster;
use crate::fib::{Route, RouteKind, protocol_name};
use crate::inquiry::Known;

/// A session that has not been up or tried yet has none.
const NO_REASON: &str = "no reason is known yet";

/// All that is wrong with the way to the destination; the cause before its consequences.
pub(super) fn of(
    known: &Known<'_>,
    explained: &Explanation,
    expected: Option<&Route>,
    kernel: Option<&Route>,
) -> Vec<String> {
    let mut findings = Vec::new();
    if !known.status.datastore.in_sync {
        findings.push(
            "the datastore has not told all it has yet: what is said here may change; `culvert node status` says why"
                .to_owned(),
        );
    }
    findings.extend(ownership(explained, kernel));
    findings.extend(announcement(known, explained));
    findings.extend(rejections(known, explained));
    findings.extend(kernel_route(known, explained, expected, kernel));
    findings.extend(outer_source(known, explained));
    findings
}

/// No pool, no owner, or no pod.
fn ownership(explained: &Explanation, kernel: Option<&Route>) -> Option<String> {
    let destination = explained.destination;
    let Some(pool) = &explained.pool else {
        let is_announced = next_hop(explained.bgp.as_ref()).is_some();
        return (!is_announced).then(|| {
            format!(
                "{destination} lies in no IPPool, and no peer announces it: Culvert has nothing to say of it, the \
                 kernel's other routes decide"
            )
        });
    };
    let Some(block) = &explained.block else {
        return Some(format!(
            "no node owns a block around {destination} in pool {} ({}): no pod has it, unless the address was deleted \
             with its block; `culvert ipam show --ip={}` says more",
            pool.name,
            pool.cidr,
            destination.addr()
        ));
    };
    let is_address = destination.prefix_len() == destination.max_prefix_len();
    let is_dropped = kernel.is_some_and(|route| route.kind == RouteKind::Blackhole);
    (is_address && block.node == explained.node && is_dropped).then(|| {
        format!(
            "no pod on this node has {}: the blackhole of the node's block {} drops packets to it",
            destination.addr(),
            block.cidr
        )
    })
}

/// The block's owner does not announce it, or somebody else's path is used.
fn announcement(known: &Known<'_>, explained: &Explanation) -> Option<String> {
    let block = explained
        .block
        .as_ref()
        .filter(|block| block.node != explained.node)?;
    let Some(owner) = block.address else {
        return Some(format!(
            "node {} owns {} and has published no address: nobody can send to it; look at the agent of that node",
            block.node, block.cidr
        ));
    };
    match next_hop(explained.bgp.as_ref()) {
        None => Some(unannounced(known, block, owner)),
        Some(next_hop) if next_hop != owner => Some(format!(
            "BGP sends packets to {next_hop}{}, but {} belongs to node {}, known by {owner}: look at what {next_hop} \
             announces, and at the agent of {}",
            name_of(known.cluster, next_hop),
            block.cidr,
            block.node,
            block.node,
        )),
        Some(_) => kept(known, block, owner),
    }
}

/// The session is down, and the routes that came over it are kept for a while.
fn kept(known: &Known<'_>, block: &BlockPart, owner: IpAddr) -> Option<String> {
    let session = known.status.peers.iter().find(|peer| peer.address == owner)?;
    (session.state != "Established").then(|| {
        format!(
            "the BGP session with node {} ({owner}) is {} since {:.0}: {}; its routes are kept until it is back, or its \
             restart time is over",
            block.node,
            session.state,
            session.since,
            session.reason.as_deref().unwrap_or(NO_REASON)
        )
    })
}

fn name_of(cluster: &Cluster, address: IpAddr) -> String {
    let nodes = cluster.nodes_by_address();
    nodes
        .get(&address)
        .map_or_else(String::new, |name| format!(" (node {name})"))
}

/// Why nobody announces the block, as far as this end sees it.
fn unannounced(known: &Known<'_>, block: &BlockPart, owner: IpAddr) -> String {
    let BlockPart { cidr, node, .. } = block;
    let session = known.status.peers.iter().find(|peer| peer.address == owner);
    match session {
        None => format!(
            "nobody announces {cidr}, and its node {node} ({owner}) is no BGP peer of this one: is the node mesh off \
             without a route reflector in its place?"
        ),
        Some(peer) if peer.state == "Established" => format!(
            "node {node} ({owner}) owns {cidr} and does not announce it, though the session with it is up: run \
             `culvert node status` there"
        ),
        Some(peer) => {
            let reason = peer.reason.as_deref().unwrap_or(NO_REASON);
            format!(
                "node {node} owns {cidr}, and the BGP session with it ({owner}) is {} since {:.0}: {reason}",
                peer.state, peer.since
            )
        }
    }
}

/// What is announced and not installed.
fn rejections(known: &Known<'_>, explained: &Explanation) -> Vec<String> {
    let prefix = explained
        .bgp
        .as_ref()
        .map_or(explained.destination, |bgp| bgp.prefix);
    let reasons = known.plan.rejected.get(&prefix).into_iter().flatten();
    reasons
        .map(|reason| format!("{prefix} is announced and not installed: {reason}"))
        .collect()
}

/// The kernel goes by another route than it should.
fn kernel_route(
    known: &Known<'_>,
    explained: &Explanation,
    expected: Option<&Route>,
    kernel: Option<&Route>,
) -> Vec<String> {
    let Some(expected) = expected else {
        // A route that nobody asked for, in the pod network, is how packets get lost.
        return kernel
            .filter(|_| explained.pool.is_some())
            .and_then(|kernel| into_pool(known, kernel))
            .into_iter()
            .collect();
    };
    let words = explained.expected.as_deref().unwrap_or_default();
    let Some(kernel) = kernel else {
        return vec![missing(known, expected, words)];
    };
    let is_narrower = kernel.key.prefix.prefix_len() > expected.key.prefix.prefix_len();
    // To a pod of this node, within its block.
    if kernel.is_same_as(expected) || (is_narrower && leads_to_link(kernel)) {
        return Vec::new();
    }
    if kernel.key.prefix.prefix_len() < expected.key.prefix.prefix_len() {
        return vec![missing(known, expected, words)];
    }
    let mut findings: Vec<String> = into_pool(known, kernel).into_iter().collect();
    let found = explained.kernel.as_deref().unwrap_or_default();
    let by = protocol_name(kernel.protocol);
    findings.push(if is_narrower {
        format!(
            "a narrower route, of protocol {by}, has the packets: `{found}` instead of `{words}`; find out who made it, \
             and remove it: ip route del {found}"
        )
    } else {
        format!(
            "the kernel has `{found}` (protocol {by}), and should have `{words}`{}; by hand: ip route replace {words}",
            why(known, expected)
        )
    });
    findings
}

/// Field case: a next hop inside the pod network, as when a tunnel's address is taken for a node's.
fn into_pool(known: &Known<'_>, route: &Route) -> Option<String> {
    let (gateway, pool) = known.next_hop_in_pool(route)?;
    Some(format!(
        "wrong next hop: the kernel sends {} to {gateway}, which lies inside the pool {}: that is an address of the pod \
         network, no node is there, and the packets are lost",
        route.key.prefix, pool.cidr
    ))
}

fn missing(known: &Known<'_>, expected: &Route, words: &str) -> String {
    format!(
        "the kernel lacks `{words}`{}: packets follow its other routes, or are refused",
        why(known, expected)
    )
}

fn why(known: &Known<'_>, expected: &Route) -> String {
    let why = (known.refused)(&expected.key);
    why.map_or_else(String::new, |why| format!(" ({why})"))
}

/// Field case: the peer knows this node by another address than the outer source.
fn outer_source(known: &Known<'_>, explained: &Explanation) -> Option<String> {
    let outer = explained.outer.as_ref()?;
    let mismatches = &known.status.sources.mismatches;
    let mismatch = mismatches.iter().find(|of| of.peer == outer.destination);
    mismatch.map(|of| format!("wrong outer source: {}", of.problem))
}
