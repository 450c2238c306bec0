//! Messages that no verdict but the end of the session answers.

use culvert_bgp::wire::message::Notification;
use culvert_bgp::wire::{Negotiated, NegotiatedFamily, decode};

use crate::{INTERNAL, hex, update};

/// Messages that no verdict but the end of the session answers: section, what, UPDATE body, subcode, data.
#[rustfmt::skip]
const RESETS: &[(&str, &str, &str, u8, &str)] = &[
    ("RFC 7606 §3 a", "withdrawn routes beyond the message", "0005 00 0000", 1, ""),
    ("RFC 7606 §3 a", "no room for the attribute length", "0003 10 0a00 00", 1, ""),
    ("RFC 7606 §3 a", "attributes beyond the message", "0000 0005 40 01 01 00", 1, ""),
    ("RFC 7606 §5.3", "a withdrawn prefix of 33 bits", "0006 21 0a00000000 0000", 10, ""),
    ("RFC 7606 §5.3", "a withdrawn prefix cut off", "0003 18 0a00 0000", 10, ""),
    ("RFC 7606 §5.3", "an announced prefix of 33 bits", "0000 0000 21 0a00000000", 10, ""),
    ("RFC 7606 §5.3", "an announced prefix of 255 bits", "0000 0000 ff 0a00000000", 10, ""),
    ("RFC 7606 §5.3", "an announced prefix cut off", "0000 0000 08 0a 19 0a0000", 10, ""),
    ("RFC 4271 §6.3", "an unknown well-known attribute", "0000 0004 40 63 01 07", 2, "40 63 01 07"),
    ("RFC 7606 §3 g", "MP_REACH_NLRI twice",
        "0000 0014 80 0e 07 0002 01 00 00 00 00 80 0e 07 0002 01 00 00 00 00", 1, ""),
    ("RFC 7606 §3 g", "MP_UNREACH_NLRI twice", "0000 000c 80 0f 03 0001 01 80 0f 03 0001 01", 1, ""),
    ("RFC 7606 §5.3", "MP_REACH_NLRI of four octets",
        "0000 0007 80 0e 04 0001 01 00", 9, "80 0e 04 0001 01 00"),
    ("RFC 7606 §5.3", "MP_REACH_NLRI of no octet", "0000 0003 80 0e 00", 9, "80 0e 00"),
    ("RFC 7606 §5.3", "MP_UNREACH_NLRI of two octets", "0000 0005 80 0f 02 0001", 9, "80 0f 02 0001"),
    ("RFC 7606 §5.3", "MP_REACH_NLRI transitive",
        "0000 0008 c0 0e 05 0001 01 00 00", 4, "c0 0e 05 0001 01 00 00"),
    ("RFC 7606 §5.3", "MP_UNREACH_NLRI transitive", "0000 0006 c0 0f 03 0001 01", 4, "c0 0f 03 0001 01"),
    ("RFC 7606 §7.11", "a next hop of 16 octets for IPv4",
        "0000 0018 80 0e 15 0001 01 10 20010db8000000000000000000000001 00", 9,
        "80 0e 15 0001 01 10 20010db8000000000000000000000001 00"),
    ("RFC 7606 §7.11", "a next hop beyond the attribute",
        "0000 0008 80 0e 05 0002 01 10 00", 9, "80 0e 05 0002 01 10 00"),
    ("RFC 7606 §5.3", "a prefix of 33 bits in MP_REACH_NLRI",
        "0000 0012 80 0e 0f 0001 01 04 c0000201 00 21 0a00000000", 9, "80 0e 0f 0001 01 04 c0000201 00 21 0a00000000"),
    ("RFC 7606 §5.3", "a prefix cut off in MP_UNREACH_NLRI",
        "0000 0008 80 0f 05 0001 01 18 0a", 9, "80 0f 05 0001 01 18 0a"),
    ("RFC 7606 §3 j", "MP_REACH_NLRI beyond the area", "0000 0005 80 0e 09 0001", 1, ""),
    // RFC 7606 §5.2: a fault that would cost the routes, where the message announces none.
    ("RFC 7606 §5.2", "a bad ORIGIN beside a withdrawal",
        "0004 18 0a0001 0004 40 01 01 03", 6, "40 01 01 03"),
    ("RFC 7606 §5.2", "a bad NEXT_HOP and nothing else",
        "0000 0007 40 03 04 00000000", 8, "40 03 04 00000000"),
    ("RFC 7606 §5.2", "a bad AS_PATH and nothing else", "0000 0005 40 02 02 02 00", 11, ""),
    ("RFC 7606 §5.2", "wrong flags and nothing else", "0000 0004 c0 01 01 00", 4, "c0 01 01 00"),
    ("RFC 7606 §5.2", "a wrong length and nothing else", "0000 0005 40 01 02 0000", 5, "40 01 02 0000"),
    ("RFC 7606 §5.2", "an attribute cut off and nothing else", "0000 0002 40 01", 1, ""),
];

#[test]
fn what_hides_the_routes_ends_the_session_with_the_right_notification() {
    for (section, what, body, subcode, data) in RESETS {
        let octets = crate::message(2, &hex(body));
        let expected = Notification::with_data(3, *subcode, hex(data));
        assert_eq!(decode(&octets, INTERNAL), Err(expected), "{section}: {what}");
    }
}

#[test]
fn a_path_identifier_cut_off_ends_the_session() {
    // RFC 7911 §3, RFC 7606 §5.3 (test).
    let negotiated = Negotiated {
        ipv4_unicast: NegotiatedFamily {
            add_path: crate::BOTH_WAYS,
            ..NegotiatedFamily::plain(true)
        },
        ..INTERNAL
    };
    for withdrawn in ["000000", "00000001", "00000001 18 0a00", "00000001 21 0a00000000"] {
        let refused = decode(&update(&hex(withdrawn), &[], &[]), negotiated);
        assert_eq!(refused, Err(Notification::new(3, 10)), "{withdrawn}");
    }
}
