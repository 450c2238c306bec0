//! Messages of up to 65535 octets that hold as much of one thing as there is room for.

use culvert_bgp::wire::{Decoder, Negotiated, NegotiatedFamily, frame};

use crate::{check, corpus};

/// Prefixes of no bits, which take one octet each and are the shortest of all.
fn shortest(count: usize) -> Vec<u8> {
    vec![0; count]
}

/// Octets that do not repeat.
fn all_different(count: u32) -> Vec<u8> {
    (0..count / 4).flat_map(u32::to_be_bytes).collect()
}

fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut octets = vec![flags | 0x10, code];
    octets.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
    octets.extend(value);
    octets
}

/// An MP_REACH_NLRI of IPv6 around a field.
fn reach(field: &[u8]) -> Vec<u8> {
    let next_hop = [0x20, 1, 0xd, 0xb8].repeat(4);
    attribute(0x80, 14, &[&[0, 2, 1, 16], &next_hop[..], &[0], field].concat())
}

/// The attributes that every route needs.
fn needed() -> Vec<u8> {
    [
        attribute(0x40, 1, &[0]),
        attribute(0x40, 2, &[]),
        attribute(0x40, 3, &[192, 0, 2, 1]),
        attribute(0x40, 5, &[0, 0, 0, 100]),
    ]
    .concat()
}

/// Fields of UPDATEs: withdrawn, attributes, announced.
fn of_routes() -> Vec<[Vec<u8>; 3]> {
    let none = Vec::new;
    vec![
        [shortest(65_000), none(), none()],
        [none(), needed(), shortest(65_000)],
        [shortest(30_000), needed(), shortest(30_000)],
        // All of them treated as withdrawn: no AS_PATH, no NEXT_HOP.
        [shortest(30_000), attribute(0x40, 1, &[0]), shortest(30_000)],
        [shortest(2_000), reach(&shortest(60_000)), shortest(2_000)],
        // Groups, each of them a fault.
        [none(), needed(), [4, 0xe0].repeat(30_000)],
        [none(), [reach(&shortest(60_000)), needed()].concat(), none()],
        [
            shortest(2_000),
            [reach(&shortest(60_000)), needed()].concat(),
            shortest(2_000),
        ],
    ]
}

/// Attributes beside those that are needed, or before them.
fn of_attributes() -> Vec<Vec<u8>> {
    let mut communities = Vec::new();
    for (flags, code) in [(0xc0, 8), (0xc0, 16), (0xc0, 32), (0x80, 10), (0xc0, 99)] {
        communities.push(attribute(flags, code, &all_different(60_000)));
    }
    let one_number = [2, 1, 0, 0, 0xfd, 0xe9];
    let short_number = [2, 1, 0xfd, 0xe9];
    communities.extend([
        // As many attributes, and as many faults, as there can be.
        [0xc0, 99, 0].repeat(20_000),
        [0x40, 1, 0].repeat(20_000),
        // Segments of one AS number, which are the most of them.
        attribute(0x40, 2, &one_number.repeat(10_000)),
        attribute(0x40, 2, &short_number.repeat(15_000)),
    ]);
    communities
}

fn message([withdrawn, attributes, announced]: &[Vec<u8>; 3]) -> Vec<u8> {
    let mut body = Vec::new();
    for field in [withdrawn, attributes] {
        body.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
        body.extend(field);
    }
    body.extend(announced);
    let mut octets = vec![0xff; 16];
    octets.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    octets.push(2);
    octets.extend(body);
    octets
}

#[test]
fn the_most_that_a_message_can_hold_of_one_thing_costs_no_more() {
    let mut messages: Vec<_> = of_routes().iter().map(message).collect();
    for attributes in of_attributes() {
        let fields = [Vec::new(), [attributes, needed()].concat(), shortest(10)];
        messages.push(message(&fields));
    }
    for four_octet_as in [true, false] {
        let terms = Negotiated {
            four_octet_as,
            extended_messages: corpus::BOTH_WAYS,
            ipv6_unicast: NegotiatedFamily::plain(true),
            ..Negotiated::plain(true)
        };
        for octets in &messages {
            assert_eq!(frame(octets, terms), Ok(Some(octets.len())));
            // Once for the first time, once with what is remembered.
            let mut decoder = Decoder::new(terms);
            for _ in 0..2 {
                let answer = check(octets, &mut decoder);
                assert!(answer.faults.is_some(), "refused, and so little tried");
            }
        }
    }
}
