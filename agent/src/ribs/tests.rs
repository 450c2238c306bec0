//! A speaker with two peers, fed by hand, and what its tables say.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use culvert_bgp::id::{Asn, HoldTime, RouterId};
use culvert_bgp::speaker::{Input, PeerConfig, SpeakerConfig};
use culvert_bgp::wire::message::{Capability, Family, Message, Open, Update};
use culvert_bgp::wire::{self, Negotiated};

use super::*;

const OURS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 11);
const FIRST: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 12);
const SECOND: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 13);
const INTERNAL: Negotiated = Negotiated {
    four_octet_as: true,
    ..Negotiated::plain(true)
};

fn asn() -> Asn {
    Asn::new(64_512).unwrap()
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text.parse().unwrap())
}

/// Brings the session with `peer` up, and has it announce `prefixes` with this preference.
fn announce(speaker: &mut Speaker, now: Instant, peer: Ipv4Addr, preference: u32, prefixes: &[&str]) {
    let connection = speaker.next_connection();
    speaker.handle(
        now,
        Input::Accepted {
            connection,
            peer: peer.into(),
        },
    );
    let open = Message::Open(Open {
        asn: asn(),
        hold_time: HoldTime::SUGGESTED,
        router_id: RouterId::new(peer).unwrap(),
        capabilities: vec![
            Capability::MultiProtocol(Family::IPV4_UNICAST),
            Capability::FourOctetAs(asn()),
        ],
    });
    let path = PathAttributes {
        local_pref: Some(preference),
        communities: vec![(64_512 << 16) + 7],
        large_communities: vec![[64_512, 1, 2]],
        ..PathAttributes::new(peer.into())
    };
    let update = Message::Update(Update {
        announced: prefixes.iter().map(|text| prefix(text).into()).collect(),
        attributes: Some(Arc::new(path)),
        ..Update::default()
    });
    for message in [open, Message::Keepalive, update] {
        let bytes = &wire::encode(&message, INTERNAL);
        speaker.handle(now, Input::Received { connection, bytes });
    }
    while speaker.poll_output().is_some() {}
}

/// Both peers announce 10.65.1.0/26, the first with the higher preference; the second 10.65.2.0/26 as well.
fn speaker() -> Speaker {
    let now = Instant::now();
    let config = SpeakerConfig::new(asn(), RouterId::new(OURS).unwrap(), OURS);
    let mut speaker = Speaker::new(config, now);
    speaker.handle(now, Input::Exports(BTreeSet::from([prefix("10.65.0.0/26")])));
    let peers = [FIRST, SECOND].map(|peer| (IpAddr::V4(peer), PeerConfig::new(peer.into(), asn())));
    speaker.handle(now, Input::Peers(peers.into()));
    announce(&mut speaker, now, FIRST, 200, &["10.65.1.0/26"]);
    announce(&mut speaker, now, SECOND, 100, &["10.65.1.0/26", "10.65.2.0/26"]);
    speaker
}

fn asked(table: RibTable, peer: Option<Ipv4Addr>, within: Option<&str>) -> RibRoutes {
    let request = RibRequest {
        table,
        peer: peer.map(IpAddr::V4),
        within: within.map(|range| range.parse().unwrap()),
    };
    routes(&speaker(), &request).unwrap()
}

fn destinations(routes: &RibRoutes) -> Vec<String> {
    routes
        .routes
        .iter()
        .map(|route| route.prefix.to_string())
        .collect()
}

#[test]
fn what_a_peer_announced_is_told_with_its_attributes_and_whether_packets_go_by_it() {
    let received = asked(RibTable::Received, Some(SECOND), None);
    assert_eq!(destinations(&received), ["10.65.1.0/26", "10.65.2.0/26"]);
    let used: Vec<_> = received.routes.iter().map(|route| route.used).collect();
    assert_eq!(used, [Some(false), Some(true)]);
    let path = received.routes[0].path.clone().unwrap();
    assert_eq!((path.local_pref, path.origin.as_str()), (Some(100), "Igp"));
    assert_eq!(path.communities, ["64512:7", "64512:1:2"]);
    let text = received.render(RibTable::Received);
    assert!(text.lines().next().unwrap().ends_with("USED"), "{text}");
    assert!(text.contains("no: another path is better"), "{text}");
}

#[test]
fn what_is_used_says_where_packets_go_and_what_is_this_nodes_own() {
    let best = asked(RibTable::Best, None, None);
    assert_eq!(
        destinations(&best),
        ["10.65.0.0/26", "10.65.1.0/26", "10.65.2.0/26"]
    );
    let next_hops: Vec<_> = best.routes.iter().map(|route| route.next_hops.clone()).collect();
    assert_eq!(
        next_hops,
        [vec![], vec![IpAddr::V4(FIRST)], vec![IpAddr::V4(SECOND)]]
    );
    assert!(best.render(RibTable::Best).contains("this node"));
    assert_eq!(
        destinations(&asked(RibTable::Best, Some(FIRST), None)),
        ["10.65.1.0/26"]
    );
}

#[test]
fn what_a_peer_is_told_is_this_nodes_own() {
    let advertised = asked(RibTable::Advertised, Some(FIRST), None);
    assert_eq!(destinations(&advertised), ["10.65.0.0/26"]);
    assert_eq!(advertised.routes[0].next_hops, [IpAddr::V4(OURS)]);
}

#[test]
fn a_range_narrows_the_answer_and_an_empty_one_says_so() {
    let within = asked(RibTable::Received, None, Some("10.65.2.0/24"));
    assert_eq!(destinations(&within), ["10.65.2.0/26"]);
    let none = asked(RibTable::Received, None, Some("10.66.0.0/16"));
    assert_eq!(none.render(RibTable::Received), "No routes.\n");
}

#[test]
fn more_routes_than_are_told_at_once_are_counted() {
    let many = (0..u32::try_from(MAX_ROUTES).unwrap() + 3).map(|number| {
        let address = Ipv4Addr::from(0x0a00_0000 + number);
        used(Prefix::new(IpAddr::V4(address).into()), &[])
    });
    let gathered = gather(many);
    assert_eq!((gathered.routes.len(), gathered.left_out), (MAX_ROUTES, 3));
    assert!(
        gathered
            .render(RibTable::Best)
            .ends_with("3 more routes are left out; name a range with --within, or a peer with --peer\n")
    );
}

#[test]
fn somebody_who_is_no_peer_is_answered_with_those_who_are() {
    let request = RibRequest {
        table: RibTable::Received,
        peer: Some("172.18.0.99".parse().unwrap()),
        within: None,
    };
    assert_eq!(
        routes(&speaker(), &request).unwrap_err().to_string(),
        "172.18.0.99 is no BGP peer of this node; its peers are 172.18.0.12, 172.18.0.13"
    );
    let alone = Speaker::new(
        SpeakerConfig::new(asn(), RouterId::new(OURS).unwrap(), OURS),
        Instant::now(),
    );
    let error = routes(&alone, &request).unwrap_err().to_string();
    assert!(error.contains("which has none"), "{error}");
}
