//! One TCP connection: dialled or accepted, read and written by a task of its own.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use culvert_bgp::config::{Password, PeerConfig};
use culvert_bgp::id::ConnectionId;
use culvert_bgp::speaker::TransportError;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::peering::BGP_PORT;
use crate::uapi::{SocketFamily, set_least_ttl, set_md5_key};

/// As many nodes may dial at once, after a power cut for one; a refused SYN would cost them seconds.
const BACKLOG: i32 = 4096;

/// How long a peer has to answer a SYN.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last bytes of a connection that was closed may take.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Messages that wait for a peer to read: 4096 of at most 4096 octets, 16 MiB.
const SEND_QUEUE: usize = 4096;

/// Octets read at once: sixteen of the largest messages.
const READ_SIZE: usize = 65_536;

/// Internetwork control, as routers mark their own traffic (RFC 4594 §3.2: CS6).
const TOS_INTERNETWORK_CONTROL: u32 = 0xc0;

/// What a socket tells the owner of the speaker.
#[derive(Debug)]
pub(super) enum SocketEvent {
    /// A dial succeeded.
    Dialled { id: ConnectionId, stream: TcpStream },
    /// Bytes came.
    Received { id: ConnectionId, bytes: Vec<u8> },
    /// A dial failed, or a connection ended.
    Closed { id: ConnectionId, error: TransportError },
}

/// An open connection. When it is dropped its reader ends at once, and its writer after what is queued.
#[derive(Debug)]
pub(super) struct Connection {
    queue: mpsc::Sender<Arc<Vec<u8>>>,
    reader: JoinHandle<()>,
    writer: Option<JoinHandle<()>>,
}

impl Connection {
    pub(super) fn spawn(id: ConnectionId, stream: TcpStream, events: mpsc::Sender<SocketEvent>) -> Self {
        let socket = SockRef::from(&stream);
        // Neither is worth a connection: without them it is a little slower.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tos_v4(TOS_INTERNETWORK_CONTROL);
        let (read_half, write_half) = stream.into_split();
        let (queue, queued) = mpsc::channel(SEND_QUEUE);
        let reader = tokio::spawn(read(id, read_half, events.clone()));
        let writer = tokio::spawn(write(id, write_half, queued, events));
        Self {
            queue,
            reader,
            writer: Some(writer),
        }
    }

    /// Queues a message; false when the queue is full.
    pub(super) fn send(&self, bytes: Arc<Vec<u8>>) -> bool {
        !matches!(
            self.queue.try_send(bytes),
            Err(mpsc::error::TrySendError::Full(_))
        )
    }

    /// Closes it, and waits until its last bytes are with the kernel.
    pub(super) async fn closed(mut self) {
        let writer = self.writer.take();
        drop(self);
        if let Some(writer) = writer {
            let _ = timeout(FLUSH_TIMEOUT, writer).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(id: ConnectionId, mut stream: OwnedReadHalf, events: mpsc::Sender<SocketEvent>) {
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let event = match stream.read(&mut buffer).await {
            Ok(0) => SocketEvent::Closed {
                id,
                error: TransportError::Ended,
            },
            Ok(count) => match buffer.get(..count) {
                Some(bytes) => SocketEvent::Received {
                    id,
                    bytes: bytes.to_vec(),
                },
                None => return,
            },
            Err(error) => SocketEvent::Closed {
                id,
                error: transport_error(&error),
            },
        };
        let last = matches!(event, SocketEvent::Closed { .. });
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

async fn write(
    id: ConnectionId,
    mut stream: OwnedWriteHalf,
    mut queued: mpsc::Receiver<Arc<Vec<u8>>>,
    events: mpsc::Sender<SocketEvent>,
) {
    while let Some(bytes) = queued.recv().await {
        let written = if queued.is_closed() {
            let limited = timeout(FLUSH_TIMEOUT, stream.write_all(&bytes)).await;
            limited.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        } else {
            stream.write_all(&bytes).await
        };
        if let Err(error) = written {
            let _ = events
                .send(SocketEvent::Closed {
                    id,
                    error: transport_error(&error),
                })
                .await;
            return;
        }
    }
    let _ = stream.shutdown().await;
}

/// Dials a peer on its terms; the answer is an event.
pub(super) fn dial(
    id: ConnectionId,
    peer: &PeerConfig,
    events: mpsc::Sender<SocketEvent>,
) -> impl Future<Output = ()> + use<> {
    let to = SocketAddr::new(peer.address, peer.port.unwrap_or(BGP_PORT));
    let socket = dialling_socket(peer);
    async move {
        let connect = async { socket?.connect(to).await.map_err(|error| transport_error(&error)) };
        let event = match timeout(DIAL_TIMEOUT, connect).await {
            Ok(Ok(stream)) => SocketEvent::Dialled { id, stream },
            Ok(Err(error)) => SocketEvent::Closed { id, error },
            Err(_) => SocketEvent::Closed {
                id,
                error: TransportError::TimedOut,
            },
        };
        let _ = events.send(event).await;
    }
}

fn dialling_socket(peer: &PeerConfig) -> Result<TcpSocket, TransportError> {
    let family = SocketFamily::of(peer.address);
    let domain = match family {
        SocketFamily::V4 => Domain::IPV4,
        SocketFamily::V6 => Domain::IPV6,
    };
    let io = |error: io::Error| transport_error(&error);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).map_err(io)?;
    socket.set_nonblocking(true).map_err(io)?;
    if let Some(source) = peer.source {
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(io)?;
    }
    if let Some(password) = &peer.password {
        let refused = |error: io::Error| TransportError::Md5Refused(error.kind());
        set_md5_key(&socket, family, peer.address, Some(password.expose().as_bytes())).map_err(refused)?;
    }
    if let Some(hops) = peer.ttl_security {
        check_ttl(&socket, family, hops).map_err(io)?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

/// RFC 5082 §3: sends with the highest TTL, and takes only what has come over `hops` hops at most.
pub(super) fn check_ttl(socket: &impl AsFd, family: SocketFamily, hops: u8) -> io::Result<()> {
    send_far(&SockRef::from(&socket.as_fd()), family)?;
    set_least_ttl(socket, family, u8::MAX.saturating_sub(hops.saturating_sub(1)))
}

/// Sends with the highest TTL.
fn send_far(socket: &SockRef<'_>, family: SocketFamily) -> io::Result<()> {
    match family {
        SocketFamily::V4 => socket.set_ttl_v4(u8::MAX.into()),
        SocketFamily::V6 => {
            // A connection of IPv4 may be on a socket of IPv6.
            let _ = socket.set_ttl_v4(u8::MAX.into());
            socket.set_unicast_hops_v6(u8::MAX.into())
        }
    }
}

/// A socket that peers connect to.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: TcpListener,
    pub(super) family: SocketFamily,
    /// Whether it takes connections over IPv4, over IPv6.
    takes: (bool, bool),
}

impl Listener {
    /// Signs what goes to `peer`, and takes nothing from it that is not signed; without a password, no longer.
    pub(super) fn set_password(&self, peer: IpAddr, password: Option<&Password>) -> io::Result<()> {
        let takes = if peer.is_ipv4() {
            self.takes.0
        } else {
            self.takes.1
        };
        if !takes {
            return Ok(());
        }
        let key = password.map(|password| password.expose().as_bytes());
        set_md5_key(&self.socket, self.family, peer, key)
    }
}

/// Listens on these addresses. Without any: on all of both families, as BIRD does unless it is told otherwise; on those of
/// IPv4 where the kernel has no IPv6.
pub(super) fn listen(addresses: &BTreeSet<IpAddr>, port: u16) -> io::Result<Vec<Listener>> {
    if !addresses.is_empty() {
        let each = addresses.iter().map(|address| {
            let family = SocketFamily::of(*address);
            let domain = Domain::for_address(SocketAddr::new(*address, port));
            let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
            let takes = (address.is_ipv4(), address.is_ipv6());
            listening(&socket, SocketAddr::new(*address, port), family, takes)
        });
        return each.collect();
    }
    let both = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
        socket.set_only_v6(false)?;
        Ok(socket)
    });
    let listener = match both {
        Ok(socket) => {
            let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            listening(&socket, all, SocketFamily::V6, (true, true))?
        }
        Err(_) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            let all = SocketAddr::from(([0, 0, 0, 0], port));
            listening(&socket, all, SocketFamily::V4, (true, false))?
        }
    };
    Ok(vec![listener])
}

fn listening(
    socket: &Socket,
    address: SocketAddr,
    family: SocketFamily,
    takes: (bool, bool),
) -> io::Result<Listener> {
    // The port may still be held by connections of an agent that has just ended.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // A peer that checks it (RFC 5082) does so from the first answer on.
    send_far(&SockRef::from(socket), family)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(Listener {
        socket: TcpListener::from_std(socket.try_clone()?.into())?,
        family,
        takes,
    })
}

fn transport_error(error: &io::Error) -> TransportError {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => TransportError::Refused,
        io::ErrorKind::TimedOut => TransportError::TimedOut,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
            TransportError::Reset
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => TransportError::Unreachable,
        kind => TransportError::Other(kind),
    }
}
