//! What the agent tells of itself: plain values that the control loop publishes, and that the command line, the health
//! checks and the metrics read.

mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The states of a session, by their names in RFC 4271 §8.2.2, from the least to the most.
pub const SESSION_STATES: [&str; 6] = [
    "Idle",
    "Connect",
    "Active",
    "OpenSent",
    "OpenConfirm",
    "Established",
];

/// The last of them.
const ESTABLISHED: &str = "Established";

/// So many peers, and so many problems of each kind, a status tells where only what is wrong is asked for.
const EXCEPTIONS_TOLD: usize = 32;

/// How many problems a sentence names before it only counts them.
const PROBLEMS_NAMED: usize = 3;

/// The state of the agent at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// The node's name.
    pub node: String,
    /// The address that the other nodes know this one by; none until it is found.
    pub address: Option<IpAddr>,
    /// The node's AS number; zero until it is known.
    pub asn: u32,
    /// The agent's version.
    pub version: String,
    /// When the agent was started.
    pub started: Timestamp,
    /// The agent's time of day when it was asked for this; none in what nobody asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered: Option<Timestamp>,
    /// Where the resources are read from.
    pub datastore: DatastoreStatus,
    /// The BGP peers; not always all of them, see [`sessions`](Self::sessions).
    pub peers: Vec<PeerStatus>,
    /// What becomes of the routes that each peer announces; empty where nobody asked for it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub peer_routes: BTreeMap<IpAddr, PeerRoutes>,
    /// Sessions that are down for a reason which trying again does not mend, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub session_faults: Vec<String>,
    /// The last error that somebody must see to, until it is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// How many sessions there should be, and how many there are.
    #[serde(default)]
    pub sessions: SessionCounts,
    /// The routes.
    pub routes: RouteStatus,
    /// The source of encapsulated packets.
    #[serde(default)]
    pub sources: SourceStatus,
    /// The packet filter.
    #[serde(default)]
    pub firewall: FirewallStatus,
    /// How many pools this node may take addresses from.
    pub pools: usize,
    /// The blocks that belong to this node.
    pub blocks: Vec<IpNet>,
    /// How many addresses of these blocks are in use.
    pub addresses_in_use: usize,
    /// The address of the tunnel device.
    pub tunnel_address: Option<Ipv4Addr>,
    /// Why the tunnel device is not up, where packets need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel_problem: Option<String>,
    /// The MTU of a pod's interface in bytes; zero until it is known.
    pub pod_mtu: u32,
    /// Whether pods get an address of IPv6 as well: there is a pool of it, and this node is known by one.
    #[serde(default)]
    pub pods_get_ipv6: bool,
    /// How many deletions in the datastore are held, since too much would vanish at once.
    #[serde(default)]
    pub withdrawals_held: usize,
    /// What somebody should look at, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// The kernel holds what the agent wants, and the agent has heard all it waits for.
    pub converged: bool,
}

/// What becomes of the routes that a peer announces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerRoutes {
    /// How many are let in.
    pub accepted: usize,
    /// How many destinations the kernel sends to the next hops that it tells.
    pub programmed: usize,
}

/// An error that somebody must see to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// Since when it is the last one.
    pub since: Timestamp,
    /// A word in CamelCase: the reason of its Event.
    pub reason: String,
    /// What is wrong.
    pub message: String,
}

/// The state of the datastore, seen from the agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatastoreStatus {
    /// All that was there at the start has been read.
    pub in_sync: bool,
    /// What is wrong with it now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A peer and its session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// The peer's address.
    pub address: IpAddr,
    /// The node it is, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Why it is a peer.
    #[serde(rename = "type")]
    pub r#type: PeerType,
    /// The session's state: one of [`SESSION_STATES`].
    pub state: String,
    /// Since when the session is in this state.
    pub since: Timestamp,
    /// Why the session is not Established, or why it was last lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How often a session with the peer, or an attempt at one, has failed since there last was one.
    #[serde(default)]
    pub failures: u64,
    /// When the last of them did, for the reason above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Timestamp>,
    /// How many prefixes the peer announces.
    pub prefixes_received: usize,
    /// How many prefixes are announced to the peer.
    pub prefixes_sent: usize,
    /// How often the session has become Established.
    pub established_count: u64,
    /// The session is down and the peer's routes are kept until it is back (RFC 4724).
    pub stale: bool,
    /// The source with which encapsulated packets to it would leave, as the kernel says; none where none are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outer_source: Option<IpAddr>,
}

impl PeerStatus {
    /// A node of the mesh at this address, in this state since long ago, of which nothing else is known.
    #[cfg(test)]
    pub(crate) fn example(address: IpAddr, state: &str) -> Self {
        Self {
            address,
            node: None,
            r#type: PeerType::Mesh,
            state: state.to_owned(),
            since: Timestamp::UNIX_EPOCH,
            reason: None,
            failures: 0,
            failed: None,
            prefixes_received: 0,
            prefixes_sent: 0,
            established_count: 0,
            stale: false,
            outer_source: None,
        }
    }

    /// How often a session with the peer was lost.
    #[must_use]
    pub fn flaps(&self) -> u64 {
        let now = u64::from(self.is_established());
        self.established_count.saturating_sub(now)
    }

    /// Whether the session is Established.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.state == ESTABLISHED
    }
}

/// The sessions of a node, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCounts {
    /// How many peers there are, each with one session.
    pub peers: usize,
    /// How many of the sessions are Established.
    pub established: usize,
}

impl SessionCounts {
    /// Counts the sessions of all peers of a node.
    #[must_use]
    pub fn of(peers: &[PeerStatus]) -> Self {
        Self {
            peers: peers.len(),
            established: peers.iter().filter(|peer| peer.is_established()).count(),
        }
    }

    /// How many are not.
    #[must_use]
    pub fn down(self) -> usize {
        self.peers.saturating_sub(self.established)
    }
}

/// How long something has lasted, in its two largest units: `3d4h`, `12m5s`.
#[must_use]
pub fn uptime(since: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    match (
        seconds / 86_400,
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    ) {
        (0, 0, 0, seconds) => format!("{seconds}s"),
        (0, 0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (0, hours, minutes, _) => format!("{hours}h{minutes}m"),
        (days, hours, ..) => format!("{days}d{hours}h"),
    }
}

/// Why somebody is a peer, in calicoctl's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerType {
    /// It is a node of the full mesh.
    #[serde(rename = "node-to-node mesh")]
    Mesh,
    /// It is configured for every node.
    #[serde(rename = "global")]
    Global,
    /// It is configured for some nodes, and this is one.
    #[serde(rename = "node specific")]
    Node,
}

impl PeerType {
    /// As calicoctl prints it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PeerType::Mesh => "node-to-node mesh",
            PeerType::Global => "global",
            PeerType::Node => "node specific",
        }
    }
}

/// What is wanted of the kernel, and what it has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteStatus {
    /// How many routes should be in the kernel.
    pub desired: usize,
    /// How many of them are.
    pub programmed: usize,
    /// The routes that the kernel refused.
    pub failed: Vec<RouteProblem>,
    /// The routes that a peer announced and that this node does not use.
    pub rejected: Vec<RouteProblem>,
}

/// The packet filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirewallStatus {
    /// Why it could not be written; what the kernel held before stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Tunnelled packets that were refused during the last hour: a sentence for each source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// A route, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteProblem {
    /// The route, as `ip route` prints it, or its prefix.
    pub route: String,
    /// What is wrong.
    pub reason: String,
}

/// With which source encapsulated packets leave: the other nodes may drop what does not come from the advertised address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The nodes to which they would leave with another source.
    pub mismatches: Vec<SourceMismatch>,
    /// What else keeps the agent from giving them the right source, or from checking it.
    pub problems: Vec<String>,
}

/// A node to which encapsulated packets would leave with a source that is not the advertised address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceMismatch {
    /// The node's address.
    pub peer: IpAddr,
    /// The source that the kernel would choose.
    pub source: IpAddr,
    /// Both addresses, the link that has the wrong one, and what to do.
    pub problem: String,
}

impl AgentStatus {
    /// The state of an agent of this node that has just started and knows nothing yet.
    #[must_use]
    pub fn starting(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: Timestamp::now(),
            ..Self::default()
        }
    }

    /// What is wrong, without the peers whose sessions are as they should be, and of everything no more than a reader can take
    /// in: what is told of a node among a thousand. The counts are those of all.
    #[must_use]
    pub fn exceptional(&self) -> Self {
        let mut told = self.clone();
        let mismatches = &self.sources.mismatches;
        told.peers.retain(|peer| {
            !peer.is_established() || mismatches.iter().any(|mismatch| mismatch.peer == peer.address)
        });
        told.peers.truncate(EXCEPTIONS_TOLD);
        told.routes.failed.truncate(EXCEPTIONS_TOLD);
        told.routes.rejected.truncate(EXCEPTIONS_TOLD);
        told.sources.mismatches.truncate(EXCEPTIONS_TOLD);
        told.sources.problems.truncate(EXCEPTIONS_TOLD);
        told.firewall.refused.truncate(EXCEPTIONS_TOLD);
        told.problems.truncate(EXCEPTIONS_TOLD);
        told.session_faults.truncate(EXCEPTIONS_TOLD);
        told
    }

    /// Whether a pod can be attached now. That takes less than to be ready: a route that is missing keeps nobody from it.
    ///
    /// # Errors
    /// Why not, in words: the datastore is not in sync, or the MTU of pods is not known.
    pub fn can_attach(&self) -> Result<(), String> {
        self.datastore.synced()?;
        if self.pod_mtu == 0 {
            return Err("the MTU of pods is not known yet".to_owned());
        }
        Ok(())
    }

    /// Whether pods may be sent to this node.
    ///
    /// # Errors
    /// Why not, in words: the datastore is not in sync, there is no block though there is a pool, the tunnel is not up
    /// though packets need it, or routes are missing in the kernel.
    pub fn ready(&self) -> Result<(), String> {
        self.datastore.synced()?;
        if self.pools > 0 && self.blocks.is_empty() {
            return Err(format!("node {} has no block of pod addresses yet", self.node));
        }
        if let Some(problem) = &self.tunnel_problem {
            return Err(format!("the tunnel is not up: {problem}"));
        }
        if self.routes.programmed != self.routes.desired {
            let mut words = self.routes.in_kernel();
            for (nth, failed) in self.routes.failed.iter().take(PROBLEMS_NAMED).enumerate() {
                let separator = if nth == 0 { ": " } else { "; " };
                let _ = write!(words, "{separator}{}: {}", failed.route, failed.reason);
            }
            if let Some(more) = self.routes.failed.len().checked_sub(PROBLEMS_NAMED)
                && more > 0
            {
                let _ = write!(words, "; and {more} more");
            }
            return Err(words);
        }
        Ok(())
    }

    /// Why somebody should look at this node, in a few words each; nothing where all is well.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.ready().err().into_iter().collect();
        let down = self.sessions.down();
        if down > 0 {
            faults.push(format!("{down} of {} sessions down", self.sessions.peers));
        }
        faults.extend(self.datastore.problem.clone());
        let mismatches = self.sources.mismatches.len();
        if mismatches > 0 {
            faults.push(format!("wrong outer source to {mismatches} nodes"));
        }
        let rejected = self.routes.rejected.len();
        if rejected > 0 {
            faults.push(format!("{rejected} announced destinations not installed"));
        }
        if self.withdrawals_held > 0 {
            faults.push(format!("{} withdrawals held", self.withdrawals_held));
        }
        faults.extend(self.firewall.problem.clone());
        faults.extend(self.sources.problems.iter().cloned());
        faults.extend(self.problems.iter().cloned());
        faults
    }
}

impl RouteStatus {
    /// How many of how many routes are in the kernel, in words.
    #[must_use]
    pub fn in_kernel(&self) -> String {
        format!("{} of {} routes are in the kernel", self.programmed, self.desired)
    }
}

impl DatastoreStatus {
    fn synced(&self) -> Result<(), String> {
        match &self.problem {
            _ if self.in_sync => Ok(()),
            Some(problem) => Err(format!("datastore is not in sync yet: {problem}")),
            None => Err("datastore is not in sync yet".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
