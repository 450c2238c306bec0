//! The peers: all of them in one thread, on one epoll(7), together with the watch of the kernel under the speaker, so
//! that what is sent and what it brings about are stamped by one clock in one place.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use harness::interruption;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::fib::Fib;
use crate::message::{self, kind};
use crate::place::{self, Place, SPEAKER};

const PORT: u16 = 179;
/// Which event is the kernel's.
const FIB: u64 = u64::MAX;
/// How long after a connection was refused or closed it is tried again.
const AGAIN: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(message::HOLD_TIME as u64 / 3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Down,
    Dialling,
    /// OPEN is sent.
    OpenSent,
    /// The speaker's OPEN is in.
    OpenConfirm,
    Established,
}

#[derive(Debug)]
struct Peer {
    address: Ipv4Addr,
    routes: Vec<u8>,
    state: State,
    socket: Option<TcpStream>,
    received: Vec<u8>,
    to_send: Vec<u8>,
    sent: usize,
    /// Whether the kernel is asked to tell when there is room again.
    blocked: bool,
    keepalive_due: Instant,
}

/// How many peers there are, and what each has to say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) peers: usize,
    pub(crate) routes_each: usize,
    /// Handshakes that may be under way at once.
    pub(crate) at_once: usize,
}

/// All peers of one speaker, and its kernel.
#[derive(Debug)]
pub(crate) struct Peers<'a> {
    place: &'a Place,
    pub(crate) fib: Fib,
    epoll: Epoll,
    peers: Vec<Peer>,
    size: Size,
    to_dial: VecDeque<(Instant, usize)>,
    under_way: usize,
    established: usize,
    /// The block whose announcement is counted, and by whom it was heard.
    awaited: Option<Ipv4Addr>,
    heard: Vec<bool>,
    keepalives_looked_at: Instant,
    /// What the speaker said against us.
    complaints: Vec<String>,
}

impl<'a> Peers<'a> {
    /// Makes the peers, which are silent yet.
    pub(crate) fn new(place: &'a Place, size: Size) -> Outcome<Self> {
        let fib = place.at_speaker(Fib::watch)??;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&fib, EpollEvent::new(EpollFlags::EPOLLIN, FIB))?;
        let now = Instant::now();
        let peer = |n| {
            let blocks: Vec<_> = (0..size.routes_each)
                .map(|k| place::block(n * size.routes_each + k))
                .collect();
            let address = place::peer(n);
            let mut routes = message::announce(address, &blocks);
            routes.extend(message::end_of_rib());
            Peer {
                address,
                routes,
                state: State::Down,
                socket: None,
                received: Vec::new(),
                to_send: Vec::new(),
                sent: 0,
                blocked: false,
                keepalive_due: now,
            }
        };
        Ok(Self {
            place,
            fib,
            epoll,
            peers: (0..size.peers).map(peer).collect(),
            size,
            to_dial: VecDeque::new(),
            under_way: 0,
            established: 0,
            awaited: None,
            heard: vec![false; size.peers],
            keepalives_looked_at: now,
            complaints: Vec::new(),
        })
    }

    /// From now on the peers dial.
    pub(crate) fn dial(&mut self) {
        let now = Instant::now();
        self.to_dial = (0..self.peers.len()).map(|n| (now, n)).collect();
    }

    pub(crate) fn established(&self) -> usize {
        self.established
    }

    /// Goes on until `done`, for at most `limit`; whether it was done.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Outcome<bool> {
        let end = Instant::now() + limit;
        loop {
            if done(self) {
                return Ok(true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            interruption::check()?;
            self.turn(left.min(Duration::from_millis(100)))?;
        }
    }

    /// Goes on for a while.
    pub(crate) fn run_for(&mut self, time: Duration) -> Outcome<()> {
        self.run_until(time, |_| false).map(drop)
    }

    /// The `n`th peer announces a block.
    pub(crate) fn announce(&mut self, n: usize, block: Ipv4Addr) {
        let update = message::announce(self.peers[n].address, &[block]);
        self.send(n, &update);
    }

    /// The `n`th peer withdraws a block.
    pub(crate) fn withdraw(&mut self, n: usize, block: Ipv4Addr) {
        self.send(n, &message::withdraw(block));
    }

    /// The `n`th peer is gone, and does not come back.
    pub(crate) fn lose(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        if let Some(socket) = peer.socket.take() {
            let _ = self.epoll.delete(&socket);
            let _ = socket.shutdown(Shutdown::Both);
        }
        peer.state = State::Down;
        self.established -= 1;
    }

    /// From now on it is counted who hears of this block.
    pub(crate) fn await_block(&mut self, block: Ipv4Addr) {
        self.awaited = Some(block);
        self.heard.fill(false);
    }

    /// Whether all have heard of it.
    pub(crate) fn all_have_heard(&self) -> bool {
        self.heard.iter().all(|heard| *heard)
    }

    /// What the speaker said against us, each kind once.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        self.complaints.sort_unstable();
        self.complaints.dedup();
        std::mem::take(&mut self.complaints)
    }

    fn turn(&mut self, patience: Duration) -> Outcome<()> {
        self.dial_next()?;
        self.send_keepalives();
        let mut events = [EpollEvent::empty(); 256];
        let milliseconds = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX).max(1);
        let count = match self.epoll.wait(&mut events, milliseconds) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data() == FIB {
                self.fib.take_events()?;
            } else {
                self.take(usize::try_from(event.data())?, event.events());
            }
        }
        Ok(())
    }

    fn dial_next(&mut self) -> Outcome<()> {
        let now = Instant::now();
        while self.under_way < self.size.at_once
            && let Some((due, n)) = self.to_dial.front().copied()
            && due <= now
        {
            self.to_dial.pop_front();
            let from = self.peers[n].address;
            let socket = self.place.at_peers(|| connect(from))??;
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
            self.epoll.add(&socket, EpollEvent::new(flags, n as u64))?;
            let peer = &mut self.peers[n];
            peer.socket = Some(socket);
            peer.state = State::Dialling;
            peer.blocked = true;
            self.under_way += 1;
        }
        Ok(())
    }

    fn send_keepalives(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.keepalives_looked_at) < Duration::from_millis(100) {
            return;
        }
        self.keepalives_looked_at = now;
        for n in 0..self.peers.len() {
            if self.peers[n].state == State::Established && self.peers[n].keepalive_due <= now {
                self.peers[n].keepalive_due += KEEPALIVE;
                self.send(n, &message::keepalive());
            }
        }
    }

    fn take(&mut self, n: usize, flags: EpollFlags) {
        if self.peers[n].state == State::Dialling {
            let open = message::open(self.peers[n].address);
            let failed = self.peers[n].socket.as_ref().map(TcpStream::take_error);
            if let Some(Ok(Some(_)) | Err(_)) = failed {
                return self.down(n);
            }
            self.peers[n].state = State::OpenSent;
            self.send(n, &open);
        } else if flags.contains(EpollFlags::EPOLLOUT) {
            self.flush(n);
        }
        if flags.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.read(n);
        }
    }

    fn read(&mut self, n: usize) {
        let mut buffer = [0; 65_536];
        let Some(socket) = &mut self.peers[n].socket else {
            return;
        };
        match socket.read(&mut buffer) {
            Ok(0) => return self.down(n),
            Ok(length) => self.peers[n].received.extend(&buffer[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => return self.down(n),
        }
        let received = std::mem::take(&mut self.peers[n].received);
        let mut left = &received[..];
        while let Some((kind, body, rest)) = message::split(left) {
            self.message(n, kind, body);
            left = rest;
        }
        self.peers[n].received = left.to_vec();
    }

    fn message(&mut self, n: usize, kind: u8, body: &[u8]) {
        match (self.peers[n].state, kind) {
            (State::OpenSent, kind::OPEN) => {
                self.peers[n].state = State::OpenConfirm;
                self.send(n, &message::keepalive());
            }
            (State::OpenConfirm, kind::KEEPALIVE) => {
                self.peers[n].state = State::Established;
                self.established += 1;
                self.under_way -= 1;
                // Spread over the interval, as those of a mesh are.
                let place = u32::try_from(n % 32).unwrap_or(0);
                self.peers[n].keepalive_due = Instant::now() + KEEPALIVE / 32 * (place + 1);
                let routes = std::mem::take(&mut self.peers[n].routes);
                self.send(n, &routes);
                self.peers[n].routes = routes;
            }
            (State::Established, kind::UPDATE) => {
                if let Some(block) = self.awaited
                    && message::announces(body, block)
                {
                    self.heard[n] = true;
                }
            }
            (_, kind::NOTIFICATION) => self.complaints.push(format!("NOTIFICATION {:?}", body.get(..2))),
            _ => {}
        }
    }

    fn send(&mut self, n: usize, bytes: &[u8]) {
        self.peers[n].to_send.extend(bytes);
        self.flush(n);
    }

    fn flush(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        let Some(socket) = &mut peer.socket else {
            peer.to_send.clear();
            return;
        };
        while peer.sent < peer.to_send.len() {
            match socket.write(&peer.to_send[peer.sent..]) {
                Ok(length) => peer.sent += length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.down(n),
            }
        }
        let blocked = peer.sent < peer.to_send.len();
        if !blocked {
            peer.to_send.clear();
            peer.sent = 0;
        }
        if blocked != peer.blocked {
            peer.blocked = blocked;
            let mut flags = EpollFlags::EPOLLIN;
            flags.set(EpollFlags::EPOLLOUT, blocked);
            if self
                .epoll
                .modify(&*socket, &mut EpollEvent::new(flags, n as u64))
                .is_err()
            {
                self.down(n);
            }
        }
    }

    /// The connection is over; it is tried again.
    fn down(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        if let Some(socket) = peer.socket.take() {
            let _ = self.epoll.delete(&socket);
        }
        match std::mem::replace(&mut peer.state, State::Down) {
            State::Down => return,
            State::Established => {
                self.established -= 1;
                self.complaints
                    .push("an established session was closed".to_owned());
            }
            State::Dialling | State::OpenSent | State::OpenConfirm => self.under_way -= 1,
        }
        peer.received.clear();
        peer.to_send.clear();
        peer.sent = 0;
        self.to_dial.push_back((Instant::now() + AGAIN, n));
    }
}

/// Begins to connect to the speaker.
fn connect(from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    match socket.connect(&SocketAddr::from((SPEAKER, PORT)).into()) {
        Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
        _ => Ok(socket.into()),
    }
}
