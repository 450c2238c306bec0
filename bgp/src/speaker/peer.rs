//! A peer: at most two sessions and which of them lives (RFC 4271 §6.8), and the routes to and from it.
//!
//! Both sides dial. The session that dials is always there, even if it only waits; a connection that the peer opens
//! gets a session of its own (RFC 4271 §8.2.1). While the peer is Established through the one it opened, the dialler rests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::group::Encoded;
use super::refresh::Refresh;
use super::retention::Retention;
use super::routes::FAMILIES;
use super::status::PeerStatus;
use crate::config::{PeerConfig, SpeakerConfig};
use crate::fsm::{Event, State};
use crate::id::{ConnectionId, HoldTime, RouterId};
use crate::output::{Output, SessionChange};
use crate::policy::export::Export;
use crate::policy::import::Import;
use crate::reason::{Families, Reason};
use crate::rib::adj_in::AdjRibIn;
use crate::rib::decision::Neighbour;
use crate::session::{Cause, DIALLER, Fate, Origin, Patience, Session, Terms};
use crate::transport::Transport;
use crate::wire::Negotiated;
use crate::wire::message::{Family, Message, Notification, Open};
use crate::wire::notification::{cease, code, open as open_error};

/// A connection that the peer opens within this time after another one became Established may still be the other half
/// of a simultaneous open; one that comes later says that the peer has lost the first.
const CROSSING: Duration = Duration::from_secs(2);

/// What an event has done to a peer, for those who keep the routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The message is for the routes.
    pub(crate) deliver: bool,
    /// A session has become Established.
    pub(crate) up: bool,
    /// A session was Established.
    pub(crate) down: Option<Loss>,
}

/// What becomes of the peer's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// They go.
    Drop,
    /// Those of these families stay, as stale ones, for as long as the peer asked for; the others go.
    Stale(BTreeMap<Family, Patience>),
    /// They stay as they are.
    Keep,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: Arc<PeerConfig>,
    pub(crate) internal: bool,
    dialler: Session,
    accepted: Vec<Session>,
    pub(crate) state: State,
    since: Instant,
    reason: Option<Reason>,
    /// How often it has failed since it was last Established, and when the last time was.
    failures: (u64, Option<Instant>),
    pub(crate) routes_in: AdjRibIn,
    /// Those that are told the same, while Established.
    pub(super) group: Option<u64>,
    /// What is let in.
    pub(crate) import: Import,
    /// What paths say of the peer, as of the last session that came up.
    pub(crate) neighbour: Option<Arc<Neighbour>>,
    pub(super) retention: BTreeMap<Family, Retention>,
    pub(super) refresh: BTreeMap<Family, Refresh>,
    pub(crate) end_of_rib_received: BTreeSet<Family>,
    pub(crate) end_of_rib_sent: bool,
    pub(crate) established_count: u64,
    pub(crate) messages_in: u64,
    pub(crate) faults: u64,
    /// UPDATEs whose paths were not let in.
    pub(crate) rejected: u64,
    /// The families that near their limit, so that this is said once.
    pub(crate) warned: BTreeSet<Family>,
    messages_out: u64,
    /// The peer's identifier and the hold time, as of the last session that came up.
    agreed: Option<(RouterId, HoldTime)>,
    stopped: bool,
    /// Until then it is refused: it announced more than it may.
    refused_until: Option<Instant>,
    /// The deadline under which the speaker's queue holds it.
    pub(crate) queued: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(config: Arc<PeerConfig>, speaker: &SpeakerConfig, now: Instant) -> Self {
        let internal = config.asn == config.local_asn.unwrap_or(speaker.asn);
        let hold_time = config.hold_time.unwrap_or(speaker.hold_time);
        Self {
            import: Import::new(speaker, &config),
            config,
            internal,
            dialler: Session::dialler(hold_time, internal),
            accepted: Vec::new(),
            state: State::Idle,
            since: now,
            reason: None,
            failures: (0, None),
            routes_in: AdjRibIn::default(),
            group: None,
            neighbour: None,
            retention: BTreeMap::new(),
            refresh: BTreeMap::new(),
            end_of_rib_received: BTreeSet::new(),
            end_of_rib_sent: false,
            established_count: 0,
            messages_in: 0,
            faults: 0,
            rejected: 0,
            warned: BTreeSet::new(),
            messages_out: 0,
            agreed: None,
            stopped: false,
            refused_until: None,
            queued: None,
        }
    }

    fn sessions(&self) -> impl Iterator<Item = &Session> {
        std::iter::once(&self.dialler).chain(&self.accepted)
    }

    /// The keys of its sessions.
    pub(crate) fn keys(&self) -> Vec<ConnectionId> {
        self.sessions().map(|session| session.key).collect()
    }

    /// The session whose connection this is.
    pub(crate) fn key_of(&self, connection: ConnectionId) -> Option<ConnectionId> {
        self.sessions()
            .find(|session| session.connection == Some(connection))
            .map(|session| session.key)
    }

    pub(crate) fn session(&self, key: ConnectionId) -> Option<&Session> {
        self.sessions().find(|session| session.key == key)
    }

    pub(crate) fn session_mut(&mut self, key: ConnectionId) -> Option<&mut Session> {
        if key == DIALLER {
            return Some(&mut self.dialler);
        }
        self.accepted.iter_mut().find(|session| session.key == key)
    }

    /// The Established session.
    pub(crate) fn established(&self) -> Option<&Session> {
        self.sessions()
            .find(|session| session.state == State::Established)
    }

    /// The same, to change it.
    pub(crate) fn established_mut(&mut self) -> Option<&mut Session> {
        std::iter::once(&mut self.dialler)
            .chain(&mut self.accepted)
            .find(|s| s.state == State::Established)
    }

    /// The key of the Established session.
    pub(crate) fn established_key(&self) -> Option<ConnectionId> {
        self.established().map(|session| session.key)
    }

    /// The earliest of its timers.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sessions()
            .filter_map(Session::deadline)
            .chain(self.retention.values().map(|stale| stale.until))
            .chain(self.refresh.values().filter_map(Refresh::deadline))
            .min()
    }

    /// Whether another session than `key` has got far enough that a new connection is not called for.
    pub(crate) fn is_greeted_beside(&self, key: ConnectionId) -> bool {
        self.sessions()
            .any(|session| session.key != key && session.state >= State::OpenConfirm)
    }

    /// Lets an event act on one of its sessions.
    pub(crate) fn apply(
        &mut self,
        key: ConnectionId,
        event: Event,
        mut cause: Cause,
        terms: &Terms<'_>,
        transport: &mut Transport,
    ) -> Outcome {
        let Some(session) = self.session_mut(key) else {
            return Outcome::default();
        };
        let keeps = session.keeps_over_notification();
        if keeps
            && matches!(cause.fate, Fate::Drop | Fate::Keep)
            && session.state == State::Established
            && let Some(notification) = cause.notify.take()
        {
            // RFC 8538 §3: else the peer would keep our routes.
            cause.notify = Some(hard_reset(&notification));
        }
        // What was agreed on is forgotten with the session.
        let ends = session.state == State::Established && session.would_end(event);
        let patience: BTreeMap<_, _> = FAMILIES
            .into_iter()
            .filter(|_| ends)
            .filter_map(|family| Some((family, session.patience(family, terms)?)))
            .collect();
        let applied = session.apply(event, &cause, terms, transport);
        let was_up = applied.from == State::Established;
        let is_up = applied.to == State::Established;
        let agreed = session
            .open
            .as_ref()
            .map(|open| (open.router_id, session.hold_time));
        if is_up && !was_up {
            self.agreed = agreed;
        }
        let fate = match cause.fate {
            Fate::Notified if keeps => Fate::Stale,
            Fate::Notified => Fate::Drop,
            fate => fate,
        };
        let loss = match fate {
            Fate::Stale => Loss::Stale(patience),
            Fate::Keep => Loss::Keep,
            Fate::Notified | Fate::Drop => Loss::Drop,
        };
        let reason = cause
            .reason
            .or_else(|| applied.notified.map(Reason::NotificationSent));
        self.settle(terms, transport);
        self.report(reason, transport);
        Outcome {
            deliver: applied.deliver,
            up: is_up && !was_up,
            down: (was_up && !is_up).then_some(loss),
        }
    }

    /// Puts the sessions in order after a change: dead ones go, and the dialler dials exactly when it is needed.
    fn settle(&mut self, terms: &Terms<'_>, transport: &mut Transport) {
        let messages_out = &mut self.messages_out;
        self.accepted.retain(|session| {
            let lives = session.state >= State::OpenSent;
            *messages_out += if lives { 0 } else { session.sent };
            lives
        });
        let greeted = self.is_greeted_beside(DIALLER);
        let established = self
            .accepted
            .iter()
            .any(|session| session.state == State::Established);
        let dialler = &mut self.dialler;
        if established && dialler.state < State::OpenSent {
            dialler.apply(Event::Abandon, &Cause::NONE, terms, transport);
        } else if !greeted && !self.stopped && dialler.state == State::Idle && !dialler.is_pausing() {
            dialler.pause(terms, transport);
        }
        if dialler.state == State::Idle
            && let Some(until) = self.refused_until.filter(|&until| until > transport.now)
        {
            dialler.pause_until(until);
        }
    }

    /// Tells the driver when the state of the peer as a whole has changed.
    fn report(&mut self, reason: Option<Reason>, transport: &mut Transport) {
        let (from, to) = (
            self.state,
            self.sessions().map(|s| s.state).max().unwrap_or(State::Idle),
        );
        // An attempt that fails as the one before did is no news: there may be a thousand peers that are not there.
        let is_new = reason.is_some() && reason != self.reason;
        if reason.is_some() && (to < from || to < State::OpenSent) {
            self.reason.clone_from(&reason);
            self.failures = (self.failures.0.saturating_add(1), Some(transport.now));
        }
        if to == State::Established && from != to {
            self.failures.0 = 0;
        }
        if from == to {
            return;
        }
        self.state = to;
        self.since = transport.now;
        let peer = self.config.address;
        let why = reason.as_ref().map(tracing::field::display);
        if is_new || from == State::Established || to == State::Established {
            tracing::info!(%peer, %from, %to, reason = why, "session state");
        } else {
            tracing::debug!(%peer, %from, %to, reason = why, "session state");
        }
        transport.push(Output::SessionChange(SessionChange {
            peer,
            from,
            to,
            reason,
        }));
    }

    /// Keeps the peer away until `until`.
    pub(crate) fn refuse_until(&mut self, until: Instant) {
        self.refused_until = Some(until);
    }

    /// Keeps it away no longer.
    pub(crate) fn admit(&mut self) {
        self.refused_until = None;
    }

    /// Whether it is kept away.
    pub(crate) fn is_refused(&self, now: Instant) -> bool {
        self.refused_until.is_some_and(|until| until > now)
    }

    /// Takes a configuration under which the session can go on.
    pub(crate) fn reconfigure(&mut self, terms: &Terms<'_>, transport: &mut Transport) {
        let dials = |config: &PeerConfig| (config.passive, config.port);
        let dialled = dials(&self.config);
        self.config = Arc::clone(&terms.peer);
        self.import = Import::new(terms.config, &self.config);
        self.neighbour = self.neighbour.take().map(|known| {
            let mut neighbour = Neighbour::clone(&known);
            neighbour.reflector_client = self.config.reflector_client;
            Arc::new(neighbour)
        });
        if dialled != dials(&self.config) && self.dialler.state < State::OpenSent {
            self.dialler.apply(Event::Abandon, &Cause::NONE, terms, transport);
            self.settle(terms, transport);
            self.report(None, transport);
        }
    }

    /// Nothing is to be tried any more.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.retention.clear();
    }

    /// The sessions that a new connection which the peer opened makes superfluous, to be ended first.
    pub(crate) fn superfluous_beside_new(&self) -> Vec<ConnectionId> {
        let established = self.state == State::Established;
        self.sessions()
            .filter(|session| match session.origin {
                // The peer opens one connection at a time: it has given up an earlier one that is not Established.
                Origin::Accepted => session.state < State::Established,
                // No more than two connections.
                Origin::Dialled => {
                    established && (State::OpenSent..State::Established).contains(&session.state)
                }
            })
            .map(|session| session.key)
            .collect()
    }

    /// Adds the session of a connection that the peer opened, waiting for the connection to be confirmed.
    pub(crate) fn add_accepted(
        &mut self,
        connection: ConnectionId,
        terms: &Terms<'_>,
        transport: &mut Transport,
    ) {
        let mut session = Session::accepted(connection, transport.now, terms);
        session.apply(Event::StartPassive, &Cause::NONE, terms, transport);
        self.accepted.push(session);
    }

    /// RFC 4271 §6.2: whether the OPEN is one to go on with.
    pub(crate) fn check_open(&self, open: &Open, terms: &Terms<'_>) -> Result<(), Cause> {
        let refuse = |subcode, data, reason| {
            let notification = Notification::with_data(code::OPEN_MESSAGE, subcode, data);
            Err(Cause::notify(notification, reason, Fate::Drop))
        };
        if open.asn != self.config.asn {
            let reason = Reason::WrongAs {
                got: open.asn,
                want: self.config.asn,
            };
            return refuse(open_error::BAD_PEER_AS, Vec::new(), reason);
        }
        // RFC 6286 §2.2: within one AS it must differ from ours.
        if terms.internal && open.router_id == terms.config.router_id {
            let reason = Reason::SameRouterId {
                got: open.router_id,
                ours: terms.config.router_id,
            };
            return refuse(open_error::BAD_BGP_IDENTIFIER, Vec::new(), reason);
        }
        let ours = &self.config.families;
        let agreed = Negotiated::between(&terms.open(), open).families().count();
        if agreed == 0 && !ours.is_empty() {
            // RFC 5492 §5: the data is the capabilities that are missing.
            let multiprotocol = |family: &Family| {
                let [high, low] = family.afi.to_be_bytes();
                [1, 4, high, low, 0, family.safi]
            };
            let data = ours.keys().flat_map(multiprotocol).collect();
            let reason = Reason::NoCommonFamily {
                offered: Families::of(open),
                ours: Families(ours.keys().copied().collect()),
            };
            return refuse(open_error::UNSUPPORTED_CAPABILITY, data, reason);
        }
        Ok(())
    }

    /// RFC 4271 §6.8: an acceptable OPEN has come on session `key`. Says which session is to end, if there is another
    /// one as far as this.
    pub(crate) fn collision(
        &self,
        key: ConnectionId,
        open: &Open,
        terms: &Terms<'_>,
    ) -> Option<(ConnectionId, Event, Cause)> {
        let this = self.session(key)?;
        let other = self
            .sessions()
            .find(|s| s.key != key && s.state >= State::OpenConfirm)?;
        let replaced = || {
            (
                other.key,
                Event::Abandon,
                Cause::reason(Reason::PeerRestarted, Fate::Stale),
            )
        };
        let collides = |loser: &Session| {
            let notification = Notification::cease(cease::CONNECTION_COLLISION);
            (
                loser.key,
                Event::CollisionDump,
                Cause::notify(notification, Reason::Collision, Fate::Stale),
            )
        };
        // The peer opens one connection at a time, so an older one of its own is dead.
        if this.origin == other.origin {
            return Some(replaced());
        }
        // RFC 4271 §6.8, CollisionDetectEstablishedState: the other end may still be in OpenConfirm there, and must
        // come to the same result.
        if other.established.is_none_or(|since| crosses(this, since)) {
            // RFC 4271 §6.8: the connection opened by the side with the higher identifier stays; RFC 6286 §2.3: where
            // they are equal, the higher AS.
            let ours = (terms.config.router_id, terms.local_asn());
            let stays = if ours < (open.router_id, open.asn) {
                Origin::Accepted
            } else {
                Origin::Dialled
            };
            return Some(collides(if this.origin == stays { other } else { this }));
        }
        // RFC 4724 §4.2, §5: a new OPEN from a peer that can restart says that it has restarted.
        if other.has_graceful_restart() {
            return Some(replaced());
        }
        // RFC 4271 §6.8: else the Established one stays.
        Some(collides(this))
    }

    /// Sends a KEEPALIVE out of turn on the Established session: if the peer has lost it, its host answers with a
    /// reset, and the peer's next connection meets no other.
    pub(crate) fn probe(&mut self, transport: &mut Transport) {
        if let Some(session) = self.established_mut() {
            session.send(&Message::Keepalive, transport);
        }
    }

    /// Sends a message on the Established session.
    pub(crate) fn tell(&mut self, message: &Message, transport: &mut Transport) {
        if let Some(session) = self.established_mut() {
            session.send(message, transport);
        }
    }

    /// Sends what was written out, on the Established session.
    pub(super) fn send(&mut self, encoded: &Encoded, transport: &mut Transport) {
        if let Some(session) = self.established_mut() {
            for (messages, bytes) in &encoded.pieces {
                session.send_shared(*messages, bytes, transport);
            }
        }
    }

    /// What decides what the peer is told, while Established.
    pub(crate) fn export(&self, speaker: &SpeakerConfig) -> Option<Export> {
        let session = self.established()?;
        let mut families = session.negotiated.families();
        let long_lived = families.all(|family| session.knows_long_lived(family));
        Some(Export::new(speaker, &self.config, session.negotiated, long_lived))
    }

    /// Whether the peer has told all it has, in the session that is up.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.established().is_some_and(|session| {
            let mut families = session.negotiated.families();
            families.all(|family| self.end_of_rib_received.contains(&family))
        })
    }

    /// Forgets what was of the session that is no longer Established.
    pub(super) fn session_is_gone(&mut self) {
        self.refresh.clear();
        self.end_of_rib_received.clear();
        self.end_of_rib_sent = false;
    }

    /// `sent` is how many routes it has been told.
    pub(crate) fn status(&self, sent: usize) -> PeerStatus {
        let agreed = self.agreed.filter(|_| self.state == State::Established);
        PeerStatus {
            peer: self.config.address,
            asn: self.config.asn,
            state: self.state,
            reason: self.reason.clone(),
            failures: self.failures.0,
            failed: self.failures.1,
            prefixes_received: self.routes_in.len(),
            prefixes_sent: sent,
            established_count: self.established_count,
            end_of_rib: self.has_sent_all(),
            stale: self.routes_in.stale(),
            faults: self.faults,
            messages_in: self.messages_in,
            messages_out: self
                .sessions()
                .fold(self.messages_out, |sum, s| sum.saturating_add(s.sent)),
            since: self.since,
            router_id: agreed.map(|(router_id, _)| router_id),
            hold_time: agreed.map(|(_, hold_time)| hold_time),
        }
    }

    /// What our OPEN says of our own restart (RFC 4724 §3).
    pub(crate) fn terms<'a>(&self, config: &'a SpeakerConfig, converged: bool) -> Terms<'a> {
        Terms {
            config,
            peer: Arc::clone(&self.config),
            internal: self.internal,
            // RFC 4724 §4.1: the R bit, until the restart is over.
            restarted: config.restarted && !converged,
            // RFC 4724 §4.1: the F bit. The kernel keeps its routes through a restart of this process, and through
            // the loss of a connection all the more.
            forwarding_kept: config.restarted || self.established_count > 0,
        }
    }
}

/// RFC 8538 §3.1, §5: the NOTIFICATION that says that nothing is to be kept, with the reason in it.
fn hard_reset(notification: &Notification) -> Notification {
    let mut data = vec![notification.code, notification.subcode];
    data.extend_from_slice(&notification.data);
    Notification::with_data(code::CEASE, cease::HARD_RESET, data)
}

/// Whether `this` may be the other half of a simultaneous open of the connection that is Established `since`. We dial
/// only while there is none.
fn crosses(this: &Session, since: Instant) -> bool {
    match this.origin {
        Origin::Dialled => true,
        Origin::Accepted => this.connected.is_none_or(|at| at < since + CROSSING),
    }
}
