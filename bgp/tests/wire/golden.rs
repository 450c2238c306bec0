//! Octets that real implementations sent, and layouts put together octet by octet from the RFCs.

use std::sync::Arc;

use culvert_bgp::id::{HoldTime, RouterId};
use culvert_bgp::wire::message::{
    AsPath, AsSegment, Capability, Family, GracefulRestart, Message, Notification, Open, Origin,
    PathAttributes, RefreshKind, Update,
};
use culvert_bgp::wire::{Negotiated, decode, encode};

use crate::{INTERNAL, TWO_OCTETS, address, asn, clean_update, hex, nlri};

const MARKER: &str = "ffffffffffffffffffffffffffffffff";

/// A message of a peer, read as expected and written again octet for octet.
fn both_ways(octets: &str, negotiated: Negotiated, expected: &Message) {
    let octets = hex(&format!("{MARKER}{octets}"));
    let decoded = decode(&octets, negotiated).unwrap();
    assert_eq!(decoded.faults, []);
    assert_eq!(&decoded.message, expected);
    assert_eq!(encode(expected, negotiated), octets);
}

fn path(local_pref: Option<u32>) -> PathAttributes {
    PathAttributes {
        local_pref,
        ..PathAttributes::new(address("192.0.2.1").into())
    }
}

fn sequence(numbers: &[u32]) -> AsPath {
    AsPath {
        segments: vec![AsSegment::Sequence(numbers.iter().copied().map(asn).collect())],
    }
}

fn announce(attributes: PathAttributes, prefixes: &[&str]) -> Message {
    Message::Update(Update {
        announced: prefixes.iter().copied().map(nlri).collect(),
        attributes: Some(Arc::new(attributes)),
        ..Update::default()
    })
}

#[test]
fn the_open_of_bird_is_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), iBGP, AS 64512, router id 192.0.2.1, graceful restart on.
    both_ways(
        "00390104fc0000f0c00002011c021a0104000100010200400600780001010041040000fc0046004700",
        INTERNAL,
        &Message::Open(Open {
            asn: asn(64512),
            hold_time: HoldTime::new(240).unwrap(),
            router_id: RouterId::new(address("192.0.2.1")).unwrap(),
            capabilities: vec![
                Capability::MultiProtocol(Family::IPV4_UNICAST),
                Capability::RouteRefresh,
                Capability::GracefulRestart(GracefulRestart {
                    restarted: false,
                    notification: false,
                    restart_time: 120,
                    families: vec![(Family::IPV4_UNICAST, false)],
                }),
                Capability::FourOctetAs(asn(64512)),
                Capability::EnhancedRouteRefresh,
                Capability::LongLivedGracefulRestart(Vec::new()),
            ],
        }),
    );
}

#[test]
fn a_route_of_bird_with_communities_and_med_is_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), iBGP: 10.65.17.64/26, communities 64512:100 and no-export, large 64512:1:2, MED 50.
    both_ways(
        "0052020000003640010100400200400304c00002018004040000003240050400000064\
         c00808fc000064ffffff01c0200c0000fc0000000001000000021a0a411140",
        INTERNAL,
        &announce(
            PathAttributes {
                med: Some(50),
                communities: vec![0xfc00_0064, 0xffff_ff01],
                large_communities: vec![[64512, 1, 2]],
                ..path(Some(100))
            },
            &["10.65.17.64/26"],
        ),
    );
}

#[test]
fn two_routes_of_bird_in_one_message_are_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), iBGP: two blocks with the same attributes.
    both_ways(
        "0036020000001540010100400200400304c0000201400504000000641a0a412a401a0a412a00",
        INTERNAL,
        &announce(path(Some(100)), &["10.65.42.64/26", "10.65.42.0/26"]),
    );
}

#[test]
fn a_path_of_four_octet_numbers_from_bird_is_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), iBGP: 172.16.0.0/12 with the path 65001 4200000001.
    both_ways(
        "0039020000001f4001010040020a02020000fde9fa56ea01400304c0000201400504000000640cac10",
        INTERNAL,
        &announce(
            PathAttributes {
                as_path: sequence(&[65001, 4_200_000_001]),
                ..path(Some(100))
            },
            &["172.16.0.0/12"],
        ),
    );
}

#[test]
fn a_path_that_bird_split_for_a_peer_of_two_octets_is_put_together_again() {
    // BIRD 2.0.12 (Debian), eBGP from AS 64512 with `enable as4 off`: 64512 65001 AS_TRANS, and AS4_PATH.
    both_ways(
        "00410200000027400101004002080203fc00fde95ba0400304c0000201c0110e02030000fc000000fde9fa56ea010cac10",
        TWO_OCTETS,
        &announce(
            PathAttributes {
                as_path: sequence(&[64512, 65001, 4_200_000_001]),
                ..path(None)
            },
            &["172.16.0.0/12"],
        ),
    );
}

#[test]
fn a_route_of_bird_to_a_peer_of_two_octets_is_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), eBGP from AS 64512 with `enable as4 off`; no number needs four octets.
    both_ways(
        "0048020000002c400101004002040201fc00400304c0000201c00808fc000064ffffff01\
         c0200c0000fc0000000001000000021a0a411140",
        TWO_OCTETS,
        &announce(
            PathAttributes {
                as_path: sequence(&[64512]),
                communities: vec![0xfc00_0064, 0xffff_ff01],
                large_communities: vec![[64512, 1, 2]],
                ..path(None)
            },
            &["10.65.17.64/26"],
        ),
    );
}

#[test]
fn a_withdrawal_of_bird_is_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), iBGP.
    both_ways(
        "001c0200051a0a412a400000",
        INTERNAL,
        &Message::Update(Update {
            withdrawn: vec![nlri("10.65.42.64/26")],
            ..Update::default()
        }),
    );
}

#[test]
fn the_keepalive_and_the_end_of_rib_of_bird_are_read_and_written_alike() {
    // BIRD 2.0.12 (Debian), iBGP.
    both_ways("001304", INTERNAL, &Message::Keepalive);
    let end = Update {
        end_of_rib: Some(Family::IPV4_UNICAST),
        ..Update::default()
    };
    both_ways("00170200000000", INTERNAL, &Message::Update(end));
}

#[test]
fn a_route_refresh_of_bird_is_read_whatever_its_reserved_octet_holds() {
    // BIRD 2.0.12 (Debian), iBGP: a request, and the two markers that RFC 7313 put into the reserved octet.
    both_ways(
        "00170500010001",
        INTERNAL,
        &Message::RouteRefresh {
            family: Family::IPV4_UNICAST,
            kind: RefreshKind::Request,
        },
    );
    for marker in ["00170500010101", "00170500010201"] {
        let octets = hex(&format!("{MARKER}{marker}"));
        // RFC 2918 §3 (test): the reserved octet is ignored.
        let decoded = decode(&octets, INTERNAL).unwrap();
        assert_eq!(
            decoded.message,
            Message::RouteRefresh {
                family: Family::IPV4_UNICAST,
                kind: RefreshKind::Request
            }
        );
    }
}

#[test]
fn the_shutdown_of_bird_is_read_with_its_text() {
    // BIRD 2.0.12 (Debian): `disable i "maintenance until noon"`.
    let octets = hex(&format!(
        "{MARKER}002c030602166d61696e74656e616e636520756e74696c206e6f6f6e"
    ));
    let Message::Notification(shutdown) = decode(&octets, INTERNAL).unwrap().message else {
        panic!("not a NOTIFICATION");
    };
    assert_eq!(shutdown.shutdown_text(), Ok(Some("maintenance until noon")));
    assert_eq!(shutdown.to_string(), "cease: administrative shutdown (6/2)");
    assert_eq!(
        shutdown,
        Notification::cease_with_text(2, "maintenance until noon")
    );
    assert_eq!(encode(&Message::Notification(shutdown), INTERNAL), octets);
}

#[test]
fn the_layout_of_rfc_4271_holds_octet_by_octet() {
    // Put together by hand after RFC 4271 §4.3, with every attribute of §5 in the order of its code.
    let octets = hex(&[
        "ffffffff ffffffff ffffffff ffffffff", // marker
        "0055 02",                             // length 85, UPDATE
        "0004 18 0a0000",                      // withdrawn: 4 octets, 10.0.0.0/24
        "0034",                                // attributes: 52 octets
        "40 01 01 02",                         // ORIGIN incomplete
        "40 02 0a 02 02 0000fc00 fa56ea00",    // AS_PATH: AS_SEQUENCE of 64512 4200000000
        "40 03 04 c6336401",                   // NEXT_HOP 198.51.100.1
        "80 04 04 0000000a",                   // MULTI_EXIT_DISC 10
        "40 05 04 000000c8",                   // LOCAL_PREF 200
        "40 06 00",                            // ATOMIC_AGGREGATE
        "c0 07 08 fa56ea00 c6336402",          // AGGREGATOR 4200000000 198.51.100.2
        "00",                                  // 0.0.0.0/0
        "20 cb007105",                         // 203.0.113.5/32
    ]
    .concat());
    let expected = Update {
        withdrawn: vec![nlri("10.0.0.0/24")],
        announced: vec![nlri("0.0.0.0/0"), nlri("203.0.113.5/32")],
        attributes: Some(Arc::new(PathAttributes {
            origin: Origin::Incomplete,
            as_path: sequence(&[64512, 4_200_000_000]),
            next_hop: address("198.51.100.1").into(),
            med: Some(10),
            local_pref: Some(200),
            atomic_aggregate: true,
            aggregator: Some((asn(4_200_000_000), address("198.51.100.2"))),
            ..path(None)
        })),
        ..Update::default()
    };
    assert_eq!(clean_update(&octets, INTERNAL), expected);
    assert_eq!(encode(&Message::Update(expected), INTERNAL), octets);
}
