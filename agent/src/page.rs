//! The page to look at: what the control loop knows at one moment, as the page draws it, and the page itself.
//!
//! The view is a value; the page is one file that asks for it, and asks nobody else ([`POLICY`]).

mod recent;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::api::IpPoolSpec;
use crate::cluster::Cluster;
use crate::fib::{Desired, MAIN_TABLE, Route};
use crate::inquiry::Known;
use crate::status::AgentStatus;

pub use jiff::Timestamp as Time;
pub use recent::{Event, EventKind, Recent};

/// The page: it draws what [`View`] says.
pub const PAGE: &str = include_str!("page/page.html");

/// What a browser may do with the page (the header `Content-Security-Policy`): run the script and use the style that are in it,
/// and ask where it came from. So a name in the cluster that looks like a script is text, whatever else goes wrong.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = |tag: &str| {
        let begin = PAGE.split_once(&format!("<{tag}>")).map_or("", |(_, rest)| rest);
        let text = begin
            .split_once(&format!("</{tag}>"))
            .map_or("", |(text, _)| text);
        STANDARD.encode(Sha256::digest(text))
    };
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash("script"),
        hash("style")
    )
});

/// Most blocks that are told, over all pools.
const BLOCKS_MAX: usize = 20_000;

/// Most routes that are told, those with a problem first.
const ROUTES_MAX: usize = 2_000;

/// What the page draws.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// When this was so.
    pub at: Timestamp,
    /// The agent's status.
    pub status: AgentStatus,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// All nodes, by name.
    pub nodes: Vec<NodeView>,
    /// All pools, by name.
    pub pools: Vec<PoolView>,
    /// Blocks that are left out, since there are too many.
    pub blocks_left_out: usize,
    /// The routes that should be in the main table, those with a problem first.
    pub routes: Vec<RouteView>,
    /// Routes that are left out, since there are too many.
    pub routes_left_out: usize,
    /// What happened lately, the latest first.
    pub events: Vec<Event>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The address that it advertises; none until it has one.
    pub address: Option<IpAddr>,
    /// Blocks that are its own.
    pub blocks: usize,
}

/// A pool, and who has which part of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its range.
    pub cidr: IpNet,
    /// The prefix length of its blocks.
    pub block_size: u8,
    /// No new addresses from it.
    pub disabled: bool,
    /// Its blocks that somebody has, by address.
    pub blocks: Vec<BlockView>,
}

/// A block that somebody has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockView {
    /// Its range.
    pub cidr: IpNet,
    /// Whose it is.
    pub node: String,
    /// Whether there is no such node any more.
    pub is_orphan: bool,
    /// Its addresses in use, where this node knows: of its own blocks, and of those that it has an address in.
    pub in_use: Option<usize>,
}

/// A route of this node's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteView {
    /// The destination.
    pub destination: IpNet,
    /// The node whose block that is; none where it is nobody's.
    pub node: Option<String>,
    /// The route that should be there, as `ip route` prints it.
    pub expected: String,
    /// The one that is; none where there is none.
    pub actual: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

/// What the page draws of what is known.
pub(crate) fn view(known: &Known<'_>, recent: &Recent, at: Timestamp) -> View {
    let mut left = BLOCKS_MAX;
    let pools = pools(known.cluster, &mut left);
    let claimed = known.cluster.claimed_blocks().count();
    let routes = routes(known);
    let count = main_routes(&known.plan.desired).count();
    View {
        at,
        status: known.status.clone(),
        problems: recent::problems(known.status).into_iter().collect(),
        nodes: nodes(known.cluster),
        blocks_left_out: if left == 0 {
            claimed.saturating_sub(BLOCKS_MAX)
        } else {
            0
        },
        pools,
        routes_left_out: count.saturating_sub(routes.len()),
        routes,
        events: recent.events(),
    }
}

fn nodes(cluster: &Cluster) -> Vec<NodeView> {
    let node = |(name, node): (&str, &crate::cluster::ClusterNode)| NodeView {
        name: name.to_owned(),
        address: node.advertised().next(),
        blocks: cluster.blocks_of(name).count(),
    };
    cluster.nodes().map(node).collect()
}

/// The pools with their blocks, `left` of them.
fn pools(cluster: &Cluster, left: &mut usize) -> Vec<PoolView> {
    let mut claimed: Vec<(IpNet, &str)> = cluster.claimed_blocks().collect();
    claimed.sort_unstable();
    let of_pool = |(name, pool): (&str, &IpPoolSpec)| {
        let inside = claimed.iter().filter(|(block, _)| {
            cluster
                .pool_of(block)
                .is_some_and(|around| around.cidr == pool.cidr)
        });
        let blocks: Vec<BlockView> = inside
            .take(*left)
            .map(|(block, node)| BlockView {
                cidr: *block,
                node: (*node).to_owned(),
                is_orphan: cluster.node(node).is_none(),
                in_use: cluster.in_use(block),
            })
            .collect();
        *left = left.saturating_sub(blocks.len());
        PoolView {
            name: name.to_owned(),
            cidr: pool.cidr,
            block_size: block_size(pool),
            disabled: pool.disabled,
            blocks,
        }
    };
    cluster.pools().map(of_pool).collect()
}

/// The prefix length of a pool's blocks: its own, or Calico's default.
fn block_size(pool: &IpPoolSpec) -> u8 {
    pool.block_size
        .unwrap_or(if pool.cidr.addr().is_ipv4() { 26 } else { 122 })
}

fn main_routes(desired: &Desired) -> impl Iterator<Item = &Route> {
    let routes = desired.routes.values();
    routes.filter(|route| route.key.table == MAIN_TABLE)
}

/// The routes, those with a problem first.
fn routes(known: &Known<'_>) -> Vec<RouteView> {
    let (wrong, right): (Vec<&Route>, Vec<&Route>) =
        main_routes(&known.plan.desired).partition(|route| known.problem(route).is_some());
    let owners: std::collections::BTreeMap<IpNet, &str> = known.cluster.claimed_blocks().collect();
    let told = wrong.into_iter().chain(right).take(ROUTES_MAX);
    told.map(|route| RouteView {
        destination: route.key.prefix,
        node: owners.get(&route.key.prefix).map(|node| (*node).to_owned()),
        expected: known.named(route),
        actual: known.actual.route(&route.key).map(|actual| known.named(actual)),
        problem: known.problem(route),
    })
    .collect()
}
