//! One TCP connection: dialled or accepted, read by a task of its own, written at once, or by another task where the peer
//! does not keep up.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use culvert_bgp::config::{Password, PeerConfig};
use culvert_bgp::id::ConnectionId;
use culvert_bgp::speaker::TransportError;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
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

/// Octets that may wait for a peer to read: what announces three million routes.
const SEND_QUEUE: usize = 16 << 20;

/// Octets read at once: sixteen of the largest messages.
const READ_SIZE: usize = 65_536;

/// Internetwork control, as routers mark their own traffic (RFC 4594 §3.2: CS6).
const TOS_INTERNETWORK_CONTROL: u32 = 0xc0;

thread_local! {
    /// Where octets are read to, before as much room is made for them as they need: a thousand connections that are read at
    /// once do not take 64 MiB.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_SIZE]);
}

/// Of one connection so many events, of up to 64 KiB each, wait for the owner at most: a peer that sends without end keeps
/// the others waiting for no more than these.
const TURNS: usize = 4;

/// What a socket tells the owner of the speaker.
#[derive(Debug)]
pub(super) enum SocketEvent {
    /// A dial succeeded.
    Dialled { id: ConnectionId, stream: TcpStream },
    /// Bytes came.
    Received {
        id: ConnectionId,
        bytes: Vec<u8>,
        /// Given back once the event was seen to.
        turn: OwnedSemaphorePermit,
    },
    /// A dial failed, or a connection ended.
    Closed { id: ConnectionId, error: TransportError },
}

/// What has become of messages that were to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The kernel has them.
    Taken,
    /// They wait for the peer to read, perhaps behind others.
    Waiting,
    /// Too much waits already: they are lost.
    Overflowed,
}

/// An open connection. When it is dropped nothing is read any more, and what waits is still written.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Arc<TcpStream>,
    reader: JoinHandle<()>,
    /// What the kernel did not take at once, and who writes it. Most peers never need it.
    backlog: Option<Backlog>,
}

/// What waits for the peer to read.
#[derive(Debug)]
struct Backlog {
    queue: mpsc::UnboundedSender<Rest>,
    octets: Arc<Octets>,
    writer: JoinHandle<io::Result<()>>,
}

/// Octets that did not go out at once.
#[derive(Debug, Default)]
struct Octets {
    /// In the queue or being written.
    waiting: AtomicUsize,
    /// Written since the beginning, modulo the size of an address.
    written: AtomicUsize,
}

/// Messages, perhaps many peers', and how many of their octets this one has got.
type Rest = (Arc<Vec<u8>>, usize);

impl Connection {
    pub(super) fn spawn(id: ConnectionId, stream: TcpStream, events: mpsc::Sender<SocketEvent>) -> Self {
        let socket = SockRef::from(&stream);
        // Neither is worth a connection: without them it is a little slower.
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tos_v4(TOS_INTERNETWORK_CONTROL);
        let stream = Arc::new(stream);
        let reader = tokio::spawn(read(id, Arc::clone(&stream), events));
        Self {
            stream,
            reader,
            backlog: None,
        }
    }

    /// Writes messages, at once as far as the kernel takes them; the rest waits.
    ///
    /// That the connection is broken is the reader's to say: it comes behind what the peer had to say before.
    pub(super) fn send(&mut self, bytes: Arc<Vec<u8>>) -> Sent {
        let mut left = bytes.as_slice();
        // Nothing overtakes what waits.
        if self.waiting() == 0 {
            while !left.is_empty() {
                match self.stream.try_write(left) {
                    Ok(count) => left = left.get(count..).unwrap_or_default(),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => return Sent::Taken,
                }
            }
        }
        if left.is_empty() {
            return Sent::Taken;
        }
        if self.waiting().saturating_add(left.len()) > SEND_QUEUE {
            return Sent::Overflowed;
        }
        let backlog = self.backlog.get_or_insert_with(|| Backlog::new(&self.stream));
        backlog.octets.waiting.fetch_add(left.len(), Ordering::Relaxed);
        let sent = bytes.len().saturating_sub(left.len());
        // A writer that is gone has found the connection broken.
        let _ = backlog.queue.send((bytes, sent));
        Sent::Waiting
    }

    /// Octets that wait for the peer to read.
    pub(super) fn waiting(&self) -> usize {
        let backlog = self.backlog.as_ref();
        backlog.map_or(0, |backlog| backlog.octets.waiting.load(Ordering::Relaxed))
    }

    /// A count that changes whenever some of what waited could be written.
    pub(super) fn progress(&self) -> usize {
        let backlog = self.backlog.as_ref();
        backlog.map_or(0, |backlog| backlog.octets.written.load(Ordering::Relaxed))
    }

    /// Closes it, and waits until its last bytes are with the kernel.
    pub(super) async fn closed(mut self) {
        let backlog = self.backlog.take();
        drop(self);
        if let Some(Backlog { queue, writer, .. }) = backlog {
            drop(queue);
            let _ = timeout(FLUSH_TIMEOUT, writer).await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        // Whoever writes last says that it is the end.
        if self.waiting() == 0 {
            end(&self.stream);
        }
    }
}

/// Says to the peer that nothing more comes. It may have gone already.
fn end(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

impl Backlog {
    fn new(stream: &Arc<TcpStream>) -> Self {
        let (queue, queued) = mpsc::unbounded_channel();
        let octets = Arc::new(Octets::default());
        let writer = write(Arc::clone(stream), queued, Arc::clone(&octets));
        Self {
            queue,
            octets,
            writer: tokio::spawn(writer),
        }
    }
}

async fn read(id: ConnectionId, stream: Arc<TcpStream>, events: mpsc::Sender<SocketEvent>) {
    let turns = Arc::new(Semaphore::new(TURNS));
    // Nobody closes it.
    while let Ok(turn) = Arc::clone(&turns).acquire_owned().await {
        let event = match stream.readable().await.and_then(|()| take(&stream)) {
            Ok(bytes) if bytes.is_empty() => SocketEvent::Closed {
                id,
                error: TransportError::Ended,
            },
            Ok(bytes) => SocketEvent::Received { id, bytes, turn },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
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

/// What has come; nothing at the end of the stream.
///
/// A read that leaves room has emptied the socket: it counts as not readable until the kernel tells of more, so that it
/// need not be read in vain.
fn take(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = stream.try_io(Interest::READABLE, || {
        SCRATCH.with_borrow_mut(|scratch| {
            let count = (&*SockRef::from(stream)).read(scratch)?;
            bytes.extend_from_slice(scratch.get(..count).unwrap_or_default());
            let is_empty = count > 0 && count < scratch.len();
            if is_empty {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                Ok(())
            }
        })
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock && !bytes.is_empty() => Ok(bytes),
        read => read.map(|()| bytes),
    }
}

async fn write(
    stream: Arc<TcpStream>,
    mut queued: mpsc::UnboundedReceiver<Rest>,
    octets: Arc<Octets>,
) -> io::Result<()> {
    while let Some((bytes, sent)) = queued.recv().await {
        let left = bytes.get(sent..).unwrap_or_default();
        if queued.is_closed() {
            timeout(FLUSH_TIMEOUT, write_all(&stream, left, &octets)).await??;
        } else {
            write_all(&stream, left, &octets).await?;
        }
    }
    end(&stream);
    Ok(())
}

async fn write_all(stream: &TcpStream, mut bytes: &[u8], octets: &Octets) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                octets.written.fetch_add(count, Ordering::Relaxed);
                octets.waiting.fetch_sub(count, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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

#[cfg(test)]
pub(super) mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// So many octets, or twice as many, the kernel holds for each end.
    const KERNEL_BUFFER: u32 = 64 << 10;

    /// A connection of ours, and the peer's end of it, which does not read yet. The kernel holds little of what is on its way:
    /// by itself it takes as much as a machine's settings allow, and the more the faster the peer reads (tcp(7), `tcp_rmem`
    /// and `tcp_wmem`), so that nobody could say what is left to wait.
    pub(in crate::speaker) async fn connected() -> (Connection, TcpStream) {
        let listening = TcpSocket::new_v4().unwrap();
        // The accepted socket inherits it.
        listening.set_recv_buffer_size(KERNEL_BUFFER).unwrap();
        listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listening.listen(1).unwrap();
        let dialling = TcpSocket::new_v4().unwrap();
        dialling.set_send_buffer_size(KERNEL_BUFFER).unwrap();
        let dialled = dialling.connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let (events, _) = mpsc::channel(1);
        (Connection::spawn(ConnectionId(1), dialled, events), peer)
    }

    #[tokio::test]
    async fn a_peer_that_floods_keeps_the_others_waiting_for_its_turns_alone() {
        let (events, mut queue) = mpsc::channel(256);
        let mut ends = Vec::new();
        for id in [1, 2] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let ours = Connection::spawn(ConnectionId(id), dialled, events.clone());
            ends.push((ours, listener.accept().await.unwrap().0));
        }
        let (_quiet, mut other) = ends.pop().unwrap();
        let (_flooded, mut flood) = ends.pop().unwrap();
        let flooding = tokio::spawn(async move { while flood.write_all(&[0; 1 << 16]).await.is_ok() {} });
        // Each round lets everybody go on who can: more events would be there by the end, were there no limit.
        let mut idle_rounds = 0;
        while idle_rounds < 1000 {
            idle_rounds = if queue.len() < TURNS { 0 } else { idle_rounds + 1 };
            tokio::task::yield_now().await;
        }
        other.write_all(&[1]).await.unwrap();
        let mut before = 0;
        while let Some(event) = queue.recv().await {
            match event {
                SocketEvent::Received {
                    id: ConnectionId(1),
                    bytes,
                    turn,
                } => {
                    assert!(bytes.len() <= READ_SIZE);
                    before += 1;
                    // While the other one's waits, what is seen to makes room behind it only.
                    if before >= TURNS {
                        std::mem::forget(turn);
                    }
                }
                SocketEvent::Received { id, bytes, .. } => {
                    assert_eq!((id, bytes.as_slice()), (ConnectionId(2), &[1][..]));
                    break;
                }
                event => panic!("{event:?}"),
            }
        }
        flooding.abort();
        assert!((TURNS..=2 * TURNS).contains(&before), "{before} events first");
    }

    #[tokio::test]
    async fn what_the_kernel_does_not_take_at_once_arrives_in_order_and_before_the_end() {
        let (mut ours, mut peer) = connected().await;
        let sent: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
        for message in sent.chunks(4096) {
            assert_ne!(ours.send(Arc::new(message.to_vec())), Sent::Overflowed);
        }
        assert!(ours.backlog.is_some(), "no kernel holds twelve megabytes");
        drop(ours);
        let mut received = Vec::new();
        peer.read_to_end(&mut received).await.unwrap();
        assert!(received == sent, "{} of {} octets", received.len(), sent.len());
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_not_held_in_memory() {
        let (mut ours, _peer) = connected().await;
        let message = Arc::new(vec![0; 1 << 20]);
        // The kernel itself may hold some more.
        let taken = (0..100)
            .take_while(|_| ours.send(Arc::clone(&message)) != Sent::Overflowed)
            .count();
        assert!((16..64).contains(&taken), "{taken} MiB taken");
        assert!(ours.waiting() <= SEND_QUEUE);
    }
}
