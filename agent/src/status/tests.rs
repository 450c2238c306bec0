//! When a node is ready, and what it tells of its routes and peers.

use super::*;
use crate::fixtures::{mesh_peer, settled};

#[test]
fn an_agent_that_starts_is_not_ready_until_the_datastore_is_in_sync() {
    assert_eq!(
        AgentStatus::starting("a").ready(),
        Err("datastore is not in sync yet".into())
    );
    assert_eq!(settled().ready(), Ok(()));
}

#[test]
fn what_is_wrong_with_the_datastore_is_told() {
    let mut status = AgentStatus::starting("a");
    status.datastore.problem = Some("/var/lib/culvert: permission denied".into());
    assert_eq!(
        status.ready(),
        Err("datastore is not in sync yet: /var/lib/culvert: permission denied".into())
    );
}

#[test]
fn a_pod_can_be_attached_though_a_route_is_missing_but_not_before_the_mtu_is_known() {
    let mut status = settled();
    status.routes.programmed = 0;
    assert_eq!(
        status.can_attach(),
        Err("the MTU of pods is not known yet".into())
    );
    status.pod_mtu = 1480;
    assert_eq!(status.can_attach(), Ok(()));
    status.datastore.in_sync = false;
    assert_eq!(status.can_attach(), Err("datastore is not in sync yet".into()));
}

#[test]
fn a_node_without_a_block_is_ready_only_if_there_is_no_pool() {
    let mut status = settled();
    status.blocks.clear();
    assert_eq!(
        status.ready(),
        Err("node a has no block of pod addresses yet".into())
    );
    status.pools = 0;
    assert_eq!(status.ready(), Ok(()));
}

#[test]
fn a_node_whose_tunnel_cannot_be_made_is_not_ready() {
    let mut status = settled();
    status.tunnel_problem = Some("the kernel has no ipip module".into());
    assert_eq!(
        status.ready(),
        Err("the tunnel is not up: the kernel has no ipip module".into())
    );
}

#[test]
fn a_missing_route_is_named_with_its_reason() {
    let mut status = settled();
    status.routes.programmed = 3;
    assert_eq!(status.ready(), Err("3 of 4 routes are in the kernel".into()));
    status.routes.failed = vec![RouteProblem {
        route: "10.65.17.64/26".into(),
        reason: "network is unreachable".into(),
    }];
    assert_eq!(
        status.ready(),
        Err("3 of 4 routes are in the kernel: 10.65.17.64/26: network is unreachable".into())
    );
}

#[test]
fn of_many_missing_routes_three_are_named_and_the_others_counted() {
    let mut status = settled();
    status.routes.programmed = 0;
    status.routes.failed = (1..=5)
        .map(|n| RouteProblem {
            route: format!("10.65.{n}.0/26"),
            reason: "no".into(),
        })
        .collect();
    assert_eq!(
        status.ready(),
        Err(
            "0 of 4 routes are in the kernel: 10.65.1.0/26: no; 10.65.2.0/26: no; 10.65.3.0/26: no; and 2 more"
                .into()
        )
    );
}

#[test]
fn of_the_peers_of_a_node_among_many_only_those_are_told_that_something_is_wrong_with() {
    let mut status = settled();
    status.peers = (1..=100)
        .map(|n| mesh_peer(&format!("172.18.0.{n}"), "Established"))
        .collect();
    status.peers[7].state = "Active".into();
    status.sessions = SessionCounts::of(&status.peers);
    status.sources.mismatches = vec![SourceMismatch {
        peer: [172, 18, 0, 51].into(),
        source: [10, 0, 0, 1].into(),
        problem: "wrong".into(),
    }];
    let told = status.exceptional();
    let addresses: Vec<_> = told.peers.iter().map(|peer| peer.address.to_string()).collect();
    assert_eq!(addresses, ["172.18.0.8", "172.18.0.51"]);
    assert_eq!(
        told.sessions,
        SessionCounts {
            peers: 100,
            established: 99
        }
    );
    assert_eq!(told.sessions.down(), 1);
    status.peers = (0..=255)
        .map(|n| mesh_peer(&format!("172.18.0.{n}"), "Idle"))
        .collect();
    assert_eq!(status.exceptional().peers.len(), EXCEPTIONS_TOLD);
}

#[test]
fn the_names_in_json_are_camel_case_and_peer_types_are_calicoctls() {
    let mut status = settled();
    status.peers = vec![PeerStatus {
        address: "172.18.0.12".parse().unwrap(),
        node: Some("b".into()),
        r#type: PeerType::Mesh,
        state: "Established".into(),
        since: "2026-11-21T10:00:00Z".parse().unwrap(),
        reason: None,
        prefixes_received: 1,
        prefixes_sent: 2,
        established_count: 3,
        failures: 0,
        failed: None,
        stale: false,
        outer_source: Some("172.18.0.11".parse().unwrap()),
    }];
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["datastore"]["inSync"], true);
    assert_eq!(json["addressesInUse"], 0);
    assert_eq!(json["podMtu"], 0);
    assert_eq!(
        json["peers"][0],
        serde_json::json!({
            "address": "172.18.0.12", "node": "b", "type": "node-to-node mesh", "state": "Established",
            "since": "2026-11-21T10:00:00Z", "prefixesReceived": 1, "prefixesSent": 2,
            "establishedCount": 3, "failures": 0, "stale": false, "outerSource": "172.18.0.11",
        })
    );
    assert_eq!(serde_json::from_value::<AgentStatus>(json).unwrap(), status);
    for (kind, name) in [
        (PeerType::Mesh, "node-to-node mesh"),
        (PeerType::Global, "global"),
        (PeerType::Node, "node specific"),
    ] {
        assert_eq!(serde_json::to_value(kind).unwrap(), name);
        assert_eq!(kind.as_str(), name);
    }
}
