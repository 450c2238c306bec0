//! How many paths and routes sessions carry.

use culvert_bgp::config::FamilyConfig;

use super::*;
use crate::peering::{AddPath, PathTerms};

/// What goes for IPv4 with 192.0.2.1 and 172.18.0.2, where a BGPPeer for the former has these annotations; and the problems.
fn told(annotations: &Value) -> (FamilyConfig, FamilyConfig, Vec<String>) {
    let mut manifest = peer("tor", &json!({"peerIP": "192.0.2.1", "asNumber": 65001}));
    manifest["metadata"]["annotations"] = annotations.clone();
    let speaking = Speaking {
        paths: PathTerms {
            add_path: AddPath::Receive,
            max_prefixes: 1000,
        },
        ..Speaking::default()
    };
    let peering = peering(n1(&speaking), &with(three_nodes(), &[manifest]));
    let of = |peer: &str| {
        peering.peers[&peer.parse::<IpAddr>().unwrap()]
            .families
            .values()
            .copied()
            .next()
    };
    let (tor, node) = (of("192.0.2.1").unwrap(), of("172.18.0.2").unwrap());
    (tor, node, problems(&peering))
}

#[test]
fn routers_and_nodes_are_offered_to_keep_routes_for_long_as_the_agent_was_told() {
    let tor = peer("tor", &json!({"peerIP": "192.0.2.1", "asNumber": 65001}));
    for seconds in [0, 3600] {
        let speaking = Speaking {
            long_lived_stale_time: seconds,
            ..Speaking::default()
        };
        let peering = peering(n1(&speaking), &with(three_nodes(), std::slice::from_ref(&tor)));
        let offered: Vec<u32> = peering
            .peers
            .values()
            .map(|peer| peer.long_lived_stale_time)
            .collect();
        assert_eq!(offered, [seconds; 3]);
    }
}

#[test]
fn the_configuration_holds_for_all_peers_and_annotations_for_those_of_one_resource() {
    let paths = |family: FamilyConfig| {
        (
            family.add_path_send,
            family.add_path_receive,
            family.limit.most,
            family.limit.warn,
        )
    };
    let (tor, node, wrong) = told(&json!({}));
    assert_eq!(
        (paths(tor), paths(node)),
        ((false, true, 1000, 750), (false, true, 1000, 750))
    );
    assert_eq!(wrong, Vec::<String>::new());
    for (text, send, receive) in [
        ("off", false, false),
        ("receive", false, true),
        ("send", true, false),
        ("both", true, true),
    ] {
        let (tor, node, _) = told(&json!({"culvert/add-path": text, "culvert/max-prefixes": "7"}));
        assert_eq!(paths(tor), (send, receive, 7, 6), "{text}");
        assert_eq!(paths(node), (false, true, 1000, 750));
    }
}

#[test]
fn an_annotation_that_cannot_be_read_is_named_and_costs_no_session() {
    let (tor, node, wrong) =
        told(&json!({"culvert/add-path": "yes", "culvert/max-prefixes": "0", "other": "x"}));
    assert_eq!(tor, node);
    assert_eq!(
        wrong,
        [
            "BGPPeer tor: the annotation culvert/add-path is \"yes\", and is passed over: it may be off, receive, send or both",
            "BGPPeer tor: the annotation culvert/max-prefixes is \"0\", and is passed over: it may be a whole number from 1 \
             to 10000000",
        ]
    );
}
