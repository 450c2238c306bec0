//! The speaker: all peers, all routes, one input at a time.
//!
//! ```text
//! Input ─▶ peer ─▶ session ─▶ fsm ─▶ effects ─▶ Output (Dial, Send, Close, SessionChange)
//!            └─ UPDATE ─▶ Adj-RIB-In ─▶ import ─▶ Loc-RIB ─▶ Output (RibChange)
//!                                                   └─▶ export ─▶ Adj-RIB-Out ─▶ Output (Send)
//! ```
//!
//! A driver calls [`Speaker::handle`] with what happened, then [`Speaker::poll_output`] until there is no more, and
//! comes back with [`Input::Timer`] when [`Speaker::deadline`] has passed.

mod peer;
pub mod reason;
mod routes;
pub(crate) mod transport;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

pub use reason::{Reason, TransportError};
pub use routes::MAX_PREFIXES;

pub use crate::fsm::State;
use crate::fsm::{Event, Timer};
use crate::id::{Asn, ConnectionId, HoldTime, NextHop, Prefix, RouterId};
use crate::policy::Export;
use crate::rib::loc::LocRib;
use crate::session::{Cause, DIALLER, Fate, OPEN_HOLD};
use crate::wire::Decoded;
use crate::wire::message::{Message, Notification, Open};
use crate::wire::notification::{cease, code, open as open_error};
use peer::Peer;
use transport::Transport;

/// What a speaker is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeakerConfig {
    /// Our AS.
    pub asn: Asn,
    /// Our BGP Identifier.
    pub router_id: RouterId,
    /// The address that peers send packets to: the NEXT_HOP of what we announce.
    pub local_address: Ipv4Addr,
    /// The hold time that we propose; 90 s is usual (RFC 4271 §10).
    pub hold_time: HoldTime,
    /// ConnectRetryTime (RFC 4271 §10): how long one attempt to connect may take, and the pause between two of them.
    pub connect_retry: Duration,
    /// Seconds, up to 4095, for which peers keep our routes after this process is gone (RFC 4724 §3), and for which a
    /// restarted one waits for its peers before it calls itself converged.
    pub restart_time: u16,
    /// The kernel still holds the routes of a former run of this process: peers are told so (RFC 4724 §3, R and F).
    pub restarted: bool,
    /// Seed of the jitter of timers (RFC 4271 §10). It should differ between nodes.
    pub seed: u64,
}

/// A peer, as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where to connect to, and where connections from it come from.
    pub address: IpAddr,
    /// Its AS.
    pub asn: Asn,
}

impl PeerConfig {
    /// A peer with nothing special about it.
    #[must_use]
    pub fn new(address: IpAddr, asn: Asn) -> Self {
        Self { address, asn }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// The whole set of peers. The difference to the one before is applied: an unchanged peer is not disturbed, a
    /// removed one is told (Cease, peer de-configured) and its routes go at once.
    Peers(BTreeMap<IpAddr, PeerConfig>),
    /// The whole set of prefixes that this node originates. Until it is given for the first time, no peer gets an
    /// End-of-RIB marker, because that would end its patience with the routes of our former run (RFC 4724 §4.2).
    Exports(BTreeSet<Prefix>),
    /// The connection of an [`Output::Dial`] stands.
    Dialled {
        /// Its number.
        connection: ConnectionId,
    },
    /// A peer has connected. Where there is no such peer, the answer is [`Output::Close`].
    Accepted {
        /// A number from [`Speaker::next_connection`].
        connection: ConnectionId,
        /// The address it comes from.
        peer: IpAddr,
    },
    /// Bytes came in, in the order of the stream.
    Received {
        /// On this connection.
        connection: ConnectionId,
        /// Any number of them.
        bytes: &'a [u8],
    },
    /// A connection, or the attempt at one, is over. It needs no [`Output::Close`], and gets none.
    Closed {
        /// Its number.
        connection: ConnectionId,
        /// How it ended.
        error: TransportError,
    },
    /// The [`Speaker::deadline`] has passed.
    Timer,
    /// The end of this speaker: every session goes down, every connection is closed, and nothing else is answered any
    /// more. No route is withdrawn from the driver: packets are to flow on.
    Stop {
        /// Tell the peers (Cease, administrative shutdown), so that they remove our routes at once. Else the
        /// connections just close, and peers with graceful restart keep our routes for our restart time.
        notify: bool,
    },
}

/// What the driver is to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection to a peer; answer with [`Input::Dialled`] or [`Input::Closed`].
    Dial {
        /// Its number from now on.
        connection: ConnectionId,
        /// The address of the peer.
        peer: IpAddr,
    },
    /// Send bytes: one or more whole messages.
    Send {
        /// On this connection.
        connection: ConnectionId,
        /// These.
        bytes: Vec<u8>,
    },
    /// Close a connection once what was to be sent is sent, or give the attempt up. It is not heard of again.
    Close {
        /// Its number.
        connection: ConnectionId,
    },
    /// The best route for a prefix has changed.
    RibChange(RibChange),
    /// The state of a peer has changed.
    SessionChange(SessionChange),
    /// Given once: every configured peer's End-of-RIB is in, or [`SpeakerConfig::restart_time`] has passed since the
    /// start. Routes of a former run that no peer has announced by now are not coming back.
    Converged,
}

/// The best route for a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RibChange {
    /// The destination.
    pub prefix: Prefix,
    /// Where packets for it go; empty when it is withdrawn, or originated by this node itself.
    pub best: Vec<NextHop>,
}

/// The state of a peer: that of its session, or of the one of its two sessions that is further on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionChange {
    /// The address of the peer.
    pub peer: IpAddr,
    /// The state it was in.
    pub from: State,
    /// The state it is in.
    pub to: State,
    /// Why, when something went wrong or was stopped.
    pub reason: Option<Reason>,
}

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its address.
    pub peer: IpAddr,
    /// Its AS, as configured.
    pub asn: Asn,
    /// The state of its session.
    pub state: State,
    /// Why it last went down, or does not come up.
    pub reason: Option<Reason>,
    /// Routes in Adj-RIB-In, stale ones included.
    pub prefixes_received: usize,
    /// Routes in Adj-RIB-Out.
    pub prefixes_sent: usize,
    /// How often it has become Established.
    pub established_count: u64,
    /// Whether it has sent all its routes, in the session that is up.
    pub end_of_rib: bool,
    /// Routes of a session that is gone, not announced again yet (RFC 4724 §4.2).
    pub stale: usize,
    /// Faults in its UPDATEs that cost a route or an attribute, but not the session (RFC 7606).
    pub faults: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Since when it is in its state.
    pub since: Instant,
    /// Its BGP Identifier, while Established.
    pub router_id: Option<RouterId>,
    /// The hold time agreed on, while Established.
    pub hold_time: Option<HoldTime>,
}

/// A BGP-4 speaker.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    export: Export,
    peers: BTreeMap<IpAddr, Peer>,
    loc: LocRib,
    /// What this node originates, once that is known.
    exports: Option<BTreeSet<Prefix>>,
    /// The Established external peers: they hear of every route, internal ones only of outward ones.
    external: BTreeSet<IpAddr>,
    transport: Transport,
    /// Peers by the earliest of their deadlines. An entry may be too early, never too late: a deadline that moves away,
    /// as the hold timer does with each message, is corrected when the entry comes up.
    queue: BTreeSet<(Instant, IpAddr)>,
    /// Peers that may have something to send, or another deadline.
    touched: BTreeSet<IpAddr>,
    /// Peers whose End-of-RIB has not been seen since the start; `None` until the peers are known.
    waiting: BTreeSet<IpAddr>,
    peers_known: bool,
    converge_by: Instant,
    converged: bool,
    stopped: bool,
}

impl Speaker {
    /// A speaker without peers.
    #[must_use]
    pub fn new(config: SpeakerConfig, now: Instant) -> Self {
        Self {
            export: Export::new(config.asn, config.local_address),
            peers: BTreeMap::new(),
            loc: LocRib::default(),
            exports: None,
            external: BTreeSet::new(),
            transport: Transport::new(now, config.seed),
            queue: BTreeSet::new(),
            touched: BTreeSet::new(),
            waiting: BTreeSet::new(),
            peers_known: false,
            converge_by: now + Duration::from_secs(config.restart_time.into()),
            converged: false,
            stopped: false,
            config,
        }
    }

    /// Takes in what happened. `now` must not go backwards.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        self.transport.now = now;
        if self.stopped {
            if let Input::Accepted { connection, .. } = input {
                self.transport.close(connection);
            }
            return;
        }
        match input {
            Input::Peers(peers) => self.set_peers(peers),
            Input::Exports(exports) => self.set_exports(exports),
            Input::Dialled { connection } => self.dialled(connection),
            Input::Accepted { connection, peer } => self.accepted(connection, peer),
            Input::Received { connection, bytes } => self.received(connection, bytes),
            Input::Closed { connection, error } => self.closed(connection, error),
            Input::Timer => self.expire(),
            Input::Stop { notify } => self.stop(notify),
        }
        for address in std::mem::take(&mut self.touched) {
            self.advertise(address);
            self.enqueue(address);
        }
        self.converge();
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.transport.pop()
    }

    /// When to come back with [`Input::Timer`], if nothing happens before. It may be earlier than needed, not later.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let converge = (self.peers_known && !self.converged).then_some(self.converge_by);
        let first = self.queue.first().map(|&(at, _)| at).into_iter().chain(converge).min();
        first.filter(|_| !self.stopped)
    }

    /// A number for a connection that the driver accepts.
    pub fn next_connection(&mut self) -> ConnectionId {
        self.transport.next_connection()
    }

    /// What is known of each peer, in order of address.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.values().map(Peer::status)
    }

    /// Whether [`Output::Converged`] was given.
    #[must_use]
    pub fn is_converged(&self) -> bool {
        self.converged
    }

    fn set_peers(&mut self, wanted: BTreeMap<IpAddr, PeerConfig>) {
        let gone: Vec<(IpAddr, bool)> = self
            .peers
            .iter()
            .filter(|(address, peer)| wanted.get(*address) != Some(&peer.config))
            .map(|(&address, _)| (address, wanted.contains_key(&address)))
            .collect();
        for (address, stays) in gone {
            // RFC 4486 §4: which Cease it is.
            if stays {
                self.remove_peer(address, cease::OTHER_CONFIGURATION_CHANGE, &Reason::Reconfigured);
            } else {
                self.remove_peer(address, cease::PEER_DECONFIGURED, &Reason::Deconfigured);
            }
        }
        let now = self.transport.now;
        for (address, config) in wanted {
            if self.peers.contains_key(&address) {
                continue;
            }
            let internal = config.asn == self.config.asn;
            self.peers.insert(address, Peer::new(config, internal, self.config.hold_time, now));
            if !self.converged {
                self.waiting.insert(address);
            }
            self.apply(address, DIALLER, Event::Start, Cause::NONE);
        }
        self.peers_known = true;
    }

    fn remove_peer(&mut self, address: IpAddr, subcode: u8, reason: &Reason) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.stop();
        for key in peer.keys() {
            let cause = Cause::notify(Notification::cease(subcode), reason.clone(), Fate::Drop);
            self.apply(address, key, Event::Stop, cause);
        }
        self.drop_routes(address);
        if let Some(at) = self.peers.remove(&address).and_then(|peer| peer.queued) {
            self.queue.remove(&(at, address));
        }
        self.waiting.remove(&address);
    }

    fn dialled(&mut self, connection: ConnectionId) {
        let Some((address, key)) = self.find(connection) else { return };
        let now = self.transport.now;
        if let Some(session) = self.peers.get_mut(&address).and_then(|peer| peer.session_mut(key)) {
            session.connected = Some(now);
        }
        self.apply(address, key, Event::TcpEstablished, Cause::NONE);
    }

    fn accepted(&mut self, connection: ConnectionId, address: IpAddr) {
        let Some(peer) = self.peers.get(&address) else {
            tracing::debug!(peer = %address, "connection from an address that is no peer");
            self.transport.close(connection);
            return;
        };
        for key in peer.superfluous_beside_new() {
            self.apply(address, key, Event::Abandon, Cause::reason(Reason::PeerRestarted, Fate::Stale));
        }
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let terms = peer.terms(&self.config, address, self.converged);
        self.transport.adopt(connection, address);
        peer.add_accepted(connection, &terms, &mut self.transport);
        self.apply(address, connection, Event::TcpEstablished, Cause::NONE);
    }

    fn received(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let Some((address, key)) = self.find(connection) else { return };
        if let Some(session) = self.peers.get_mut(&address).and_then(|peer| peer.session_mut(key)) {
            session.receive(bytes);
        }
        // Each message may end the session, and with it what is left of the bytes.
        while self.transport.owner(connection) == Some(address) {
            let Some(peer) = self.peers.get_mut(&address) else { return };
            match peer.session_mut(key).and_then(|session| Some((session.state, session.next_message()?))) {
                None => return,
                Some((_, Ok(decoded))) => {
                    peer.messages_in = peer.messages_in.saturating_add(1);
                    self.message(address, key, decoded);
                }
                Some((state, Err(notification))) => {
                    let event = error_event(&notification, state);
                    self.apply(address, key, event, Cause::fault(notification));
                }
            }
        }
    }

    fn message(&mut self, address: IpAddr, key: ConnectionId, decoded: Decoded) {
        if let Some(peer) = self.peers.get_mut(&address) {
            for fault in &decoded.faults {
                peer.faults = peer.faults.saturating_add(1);
                tracing::warn!(peer = %address, ?fault, "fault in UPDATE");
            }
        }
        match decoded.message {
            Message::Open(open) => self.open(address, key, open),
            Message::Keepalive => self.keepalive(address, key),
            Message::Notification(notification) => {
                let version = open_error::UNSUPPORTED_VERSION_NUMBER;
                let event = match (notification.code, notification.subcode) {
                    (code::OPEN_MESSAGE, subcode) if subcode == version => Event::VersionError,
                    _ => Event::Notification,
                };
                // RFC 4724 §4: a NOTIFICATION ends retention as well. But not the one that says that the other
                // connection was kept: the peer is as alive as before.
                let fate = match (notification.code, notification.subcode) {
                    (code::CEASE, cease::CONNECTION_COLLISION) => Fate::Stale,
                    _ => Fate::Drop,
                };
                let reason = Reason::NotificationReceived(notification);
                self.apply(address, key, event, Cause::reason(reason, fate));
            }
            Message::Update(update) => {
                if self.apply(address, key, Event::Update, Cause::NONE) {
                    self.learn(address, key, &update);
                }
            }
            Message::RouteRefresh(family) => {
                if self.apply(address, key, Event::RouteRefresh, Cause::NONE) {
                    self.refresh(address, family);
                }
            }
        }
    }

    fn open(&mut self, address: IpAddr, key: ConnectionId, open: Open) {
        let Some(peer) = self.peers.get(&address) else { return };
        let terms = peer.terms(&self.config, address, self.converged);
        if peer.session(key).is_some_and(|session| session.state == State::OpenSent) {
            if let Err(cause) = peer.check_open(&open, &terms) {
                self.apply(address, key, Event::OpenError, cause);
                return;
            }
            if let Some((loser, event, cause)) = peer.collision(key, &open, &terms) {
                self.apply(address, loser, event, cause);
                if loser == key {
                    if let Some(peer) = self.peers.get_mut(&address) {
                        peer.probe(&mut self.transport);
                    }
                    return;
                }
            }
            let Some(peer) = self.peers.get_mut(&address) else { return };
            let terms = peer.terms(&self.config, address, self.converged);
            if let Some(session) = peer.session_mut(key) {
                session.accept_open(open, &terms);
            }
        }
        self.apply(address, key, Event::Open, Cause::NONE);
    }

    fn keepalive(&mut self, address: IpAddr, key: ConnectionId) {
        let session = self.peers.get(&address).and_then(|peer| peer.session(key));
        let was_up = session.is_some_and(|session| session.state == State::Established);
        let marks_end = session.is_some_and(|session| session.graceful_restart().is_some());
        self.apply(address, key, Event::Keepalive, Cause::NONE);
        // A peer without graceful restart sends no End-of-RIB: by its first KEEPALIVE of an idle moment it has sent
        // what it had.
        if was_up && !marks_end && self.waiting.contains(&address) {
            self.end_of_rib(address);
        }
    }

    fn closed(&mut self, connection: ConnectionId, error: TransportError) {
        let Some((address, key)) = self.find(connection) else { return };
        self.transport.forget(connection);
        if let Some(session) = self.peers.get_mut(&address).and_then(|peer| peer.session_mut(key)) {
            session.connection = None;
        }
        self.apply(address, key, Event::TcpFails, Cause::reason(Reason::Transport(error), Fate::Stale));
    }

    fn expire(&mut self) {
        let now = self.transport.now;
        while let Some(&(at, address)) = self.queue.first()
            && at <= now
        {
            self.queue.pop_first();
            self.touched.insert(address);
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            peer.queued = None;
            if peer.retention.until.is_some_and(|until| until <= now) {
                self.sweep_stale(address);
            }
            for key in self.peers.get(&address).map(Peer::keys).unwrap_or_default() {
                while let Some(timer) =
                    self.peers.get_mut(&address).and_then(|peer| peer.session_mut(key)?.take_expired(now))
                {
                    self.expired(address, key, timer);
                }
            }
        }
    }

    fn expired(&mut self, address: IpAddr, key: ConnectionId, timer: Timer) {
        let Some(peer) = self.peers.get(&address) else { return };
        let Some(session) = peer.session(key) else { return };
        let (state, hold) = (session.state, session.hold_time.seconds());
        let unneeded = key == DIALLER && peer.is_greeted_beside(key);
        let (event, cause) = match timer {
            Timer::ConnectRetry | Timer::IdleHold if unneeded => (Event::Abandon, Cause::NONE),
            Timer::ConnectRetry if state == State::Connect => (
                Event::ConnectRetryExpires,
                Cause::reason(Reason::Transport(TransportError::TimedOut), Fate::Drop),
            ),
            Timer::ConnectRetry => (Event::ConnectRetryExpires, Cause::NONE),
            Timer::IdleHold => (Event::IdleHoldExpires, Cause::NONE),
            Timer::Keepalive => (Event::KeepaliveExpires, Cause::NONE),
            Timer::Hold => {
                let reason = if state == State::OpenSent {
                    Reason::NoOpen { seconds: OPEN_HOLD.as_secs() }
                } else {
                    Reason::HoldTimer { seconds: hold }
                };
                // RFC 4271 §6.5.
                let notification = Notification::new(code::HOLD_TIMER_EXPIRED, 0);
                (Event::HoldExpires, Cause::notify(notification, reason, Fate::Drop))
            }
        };
        self.apply(address, key, event, cause);
    }

    fn stop(&mut self, notify: bool) {
        for address in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            peer.stop();
            for key in peer.keys() {
                let shutdown = Notification::cease(cease::ADMINISTRATIVE_SHUTDOWN);
                let event = if notify { Event::Stop } else { Event::Abandon };
                self.apply(address, key, event, Cause::notify(shutdown, Reason::Stopped, Fate::Keep));
            }
        }
        self.stopped = true;
    }

    fn find(&self, connection: ConnectionId) -> Option<(IpAddr, ConnectionId)> {
        let address = self.transport.owner(connection)?;
        Some((address, self.peers.get(&address)?.key_of(connection)?))
    }

    /// Lets an event act on a session, and the routes follow. Says whether the message is for the routes.
    fn apply(&mut self, address: IpAddr, key: ConnectionId, event: Event, cause: Cause) -> bool {
        let Some(peer) = self.peers.get_mut(&address) else { return false };
        let terms = peer.terms(&self.config, address, self.converged);
        let outcome = peer.apply(key, event, cause, &terms, &mut self.transport);
        self.touched.insert(address);
        if let Some(loss) = outcome.down {
            self.lost(address, loss);
        }
        if outcome.up {
            self.established(address);
        }
        outcome.deliver
    }

    fn enqueue(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(deadline) = peer.deadline() else { return };
        if peer.queued.is_some_and(|at| at <= deadline) {
            return;
        }
        if let Some(at) = peer.queued.replace(deadline) {
            self.queue.remove(&(at, address));
        }
        self.queue.insert((deadline, address));
    }

    fn converge(&mut self) {
        let due = self.waiting.is_empty() || self.converge_by <= self.transport.now;
        if self.peers_known && !self.converged && !self.stopped && due {
            self.converged = true;
            tracing::info!(missing = self.waiting.len(), "converged");
            self.waiting.clear();
            self.transport.push(Output::Converged);
        }
    }
}

/// RFC 4271 §8.1.5: which event a fault in a message is. The code says which, save that a broken body of a message that
/// the state does not expect is a fault in the header's type as much.
fn error_event(notification: &Notification, state: State) -> Event {
    match notification.code {
        code::OPEN_MESSAGE => Event::OpenError,
        code::UPDATE_MESSAGE if state == State::Established => Event::UpdateError,
        _ => Event::HeaderError,
    }
}
