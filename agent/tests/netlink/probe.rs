//! Marked packets on a real kernel: what is sent is seen where it passes, and nothing else is.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use culvert_agent::dataplane::probe::{Capture, Kind, Sender, Sighting};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use crate::netns::{in_namespace, ip};

const NEAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const LIMIT: Duration = Duration::from_secs(60);

/// Counts until so many answers of a size are there.
async fn until(capture: &mut Capture, size: u16, count: u32) {
    let begun = tokio::time::Instant::now();
    while capture.so_far(Kind::Answer, size) < count {
        assert!(begun.elapsed() < LIMIT, "no answer within {LIMIT:?}");
        let _ = timeout(Duration::from_millis(10), capture.count()).await;
    }
}

#[test]
fn probes_and_their_answers_are_counted_by_link_direction_and_size() {
    in_namespace(|| async {
        for address in [NEAR, FAR] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        let mut capture = Capture::begin(7).unwrap();
        let other = Sender::new(8, NEAR, FAR).unwrap();
        let sender = Sender::new(7, NEAR, FAR).unwrap();
        for number in 0..3 {
            other.send(64, number).unwrap();
            sender.send(64, number).unwrap();
            sender.send(1000, number).unwrap();
        }
        until(&mut capture, 1000, 3).await;
        until(&mut capture, 64, 3).await;
        let seen = capture.end();
        for kind in [Kind::Request, Kind::Answer] {
            for size in [64, 1000] {
                for outgoing in [true, false] {
                    let sighting = Sighting {
                        link: "lo".to_owned(),
                        outgoing,
                        outer: None,
                        kind,
                        size,
                    };
                    assert_eq!(seen.get(&sighting), Some(&3), "{sighting:?}: {seen:#?}");
                }
            }
        }
        assert_eq!(seen.len(), 8, "{seen:#?}");
    });
}

#[test]
fn of_an_encapsulated_probe_the_outer_addresses_are_told() {
    in_namespace(|| async {
        for address in [NEAR, FAR] {
            ip(&format!("addr add {address}/32 dev lo"));
        }
        // An echo request with our mark and the token 7, as raw octets (RFC 791, RFC 792).
        let mut inner = vec![
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 1, 0, 0, 10, 65, 0, 2, 10, 65, 1, 2,
        ];
        inner.extend([8, 0, 0, 0, 0, 0, 0, 1]);
        inner.extend(b"cvpr");
        inner.extend(7_u64.to_be_bytes());
        let mut capture = Capture::begin(7).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
        socket.bind(&SocketAddr::from((NEAR, 0)).into()).unwrap();
        socket
            .send_to(&inner, &SocketAddr::from((FAR, 0)).into())
            .unwrap();
        let begun = tokio::time::Instant::now();
        while capture.so_far(Kind::Request, 40) == 0 {
            assert!(begun.elapsed() < LIMIT, "not seen within {LIMIT:?}");
            let _ = timeout(Duration::from_millis(10), capture.count()).await;
        }
        let seen = capture.end();
        assert!(
            !seen.is_empty() && seen.keys().all(|sighting| sighting.outer == Some((NEAR, FAR))),
            "{seen:#?}"
        );
    });
}

/// Too large for the link, it is refused and not cut in pieces.
#[test]
fn a_probe_is_never_cut_in_pieces() {
    in_namespace(|| async {
        ip("addr add 192.0.2.1/32 dev lo");
        ip("link set lo mtu 1000");
        let sender = Sender::new(7, NEAR, NEAR).unwrap();
        assert!(sender.send(1000, 0).is_ok());
        assert!(sender.send(1001, 1).is_err());
    });
}
