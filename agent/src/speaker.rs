//! Driver of the BGP speaker: one task owns it, and carries out what it asks for.
//!
//! Every connection has a task of its own that reads; the owner writes by itself as far as the kernel takes it. All
//! talk to the owner through bounded channels: a peer that sends faster than it is read is slowed by TCP, and one that
//! reads too slowly is dropped, never held in memory. What the speaker learns is handed on latest state first: a burst
//! of changes to one destination costs its reader one.

mod connection;
mod listening;
mod md5;
mod query;
mod sending;
mod stalls;
mod strangers;
mod traffic;
mod unanswered;

use std::collections::{BTreeMap, BTreeSet};
use std::future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use culvert_bgp::id::{ConnectionId, NextHop, Prefix};
use culvert_bgp::speaker::{
    Input, Output, PeerConfig, PeerStatus, SessionChange, Speaker, SpeakerConfig, TransportError,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, info, warn};

use crate::metrics::Metrics;
use crate::peering::Endpoint;
use crate::uapi::SocketFamily;
use connection::{Connection, Sent, SocketEvent};
use listening::Listening;
pub use query::{Clear, Query};
use sending::Sending;
use stalls::Stalls;
use strangers::Strangers;
use traffic::Traffic;
use unanswered::Unanswered;

/// Events of sockets that wait for the owner, of up to 64 KiB each; a full channel stops the reading of all connections.
const SOCKET_EVENTS: usize = 256;

/// So many octets at most are taken from the peers before it is looked at what they call for: it is held in memory until then.
const BATCH_OCTETS: usize = 1 << 20;

/// So many destinations at most are told at once; the rest follows. What they lead to is then worked out in memory that is
/// used again, instead of in as much as a full table takes.
const ROUTES_AT_ONCE: usize = 4096;

/// The state of the peers is told at most this often: a thousand sessions that come up at once are one telling.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// What the speaker is told.
#[derive(Debug)]
pub enum Command {
    /// Where to listen. Sessions that stand are left alone.
    Listen(Endpoint),
    /// The whole set of peers.
    Peers(BTreeMap<IpAddr, PeerConfig>),
    /// The whole set of destinations of this node.
    Exports(BTreeSet<Prefix>),
    /// What people want to know of it, or want of it.
    Ask(Query),
    /// Close all connections without a word, so that the peers keep our routes (RFC 4724), and end.
    Stop {
        /// Told when all is closed.
        done: oneshot::Sender<()>,
    },
}

/// What the speaker tells, since it was last heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct News {
    /// Destinations whose best next hops changed; none left means that it is gone.
    pub routes: BTreeMap<Prefix, Vec<NextHop>>,
    /// When the first of these changes was taken in.
    pub since: Option<Instant>,
    /// Sessions that came up or went down, in order.
    pub sessions: Vec<SessionChange>,
    /// All peers have told all they know, or had their time to.
    pub converged: bool,
}

impl News {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes out what is to be told first: the changes of at most `most` destinations. That all is told is so with the last
    /// of them only.
    fn take(&mut self, most: usize) -> Self {
        let rest = match self.routes.keys().nth(most).copied() {
            Some(next) => Self {
                routes: self.routes.split_off(&next),
                since: self.since,
                sessions: Vec::new(),
                converged: std::mem::take(&mut self.converged),
            },
            None => Self::default(),
        };
        std::mem::replace(self, rest)
    }
}

/// The running speaker, seen from outside.
#[derive(Debug)]
pub struct Running {
    /// Tells it something.
    pub commands: mpsc::Sender<Command>,
    /// Hears from it.
    pub news: mpsc::Receiver<News>,
    /// Its peers, as they are now.
    pub peers: watch::Receiver<Vec<PeerStatus>>,
    /// Why it does not listen where it was told to, if it does not.
    pub listening: watch::Receiver<Option<String>>,
}

/// Why the speaker does not run.
#[derive(Debug, thiserror::Error)]
pub enum SpeakerError {
    /// The port cannot be listened on.
    #[error(
        "cannot listen for BGP on port {port}: {source}; \
         is another BGP daemon running on this host? set bgp.listenPort to another port if that is meant"
    )]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
}

/// Starts a speaker: its listener is open when this returns.
///
/// # Errors
/// When the port cannot be listened on.
pub fn start(config: SpeakerConfig, endpoint: Endpoint, metrics: Metrics) -> Result<Running, SpeakerError> {
    let port = endpoint.port;
    let (problem, listening_problem) = watch::channel(None);
    let listening = Listening::open(endpoint, problem)?;
    let (commands, command_queue) = mpsc::channel(16);
    let (news_queue, news) = mpsc::channel(1);
    let (statuses, peers) = watch::channel(Vec::new());
    let (events, event_queue) = mpsc::channel(SOCKET_EVENTS);
    let driver = Driver {
        speaker: Speaker::new(config, Instant::now().into_std()),
        listening,
        known: None,
        connections: BTreeMap::new(),
        dials: BTreeMap::new(),
        unheard: BTreeSet::new(),
        unanswered: Unanswered::default(),
        sending: Sending::default(),
        stalls: Stalls::default(),
        events,
        news: News::default(),
        statuses,
        status_changed: true,
        strangers: Strangers::new(metrics.bgp_connections_refused.clone()),
        traffic: Traffic::new(metrics),
    };
    tokio::spawn(driver.run(command_queue, event_queue, news_queue));
    info!(port, "listening for BGP");
    Ok(Running {
        commands,
        news,
        peers,
        listening: listening_problem,
    })
}

struct Driver {
    speaker: Speaker,
    listening: Listening,
    /// The terms of those who may connect, by their addresses; none until they are known. Until then connections wait in the backlog: a peer
    /// that is refused comes back seconds later.
    known: Option<BTreeMap<IpAddr, PeerConfig>>,
    connections: BTreeMap<ConnectionId, Connection>,
    dials: BTreeMap<ConnectionId, JoinHandle<()>>,
    /// Connections to peers that have not said anything yet.
    unheard: BTreeSet<ConnectionId>,
    unanswered: Unanswered,
    sending: Sending,
    stalls: Stalls,
    events: mpsc::Sender<SocketEvent>,
    /// What has not been heard yet.
    news: News,
    statuses: watch::Sender<Vec<PeerStatus>>,
    /// Something that `statuses` tells has changed.
    status_changed: bool,
    strangers: Strangers,
    traffic: Traffic,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut events: mpsc::Receiver<SocketEvent>,
        news: mpsc::Sender<News>,
    ) {
        let mut status_due = Instant::now();
        loop {
            let timer = at(self.speaker.deadline().map(Instant::from_std));
            let (stalls_due, listening_due) = (at(self.stalls.due()), at(self.listening.due()));
            let traffic_due = at(self.traffic.due());
            let pause_until = self.strangers.pause_until();
            let may_accept = self.known.is_some() && !self.strangers.is_paused();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Stop { done }) => return self.stop(done).await,
                    Some(command) => self.obey(command),
                    None => return,
                },
                Some(event) = events.recv() => self.take_all(event, &mut events),
                () = sleep_until(pause_until), if self.strangers.is_paused() => self.strangers.go_on(),
                (family, accepted) = self.listening.accept(), if may_accept => self.accept(family, accepted),
                () = listening_due => {
                    self.listening.attempt();
                    self.status_changed = true;
                }
                () = timer => self.tell(Input::Timer),
                () = stalls_due => {
                    for input in self.stalls.look(&self.connections) {
                        self.tell(input);
                    }
                }
                () = traffic_due => self.count(),
                permit = news.reserve(), if !self.news.is_empty() => match permit {
                    Ok(permit) => permit.send(self.news.take(ROUTES_AT_ONCE)),
                    Err(_) => return,
                },
                () = sleep_until(status_due), if self.status_changed => {
                    self.tell_statuses();
                    status_due = Instant::now() + STATUS_INTERVAL;
                }
            }
        }
    }

    fn tell_statuses(&mut self) {
        let mut statuses: Vec<_> = self.speaker.peers().collect();
        if let Some(known) = &self.known {
            self.unanswered.explain(&mut statuses, known);
        }
        self.statuses.send_replace(statuses);
        self.status_changed = false;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Listen(endpoint) => {
                self.listening.move_to(endpoint);
                self.status_changed = true;
            }
            Command::Peers(peers) => {
                self.listening.set_passwords(&peers);
                if let Some(known) = &self.known {
                    self.unanswered.forget_changed(known, &peers);
                }
                self.known = Some(peers.clone());
                self.status_changed = true;
                self.tell(Input::Peers(peers));
            }
            Command::Exports(exports) if self.traffic.is_awaited(&exports) => {
                self.status_changed = true;
                self.tell(Input::Exports(exports.clone()));
                self.traffic.told(&exports, self.speaker.peers());
                self.traffic.look(&self.connections);
            }
            Command::Exports(exports) => {
                self.status_changed = true;
                self.tell(Input::Exports(exports));
            }
            Command::Ask(query) => self.inquire(query),
            Command::Stop { .. } => {}
        }
    }

    fn count(&mut self) {
        self.traffic.look(&self.connections);
        if self.traffic.must_count() {
            self.traffic.count(self.speaker.peers());
        }
    }

    /// Closes everything. The kernel sends what is queued; the peers see an end of the stream, not a NOTIFICATION.
    async fn stop(mut self, done: oneshot::Sender<()>) {
        self.tell(Input::Stop { notify: false });
        let open = std::mem::take(&mut self.connections);
        for (_, connection) in open {
            connection.closed().await;
        }
        let _ = done.send(());
    }

    fn accept(&mut self, family: SocketFamily, accepted: std::io::Result<(TcpStream, SocketAddr)>) {
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection could not be accepted");
                // Without a free descriptor, the same error would come again at once, for ever.
                self.strangers.pause();
                return;
            }
        };
        let peer = from.ip().to_canonical();
        let Some(config) = self.known.as_ref().and_then(|known| known.get(&peer)) else {
            self.strangers.refuse(peer);
            return;
        };
        if let Some(hops) = config.ttl_security
            && let Err(error) = connection::check_ttl(&stream, family, hops)
        {
            warn!(%peer, %error, "the TTL of a connection cannot be checked: it is closed");
            return;
        }
        let id = self.speaker.next_connection();
        debug!(%peer, connection = id.0, "accepted");
        self.connections
            .insert(id, Connection::spawn(id, stream, self.events.clone()));
        self.tell(Input::Accepted { connection: id, peer });
    }

    /// Takes an event and those that wait behind it, so that what they change together is told once. No more than a
    /// channel's worth: they may come as fast as they are taken.
    fn take_all(&mut self, first: SocketEvent, waiting: &mut mpsc::Receiver<SocketEvent>) {
        let mut octets = self.take(first);
        for _ in 0..SOCKET_EVENTS {
            if octets >= BATCH_OCTETS {
                break;
            }
            let Ok(event) = waiting.try_recv() else { break };
            octets += self.take(event);
        }
        self.answer();
    }

    /// Takes an event; [`Self::answer`] then sees to what it calls for. The octets that the speaker was given.
    fn take(&mut self, event: SocketEvent) -> usize {
        match event {
            SocketEvent::Dialled { id, stream } => {
                // A dial that was given up in the meantime has nobody waiting for it.
                if self.dials.remove(&id).is_some() {
                    self.unheard.insert(id);
                    self.connections
                        .insert(id, Connection::spawn(id, stream, self.events.clone()));
                    self.handle(Input::Dialled { connection: id });
                }
                0
            }
            SocketEvent::Received { id, bytes, turn } => {
                self.unheard.remove(&id);
                self.traffic.note();
                if self.connections.contains_key(&id) {
                    self.handle(Input::Received {
                        connection: id,
                        bytes: &bytes,
                    });
                }
                drop(turn);
                bytes.len()
            }
            SocketEvent::Closed { id, error } => {
                self.lost(id, error);
                0
            }
        }
    }

    fn lost(&mut self, id: ConnectionId, error: TransportError) {
        let dialling = self.dials.remove(&id).is_some();
        // Who accepts a connection and closes it at once has no peer at the address that it came from.
        let error = match error {
            TransportError::Ended | TransportError::Reset if self.unheard.remove(&id) => {
                TransportError::NotWelcome
            }
            other => other,
        };
        let connected = self.connections.remove(&id).is_some();
        if dialling || connected {
            self.handle(Input::Closed {
                connection: id,
                error,
            });
        }
    }

    fn handle(&mut self, input: Input<'_>) {
        self.speaker.handle(Instant::now().into_std(), input);
    }

    /// Tells the speaker, and carries out what it answers.
    fn tell(&mut self, input: Input<'_>) {
        self.handle(input);
        self.answer();
    }

    /// Carries out what the speaker asks for. What that leads to on the way, a queue that overflows for one, it is told in
    /// turn.
    fn answer(&mut self) {
        loop {
            let mut inputs = Vec::new();
            while let Some(output) = self.speaker.poll_output() {
                if !matches!(output, Output::Send { .. }) {
                    self.send(&mut inputs);
                }
                self.carry_out(output);
            }
            self.send(&mut inputs);
            if inputs.is_empty() {
                return;
            }
            for input in inputs {
                self.handle(input);
            }
        }
    }

    /// Writes the messages that the speaker asked for one after another, and adds what it is to be told of that.
    fn send(&mut self, inputs: &mut Vec<Input<'static>>) {
        if self.sending.is_empty() {
            return;
        }
        self.traffic.note();
        for (connection, sent) in self.sending.write(&mut self.connections) {
            match sent {
                Sent::Taken => {}
                Sent::Waiting => {
                    let open = self.connections.get(&connection);
                    inputs.extend(open.and_then(|open| self.stalls.note(connection, open)));
                }
                Sent::Overflowed => {
                    self.connections.remove(&connection);
                    let error = TransportError::SendQueueFull;
                    inputs.push(Input::Closed { connection, error });
                }
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Dial { connection, peer } => {
                // A new attempt is the only sign that one before it got no answer.
                self.status_changed = true;
                self.unanswered.dialling(peer);
                // Nobody is dialled who was not told of; were it so, the speaker would come back to it by its own timer.
                if let Some(config) = self.known.as_ref().and_then(|known| known.get(&peer)) {
                    let dial = connection::dial(connection, config, self.events.clone());
                    self.dials.insert(connection, tokio::spawn(dial));
                }
            }
            // Together with those that follow it.
            Output::Send { connection, bytes } => self.sending.add(connection, bytes),
            Output::Close { connection } => {
                // A connection that is dropped still writes what is queued, a NOTIFICATION for one.
                self.connections.remove(&connection);
                self.unheard.remove(&connection);
                if let Some(dial) = self.dials.remove(&connection) {
                    dial.abort();
                }
            }
            Output::RibChange(change) => {
                self.news.since.get_or_insert_with(Instant::now);
                self.news.routes.insert(change.prefix, change.best);
                self.status_changed = true;
            }
            Output::SessionChange(change) => {
                self.news.sessions.push(change);
                self.status_changed = true;
            }
            Output::Converged => {
                self.news.converged = true;
            }
        }
    }
}

/// Waits until `due`; for ever without one.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => future::pending().await,
    }
}

#[cfg(test)]
mod tests;
