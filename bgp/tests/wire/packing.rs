//! Many routes in few messages.

use std::net::Ipv4Addr;

use culvert_bgp::id::Prefix;
use culvert_bgp::wire::message::{AsPath, AsSegment, Family, Message, Nlri, PathAttributes, Update};
use culvert_bgp::wire::{
    MAX_LENGTH, decode, encode, encode_announcements, encode_end_of_rib, encode_withdrawals, frame,
};

use crate::{INTERNAL, address, asn, clean_update, hex, nlri, update};

/// Blocks of /26, as a cluster has them, with some shorter and longer ones among them.
fn blocks(count: u32) -> Vec<Nlri> {
    (0..count)
        .map(|number| {
            let bits = match number % 50 {
                0 => 24,
                1 => 32,
                _ => 26,
            };
            let address = Ipv4Addr::from(0x0a00_0000 + number * 256);
            Prefix::new(ipnet::IpNet::new(address.into(), bits).unwrap()).into()
        })
        .collect()
}

fn attributes() -> PathAttributes {
    PathAttributes {
        as_path: AsPath {
            segments: vec![AsSegment::Sequence(vec![asn(65001)])],
        },
        local_pref: Some(100),
        ..PathAttributes::new(address("192.0.2.1").into())
    }
}

/// The messages are whole, none is too long, none could have taken the first prefix of the next.
fn check(messages: &[Vec<u8>]) -> Vec<Update> {
    for (position, octets) in messages.iter().enumerate() {
        assert_eq!(frame(octets, INTERNAL), Ok(Some(octets.len())));
        if position + 1 < messages.len() {
            assert!(
                octets.len() > MAX_LENGTH - 5,
                "message {position} has room left: {}",
                octets.len()
            );
        }
    }
    messages
        .iter()
        .map(|octets| clean_update(octets, INTERNAL))
        .collect()
}

#[test]
fn two_thousand_announcements_take_the_fewest_messages_and_arrive_whole() {
    let (sent, attributes) = (blocks(2000), attributes());
    let updates = check(&encode_announcements(&attributes, &sent, INTERNAL));
    assert_eq!(updates.len(), 3);
    assert!(
        updates
            .iter()
            .all(|update| update.attributes.as_deref() == Some(&attributes))
    );
    assert!(updates.iter().all(|update| update.withdrawn.is_empty()));
    let received: Vec<_> = updates.into_iter().flat_map(|update| update.announced).collect();
    assert_eq!(received, sent);
}

#[test]
fn two_thousand_withdrawals_take_the_fewest_messages_and_arrive_whole() {
    let sent = blocks(2000);
    let updates = check(&encode_withdrawals(&sent, INTERNAL));
    assert_eq!(updates.len(), 3);
    assert!(updates.iter().all(|update| update.announced.is_empty()));
    let received: Vec<_> = updates.into_iter().flat_map(|update| update.withdrawn).collect();
    assert_eq!(received, sent);
}

#[test]
fn nothing_to_say_takes_no_message() {
    assert!(encode_withdrawals(&[], INTERNAL).is_empty());
    assert!(encode_announcements(&attributes(), &[], INTERNAL).is_empty());
}

#[test]
fn attributes_that_leave_room_for_one_prefix_still_announce_it() {
    // Header 19, lengths 4, the other attributes 4 + 9 + 7 + 7, the header of a long one 4: 4042 octets are left.
    let with = |octets| PathAttributes {
        unknown: vec![(99, vec![7; octets])],
        ..attributes()
    };
    let sent = [nlri("10.0.1.0/24"), nlri("10.0.2.0/24")];
    let fitting = encode_announcements(&with(4042 - 4), &sent, INTERNAL);
    assert_eq!(fitting.iter().map(Vec::len).collect::<Vec<_>>(), [4096, 4096]);
    let announced: Vec<_> = fitting
        .iter()
        .flat_map(|octets| clean_update(octets, INTERNAL).announced)
        .collect();
    assert_eq!(announced, sent);
    // One octet more and it cannot be announced: the peer must not stay with an older path.
    let beyond = encode_announcements(&with(4042 - 3), &sent, INTERNAL);
    assert_eq!(beyond, encode_withdrawals(&sent, INTERNAL));
}

#[test]
fn an_update_too_large_for_one_message_becomes_several() {
    let sent = Update {
        withdrawn: vec![nlri("172.16.0.0/12")],
        announced: blocks(2000),
        attributes: Some(attributes().into()),
        ..Update::default()
    };
    let octets = encode(&Message::Update(sent.clone()), INTERNAL);
    let (mut rest, mut withdrawn, mut announced) = (&octets[..], Vec::new(), Vec::new());
    while let Some(length) = frame(rest, INTERNAL).unwrap() {
        let update = clean_update(&rest[..length], INTERNAL);
        withdrawn.extend(update.withdrawn);
        announced.extend(update.announced);
        rest = &rest[length..];
    }
    assert!(rest.is_empty());
    assert_eq!((withdrawn, announced), (sent.withdrawn, sent.announced));
}

#[test]
fn a_path_of_more_than_255_numbers_is_written_in_segments() {
    // RFC 4271 §5.1.2 (test): a full segment is followed by another.
    let numbers: Vec<_> = (1..=600).map(asn).collect();
    let long = PathAttributes {
        as_path: AsPath {
            segments: vec![AsSegment::Sequence(numbers.clone())],
        },
        ..attributes()
    };
    let messages = encode_announcements(&long, &[nlri("10.0.1.0/24")], INTERNAL);
    let read = clean_update(&messages[0], INTERNAL).attributes.unwrap();
    let segments: Vec<Vec<_>> = read
        .as_path
        .segments
        .iter()
        .map(|segment| match segment {
            AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => numbers.clone(),
        })
        .collect();
    assert_eq!(segments.iter().map(Vec::len).collect::<Vec<_>>(), [255, 255, 90]);
    assert_eq!(segments.concat(), numbers);
}

#[test]
fn the_preference_goes_to_internal_peers_only() {
    // RFC 4271 §5.1.5 (test).
    let read = |attributes: &PathAttributes, negotiated| {
        let messages = encode_announcements(attributes, &[nlri("10.0.1.0/24")], negotiated);
        clean_update(&messages[0], negotiated)
            .attributes
            .unwrap()
            .local_pref
    };
    assert_eq!(read(&attributes(), crate::EXTERNAL), None);
    assert_eq!(read(&attributes(), INTERNAL), Some(100));
    assert_eq!(
        read(
            &PathAttributes {
                local_pref: None,
                ..attributes()
            },
            INTERNAL
        ),
        Some(100)
    );
}

#[test]
fn a_family_that_was_not_agreed_on_is_left_out() {
    let mixed = [nlri("2001:db8::/32"), nlri("10.0.1.0/24")];
    let updates = check(&encode_withdrawals(&mixed, INTERNAL));
    assert_eq!(updates[0].withdrawn, [nlri("10.0.1.0/24")]);
    // And what is left of nothing but such is no End-of-RIB.
    let update = Update {
        withdrawn: vec![nlri("2001:db8::/32")],
        ..Update::default()
    };
    assert!(encode(&Message::Update(update), INTERNAL).is_empty());
}

#[test]
fn the_end_of_rib_of_any_family_comes_back_as_such() {
    // RFC 4724 §2 (test): an UPDATE of nothing cannot mean anything else.
    let nothing = encode(&Message::Update(Update::default()), INTERNAL);
    assert_eq!(nothing, encode_end_of_rib(Family::IPV4_UNICAST));
    for family in [
        Family::IPV4_UNICAST,
        Family::IPV6_UNICAST,
        Family { afi: 25, safi: 70 },
    ] {
        let octets = encode_end_of_rib(family);
        assert_eq!(clean_update(&octets, INTERNAL).end_of_rib, Some(family));
        let update = Update {
            end_of_rib: Some(family),
            ..Update::default()
        };
        assert_eq!(encode(&Message::Update(update), INTERNAL), octets);
        assert_eq!(decode(&octets, INTERNAL).unwrap().faults, []);
    }
}

#[test]
fn no_large_community_is_sent_twice() {
    // RFC 8092 §4 (test).
    let twice = PathAttributes {
        large_communities: vec![[2, 0, 0], [1, 0, 0], [2, 0, 0]],
        ..attributes()
    };
    let messages = encode_announcements(&twice, &[nlri("10.0.1.0/24")], INTERNAL);
    let read = clean_update(&messages[0], INTERNAL).attributes.unwrap();
    assert_eq!(read.large_communities, [[1, 0, 0], [2, 0, 0]]);
}

#[test]
fn unknown_transitive_attributes_are_passed_on_with_partial_and_others_dropped() {
    // In: 99 and 50 transitive, out of order; 60 not transitive; 16 (EXTENDED_COMMUNITIES), which is known.
    let unknown = "c0 63 02 beef 80 3c 01 07 c0 32 01 01 c0 10 08 0002fc0000000064";
    let base = "40 01 01 00 40 02 00 40 03 04 c0000201 40 05 04 00000064";
    let octets = update(&[], &hex(&[base, unknown].concat()), &hex("18 0a0001"));
    let read = clean_update(&octets, INTERNAL);
    let attributes = read.attributes.clone().unwrap();
    assert_eq!(attributes.extended_communities, [[0, 2, 0xfc, 0, 0, 0, 0, 0x64]]);
    assert_eq!(attributes.unknown, [(50, vec![1]), (99, vec![0xbe, 0xef])]);
    // RFC 4271 §5 (test): Partial (0x20) on what was not recognized, in ascending order of type.
    let passed_on = "c0 10 08 0002fc0000000064 e0 32 01 01 e0 63 02 beef";
    let expected = update(&[], &hex(&[base, passed_on].concat()), &hex("18 0a0001"));
    assert_eq!(encode(&Message::Update(read), INTERNAL), expected);
}
