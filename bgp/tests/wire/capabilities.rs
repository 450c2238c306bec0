//! Capabilities octet by octet, and what those of two OPENs settle.

use culvert_bgp::id::{HoldTime, RouterId};
use culvert_bgp::wire::message::{
    Capability, Directions, Family, GracefulRestart, LongLivedFamily, Message, Open,
};
use culvert_bgp::wire::{Negotiated, NegotiatedFamily, decode, encode};

use crate::{INTERNAL, address, asn, hex, message};

const IPV4: Family = Family::IPV4_UNICAST;
const IPV6: Family = Family::IPV6_UNICAST;
const SEND: Directions = Directions {
    send: true,
    receive: false,
};
const RECEIVE: Directions = Directions {
    send: false,
    receive: true,
};

fn open(number: u32, capabilities: &[Capability]) -> Open {
    Open {
        asn: asn(number),
        hold_time: HoldTime::new(90).unwrap(),
        router_id: RouterId::new(address("192.0.2.1")).unwrap(),
        capabilities: capabilities.to_vec(),
    }
}

/// An OPEN of AS 64512 around one capability.
fn around(capability: &[u8]) -> Vec<u8> {
    let length = u8::try_from(capability.len()).unwrap();
    let fixed = hex("04 fc00 005a c0000201");
    message(1, &[&fixed[..], &[length + 2, 2, length], capability].concat())
}

#[test]
fn each_capability_is_read_and_written_octet_by_octet() {
    let long_lived = |family, forwarding_kept, stale_time| LongLivedFamily {
        family,
        forwarding_kept,
        stale_time,
    };
    let rows = [
        // RFC 7313 §3.1 (test).
        ("46 00", Capability::EnhancedRouteRefresh),
        // RFC 8654 §3 (test).
        ("06 00", Capability::ExtendedMessage),
        // RFC 7911 §4 (test): 1 is to receive, 2 to send, 3 both.
        (
            "45 0c 0001 01 01 0002 01 02 0001 80 03",
            Capability::AddPath(vec![
                (IPV4, RECEIVE),
                (IPV6, SEND),
                (Family { afi: 1, safi: 128 }, crate::BOTH_WAYS),
            ]),
        ),
        // RFC 8950 §4 (test): the SAFI has two octets here.
        (
            "05 0c 0001 0001 0002 0001 0080 0002",
            Capability::ExtendedNextHop(vec![(IPV4, 2), (Family { afi: 1, safi: 128 }, 2)]),
        ),
        // RFC 9494 §3.1 (test).
        (
            "47 0e 0001 01 80 015180 0002 01 00 ffffff",
            Capability::LongLivedGracefulRestart(vec![
                long_lived(IPV4, true, 86400),
                long_lived(IPV6, false, 0x00ff_ffff),
            ]),
        ),
        // RFC 8538 §2 (test): the N bit, beside and without the R bit of RFC 4724 §3.
        (
            "40 06 c078 0001 01 80",
            Capability::GracefulRestart(GracefulRestart {
                restarted: true,
                notification: true,
                restart_time: 120,
                families: vec![(IPV4, true)],
            }),
        ),
        (
            "40 02 4fff",
            Capability::GracefulRestart(GracefulRestart {
                restarted: false,
                notification: true,
                restart_time: 4095,
                families: Vec::new(),
            }),
        ),
    ];
    for (octets, capability) in rows {
        let octets = around(&hex(octets));
        let message = Message::Open(open(64512, std::slice::from_ref(&capability)));
        assert_eq!(decode(&octets, INTERNAL).unwrap().message, message);
        assert_eq!(encode(&message, INTERNAL), octets, "{capability:?}");
    }
}

#[test]
fn an_optional_capability_that_makes_no_sense_counts_as_not_understood() {
    for octets in [
        "46 01 00",
        "06 01 00",
        // RFC 7911 §4 (test): a direction that is none of the three.
        "45 04 0001 01 00",
        "45 08 0001 01 03 0002 01 04",
        "45 03 0001 01",
        "05 05 0001 0001 00",
        "47 06 0001 01 80 0151",
    ] {
        let octets = hex(octets);
        let Message::Open(read) = decode(&around(&octets), INTERNAL).unwrap().message else {
            panic!("not an OPEN");
        };
        let unknown = Capability::Unknown {
            code: octets[0],
            value: octets[2..].to_vec(),
        };
        assert_eq!(read.capabilities, [unknown]);
    }
}

#[test]
fn a_family_is_agreed_on_where_both_name_it() {
    // RFC 4760 §8 (test).
    let both = [IPV4, IPV6].map(Capability::MultiProtocol);
    let (v4, v6) = both.split_at(1);
    let agreed = |ours: &[Capability], theirs: &[Capability]| {
        Negotiated::between(&open(1, ours), &open(1, theirs))
            .families()
            .collect::<Vec<_>>()
    };
    assert_eq!(agreed(&both, &both), [IPV4, IPV6]);
    assert_eq!(agreed(&both, v6), [IPV6]);
    assert_eq!(agreed(v4, v6), []);
    // Who names none speaks IPv4 unicast, as before there were others.
    assert_eq!(agreed(&both, &[]), [IPV4]);
    assert_eq!(agreed(v6, &[]), []);
}

#[test]
fn a_direction_of_add_path_needs_one_who_sends_and_one_who_receives() {
    // RFC 7911 §4 (test).
    let says = |directions| [Capability::AddPath(vec![(IPV4, directions)])];
    let agreed = |ours, theirs| {
        let negotiated = Negotiated::between(&open(1, &says(ours)), &open(1, &says(theirs)));
        assert_eq!(negotiated.ipv6_unicast.add_path, Directions::NEITHER);
        negotiated.ipv4_unicast.add_path
    };
    assert_eq!(agreed(SEND, SEND), Directions::NEITHER);
    assert_eq!(agreed(SEND, RECEIVE), SEND);
    assert_eq!(agreed(RECEIVE, SEND), RECEIVE);
    assert_eq!(agreed(crate::BOTH_WAYS, SEND), RECEIVE);
    assert_eq!(agreed(crate::BOTH_WAYS, crate::BOTH_WAYS), crate::BOTH_WAYS);
}

#[test]
fn what_both_have_to_say_counts_only_where_both_say_it() {
    let all = [
        Capability::MultiProtocol(IPV4),
        Capability::FourOctetAs(asn(64512)),
        Capability::EnhancedRouteRefresh,
        Capability::ExtendedNextHop(vec![(IPV4, 2)]),
    ];
    let settled = Negotiated::between(&open(64512, &all), &open(64512, &all));
    let expected = Negotiated {
        four_octet_as: true,
        internal: true,
        enhanced_route_refresh: true,
        ipv4_unicast: NegotiatedFamily {
            extended_next_hop: true,
            ..NegotiatedFamily::plain(true)
        },
        ..Negotiated::default()
    };
    assert_eq!(settled, expected);
    for (ours, theirs) in [(&all[..], &[][..]), (&[][..], &all[..])] {
        let settled = Negotiated::between(&open(64512, ours), &open(64513, theirs));
        assert_eq!(settled, Negotiated::plain(false));
    }
    // RFC 8950 §4 (test): for another family, or with a next hop of IPv4, it says nothing of this one.
    let other = Capability::ExtendedNextHop(vec![(IPV4, 1), (Family { afi: 1, safi: 128 }, 2)]);
    let settled = Negotiated::between(&open(1, &all), &open(1, &[other]));
    assert!(!settled.ipv4_unicast.extended_next_hop);
}

#[test]
fn long_messages_go_to_whoever_takes_them() {
    // RFC 8654 §4 (test): one end alone may say so.
    let long = [Capability::ExtendedMessage];
    let directions = |ours, theirs| Negotiated::between(&open(1, ours), &open(1, theirs)).extended_messages;
    assert_eq!(directions(&long, &[]), RECEIVE);
    assert_eq!(directions(&[], &long), SEND);
    assert_eq!(directions(&long, &long), crate::BOTH_WAYS);
}
