//! Sessions on which AS numbers have two octets (RFC 6793): what AS4_PATH and AS4_AGGREGATOR restore.

use std::sync::Arc;

use culvert_bgp::wire::message::{AsPath, AsSegment, Message, PathAttributes, Update};
use culvert_bgp::wire::{Verdict, decode, encode};

use crate::{TWO_OCTETS, address, asn, attribute, hex, nlri, update};

const BASE: &str = "40 01 01 00 40 03 04 c0000201";

fn numbers(octets: usize, numbers: &[u32]) -> Vec<u8> {
    let mut value = vec![2, u8::try_from(numbers.len()).unwrap()];
    for number in numbers {
        value.extend(&number.to_be_bytes()[4 - octets..]);
    }
    value
}

/// The path and the aggregator that come out, and the attributes that were at fault.
type Outcome = (Vec<Vec<u32>>, Option<(u32, String)>, Vec<(u8, Verdict)>);

fn read(more: &[Vec<u8>]) -> Outcome {
    let attributes = [hex(BASE), more.concat()].concat();
    let decoded = decode(&update(&[], &attributes, &hex("18 0a0001")), TWO_OCTETS).unwrap();
    let Message::Update(update) = decoded.message else {
        panic!("not an UPDATE")
    };
    let faults = decoded
        .faults
        .iter()
        .map(|fault| (fault.attribute, fault.verdict))
        .collect();
    let Some(attributes) = update.attributes else {
        return (Vec::new(), None, faults);
    };
    let segments = attributes
        .as_path
        .segments
        .iter()
        .map(|segment| match segment {
            AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => {
                numbers.iter().map(|asn| asn.get()).collect()
            }
        })
        .collect();
    let aggregator = attributes
        .aggregator
        .map(|(asn, address)| (asn.get(), address.to_string()));
    (segments, aggregator, faults)
}

#[test]
fn as4_path_replaces_the_tail_of_as_path() {
    // RFC 6793 §4.2.3 (test): AS_PATH, AS4_PATH, and what they make together.
    let cases: &[(&[u32], &[u32], &[u32])] = &[
        // Speakers of two octets prepended 65001 and 65002 on the way.
        (
            &[65001, 65002, 23456, 65010],
            &[4_200_000_000, 65010],
            &[65001, 65002, 4_200_000_000, 65010],
        ),
        // Nobody did.
        (&[23456, 65010], &[4_200_000_000, 65010], &[4_200_000_000, 65010]),
        // AS4_PATH is longer, and so ignored.
        (&[65010], &[4_200_000_000, 65010], &[65010]),
    ];
    for (two, four, expected) in cases {
        let (segments, _, faults) = read(&[
            attribute(0x40, 2, &numbers(2, two)),
            attribute(0xc0, 17, &numbers(4, four)),
        ]);
        assert_eq!(segments, [expected.to_vec()]);
        assert_eq!(faults, []);
    }
}

#[test]
fn prepended_segments_stay_apart_from_each_other() {
    let two = [numbers(2, &[65001]), numbers(2, &[65002, 23456])].concat();
    let (segments, _, _) = read(&[
        attribute(0x40, 2, &two),
        attribute(0xc0, 17, &numbers(4, &[4_200_000_000])),
    ]);
    assert_eq!(segments, [vec![65001], vec![65002, 4_200_000_000]]);
}

#[test]
fn segments_that_are_joined_hold_255_at_most() {
    let long = vec![65010; 255];
    let joined = |prepended: &[u32], kept: &[u32]| {
        let path = [numbers(2, prepended), numbers(2, kept)].concat();
        let mut as_path = vec![0x50, 2];
        as_path.extend(u16::try_from(path.len()).unwrap().to_be_bytes());
        let four = numbers(4, kept);
        let mut as4_path = vec![0xd0, 17];
        as4_path.extend(u16::try_from(four.len()).unwrap().to_be_bytes());
        let (segments, ..) = read(&[[as_path, path].concat(), [as4_path, four].concat()]);
        segments.iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(joined(&[65001], &long), [1, 255]);
    assert_eq!(joined(&[65001], &long[1..]), [255]);
}

#[test]
fn a_malformed_as4_path_is_discarded_and_as_path_stands() {
    // RFC 6793 §6 (test).
    let cases: &[&str] = &[
        "c0 11 00",
        "c0 11 02 02 00",
        "c0 11 07 02 01 0000fde9 00",
        "c0 11 06 02 02 0000fde9",
        "c0 11 06 07 01 0000fde9",
        // RFC 7607 §2 (test): AS 0.
        "c0 11 06 02 01 00000000",
        "80 11 06 02 01 0000fde9",
    ];
    for as4_path in cases {
        let (segments, _, faults) = read(&[attribute(0x40, 2, &numbers(2, &[23456])), hex(as4_path)]);
        assert_eq!(segments, [[23456]], "{as4_path}");
        assert_eq!(faults, [(17, Verdict::DiscardAttribute)], "{as4_path}");
    }
}

#[test]
fn a_set_costs_the_routes_in_as4_path_too() {
    // RFC 9774 §3 (test): AS_SET and AS_CONFED_SET.
    for set in ["c0 11 06 01 01 0000fde9", "c0 11 06 04 01 0000fde9"] {
        let (segments, _, faults) = read(&[attribute(0x40, 2, &numbers(2, &[23456])), hex(set)]);
        assert!(segments.is_empty());
        assert_eq!(faults, [(17, Verdict::TreatAsWithdraw)]);
    }
}

#[test]
fn confederation_segments_are_dropped_from_as4_path() {
    // RFC 6793 §6 (test).
    let as4_path = [vec![3, 1, 0, 0, 0, 9], numbers(4, &[4_200_000_000])].concat();
    let (segments, _, faults) = read(&[
        attribute(0x40, 2, &numbers(2, &[65001, 23456])),
        attribute(0xc0, 17, &as4_path),
    ]);
    assert_eq!(segments, [[65001, 4_200_000_000]]);
    assert_eq!(faults, []);
}

#[test]
fn as4_aggregator_replaces_an_aggregator_that_is_as_trans_only() {
    // RFC 6793 §4.2.3 (test).
    let path = [
        attribute(0x40, 2, &numbers(2, &[65001, 23456])),
        attribute(0xc0, 17, &numbers(4, &[4_200_000_000])),
    ]
    .concat();
    let as4_aggregator = hex("c0 12 08 fa56ea00 c6336401");
    let trans = hex("c0 07 06 5ba0 c6336402");
    let (segments, aggregator, faults) = read(&[path.clone(), trans.clone(), as4_aggregator.clone()]);
    assert_eq!(segments, [[65001, 4_200_000_000]]);
    assert_eq!(aggregator, Some((4_200_000_000, "198.51.100.1".to_owned())));
    assert_eq!(faults, []);
    // Any other AS aggregated anew: both attributes of four octets are older than that.
    let own = hex("c0 07 06 fde9 c6336402");
    let (segments, aggregator, faults) = read(&[path.clone(), own, as4_aggregator.clone()]);
    assert_eq!(segments, [[65001, 23456]]);
    assert_eq!(aggregator, Some((65001, "198.51.100.2".to_owned())));
    assert_eq!(
        faults,
        [(18, Verdict::DiscardAttribute), (17, Verdict::DiscardAttribute)]
    );
    // Alone it says nothing.
    assert_eq!(read(&[path.clone(), as4_aggregator]).1, None);
    // RFC 6793 §6 (test): a wrong length is discarded, and RFC 7607 §2: so is AS 0.
    for bad in ["c0 12 06 fde9 c6336401", "c0 12 08 00000000 c6336401"] {
        let (_, aggregator, faults) = read(&[path.clone(), trans.clone(), hex(bad)]);
        assert_eq!(aggregator, Some((23456, "198.51.100.2".to_owned())));
        assert_eq!(faults, [(18, Verdict::DiscardAttribute)]);
    }
}

#[test]
fn what_two_octets_cannot_hold_goes_along_in_the_attributes_of_four() {
    let sent = Update {
        announced: vec![nlri("10.0.1.0/24")],
        attributes: Some(Arc::new(PathAttributes {
            as_path: AsPath {
                segments: vec![AsSegment::Sequence(vec![asn(65001), asn(4_200_000_000)])],
            },
            aggregator: Some((asn(4_200_000_000), address("198.51.100.1"))),
            ..PathAttributes::new(address("192.0.2.1").into())
        })),
        ..Update::default()
    };
    let octets = encode(&Message::Update(sent.clone()), TWO_OCTETS);
    // RFC 6793 §4.2.2 (test), octet by octet.
    let attributes = hex("40 01 01 00
        40 02 06 02 02 fde9 5ba0
        40 03 04 c0000201
        c0 07 06 5ba0 c6336401
        c0 11 0a 02 02 0000fde9 fa56ea00
        c0 12 08 fa56ea00 c6336401");
    assert_eq!(octets, update(&[], &attributes, &hex("18 0a0001")));
    assert_eq!(
        decode(&octets, TWO_OCTETS).unwrap().message,
        Message::Update(sent)
    );
}
