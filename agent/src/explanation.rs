//! Why packets for an address go where they go: pool, block, owner, BGP path, encapsulation, outer source and kernel
//! route, each as it should be and as it is, and in words what differs.
//!
//! Pure: [`explain`] is a function of what the control loop knows at one moment, and of what the speaker says of the
//! destination.

mod findings;
mod lines;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_bgp::id::Prefix;
use culvert_bgp::speaker::RouteView;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::api::{EncapsulationMode, IpPoolSpec};
use crate::cluster::Cluster;
use crate::fib::{MAIN_TABLE, Route, RouteKind};
use crate::inquiry::Known;
use crate::status::AgentStatus;

/// It is neither an address nor a range.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither an address such as 10.65.17.70 nor a range such as 10.65.17.64/26")]
pub struct NoDestination(String);

/// What somebody asks for: an address, which is a range of one, or a range, without bits beyond its length.
///
/// # Errors
/// When it is neither.
pub fn parse_destination(text: &str) -> Result<IpNet, NoDestination> {
    let range = text
        .parse()
        .or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address)));
    range
        .map_err(|_| NoDestination(text.to_owned()))
        .map(|range: IpNet| range.trunc())
}

/// All that is known of the way to a destination, from one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// What was asked for; an address is a range of one.
    pub destination: IpNet,
    /// The node that answers.
    pub node: String,
    /// The address that the others know it by.
    pub address: Option<IpAddr>,
    /// The pool around the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolPart>,
    /// The block around it, and whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockPart>,
    /// What BGP says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpPart>,
    /// Whether packets are encapsulated on the way, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encapsulation: Option<String>,
    /// The outer addresses of encapsulated packets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer: Option<OuterPart>,
    /// The route that the kernel should go by, as `ip route` prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The route that it goes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// What is wrong, a sentence each; empty where all is well.
    pub findings: Vec<String>,
}

#[cfg(test)]
impl Explanation {
    /// One of a destination of which nothing is known.
    pub(crate) fn example(destination: IpNet) -> Self {
        Self {
            destination,
            node: "a".to_owned(),
            address: None,
            pool: None,
            block: None,
            bgp: None,
            encapsulation: None,
            outer: None,
            expected: None,
            kernel: None,
            findings: Vec::new(),
        }
    }
}

/// The pool around a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolPart {
    /// Its name.
    pub name: String,
    /// Its range.
    pub cidr: IpNet,
    /// Its ipipMode.
    pub ipip_mode: EncapsulationMode,
    /// Whether it gives out no new addresses.
    pub disabled: bool,
}

/// The block around a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockPart {
    /// Its range.
    pub cidr: IpNet,
    /// The node whose it is.
    pub node: String,
    /// The address that this node is known by; none when it has published none.
    pub address: Option<IpAddr>,
}

/// What BGP says of a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPart {
    /// The range that is announced.
    pub prefix: IpNet,
    /// This node announces it.
    pub local: bool,
    /// The paths that were let in, the best first.
    pub paths: Vec<PathPart>,
}

/// A path that a peer announced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathPart {
    /// The peer.
    pub peer: IpAddr,
    /// The node that it is, where it is one.
    pub node: Option<String>,
    /// Where packets would go; none for a path that was not let in.
    pub next_hop: Option<IpAddr>,
    /// Why it is the best, or is not, or was not let in.
    pub verdict: String,
}

/// The outer addresses of encapsulated packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OuterPart {
    /// The address that the peer knows this node by.
    pub source: IpAddr,
    /// The node that the packets go to.
    pub destination: IpAddr,
    /// The source that the kernel would use; none where it was not asked yet.
    pub seen: Option<IpAddr>,
}

/// The ranges around a destination, the narrowest first: one of them may be announced.
#[must_use]
pub fn around(destination: IpNet) -> Vec<Prefix> {
    let lengths = (0..=destination.prefix_len()).rev();
    let ranges = lengths.filter_map(|length| IpNet::new(destination.addr(), length).ok());
    ranges.map(Prefix::new).collect()
}

/// Explains the way to `destination`. `bgp` is what the speaker says of the narrowest range around it that it knows.
pub(crate) fn explain(known: &Known<'_>, destination: IpNet, bgp: Option<&RouteView>) -> Explanation {
    let pool = pool_of(known.cluster, &destination);
    let block = known
        .cluster
        .block_around(&destination)
        .map(|(cidr, node)| BlockPart {
            cidr,
            node: node.to_owned(),
            address: address_of(known.cluster, node, &destination),
        });
    let expected = narrowest(known.plan.desired.routes.values(), &destination);
    let kernel = narrowest(known.actual.routes(), &destination);
    let named = |route: &Route| known.named(route);
    let bgp = bgp.map(|view| bgp_part(known.cluster, view));
    let is_remote = block
        .as_ref()
        .is_none_or(|block| block.node != known.settings.node);
    let peer = next_hop(bgp.as_ref()).or(block.as_ref().and_then(|block| block.address));
    let encapsulation = match (pool, peer) {
        (Some((name, pool)), Some(peer)) if is_remote => Some(encapsulation(known, name, pool, peer)),
        _ => None,
    };
    let outer = peer.filter(|_| encapsulation.as_ref().is_some_and(|of| of.applies));
    let mut explanation = Explanation {
        destination,
        node: known.settings.node.clone(),
        address: Some(IpAddr::V4(known.settings.address)),
        pool: pool.map(|(name, pool)| PoolPart {
            name: name.to_owned(),
            cidr: pool.cidr,
            ipip_mode: pool.ipip_mode,
            disabled: pool.disabled,
        }),
        block,
        bgp,
        encapsulation: encapsulation.map(|of| of.words),
        outer: outer.map(|peer| OuterPart {
            source: IpAddr::V4(known.settings.address),
            destination: peer,
            seen: seen_source(known.status, peer),
        }),
        expected: expected.map(named),
        kernel: kernel.map(named),
        findings: Vec::new(),
    };
    explanation.findings = findings::of(known, &explanation, expected, kernel);
    explanation
}

/// The destinations whose routes in the kernel are not as they should be: missing ones and others in their place, those that
/// peers announce and this node does not use, and what other programs have put between pods and those who look for them.
pub(crate) fn wrong_destinations(known: &Known<'_>) -> Vec<IpNet> {
    let desired = known.plan.desired.routes.values();
    let wrong = desired.filter(|route| route.key.table == MAIN_TABLE && known.problem(route).is_some());
    let rejected = known.status.routes.rejected.iter();
    // Pods of this host have links, and no gateway.
    let foreign = known.actual.routes().filter(|route| {
        route.key.table == MAIN_TABLE
            && route.protocol != known.settings.protocol
            && route.next_hops.iter().any(|hop| hop.gateway.is_some())
            && known.cluster.pool_of(&route.key.prefix).is_some()
    });
    let all = wrong
        .map(|route| route.key.prefix)
        .chain(rejected.filter_map(|problem| problem.route.parse().ok()))
        .chain(foreign.map(|route| route.key.prefix));
    let mut told = BTreeSet::new();
    all.filter(|destination| told.insert(*destination)).collect()
}

fn pool_of<'a>(cluster: &'a Cluster, net: &IpNet) -> Option<(&'a str, &'a IpPoolSpec)> {
    let spec = cluster.pool_of(net)?;
    cluster.pools().find(|(_, pool)| pool.cidr == spec.cidr)
}

/// The address that a node is known by, in the family of `destination`.
fn address_of(cluster: &Cluster, node: &str, destination: &IpNet) -> Option<IpAddr> {
    let node = cluster.node(node)?;
    match destination {
        IpNet::V4(_) => node.address.map(|net| IpAddr::V4(net.addr())),
        IpNet::V6(_) => node.address_v6.map(|net| IpAddr::V6(net.addr())),
    }
}

/// The route of the main table that a packet goes by: the narrowest, and of several the one of the least metric.
fn narrowest<'a>(routes: impl Iterator<Item = &'a Route>, destination: &IpNet) -> Option<&'a Route> {
    let around =
        routes.filter(|route| route.key.table == MAIN_TABLE && route.key.prefix.contains(destination));
    around.min_by_key(|route| (Reverse(route.key.prefix.prefix_len()), route.key.metric))
}

fn bgp_part(cluster: &Cluster, view: &RouteView) -> BgpPart {
    let nodes = cluster.nodes_by_address();
    let node = |peer: &IpAddr| nodes.get(peer).map(|name| (*name).to_owned());
    let let_in = view.paths.iter().map(|path| PathPart {
        peer: path.peer,
        node: node(&path.peer),
        next_hop: Some(path.attributes.next_hop),
        verdict: path.verdict.to_string(),
    });
    let kept_out = view.rejected.iter().map(|(peer, why)| PathPart {
        peer: *peer,
        node: node(peer),
        next_hop: None,
        verdict: format!("not let in: {why}"),
    });
    BgpPart {
        prefix: view.prefix.net(),
        local: view.local,
        paths: let_in.chain(kept_out).collect(),
    }
}

/// Where BGP sends packets.
fn next_hop(bgp: Option<&BgpPart>) -> Option<IpAddr> {
    bgp?.paths.first()?.next_hop
}

/// Whether packets are encapsulated, and why.
struct Encapsulation {
    applies: bool,
    words: String,
}

fn encapsulation(known: &Known<'_>, name: &str, pool: &IpPoolSpec, peer: IpAddr) -> Encapsulation {
    let because = |applies, why: String| Encapsulation {
        applies,
        words: format!("{}: {why}", if applies { "IPIP" } else { "none" }),
    };
    let mode = pool.ipip_mode;
    if peer.is_ipv6() {
        return because(
            false,
            "IPIP carries IPv4 alone, and IPv6 goes without a tunnel".to_owned(),
        );
    }
    match mode {
        EncapsulationMode::Never => because(false, format!("ipipMode of pool {name} is {mode:?}")),
        EncapsulationMode::Always => because(true, format!("ipipMode of pool {name} is {mode:?}")),
        EncapsulationMode::CrossSubnet => {
            let own = IpAddr::V4(known.settings.address);
            let Some((link, subnet)) = known.actual.link_with_address(own) else {
                return because(
                    true,
                    format!("ipipMode of pool {name} is {mode:?}, and no link of this host has {own}"),
                );
            };
            let subnet = subnet.trunc();
            let (inside, of) = (subnet.contains(&peer), &link.name);
            let where_ = if inside { "is in" } else { "is not in" };
            because(
                !inside,
                format!(
                    "ipipMode of pool {name} is {mode:?}, and {peer} {where_} this node's subnet {subnet} ({of})"
                ),
            )
        }
    }
}

/// The source that the kernel says encapsulated packets to `peer` would leave with.
fn seen_source(status: &AgentStatus, peer: IpAddr) -> Option<IpAddr> {
    let peer = status.peers.iter().find(|known| known.address == peer)?;
    peer.outer_source
}

/// Whether a route leads to a link of this host, as that to a pod does.
fn leads_to_link(route: &Route) -> bool {
    route.kind == RouteKind::Unicast
        && !route.next_hops.is_empty()
        && route.next_hops.iter().all(|hop| hop.gateway.is_none())
}

#[cfg(test)]
mod tests;
