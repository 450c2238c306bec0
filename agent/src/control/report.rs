//! What the loop tells of itself, put together from what it knows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use culvert_bgp::fsm::State;
use culvert_bgp::id::Asn;
use culvert_bgp::speaker::PeerStatus as Session;
use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::fights::Fights;
use super::intake::Remarks;
use super::renumbering::Renumbering;
use super::sources::SourceCheck;
use crate::cluster::Cluster;
use crate::dataplane::DataplaneError;
use crate::desired::{Plan, Rejected, Rejection, Settings};
use crate::fib::{Change, Route, protocol_name};
use crate::peering::OriginKind;
use crate::reconcile::{Actual, Difference, overshadowing};
use crate::status::{
    AgentStatus, DatastoreStatus, FirewallStatus, PeerStatus, PeerType, RouteProblem, RouteStatus,
    SessionCounts, SourceStatus,
};

/// So many problems of one kind the status names.
const PROBLEMS_TOLD: usize = 100;

/// So many destinations that are not installed are named at once in the log.
const TOLD_AT_ONCE: usize = 20;

/// What the loop knows.
pub(super) struct Observation<'a> {
    pub(super) former: &'a AgentStatus,
    pub(super) settings: &'a Settings,
    pub(super) asn: Asn,
    pub(super) cluster: &'a Cluster,
    pub(super) in_sync: bool,
    pub(super) remarks: &'a Remarks,
    pub(super) converged: bool,
    pub(super) actual: &'a Actual,
    pub(super) plan: &'a Plan,
    pub(super) difference: &'a Difference,
    pub(super) failures: &'a [(Change, DataplaneError)],
    pub(super) fights: &'a Fights,
    pub(super) renumbering: &'a Renumbering,
    pub(super) peers: &'a [Session],
    /// Why the speaker does not listen where it should.
    pub(super) listening: Option<&'a String>,
    pub(super) sources: &'a SourceCheck,
    pub(super) firewall: FirewallStatus,
}

/// The status that follows from it.
pub(super) fn status(known: &Observation<'_>) -> AgentStatus {
    let node = &known.settings.node;
    let own = known.cluster.node(node);
    let nodes = known.cluster.nodes_by_address();
    let peers: Vec<PeerStatus> = known
        .peers
        .iter()
        .map(|session| peer(session, &nodes, known))
        .collect();
    AgentStatus {
        node: node.clone(),
        address: Some(IpAddr::V4(known.settings.address)),
        asn: known.asn.get(),
        version: known.former.version.clone(),
        started: known.former.started,
        answered: None,
        peer_routes: BTreeMap::new(),
        session_faults: session_faults(known, &nodes),
        last_error: None,
        datastore: DatastoreStatus {
            in_sync: known.in_sync,
            problem: known.remarks.datastore.clone(),
        },
        sessions: SessionCounts::of(&peers),
        peers,
        routes: routes(known),
        sources: SourceStatus {
            mismatches: known.sources.mismatches(),
            problems: known
                .plan
                .unpinned
                .iter()
                .map(ToString::to_string)
                .chain(known.sources.refused().cloned())
                .collect(),
        },
        firewall: known.firewall.clone(),
        pools: known.cluster.pools().filter(|(_, pool)| !pool.disabled).count(),
        blocks: known.cluster.blocks_of(node).collect(),
        addresses_in_use: known.cluster.addresses_in_use(node),
        tunnel_address: own.and_then(|node| node.tunnel_address),
        tunnel_problem: known.failures.iter().find_map(|(change, error)| match change {
            Change::CreateTunnel { .. } | Change::SetLink { .. } => Some(error.to_string()),
            _ => None,
        }),
        pod_mtu: known.plan.pod_mtu,
        pods_get_ipv6: known.settings.speaking.address_v6.is_some() && known.cluster.gives_ipv6(),
        withdrawals_held: known.remarks.held,
        problems: known
            .remarks
            .node
            .iter()
            .chain(known.renumbering.problems())
            .chain(known.listening)
            .cloned()
            .chain(known.plan.peering.problems.iter().map(ToString::to_string))
            .collect(),
        converged: known.converged,
    }
}

/// The sessions that are down for a reason which trying again does not mend.
fn session_faults(known: &Observation<'_>, nodes: &BTreeMap<IpAddr, &str>) -> Vec<String> {
    let down = known
        .peers
        .iter()
        .filter(|session| session.state != State::Established);
    let faults = down.filter_map(|session| {
        let reason = session.reason.as_ref().filter(|reason| reason.needs_a_person())?;
        let who = match nodes.get(&session.peer) {
            Some(node) => format!("node {node} ({})", session.peer),
            None => session.peer.to_string(),
        };
        Some(format!("the BGP session with {who} does not come up: {reason}"))
    });
    faults.take(PROBLEMS_TOLD).collect()
}

fn peer(session: &Session, nodes: &BTreeMap<IpAddr, &str>, known: &Observation<'_>) -> PeerStatus {
    let origin = known.plan.peering.origins.get(&session.peer);
    // The speaker counts from an origin of its own; people want the time of day.
    let time_of = |then: Instant| {
        let age = Instant::now().saturating_duration_since(then);
        Timestamp::now().checked_sub(age).unwrap_or(Timestamp::UNIX_EPOCH)
    };
    PeerStatus {
        address: session.peer,
        node: nodes
            .get(&session.peer)
            .map(|name| (*name).to_owned())
            .or_else(|| origin.and_then(|origin| origin.node.clone())),
        r#type: match origin.map(|origin| origin.kind) {
            Some(OriginKind::Node) => PeerType::Node,
            Some(OriginKind::Global) => PeerType::Global,
            Some(OriginKind::Mesh) | None => PeerType::Mesh,
        },
        state: session.state.to_string(),
        since: time_of(session.since),
        reason: session.reason.as_ref().map(ToString::to_string),
        failures: session.failures,
        failed: session.failed.map(time_of),
        prefixes_received: session.prefixes_received,
        prefixes_sent: session.prefixes_sent,
        established_count: session.established_count,
        stale: session.stale > 0,
        outer_source: known.sources.source_to(session.peer),
    }
}

fn routes(known: &Observation<'_>) -> RouteStatus {
    let failed = known.failures.iter().map(|(change, error)| RouteProblem {
        route: subject(change, known.actual),
        reason: error.to_string(),
    });
    let rejected = known.plan.rejected.iter().map(|(prefix, reasons)| RouteProblem {
        route: prefix.to_string(),
        reason: reasons
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; "),
    });
    let fought_over = known.fights.words().map(|(key, what)| RouteProblem {
        route: key.to_string(),
        reason: what,
    });
    let overshadowed = known.difference.overshadowed().iter().filter_map(|key| {
        let other = overshadowing(key, known.actual)?;
        Some(RouteProblem {
            route: key.to_string(),
            reason: format!(
                "a route of another program (protocol {}) has the better metric {} and gets the packets: {}; remove it, \
                 or give it a metric above {}",
                protocol_name(other.protocol),
                other.key.metric,
                named(other, known.actual),
                key.metric
            ),
        })
    });
    let desired = known.plan.desired.routes.len();
    let count = known.failures.len() + known.fights.count() + known.difference.overshadowed().len();
    RouteStatus {
        desired,
        programmed: desired.saturating_sub(known.difference.missing()),
        failed: first(failed.chain(fought_over).chain(overshadowed), count),
        rejected: first(rejected, known.plan.rejected.len()),
    }
}

/// The first of `count` problems, and how many more there are. A peer decides how many destinations are rejected, and the
/// status is put together again at every change: the others are not looked at.
fn first(problems: impl Iterator<Item = RouteProblem>, count: usize) -> Vec<RouteProblem> {
    let mut told: Vec<RouteProblem> = problems.take(PROBLEMS_TOLD).collect();
    let more = count.saturating_sub(told.len());
    if more > 0 {
        told.push(RouteProblem {
            route: format!("{more} more"),
            reason: "left out here".to_owned(),
        });
    }
    told
}

/// Says of each destination that it is not installed, and why.
pub(super) fn say_rejected(new: &[Rejected]) {
    let (passing, lasting): (Vec<_>, Vec<_>) = new.iter().partition(|new| new.reason == Rejection::NoTunnel);
    for new in passing {
        debug!(prefix = %new.prefix, reason = %new.reason, "destination not installed");
    }
    for new in lasting.iter().take(TOLD_AT_ONCE) {
        warn!(prefix = %new.prefix, reason = %new.reason, "destination not installed");
    }
    // A peer decides how many there are; the log is not its to fill.
    if let Some(more @ 1..) = lasting.len().checked_sub(TOLD_AT_ONCE) {
        warn!(more, "further destinations not installed");
    }
}

/// Says what a switch that was set means for the host.
pub(super) fn say_switched(change: &Change) {
    match change {
        Change::EnableForwarding => {
            info!("net.ipv4.ip_forward was 0: switched on, since this node routes for its pods");
        }
        Change::EnableForwardingV6 => info!(
            "net.ipv6.conf.all.forwarding was 0: switched on, since this node routes IPv6 for its pods; from now on a link \
             takes router advertisements only where its accept_ra is 2"
        ),
        _ => {}
    }
}

/// What a change is about.
fn subject(change: &Change, actual: &Actual) -> String {
    let link = |index: &u32| {
        actual
            .link_at(*index)
            .map_or_else(|| format!("if{index}"), |link| link.name.clone())
    };
    match change {
        Change::ReplaceRoute(route) | Change::DeleteRoute(route) => named(route, actual),
        Change::AddRule(rule) | Change::DeleteRule(rule) => format!("rule {rule}"),
        Change::EnableForwarding => "net.ipv4.ip_forward".to_owned(),
        Change::EnableForwardingV6 => "net.ipv6.conf.all.forwarding".to_owned(),
        Change::CreateTunnel { name } | Change::SetPathMtuDiscovery { name, .. } => name.clone(),
        Change::SetLink { link: index, .. }
        | Change::SetLinkDown { link: index }
        | Change::LoosenReversePath { link: index } => link(index),
        Change::AddAddress(address) | Change::DeleteAddress(address) => {
            format!("{} on {}", address.net, link(&address.link))
        }
    }
}

/// A route as `ip route` prints it.
pub(super) fn named(route: &Route, actual: &Actual) -> String {
    route
        .with_names(|index| actual.link_at(index).map(|link| link.name.clone()))
        .to_string()
}
