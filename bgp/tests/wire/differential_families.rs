//! As [`crate::differential`], for IPv6, path identifiers and the newer capabilities.

use std::net::{Ipv4Addr, Ipv6Addr};

use culvert_bgp::id::Prefix;
use culvert_bgp::wire::message::{Capability, Nlri, PathAttributes};
use culvert_bgp::wire::{Negotiated, NegotiatedFamily, decode, encode_announcements};
use ipnet::{IpNet, Ipv6Net};
use zettabgp::BgpMessage as _;
use zettabgp::prelude::{
    BgpAddr, BgpAddrs, BgpAttrItem, BgpCapability, BgpSessionParams, BgpTransportMode, BgpUpdateMessage,
};

use crate::{BOTH_FAMILIES, INTERNAL, clean_update, hex, update};

fn session(mode: BgpTransportMode) -> BgpSessionParams {
    let mut session = BgpSessionParams::new(64512, 90, mode, Ipv4Addr::new(192, 0, 2, 1), Vec::new());
    session.fuzzy_pathid = false;
    session
}

/// The attributes that the library reads from an UPDATE.
fn theirs(octets: &[u8], mode: BgpTransportMode) -> Vec<BgpAttrItem> {
    let mut read = BgpUpdateMessage::new();
    read.decode_from(&session(mode), &octets[19..]).unwrap();
    read.attrs
}

/// What the library makes of one capability: its kind, or nothing it knows.
fn their_capability(octets: &str) -> Option<BgpCapability> {
    BgpCapability::from_buffer(&hex(octets)).unwrap().0.ok()
}

#[test]
fn both_read_the_same_routes_of_ipv6_from_what_we_write() {
    let sent: Vec<Nlri> = (0..=128_u8)
        .map(|bits| {
            let address = Ipv6Addr::from(0x2001_0db8_1234_5678_9abc_def0_1357_9bdf_u128);
            Prefix::new(IpNet::V6(Ipv6Net::new(address, bits).unwrap())).into()
        })
        .collect();
    let path = PathAttributes::new("2001:db8::1".parse().unwrap());
    let octets = encode_announcements(&path, &sent, BOTH_FAMILIES).concat();
    assert_eq!(clean_update(&octets, BOTH_FAMILIES).announced, sent);
    let attributes = theirs(&octets, BgpTransportMode::IPv4);
    let Some(BgpAttrItem::MPUpdates(reach)) = attributes.first() else {
        panic!("MP_REACH_NLRI is the first attribute: {attributes:?}");
    };
    assert_eq!(reach.nexthop, BgpAddr::V6("2001:db8::1".parse().unwrap()));
    let BgpAddrs::IPV6U(list) = &reach.addrs else {
        panic!("not IPv6 unicast: {:?}", reach.addrs);
    };
    let read: Vec<Nlri> = list
        .iter()
        .map(|item| Prefix::new(IpNet::V6(Ipv6Net::new(item.addr, item.prefixlen).unwrap())).into())
        .collect();
    assert_eq!(read, sent);
}

#[test]
fn known_difference_the_library_takes_a_next_hop_of_ipv6_for_one_of_ipv4() {
    // RFC 8950 §3: sixteen octets, of which the library reads the first four.
    let reach = "80 0e 19 0001 01 10 20010db8000000000000000000000001 00 18 0a0001";
    let octets = update(
        &[],
        &hex(&[reach, "40 01 01 00 40 02 00 40 05 04 00000064"].concat()),
        &[],
    );
    let attributes = theirs(&octets, BgpTransportMode::IPv4);
    let Some(BgpAttrItem::MPUpdates(read)) = attributes.first() else {
        panic!("{attributes:?}");
    };
    assert_eq!(read.nexthop, BgpAddr::V4(Ipv4Addr::new(0x20, 1, 0xd, 0xb8)));
    let extended = Negotiated {
        ipv4_unicast: NegotiatedFamily {
            extended_next_hop: true,
            ..NegotiatedFamily::plain(true)
        },
        ..INTERNAL
    };
    let ours = clean_update(&octets, extended).attributes.unwrap();
    assert_eq!(ours.next_hop.to_string(), "2001:db8::1");
    assert!(decode(&octets, INTERNAL).is_err());
}

#[test]
fn known_difference_the_library_reads_a_cluster_list_by_the_transport() {
    // RFC 4456 §8: four octets each, whatever the session runs over.
    let clusters = "40 01 01 00 40 02 00 80 0a 08 c0000203 c0000204";
    let octets = update(&[], &hex(clusters), &[]);
    let count = |mode| {
        let lists = theirs(&octets, mode).into_iter().find_map(|item| match item {
            BgpAttrItem::ClusterList(list) => Some(list.value.len()),
            _ => None,
        });
        lists.unwrap()
    };
    assert_eq!(count(BgpTransportMode::IPv4), 2);
    assert_eq!(count(BgpTransportMode::IPv6), 0);
}

#[test]
fn known_difference_the_library_does_not_look_at_the_bit_of_rfc_8538() {
    assert_eq!(their_capability("40 02 4078"), their_capability("40 02 0078"));
}

#[test]
fn known_difference_the_library_knows_neither_long_messages_nor_next_hops_of_ipv6() {
    assert_eq!(their_capability("06 00"), None);
    assert_eq!(their_capability("05 06 0001 0001 0002"), None);
}

#[test]
fn known_difference_the_library_takes_any_direction_of_add_path() {
    // RFC 7911 §4: 0 and 4 are none of the three that there are.
    for octets in ["45 04 0001 01 00", "45 04 0001 01 04"] {
        assert!(matches!(
            their_capability(octets),
            Some(BgpCapability::CapAddPath(_))
        ));
        let octets = hex(octets);
        let length = u8::try_from(octets.len()).unwrap();
        let open = [
            &hex("04 fc00 005a c0000201")[..],
            &[length + 2, 2, length],
            &octets,
        ]
        .concat();
        let read = decode(&crate::message(1, &open), INTERNAL).unwrap().message;
        let culvert_bgp::wire::message::Message::Open(read) = read else {
            panic!("not an OPEN");
        };
        assert!(matches!(
            read.capabilities[..],
            [Capability::Unknown { code: 69, .. }]
        ));
    }
}
