//! What is wrong with a cluster: what its nodes find, the same on many of them as one, and what no single node can see.
//!
//! Pure: [`examine`] is a function of what the agents and the datastore have said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use culvert_ipam::check::Finding as AddressFinding;
use culvert_ipam::forecast::Usage;
use ipnet::IpNet;
use jiff::SignedDuration;
use serde::Serialize;

use super::{Finding, Report};
use crate::datastore::kubernetes::{ServiceRanges, ServiceSource};
use crate::status::AgentStatus;
use crate::survey::Clock;
use crate::table::printable;

/// Clocks may differ by so much before somebody has to look: logs of two nodes can still be read side by side.
const SKEW: SignedDuration = SignedDuration::from_secs(2);
/// An API server that takes longer to list the nodes of a cluster is slow.
const SLOW: Duration = Duration::from_secs(3);
/// A pool with fewer free addresses than this share, in percent, is nearly exhausted.
const FREE_PERCENT: u128 = 5;
/// So many evidences of one finding are told.
const EVIDENCE_TOLD: usize = 3;
/// So many nodes with one finding are named.
const NODES_NAMED: usize = 8;

/// What is known of a cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, by name.
    pub nodes: Vec<NodeSeen>,
    /// What is known of its addresses, or why nothing is.
    pub addresses: Result<Addresses, String>,
    /// The addresses of services, each with a service whose it is; or why they are not known.
    pub services: Result<BTreeMap<IpAddr, String>, String>,
    /// The ranges that addresses of services are taken from, where they are known.
    pub service_ranges: Option<ServiceRanges>,
    /// How long the datastore took to list the nodes.
    pub listed_within: Duration,
}

/// What is known of a node.
#[derive(Debug)]
pub struct NodeSeen {
    /// Its name.
    pub node: String,
    /// The address that its Node object tells.
    pub address: Option<IpAddr>,
    /// How far its clock is ahead of that of the one who asked, where it answered.
    pub clock: Option<Clock>,
    /// What its agent says of itself, without the peers whose sessions are as they should be; or why it says nothing.
    pub status: Result<AgentStatus, String>,
    /// What it finds on its node.
    pub report: Result<Report, String>,
}

/// The addresses of a cluster.
#[derive(Debug, Default)]
pub struct Addresses {
    /// The pools.
    pub pools: Vec<PoolUse>,
    /// What is wrong between them, blocks, claims and users.
    pub problems: Vec<AddressFinding>,
}

/// A pool, and how it is used.
#[derive(Debug)]
pub struct PoolUse {
    /// Its name.
    pub name: String,
    /// Its range.
    pub cidr: IpNet,
    /// How many of its addresses are used.
    pub usage: Usage,
}

/// Something that is wrong with a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFinding {
    /// What was looked at, in a few words.
    pub check: String,
    /// What is wrong.
    pub finding: String,
    /// By what it shows: the first of all that was seen.
    pub evidence: Vec<String>,
    /// What follows from it.
    pub consequence: String,
    /// What mends it.
    pub cure: String,
    /// The nodes that it was found on; none where it is the cluster's.
    pub nodes: Vec<String>,
}

/// What was found in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterReport {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of their agents have answered.
    pub answered: usize,
    /// All that is wrong: first with the cluster, then on the most nodes.
    pub findings: Vec<ClusterFinding>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<String>,
    /// By what the ranges of services are known, which pools must not overlap; none where nothing is known of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services_known_by: Option<ServiceSource>,
}

/// Looks at everything.
#[must_use]
pub fn examine(cluster: &Cluster) -> ClusterReport {
    let mut findings = Vec::new();
    findings.extend(shared_addresses(cluster));
    findings.extend(one_sided(cluster));
    findings.extend(versions(cluster));
    findings.extend(clocks(cluster));
    findings.extend(api_latency(cluster));
    let mut unchecked = Vec::new();
    match &cluster.addresses {
        Ok(addresses) => {
            findings.extend(leaks(addresses));
            findings.extend(exhausted(addresses));
            match (&cluster.service_ranges, &cluster.services) {
                (Some(known), services) => {
                    findings.extend(service_ranges(addresses, known, services.as_ref().ok()));
                }
                (None, Ok(services)) => findings.extend(services_in_pools(addresses, services)),
                (None, Err(why)) => {
                    unchecked.push(format!("whether services have addresses of pools: {why}"));
                }
            }
        }
        Err(why) => unchecked.push(format!("the addresses of the cluster: {why}")),
    }
    findings.extend(joined(cluster));
    let answered = cluster.nodes.iter().filter(|node| node.status.is_ok()).count();
    ClusterReport {
        nodes: cluster.nodes.len(),
        answered,
        findings,
        unchecked,
        services_known_by: match (&cluster.service_ranges, &cluster.services) {
            (Some(known), _) => Some(known.known_by),
            (None, Ok(_)) => Some(ServiceSource::Addresses),
            (None, Err(_)) => None,
        },
    }
}

/// A finding that is the whole cluster's.
fn whole(
    check: &str,
    finding: String,
    evidence: Vec<String>,
    consequence: &str,
    cure: &str,
) -> ClusterFinding {
    ClusterFinding {
        check: check.to_owned(),
        finding,
        evidence,
        consequence: consequence.to_owned(),
        cure: cure.to_owned(),
        nodes: Vec::new(),
    }
}

/// What of a finding is the same on all nodes that have it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Alike {
    check: &'static str,
    finding: String,
    consequence: String,
    cure: String,
}

/// What was seen, each with the nodes it was seen on.
type Evidence = BTreeMap<String, Vec<String>>;

/// What the nodes themselves find, and those that say nothing; the same on several of them is one finding.
fn joined(cluster: &Cluster) -> Vec<ClusterFinding> {
    let mut alike: BTreeMap<Alike, (Vec<String>, Evidence)> = BTreeMap::new();
    for seen in &cluster.nodes {
        let silent = |reason: &String| {
            vec![Finding {
                check: super::Check::Agent,
                fix: None,
                finding: "the agent does not answer".to_owned(),
                evidence: reason.clone(),
                consequence: "what it would find is not told here; its routes stay in the kernel as they are"
                    .to_owned(),
                cure: "as the reason says; then: kubectl logs of its pod, or systemctl status culvert there"
                    .to_owned(),
            }]
        };
        let found = match &seen.report {
            Ok(report) => report.findings.clone(),
            Err(reason) => silent(reason),
        };
        for finding in found {
            let key = Alike {
                check: finding.check.title(),
                finding: finding.finding,
                consequence: finding.consequence,
                cure: finding.cure,
            };
            let (nodes, evidence) = alike.entry(key).or_default();
            if nodes.last() != Some(&seen.node) {
                nodes.push(seen.node.clone());
            }
            let who = evidence.entry(finding.evidence).or_default();
            if who.last() != Some(&seen.node) {
                who.push(seen.node.clone());
            }
        }
    }
    let joined = alike
        .into_iter()
        .map(|(alike, (nodes, evidence))| ClusterFinding {
            check: alike.check.to_owned(),
            finding: alike.finding,
            evidence: attributed(evidence),
            consequence: alike.consequence,
            cure: alike.cure,
            nodes,
        });
    let mut joined: Vec<ClusterFinding> = joined.collect();
    joined.sort_by_key(|finding| std::cmp::Reverse(finding.nodes.len()));
    joined
}

/// What was seen on which nodes: what most of them have first, and how much more there is.
fn attributed(evidence: Evidence) -> Vec<String> {
    if evidence.len() < 2 {
        // All nodes of the finding have it.
        return evidence.into_keys().collect();
    }
    let mut evidence: Vec<(String, Vec<String>)> = evidence.into_iter().collect();
    evidence.sort_by_key(|(_, nodes)| std::cmp::Reverse(nodes.len()));
    let told = evidence.iter().take(EVIDENCE_TOLD);
    let mut told: Vec<String> = told
        .map(|(evidence, nodes)| format!("{}: {evidence}", named(nodes)))
        .collect();
    let rest = evidence.iter().skip(EVIDENCE_TOLD).flat_map(|(_, nodes)| nodes);
    let rest: BTreeSet<&str> = rest.map(String::as_str).collect();
    if !rest.is_empty() {
        let rest: Vec<&str> = rest.into_iter().collect();
        told.push(format!("others on {}", named(&rest)));
    }
    told
}

/// One address that two nodes advertise.
fn shared_addresses(cluster: &Cluster) -> Vec<ClusterFinding> {
    let mut nodes: BTreeMap<IpAddr, BTreeSet<&str>> = BTreeMap::new();
    for seen in &cluster.nodes {
        let told = seen.status.as_ref().ok().and_then(|status| status.address);
        for address in seen.address.into_iter().chain(told) {
            nodes.entry(address).or_default().insert(&seen.node);
        }
    }
    let shared = nodes.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    let found = shared.map(|(address, nodes)| ClusterFinding {
        nodes: nodes.into_iter().map(str::to_owned).collect(),
        ..whole(
            "advertised address",
            format!("{address} is the advertised address of more than one node"),
            vec![format!("the Node objects, or the agents, of all of them say {address}")],
            "BGP sessions and packets to one of them arrive at the other",
            "give each node its own: node.address in the agent's configuration, or InternalIP of its kubelet (--node-ip)",
        )
    });
    found.collect()
}

/// Sessions that one end says are down, and the other not.
fn one_sided(cluster: &Cluster) -> Vec<ClusterFinding> {
    let by_address: BTreeMap<IpAddr, &NodeSeen> = cluster
        .nodes
        .iter()
        .filter_map(|seen| {
            let told = seen.status.as_ref().ok().and_then(|status| status.address);
            Some((told.or(seen.address)?, seen))
        })
        .collect();
    let mut evidence = Vec::new();
    let mut nodes = BTreeSet::new();
    for seen in &cluster.nodes {
        let Ok(status) = &seen.status else { continue };
        for peer in status.peers.iter().filter(|peer| !peer.is_established()) {
            let Some(other) = by_address.get(&peer.address) else {
                continue;
            };
            let (Ok(theirs), Some(ours)) = (&other.status, status.address) else {
                continue;
            };
            // All that is down there was told, and this session is not among it, nor unknown there.
            let told_down = theirs.peers.iter().filter(|peer| !peer.is_established());
            let is_whole = told_down.clone().count() == theirs.sessions.down();
            let says_down = told_down.clone().any(|peer| peer.address == ours);
            if is_whole && !says_down {
                evidence.push(format!(
                    "{} says {} of its session with {} ({}), and {} says nothing is wrong with it",
                    seen.node, peer.state, other.node, peer.address, other.node
                ));
                nodes.extend([seen.node.clone(), other.node.clone()]);
            }
        }
    }
    if evidence.is_empty() {
        return Vec::new();
    }
    let count = evidence.len();
    evidence.truncate(EVIDENCE_TOLD);
    vec![ClusterFinding {
        nodes: nodes.into_iter().collect(),
        ..whole(
            "BGP sessions",
            format!("{count} sessions are down at one end only"),
            evidence,
            "the other end believes in a session that is gone, and sends packets that have no way back; or it has no such peer",
            "ask again: it may be the moment between two looks; then, at the other end: culvert bgp peers, culvert bgp clear",
        )
    }]
}

fn versions(cluster: &Cluster) -> Vec<ClusterFinding> {
    let mut nodes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for seen in &cluster.nodes {
        if let Ok(status) = &seen.status {
            nodes.entry(&status.version).or_default().push(&seen.node);
        }
    }
    if nodes.len() < 2 {
        return Vec::new();
    }
    let evidence = nodes
        .iter()
        .map(|(version, nodes)| format!("{version} on {}", named(nodes)));
    vec![whole(
        "versions",
        "the agents are of different versions".to_owned(),
        evidence.collect(),
        "during an upgrade that is as it should be; if it lasts, some nodes lack what others have",
        "wait until the upgrade is through: kubectl rollout status daemonset/culvert",
    )]
}

/// Clocks that differ by more than the way to them can explain.
fn clocks(cluster: &Cluster) -> Vec<ClusterFinding> {
    let known = cluster.nodes.iter().filter_map(|seen| Some((seen, seen.clock?)));
    let mut known: Vec<(&NodeSeen, Clock)> = known.collect();
    known.sort_by_key(|(_, clock)| clock.ahead);
    // The one in the middle is most likely right: most of them are.
    let Some(median) = known.get(known.len() / 2).map(|(_, clock)| *clock) else {
        return Vec::new();
    };
    let wrong = known.iter().filter(|(_, clock)| {
        let apart = (clock.ahead - median.ahead).abs();
        apart > SKEW + clock.error + median.error
    });
    let wrong: Vec<&(&NodeSeen, Clock)> = wrong.collect();
    if wrong.is_empty() {
        return Vec::new();
    }
    let evidence = wrong.iter().take(EVIDENCE_TOLD).map(|(seen, clock)| {
        let apart = clock.ahead - median.ahead;
        let way = if apart.is_negative() { "behind" } else { "ahead of" };
        format!(
            "{} is {} ms {way} most other nodes, give or take {}",
            seen.node,
            apart.abs().as_millis(),
            (clock.error + median.error).as_millis()
        )
    });
    vec![ClusterFinding {
        nodes: wrong.iter().map(|(seen, _)| seen.node.clone()).collect(),
        ..whole(
            "clocks",
            "clocks of nodes differ".to_owned(),
            evidence.collect(),
            "certificates and tokens may count as not yet, or no longer, valid, and what is resting comes back too early or late",
            "on these nodes: timedatectl status; systemctl restart chronyd (or systemd-timesyncd)",
        )
    }]
}

fn api_latency(cluster: &Cluster) -> Vec<ClusterFinding> {
    if cluster.listed_within <= SLOW {
        return Vec::new();
    }
    vec![whole(
        "API server",
        "the API server is slow".to_owned(),
        vec![format!(
            "it took {} ms to list the nodes and the pods of the agents, seen from here",
            cluster.listed_within.as_millis()
        )],
        "pods wait for their addresses, and changes reach the nodes late",
        "look at its load and at etcd's disk: kubectl get --raw '/readyz?verbose'",
    )]
}

fn leaks(addresses: &Addresses) -> Vec<ClusterFinding> {
    let is_leak = |finding: &&AddressFinding| matches!(finding, AddressFinding::NotInUse(_));
    let (leaks, others): (Vec<_>, Vec<_>) = addresses.problems.iter().partition(is_leak);
    let told = |found: &[&AddressFinding]| {
        let first = found.iter().take(EVIDENCE_TOLD);
        first.map(ToString::to_string).collect::<Vec<String>>()
    };
    let mut found = Vec::new();
    if !leaks.is_empty() {
        found.push(whole(
            "leaked addresses",
            format!("{} addresses are allocated and nobody's", leaks.len()),
            told(&leaks),
            "they cannot be given out; what is not taken back in time fills the pools",
            "wait a quarter of an hour for the agents to take them back; else: culvert ipam check --fix",
        ));
    }
    if !others.is_empty() {
        found.push(whole(
            "addresses",
            format!(
                "{} things are wrong with blocks, claims and handles",
                others.len()
            ),
            told(&others),
            "addresses may be lost, or be given out twice",
            "culvert ipam check names all of them, and with --fix mends what can be proven",
        ));
    }
    found
}

fn exhausted(addresses: &Addresses) -> Vec<ClusterFinding> {
    let short = addresses.pools.iter().filter(|pool| {
        let Usage { total, .. } = pool.usage;
        total > 0 && pool.usage.free().saturating_mul(100) < total.saturating_mul(FREE_PERCENT)
    });
    let found = short.map(|pool| {
        let free = pool.usage.free();
        whole(
            "pools",
            if free == 0 {
                format!("the pool {} is exhausted", pool.name)
            } else {
                format!("the pool {} is nearly exhausted", pool.name)
            },
            vec![format!(
                "{free} of {} addresses of {} are free, {} in use, {} released a short while ago",
                pool.usage.total, pool.cidr, pool.usage.in_use, pool.usage.resting
            )],
            "new pods get no address of it, and do not start where there is no other pool",
            "create another IPPool beside it; culvert ipam check tells whether addresses have leaked",
        )
    });
    found.collect()
}

/// Pools that overlap a range of services, whether or not a service has an address of it yet.
fn service_ranges(
    addresses: &Addresses,
    known: &ServiceRanges,
    services: Option<&BTreeMap<IpAddr, String>>,
) -> Vec<ClusterFinding> {
    let mut found = Vec::new();
    for pool in &addresses.pools {
        let overlaps = |range: &&IpNet| range.contains(&pool.cidr) || pool.cidr.contains(*range);
        let ranges: Vec<String> = known
            .ranges
            .iter()
            .filter(overlaps)
            .map(ToString::to_string)
            .collect();
        if ranges.is_empty() {
            continue;
        }
        let mut evidence = vec![format!(
            "services have addresses of {}, as {} say, and the pool has {}",
            ranges.join(" and "),
            known.known_by,
            pool.cidr
        )];
        evidence.extend(services.into_iter().flat_map(|services| taken_in(pool, services)));
        found.push(in_the_way(pool, "the range of services", evidence));
    }
    found
}

/// The services that have an address of a pool.
fn taken_in(pool: &PoolUse, services: &BTreeMap<IpAddr, String>) -> Vec<String> {
    let inside = services
        .iter()
        .filter(|(address, _)| pool.cidr.contains(*address));
    let told = inside.take(EVIDENCE_TOLD);
    told.map(|(address, service)| format!("service {service} has {address}, which is in {}", pool.cidr))
        .collect()
}

fn in_the_way(pool: &PoolUse, of_what: &str, evidence: Vec<String>) -> ClusterFinding {
    whole(
        "pools",
        format!("the pool {} overlaps {of_what}", pool.name),
        evidence,
        "an address may be a pod's and a service's at once, and packets to one of them reach the other",
        "create a pool elsewhere, disable this one, and move its pods",
    )
}

/// Where nothing else is known, the range of services is known by the addresses that they have.
fn services_in_pools(addresses: &Addresses, services: &BTreeMap<IpAddr, String>) -> Vec<ClusterFinding> {
    let found = addresses.pools.iter().filter_map(|pool| {
        let evidence = taken_in(pool, services);
        (!evidence.is_empty()).then(|| in_the_way(pool, "the addresses of services", evidence))
    });
    found.collect()
}

/// The first of many names, and how many more there are.
fn named<S: AsRef<str>>(nodes: &[S]) -> String {
    let mut named: Vec<String> = nodes
        .iter()
        .take(NODES_NAMED)
        .map(|node| printable(node.as_ref()))
        .collect();
    if let Some(more @ 1..) = nodes.len().checked_sub(NODES_NAMED) {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}

impl ClusterReport {
    /// A paragraph for each finding, and what could not be looked at.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("{} nodes: {} answered\n", self.nodes, self.answered);
        for finding in &self.findings {
            let _ = writeln!(
                text,
                "  FINDING  {}: {}",
                finding.check,
                printable(&finding.finding)
            );
            if !finding.nodes.is_empty() {
                let _ = writeln!(text, "           {:<9} {}", "on", named(&finding.nodes));
            }
            for evidence in &finding.evidence {
                let _ = writeln!(text, "           {:<9} {}", "evidence", printable(evidence));
            }
            let _ = writeln!(text, "           {:<9} {}", "so", printable(&finding.consequence));
            let _ = writeln!(text, "           {:<9} {}", "mend", printable(&finding.cure));
        }
        for unchecked in &self.unchecked {
            let _ = writeln!(text, "  NOT LOOKED AT  {}", printable(unchecked));
        }
        let _ = match self.findings.len() {
            0 if !self.unchecked.is_empty() => writeln!(text, "Nothing is wrong with what was looked at."),
            0 => writeln!(text, "Nothing is wrong."),
            1 => writeln!(text, "1 finding."),
            count => writeln!(text, "{count} findings."),
        };
        text
    }
}

#[cfg(test)]
mod tests;
