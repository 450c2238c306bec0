//! The driver on real sockets of the loopback interface.

mod protection;

use std::net::Ipv4Addr;

use culvert_bgp::config::Password;
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

/// All addresses of this host, on this port.
fn at(port: u16) -> Endpoint {
    Endpoint {
        port,
        addresses: BTreeSet::new(),
    }
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A speaker on a free port that knows one peer.
async fn started() -> (Running, u16) {
    started_with(|_| {}).await
}

/// The same, on other terms.
async fn started_with(change: impl FnOnce(&mut PeerConfig)) -> (Running, u16) {
    started_for(IpAddr::V4(PEER), change).await
}

/// The same, with a peer at this address.
async fn started_for(peer: IpAddr, change: impl FnOnce(&mut PeerConfig)) -> (Running, u16) {
    let free = free_port();
    let running = start(config(), at(free), Metrics::register().unwrap()).unwrap();
    let mut peer = PeerConfig::new(peer, Asn::new(64_512).unwrap());
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
    let error = start(config(), at(port), Metrics::register().unwrap())
        .expect_err("taken")
        .to_string();
    assert!(
        error.contains(&format!("port {port}")) && error.contains("bgp.listenPort"),
        "{error}"
    );
}

/// What a peer in our AS says first, octet by octet: its OPEN (RFC 4271 §4.2) with a hold time of 90 s, IPv4 unicast
/// (RFC 4760 §8) and route refresh (RFC 2918 §2), and a KEEPALIVE.
fn greeting() -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend([0, 41, 1, 4, 0xfc, 0x00, 0, 90]);
    bytes.extend(PEER.octets());
    bytes.extend([12, 2, 6, 1, 4, 0, 1, 0, 1, 2, 2, 2, 0]);
    bytes.extend(keepalive());
    bytes
}

fn keepalive() -> Vec<u8> {
    [&[0xff; 16][..], &[0, 19, 4]].concat()
}

/// Asks for all IPv4 routes once more (RFC 2918 §3).
fn refresh() -> Vec<u8> {
    [&[0xff; 16][..], &[0, 23, 5, 0, 1, 0, 1]].concat()
}

/// Waits until the other end's kernel has all that was written. The paused clock runs ahead as soon as nobody has anything to
/// do, and what is still on its way within the kernel is nothing to do.
async fn delivered(stream: &TcpStream) {
    let local = format!(":{:04X} ", stream.local_addr().unwrap().port());
    loop {
        // proc_net_tcp.rst: number, local address, remote address, state, tx_queue:rx_queue.
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let own = sockets.lines().find(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields
                .get(1)
                .is_some_and(|address| format!("{address} ").ends_with(&local))
        });
        let queue = own.and_then(|line| line.split_whitespace().nth(4)).unwrap();
        if queue.starts_with("00000000:") {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_stays_alive_and_reads_nothing_loses_its_session_by_the_send_hold_timer() {
    // RFC 9687 §4.4, §6 (test).
    let (running, port) = started().await;
    let host = |n: u32| Prefix::new(ipnet::Ipv4Net::from(Ipv4Addr::from(0x0a00_0000 + n)).into());
    let exports = (0..50_000).map(host).collect();
    running.commands.send(Command::Exports(exports)).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((PEER, 0).into()).unwrap();
    // What is announced is then soon more than the kernel holds.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect((LOCAL, port).into()).await.unwrap();
    stream.write_all(&greeting()).await.unwrap();
    delivered(&stream).await;
    let mut peers = running.peers.clone();
    let up = peers.wait_for(|peers| peers[0].state == culvert_bgp::speaker::State::Established);
    up.await.unwrap();

    let began = Instant::now();
    let alive = async {
        for round in 0.. {
            // Twelve megabytes in all; the kernel takes four at most unless it is told otherwise (tcp(7), tcp_wmem).
            let more = if round < 48 { refresh() } else { keepalive() };
            stream.write_all(&more).await.unwrap();
            delivered(&stream).await;
            tokio::time::sleep(Duration::from_secs(if round < 48 { 2 } else { 20 })).await;
        }
    };
    let gone = running.peers.clone();
    let gone = async move {
        let mut peers = gone;
        let is_gone = |peers: &Vec<PeerStatus>| peers[0].state < culvert_bgp::speaker::State::Established;
        peers.wait_for(is_gone).await.unwrap()[0].reason.clone()
    };
    let reason = tokio::select! {
        reason = gone => reason,
        () = alive => None,
    };
    assert_eq!(reason, Some(culvert_bgp::reason::Reason::SendHoldTimer));
    // Eight minutes from when nothing went out any more.
    let after = began.elapsed().as_secs();
    assert!((480..600).contains(&after), "after {after} s");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_reads_slowly_keeps_its_session() {
    // RFC 9687 §4.4 (test): whatever goes out begins the time anew.
    let (mut ours, mut peer) = connection::tests::connected().await;
    let mut stalls = Stalls::default();
    let id = ConnectionId(1);
    let message = std::sync::Arc::new(vec![0; 1 << 20]);
    while ours.send(std::sync::Arc::clone(&message)) == Sent::Taken {}
    // Far more than the kernel takes once the peer has read a little.
    for _ in 0..8 {
        ours.send(std::sync::Arc::clone(&message));
    }
    let stalled = Input::Stalled { connection: id };
    assert_eq!(stalls.note(id, &ours), Some(stalled.clone()));
    assert_eq!(stalls.note(id, &ours), None, "it is told once");
    let connections = BTreeMap::from([(id, ours)]);
    assert_eq!(stalls.look(&connections), [], "nothing has gone out");
    let progress = connections[&id].progress();
    let mut some = vec![0; 1 << 20];
    while connections[&id].progress() == progress {
        peer.read_exact(&mut some).await.unwrap();
    }
    let sent = Input::Sent { connection: id };
    assert!(
        connections[&id].waiting() > 0,
        "this is about one that still waits"
    );
    assert_eq!(stalls.look(&connections), [sent.clone(), stalled]);
    while connections[&id].waiting() > 0 {
        peer.read_exact(&mut some).await.unwrap();
    }
    assert_eq!(stalls.look(&connections), [sent]);
    assert_eq!(stalls.due(), None);
}

/// Whether an OPEN comes from there.
async fn is_greeted(port: u16) -> bool {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((PEER, 0).into()).unwrap();
    let Ok(Ok(mut stream)) = timeout(LIMIT, socket.connect((LOCAL, port).into())).await else {
        return false;
    };
    let mut header = [0; 19];
    matches!(timeout(LIMIT, stream.read_exact(&mut header)).await, Ok(Ok(_)))
}

async fn wait_until_greeted(port: u16) {
    let greeted = async {
        while !is_greeted(port).await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, greeted).await.unwrap();
}

#[tokio::test]
async fn a_speaker_that_is_told_to_listens_elsewhere_and_its_sessions_stand() {
    let (running, first) = started_with(|peer| peer.password = Some(Password::new("one"))).await;
    let connect =
        protection::socket_from(PEER.into(), LOCAL.into(), Some("one")).connect((LOCAL, first).into());
    let mut stream = timeout(LIMIT, connect).await.unwrap().unwrap();
    stream.write_all(&greeting()).await.unwrap();
    let is_up = |peers: &Vec<PeerStatus>| peers[0].state == culvert_bgp::speaker::State::Established;
    let mut peers = running.peers.clone();
    timeout(LIMIT, peers.wait_for(is_up)).await.unwrap().unwrap();

    // Another port, and on one address alone; then the same port on all addresses.
    let second = free_port();
    for addresses in [BTreeSet::from([IpAddr::V4(LOCAL)]), BTreeSet::new()] {
        let endpoint = Endpoint {
            port: second,
            addresses,
        };
        running.commands.send(Command::Listen(endpoint)).await.unwrap();
        let reached = async {
            loop {
                // The password goes with it: without, nobody answers.
                let connect = protection::socket_from(PEER.into(), LOCAL.into(), Some("one"))
                    .connect((LOCAL, second).into());
                if connect.await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(LIMIT, reached).await.unwrap();
    }
    assert!(
        TcpStream::connect((LOCAL, first)).await.is_err(),
        "nobody listens there any more"
    );
    stream.write_all(&keepalive()).await.unwrap();
    assert!(
        is_up(&running.peers.borrow()),
        "{:?}",
        running.peers.borrow()[0].reason
    );
    assert_eq!(running.peers.borrow()[0].established_count, 1);
}

#[tokio::test]
async fn a_speaker_that_cannot_listen_where_it_should_stays_says_so_and_comes_back_to_it() {
    let (mut running, first) = started().await;
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let second = taken.local_addr().unwrap().port();
    running.commands.send(Command::Listen(at(second))).await.unwrap();
    timeout(LIMIT, running.listening.changed())
        .await
        .unwrap()
        .unwrap();
    let said = running.listening.borrow_and_update().clone();
    assert!(said.is_some_and(|said| said.contains(&format!("port {second}"))));
    wait_until_greeted(first).await;
    drop(taken);
    let over = running.listening.wait_for(Option::is_none);
    timeout(LIMIT, over).await.unwrap().unwrap();
    wait_until_greeted(second).await;
}
