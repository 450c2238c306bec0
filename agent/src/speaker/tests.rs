//! The driver on real sockets of the loopback interface.

use std::net::Ipv4Addr;

use culvert_bgp::config::Password;
use culvert_bgp::id::{Asn, RouterId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::uapi::set_md5_key;

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
    started_with(|_| {}).await
}

/// The same, on other terms.
async fn started_with(change: impl FnOnce(&mut PeerConfig)) -> (Running, u16) {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let running = start(
        config(),
        &Endpoint {
            port: free,
            listen: BTreeSet::new(),
        },
        IntCounter::new("refused", "them").unwrap(),
    )
    .unwrap();
    let mut peer = PeerConfig::new(IpAddr::V4(PEER), Asn::new(64_512).unwrap());
    change(&mut peer);
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
        &Endpoint {
            port,
            listen: BTreeSet::new(),
        },
        IntCounter::new("refused", "them").unwrap(),
    )
    .expect_err("taken")
    .to_string();
    assert!(
        error.contains(&format!("port {port}")) && error.contains("bgp.listenPort"),
        "{error}"
    );
}

/// A socket at the peer's address, with this key for the speaker's.
fn peer_socket(key: Option<&str>) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((PEER, 0).into()).unwrap();
    if let Some(key) = key {
        let to = IpAddr::V4(LOCAL);
        set_md5_key(&socket, SocketFamily::V4, to, Some(key.as_bytes())).unwrap();
    }
    socket
}

/// Waits until the kernel tells for what reason it refuses segments, and sees that the connection did not come about.
async fn refused_for(key: Option<&str>, port: u16, reason: TransportError) {
    let before = md5::Refused::now();
    let connect = tokio::spawn(peer_socket(key).connect((LOCAL, port).into()));
    let told = async {
        while before.explain(md5::Refused::now(), reason != TransportError::Md5Unexpected) != reason {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, told).await.unwrap();
    assert!(!connect.is_finished(), "{reason}");
    connect.abort();
}

#[tokio::test]
async fn only_a_peer_with_the_same_password_is_answered_and_the_kernel_tells_why_another_is_not() {
    // RFC 2385 §2 (test).
    let (running, port) = started_with(|peer| peer.password = Some(Password::new("one"))).await;
    let connect = peer_socket(Some("one")).connect((LOCAL, port).into());
    let mut known = timeout(LIMIT, connect).await.unwrap().unwrap();
    let mut header = [0; 19];
    timeout(LIMIT, known.read_exact(&mut header))
        .await
        .unwrap()
        .unwrap();
    refused_for(Some("two"), port, TransportError::Md5Differs).await;
    refused_for(None, port, TransportError::Md5Missing).await;

    let open = PeerConfig::new(IpAddr::V4(PEER), Asn::new(64_513).unwrap());
    let command = Command::Peers([(open.address, open)].into());
    running.commands.send(command).await.unwrap();
    let mut peers = running.peers.clone();
    let changed = peers.wait_for(|peers| peers.iter().any(|peer| peer.asn.get() == 64_513));
    timeout(LIMIT, changed).await.unwrap().unwrap();
    refused_for(Some("one"), port, TransportError::Md5Unexpected).await;
}

#[tokio::test]
async fn attempts_that_get_no_answer_are_told_of_with_what_the_kernel_refused_meanwhile() {
    let listening = peer_socket(Some("two"));
    let port = listening.local_addr().unwrap().port();
    let _listener = listening.listen(1).unwrap();
    let (running, _) = started_with(|peer| {
        peer.password = Some(Password::new("one"));
        peer.port = Some(port);
        // Shorter than an attempt: the next one begins while the first has not failed.
        peer.connect_retry = Some(Duration::from_secs(2));
    })
    .await;
    let mut peers = running.peers.clone();
    let wanted = Some(TransportError::Md5Differs.into());
    let told = peers.wait_for(|peers| peers.iter().any(|peer| peer.reason == wanted));
    timeout(LIMIT, told).await.unwrap().unwrap();
}

/// How many segments the kernel has dropped for their TTL.
fn dropped_for_ttl() -> u64 {
    let text = std::fs::read_to_string("/proc/self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split_whitespace().zip(numbers.split_whitespace());
    let (_, number) = both.find(|(name, _)| *name == "TCPMinTTLDrop").unwrap();
    number.parse().unwrap()
}

#[tokio::test]
async fn what_a_peer_sends_from_farther_than_it_may_be_is_dropped() {
    // RFC 5082 §3 (test).
    let (_running, port) = started_with(|peer| peer.ttl_security = Some(1)).await;
    for (ttl, is_heard) in [(255, true), (254, false)] {
        let socket = peer_socket(None);
        socket2::SockRef::from(&socket).set_ttl_v4(ttl).unwrap();
        let connect = socket.connect((LOCAL, port).into());
        let mut stream = timeout(LIMIT, connect).await.unwrap().unwrap();
        // Its OPEN says that the speaker has the connection, and its terms.
        let mut header = [0; 19];
        timeout(LIMIT, stream.read_exact(&mut header))
            .await
            .unwrap()
            .unwrap();
        let before = dropped_for_ttl();
        stream.write_all(&[0; 19]).await.unwrap();
        if is_heard {
            // No header of BGP: the speaker says so and closes.
            let mut bytes = Vec::new();
            let _ = timeout(LIMIT, stream.read_to_end(&mut bytes)).await.unwrap();
        } else {
            let dropped = async {
                while dropped_for_ttl() == before {
                    tokio::task::yield_now().await;
                }
            };
            timeout(LIMIT, dropped).await.unwrap();
        }
    }
}
