//! OPEN: what is refused, with which subcode and data, and what is not.

use culvert_bgp::id::{HoldTime, RouterId};
use culvert_bgp::wire::message::{Capability, Family, GracefulRestart, Message, Notification, Open};
use culvert_bgp::wire::{decode, encode};

use crate::{INTERNAL, address, asn, hex, message};

/// Version 4, AS 64512, hold time 90, identifier 192.0.2.1, and no more.
const FIXED: &str = "04 fc00 005a c0000201";

fn open(fixed: &str, parameters: &str) -> Result<Open, Notification> {
    match decode(&message(1, &hex(&format!("{fixed}{parameters}"))), INTERNAL)?.message {
        Message::Open(open) => Ok(open),
        other => panic!("not an OPEN: {other:?}"),
    }
}

fn refused(subcode: u8) -> Notification {
    Notification::new(2, subcode)
}

#[test]
fn each_field_that_is_wrong_in_itself_has_its_own_subcode() {
    let cases = [
        // RFC 4271 §6.2 (test): the version is refused with the one we speak, in two octets.
        ("03 fc00 005a c0000201", Notification::with_data(2, 1, vec![0, 4])),
        ("05 fc00 005a c0000201", Notification::with_data(2, 1, vec![0, 4])),
        // RFC 7607 §2 (test).
        ("04 0000 005a c0000201", refused(2)),
        // RFC 4271 §6.2 (test).
        ("04 fc00 0001 c0000201", refused(6)),
        ("04 fc00 0002 c0000201", refused(6)),
        // RFC 6286 §2.2 (test).
        ("04 fc00 005a 00000000", refused(3)),
    ];
    for (fixed, expected) in cases {
        assert_eq!(open(fixed, "00"), Err(expected), "{fixed}");
    }
    assert_eq!(
        open("04 fc00 0000 c0000201", "00").unwrap().hold_time.seconds(),
        0
    );
    assert_eq!(
        open("04 fc00 0003 c0000201", "00").unwrap().hold_time.seconds(),
        3
    );
    // RFC 6286 §2.1 (test): an identifier need not look like a host's address.
    assert_eq!(
        open("04 fc00 005a e0000001", "00").unwrap().router_id.address(),
        address("224.0.0.1")
    );
}

#[test]
fn parameters_that_do_not_add_up_are_malformed_and_unknown_ones_unsupported() {
    let cases = [
        // RFC 4271 §6.2 (test): lengths that disagree with the message or with each other.
        ("01", 0),
        ("00 02", 0),
        ("00 02 00", 0),
        ("02 02 01", 0),
        ("03 02 02 02", 0),
        ("01 02", 0),
        // RFC 4271 §6.2 (test): a parameter that is not recognized; authentication (1) is gone too.
        ("02 01 00", 4),
        ("02 03 00", 4),
        // RFC 5492 §4 (test): a capability that ends after its parameter.
        ("03 02 01 02", 0),
        ("04 02 02 41 04", 0),
        // Capabilities of a wrong length.
        ("05 02 03 01 01 00", 0),
        ("05 02 03 02 01 00", 0),
        ("07 02 05 41 03 000001", 0),
        ("05 02 03 40 01 00", 0),
        ("09 02 07 40 05 0078 000101", 0),
        // RFC 7607 §2 (test): AS 0 in the capability.
        ("08 02 06 41 04 00000000", 2),
        // RFC 6793 §4.1 leaves open what two different numbers mean: neither is believed.
        ("0e 02 0c 41 04 00000001 41 04 00000002", 2),
        // RFC 9072 §2 (test): an extended length that disagrees, or is cut off.
        ("00 ff 0000", 0),
        ("ff ff 00", 0),
        ("ff ff 0001", 0),
        ("ff ff 0003 02 0001", 0),
    ];
    for (parameters, subcode) in cases {
        assert_eq!(open(FIXED, parameters), Err(refused(subcode)), "{parameters}");
    }
}

#[test]
fn capabilities_are_read_from_one_parameter_and_from_several() {
    let expected = vec![
        Capability::MultiProtocol(Family::IPV4_UNICAST),
        Capability::RouteRefresh,
        Capability::FourOctetAs(asn(4_200_000_000)),
    ];
    let one = open(FIXED, "10 02 0e 01 04 0001 00 01 02 00 41 04 fa56ea00").unwrap();
    let several = open(
        FIXED,
        "14 02 06 01 04 0001 00 01 02 02 02 00 02 06 41 04 fa56ea00",
    )
    .unwrap();
    // RFC 4760 §8 (test): the reserved octet is ignored.
    let reserved = open(FIXED, "10 02 0e 01 04 0001 ff 01 02 00 41 04 fa56ea00").unwrap();
    // RFC 9072 §2 (test): the extended form, which its type tells and not the length before it.
    let extended = open(FIXED, "ff ff 0011 02 000e 01 04 0001 00 01 02 00 41 04 fa56ea00").unwrap();
    let other = open(FIXED, "07 ff 0011 02 000e 01 04 0001 00 01 02 00 41 04 fa56ea00").unwrap();
    for read in [one, several, reserved, extended, other] {
        assert_eq!(read.capabilities, expected);
        // RFC 6793 §4.1 (test): the number of the capability counts.
        assert_eq!(read.asn, asn(4_200_000_000));
    }
}

#[test]
fn a_capability_that_nobody_here_knows_is_kept_as_it_came() {
    // The host name capability of FRR (73) with a domain, and one unassigned.
    let read = open(FIXED, "0f 02 0d 49 05 02 6162 01 63 c8 04 deadbeef").unwrap();
    let unknown = |code, value: &str| Capability::Unknown {
        code,
        value: hex(value),
    };
    assert_eq!(
        read.capabilities,
        [unknown(73, "02616201 63"), unknown(200, "deadbeef")]
    );
}

#[test]
fn graceful_restart_is_read_with_its_flags_and_families() {
    let read = open(FIXED, "0e 02 0c 40 0a 8fff 0001 01 80 0002 01 00").unwrap();
    let expected = GracefulRestart {
        restarted: true,
        notification: false,
        restart_time: 4095,
        families: vec![(Family::IPV4_UNICAST, true), (Family::IPV6_UNICAST, false)],
    };
    assert_eq!(read.capabilities, [Capability::GracefulRestart(expected)]);
}

fn with(capabilities: Vec<Capability>) -> Open {
    Open {
        asn: asn(64512),
        hold_time: HoldTime::new(90).unwrap(),
        router_id: RouterId::new(address("192.0.2.1")).unwrap(),
        capabilities,
    }
}

#[test]
fn capabilities_beyond_255_octets_are_written_in_the_extended_form() {
    for count in [0, 1, 24, 25, 26, 150] {
        let sent = with(vec![
            Capability::Unknown {
                code: 200,
                value: vec![7; 8]
            };
            count
        ]);
        let octets = encode(&Message::Open(sent.clone()), INTERNAL);
        // RFC 9072 §2 (test): the extended form only where the other does not do.
        assert_eq!(octets.get(29) == Some(&255), count > 25, "{count} capabilities");
        assert_eq!(decode(&octets, INTERNAL).unwrap().message, Message::Open(sent));
    }
}

#[test]
fn capabilities_that_no_message_holds_are_left_out() {
    let huge = Capability::Unknown {
        code: 200,
        value: vec![7; 256],
    };
    let large = Capability::Unknown {
        code: 201,
        value: vec![7; 255],
    };
    let mut sent = vec![huge];
    sent.extend(vec![large.clone(); 20]);
    sent.push(Capability::RouteRefresh);
    let octets = encode(&Message::Open(with(sent)), INTERNAL);
    assert!(octets.len() <= 4096);
    let Message::Open(read) = decode(&octets, INTERNAL).unwrap().message else {
        panic!()
    };
    let mut expected = vec![large; 15];
    expected.push(Capability::RouteRefresh);
    assert_eq!(read.capabilities, expected);
}

#[test]
fn an_as_of_four_octets_stands_as_as_trans_in_the_short_field() {
    let sent = Open {
        asn: asn(4_200_000_000),
        ..with(vec![Capability::FourOctetAs(asn(4_200_000_000))])
    };
    let octets = encode(&Message::Open(sent.clone()), INTERNAL);
    // RFC 6793 §4.1 (test): 23456 is 0x5ba0.
    assert_eq!(octets.get(20..22), Some(&[0x5b, 0xa0][..]));
    assert_eq!(decode(&octets, INTERNAL).unwrap().message, Message::Open(sent));
}
