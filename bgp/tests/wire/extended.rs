//! Messages beyond 4096 octets (RFC 8654): which may be, in which direction, and how routes fill them.

use culvert_bgp::wire::message::{Directions, Message, Notification, PathAttributes};
use culvert_bgp::wire::{
    MAX_EXTENDED_LENGTH, Negotiated, decode, encode, encode_announcements, encode_withdrawals, frame,
};

use crate::{BOTH_FAMILIES, BOTH_WAYS, address, clean_update, message, nlri};

const EXTENDED: Negotiated = Negotiated {
    extended_messages: BOTH_WAYS,
    ..BOTH_FAMILIES
};

fn head(length: u16, kind: u8) -> Vec<u8> {
    let mut octets = vec![0xff; 16];
    octets.extend(length.to_be_bytes());
    octets.push(kind);
    octets
}

#[test]
fn open_and_keepalive_stay_as_short_as_they_were() {
    // RFC 8654 §4 (test).
    for (kind, length, fits) in [
        (1, 4096, true),
        (1, 4097, false),
        (4, 4097, false),
        (2, 4097, true),
        (2, 65535, true),
        (3, 65535, true),
    ] {
        let framed = frame(&head(length, kind), EXTENDED);
        let refused = Notification::with_data(1, 2, length.to_be_bytes().to_vec());
        let expected = if fits { Ok(None) } else { Err(refused) };
        assert_eq!(framed, expected, "type {kind}, length {length}");
    }
}

#[test]
fn each_end_takes_what_it_said_and_sends_what_the_other_said() {
    // RFC 8654 §4 (test): the capability says what its sender can take.
    let only = |send, receive| Negotiated {
        extended_messages: Directions { send, receive },
        ..BOTH_FAMILIES
    };
    assert!(frame(&head(4097, 2), only(false, true)).is_ok());
    assert!(frame(&head(4097, 2), only(true, false)).is_err());
    let list = vec![nlri("10.0.1.0/24"); 3000];
    assert_eq!(encode_withdrawals(&list, only(true, false)).len(), 1);
    assert_eq!(encode_withdrawals(&list, only(false, true)).len(), 3);
}

#[test]
fn routes_fill_the_long_messages_and_arrive_whole() {
    let sent: Vec<_> = (0..30_000_u32)
        .map(|number| nlri(&format!("10.{}.{}.0/26", number / 250, number % 250)))
        .collect();
    let attributes = PathAttributes {
        local_pref: Some(100),
        ..PathAttributes::new(address("192.0.2.1").into())
    };
    let messages = encode_announcements(&attributes, &sent, EXTENDED);
    // Five octets a route: 30,000 of them are 150,000.
    assert_eq!(messages.len(), 3);
    assert!(messages[0].len() > MAX_EXTENDED_LENGTH - 5);
    let received: Vec<_> = messages
        .iter()
        .flat_map(|octets| clean_update(octets, EXTENDED).announced)
        .collect();
    assert_eq!(received, sent);
}

#[test]
fn attributes_for_which_4096_octets_are_too_few_are_announced() {
    let attributes = PathAttributes {
        local_pref: Some(100),
        unknown: vec![(99, vec![7; 60_000])],
        ..PathAttributes::new(address("192.0.2.1").into())
    };
    let messages = encode_announcements(&attributes, &[nlri("10.0.1.0/24")], EXTENDED);
    let read = clean_update(&messages[0], EXTENDED);
    assert_eq!(read.attributes.as_deref(), Some(&attributes));
}

#[test]
fn the_data_of_a_notification_has_the_room_that_the_peer_gives() {
    let sent = Notification::with_data(3, 9, vec![7; 70_000]);
    let long = encode(&Message::Notification(sent.clone()), EXTENDED);
    assert_eq!(long.len(), 65535);
    assert!(matches!(
        decode(&long, EXTENDED).unwrap().message,
        Message::Notification(_)
    ));
    assert_eq!(encode(&Message::Notification(sent), BOTH_FAMILIES).len(), 4096);
    assert!(decode(&message(3, &vec![6; 4078]), BOTH_FAMILIES).is_err());
}
