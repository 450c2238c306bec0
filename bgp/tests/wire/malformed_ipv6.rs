//! Malformed UPDATEs of IPv6 unicast, each with the section that says what it costs.

use culvert_bgp::wire::Verdict::TreatAsWithdraw as Withdraw;
use culvert_bgp::wire::decode;

use crate::malformed::{AS_PATH, LOCAL_PREF, ORIGIN, read};
use crate::{hex, nlri, update};

/// UPDATEs of IPv6 unicast that end the session: section, what, attribute area, subcode.
#[rustfmt::skip]
const RESETS_OF_IPV6: &[(&str, &str, &str, u8)] = &[
    ("RFC 7606 §7.11", "a next hop of 4 octets", "80 0e 0a 0002 01 04 c0000201 00 00", 9),
    ("RFC 7606 §7.11", "a next hop of 0 octets", "80 0e 06 0002 01 00 00 00", 9),
    ("RFC 7606 §7.11", "a next hop of 17 octets",
        "80 0e 17 0002 01 11 20010db8000000000000000000000001 00 00 00", 9),
    ("RFC 7606 §7.11", "a next hop of 24 octets",
        "80 0e 1e 0002 01 18 000000000000000020010db8000000000000000000000001 00 00", 9),
    ("RFC 7606 §5.3", "a prefix of 129 bits",
        "80 0e 27 0002 01 10 20010db8000000000000000000000001 00 81 20010db8000000000000000000000001 80", 9),
    ("RFC 7606 §5.3", "a prefix of 255 bits",
        "80 0e 16 0002 01 10 20010db8000000000000000000000001 00 ff", 9),
    ("RFC 7606 §5.3", "a prefix cut off",
        "80 0e 19 0002 01 10 20010db8000000000000000000000001 00 20 20010d", 9),
    ("RFC 7606 §5.3", "a withdrawn prefix cut off", "80 0f 06 0002 01 20 2001", 9),
    ("RFC 7606 §3 g", "MP_REACH_NLRI twice",
        "80 0e 16 0002 01 10 20010db8000000000000000000000001 00 00 \
         80 0e 16 0002 01 10 20010db8000000000000000000000001 00 00", 1),
];

#[test]
fn what_hides_routes_of_ipv6_ends_the_session() {
    for (section, what, attributes, subcode) in RESETS_OF_IPV6 {
        let octets = update(&[], &hex(attributes), &[]);
        let refused = decode(&octets, crate::BOTH_FAMILIES).unwrap_err();
        assert_eq!(
            (refused.code, refused.subcode),
            (3, *subcode),
            "{section}: {what}"
        );
    }
}

/// UPDATEs of IPv6 unicast whose one route is treated as withdrawn: section, what, attributes, type code.
#[rustfmt::skip]
const WITHDRAWN_OF_IPV6: &[(&str, &str, [&str; 4], u8)] = &[
    ("RFC 4271 §6.3", "an unspecified next hop", [
        "80 0e 1a 0002 01 10 00000000000000000000000000000000 00 20 20010db8", ORIGIN, AS_PATH, LOCAL_PREF], 14),
    ("RFC 4271 §6.3", "a group for a next hop", [
        "80 0e 1a 0002 01 10 ff020000000000000000000000000001 00 20 20010db8", ORIGIN, AS_PATH, LOCAL_PREF], 14),
    ("RFC 7606 §3 d", "no ORIGIN", [
        "80 0e 1a 0002 01 10 20010db8000000000000000000000001 00 20 20010db8", "", AS_PATH, LOCAL_PREF], 1),
    ("RFC 7606 §3 d", "no AS_PATH", [
        "80 0e 1a 0002 01 10 20010db8000000000000000000000001 00 20 20010db8", ORIGIN, "", LOCAL_PREF], 2),
    ("RFC 9774 §3", "an AS_SET", [
        "80 0e 1a 0002 01 10 20010db8000000000000000000000001 00 20 20010db8", ORIGIN,
        "40 02 06 01 01 0000fde9", LOCAL_PREF], 2),
    ("RFC 4271 §5.1.5", "no LOCAL_PREF", [
        "80 0e 1a 0002 01 10 20010db8000000000000000000000001 00 20 20010db8", ORIGIN, AS_PATH, ""], 5),
];

#[test]
fn a_fault_beside_routes_of_ipv6_costs_them() {
    for (section, what, attributes, code) in WITHDRAWN_OF_IPV6 {
        let octets = update(&[], &hex(&attributes.concat()), &[]);
        let (update, faults) = read(&octets, crate::BOTH_FAMILIES);
        assert_eq!(faults, [(*code, Withdraw)], "{section}: {what}");
        assert_eq!(update.withdrawn, [nlri("2001:db8::/32")], "{section}: {what}");
        assert_eq!(update.announcements().count(), 0, "{section}: {what}");
    }
}
