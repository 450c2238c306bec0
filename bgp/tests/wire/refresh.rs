//! ROUTE-REFRESH with the subtypes of RFC 7313.

use culvert_bgp::wire::message::{Family, Message, Notification, RefreshKind};
use culvert_bgp::wire::{Negotiated, decode, encode};

use crate::{INTERNAL, hex, message};

const ENHANCED: Negotiated = Negotiated {
    enhanced_route_refresh: true,
    ..INTERNAL
};

#[test]
fn the_subtype_is_one_where_both_ends_know_it_and_reserved_where_not() {
    // RFC 7313 §3.2, RFC 2918 §3 (test).
    for (subtype, kind) in [
        (0, RefreshKind::Request),
        (1, RefreshKind::BeginOfRr),
        (2, RefreshKind::EndOfRr),
        // RFC 7313 §5 (test): to be ignored, which is the session's part.
        (3, RefreshKind::Unknown(3)),
        (255, RefreshKind::Unknown(255)),
    ] {
        let octets = message(5, &[0, 2, subtype, 1]);
        let refresh = |kind| Message::RouteRefresh {
            family: Family::IPV6_UNICAST,
            kind,
        };
        assert_eq!(decode(&octets, ENHANCED).unwrap().message, refresh(kind));
        assert_eq!(
            decode(&octets, INTERNAL).unwrap().message,
            refresh(RefreshKind::Request)
        );
        assert_eq!(encode(&refresh(kind), ENHANCED), octets);
    }
}

#[test]
fn a_marker_of_a_wrong_length_is_refused_with_the_message() {
    // RFC 7313 §5 (test): the data is the whole message.
    for body in ["0001 01", "0001 02 01 00", "0001 01 01 ffff"] {
        let octets = message(5, &hex(body));
        let refused = Notification::with_data(7, 1, octets.clone());
        assert_eq!(decode(&octets, ENHANCED), Err(refused), "{body}");
    }
    // Of a request, or where nobody agreed on subtypes, it is the length of the header that is wrong.
    for (body, negotiated) in [
        ("0001 00 01 00", ENHANCED),
        ("", ENHANCED),
        ("0001 01 01 00", INTERNAL),
    ] {
        let octets = message(5, &hex(body));
        let refused = Notification::with_data(1, 2, octets[16..18].to_vec());
        assert_eq!(decode(&octets, negotiated), Err(refused), "{body}");
    }
}
