//! What a scrape sees, by name and by number.

use super::*;
use crate::fixtures::mesh_peer;
use crate::status::{DatastoreStatus, PeerStatus, RouteStatus, SourceMismatch, SourceStatus};

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
    let expected = include_str!("golden.txt");
    assert_eq!(own.join("\n"), expected.trim_end());
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
    mesh_peer("10.0.0.1", state)
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
