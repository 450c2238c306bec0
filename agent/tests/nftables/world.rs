//! Network namespaces joined by veth, sockets in them, and `nft` as the other opinion.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::{Duration, Instant};

use culvert_agent::dataplane::Namespace;
use culvert_agent::filter::Filter;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Generous: what takes so long does not happen.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

pub(crate) fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A filter that admits packets of protocol 4 from these nodes.
pub(crate) fn admitting(nodes: &[&str]) -> Filter {
    Filter {
        nodes: nodes.iter().map(|node| address(node)).collect::<BTreeSet<_>>(),
        ..Filter::default()
    }
}

/// Runs a program in the namespace of this thread and gives what it prints; it must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|why| panic!("{program}: {why}; install iproute2 and nftables"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn ip(arguments: &str) -> String {
    run("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

pub(crate) fn nft(command: &str) -> String {
    run("nft", &[command])
}

/// Our table as nft prints it, with handles: what is written anew has others.
pub(crate) fn table() -> String {
    run("nft", &["-a", "list", "table", "ip", "culvert"])
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Another host: a namespace at the other end of a veth pair.
pub(crate) struct Host {
    namespace: Namespace,
}

impl Host {
    /// Its `eth0` has `theirs`, the `link` here has `ours`.
    pub(crate) fn joined(link: &str, ours: &str, theirs: &[&str]) -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Namespace::current().unwrap()
        });
        let host = Self {
            namespace: made.join().unwrap(),
        };
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            host.namespace.file().as_raw_fd()
        );
        ip(&format!("link add {link} type veth peer name eth0 netns {path}"));
        ip(&format!("addr add {ours} dev {link}"));
        ip(&format!("link set {link} up"));
        host.run(|| {
            ip("link set lo up");
            ip("link set eth0 up");
            for address in theirs {
                ip(&format!("addr add {address} dev eth0"));
            }
        });
        host
    }

    pub(crate) fn run<T: Send>(&self, what: impl FnOnce() -> T + Send) -> T {
        self.namespace.run(|| Ok(what())).unwrap()
    }

    /// A socket for packets of protocol 4 from `source`, which must be one of its addresses.
    pub(crate) fn ipip_from(&self, source: &str) -> Socket {
        self.run(|| ipip(source))
    }

    pub(crate) fn udp(&self, at: &str) -> UdpSocket {
        self.run(|| udp(at))
    }
}

pub(crate) fn udp(at: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket
}

/// A raw socket of protocol 4 at `address`, which takes in and sends packets without a tunnel device.
pub(crate) fn ipip(at: &str) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(4))).unwrap();
    socket.bind(&to(at)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.set_recv_buffer_size(8 << 20).unwrap();
    socket
}

pub(crate) fn to(address: &str) -> SockAddr {
    SockAddr::from(SocketAddrV4::new(address.parse().unwrap(), 0))
}

/// The source of the next packet, from its IPv4 header.
pub(crate) fn next_source(socket: &Socket) -> Ipv4Addr {
    let mut packet = [0; 256];
    let length = std::io::Read::read(&mut &*socket, &mut packet).expect("a packet arrives");
    assert!(length >= 20, "{length} bytes are no packet");
    Ipv4Addr::from(*packet[12..].first_chunk::<4>().unwrap())
}

/// The source that a datagram from `from` to `at` has when it arrives at `receiver`.
pub(crate) fn source_seen(from: &UdpSocket, at: &str, receiver: &UdpSocket) -> SocketAddr {
    from.send_to(b"who am I?", at).unwrap();
    let mut datagram = [0; 64];
    let (length, source) = receiver.recv_from(&mut datagram).expect("the datagram arrives");
    assert_eq!(&datagram[..length], b"who am I?");
    source
}
