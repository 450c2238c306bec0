//! Several paths to one destination (RFC 7911), in the fields of IPv4 and in MP_REACH_NLRI and MP_UNREACH_NLRI.

use culvert_bgp::wire::message::{Directions, Nlri, PathAttributes};
use culvert_bgp::wire::{Negotiated, NegotiatedFamily, encode_announcements, encode_withdrawals};

use crate::malformed::{AS_PATH, LOCAL_PREF, NEXT_HOP, ORIGIN};
use crate::{BOTH_FAMILIES, BOTH_WAYS, address, clean_update, hex, nlri, update};

const ADD_PATH: Negotiated = Negotiated {
    ipv4_unicast: NegotiatedFamily {
        add_path: BOTH_WAYS,
        ..NegotiatedFamily::plain(true)
    },
    ipv6_unicast: NegotiatedFamily {
        add_path: BOTH_WAYS,
        ..NegotiatedFamily::plain(true)
    },
    ..BOTH_FAMILIES
};

fn path(prefix: &str, path_id: u32) -> Nlri {
    Nlri {
        path_id,
        ..nlri(prefix)
    }
}

#[test]
fn a_path_identifier_stands_before_each_prefix_of_the_fields() {
    // RFC 7911 §3 (test), octet by octet: twice the same prefix, with two identifiers.
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let withdrawn = hex("00000007 18 0a0002");
    let announced = hex("00000001 18 0a0001 ffffffff 18 0a0001 00000000 00");
    let read = clean_update(&update(&withdrawn, &attributes, &announced), ADD_PATH);
    assert_eq!(read.withdrawn, [path("10.0.2.0/24", 7)]);
    let expected = [
        path("10.0.1.0/24", 1),
        path("10.0.1.0/24", u32::MAX),
        path("0.0.0.0/0", 0),
    ];
    assert_eq!(read.announced, expected);
    assert_eq!(
        encode_withdrawals(&read.withdrawn, ADD_PATH),
        [update(&withdrawn, &[], &[])]
    );
    let written = encode_announcements(&read.attributes.unwrap(), &expected, ADD_PATH);
    assert_eq!(written, [update(&[], &attributes, &announced)]);
}

#[test]
fn a_path_identifier_stands_before_each_prefix_of_the_attributes() {
    // RFC 7911 §3 (test), octet by octet.
    let reach = "80 0e 1e 0002 01 10 20010db8000000000000000000000001 00 00000005 20 20010db8";
    let attributes = hex(&[reach, ORIGIN, AS_PATH, LOCAL_PREF].concat());
    let read = clean_update(&update(&[], &attributes, &[]), ADD_PATH);
    assert_eq!(read.announced, [path("2001:db8::/32", 5)]);
    let written = encode_announcements(&read.attributes.unwrap(), &read.announced, ADD_PATH);
    assert_eq!(written, [update(&[], &attributes, &[])]);
    let unreach = update(&[], &hex("80 0f 0c 0002 01 00000005 20 20010db8"), &[]);
    assert_eq!(
        clean_update(&unreach, ADD_PATH).withdrawn,
        [path("2001:db8::/32", 5)]
    );
    assert_eq!(
        encode_withdrawals(&[path("2001:db8::/32", 5)], ADD_PATH),
        [unreach]
    );
}

#[test]
fn identifiers_are_read_and_written_in_the_direction_agreed_on_alone() {
    // RFC 7911 §4 (test): the two directions of a family are agreed on one by one.
    let only = |send, receive| Negotiated {
        ipv4_unicast: NegotiatedFamily {
            add_path: Directions { send, receive },
            ..NegotiatedFamily::plain(true)
        },
        ..BOTH_FAMILIES
    };
    let with = update(&hex("00000007 18 0a0001"), &[], &[]);
    let without = update(&hex("18 0a0001"), &[], &[]);
    let one = [path("10.0.1.0/24", 7)];
    assert_eq!(encode_withdrawals(&one, only(true, false)).concat(), with);
    assert_eq!(encode_withdrawals(&one, only(false, true)).concat(), without);
    assert_eq!(clean_update(&with, only(false, true)).withdrawn, one);
    assert_eq!(
        clean_update(&without, only(true, false)).withdrawn,
        [nlri("10.0.1.0/24")]
    );
}

#[test]
fn the_same_prefix_with_another_identifier_is_another_route() {
    // RFC 7911 §5 (test): what is withdrawn and announced at once has to agree in both.
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let read = clean_update(
        &update(
            &hex("00000001 18 0a0001 00000002 18 0a0001"),
            &attributes,
            &hex("00000002 18 0a0001"),
        ),
        ADD_PATH,
    );
    assert_eq!(read.withdrawn, [path("10.0.1.0/24", 1)]);
    assert_eq!(read.announced, [path("10.0.1.0/24", 2)]);
}

#[test]
fn two_thousand_paths_arrive_whole() {
    let sent: Vec<_> = (0..2000)
        .map(|number: u32| path(&format!("10.{}.{}.0/26", number / 200, number % 200), number))
        .collect();
    let attributes = PathAttributes {
        local_pref: Some(100),
        ..PathAttributes::new(address("192.0.2.1").into())
    };
    let messages = encode_announcements(&attributes, &sent, ADD_PATH);
    // Nine octets a path; 4096 less header 19, lengths 4, attributes 4 + 3 + 7 + 7 leave room for 450.
    assert_eq!(messages.len(), 5);
    let received: Vec<_> = messages
        .iter()
        .flat_map(|octets| clean_update(octets, ADD_PATH).announced)
        .collect();
    assert_eq!(received, sent);
}
