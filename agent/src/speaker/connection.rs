//! One TCP connection: dialled or accepted, read and written by a task of its own.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use culvert_bgp::id::ConnectionId;
use culvert_bgp::speaker::TransportError;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Endpoint;

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
        let socket = socket2::SockRef::from(&stream);
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

/// Dials `peer` from the address this node is known by; the answer is an event.
pub(super) fn dial(
    id: ConnectionId,
    peer: IpAddr,
    endpoint: &Endpoint,
    events: mpsc::Sender<SocketEvent>,
) -> impl Future<Output = ()> + use<> {
    let (from, to) = (endpoint.local_address, SocketAddr::new(peer, endpoint.port));
    async move {
        let connect = async {
            let socket = if to.is_ipv4() {
                TcpSocket::new_v4()?
            } else {
                TcpSocket::new_v6()?
            };
            if to.is_ipv4() {
                socket.bind(SocketAddr::from((from, 0)))?;
            }
            socket.connect(to).await
        };
        let event = match timeout(DIAL_TIMEOUT, connect).await {
            Ok(Ok(stream)) => SocketEvent::Dialled { id, stream },
            Ok(Err(error)) => SocketEvent::Closed {
                id,
                error: transport_error(&error),
            },
            Err(_) => SocketEvent::Closed {
                id,
                error: TransportError::TimedOut,
            },
        };
        let _ = events.send(event).await;
    }
}

/// Listens on all addresses of both families, as BIRD does unless it is told otherwise; on those of IPv4 where the
/// kernel has no IPv6.
pub(super) fn listen(port: u16) -> io::Result<TcpListener> {
    let both = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).and_then(|socket| {
        socket.set_only_v6(false)?;
        Ok((socket, SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))))
    });
    let (socket, address) = match both {
        Ok(both) => both,
        Err(_) => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            (socket, SocketAddr::from(([0, 0, 0, 0], port)))
        }
    };
    // The port may still be held by connections of an agent that has just ended.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
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
