//! What goes along within an AS and not beyond it: ORIGINATOR_ID, CLUSTER_LIST, extended communities that are not
//! transitive; and the Partial bit, which stays.

use culvert_bgp::id::RouterId;
use culvert_bgp::wire::message::{Message, PathAttributes};
use culvert_bgp::wire::{encode, encode_announcements};

use crate::malformed::{ANNOUNCED, AS_PATH, LOCAL_PREF, NEXT_HOP, ORIGIN};
use crate::{EXTERNAL, INTERNAL, address, clean_update, hex, nlri, update};

const REFLECTED: &str = "80 09 04 c0000207 80 0a 08 c0000203 c0000204";

#[test]
fn what_a_reflector_adds_is_read_and_written_within_the_as_alone() {
    // RFC 4456 §8 (test), octet by octet; both are optional and not transitive.
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF, REFLECTED].concat());
    let octets = update(&[], &attributes, &hex(ANNOUNCED));
    let read = clean_update(&octets, INTERNAL);
    let path = read.attributes.clone().unwrap();
    assert_eq!(path.originator_id, RouterId::new(address("192.0.2.7")));
    assert_eq!(path.cluster_list, [address("192.0.2.3"), address("192.0.2.4")]);
    assert_eq!(encode(&Message::Update(read), INTERNAL), octets);
    let outside = encode_announcements(&path, &[nlri("10.0.1.0/24")], EXTERNAL);
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP].concat());
    assert_eq!(outside, [update(&[], &attributes, &hex(ANNOUNCED))]);
}

#[test]
fn a_cluster_list_of_more_than_255_octets_is_written_with_an_extended_length() {
    let long = PathAttributes {
        local_pref: Some(100),
        cluster_list: (0..100).map(|last| [10, 0, 0, last].into()).collect(),
        ..PathAttributes::new(address("192.0.2.1").into())
    };
    let messages = encode_announcements(&long, &[nlri("10.0.1.0/24")], INTERNAL);
    assert_eq!(
        clean_update(&messages[0], INTERNAL).attributes.as_deref(),
        Some(&long)
    );
}

#[test]
fn extended_communities_that_are_not_transitive_stay_in_the_as() {
    // RFC 4360 §2, §6 (test): 0x40 in the first octet. Out of order and one of them twice, as no decoder leaves them.
    let (stays, leaves) = ([0x43, 0, 0, 0, 0, 0, 0, 1], [0, 2, 0xfc, 0, 0, 0, 0, 100]);
    let path = PathAttributes {
        local_pref: Some(100),
        extended_communities: vec![stays, leaves, stays],
        ..PathAttributes::new(address("192.0.2.1").into())
    };
    let read = |negotiated| {
        let messages = encode_announcements(&path, &[nlri("10.0.1.0/24")], negotiated);
        let attributes = clean_update(&messages[0], negotiated).attributes.unwrap();
        attributes.extended_communities.clone()
    };
    assert_eq!(read(INTERNAL), [leaves, stays]);
    assert_eq!(read(EXTERNAL), [leaves]);
    let none = PathAttributes {
        extended_communities: vec![stays],
        ..path.clone()
    };
    let messages = encode_announcements(&none, &[nlri("10.0.1.0/24")], EXTERNAL);
    let expected = hex(&["40 01 01 00 40 02 00", NEXT_HOP].concat());
    assert_eq!(messages, [update(&[], &expected, &hex(ANNOUNCED))]);
}

#[test]
fn partial_once_set_stays_set() {
    // RFC 4271 §5 (test): COMMUNITIES and LARGE_COMMUNITY with Partial, AGGREGATOR and EXTENDED_COMMUNITIES without.
    let shared = "c0 07 08 0000fde9 c0000203 e0 08 04 fc000064 c0 10 08 0002fc0000000064 \
                  e0 20 0c 000000010000000200000003";
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF, shared].concat());
    let octets = update(&[], &attributes, &hex(ANNOUNCED));
    let read = clean_update(&octets, INTERNAL);
    assert_eq!(encode(&Message::Update(read), INTERNAL), octets);
}
