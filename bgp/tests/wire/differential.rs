//! This codec and zettabgp, side by side: alike where the library is right, and where it is not the difference is
//! stated, so that this table tells when the library has changed.

use std::net::Ipv4Addr;

use culvert_bgp::id::Prefix;
use culvert_bgp::wire::message::{
    AsPath, AsSegment, Capability, Family, Message, Nlri, Origin, PathAttributes, Update,
};
use culvert_bgp::wire::{decode, encode, encode_announcements, encode_withdrawals, frame};
use ipnet::{IpNet, Ipv4Net};
use proptest::collection::vec;
use proptest::prelude::*;
use zettabgp::BgpMessage as _;
use zettabgp::prelude::{
    BgpAS, BgpASpath, BgpAddrV4, BgpAddrs, BgpAggregatorAS, BgpAtomicAggregate, BgpAttrItem, BgpCapability,
    BgpKeepaliveMessage, BgpLargeCommunity, BgpLargeCommunityList, BgpNotificationMessage, BgpOpenMessage,
    BgpSessionParams, BgpTransportMode, BgpUpdateMessage,
};

use crate::{INTERNAL, address, asn, clean_update, hex, message, update};

/// A session of the library: IPv4, four octets, and no guessing of path identifiers.
fn session() -> BgpSessionParams {
    let mut session = BgpSessionParams::new(
        64512,
        90,
        BgpTransportMode::IPv4,
        Ipv4Addr::new(192, 0, 2, 1),
        Vec::new(),
    );
    session.fuzzy_pathid = false;
    session
}

fn theirs(body: &[u8]) -> BgpUpdateMessage {
    let mut read = BgpUpdateMessage::new();
    read.decode_from(&session(), body).unwrap();
    read
}

fn theirs_prefixes(prefixes: &BgpAddrs) -> Vec<Nlri> {
    match prefixes {
        BgpAddrs::IPV4U(list) => list
            .iter()
            .map(|item| Prefix::new(IpNet::V4(Ipv4Net::new(item.addr, item.prefixlen).unwrap())).into())
            .collect(),
        BgpAddrs::None => Vec::new(),
        other => panic!("not IPv4 unicast: {other:?}"),
    }
}

fn attributes() -> PathAttributes {
    PathAttributes {
        origin: Origin::Egp,
        as_path: AsPath {
            segments: vec![AsSegment::Sequence(vec![asn(64512), asn(4_200_000_001)])],
        },
        med: Some(7),
        local_pref: Some(200),
        communities: vec![1, 2, 0xffff_ff01],
        large_communities: vec![[1, 2, 3], [4, 5, 6]],
        ..PathAttributes::new(address("192.0.2.1").into())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_read_the_same_prefixes_from_what_we_write(list in vec((any::<u32>(), 0..=32_u8), 1..200)) {
        let prefixes: Vec<_> = list
            .into_iter()
            .map(|(address, bits)| Prefix::new(IpNet::V4(Ipv4Net::new(address.into(), bits).unwrap())).into())
            .collect();
        for octets in encode_withdrawals(&prefixes, INTERNAL) {
            let ours = clean_update(&octets, INTERNAL).withdrawn;
            prop_assert_eq!(theirs_prefixes(&theirs(&octets[19..]).withdraws), ours);
        }
    }

    #[test]
    fn both_read_the_same_from_what_the_library_writes(list in vec((0..0xe000_0000_u32, 0..=32_u8), 1..200)) {
        let items = list.iter().map(|(address, bits)| {
            // The library writes host bits as they are, and so they are cleared first.
            let net = Ipv4Net::new((*address).into(), *bits).unwrap().trunc();
            BgpAddrV4::new(net.addr(), net.prefix_len())
        });
        let mut sent = BgpUpdateMessage::new();
        sent.withdraws = BgpAddrs::IPV4U(items.collect());
        let mut body = [0; 4000];
        let length = sent.encode_to(&session(), &mut body).unwrap();
        let ours = clean_update(&message(2, &body[..length]), INTERNAL);
        prop_assert_eq!(ours.withdrawn, theirs_prefixes(&sent.withdraws));
    }

    #[test]
    fn both_find_the_same_end_of_a_message(length in 19..=4096_u16, kind in 1..=5_u8) {
        let mut octets = vec![0xff; 16];
        octets.extend(length.to_be_bytes());
        octets.push(kind);
        octets.resize(4096, 0);
        // The library knows no least length of a type.
        if let Ok(Some(ours)) = frame(&octets, INTERNAL) {
            let (_, body) = session().decode_message_head(&octets).unwrap();
            prop_assert_eq!(ours, body + 19);
        }
    }
}

#[test]
fn both_read_the_same_attributes_from_what_we_write() {
    let sent = attributes();
    let octets = encode_announcements(&sent, &[crate::nlri("10.0.1.0/24")], INTERNAL);
    let read = theirs(&octets[0][19..]);
    assert_eq!(theirs_prefixes(&read.updates), [crate::nlri("10.0.1.0/24")]);
    assert_eq!(
        read.get_attr_origin().map(|origin| origin.value),
        Some(zettabgp::prelude::BgpAttrOrigin::Egp)
    );
    assert_eq!(read.get_attr_nexthop().unwrap().value.to_string(), "192.0.2.1");
    assert_eq!(read.get_attr_aspath().unwrap().to_string(), "64512,4200000001");
    let communities = &read.get_attr_communitylist().unwrap().value;
    assert_eq!(
        communities.iter().map(|one| one.value).collect::<Vec<_>>(),
        sent.communities
    );
    let large = &read.get_attr_largecommunitylist().unwrap().value;
    let large: Vec<_> = large.iter().map(|one| [one.ga, one.ldp1, one.ldp2]).collect();
    assert_eq!(large, sent.large_communities);
    let numbers: Vec<u32> = read
        .attrs
        .iter()
        .filter_map(|item| match item {
            BgpAttrItem::MED(med) => Some(med.value),
            BgpAttrItem::LocalPref(preference) => Some(preference.value),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [7, 200]);
}

#[test]
fn both_write_the_same_open_and_keepalive() {
    let ours = culvert_bgp::wire::message::Open {
        asn: asn(64512),
        hold_time: culvert_bgp::id::HoldTime::new(90).unwrap(),
        router_id: culvert_bgp::id::RouterId::new(address("192.0.2.1")).unwrap(),
        capabilities: vec![Capability::MultiProtocol(Family::IPV4_UNICAST)],
    };
    let mut theirs = BgpOpenMessage::new();
    theirs.as_num = 64512;
    theirs.hold_time = 90;
    theirs.router_id = address("192.0.2.1");
    theirs.caps = vec![BgpCapability::SafiIPv4u];
    let mut body = [0; 100];
    let length = theirs.encode_to(&session(), &mut body).unwrap();
    assert_eq!(
        encode(&Message::Open(ours), INTERNAL),
        message(1, &body[..length])
    );
    assert_eq!(
        BgpKeepaliveMessage {}.encode_to(&session(), &mut body).unwrap(),
        0
    );
    assert_eq!(encode(&Message::Keepalive, INTERNAL), message(4, &[]));
}

/// What the library writes for one attribute.
fn written(item: &BgpAttrItem) -> Vec<u8> {
    let mut octets = [0xee; 64];
    let length = item.encode_to(&session(), &mut octets).unwrap();
    octets[..length].to_vec()
}

#[test]
fn known_difference_the_library_writes_sequences_as_sets() {
    let path: BgpASpath = "64512,65001".parse().unwrap();
    let octets = written(&BgpAttrItem::ASPath(path));
    // Segment type 1 is AS_SET (RFC 4271 §4.3).
    assert_eq!(octets, hex("50 02 000a 01 02 0000fc00 0000fde9"));
    let base = hex("40 01 01 00 40 03 04 c0000201 40 05 04 00000064");
    let ours = decode(
        &update(&[], &[base, octets].concat(), &hex("18 0a0001")),
        INTERNAL,
    )
    .unwrap();
    assert_eq!(ours.faults.len(), 1, "an AS_SET that was not refused");
}

#[test]
fn known_difference_the_library_writes_aggregates_wrongly() {
    // AGGREGATOR: length 4 around whatever the buffer held, here 0xee. RFC 4271 §5.1.7 wants eight octets.
    let aggregator = BgpAggregatorAS::decode_from(&session(), &hex("0000fc00 c0000201")).unwrap();
    assert_eq!(
        written(&BgpAttrItem::AggregatorAS(aggregator)),
        hex("40 07 04 eeeeeeee")
    );
    // ATOMIC_AGGREGATE: length 4. RFC 4271 §5.1.6 wants none.
    let atomic = BgpAtomicAggregate {
        value: Ipv4Addr::UNSPECIFIED,
    };
    assert_eq!(
        written(&BgpAttrItem::AtomicAggregate(atomic)),
        hex("40 06 04 00000000")
    );
}

#[test]
fn known_difference_the_library_marks_large_communities_partial() {
    let mut list = BgpLargeCommunityList::new();
    list.value.insert(BgpLargeCommunity {
        ga: 1,
        ldp1: 2,
        ldp2: 3,
    });
    let octets = written(&BgpAttrItem::LargeCommunityList(list));
    assert_eq!(octets.first(), Some(&0xf0));
    let sent = PathAttributes {
        large_communities: vec![[1, 2, 3]],
        ..attributes()
    };
    let ours = encode_announcements(&sent, &[crate::nlri("10.0.1.0/24")], INTERNAL).concat();
    let expected = hex("c0 20 0c 00000001 00000002 00000003");
    assert!(ours.windows(expected.len()).any(|window| window == expected));
}

#[test]
fn known_difference_the_library_takes_different_systems_for_equal() {
    assert!(BgpAS::new(65536) == BgpAS::new(1));
    assert_ne!(asn(65536), asn(1));
}

#[test]
fn known_difference_the_library_accepts_wrong_lengths() {
    let rows = [
        ("ORIGIN of three octets", "40 01 03 000000"),
        ("NEXT_HOP of five octets", "40 03 05 c000020100"),
        ("ATOMIC_AGGREGATE of five octets", "40 06 05 0000000000"),
        (
            "a segment that says five and holds one",
            "40 02 06 02 05 0000fc00",
        ),
    ];
    for (what, attribute) in rows {
        let octets = update(&[], &hex(attribute), &hex("18 0a0001"));
        let mut read = BgpUpdateMessage::new();
        assert!(
            read.decode_from(&session(), &octets[19..]).is_ok(),
            "the library refuses {what}"
        );
        let code = hex(attribute)[1];
        let ours = decode(&octets, INTERNAL).unwrap();
        assert!(
            ours.faults.iter().any(|fault| fault.attribute == code),
            "we accept {what}"
        );
    }
}

#[test]
fn known_difference_the_library_keeps_repeated_attributes() {
    let attributes = hex("40 01 01 00 40 01 01 02");
    let read = theirs(&update(&[], &attributes, &hex("18 0a0001"))[19..]);
    assert_eq!(read.attrs.len(), 2);
}

#[test]
fn known_difference_the_library_fails_on_families_it_does_not_know() {
    let octets = update(&[], &hex("80 0f 05 ffff ff 0000"), &[]);
    assert!(
        BgpUpdateMessage::new()
            .decode_from(&session(), &octets[19..])
            .is_err()
    );
    assert_eq!(
        decode(&octets, INTERNAL).unwrap().message,
        Message::Update(Update::default())
    );
}

#[test]
fn known_difference_the_library_panics_where_octets_are_missing() {
    // What a guard in this crate stands before: each of these would end a daemon that handed them on.
    for attribute in [
        "40 02 02 02 01",
        "c0 08 03 000000",
        "c0 20 04 00000000",
        "80 0e 01 00",
    ] {
        let octets = update(&[], &hex(attribute), &hex("18 0a0001"));
        let body = octets[19..].to_vec();
        let outcome = std::panic::catch_unwind(|| {
            let _ = BgpUpdateMessage::new().decode_from(&session(), &body);
        });
        assert!(outcome.is_err(), "the library no longer panics on {attribute}");
        assert!(decode(&octets, INTERNAL).is_ok() || attribute.starts_with("80 0e"));
    }
}

#[test]
fn known_difference_the_library_reads_past_a_length_below_the_header() {
    let mut octets = message(4, &[]);
    octets[17] = 5;
    let outcome =
        std::panic::catch_unwind(|| session().decode_message_head(&octets).map(|(_, length)| length));
    // A panic where arithmetic is checked, more than 65,000 octets of body where it is not.
    assert!(outcome.is_err() || outcome.is_ok_and(|length| length.is_ok_and(|length| length > 4096)));
    assert!(frame(&octets, INTERNAL).is_err());
}

#[test]
fn known_difference_the_library_has_no_room_for_the_data_of_a_notification() {
    let mut sent = BgpNotificationMessage::new();
    sent.error_code = 6;
    sent.error_subcode = 2;
    let mut body = [0; 300];
    assert_eq!(sent.encode_to(&session(), &mut body).unwrap(), 4);
    let ours = culvert_bgp::wire::message::Notification::cease(2);
    assert_eq!(encode(&Message::Notification(ours), INTERNAL).len(), 21);
}

#[test]
fn known_difference_the_library_refuses_a_host_name_with_a_domain() {
    let open = hex("04 fc00 005a c0000201 09 02 07 49 05 02 6162 01 63");
    assert!(BgpOpenMessage::new().decode_from(&session(), &open).is_err());
    let Message::Open(ours) = decode(&message(1, &open), INTERNAL).unwrap().message else {
        panic!()
    };
    assert_eq!(
        ours.capabilities,
        [Capability::Unknown {
            code: 73,
            value: hex("02616201 63")
        }]
    );
}
