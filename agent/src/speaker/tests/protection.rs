//! Sessions that nobody else may have: passwords (RFC 2385) and the distance of the peer (RFC 5082). Each test has a network
//! namespace of its own, since the kernel counts what it refuses by namespace.

use std::io::Write;
use std::net::Ipv6Addr;
use std::process::Command as Program;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::uapi::set_md5_key;

/// The speaker's address and the peer's, of both families.
const PAIRS: [[IpAddr; 2]; 2] = [
    [IpAddr::V4(LOCAL), IpAddr::V4(PEER)],
    [
        IpAddr::V6(Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, 1)),
        IpAddr::V6(Ipv6Addr::new(0xfd31, 0, 0, 0, 0, 0, 0, 2)),
    ],
];

/// Runs `test` for both families, each on a thread in a new network namespace, with a runtime that stays on that thread.
fn in_namespaces<F: Future<Output = ()> + 'static>(test: fn(local: IpAddr, peer: IpAddr) -> F) {
    for [local, peer] in PAIRS {
        let thread = std::thread::spawn(move || {
            if let Err(why) = unshare(CloneFlags::CLONE_NEWNET) {
                let why = format!("SKIPPED: no network namespace may be made here ({why}); run as root");
                let _ = writeln!(std::io::stderr(), "{why}");
                return;
            }
            ip("link set lo up");
            for address in PAIRS.as_flattened().iter().filter(|address| address.is_ipv6()) {
                ip(&format!("addr add {address}/128 dev lo nodad"));
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(test(local, peer));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

fn ip(arguments: &str) {
    let status = Program::new("ip").args(arguments.split_whitespace()).status();
    assert!(status.expect("iproute2 is installed").success(), "ip {arguments}");
}

/// A socket at `from`, with this key for what goes to `to`.
pub(super) fn socket_from(from: IpAddr, to: IpAddr, key: Option<&str>) -> TcpSocket {
    let socket = if from.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.unwrap();
    socket.bind((from, 0).into()).unwrap();
    if let Some(key) = key {
        set_md5_key(&socket, SocketFamily::of(from), to, Some(key.as_bytes())).unwrap();
    }
    socket
}

async fn read_header(stream: &mut TcpStream) {
    let mut header = [0; 19];
    timeout(LIMIT, stream.read_exact(&mut header))
        .await
        .unwrap()
        .unwrap();
}

#[test]
fn only_a_peer_with_the_same_password_is_answered_and_the_kernel_tells_why_another_is_not() {
    // RFC 2385 §2 (test).
    in_namespaces(|local, peer| async move {
        let (running, port) = started_for(peer, |peer| peer.password = Some(Password::new("one"))).await;
        // Waits until the kernel tells for what reason it refuses segments, and sees that there is no connection.
        let refused_for = |key: Option<&'static str>, reason: TransportError| async move {
            let before = md5::Refused::now();
            let connect = tokio::spawn(socket_from(peer, local, key).connect((local, port).into()));
            let has_password = reason != TransportError::Md5Unexpected;
            let told = async {
                while before.explain(md5::Refused::now(), has_password) != reason {
                    tokio::task::yield_now().await;
                }
            };
            timeout(LIMIT, told).await.unwrap();
            assert!(!connect.is_finished(), "{reason}");
            connect.abort();
        };
        let connect = socket_from(peer, local, Some("one")).connect((local, port).into());
        let mut known = timeout(LIMIT, connect).await.unwrap().unwrap();
        read_header(&mut known).await;
        refused_for(Some("two"), TransportError::Md5Differs).await;
        refused_for(None, TransportError::Md5Missing).await;

        let open = PeerConfig::new(peer, Asn::new(64_513).unwrap());
        let command = Command::Peers([(open.address, open)].into());
        running.commands.send(command).await.unwrap();
        let mut peers = running.peers.clone();
        let changed = peers.wait_for(|peers| peers.iter().any(|peer| peer.asn.get() == 64_513));
        timeout(LIMIT, changed).await.unwrap().unwrap();
        refused_for(Some("one"), TransportError::Md5Unexpected).await;
    });
}

#[test]
fn attempts_that_get_no_answer_are_told_of_with_what_the_kernel_refused_meanwhile() {
    in_namespaces(|local, peer| async move {
        let listening = socket_from(peer, local, Some("two"));
        let port = listening.local_addr().unwrap().port();
        let _listener = listening.listen(1).unwrap();
        let (running, _) = started_for(peer, |peer| {
            peer.password = Some(Password::new("one"));
            peer.port = Some(port);
            peer.source = Some(local);
            // Shorter than an attempt: the next one begins while the first has not failed.
            peer.connect_retry = Some(Duration::from_secs(2));
        })
        .await;
        let mut peers = running.peers.clone();
        let wanted = Some(TransportError::Md5Differs.into());
        let told = peers.wait_for(|peers| peers.iter().any(|peer| peer.reason == wanted));
        let status = timeout(LIMIT, told).await.unwrap().unwrap()[0].clone();
        assert!(status.failures > 0 && status.failed.is_some());
    });
}

/// How many segments the kernel has dropped for their TTL, in this namespace.
fn dropped_for_ttl() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut both = names.split_whitespace().zip(numbers.split_whitespace());
    let (_, number) = both.find(|(name, _)| *name == "TCPMinTTLDrop").unwrap();
    number.parse().unwrap()
}

#[test]
fn what_a_peer_sends_from_farther_than_it_may_be_is_dropped() {
    // RFC 5082 §3 (test).
    in_namespaces(|local, peer| async move {
        let (_running, port) = started_for(peer, |peer| peer.ttl_security = Some(1)).await;
        for (ttl, is_heard) in [(255, true), (254, false)] {
            let socket = socket_from(peer, local, None);
            let options = socket2::SockRef::from(&socket);
            if peer.is_ipv4() {
                options.set_ttl_v4(ttl).unwrap();
            } else {
                options.set_unicast_hops_v6(ttl).unwrap();
            }
            let connect = socket.connect((local, port).into());
            let mut stream = timeout(LIMIT, connect).await.unwrap().unwrap();
            // Its OPEN says that the speaker has the connection, and its terms.
            read_header(&mut stream).await;
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
    });
}
