//! The message header and the codes of NOTIFICATION.

use culvert_bgp::error::ShutdownTextError;
use culvert_bgp::wire::message::Notification;
use culvert_bgp::wire::notification::{cease, text};
use culvert_bgp::wire::{HEADER_LENGTH, decode, frame};

use crate::{INTERNAL, message};

#[test]
fn a_message_is_found_once_its_last_octet_is_there() {
    let mut stream = message(4, &[]);
    stream.extend(message(2, &[0, 0, 0, 0]));
    for end in 0..HEADER_LENGTH {
        assert_eq!(frame(&stream[..end], INTERNAL), Ok(None));
    }
    assert_eq!(frame(&stream, INTERNAL), Ok(Some(19)));
    for end in 19..42 {
        assert_eq!(frame(&stream[19..end], INTERNAL), Ok(None));
    }
    assert_eq!(frame(&stream[19..42], INTERNAL), Ok(Some(23)));
}

/// Header octets: length and type behind a good marker.
fn head(length: u16, kind: u8) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    octets.extend(length.to_be_bytes());
    octets.push(kind);
    octets
}

#[test]
fn a_length_that_the_type_forbids_is_refused_with_the_length_field() {
    // RFC 4271 §6.1 (test): the least and the most octets of each type.
    let cases = [
        (0_u16, 4),
        (18, 4),
        (20, 4),
        (4097, 2),
        (0xffff, 2),
        (28, 1),
        (22, 2),
        (20, 3),
        (22, 5),
        (24, 5),
    ];
    for (length, kind) in cases {
        let refused = Notification::with_data(1, 2, length.to_be_bytes().to_vec());
        assert_eq!(
            frame(&head(length, kind), INTERNAL),
            Err(refused),
            "type {kind}, length {length}"
        );
    }
    for (length, kind) in [(19, 4), (4096, 2), (29, 1), (23, 2), (21, 3), (23, 5)] {
        assert!(
            frame(&head(length, kind), INTERNAL).is_ok(),
            "type {kind}, length {length}"
        );
    }
}

#[test]
fn an_unknown_type_is_refused_with_the_type_field() {
    // RFC 4271 §6.1 (test).
    for kind in [0, 6, 255] {
        assert_eq!(
            frame(&head(23, kind), INTERNAL),
            Err(Notification::with_data(1, 3, vec![kind]))
        );
    }
}

#[test]
fn a_marker_with_a_single_zero_bit_is_refused_before_all_else() {
    // RFC 4271 §6.1 (test).
    for position in 0..16 {
        let mut octets = head(5, 99);
        octets[position] = 0xfe;
        assert_eq!(frame(&octets, INTERNAL), Err(Notification::new(1, 1)));
    }
}

#[test]
fn decode_refuses_what_is_not_exactly_one_message() {
    let keepalive = message(4, &[]);
    let mut longer = keepalive.clone();
    longer.push(0);
    for octets in [&keepalive[..18], &longer, &[]] {
        let refused = decode(octets, INTERNAL).unwrap_err();
        assert_eq!((refused.code, refused.subcode), (1, 2));
    }
}

#[test]
fn a_shutdown_text_is_read_only_where_it_may_stand_and_only_whole() {
    let with = |subcode, data: &[u8]| Notification::with_data(6, subcode, data.to_vec());
    assert_eq!(
        with(cease::ADMINISTRATIVE_RESET, b"\x02hi").shutdown_text(),
        Ok(Some("hi"))
    );
    // RFC 9003 §2 (test): up to 255 octets, where RFC 8203 had 128.
    let long = "x".repeat(255);
    let sent = Notification::cease_with_text(cease::ADMINISTRATIVE_SHUTDOWN, &long);
    assert_eq!(sent.shutdown_text(), Ok(Some(long.as_str())));
    for (subcode, data) in [
        (cease::ADMINISTRATIVE_SHUTDOWN, &b""[..]),
        (cease::ADMINISTRATIVE_SHUTDOWN, &b"\x00"[..]),
        (cease::PEER_DECONFIGURED, &b"\x02hi"[..]),
    ] {
        assert_eq!(with(subcode, data).shutdown_text(), Ok(None));
    }
    assert_eq!(
        with(2, b"\x03hi").shutdown_text(),
        Err(ShutdownTextError::Length {
            announced: 3,
            present: 2
        })
    );
    assert_eq!(
        with(2, b"\x03hi\xff").shutdown_text(),
        Err(ShutdownTextError::NotUtf8 { valid: 2, length: 3 })
    );
}

#[test]
fn a_shutdown_text_that_is_too_long_is_cut_between_characters() {
    // 127 characters of two octets are 254; half of another would be the 255th.
    let sent = Notification::cease_with_text(2, &"é".repeat(200));
    assert_eq!(sent.shutdown_text().unwrap().unwrap().chars().count(), 127);
}

#[test]
fn every_assigned_code_has_a_text_of_its_own() {
    let assigned: Vec<(u8, u8)> = [
        (1, 0..=3),
        (2, 0..=7),
        (3, 0..=11),
        (5, 0..=3),
        (6, 0..=10),
        (4, 0..=0),
        (8, 0..=0),
    ]
    .into_iter()
    .flat_map(|(code, subcodes)| subcodes.map(move |subcode| (code, subcode)))
    .collect();
    let mut texts: Vec<_> = assigned
        .iter()
        .map(|(code, subcode)| text(*code, *subcode))
        .collect();
    assert!(texts.iter().all(|text| !text.contains("unknown")), "{texts:?}");
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), assigned.len());
    assert_eq!(text(99, 0), "unknown error code");
    assert_eq!(text(6, 99), "cease: unknown subcode");
}
