//! The driver on real sockets of the loopback interface.

use std::net::Ipv4Addr;

use culvert_bgp::id::{Asn, RouterId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;

/// Far more than anything here takes.
const LIMIT: Duration = Duration::from_secs(30);

const LOCAL: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

fn config() -> SpeakerConfig {
    SpeakerConfig {
        connect_retry: Duration::from_secs(3600),
        seed: 1,
        ..SpeakerConfig::new(Asn::new(64_512).unwrap(), RouterId::new(LOCAL).unwrap(), LOCAL)
    }
}

/// A speaker on a free port that knows one peer.
async fn started() -> (Running, u16) {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let running = start(
        config(),
        Endpoint {
            local_address: LOCAL,
            port: free,
        },
    )
    .unwrap();
    let peer = PeerConfig::new(IpAddr::V4(PEER), Asn::new(64_512).unwrap());
    running
        .commands
        .send(Command::Peers([(peer.address, peer)].into()))
        .await
        .unwrap();
    let mut peers = running.peers.clone();
    timeout(LIMIT, peers.wait_for(|peers| peers.len() == 1))
        .await
        .unwrap()
        .unwrap();
    (running, free)
}

async fn connect(from: Ipv4Addr, port: u16) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    timeout(LIMIT, socket.connect((LOCAL, port).into()))
        .await
        .unwrap()
        .unwrap()
}

#[tokio::test]
async fn a_peer_is_answered_with_an_open_and_a_stranger_with_nothing() {
    let (_running, port) = started().await;
    let mut header = [0; 19];
    let mut known = connect(PEER, port).await;
    timeout(LIMIT, known.read_exact(&mut header))
        .await
        .unwrap()
        .unwrap();
    // RFC 4271 §4.1: sixteen octets of ones, the length, and type 1 for an OPEN.
    assert_eq!((&header[..16], header[18]), (&[0xff; 16][..], 1));

    let mut stranger = connect(STRANGER, port).await;
    let mut bytes = Vec::new();
    // The end of the stream or a reset: in any case, not a byte.
    let _ = timeout(LIMIT, stranger.read_to_end(&mut bytes)).await.unwrap();
    assert!(bytes.is_empty(), "{bytes:?}");
}

#[tokio::test]
async fn what_is_no_bgp_is_answered_with_a_notification_and_the_end() {
    let (running, port) = started().await;
    let mut stream = connect(PEER, port).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut bytes))
        .await
        .unwrap()
        .unwrap();
    // RFC 4271 §6.1: Message Header Error (1), Connection Not Synchronized (1), after our own OPEN.
    let notification = [0, 21, 3, 1, 1];
    assert_eq!(&bytes[bytes.len() - 5..], notification);
    let mut peers = running.peers.clone();
    let told = timeout(
        LIMIT,
        peers.wait_for(|peers| peers.iter().any(|peer| peer.reason.is_some())),
    )
    .await;
    assert!(told.is_ok(), "nobody is told why");
}

#[tokio::test]
async fn a_stop_closes_without_a_notification_so_that_the_peer_keeps_our_routes() {
    let (running, port) = started().await;
    let mut stream = connect(PEER, port).await;
    let mut header = [0; 19];
    timeout(LIMIT, stream.read_exact(&mut header))
        .await
        .unwrap()
        .unwrap();
    let (done, stopped) = oneshot::channel();
    running.commands.send(Command::Stop { done }).await.unwrap();
    timeout(LIMIT, stopped).await.unwrap().unwrap();
    let mut rest = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    let length = usize::from(header[16]) * 256 + usize::from(header[17]);
    assert_eq!(
        rest.len(),
        length - header.len(),
        "only the rest of the OPEN was left"
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = start(
        config(),
        Endpoint {
            local_address: LOCAL,
            port,
        },
    )
    .expect_err("taken")
    .to_string();
    assert!(
        error.contains(&format!("port {port}")) && error.contains("bgp.listenPort"),
        "{error}"
    );
}
