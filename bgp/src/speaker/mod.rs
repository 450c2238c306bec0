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

mod group;
mod messages;
mod peer;
mod query;
mod refresh;
mod retention;
mod ribs;
mod routes;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use query::{PathView, RouteView};
pub use status::PeerStatus;

pub use crate::config::{PeerConfig, SpeakerConfig};
pub use crate::fsm::State;
use crate::fsm::{Event, Timer};
use crate::id::{ConnectionId, Prefix};
pub use crate::input::Input;
pub use crate::output::{Output, RibChange, SessionChange};
pub use crate::reason::{Reason, TransportError};
use crate::session::{Cause, DIALLER, Fate, OPEN_HOLD};
use crate::transport::Transport;
use crate::wire::message::{Message, Notification};
use crate::wire::notification::{cease, code};
use crate::wire::{self, Negotiated};
use peer::Peer;
use ribs::Ribs;

/// A BGP-4 speaker.
#[derive(Debug)]
pub struct Speaker {
    config: SpeakerConfig,
    peers: BTreeMap<IpAddr, Peer>,
    ribs: Ribs,
    /// What this node originates, once that is known.
    exports: Option<BTreeSet<Prefix>>,
    /// The clusters that this speaker reflects in (RFC 4456 §7).
    clusters: BTreeSet<Ipv4Addr>,
    transport: Transport,
    /// Peers by the earliest of their deadlines. An entry may be too early, never too late: a deadline that moves away,
    /// as the hold timer does with each message, is corrected when the entry comes up.
    queue: BTreeSet<(Instant, IpAddr)>,
    /// Peers that may have something to send, or another deadline.
    touched: BTreeSet<IpAddr>,
    /// Peers whose End-of-RIB has not been seen since the start.
    waiting: BTreeSet<IpAddr>,
    /// After a restart: peers whose routes are still to come before it can be said that ours are all told.
    awaited: BTreeSet<IpAddr>,
    /// How long to wait for them, once it is known who they are.
    converge_by: Option<Instant>,
    converged: bool,
    stopped: bool,
}

impl Speaker {
    /// A speaker without peers.
    #[must_use]
    pub fn new(config: SpeakerConfig, now: Instant) -> Self {
        Self {
            peers: BTreeMap::new(),
            ribs: Ribs::new(config.multipath),
            exports: None,
            clusters: BTreeSet::new(),
            transport: Transport::new(now, config.seed),
            queue: BTreeSet::new(),
            touched: BTreeSet::new(),
            waiting: BTreeSet::new(),
            awaited: BTreeSet::new(),
            converge_by: None,
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
            Input::Stalled { connection } => self.stalled(connection, true),
            Input::Sent { connection } => self.stalled(connection, false),
            Input::Refresh { peer } => self.ask_refresh(peer),
            Input::Reset { peer } => self.reset(peer),
            Input::Timer => self.expire(),
            Input::Stop { notify } => self.stop(notify),
        }
        for address in std::mem::take(&mut self.touched) {
            self.tell_end_of_rib(address);
            self.enqueue(address);
        }
        self.converge();
    }

    /// The next thing to do, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        // What several inputs have changed is told at once.
        if self.transport.is_idle() && self.ribs.groups.is_dirty() {
            self.flush();
        }
        self.transport.pop()
    }

    /// When to come back with [`Input::Timer`], if nothing happens before. It may be earlier than needed, not later.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let converge = self.converge_by.filter(|_| !self.converged);
        let first = self
            .queue
            .first()
            .map(|&(at, _)| at)
            .into_iter()
            .chain(converge)
            .min();
        first.filter(|_| !self.stopped)
    }

    /// A number for a connection that the driver accepts.
    pub fn next_connection(&mut self) -> ConnectionId {
        self.transport.next_connection()
    }

    /// What is known of each peer, in order of address.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.iter().map(|(&address, peer)| {
            let group = peer.group.and_then(|group| self.ribs.groups.get(group));
            peer.status(group.map_or(0, |group| group.routes.count(address)))
        })
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
            .filter(|(address, peer)| match wanted.get(*address) {
                Some(config) => peer.config.needs_new_session(config),
                None => true,
            })
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
        self.set_clusters(&wanted);
        let now = self.transport.now;
        for (address, config) in wanted {
            if let Some(peer) = self.peers.get_mut(&address) {
                if *peer.config != config {
                    self.reconfigure(address, Arc::new(config));
                }
                continue;
            }
            let passive = config.passive;
            self.peers
                .insert(address, Peer::new(Arc::new(config), &self.config, now));
            if !self.converged {
                self.waiting.insert(address);
                if self.config.restarted {
                    self.awaited.insert(address);
                }
            }
            let event = if passive {
                Event::StartPassive
            } else {
                Event::Start
            };
            self.apply(address, DIALLER, event, Cause::NONE);
        }
        let patience = Duration::from_secs(self.config.restart_time.into());
        self.converge_by.get_or_insert(now + patience);
    }

    /// RFC 4456 §8: a path that has been in one of our clusters is not used.
    fn set_clusters(&mut self, peers: &BTreeMap<IpAddr, PeerConfig>) {
        let clusters = peers.values().filter_map(|peer| peer.reflector_client).collect();
        if self.clusters != clusters {
            self.clusters = clusters;
            for address in self.peers.keys().copied().collect::<Vec<_>>() {
                self.import_again(address);
            }
        }
    }

    /// Applies what is not in the OPEN to the session that stands.
    fn reconfigure(&mut self, address: IpAddr, config: Arc<PeerConfig>) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let before = Arc::clone(&peer.config);
        let mut terms = peer.terms(&self.config, self.converged);
        terms.peer = config;
        peer.reconfigure(&terms, &mut self.transport);
        if before.imports_otherwise(&terms.peer) {
            self.import_again(address);
        }
        self.export_again(address);
        if let Some(key) = self.peers.get(&address).and_then(Peer::established_key) {
            self.limit_prefixes(address, key);
        }
        self.touched.insert(address);
    }

    fn remove_peer(&mut self, address: IpAddr, subcode: u8, reason: &Reason) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
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
        self.no_longer_awaited(address);
    }

    fn dialled(&mut self, connection: ConnectionId) {
        let Some((address, key)) = self.find(connection) else {
            return;
        };
        let now = self.transport.now;
        if let Some(session) = self
            .peers
            .get_mut(&address)
            .and_then(|peer| peer.session_mut(key))
        {
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
        if peer.is_refused(self.transport.now) {
            // RFC 4486 §4: a peer that is configured, and not wanted now.
            let notification = Message::Notification(Notification::cease(cease::CONNECTION_REJECTED));
            self.transport
                .send(connection, wire::encode(&notification, Negotiated::plain(false)));
            self.transport.close(connection);
            return;
        }
        for key in peer.superfluous_beside_new() {
            self.apply(
                address,
                key,
                Event::Abandon,
                Cause::reason(Reason::PeerRestarted, Fate::Stale),
            );
        }
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let terms = peer.terms(&self.config, self.converged);
        self.transport.adopt(connection, address);
        peer.add_accepted(connection, &terms, &mut self.transport);
        self.apply(address, connection, Event::TcpEstablished, Cause::NONE);
    }

    fn closed(&mut self, connection: ConnectionId, error: TransportError) {
        let Some((address, key)) = self.find(connection) else {
            return;
        };
        self.transport.forget(connection);
        if let Some(session) = self
            .peers
            .get_mut(&address)
            .and_then(|peer| peer.session_mut(key))
        {
            session.connection = None;
        }
        self.apply(
            address,
            key,
            Event::TcpFails,
            Cause::reason(Reason::Transport(error), Fate::Stale),
        );
    }

    fn stalled(&mut self, connection: ConnectionId, stalled: bool) {
        let Some((address, key)) = self.find(connection) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&address) {
            let terms = peer.terms(&self.config, self.converged);
            if let Some(session) = peer.session_mut(key) {
                session.stalled(stalled, &terms, &mut self.transport);
            }
        }
        self.touched.insert(address);
    }

    fn expire(&mut self) {
        let now = self.transport.now;
        while let Some(&(at, address)) = self.queue.first()
            && at <= now
        {
            self.queue.pop_first();
            self.touched.insert(address);
            let Some(peer) = self.peers.get_mut(&address) else {
                continue;
            };
            peer.queued = None;
            self.expire_stale(address);
            self.expire_refresh(address);
            for key in self.peers.get(&address).map(Peer::keys).unwrap_or_default() {
                while let Some(timer) = self
                    .peers
                    .get_mut(&address)
                    .and_then(|peer| peer.session_mut(key)?.take_expired(now))
                {
                    self.expired(address, key, timer);
                }
            }
        }
    }

    fn expired(&mut self, address: IpAddr, key: ConnectionId, timer: Timer) {
        let Some(peer) = self.peers.get(&address) else {
            return;
        };
        let Some(session) = peer.session(key) else { return };
        let (state, hold) = (session.state, session.hold_time.seconds());
        let passive = peer.config.passive && key == DIALLER;
        let unneeded = key == DIALLER && peer.is_greeted_beside(key);
        let (event, cause) = match timer {
            Timer::ConnectRetry | Timer::IdleHold if unneeded => (Event::Abandon, Cause::NONE),
            Timer::ConnectRetry if state == State::Connect => (
                Event::ConnectRetryExpires,
                Cause::reason(Reason::Transport(TransportError::TimedOut), Fate::Drop),
            ),
            Timer::ConnectRetry => (Event::ConnectRetryExpires, Cause::NONE),
            Timer::IdleHold if passive => (Event::IdleHoldExpiresPassive, Cause::NONE),
            Timer::IdleHold => (Event::IdleHoldExpires, Cause::NONE),
            Timer::Keepalive => (Event::KeepaliveExpires, Cause::NONE),
            Timer::Hold => {
                let reason = if state == State::OpenSent {
                    Reason::NoOpen {
                        seconds: OPEN_HOLD.as_secs(),
                    }
                } else {
                    Reason::HoldTimer { seconds: hold }
                };
                // RFC 4271 §6.5.
                let notification = Notification::new(code::HOLD_TIMER_EXPIRED, 0);
                (
                    Event::HoldExpires,
                    Cause::notify(notification, reason, Fate::Notified),
                )
            }
            Timer::SendHold => {
                // RFC 9687 §4.4, §5. The peer does not read: what is sent with it may never arrive.
                let notification = Notification::new(code::SEND_HOLD_TIMER_EXPIRED, 0);
                let cause = Cause::notify(notification, Reason::SendHoldTimer, Fate::Notified);
                (Event::SendHoldExpires, cause)
            }
        };
        self.apply(address, key, event, cause);
    }

    /// RFC 4486 §4: ends what there is; the dialler begins anew by itself after its pause. A peer that was kept away
    /// for what it announced may come back at once.
    fn reset(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.admit();
        for key in peer.keys() {
            let reset = Notification::cease(cease::ADMINISTRATIVE_RESET);
            let cause = Cause::notify(reset, Reason::Cleared, Fate::Notified);
            self.apply(address, key, Event::Stop, cause);
        }
    }

    fn stop(&mut self, notify: bool) {
        for address in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&address) else {
                continue;
            };
            peer.stop();
            for key in peer.keys() {
                let shutdown = Notification::cease(cease::ADMINISTRATIVE_SHUTDOWN);
                let event = if notify { Event::Stop } else { Event::Abandon };
                self.apply(
                    address,
                    key,
                    event,
                    Cause::notify(shutdown, Reason::Stopped, Fate::Keep),
                );
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
        let Some(peer) = self.peers.get_mut(&address) else {
            return false;
        };
        let terms = peer.terms(&self.config, self.converged);
        let outcome = peer.apply(key, event, cause, &terms, &mut self.transport);
        self.touched.insert(address);
        if let Some(loss) = outcome.down {
            self.lost(address, &loss);
        }
        if outcome.up {
            self.established(address);
        }
        outcome.deliver
    }

    fn enqueue(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
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
        let Some(converge_by) = self.converge_by else {
            return;
        };
        let due = self.waiting.is_empty() || converge_by <= self.transport.now;
        if !self.converged && !self.stopped && due {
            self.converged = true;
            tracing::info!(missing = self.waiting.len(), "converged");
            self.waiting.clear();
            self.awaited.clear();
            self.tell_all_end_of_rib();
            self.transport.push(Output::Converged);
        }
    }
}
