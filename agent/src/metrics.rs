//! All metrics, in one place: the doc comment of each is its help text.

use prometheus::process_collector::ProcessCollector;
use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use culvert_ipam::collect::Leftover;

use crate::status::{AgentStatus, SESSION_STATES};

macro_rules! metrics {
    ($(#[doc = $help:literal] $field:ident: $type:ident = $name:literal $(by $label:literal)?;)*) => {
        /// The agent's metrics; a clone counts into the same ones.
        #[derive(Clone, Debug)]
        pub struct Metrics {
            registry: Registry,
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
                    let $field = $type::with_opts_and_labels(Opts::new($name, $help.trim()), &[$($label)?])?;
                    registry.register(Box::new($field.clone()))?;
                )*
                registry.register(Box::new(ProcessCollector::for_self()))?;
                let metrics = Self { registry, $($field,)* };
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
    /// BGP connections refused, since they came from addresses that are no peers'.
    bgp_connections_refused: IntCounter = "culvert_bgp_connections_refused_total";
    /// Routes that should be in the kernel.
    routes_desired: IntGauge = "culvert_routes_desired";
    /// Routes that should be in the kernel and are.
    routes_programmed: IntGauge = "culvert_routes_programmed";
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
    }

    /// Sets every gauge to what a snapshot says.
    pub fn observe(&self, status: &AgentStatus) {
        for state in SESSION_STATES {
            let sessions = status.peers.iter().filter(|peer| peer.state == state).count();
            self.bgp_sessions.with_label_values(&[state]).set(count(sessions));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{DatastoreStatus, PeerStatus, PeerType, RouteStatus, SourceMismatch, SourceStatus};

    /// Names, types and help texts are what dashboards and alerts are built on.
    #[test]
    fn the_metrics_are_the_promised_ones() {
        let text = Metrics::register().unwrap().encode().unwrap();
        let own: Vec<_> = text
            .lines()
            .filter(|l| l.starts_with('#') && l.contains(" culvert_"))
            .map(str::to_owned)
            .collect();
        let expected = "\
# HELP culvert_bgp_connections_refused_total BGP connections refused, since they came from addresses that are no peers'.
# TYPE culvert_bgp_connections_refused_total counter
# HELP culvert_bgp_session_transitions_total Changes of state of all BGP sessions.
# TYPE culvert_bgp_session_transitions_total counter
# HELP culvert_bgp_sessions BGP sessions in each state of RFC 4271.
# TYPE culvert_bgp_sessions gauge
# HELP culvert_build_info Version of the running agent, always 1.
# TYPE culvert_build_info gauge
# HELP culvert_datastore_in_sync Whether all of the datastore has been read, 0 or 1.
# TYPE culvert_datastore_in_sync gauge
# HELP culvert_datastore_problem Whether the datastore has a problem that the status names, such as being away, 0 or 1.
# TYPE culvert_datastore_problem gauge
# HELP culvert_firewall_repairs_total Changes of the packet filter by somebody else that were put right.
# TYPE culvert_firewall_repairs_total counter
# HELP culvert_ipam_addresses_in_use Addresses in use in the blocks of this node.
# TYPE culvert_ipam_addresses_in_use gauge
# HELP culvert_ipam_blocks Blocks of pod addresses that belong to this node.
# TYPE culvert_ipam_blocks gauge
# HELP culvert_ipam_gc_candidates Addresses and objects that look left behind, and are not proven to be or could not be taken back.
# TYPE culvert_ipam_gc_candidates gauge
# HELP culvert_ipam_gc_failures_total Looks for what is left behind that came to nothing, since something could not be read or was not to be trusted.
# TYPE culvert_ipam_gc_failures_total counter
# HELP culvert_ipam_gc_leader Whether this agent is the one that collects what pods and nodes have left behind, 0 or 1. It alone tells of pools.
# TYPE culvert_ipam_gc_leader gauge
# HELP culvert_ipam_gc_looks_total Looks for what is left behind that read all they need.
# TYPE culvert_ipam_gc_looks_total counter
# HELP culvert_ipam_gc_reclaims_total Addresses and objects that were left behind and are taken back.
# TYPE culvert_ipam_gc_reclaims_total counter
# HELP culvert_route_errors_total Writes of routes that the kernel refused.
# TYPE culvert_route_errors_total counter
# HELP culvert_route_fights Routes that another program keeps undoing, and that are put back ever more slowly.
# TYPE culvert_route_fights gauge
# HELP culvert_route_repairs_total Routes that somebody else removed or replaced and that were put back.
# TYPE culvert_route_repairs_total counter
# HELP culvert_routes_desired Routes that should be in the kernel.
# TYPE culvert_routes_desired gauge
# HELP culvert_routes_programmed Routes that should be in the kernel and are.
# TYPE culvert_routes_programmed gauge
# HELP culvert_source_mismatches Nodes to which encapsulated packets would leave with a source that is not the advertised address.
# TYPE culvert_source_mismatches gauge
# HELP culvert_tunnel_packets_refused_total Tunnelled packets that were refused, since no node advertises their source.
# TYPE culvert_tunnel_packets_refused_total counter
# HELP culvert_withdrawals_held Deletions in the datastore that are held, since too much would vanish at once.
# TYPE culvert_withdrawals_held gauge";
        assert_eq!(own.join("\n"), expected);
        assert!(
            text.contains("\n# TYPE process_resident_memory_bytes gauge\n"),
            "{text}"
        );
    }

    fn one_wrong_source() -> SourceStatus {
        SourceStatus {
            mismatches: vec![SourceMismatch {
                peer: [172, 18, 0, 12].into(),
                source: [172, 18, 0, 99].into(),
                problem: "wrong".into(),
            }],
            problems: vec!["not counted".into()],
        }
    }

    #[test]
    fn a_snapshot_sets_every_gauge() {
        let metrics = Metrics::register().unwrap();
        let peer = |state: &str| PeerStatus {
            address: "10.0.0.1".parse().unwrap(),
            node: None,
            r#type: PeerType::Mesh,
            state: state.into(),
            since: jiff::Timestamp::UNIX_EPOCH,
            reason: None,
            prefixes_received: 0,
            prefixes_sent: 0,
            established_count: 0,
            stale: false,
            outer_source: None,
        };
        let status = AgentStatus {
            datastore: DatastoreStatus {
                in_sync: true,
                problem: Some("away".into()),
            },
            peers: vec![
                peer("Established"),
                peer("Established"),
                peer("Active"),
                peer("no such state"),
            ],
            routes: RouteStatus {
                desired: 5,
                programmed: 4,
                ..RouteStatus::default()
            },
            sources: one_wrong_source(),
            blocks: vec!["10.65.42.0/26".parse().unwrap()],
            addresses_in_use: 7,
            withdrawals_held: 3,
            ..AgentStatus::default()
        };
        metrics.observe(&status);
        let text = metrics.encode().unwrap();
        for line in [
            "culvert_bgp_sessions{state=\"Established\"} 2",
            "culvert_bgp_sessions{state=\"Active\"} 1",
            "culvert_bgp_sessions{state=\"OpenSent\"} 0",
            "culvert_routes_desired 5",
            "culvert_routes_programmed 4",
            "culvert_source_mismatches 1",
            "culvert_ipam_blocks 1",
            "culvert_ipam_addresses_in_use 7",
            "culvert_datastore_in_sync 1",
            "culvert_datastore_problem 1",
            "culvert_withdrawals_held 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("no such state"));
        metrics.observe(&AgentStatus::default());
        let text = metrics.encode().unwrap();
        assert!(
            text.contains("\nculvert_bgp_sessions{state=\"Established\"} 0\n"),
            "{text}"
        );
    }

    #[test]
    fn a_clone_counts_into_the_same_metrics() {
        let metrics = Metrics::register().unwrap();
        metrics.clone().route_repairs.inc_by(2);
        assert!(
            metrics
                .encode()
                .unwrap()
                .contains("\nculvert_route_repairs_total 2\n")
        );
    }
}
