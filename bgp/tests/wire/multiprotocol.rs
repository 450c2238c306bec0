//! MP_REACH_NLRI, MP_UNREACH_NLRI, and the End-of-RIB marker.

use culvert_bgp::wire::Verdict::{Accept, DiscardAttribute as Discard, TreatAsWithdraw as Withdraw};
use culvert_bgp::wire::message::{Family, Update};

use crate::malformed::{ANNOUNCED, AS_PATH, LOCAL_PREF, NEXT_HOP, ORIGIN, read};
use crate::{INTERNAL, clean_update, hex, nlri, update};

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
fn routes_in_both_places_need_one_next_hop() {
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
    assert_eq!(other.withdrawn, [nlri("10.0.2.0/24")]);
    assert_eq!(faults, [(14, Accept)]);
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
