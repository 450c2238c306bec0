//! What the agent would change on a node whose routes somebody else still writes, found without a word to anybody.
//!
//! Pure: a function of the datastore and the kernel. What the peers would tell is what their agents would advertise, by the
//! same function that this agent advertises by: a shadow holds no session, whose port another daemon has.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use culvert_bgp::id::NextHop;
use ipnet::IpNet;
use serde::Serialize;

use crate::api::EncapsulationMode;
use crate::cluster::Cluster;
use crate::desired::{Known, Learned, Plan, Settings, plan};
use crate::fib::{Change, MAIN_TABLE, Route, RouteKind, protocol_name};
use crate::peering::{Local, exports};
use crate::reconcile::{Actual, Ours, Removal, diff};

/// The protocol numbers of those that a takeover is from: BIRD's, and that of Calico's own agent.
const REPLACED: [u8; 2] = [12, 80];

/// What the agent would change, and what it would leave alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shadow {
    /// This node.
    pub node: String,
    /// The address it would be known by.
    pub address: Ipv4Addr,
    /// With how many peers it would speak.
    pub peers: usize,
    /// How many routes it would want in the main table.
    pub wanted: usize,
    /// How many of them are there, whoever wrote them.
    pub there: usize,
    /// How many of those it would take over as they are, by the name of the protocol that they carry now.
    pub taken_over: BTreeMap<String, usize>,
    /// What it would change, a sentence each.
    pub changes: Vec<String>,
    /// What it would write to the datastore, a sentence each.
    pub writes: Vec<String>,
    /// Routes of those it takes over from that it would not want, nor remove.
    pub left: Vec<String>,
    /// Destinations that it would not install, and why.
    pub rejected: Vec<String>,
}

impl Shadow {
    /// Whether every packet would go where it goes now: no route of the main table would be added, changed or removed.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.there == self.wanted && self.left.is_empty() && self.rejected.is_empty()
    }
}

/// Holds what an agent with these settings would want against what the kernel has.
#[must_use]
pub fn compare(settings: &Settings, cluster: &Cluster, actual: &Actual) -> Shadow {
    let learned = mesh(settings, cluster);
    let known = Known {
        cluster,
        learned: &learned,
        actual,
        converged: true,
    };
    let plan = plan(settings, known);
    let ours = Ours {
        protocol: settings.protocol,
    };
    let mut taken_over = BTreeMap::new();
    let mut changes = Vec::new();
    for change in diff(&plan.desired, actual, &ours, Removal::Now) {
        match as_it_is(&change, actual) {
            Some(owner) => *taken_over.entry(protocol_name(owner).into_owned()).or_default() += 1,
            None => changes.push(sentence(&change, actual)),
        }
    }
    let main = || {
        plan.desired
            .routes
            .values()
            .filter(|route| route.key.table == MAIN_TABLE)
    };
    let is_there = |route: &&Route| actual.route(&route.key).is_some_and(|there| same(route, there));
    Shadow {
        node: settings.node.clone(),
        address: settings.address,
        peers: plan.peering.peers.len(),
        wanted: main().count(),
        there: main().filter(is_there).count(),
        taken_over,
        changes,
        writes: writes(settings, cluster),
        left: left(&plan, actual),
        rejected: rejected(&plan),
    }
}

/// What every other node of the mesh would advertise.
fn mesh(settings: &Settings, cluster: &Cluster) -> Learned {
    let mut learned = Learned::new();
    for (name, node) in cluster.nodes().filter(|(name, _)| *name != settings.node) {
        let Some(address) = node.address.map(|net| net.addr()) else {
            continue;
        };
        let local = Local {
            node: name,
            address,
            speaking: &settings.speaking,
        };
        for prefix in exports(local, cluster) {
            let next_hop = match prefix.net() {
                IpNet::V4(_) => Some(IpAddr::V4(address)),
                IpNet::V6(_) => node.address_v6.map(|net| IpAddr::V6(net.addr())),
            };
            let hop = next_hop.map(|next_hop| NextHop {
                address: next_hop,
                peer: IpAddr::V4(address),
            });
            learned.entry(prefix).or_default().extend(hop);
        }
    }
    learned
}

/// Whether two routes differ in nothing but their owner.
fn same(one: &Route, other: &Route) -> bool {
    let owned = Route {
        protocol: other.protocol,
        ..one.clone()
    };
    owned.is_same_as(other)
}

/// Whose route a change takes over without any packet going another way.
fn as_it_is(change: &Change, actual: &Actual) -> Option<u8> {
    let Change::ReplaceRoute(route) = change else {
        return None;
    };
    let there = actual.route(&route.key)?;
    same(route, there).then_some(there.protocol)
}

fn sentence(change: &Change, actual: &Actual) -> String {
    let named = |route: &Route| {
        let name = |index| actual.link_at(index).map(|link| link.name.clone());
        route.with_names(name).to_string()
    };
    let link = |index: u32| {
        actual
            .link_at(index)
            .map_or_else(|| format!("link {index}"), |link| link.name.clone())
    };
    match change {
        Change::ReplaceRoute(route) => match actual.route(&route.key) {
            Some(there) => format!("change: {} becomes {}", named(there), named(route)),
            None => format!("add: {}", named(route)),
        },
        Change::DeleteRoute(route) => format!("remove: {}", named(route)),
        Change::AddRule(rule) => format!("add: rule {rule}"),
        Change::DeleteRule(rule) => format!("remove: rule {rule}"),
        Change::AddAddress(address) => format!("add: address {} on {}", address.net, link(address.link)),
        Change::DeleteAddress(address) => {
            format!("remove: address {} of {}", address.net, link(address.link))
        }
        Change::CreateTunnel { name } => format!("add: tunnel device {name}"),
        Change::SetLink { link: index, mtu } => format!("change: {} is set up with MTU {mtu}", link(*index)),
        Change::SetLinkDown { link: index } => format!("change: {} is set down", link(*index)),
        Change::SetPathMtuDiscovery { name, on, .. } => {
            let word = if *on { "pmtudisc" } else { "nopmtudisc" };
            format!("change: {name} becomes {word}")
        }
        Change::LoosenReversePath { link: index } => {
            format!("change: net.ipv4.conf.{}.rp_filter becomes 2", link(*index))
        }
        Change::EnableForwarding => "change: net.ipv4.ip_forward becomes 1".to_owned(),
        Change::EnableForwardingV6 => "change: net.ipv6.conf.all.forwarding becomes 1".to_owned(),
    }
}

/// What the agent would ask of the datastore.
fn writes(settings: &Settings, cluster: &Cluster) -> Vec<String> {
    let node = cluster.node(&settings.node);
    let enabled = || cluster.pools().filter(|(_, pool)| !pool.disabled);
    let mut writes = Vec::new();
    let known = node.and_then(|node| node.address).map(|net| net.addr());
    if known != Some(settings.address) {
        writes.push(format!(
            "Node {}: its advertised address becomes {}",
            settings.node, settings.address
        ));
    }
    if enabled().next().is_some() && cluster.blocks_of(&settings.node).next().is_none() {
        writes.push("a first block is claimed for this node".to_owned());
    }
    let tunnels = enabled().any(|(_, pool)| pool.ipip_mode != EncapsulationMode::Never);
    if tunnels && node.and_then(|node| node.tunnel_address).is_none() {
        writes.push("an address is assigned for tunl0".to_owned());
    }
    writes
}

/// Routes of those that are replaced which nobody would keep. Those to this host's own pods are the CNI plugin's.
fn left(plan: &Plan, actual: &Actual) -> Vec<String> {
    let leads_on = |route: &&Route| {
        route.kind != RouteKind::Unicast || route.next_hops.iter().any(|hop| hop.gateway.is_some())
    };
    let theirs = actual
        .routes()
        .filter(|route| REPLACED.contains(&route.protocol) && route.key.table == MAIN_TABLE);
    let left = theirs
        .filter(leads_on)
        .filter(|route| !plan.desired.routes.contains_key(&route.key));
    let name = |index| actual.link_at(index).map(|link| link.name.clone());
    left.map(|route| route.with_names(name).to_string()).collect()
}

fn rejected(plan: &Plan) -> Vec<String> {
    let all = plan
        .rejected
        .iter()
        .flat_map(|(prefix, why)| why.iter().map(move |why| format!("{prefix}: {why}")));
    all.collect()
}

impl fmt::Display for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} ({}), {} peers: {} of {} routes are in the kernel as they should be",
            self.node, self.address, self.peers, self.there, self.wanted
        )?;
        for (owner, count) in &self.taken_over {
            writeln!(f, "take over: {count} routes of proto {owner}, as they are")?;
        }
        for change in &self.changes {
            writeln!(f, "{change}")?;
        }
        for write in &self.writes {
            writeln!(f, "write: {write}")?;
        }
        for route in &self.left {
            writeln!(
                f,
                "leave: {route}, which is in no plan; its owner is to remove it"
            )?;
        }
        for reason in &self.rejected {
            writeln!(f, "not installed: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
