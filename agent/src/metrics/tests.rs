//! What a scrape sees, by name and by number.

use super::*;
use crate::status::{DatastoreStatus, PeerStatus, PeerType, RouteStatus, SourceMismatch, SourceStatus};

/// Names, types and help texts are what dashboards and alerts are built on.
#[test]
fn the_metrics_are_the_promised_ones() {
    let metrics = Metrics::register().unwrap();
    // What has a label without a known value is told only where there is something to tell.
    metrics.ipam_pool_addresses.with_label_values(&["pool"]);
    metrics.ipam_pool_addresses_free.with_label_values(&["pool"]);
    metrics.ipam_pool_seconds_left.with_label_values(&["pool"]);
    let status = AgentStatus {
        peers: vec![peer("Active")],
        ..AgentStatus::default()
    };
    let text = metrics.scrape(&status, true).unwrap();
    let own: Vec<_> = text
        .lines()
        .filter(|l| l.starts_with('#') && l.contains(" culvert_"))
        .map(str::to_owned)
        .collect();
    let expected = "\
# HELP culvert_bgp_connections_refused_total BGP connections refused, since they came from addresses that are no peers'.
# TYPE culvert_bgp_connections_refused_total counter
# HELP culvert_bgp_messages_received_total BGP messages received of all peers.
# TYPE culvert_bgp_messages_received_total counter
# HELP culvert_bgp_messages_sent_total BGP messages sent to all peers.
# TYPE culvert_bgp_messages_sent_total counter
# HELP culvert_bgp_peer_prefixes_received Prefixes that a peer announces; only where http.peerMetrics is on.
# TYPE culvert_bgp_peer_prefixes_received gauge
# HELP culvert_bgp_peer_prefixes_sent Prefixes that are announced to a peer; only where http.peerMetrics is on.
# TYPE culvert_bgp_peer_prefixes_sent gauge
# HELP culvert_bgp_peer_up Whether the session with a peer is Established, 0 or 1; only of peers with which it is not, unless http.peerMetrics is on.
# TYPE culvert_bgp_peer_up gauge
# HELP culvert_bgp_prefixes_received Prefixes that all peers announce, those of a session that is lost and may come back included.
# TYPE culvert_bgp_prefixes_received gauge
# HELP culvert_bgp_prefixes_sent Prefixes that are announced to all peers.
# TYPE culvert_bgp_prefixes_sent gauge
# HELP culvert_bgp_session_flaps_total Established BGP sessions that were lost.
# TYPE culvert_bgp_session_flaps_total counter
# HELP culvert_bgp_session_transitions_total Changes of state of all BGP sessions.
# TYPE culvert_bgp_session_transitions_total counter
# HELP culvert_bgp_sessions BGP sessions in each state of RFC 4271.
# TYPE culvert_bgp_sessions gauge
# HELP culvert_bgp_update_faults_total Faults in UPDATEs that cost a route or an attribute, and not the session (RFC 7606).
# TYPE culvert_bgp_update_faults_total counter
# HELP culvert_block_advertisement_duration_seconds Seconds from the claim of a block for this node until the kernel had its UPDATE for the last Established peer.
# TYPE culvert_block_advertisement_duration_seconds histogram
# HELP culvert_build_info Version of the running agent, always 1.
# TYPE culvert_build_info gauge
# HELP culvert_cni_failures_total Requests of the CNI plugin that the agent could not grant.
# TYPE culvert_cni_failures_total counter
# HELP culvert_cni_request_duration_seconds Seconds for which the CNI plugin waited for the agent.
# TYPE culvert_cni_request_duration_seconds histogram
# HELP culvert_datastore_errors_total Requests to the datastore that failed, other than since somebody else had written first, and breaks of its watch.
# TYPE culvert_datastore_errors_total counter
# HELP culvert_datastore_in_sync Whether all of the datastore has been read, 0 or 1.
# TYPE culvert_datastore_in_sync gauge
# HELP culvert_datastore_problem Whether the datastore has a problem that the status names, such as being away, 0 or 1.
# TYPE culvert_datastore_problem gauge
# HELP culvert_datastore_request_duration_seconds Seconds that requests to the datastore took.
# TYPE culvert_datastore_request_duration_seconds histogram
# HELP culvert_datastore_watch_lag_seconds Seconds from a write of this agent's in the datastore until its watch told of it.
# TYPE culvert_datastore_watch_lag_seconds histogram
# HELP culvert_firewall_repairs_total Changes of the packet filter by somebody else that were put right.
# TYPE culvert_firewall_repairs_total counter
# HELP culvert_ipam_addresses_in_use Addresses in use in the blocks of this node.
# TYPE culvert_ipam_addresses_in_use gauge
# HELP culvert_ipam_blocks Blocks of pod addresses that belong to this node.
# TYPE culvert_ipam_blocks gauge
# HELP culvert_ipam_conflicts_total Writes of blocks and claims that were planned anew, since somebody else had written first.
# TYPE culvert_ipam_conflicts_total counter
# HELP culvert_ipam_failures_total Requests for addresses and blocks of this node that came to nothing.
# TYPE culvert_ipam_failures_total counter
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
# HELP culvert_ipam_pool_addresses Addresses that a pool has.
# TYPE culvert_ipam_pool_addresses gauge
# HELP culvert_ipam_pool_addresses_free Addresses of a pool that can be had: neither in use nor resting nor reserved.
# TYPE culvert_ipam_pool_addresses_free gauge
# HELP culvert_ipam_pool_seconds_left Seconds until a pool has no free address if its use goes on as it did lately; absent while it does not fill.
# TYPE culvert_ipam_pool_seconds_left gauge
# HELP culvert_ipam_request_duration_seconds Seconds that requests for addresses and blocks of this node took.
# TYPE culvert_ipam_request_duration_seconds histogram
# HELP culvert_netlink_duration_seconds Seconds that reading the kernel whole, and each set of changes to it, took.
# TYPE culvert_netlink_duration_seconds histogram
# HELP culvert_route_errors_total Writes of routes that the kernel refused.
# TYPE culvert_route_errors_total counter
# HELP culvert_route_fights Routes that another program keeps undoing, and that are put back ever more slowly.
# TYPE culvert_route_fights gauge
# HELP culvert_route_programming_duration_seconds Seconds from the arrival of what a peer says of a destination until the kernel had the route that follows from it.
# TYPE culvert_route_programming_duration_seconds histogram
# HELP culvert_route_repairs_total Routes that somebody else removed or replaced and that were put back.
# TYPE culvert_route_repairs_total counter
# HELP culvert_routes_desired Routes that should be in the kernel.
# TYPE culvert_routes_desired gauge
# HELP culvert_routes_failed Changes that the kernel refused the last time, and that are tried again.
# TYPE culvert_routes_failed gauge
# HELP culvert_routes_programmed Routes that should be in the kernel and are.
# TYPE culvert_routes_programmed gauge
# HELP culvert_routes_rejected Destinations that peers announce and that are not installed.
# TYPE culvert_routes_rejected gauge
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

fn peer(state: &str) -> PeerStatus {
    PeerStatus {
        address: "10.0.0.1".parse().unwrap(),
        node: None,
        r#type: PeerType::Mesh,
        state: state.into(),
        since: jiff::Timestamp::UNIX_EPOCH,
        reason: None,
        prefixes_received: 0,
        prefixes_sent: 0,
        established_count: 0,
        failures: 0,
        failed: None,
        stale: false,
        outer_source: None,
    }
}

#[test]
fn a_snapshot_sets_every_gauge() {
    let metrics = Metrics::register().unwrap();
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

/// A status with this many peers, the first `up` of which have a session.
fn peers(count: u8, up: u8) -> AgentStatus {
    let one = |number| PeerStatus {
        address: [10, 0, 0, number].into(),
        node: Some(format!("n{number}")),
        prefixes_received: 3,
        prefixes_sent: 2,
        ..peer(if number < up { "Established" } else { "Idle" })
    };
    AgentStatus {
        peers: (0..count).map(one).collect(),
        ..AgentStatus::default()
    }
}

fn of_peers(text: &str) -> Vec<&str> {
    let series = text.lines().filter(|line| line.starts_with("culvert_bgp_peer_"));
    series.collect()
}

#[test]
fn only_peers_without_a_session_have_series_of_their_own_and_only_until_they_have_one() {
    let metrics = Metrics::register().unwrap();
    let text = metrics.scrape(&peers(3, 2), false).unwrap();
    assert_eq!(
        of_peers(&text),
        ["culvert_bgp_peer_up{peer=\"10.0.0.2\",peer_node=\"n2\"} 0"]
    );
    assert!(text.contains("\nculvert_bgp_prefixes_received 9\n"), "{text}");
    assert!(text.contains("\nculvert_bgp_prefixes_sent 6\n"), "{text}");
    let text = metrics.scrape(&peers(3, 3), false).unwrap();
    assert_eq!(of_peers(&text), Vec::<&str>::new());
}

#[test]
fn where_it_is_switched_on_all_peers_have_series() {
    let metrics = Metrics::register().unwrap();
    let text = metrics.scrape(&peers(2, 1), true).unwrap();
    assert_eq!(
        of_peers(&text),
        [
            "culvert_bgp_peer_prefixes_received{peer=\"10.0.0.0\",peer_node=\"n0\"} 3",
            "culvert_bgp_peer_prefixes_received{peer=\"10.0.0.1\",peer_node=\"n1\"} 3",
            "culvert_bgp_peer_prefixes_sent{peer=\"10.0.0.0\",peer_node=\"n0\"} 2",
            "culvert_bgp_peer_prefixes_sent{peer=\"10.0.0.1\",peer_node=\"n1\"} 2",
            "culvert_bgp_peer_up{peer=\"10.0.0.0\",peer_node=\"n0\"} 1",
            "culvert_bgp_peer_up{peer=\"10.0.0.1\",peer_node=\"n1\"} 0",
        ]
    );
}

#[test]
fn a_node_that_is_cut_off_floods_nobody() {
    let metrics = Metrics::register().unwrap();
    let text = metrics.scrape(&peers(250, 0), false).unwrap();
    assert_eq!(of_peers(&text).len(), PEERS_MAX);
    assert!(
        text.contains("\nculvert_bgp_sessions{state=\"Idle\"} 250\n"),
        "{text}"
    );
}

/// A thousand nodes are a thousand times this.
#[test]
fn a_healthy_agent_has_few_series() {
    let text = Metrics::register()
        .unwrap()
        .scrape(&peers(250, 250), false)
        .unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 400, "{series} series");
}
