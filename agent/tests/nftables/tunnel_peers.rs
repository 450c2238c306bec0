//! Packets of protocol 4, from a raw socket to a raw socket.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use culvert_agent::dataplane::{Nftables, Written};
use culvert_agent::filter::UnknownTunnelPeers;

use crate::netns::in_namespace;
use crate::world::{Host, address, admitting, ipip, next_source, to};

const INNER: [u8; 28] = [0x45; 28];

fn peer() -> Host {
    Host::joined(
        "u0",
        "192.0.2.1/24",
        &["192.0.2.2/24", "192.0.2.3/24", "192.0.2.4/24"],
    )
}

#[test]
fn a_packet_from_a_node_passes_and_others_are_dropped_and_counted_by_source() {
    in_namespace(|| async {
        let peer = peer();
        let mut nftables = Nftables::open().unwrap();
        nftables
            .apply(&admitting(&["192.0.2.1", "192.0.2.2"]))
            .await
            .unwrap();
        assert_eq!(nftables.refused().await.unwrap(), Some(0));
        let receiver = ipip("192.0.2.1");
        let (known, strange, other) = (
            peer.ipip_from("192.0.2.2"),
            peer.ipip_from("192.0.2.3"),
            peer.ipip_from("192.0.2.4"),
        );
        for _ in 0..5 {
            strange.send_to(&INNER, &to("192.0.2.1")).unwrap();
        }
        other.send_to(&INNER, &to("192.0.2.1")).unwrap();
        known.send_to(&INNER, &to("192.0.2.1")).unwrap();
        assert_eq!(
            next_source(&receiver),
            address("192.0.2.2"),
            "the first to arrive is the known one's"
        );
        let by_source = nftables.refused_by_source().await.unwrap();
        let expected = BTreeMap::from([(address("192.0.2.3"), 5), (address("192.0.2.4"), 1)]);
        assert_eq!(by_source, expected);
        assert_eq!(nftables.refused().await.unwrap(), Some(6));

        // A node that joins is let in at once, and what was counted stays.
        let joined = admitting(&["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(nftables.apply(&joined).await.unwrap(), Written::Elements);
        strange.send_to(&INNER, &to("192.0.2.1")).unwrap();
        assert_eq!(next_source(&receiver), address("192.0.2.3"));
        assert_eq!(nftables.refused().await.unwrap(), Some(6));
    });
}

#[test]
fn other_protocols_are_let_through_whoever_sends_them() {
    in_namespace(|| async {
        let peer = peer();
        let mut nftables = Nftables::open().unwrap();
        nftables.apply(&admitting(&["192.0.2.1"])).await.unwrap();
        let here = crate::world::udp("192.0.2.1:4789");
        let there = peer.udp("192.0.2.3:4789");
        let seen = crate::world::source_seen(&there, "192.0.2.1:4789", &here);
        assert_eq!(seen.ip(), address("192.0.2.3"));
        assert_eq!(nftables.refused().await.unwrap(), Some(0));
    });
}

#[test]
fn switched_off_the_filter_lets_everybody_in() {
    in_namespace(|| async {
        let peer = peer();
        let mut nftables = Nftables::open().unwrap();
        let mut filter = admitting(&["192.0.2.1"]);
        nftables.apply(&filter).await.unwrap();
        filter.unknown_tunnel_peers = UnknownTunnelPeers::Off;
        assert_eq!(nftables.apply(&filter).await.unwrap(), Written::Table);
        let receiver = ipip("192.0.2.1");
        let strange = peer.ipip_from("192.0.2.3");
        strange.send_to(&INNER, &to("192.0.2.1")).unwrap();
        assert_eq!(next_source(&receiver), address("192.0.2.3"));
        assert_eq!(nftables.refused().await.unwrap(), None);
        assert_eq!(nftables.apply(&filter).await.unwrap(), Written::Nothing);
    });
}

#[test]
fn forged_sources_fill_the_set_and_no_more_and_are_dropped_all_the_same() {
    const FORGED: u16 = 1500;
    in_namespace(|| async {
        let peer = peer();
        let mut nftables = Nftables::open().unwrap();
        nftables
            .apply(&admitting(&["192.0.2.1", "192.0.2.2"]))
            .await
            .unwrap();
        let receiver = ipip("192.0.2.1");
        let known = peer.ipip_from("192.0.2.2");
        // A reply to them would have no way otherwise, and rp_filter might take offence.
        crate::world::ip("route add 10.9.0.0/16 dev u0");
        known.set_header_included_v4(true).unwrap();
        for forged in 0..FORGED {
            let [high, low] = forged.to_be_bytes();
            // RFC 791 §3.1: version and length, ten bytes that the kernel fills in, protocol, source, destination.
            let mut packet = vec![
                0x45, 0, 0, 48, 0, 0, 0, 0, 64, 4, 0, 0, 10, 9, high, low, 192, 0, 2, 1,
            ];
            packet.extend(INNER);
            known.send_to(&packet, &to("192.0.2.1")).unwrap();
        }
        known.set_header_included_v4(false).unwrap();
        known.send_to(&INNER, &to("192.0.2.1")).unwrap();
        assert_eq!(next_source(&receiver), address("192.0.2.2"));
        assert_eq!(nftables.refused().await.unwrap(), Some(u64::from(FORGED)));
        assert_eq!(nftables.refused_by_source().await.unwrap().len(), 1024);
    });
}

#[test]
fn while_the_nodes_change_no_packet_of_a_node_is_refused() {
    in_namespace(|| async {
        let peer = peer();
        let mut nftables = Nftables::open().unwrap();
        let few = admitting(&["192.0.2.1", "192.0.2.2"]);
        let more = admitting(&["192.0.2.1", "192.0.2.2", "198.51.100.1", "198.51.100.2"]);
        nftables.apply(&few).await.unwrap();
        let receiver = ipip("192.0.2.1");
        let known = peer.ipip_from("192.0.2.2");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let train = std::thread::spawn(move || {
            let mut sent = 0_u32;
            while !stopped.load(Ordering::Relaxed) {
                known.send_to(&INNER, &to("192.0.2.1")).unwrap();
                sent += 1;
            }
            sent
        });
        assert_eq!(next_source(&receiver), address("192.0.2.2"));
        for _ in 0..100 {
            assert_eq!(nftables.apply(&more).await.unwrap(), Written::Elements);
            assert_eq!(nftables.apply(&few).await.unwrap(), Written::Elements);
        }
        stop.store(true, Ordering::Relaxed);
        let sent = train.join().unwrap();
        assert!(sent > 200, "{sent} packets are not enough to meet a change");
        assert_eq!(nftables.refused().await.unwrap(), Some(0), "of {sent}");
    });
}
