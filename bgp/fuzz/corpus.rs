//! Sound messages that the damage is done to: every type, every attribute, every capability.

use std::net::IpAddr;

use culvert_bgp::id::{Asn, HoldTime, Prefix, RouterId};
use culvert_bgp::wire::message::{
    AsPath, AsSegment, Capability, Directions, Family, GracefulRestart, LongLivedFamily, Message, Nlri,
    Notification, Open, Origin, PathAttributes, RefreshKind,
};
use culvert_bgp::wire::{
    Negotiated, NegotiatedFamily, encode, encode_announcements, encode_end_of_rib, encode_withdrawals,
};

use crate::mutate::Random;

pub(crate) const BOTH_WAYS: Directions = Directions {
    send: true,
    receive: true,
};

/// Octets of hexadecimal digits.
fn hex(digits: &str) -> Vec<u8> {
    let digits = digits.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The terms of a session, in both directions alike.
pub(crate) fn terms(random: &mut Random) -> Negotiated {
    let bits = random.next();
    let bit = |place: u32| bits >> place & 1 == 1;
    let both = |yes| if yes { BOTH_WAYS } else { Directions::NEITHER };
    Negotiated {
        four_octet_as: bit(0),
        internal: bit(1),
        extended_messages: both(bit(2)),
        enhanced_route_refresh: bit(3),
        ipv4_unicast: NegotiatedFamily {
            agreed: bit(4) || bit(5) || bit(6),
            add_path: both(bit(7)),
            extended_next_hop: bit(8),
        },
        ipv6_unicast: NegotiatedFamily {
            agreed: bit(9),
            add_path: both(bit(10)),
            extended_next_hop: false,
        },
    }
}

/// All variations of the terms that a corpus is written on.
fn all_terms() -> Vec<Negotiated> {
    (0..64).map(|seed| terms(&mut Random::new(seed))).collect()
}

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn nlri(prefix: &str, path_id: u32) -> Nlri {
    Nlri {
        prefix: Prefix::new(prefix.parse().unwrap()),
        path_id,
    }
}

fn path(next_hop: &str) -> PathAttributes {
    PathAttributes::new(next_hop.parse::<IpAddr>().unwrap())
}

/// Paths with few attributes and with all of them.
fn paths() -> Vec<PathAttributes> {
    let numbers = |list: &[u32]| AsSegment::Sequence(list.iter().copied().map(asn).collect());
    let full = |next_hop| PathAttributes {
        origin: Origin::Incomplete,
        as_path: AsPath {
            segments: vec![numbers(&[65001, 4_200_000_000, 23456]), numbers(&[65002])],
        },
        med: Some(50),
        local_pref: Some(200),
        atomic_aggregate: true,
        aggregator: Some((asn(4_200_000_001), [192, 0, 2, 9].into())),
        communities: vec![0xfc00_0064, 0xffff_ff01],
        large_communities: vec![[64512, 1, 2], [64512, 3, 4]],
        extended_communities: vec![[0, 2, 0xfc, 0, 0, 0, 0, 100], [0x43, 0, 0, 0, 0, 0, 0, 1]],
        originator_id: RouterId::new([192, 0, 2, 7].into()),
        cluster_list: vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()],
        unknown: vec![(35, vec![1, 2, 3, 4]), (99, vec![7; 300])],
        ..path(next_hop)
    };
    vec![
        path("192.0.2.1"),
        path("2001:db8::1"),
        full("198.51.100.1"),
        full("2001:db8::2"),
    ]
}

/// UPDATEs on many terms.
pub(crate) fn updates() -> Vec<Vec<u8>> {
    let routes = [
        nlri("10.65.17.64/26", 1),
        nlri("0.0.0.0/0", 2),
        nlri("203.0.113.5/32", 3),
        nlri("2001:db8:1::/48", 1),
        nlri("::/0", 2),
        nlri("2001:db8::5/128", 3),
    ];
    let many: Vec<_> = (0..200).map(|n| nlri(&format!("10.1.{n}.0/24"), n)).collect();
    let mut messages = vec![
        encode_end_of_rib(Family::IPV4_UNICAST),
        encode_end_of_rib(Family::IPV6_UNICAST),
        encode_end_of_rib(Family { afi: 25, safi: 70 }),
    ];
    for terms in all_terms() {
        messages.extend(encode_withdrawals(&routes, terms));
        for path in paths() {
            messages.extend(encode_announcements(&path, &routes, terms));
            messages.extend(encode_announcements(&path, &many, terms));
        }
    }
    // BIRD 2.0.12 (Debian): a route with communities and MED; to a peer of two octets, with AS4_PATH.
    for bird in [
        "0052020000003640010100400200400304c00002018004040000003240050400000064\
         c00808fc000064ffffff01c0200c0000fc0000000001000000021a0a411140",
        "00410200000027400101004002080203fc00fde95ba0400304c0000201c0110e02030000fc000000fde9fa56ea010cac10",
    ] {
        messages.push([vec![0xff; 16], hex(bird)].concat());
    }
    messages.sort();
    messages.dedup();
    messages
}

/// Each capability, twice where it can be short and long.
pub(crate) fn capabilities() -> Vec<Capability> {
    let families = [
        Family::IPV4_UNICAST,
        Family::IPV6_UNICAST,
        Family { afi: 25, safi: 70 },
    ];
    let restart = |notification| GracefulRestart {
        restarted: true,
        notification,
        restart_time: 120,
        families: families.map(|family| (family, true)).to_vec(),
    };
    let long_lived = |family| LongLivedFamily {
        family,
        forwarding_kept: true,
        stale_time: 86400,
    };
    vec![
        Capability::MultiProtocol(Family::IPV4_UNICAST),
        Capability::MultiProtocol(Family::IPV6_UNICAST),
        Capability::RouteRefresh,
        Capability::EnhancedRouteRefresh,
        Capability::ExtendedMessage,
        Capability::FourOctetAs(asn(4_200_000_000)),
        Capability::GracefulRestart(restart(true)),
        Capability::GracefulRestart(restart(false)),
        Capability::LongLivedGracefulRestart(families.map(long_lived).to_vec()),
        Capability::AddPath(families.map(|family| (family, BOTH_WAYS)).to_vec()),
        Capability::ExtendedNextHop(families.map(|family| (family, 2)).to_vec()),
        // A host name and a domain, as FRR sends them.
        Capability::Unknown {
            code: 73,
            value: b"\x04node\x05local".to_vec(),
        },
    ]
}

/// The code and the value of each capability, as they are written.
pub(crate) fn written_capabilities() -> Vec<(u8, Vec<u8>)> {
    let one = |capability| {
        let octets = encode(&Message::Open(open(vec![capability])), Negotiated::plain(true));
        // Header 19, fixed part 9, length of the parameters 1, type and length of the parameter 2.
        (octets[31], octets[33..].to_vec())
    };
    capabilities().into_iter().map(one).collect()
}

fn open(capabilities: Vec<Capability>) -> Open {
    Open {
        asn: asn(64512),
        hold_time: HoldTime::new(90).unwrap(),
        router_id: RouterId::new([192, 0, 2, 1].into()).unwrap(),
        capabilities,
    }
}

/// OPENs: with none, with all, and with so many capabilities that they take the form of RFC 9072.
pub(crate) fn opens() -> Vec<Vec<u8>> {
    let all = capabilities();
    [Vec::new(), all.clone(), vec![all; 8].concat()]
        .map(|capabilities| encode(&Message::Open(open(capabilities)), Negotiated::plain(true)))
        .to_vec()
}

/// NOTIFICATIONs, with and without a text.
pub(crate) fn notifications() -> Vec<Vec<u8>> {
    [
        Notification::cease(3),
        Notification::cease_with_text(2, "maintenance until noon"),
        Notification::cease_with_text(4, "déjà vu"),
        Notification::with_data(3, 9, vec![0x80, 14, 5, 0, 1, 1, 0, 0]),
    ]
    .map(|notification| encode(&Message::Notification(notification), Negotiated::plain(true)))
    .to_vec()
}

/// ROUTE-REFRESH, each subtype.
pub(crate) fn refreshes() -> Vec<Vec<u8>> {
    [
        RefreshKind::Request,
        RefreshKind::BeginOfRr,
        RefreshKind::EndOfRr,
        RefreshKind::Unknown(9),
    ]
    .map(|kind| {
        let family = Family::IPV6_UNICAST;
        encode(&Message::RouteRefresh { family, kind }, Negotiated::plain(true))
    })
    .to_vec()
}

/// All of them, and a KEEPALIVE.
pub(crate) fn all() -> Vec<Vec<u8>> {
    let keepalive = encode(&Message::Keepalive, Negotiated::plain(true));
    [updates(), opens(), notifications(), refreshes(), vec![keepalive]].concat()
}
