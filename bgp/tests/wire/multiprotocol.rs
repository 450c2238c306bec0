//! MP_REACH_NLRI, MP_UNREACH_NLRI, and the End-of-RIB marker.

use culvert_bgp::wire::Verdict::{Accept, DiscardAttribute as Discard, TreatAsWithdraw as Withdraw};
use culvert_bgp::wire::message::{Family, PathAttributes, Update};
use culvert_bgp::wire::{Negotiated, NegotiatedFamily, decode, encode_announcements, encode_withdrawals};

use crate::malformed::{ANNOUNCED, AS_PATH, LOCAL_PREF, NEXT_HOP, ORIGIN, read, read as read_with};
use crate::{BOTH_FAMILIES, INTERNAL, clean_update, hex, nlri, update};

#[test]
fn ipv4_routes_in_mp_reach_nlri_are_routes_with_the_next_hop_beside_them() {
    // RFC 4760 §3 (test): NEXT_HOP is not needed, and not looked at.
    let reach = "80 0e 0d 0001 01 04 c0000207 00 18 0a0001";
    for next_hop in ["", NEXT_HOP] {
        let attributes = hex(&[reach, ORIGIN, AS_PATH, next_hop, LOCAL_PREF].concat());
        let read = clean_update(&update(&[], &attributes, &[]), INTERNAL);
        assert_eq!(read.announced, [nlri("10.0.1.0/24")]);
        assert_eq!(
            read.attributes.unwrap().next_hop,
            std::net::IpAddr::from(crate::address("192.0.2.7"))
        );
    }
    let unreach = clean_update(&update(&[], &hex("80 0f 07 0001 01 18 0a0001"), &[]), INTERNAL);
    assert_eq!(unreach.withdrawn, [nlri("10.0.1.0/24")]);
    let bad = hex(&[
        "80 0e 0d 0001 01 04 00000000 00 18 0a0001",
        ORIGIN,
        AS_PATH,
        LOCAL_PREF,
    ]
    .concat());
    let (update, faults) = read(&update(&[], &bad, &[]), INTERNAL);
    assert_eq!(update.withdrawn, [nlri("10.0.1.0/24")]);
    assert_eq!(faults, [(14, Withdraw)]);
}

#[test]
fn routes_in_both_places_have_each_their_own_next_hop() {
    // RFC 7606 §5.1 (test): not to be sent, but to be read.
    let with = |hop: &str| {
        let reach = format!("80 0e 0d 0001 01 04 {hop} 00 18 0a0002");
        let attributes = hex(&[reach.as_str(), ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
        read(&update(&[], &attributes, &hex(ANNOUNCED)), INTERNAL)
    };
    let (same, faults) = with("c0000201");
    assert_eq!(same.announced, [nlri("10.0.1.0/24"), nlri("10.0.2.0/24")]);
    assert_eq!(faults, []);
    let (other, faults) = with("c0000202");
    assert_eq!(other.announced, [nlri("10.0.1.0/24")]);
    assert_eq!(other.withdrawn, []);
    assert_eq!(faults, []);
    let told: Vec<_> = other
        .announcements()
        .map(|(list, attributes)| (list.to_vec(), attributes.next_hop.to_string()))
        .collect();
    assert_eq!(
        told,
        [
            (vec![nlri("10.0.1.0/24")], "192.0.2.1".to_owned()),
            (vec![nlri("10.0.2.0/24")], "192.0.2.2".to_owned())
        ]
    );
}

#[test]
fn a_family_that_was_not_negotiated_is_left_alone() {
    // Prefixes that no parser could read, in families 1/2 (IPv4 multicast), 2/1 (IPv6), 25/70 (EVPN) and one unassigned.
    for family in ["0001 02", "0002 01", "0019 46", "ffff ff"] {
        let reach = format!("80 0e 0a {family} 02 abcd 00 ff ff ff");
        let unreach = format!("80 0f 05 {family} ff ff");
        let attributes = hex(&[&reach, &unreach, ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF]
            .map(|part: &str| part)
            .concat());
        let (update, faults) = read(&update(&[], &attributes, &hex(ANNOUNCED)), INTERNAL);
        assert_eq!(update.announced, [nlri("10.0.1.0/24")]);
        assert_eq!(update.withdrawn, []);
        assert_eq!(faults, [(15, Discard), (14, Discard)], "{family}");
    }
}

#[test]
fn the_end_of_rib_is_an_update_of_nothing_or_an_empty_mp_unreach_nlri() {
    // RFC 4724 §2 (test).
    let end = |family| Update {
        end_of_rib: Some(family),
        ..Update::default()
    };
    assert_eq!(
        clean_update(&update(&[], &[], &[]), INTERNAL),
        end(Family::IPV4_UNICAST)
    );
    assert_eq!(
        clean_update(&update(&[], &hex("80 0f 03 0002 01"), &[]), INTERNAL),
        end(Family::IPV6_UNICAST)
    );
    assert_eq!(
        clean_update(&update(&[], &hex("90 0f 0003 0001 01"), &[]), INTERNAL),
        end(Family::IPV4_UNICAST)
    );
    // Beside anything else it is none.
    let beside = clean_update(
        &update(&[], &hex(&["80 0f 03 0002 01", ORIGIN].concat()), &[]),
        INTERNAL,
    );
    assert_eq!(beside, Update::default());
    let withdrawal = clean_update(
        &update(&hex("18 0a0001"), &hex("80 0f 03 0002 01"), &[]),
        INTERNAL,
    );
    assert_eq!(withdrawal.end_of_rib, None);
}

/// 2001:db8::1 in a next hop of 16 octets.
const GLOBAL: &str = "20010db8000000000000000000000001";
/// fe80::1.
const LINK_LOCAL: &str = "fe800000000000000000000000000001";

#[test]
fn ipv6_routes_are_read_and_written_octet_by_octet() {
    // RFC 4760 §3, RFC 2545 §3 (test): the attribute comes first (RFC 7606 §5.1), and no NEXT_HOP beside it.
    let reach = format!("80 0e 22 0002 01 10 {GLOBAL} 00 20 20010db8 30 20010db80001 00");
    let attributes = hex(&[reach.as_str(), ORIGIN, AS_PATH, LOCAL_PREF].concat());
    let octets = update(&[], &attributes, &[]);
    let read = clean_update(&octets, BOTH_FAMILIES);
    let announced = [nlri("2001:db8::/32"), nlri("2001:db8:1::/48"), nlri("::/0")];
    assert_eq!(read.announced, announced);
    let attributes = read.attributes.unwrap();
    assert_eq!(attributes.next_hop.to_string(), "2001:db8::1");
    assert_eq!(
        encode_announcements(&attributes, &announced, BOTH_FAMILIES),
        [octets]
    );
    let unreach = update(&[], &hex("80 0f 0f 0002 01 20 20010db8 30 20010db80001"), &[]);
    assert_eq!(clean_update(&unreach, BOTH_FAMILIES).withdrawn, announced[..2]);
    assert_eq!(encode_withdrawals(&announced[..2], BOTH_FAMILIES), [unreach]);
}

#[test]
fn a_link_local_next_hop_behind_a_global_one_is_not_kept() {
    // RFC 2545 §3 (test).
    let reach = format!("80 0e 2a 0002 01 20 {GLOBAL} {LINK_LOCAL} 00 20 20010db8");
    let attributes = hex(&[reach.as_str(), ORIGIN, AS_PATH, LOCAL_PREF].concat());
    let read = clean_update(&update(&[], &attributes, &[]), BOTH_FAMILIES);
    assert_eq!(read.attributes.unwrap().next_hop.to_string(), "2001:db8::1");
}

#[test]
fn a_next_hop_attribute_beside_routes_of_ipv6_alone_is_ignored() {
    // RFC 4760 §3 (test): even one that would be malformed for an NLRI field.
    let reach = format!("80 0e 1a 0002 01 10 {GLOBAL} 00 20 20010db8");
    for next_hop in [NEXT_HOP, "40 03 04 00000000", "40 03 05 c000020100"] {
        let attributes = hex(&[reach.as_str(), ORIGIN, AS_PATH, next_hop, LOCAL_PREF].concat());
        let read = clean_update(&update(&[], &attributes, &[]), BOTH_FAMILIES);
        assert_eq!(read.announced, [nlri("2001:db8::/32")]);
    }
}

#[test]
fn routes_of_both_families_in_one_message_have_each_their_own_next_hop() {
    // RFC 7606 §5.1 (test).
    let reach = format!("80 0e 1a 0002 01 10 {GLOBAL} 00 20 20010db8");
    let unreach = "80 0f 08 0002 01 20 20010db9";
    let attributes = hex(&[reach.as_str(), unreach, ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let octets = update(&hex("18 0a0002"), &attributes, &hex(ANNOUNCED));
    let read = clean_update(&octets, BOTH_FAMILIES);
    assert_eq!(read.withdrawn, [nlri("10.0.2.0/24"), nlri("2001:db9::/32")]);
    let told: Vec<_> = read
        .announcements()
        .map(|(list, attributes)| (list[0], attributes.next_hop.to_string(), attributes.local_pref))
        .collect();
    assert_eq!(
        told,
        [
            (nlri("10.0.1.0/24"), "192.0.2.1".to_owned(), Some(100)),
            (nlri("2001:db8::/32"), "2001:db8::1".to_owned(), Some(100))
        ]
    );
    // A fault in what both share costs both.
    let broken = hex(&[reach.as_str(), "40 01 01 09", AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let (both, faults) = read_with(&update(&[], &broken, &hex(ANNOUNCED)), BOTH_FAMILIES);
    assert_eq!(both.withdrawn, [nlri("10.0.1.0/24"), nlri("2001:db8::/32")]);
    assert_eq!(faults, [(1, Withdraw)]);
}

#[test]
fn ipv4_routes_with_a_next_hop_of_ipv6_need_a_peer_that_takes_them() {
    // RFC 8950 §3, §4 (test).
    let extended = Negotiated {
        ipv4_unicast: NegotiatedFamily {
            extended_next_hop: true,
            ..NegotiatedFamily::plain(true)
        },
        ..INTERNAL
    };
    let reach = format!("80 0e 19 0001 01 10 {GLOBAL} 00 18 0a0001");
    let attributes = hex(&[reach.as_str(), ORIGIN, AS_PATH, LOCAL_PREF].concat());
    let octets = update(&[], &attributes, &[]);
    let read = clean_update(&octets, extended);
    assert_eq!(read.announced, [nlri("10.0.1.0/24")]);
    let path = read.attributes.unwrap();
    assert_eq!(path.next_hop.to_string(), "2001:db8::1");
    assert_eq!(
        encode_announcements(&path, &read.announced, extended).concat(),
        octets
    );
    let both = format!("80 0e 29 0001 01 20 {GLOBAL} {LINK_LOCAL} 00 18 0a0001");
    let both = hex(&[both.as_str(), ORIGIN, AS_PATH, LOCAL_PREF].concat());
    let read = clean_update(&update(&[], &both, &[]), extended);
    assert_eq!(read.attributes.unwrap().next_hop.to_string(), "2001:db8::1");
    // Without the capability the length hides where the routes begin, and what we would say is withdrawn.
    assert!(decode(&octets, INTERNAL).is_err());
    let list = [nlri("10.0.1.0/24")];
    assert_eq!(
        encode_announcements(&path, &list, INTERNAL),
        encode_withdrawals(&list, INTERNAL)
    );
}

#[test]
fn a_route_of_ipv6_with_a_next_hop_of_ipv4_is_withdrawn() {
    let path = PathAttributes::new(crate::address("192.0.2.1").into());
    let list = [nlri("2001:db8::/32"), nlri("10.0.1.0/24")];
    let messages = encode_announcements(&path, &list, BOTH_FAMILIES);
    let updates: Vec<_> = messages
        .iter()
        .map(|octets| clean_update(octets, BOTH_FAMILIES))
        .collect();
    assert_eq!(updates[0].announced, [nlri("10.0.1.0/24")]);
    assert_eq!(updates[1].withdrawn, [nlri("2001:db8::/32")]);
    assert_eq!(updates.len(), 2);
}

#[test]
fn the_fields_of_ipv4_say_nothing_where_only_ipv6_was_agreed_on() {
    let only = Negotiated {
        ipv4_unicast: NegotiatedFamily::plain(false),
        ..BOTH_FAMILIES
    };
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let octets = update(&hex("18 0a0002"), &attributes, &hex(ANNOUNCED));
    let (update, faults) = read_with(&octets, only);
    assert_eq!(update, Update::default());
    assert_eq!(faults, [(0, Accept), (0, Accept)]);
    assert!(encode_withdrawals(&[nlri("10.0.1.0/24")], only).is_empty());
}

#[test]
fn two_thousand_routes_of_ipv6_take_the_fewest_messages_and_arrive_whole() {
    let sent: Vec<_> = (0..2000)
        .map(|number| nlri(&format!("2001:db8:{number:x}::/48")))
        .collect();
    let path = PathAttributes {
        local_pref: Some(100),
        ..PathAttributes::new("2001:db8::1".parse().unwrap())
    };
    let announced = encode_announcements(&path, &sent, BOTH_FAMILIES);
    let withdrawn = encode_withdrawals(&sent, BOTH_FAMILIES);
    // Seven octets a route: 4096 less 23, less 4 + 3 + 7 of attributes and 25 of the attribute's own leave 576 a message,
    // and without attributes, less 7, 580.
    assert_eq!((announced.len(), withdrawn.len()), (4, 4));
    for messages in [&announced, &withdrawn] {
        for octets in &messages[..3] {
            assert!(
                octets.len() > 4096 - 7,
                "a message of {} has room left",
                octets.len()
            );
        }
    }
    let read = |messages: &[Vec<u8>]| -> Vec<Update> {
        messages
            .iter()
            .map(|octets| clean_update(octets, BOTH_FAMILIES))
            .collect()
    };
    let there: Vec<_> = read(&announced)
        .into_iter()
        .flat_map(|update| update.announced)
        .collect();
    let gone: Vec<_> = read(&withdrawn)
        .into_iter()
        .flat_map(|update| update.withdrawn)
        .collect();
    assert_eq!((there, gone), (sent.clone(), sent));
}
