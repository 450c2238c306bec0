//! What holds for every message: those that a speaker can say, those that were damaged, and any octets at all.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use culvert_bgp::id::{Asn, HoldTime, Prefix, RouterId};
use culvert_bgp::wire::message::{
    AsPath, AsSegment, Capability, Directions, Family, GracefulRestart, LongLivedFamily, Message, Nlri,
    Notification, Open, Origin, PathAttributes, RefreshKind, Update,
};
use culvert_bgp::wire::{Decoded, Decoder, Negotiated, NegotiatedFamily, Verdict, decode, encode, frame};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

/// Every octet sequence costs the same little time, so that many can be tried.
fn many(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What both ends may do in both directions alike, so that one of them reads what the other writes.
fn both_ways(yes: bool) -> Directions {
    Directions {
        send: yes,
        receive: yes,
    }
}

fn sessions() -> impl Strategy<Value = Negotiated> {
    (any::<[bool; 6]>(), any::<[bool; 2]>(), 0..8_u8).prop_map(
        |([four_octet_as, internal, extended, enhanced, ipv6, next_hop], [path4, path6], rare)| Negotiated {
            four_octet_as,
            internal,
            extended_messages: both_ways(extended),
            enhanced_route_refresh: enhanced,
            ipv4_unicast: NegotiatedFamily {
                agreed: rare != 0,
                add_path: both_ways(path4),
                extended_next_hop: next_hop,
            },
            ipv6_unicast: NegotiatedFamily {
                agreed: ipv6,
                add_path: both_ways(path6),
                extended_next_hop: false,
            },
        },
    )
}

fn autonomous_systems() -> impl Strategy<Value = Asn> {
    prop_oneof![1..=u32::from(u16::MAX), 1..=u32::MAX].prop_map(|number| Asn::new(number).unwrap())
}

fn families() -> impl Strategy<Value = Family> {
    prop_oneof![
        Just(Family::IPV4_UNICAST),
        Just(Family::IPV6_UNICAST),
        (any::<u16>(), any::<u8>()).prop_map(|(afi, safi)| Family { afi, safi }),
    ]
}

/// Unicast prefixes of IPv4.
fn prefixes() -> impl Strategy<Value = Prefix> {
    (0..0xe000_0000_u32, 0..=32_u8).prop_map(|(address, bits)| {
        Prefix::new(IpNet::V4(Ipv4Net::new(Ipv4Addr::from(address), bits).unwrap()))
    })
}

/// Unicast prefixes of IPv6.
fn prefixes_of_ipv6() -> impl Strategy<Value = Prefix> {
    (0..0xff00_u128 << 112, 0..=128_u8).prop_map(|(address, bits)| {
        Prefix::new(IpNet::V6(Ipv6Net::new(Ipv6Addr::from(address), bits).unwrap()))
    })
}

/// Destinations, each once, as a session on these terms has them.
fn destinations(
    prefixes: impl Strategy<Value = Prefix>,
    add_path: bool,
) -> impl Strategy<Value = BTreeSet<Nlri>> {
    btree_set((prefixes, any::<u32>()), 0..100).prop_map(move |list| {
        list.into_iter()
            .map(|(prefix, path_id)| Nlri {
                prefix,
                path_id: if add_path { path_id } else { 0 },
            })
            .collect()
    })
}

fn hosts() -> impl Strategy<Value = IpAddr> {
    (0x0100_0000..0xe000_0000_u32).prop_map(|address| Ipv4Addr::from(address).into())
}

fn hosts_of_ipv6() -> impl Strategy<Value = IpAddr> {
    (1..0xff00_u128 << 112).prop_map(|address| Ipv6Addr::from(address).into())
}

/// Paths that come back as they went: segments of 1 to 255 on every session. On a session of two octets AS4_PATH joins
/// segments where it meets AS_PATH, so one segment is the most that comes back the same.
fn paths(segments: usize) -> impl Strategy<Value = AsPath> {
    vec(
        vec(autonomous_systems(), 1..20).prop_map(AsSegment::Sequence),
        0..=segments,
    )
    .prop_map(|segments| AsPath { segments })
}

prop_compose! {
    /// Attributes as a decoder leaves them: lists ascending and without repetition, and the preference where it belongs.
    fn path_attributes(negotiated: Negotiated)(
        origin in prop_oneof![Just(Origin::Igp), Just(Origin::Egp), Just(Origin::Incomplete)],
        as_path in paths(if negotiated.four_octet_as { 4 } else { 1 }),
        med in option::of(any::<u32>()),
        local_pref in any::<u32>(),
        atomic_aggregate in any::<bool>(),
        aggregator in option::of((autonomous_systems(), any::<u32>().prop_map(Ipv4Addr::from))),
        communities in btree_set(any::<u32>(), 0..80),
        large_communities in btree_set(any::<[u32; 3]>(), 0..30),
        extended in btree_set(any::<[u8; 8]>(), 0..30),
        originator in option::of(1..=u32::MAX),
        clusters in vec(any::<u32>().prop_map(Ipv4Addr::from), 0..70),
        unknown in proptest::collection::btree_map(33..=255_u8, vec(any::<u8>(), 0..300), 0..3),
    ) -> PathAttributes {
        // RFC 6793 §4.2.3: an aggregator that needs no four octets makes an AS4_PATH beside it stale only together
        // with AS4_AGGREGATOR, which then is not sent: nothing to avoid here.
        PathAttributes {
            origin, as_path, med,
            local_pref: negotiated.internal.then_some(local_pref),
            atomic_aggregate, aggregator,
            communities: communities.into_iter().collect(),
            large_communities: large_communities.into_iter().collect(),
            // RFC 4360 §6: those that are not transitive do not leave the AS, and RFC 4456 §8: nor do these two.
            extended_communities: extended
                .into_iter()
                .filter(|[kind, ..]| negotiated.internal || kind & 0x40 == 0)
                .collect(),
            originator_id: originator
                .filter(|_| negotiated.internal)
                .and_then(|id| RouterId::new(Ipv4Addr::from(id))),
            cluster_list: if negotiated.internal { clusters } else { Vec::new() },
            unknown: unknown.into_iter().collect(),
            ..PathAttributes::new(Ipv4Addr::new(192, 0, 2, 1).into())
        }
    }
}

/// Routes that go into one message: of IPv4 with a next hop of IPv4 announced and withdrawn at once, others one or the
/// other.
fn updates(negotiated: Negotiated) -> impl Strategy<Value = Update> {
    let (ipv4, ipv6) = (negotiated.ipv4_unicast, negotiated.ipv6_unicast);
    let nothing = || Just(BTreeSet::new());
    let routes_of_ipv4 = || destinations(prefixes(), ipv4.add_path.send);
    let routes_of_ipv6 = || destinations(prefixes_of_ipv6(), ipv6.add_path.send);
    let (has4, has6) = (u32::from(ipv4.agreed), u32::from(ipv6.agreed));
    let other_hop = u32::from(ipv4.extended_next_hop) * has4;
    let routes = prop_oneof![
        1 => (nothing(), nothing(), hosts()).boxed(),
        4 * has4 => (routes_of_ipv4(), routes_of_ipv4(), hosts()).boxed(),
        2 * other_hop => (nothing(), routes_of_ipv4(), hosts_of_ipv6()).boxed(),
        2 * has6 => (nothing(), routes_of_ipv6(), hosts_of_ipv6()).boxed(),
        has6 => (routes_of_ipv6(), nothing(), hosts_of_ipv6()).boxed(),
    ];
    (routes, path_attributes(negotiated)).prop_map(|((withdrawn, announced, next_hop), attributes)| {
        let withdrawn: Vec<_> = withdrawn.difference(&announced).copied().collect();
        let attributes = PathAttributes {
            next_hop,
            ..attributes
        };
        let attributes = (!announced.is_empty()).then(|| Arc::new(attributes));
        let is_end = withdrawn.is_empty() && announced.is_empty();
        Update {
            withdrawn,
            announced: announced.into_iter().collect(),
            attributes,
            beside: None,
            end_of_rib: is_end.then_some(Family::IPV4_UNICAST),
        }
    })
}

fn capabilities() -> impl Strategy<Value = Capability> {
    let restart = (
        any::<bool>(),
        any::<bool>(),
        0..=4095_u16,
        vec((families(), any::<bool>()), 0..5),
    );
    let directions = (1..=3_u8).prop_map(|bits| Directions {
        send: bits & 2 != 0,
        receive: bits & 1 != 0,
    });
    let long_lived = (families(), any::<bool>(), 0..=0x00ff_ffff_u32);
    prop_oneof![
        families().prop_map(Capability::MultiProtocol),
        Just(Capability::RouteRefresh),
        restart.prop_map(|(restarted, notification, restart_time, families)| {
            Capability::GracefulRestart(GracefulRestart {
                restarted,
                notification,
                restart_time,
                families,
            })
        }),
        Just(Capability::EnhancedRouteRefresh),
        Just(Capability::ExtendedMessage),
        vec((families(), directions), 0..5).prop_map(Capability::AddPath),
        vec((families(), any::<u16>()), 0..5).prop_map(Capability::ExtendedNextHop),
        vec(long_lived, 0..5).prop_map(|families| {
            let family = |(family, forwarding_kept, stale_time)| LongLivedFamily {
                family,
                forwarding_kept,
                stale_time,
            };
            Capability::LongLivedGracefulRestart(families.into_iter().map(family).collect())
        }),
        (72..=255_u8, vec(any::<u8>(), 0..100)).prop_map(|(code, value)| Capability::Unknown { code, value }),
    ]
}

fn opens() -> impl Strategy<Value = Open> {
    let hold_time = prop_oneof![Just(0_u16), 3..=u16::MAX];
    (
        autonomous_systems(),
        hold_time,
        1..=u32::MAX,
        vec(capabilities(), 0..20),
    )
        .prop_map(|(asn, hold_time, router_id, mut capabilities)| {
            capabilities.insert(0, Capability::FourOctetAs(asn));
            Open {
                asn,
                hold_time: HoldTime::new(hold_time).unwrap(),
                router_id: RouterId::new(Ipv4Addr::from(router_id)).unwrap(),
                capabilities,
            }
        })
}

fn messages(negotiated: Negotiated) -> impl Strategy<Value = Message> {
    let notification = (any::<u8>(), any::<u8>(), vec(any::<u8>(), 0..300));
    prop_oneof![
        4 => updates(negotiated).prop_map(Message::Update),
        2 => opens().prop_map(Message::Open),
        1 => notification.prop_map(|(code, subcode, data)| {
            Message::Notification(Notification::with_data(code, subcode, data))
        }),
        1 => families().prop_map(|family| Message::RouteRefresh { family, kind: RefreshKind::Request }),
        1 => Just(Message::Keepalive),
    ]
}

fn said() -> impl Strategy<Value = (Negotiated, Message)> {
    sessions().prop_flat_map(|negotiated| (Just(negotiated), messages(negotiated)))
}

/// What every answer of the decoder owes to its caller.
fn check(octets: &[u8], negotiated: Negotiated) {
    let Ok(Decoded { message, faults }) = decode(octets, negotiated) else {
        return;
    };
    assert!(
        faults.iter().all(|fault| fault.verdict != Verdict::Reset),
        "{faults:?}"
    );
    let Message::Update(update) = &message else {
        assert!(faults.is_empty(), "{faults:?}");
        return;
    };
    assert_eq!(
        update.attributes.is_some(),
        !update.announced.is_empty(),
        "{update:?}"
    );
    if faults
        .iter()
        .any(|fault| fault.verdict == Verdict::TreatAsWithdraw)
    {
        assert_eq!(update.announcements().count(), 0, "{update:?}");
    }
    if let Some(attributes) = &update.attributes {
        assert!(
            attributes.local_pref.is_some() == negotiated.internal,
            "{attributes:?}"
        );
    }
    // What is remembered of one message changes nothing in the reading of the next.
    let mut decoder = Decoder::new(negotiated);
    for _ in 0..2 {
        let read = decoder.decode(octets).unwrap();
        assert_eq!((&read.message, &read.faults), (&message, &faults));
    }
    // Whatever was accepted can be said again, and means the same.
    let again = encode(&message, negotiated);
    if frame(&again, negotiated) == Ok(Some(again.len())) {
        let second = decode(&again, negotiated).unwrap();
        assert_eq!(second.faults, [], "{message:?}");
    }
}

/// A header that passes, so that the decoder gets to the body.
fn with_header(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    octets.extend(u16::try_from(19 + body.len()).unwrap_or(u16::MAX).to_be_bytes());
    octets.push(kind);
    octets.extend(body);
    octets
}

/// A body of UPDATE whose lengths add up, around any octets.
fn with_lengths(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for field in [withdrawn, attributes] {
        body.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
        body.extend(field);
    }
    body.extend(announced);
    with_header(2, &body)
}

proptest! {
    #![proptest_config(many(2_000))]

    #[test]
    fn what_is_said_is_understood((negotiated, message) in said()) {
        let octets = encode(&message, negotiated);
        prop_assume!(frame(&octets, negotiated) == Ok(Some(octets.len())));
        let decoded = decode(&octets, negotiated).unwrap();
        prop_assert_eq!(decoded.faults, []);
        prop_assert_eq!(decoded.message, message);
    }

    #[test]
    fn a_message_that_is_cut_short_is_never_taken_for_whole(
        (negotiated, message) in said(),
        cut in any::<prop::sample::Index>(),
    ) {
        let octets = encode(&message, negotiated);
        let length = frame(&octets, negotiated).unwrap().unwrap();
        let part = &octets[..cut.index(length)];
        prop_assert_eq!(frame(part, negotiated), Ok(None));
        prop_assert!(decode(part, negotiated).is_err());
        // The same octets under a length that fits them: any answer will do, but there is one.
        if part.len() >= 19 {
            check(&with_header(part[18], &part[19..]), negotiated);
        }
    }
}

proptest! {
    #![proptest_config(many(20_000))]

    #[test]
    fn a_damaged_message_gets_an_answer(
        (negotiated, message) in said(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..8),
    ) {
        let mut octets = encode(&message, negotiated);
        for (place, value, how) in damage {
            // The header stays, so that the damage reaches the body; its length is put right below.
            let Some(room) = octets.len().checked_sub(19).filter(|room| *room > 0) else { break };
            let place = 19 + place.index(room);
            match how {
                0 => octets[place] = value,
                1 => octets.insert(place, value),
                _ => drop(octets.remove(place)),
            }
        }
        check(&with_header(octets[18], &octets[19..]), negotiated);
        check(&octets, negotiated);
    }

    #[test]
    fn any_octets_get_an_answer(octets in vec(any::<u8>(), 0..400), kind in 0..7_u8, negotiated in sessions()) {
        let _ = frame(&octets, negotiated);
        check(&octets, negotiated);
        check(&with_header(kind, &octets), negotiated);
    }

    #[test]
    fn any_attributes_get_an_answer(
        attributes in vec((0..=0x1f_u8, prop_oneof![0..=34_u8, any::<u8>()], vec(0..6_u8, 0..24)), 0..8),
        announced in vec(prop_oneof![0..34_u8, any::<u8>()], 0..8),
        negotiated in sessions(),
    ) {
        // Small numbers in the values make counts and lengths that nearly fit.
        let mut area = Vec::new();
        for (flags, code, value) in attributes {
            area.extend([flags << 3 & !0x10, code, u8::try_from(value.len()).unwrap()]);
            area.extend(value);
        }
        check(&with_lengths(&[], &area, &announced), negotiated);
        check(&with_lengths(&announced, &area, &[]), negotiated);
    }
}
