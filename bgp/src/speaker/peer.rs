//! A peer: at most two sessions and which of them lives (RFC 4271 §6.8), and the routes to and from it.
//!
//! Both sides dial. The session that dials is always there, even if it only waits; a connection that the peer opens
//! gets a session of its own (RFC 4271 §8.2.1). While the peer is Established through the one it opened, the dialler rests.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::reason::{Families, Reason};
use super::transport::Transport;
use super::{Output, PeerConfig, PeerStatus, SessionChange};
use crate::fsm::{Event, State};
use crate::id::{ConnectionId, HoldTime, RouterId};
use crate::rib::adj_in::AdjRibIn;
use crate::rib::adj_out::AdjRibOut;
use crate::session::{Cause, DIALLER, Fate, Origin, Session, Terms};
use crate::wire::message::{Capability, Family, Message, Notification, Open};
use crate::wire::notification::{cease, code, open as open_error};

/// A connection that the peer opens within this time after another one became Established may still be the other half
/// of a simultaneous open; one that comes later says that the peer has lost the first.
const CROSSING: Duration = Duration::from_secs(2);

/// What an event has done to a peer, for those who keep the routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The message is for the routes.
    pub(crate) deliver: bool,
    /// A session has become Established.
    pub(crate) up: bool,
    /// A session was Established.
    pub(crate) down: Option<Loss>,
}

/// What becomes of the peer's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// They go.
    Drop,
    /// They stay, as stale ones, for as long as the peer asked for.
    Stale(Duration),
    /// They stay as they are.
    Keep,
}

/// How long stale routes stay (RFC 4724 §4.2).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Retention {
    /// When the session was lost whose routes are the oldest stale ones.
    pub(crate) since: Option<Instant>,
    /// When what is still stale goes.
    pub(crate) until: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) config: PeerConfig,
    pub(crate) internal: bool,
    dialler: Session,
    accepted: Vec<Session>,
    pub(crate) state: State,
    since: Instant,
    reason: Option<Reason>,
    pub(crate) routes_in: AdjRibIn,
    pub(crate) routes_out: AdjRibOut,
    pub(crate) retention: Retention,
    pub(crate) end_of_rib_received: bool,
    pub(crate) end_of_rib_sent: bool,
    pub(crate) established_count: u64,
    pub(crate) messages_in: u64,
    pub(crate) faults: u64,
    messages_out: u64,
    /// The peer's identifier and the hold time, as of the last session that came up.
    agreed: Option<(RouterId, HoldTime)>,
    stopped: bool,
    /// The deadline under which the speaker's queue holds it.
    pub(crate) queued: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(config: PeerConfig, internal: bool, hold_time: HoldTime, now: Instant) -> Self {
        Self {
            config,
            internal,
            dialler: Session::dialler(hold_time, internal),
            accepted: Vec::new(),
            state: State::Idle,
            since: now,
            reason: None,
            routes_in: AdjRibIn::default(),
            routes_out: AdjRibOut::default(),
            retention: Retention::default(),
            end_of_rib_received: false,
            end_of_rib_sent: false,
            established_count: 0,
            messages_in: 0,
            faults: 0,
            messages_out: 0,
            agreed: None,
            stopped: false,
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
    pub(crate) fn established(&mut self) -> Option<&mut Session> {
        std::iter::once(&mut self.dialler)
            .chain(&mut self.accepted)
            .find(|s| s.state == State::Established)
    }

    /// The earliest of its timers.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.sessions()
            .filter_map(Session::deadline)
            .chain(self.retention.until)
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
        cause: Cause,
        terms: &Terms<'_>,
        transport: &mut Transport,
    ) -> Outcome {
        let Some(session) = self.session_mut(key) else {
            return Outcome::default();
        };
        let restart_time = session
            .graceful_restart()
            .map(|(restart, _)| restart.restart_time);
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
        let loss = match (cause.fate, restart_time) {
            (Fate::Stale, Some(seconds)) if seconds > 0 => Loss::Stale(Duration::from_secs(seconds.into())),
            (Fate::Keep, _) => Loss::Keep,
            (Fate::Stale | Fate::Drop, _) => Loss::Drop,
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

    /// Nothing is to be tried any more.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
        self.retention = Retention::default();
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
        let families: Vec<Family> = open
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::MultiProtocol(family) => Some(*family),
                _ => None,
            })
            .collect();
        // RFC 4760 §8: who announces no family exchanges IPv4 unicast.
        if !families.is_empty() && !families.contains(&Family::IPV4_UNICAST) {
            // RFC 5492 §5: the data is the capability that is missing.
            let reason = Reason::NoIpv4Unicast {
                offered: Families(families),
            };
            return refuse(open_error::UNSUPPORTED_CAPABILITY, vec![1, 4, 0, 1, 0, 1], reason);
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
            let ours = (terms.config.router_id, terms.config.asn);
            let stays = if ours < (open.router_id, open.asn) {
                Origin::Accepted
            } else {
                Origin::Dialled
            };
            return Some(collides(if this.origin == stays { other } else { this }));
        }
        // RFC 4724 §4.2: a new OPEN from a peer that can restart says that it has restarted.
        if other.graceful_restart().is_some() {
            return Some(replaced());
        }
        // RFC 4271 §6.8: else the Established one stays.
        Some(collides(this))
    }

    /// Sends a KEEPALIVE out of turn on the Established session: if the peer has lost it, its host answers with a
    /// reset, and the peer's next connection meets no other.
    pub(crate) fn probe(&mut self, transport: &mut Transport) {
        if let Some(session) = self.established() {
            session.send(&Message::Keepalive, transport);
        }
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let agreed = self.agreed.filter(|_| self.state == State::Established);
        PeerStatus {
            peer: self.config.address,
            asn: self.config.asn,
            state: self.state,
            reason: self.reason.clone(),
            prefixes_received: self.routes_in.len(),
            prefixes_sent: self.routes_out.len(),
            established_count: self.established_count,
            end_of_rib: self.end_of_rib_received,
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
    pub(crate) fn terms<'a>(
        &self,
        config: &'a super::SpeakerConfig,
        peer: IpAddr,
        converged: bool,
    ) -> Terms<'a> {
        Terms {
            config,
            peer,
            internal: self.internal,
            // RFC 4724 §4.1: the R bit, until the restart is over.
            restarted: config.restarted && !converged,
            // RFC 4724 §4.1: the F bit. The kernel keeps its routes through a restart of this process, and through
            // the loss of a connection all the more.
            forwarding_kept: config.restarted || self.established_count > 0,
        }
    }
}

/// Whether `this` may be the other half of a simultaneous open of the connection that is Established `since`. We dial
/// only while there is none.
fn crosses(this: &Session, since: Instant) -> bool {
    match this.origin {
        Origin::Dialled => true,
        Origin::Accepted => this.connected.is_none_or(|at| at < since + CROSSING),
    }
}
