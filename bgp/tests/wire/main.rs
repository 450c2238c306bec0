//! The codec, from outside: real peers' octets, malformed messages, properties, and the library beside it.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used)]

mod add_path;
mod capabilities;
mod differential;
mod differential_families;
mod extended;
mod golden;
mod header;
mod malformed;
mod malformed_ipv6;
mod multiprotocol;
mod open;
mod packing;
mod properties;
mod reflection;
mod refresh;
mod two_octets;

use std::net::Ipv4Addr;

use culvert_bgp::id::{Asn, Prefix};
use culvert_bgp::wire::message::{Directions, Message, Nlri, Update};
use culvert_bgp::wire::{Decoded, Negotiated, NegotiatedFamily, decode};

/// An internal session on which both ends know four octets.
const INTERNAL: Negotiated = Negotiated {
    four_octet_as: true,
    ..Negotiated::plain(true)
};
/// An external one.
const EXTERNAL: Negotiated = Negotiated {
    four_octet_as: true,
    ..Negotiated::plain(false)
};
/// An external one with a peer that knows two octets.
const TWO_OCTETS: Negotiated = Negotiated::plain(false);

/// An internal one with both families and nothing more.
const BOTH_FAMILIES: Negotiated = Negotiated {
    ipv6_unicast: NegotiatedFamily::plain(true),
    ..INTERNAL
};
/// In both directions.
const BOTH_WAYS: Directions = Directions {
    send: true,
    receive: true,
};

/// Octets from hexadecimal digits; white space does not count.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .bytes()
        .filter(|digit| !digit.is_ascii_whitespace())
        .collect();
    assert!(digits.len().is_multiple_of(2), "an odd number of digits");
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A message with the right marker and length.
fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    octets.extend(u16::try_from(19 + body.len()).unwrap().to_be_bytes());
    octets.push(kind);
    octets.extend(body);
    octets
}

/// An UPDATE of three fields.
fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for field in [withdrawn, attributes] {
        body.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
        body.extend(field);
    }
    body.extend(announced);
    message(2, &body)
}

/// One attribute with a length of one octet.
fn attribute(flags: u8, code: u8, value: &[u8]) -> Vec<u8> {
    let mut octets = vec![flags, code, u8::try_from(value.len()).unwrap()];
    octets.extend(value);
    octets
}

fn nlri(text: &str) -> Nlri {
    Prefix::new(text.parse().unwrap()).into()
}

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

/// Decodes what must be an UPDATE without faults.
fn clean_update(octets: &[u8], negotiated: Negotiated) -> Update {
    let Decoded { message, faults } = decode(octets, negotiated).unwrap();
    assert_eq!(faults, [], "faults in {octets:02x?}");
    match message {
        Message::Update(update) => update,
        other => panic!("not an UPDATE: {other:?}"),
    }
}
