//! All metrics, in one place: the doc comment of each is its help text.

mod stopwatch;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use ipnet::IpNet;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use culvert_ipam::collect::Leftover;

use crate::status::{AgentStatus, PeerStatus, SESSION_STATES};
pub use stopwatch::Stopwatch;

/// The upper bounds of the buckets of every histogram: from what a write to the kernel takes to what an operator waits for.
/// Few, since each is a series of every node.
const SECONDS: [f64; 10] = [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// Most peers without a session that have series of their own: no monitoring is to be flooded by a node that is cut off.
const PEERS_MAX: usize = 100;

/// What somebody asks of the allocator, as `request` says it.
const REQUESTS: [&str; 4] = ["assign", "release", "claim", "unclaim"];

/// What the runtime asks of the plugin, and that of the agent, as `command` says it.
const COMMANDS: [&str; 3] = ["add", "del", "check"];

/// What is asked of the datastore, as `operation` says it.
const OPERATIONS: [&str; 6] = ["get", "list", "create", "update", "delete", "watch"];

/// What is asked of the kernel, as `operation` says it.
const NETLINK: [&str; 2] = ["dump", "apply"];

macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $type:ident = $name:literal $(by $($label:literal),+)?;)*) => {
        /// The agent's metrics; a clone counts into the same ones.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Registry,
            /// One scrape at a time: what is told of peers is begun anew for each.
            scrape: Arc<Mutex<()>>,
            /// Since when blocks are claimed of which no peer knows yet.
            pub claims: Stopwatch<IpNet>,
            $(#[doc = $help] pub $field: $type,)*
        }

        impl Metrics {
            /// Makes all metrics and registers them in a registry of their own, with those of the process.
            ///
            /// # Errors
            /// When two metrics have one name, or a name is not allowed: never outside of development.
            pub fn register() -> Result<Self, prometheus::Error> {
                let registry = Registry::new();
                $(
                    let $field = $type::with_opts_and_labels(Opts::new($name, $help.trim()), &[$($($label),+)?])?;
                    registry.register(Box::new($field.clone()))?;
                )*
                registry.register(Box::new(ProcessCollector::for_self()))?;
                let (scrape, claims) = (Arc::default(), Stopwatch::default());
                let metrics = Self { registry, scrape, claims, $($field,)* };
                metrics.preset();
                Ok(metrics)
            }
        }
    };
}

metrics! {
    /// Version of the running agent, always 1.
    build_info: IntGaugeVec = "culvert_build_info" by "version";
    /// BGP sessions in each state of RFC 4271.
    bgp_sessions: IntGaugeVec = "culvert_bgp_sessions" by "state";
    /// Changes of state of all BGP sessions.
    bgp_session_transitions: IntCounter = "culvert_bgp_session_transitions_total";
    /// Established BGP sessions that were lost.
    bgp_session_flaps: IntCounter = "culvert_bgp_session_flaps_total";
    /// BGP messages received of all peers.
    bgp_messages_received: IntCounter = "culvert_bgp_messages_received_total";
    /// BGP messages sent to all peers.
    bgp_messages_sent: IntCounter = "culvert_bgp_messages_sent_total";
    /// Faults in UPDATEs that cost a route or an attribute, and not the session (RFC 7606).
    bgp_update_faults: IntCounter = "culvert_bgp_update_faults_total";
    /// Prefixes that all peers announce, those of a session that is lost and may come back included.
    bgp_prefixes_received: IntGauge = "culvert_bgp_prefixes_received";
    /// Prefixes that are announced to all peers.
    bgp_prefixes_sent: IntGauge = "culvert_bgp_prefixes_sent";
    /// Whether the session with a peer is Established, 0 or 1; only of peers with which it is not, unless http.peerMetrics is on.
    bgp_peer_up: IntGaugeVec = "culvert_bgp_peer_up" by "peer", "peer_node";
    /// Prefixes that a peer announces; only where http.peerMetrics is on.
    bgp_peer_prefixes_received: IntGaugeVec = "culvert_bgp_peer_prefixes_received" by "peer", "peer_node";
    /// Prefixes that are announced to a peer; only where http.peerMetrics is on.
    bgp_peer_prefixes_sent: IntGaugeVec = "culvert_bgp_peer_prefixes_sent" by "peer", "peer_node";
    /// BGP connections refused, since they came from addresses that are no peers'.
    bgp_connections_refused: IntCounter = "culvert_bgp_connections_refused_total";
    /// Seconds from the claim of a block for this node until the kernel had its UPDATE for the last Established peer.
    block_advertisement_seconds: Histogram = "culvert_block_advertisement_duration_seconds";
    /// Seconds from the arrival of what a peer says of a destination until the kernel had the route that follows from it.
    route_programming_seconds: Histogram = "culvert_route_programming_duration_seconds";
    /// Seconds that reading the kernel whole, and each set of changes to it, took.
    netlink_seconds: HistogramVec = "culvert_netlink_duration_seconds" by "operation";
    /// Routes that should be in the kernel.
    routes_desired: IntGauge = "culvert_routes_desired";
    /// Routes that should be in the kernel and are.
    routes_programmed: IntGauge = "culvert_routes_programmed";
    /// Changes that the kernel refused the last time, and that are tried again.
    routes_failed: IntGauge = "culvert_routes_failed";
    /// Destinations that peers announce and that are not installed.
    routes_rejected: IntGauge = "culvert_routes_rejected";
    /// Writes of routes that the kernel refused.
    route_errors: IntCounter = "culvert_route_errors_total";
    /// Routes that somebody else removed or replaced and that were put back.
    route_repairs: IntCounter = "culvert_route_repairs_total";
    /// Nodes to which encapsulated packets would leave with a source that is not the advertised address.
    source_mismatches: IntGauge = "culvert_source_mismatches";
    /// Tunnelled packets that were refused, since no node advertises their source.
    tunnel_packets_refused: IntCounter = "culvert_tunnel_packets_refused_total";
    /// Changes of the packet filter by somebody else that were put right.
    firewall_repairs: IntCounter = "culvert_firewall_repairs_total";
    /// Routes that another program keeps undoing, and that are put back ever more slowly.
    route_fights: IntGauge = "culvert_route_fights";
    /// Blocks of pod addresses that belong to this node.
    ipam_blocks: IntGauge = "culvert_ipam_blocks";
    /// Addresses in use in the blocks of this node.
    ipam_addresses_in_use: IntGauge = "culvert_ipam_addresses_in_use";
    /// Seconds that requests for addresses and blocks of this node took.
    ipam_request_seconds: HistogramVec = "culvert_ipam_request_duration_seconds" by "request";
    /// Requests for addresses and blocks of this node that came to nothing.
    ipam_failures: IntCounterVec = "culvert_ipam_failures_total" by "request";
    /// Writes of blocks and claims that were planned anew, since somebody else had written first.
    ipam_conflicts: IntCounter = "culvert_ipam_conflicts_total";
    /// Seconds for which the CNI plugin waited for the agent.
    cni_request_seconds: HistogramVec = "culvert_cni_request_duration_seconds" by "command";
    /// Requests of the CNI plugin that the agent could not grant.
    cni_failures: IntCounterVec = "culvert_cni_failures_total" by "command";
    /// Whether this agent is the one that collects what pods and nodes have left behind, 0 or 1. It alone tells of pools.
    ipam_gc_leader: IntGauge = "culvert_ipam_gc_leader";
    /// Looks for what is left behind that read all they need.
    ipam_gc_looks: IntCounter = "culvert_ipam_gc_looks_total";
    /// Looks for what is left behind that came to nothing, since something could not be read or was not to be trusted.
    ipam_gc_failures: IntCounter = "culvert_ipam_gc_failures_total";
    /// Addresses and objects that look left behind, and are not proven to be or could not be taken back.
    ipam_gc_candidates: IntGaugeVec = "culvert_ipam_gc_candidates" by "kind";
    /// Addresses and objects that were left behind and are taken back.
    ipam_gc_reclaims: IntCounterVec = "culvert_ipam_gc_reclaims_total" by "kind";
    /// Addresses that a pool has.
    ipam_pool_addresses: GaugeVec = "culvert_ipam_pool_addresses" by "pool";
    /// Addresses of a pool that can be had: neither in use nor resting nor reserved.
    ipam_pool_addresses_free: GaugeVec = "culvert_ipam_pool_addresses_free" by "pool";
    /// Seconds until a pool has no free address if its use goes on as it did lately; absent while it does not fill.
    ipam_pool_seconds_left: GaugeVec = "culvert_ipam_pool_seconds_left" by "pool";
    /// Whether all of the datastore has been read, 0 or 1.
    datastore_in_sync: IntGauge = "culvert_datastore_in_sync";
    /// Whether the datastore has a problem that the status names, such as being away, 0 or 1.
    datastore_problem: IntGauge = "culvert_datastore_problem";
    /// Seconds that requests to the datastore took.
    datastore_request_seconds: HistogramVec = "culvert_datastore_request_duration_seconds" by "operation";
    /// Requests to the datastore that failed, other than since somebody else had written first, and breaks of its watch.
    datastore_errors: IntCounterVec = "culvert_datastore_errors_total" by "operation";
    /// Seconds from a write of this agent's in the datastore until its watch told of it.
    datastore_watch_lag_seconds: Histogram = "culvert_datastore_watch_lag_seconds";
    /// Deletions in the datastore that are held, since too much would vanish at once.
    withdrawals_held: IntGauge = "culvert_withdrawals_held";
}

impl Metrics {
    /// A series that is absent and one that is zero are not the same to an alert: all are there from the start.
    fn preset(&self) {
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        for state in SESSION_STATES {
            self.bgp_sessions.with_label_values(&[state]).set(0);
        }
        for leftover in Leftover::ALL {
            self.ipam_gc_candidates
                .with_label_values(&[leftover.as_str()])
                .set(0);
            self.ipam_gc_reclaims
                .with_label_values(&[leftover.as_str()])
                .inc_by(0);
        }
        let preset = |histogram: &HistogramVec, failures: Option<&IntCounterVec>, labels: &[&str]| {
            for label in labels {
                histogram.with_label_values(&[label]);
                if let Some(failures) = failures {
                    failures.with_label_values(&[label]);
                }
            }
        };
        preset(&self.ipam_request_seconds, Some(&self.ipam_failures), &REQUESTS);
        preset(&self.cni_request_seconds, Some(&self.cni_failures), &COMMANDS);
        preset(
            &self.datastore_request_seconds,
            Some(&self.datastore_errors),
            &OPERATIONS[..5],
        );
        self.datastore_errors.with_label_values(&["watch"]);
        preset(&self.netlink_seconds, None, &NETLINK);
    }

    /// Sets every gauge to what a snapshot says.
    pub fn observe(&self, status: &AgentStatus) {
        for state in SESSION_STATES {
            let sessions = status.peers.iter().filter(|peer| peer.state == state).count();
            self.bgp_sessions.with_label_values(&[state]).set(count(sessions));
        }
        let sum = |prefixes: fn(&PeerStatus) -> usize| {
            status.peers.iter().map(prefixes).fold(0, usize::saturating_add)
        };
        self.bgp_prefixes_received
            .set(count(sum(|peer| peer.prefixes_received)));
        self.bgp_prefixes_sent.set(count(sum(|peer| peer.prefixes_sent)));
        self.routes_desired.set(count(status.routes.desired));
        self.routes_programmed.set(count(status.routes.programmed));
        self.source_mismatches.set(count(status.sources.mismatches.len()));
        self.ipam_blocks.set(count(status.blocks.len()));
        self.ipam_addresses_in_use.set(count(status.addresses_in_use));
        self.withdrawals_held.set(count(status.withdrawals_held));
        self.datastore_in_sync.set(i64::from(status.datastore.in_sync));
        self.datastore_problem
            .set(i64::from(status.datastore.problem.is_some()));
    }

    /// What a scrape gets: everything as `status` has it, with series of their own for all peers, or only for some of those
    /// that have no session.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub fn scrape(&self, status: &AgentStatus, all_peers: bool) -> Result<String, prometheus::Error> {
        let _alone = self.scrape.lock().unwrap_or_else(PoisonError::into_inner);
        self.observe(status);
        self.observe_peers(status, all_peers);
        self.encode()
    }

    fn observe_peers(&self, status: &AgentStatus, all_peers: bool) {
        self.bgp_peer_up.reset();
        self.bgp_peer_prefixes_received.reset();
        self.bgp_peer_prefixes_sent.reset();
        let without = status
            .peers
            .iter()
            .filter(|peer| all_peers || !peer.is_established());
        for peer in without.take(if all_peers { usize::MAX } else { PEERS_MAX }) {
            let address = peer.address.to_string();
            let labels = [address.as_str(), peer.node.as_deref().unwrap_or_default()];
            let up = self.bgp_peer_up.with_label_values(&labels);
            up.set(i64::from(peer.is_established()));
            if all_peers {
                let received = self.bgp_peer_prefixes_received.with_label_values(&labels);
                received.set(count(peer.prefixes_received));
                let sent = self.bgp_peer_prefixes_sent.with_label_values(&labels);
                sent.set(count(peer.prefixes_sent));
            }
        }
    }

    /// All metrics in the text format of Prometheus, version 0.0.4.
    ///
    /// # Errors
    /// When two series are the same: never outside of development.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// One way to make a metric, whether it has labels or not.
trait WithOptsAndLabels: Sized {
    fn with_opts_and_labels(opts: Opts, labels: &[&str]) -> Result<Self, prometheus::Error>;
}

impl WithOptsAndLabels for IntGauge {
    fn with_opts_and_labels(opts: Opts, _: &[&str]) -> Result<Self, prometheus::Error> {
        IntGauge::with_opts(opts)
    }
}

impl WithOptsAndLabels for IntCounter {
    fn with_opts_and_labels(opts: Opts, _: &[&str]) -> Result<Self, prometheus::Error> {
        IntCounter::with_opts(opts)
    }
}

impl WithOptsAndLabels for IntGaugeVec {
    fn with_opts_and_labels(opts: Opts, labels: &[&str]) -> Result<Self, prometheus::Error> {
        IntGaugeVec::new(opts, labels)
    }
}

impl WithOptsAndLabels for GaugeVec {
    fn with_opts_and_labels(opts: Opts, labels: &[&str]) -> Result<Self, prometheus::Error> {
        GaugeVec::new(opts, labels)
    }
}

impl WithOptsAndLabels for IntCounterVec {
    fn with_opts_and_labels(opts: Opts, labels: &[&str]) -> Result<Self, prometheus::Error> {
        IntCounterVec::new(opts, labels)
    }
}

impl WithOptsAndLabels for Histogram {
    fn with_opts_and_labels(opts: Opts, _: &[&str]) -> Result<Self, prometheus::Error> {
        Histogram::with_opts(HistogramOpts::from(opts).buckets(SECONDS.to_vec()))
    }
}

impl WithOptsAndLabels for HistogramVec {
    fn with_opts_and_labels(opts: Opts, labels: &[&str]) -> Result<Self, prometheus::Error> {
        HistogramVec::new(HistogramOpts::from(opts).buckets(SECONDS.to_vec()), labels)
    }
}
