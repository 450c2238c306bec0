//! One session: a state machine, the connection under it, the bytes that came in on it, and its deadlines.
//!
//! It turns messages into events of [`crate::fsm`] and effects into bytes and timers. It knows of no other session
//! to the same peer: [`crate::speaker`] decides collisions, keeps the routes, and counts.

mod terms;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fsm::{self, Effect, Event, State, Timer};
use crate::id::{ConnectionId, HoldTime};
use crate::reason::Reason;
use crate::transport::Transport;
use crate::wire::message::{
    Capability, Family, GracefulRestart, LongLivedFamily, Message, Notification, Open,
};
use crate::wire::notification::{UNSPECIFIC, code, fsm as fsm_error};
use crate::wire::{self, Decoded, Decoder, Negotiated};

use terms::MAX_STALE_TIME;
pub(crate) use terms::Terms;

/// RFC 4271 §8.2.2: the large hold timer of OpenSent, "4 minutes is suggested".
pub(crate) const OPEN_HOLD: Duration = Duration::from_secs(240);

/// RFC 9687 §6: SendHoldTime is eight minutes, or twice the hold time where that is more.
const SEND_HOLD: Duration = Duration::from_secs(480);

/// The pause after a failure is a quarter of ConnectRetry at first, doubles with each, and stops at four times it.
const MAX_BACKOFF_DOUBLINGS: u32 = 4;

/// Who opened the connection. It decides collisions (RFC 4271 §6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// We did.
    Dialled,
    /// The peer did.
    Accepted,
}

/// How long the routes of a family stay once their session is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    /// RFC 4724 §4.2.
    pub(crate) restart: Duration,
    /// RFC 9494 §4.2: after that.
    pub(crate) long_lived: Duration,
}

/// What becomes of the peer's routes when the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They go at once (RFC 4271 §8.2.2).
    Drop,
    /// They stay as stale ones, if graceful restart was agreed on (RFC 4724 §4.2).
    Stale,
    /// They stay as stale ones, if both ends also keep them over a NOTIFICATION (RFC 8538 §4).
    Notified,
    /// They stay as they are: this speaker is going away, and packets are to flow on.
    Keep,
}

/// What an event needs beside its kind.
#[derive(Clone, Debug)]
pub(crate) struct Cause {
    /// What to tell the peer, if the machine says that it is to be told.
    pub(crate) notify: Option<Notification>,
    /// What to tell people, if this ends a session or keeps one from coming up.
    pub(crate) reason: Option<Reason>,
    /// What becomes of the routes, if this ends an Established session.
    pub(crate) fate: Fate,
}

impl Cause {
    /// Of an event that is no failure in a state that expects it, and a Finite State Machine Error in another.
    pub(crate) const NONE: Cause = Cause {
        notify: None,
        reason: None,
        fate: Fate::Notified,
    };

    /// Of an event that ends the session without a NOTIFICATION of ours.
    pub(crate) fn reason(reason: Reason, fate: Fate) -> Self {
        Self {
            notify: None,
            reason: Some(reason),
            fate,
        }
    }

    /// Of an event that ends the session with a NOTIFICATION of ours.
    pub(crate) fn notify(notification: Notification, reason: Reason, fate: Fate) -> Self {
        Self {
            notify: Some(notification),
            reason: Some(reason),
            fate,
        }
    }

    /// Of an error in what the peer sent.
    pub(crate) fn fault(notification: Notification) -> Self {
        let reason = Reason::NotificationSent(notification.clone());
        Self::notify(notification, reason, Fate::Notified)
    }
}

/// When each timer of a session runs out.
#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    connect_retry: Option<Instant>,
    hold: Option<Instant>,
    keepalive: Option<Instant>,
    idle_hold: Option<Instant>,
    send_hold: Option<Instant>,
}

impl Deadlines {
    fn slot(&mut self, timer: Timer) -> &mut Option<Instant> {
        match timer {
            Timer::ConnectRetry => &mut self.connect_retry,
            Timer::Hold => &mut self.hold,
            Timer::Keepalive => &mut self.keepalive,
            Timer::IdleHold => &mut self.idle_hold,
            Timer::SendHold => &mut self.send_hold,
        }
    }

    fn all(&self) -> [(Timer, Option<Instant>); 5] {
        [
            (Timer::Hold, self.hold),
            (Timer::SendHold, self.send_hold),
            (Timer::Keepalive, self.keepalive),
            (Timer::ConnectRetry, self.connect_retry),
            (Timer::IdleHold, self.idle_hold),
        ]
    }
}

/// What an event has done to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// The state before.
    pub(crate) from: State,
    /// The state after.
    pub(crate) to: State,
    /// The message is for the routes.
    pub(crate) deliver: bool,
    /// The NOTIFICATION that was sent.
    pub(crate) notified: Option<Notification>,
}

/// The session that dials: each peer has one, for good. Numbers of connections begin at 1.
pub(crate) const DIALLER: ConnectionId = ConnectionId(0);

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    /// Names it among the sessions of a peer: [`DIALLER`], or the connection that the peer opened.
    pub(crate) key: ConnectionId,
    /// Who opens, or opened, the connection.
    pub(crate) origin: Origin,
    /// Where it is in RFC 4271 §8.2.2.
    pub(crate) state: State,
    /// The connection, or the attempt at one.
    pub(crate) connection: Option<ConnectionId>,
    /// Since when the connection stands.
    pub(crate) connected: Option<Instant>,
    /// Since when it is Established.
    pub(crate) established: Option<Instant>,
    /// The peer's OPEN, once accepted.
    pub(crate) open: Option<Open>,
    /// What both sides agreed on.
    pub(crate) negotiated: Negotiated,
    decoder: Decoder,
    /// The lower of both proposals (RFC 4271 §4.2).
    pub(crate) hold_time: HoldTime,
    /// ConnectRetryCounter (RFC 4271 §8.1.1).
    retries: u32,
    /// Messages sent since it was made.
    pub(crate) sent: u64,
    deadlines: Deadlines,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Session {
    /// One in Idle that dials.
    pub(crate) fn dialler(hold_time: HoldTime, internal: bool) -> Self {
        Self::new(DIALLER, Origin::Dialled, hold_time, internal)
    }

    /// One in Idle, for a connection that the peer opened.
    pub(crate) fn accepted(connection: ConnectionId, now: Instant, terms: &Terms<'_>) -> Self {
        let mut session = Self::new(connection, Origin::Accepted, terms.hold_time(), terms.internal);
        session.connection = Some(connection);
        session.connected = Some(now);
        session
    }

    fn new(key: ConnectionId, origin: Origin, hold_time: HoldTime, internal: bool) -> Self {
        Self {
            key,
            origin,
            state: State::Idle,
            connection: None,
            connected: None,
            established: None,
            open: None,
            negotiated: Negotiated::plain(internal),
            decoder: Decoder::new(Negotiated::plain(internal)),
            hold_time,
            retries: 0,
            sent: 0,
            deadlines: Deadlines::default(),
            buffer: Vec::new(),
            consumed: 0,
        }
    }

    /// The earliest of its timers.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadlines.all().into_iter().filter_map(|(_, at)| at).min()
    }

    /// A timer that has run out; it is stopped.
    pub(crate) fn take_expired(&mut self, now: Instant) -> Option<Timer> {
        let (timer, _) = self
            .deadlines
            .all()
            .into_iter()
            .find(|(_, at)| at.is_some_and(|at| at <= now))?;
        *self.deadlines.slot(timer) = None;
        Some(timer)
    }

    /// Whether it waits in Idle for the next attempt.
    pub(crate) fn is_pausing(&self) -> bool {
        self.deadlines.idle_hold.is_some()
    }

    /// Waits in Idle for the next attempt.
    pub(crate) fn pause(&mut self, terms: &Terms<'_>, transport: &mut Transport) {
        self.arm(Timer::IdleHold, terms, transport);
    }

    /// Waits in Idle until `until`.
    pub(crate) fn pause_until(&mut self, until: Instant) {
        self.deadlines.idle_hold = Some(until);
    }

    /// What is sent does not reach the peer's host (RFC 9687 §4.4), until it is told otherwise.
    pub(crate) fn stalled(&mut self, stalled: bool, terms: &Terms<'_>, transport: &mut Transport) {
        if !stalled || self.state < State::OpenConfirm {
            self.deadlines.send_hold = None;
        } else if self.deadlines.send_hold.is_none() {
            self.arm(Timer::SendHold, terms, transport);
        }
    }

    /// Whether the peer has graceful restart at all.
    pub(crate) fn has_graceful_restart(&self) -> bool {
        self.open.as_ref().and_then(graceful_restart).is_some()
    }

    /// Whether the peer says that it has restarted (RFC 4724 §3: the R bit).
    pub(crate) fn has_restarted(&self) -> bool {
        let restart = self.open.as_ref().and_then(graceful_restart);
        restart.is_some_and(|restart| restart.restarted)
    }

    /// How long the peer's routes of a family are to stay once this session is lost (RFC 4724 §4.2, RFC 9494 §4.2);
    /// `None` where that was not agreed on.
    pub(crate) fn patience(&self, family: Family, terms: &Terms<'_>) -> Option<Patience> {
        let open = self.open.as_ref()?;
        let restart = graceful_restart(open)?;
        restart.families.iter().find(|(of, _)| *of == family)?;
        let ours = terms.peer.long_lived_stale_time.min(MAX_STALE_TIME);
        let theirs = long_lived(open, family).map_or(0, |of| of.stale_time);
        let patience = Patience {
            restart: Duration::from_secs(restart.restart_time.into()),
            long_lived: Duration::from_secs(ours.min(theirs).into()),
        };
        (patience != Patience::default()).then_some(patience)
    }

    /// Whether the peer says that its forwarding state for a family has outlived its restart (RFC 4724 §4.2,
    /// RFC 9494 §4.2: the F bits).
    pub(crate) fn kept_forwarding(&self, family: Family) -> bool {
        self.open.as_ref().is_some_and(|open| {
            let restart = graceful_restart(open);
            let short = restart.is_some_and(|restart| restart.families.contains(&(family, true)));
            short || long_lived(open, family).is_some_and(|of| of.forwarding_kept)
        })
    }

    /// Whether the peer knows routes that are stale for long (RFC 9494 §4.3).
    pub(crate) fn knows_long_lived(&self, family: Family) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| long_lived(open, family).is_some())
    }

    /// Whether the peer answers a ROUTE-REFRESH (RFC 2918 §2).
    pub(crate) fn can_refresh(&self) -> bool {
        let open = self.open.as_ref();
        open.is_some_and(|open| open.capabilities.contains(&Capability::RouteRefresh))
    }

    /// Whether both ends keep routes over a NOTIFICATION (RFC 8538 §2): we always do.
    pub(crate) fn keeps_over_notification(&self) -> bool {
        let restart = self.open.as_ref().and_then(graceful_restart);
        restart.is_some_and(|restart| restart.notification)
    }

    /// Whether an event would leave Established.
    pub(crate) fn would_end(&self, event: Event) -> bool {
        fsm::step(self.state, event).next != State::Established
    }

    /// Lets an event act. The effects go to `transport`, those for the routes into the result.
    pub(crate) fn apply(
        &mut self,
        event: Event,
        cause: &Cause,
        terms: &Terms<'_>,
        transport: &mut Transport,
    ) -> Applied {
        let from = self.state;
        let step = fsm::step(from, event);
        self.state = step.next;
        if from != State::Established && step.next == State::Established {
            self.established = Some(transport.now);
        }
        if from == State::Established && step.next != State::Established {
            // A session that held for a while was no failed attempt.
            let held = self
                .established
                .take()
                .map(|since| transport.now.duration_since(since));
            if held.is_some_and(|held| held >= terms.connect_retry()) {
                self.retries = 0;
            }
        }
        let mut applied = Applied {
            from,
            to: step.next,
            deliver: false,
            notified: None,
        };
        for &effect in step.effects {
            match effect {
                Effect::Dial => self.connection = Some(transport.dial(terms.peer.address)),
                Effect::Drop => self.drop_connection(transport),
                Effect::SendOpen => self.send(&Message::Open(terms.open()), transport),
                Effect::SendKeepalive => self.send(&Message::Keepalive, transport),
                Effect::SendNotification => {
                    let notification = cause.notify.clone().unwrap_or_else(|| unexpected(from));
                    self.send(&Message::Notification(notification.clone()), transport);
                    applied.notified = Some(notification);
                }
                Effect::Arm(timer) => self.arm(timer, terms, transport),
                Effect::Disarm(timer) => *self.deadlines.slot(timer) = None,
                Effect::Release => self.release(transport),
                Effect::CountRetry => self.retries = self.retries.saturating_add(1),
                Effect::ForgetRetries => self.retries = 0,
                Effect::Deliver => applied.deliver = true,
            }
        }
        applied
    }

    /// Takes bytes in; [`Session::next_message`] gives them back as messages.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` when the rest has not come yet.
    pub(crate) fn next_message(&mut self) -> Option<Result<Decoded, Notification>> {
        let unread = self.buffer.get(self.consumed..).unwrap_or_default();
        let length = match wire::frame(unread, self.negotiated) {
            Ok(length) => length,
            Err(notification) => return Some(Err(notification)),
        };
        let Some(message) = length.and_then(|length| unread.get(..length)) else {
            self.buffer.drain(..self.consumed.min(self.buffer.len()));
            self.consumed = 0;
            // A large read leaves a large buffer, and there may be a thousand of them.
            self.buffer.shrink_to(wire::MAX_LENGTH);
            debug_assert!(
                self.buffer.len() < wire::MAX_EXTENDED_LENGTH,
                "the header is checked before the message is whole"
            );
            return None;
        };
        self.consumed = self.consumed.saturating_add(message.len());
        Some(self.decoder.decode(message))
    }

    /// Takes the peer's OPEN as the terms of this session.
    pub(crate) fn accept_open(&mut self, open: Open, terms: &Terms<'_>) {
        // RFC 4271 §4.2: the smaller of both; zero means none.
        self.hold_time = open.hold_time.min(terms.hold_time());
        self.agree(Negotiated::between(&terms.open(), &open));
        self.open = Some(open);
    }

    fn agree(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
        self.decoder = Decoder::new(negotiated);
    }

    /// Sends a message, if there is a connection.
    pub(crate) fn send(&mut self, message: &Message, transport: &mut Transport) {
        self.send_bytes(wire::encode(message, self.negotiated), transport);
    }

    /// Sends a message that is encoded already, if there is a connection.
    pub(crate) fn send_bytes(&mut self, bytes: Vec<u8>, transport: &mut Transport) {
        if let Some(connection) = self.connection {
            self.sent = self.sent.saturating_add(1);
            transport.send(connection, bytes);
        }
    }

    /// Sends messages that others are sent too.
    pub(crate) fn send_shared(&mut self, messages: u64, bytes: &Arc<Vec<u8>>, transport: &mut Transport) {
        if let Some(connection) = self.connection {
            self.sent = self.sent.saturating_add(messages);
            transport.send_shared(connection, bytes);
        }
    }

    fn drop_connection(&mut self, transport: &mut Transport) {
        if let Some(connection) = self.connection.take() {
            transport.close(connection);
        }
        self.connected = None;
    }

    fn release(&mut self, transport: &mut Transport) {
        self.drop_connection(transport);
        self.deadlines = Deadlines::default();
        self.buffer = Vec::new();
        self.consumed = 0;
        self.open = None;
        self.agree(Negotiated::plain(self.negotiated.internal));
    }

    fn arm(&mut self, timer: Timer, terms: &Terms<'_>, transport: &mut Transport) {
        let retry = terms.connect_retry();
        let hold = Duration::from_secs(u64::from(self.hold_time.seconds()));
        let after = match timer {
            // RFC 4271 §8.1.1: a passive speaker waits for as long as it takes.
            Timer::ConnectRetry if terms.peer.passive && self.key == DIALLER => None,
            Timer::ConnectRetry => Some(transport.jitter.shorten(retry)),
            Timer::Hold if self.state == State::OpenSent => Some(OPEN_HOLD),
            // RFC 4271 §4.4, §8.2.2: a hold time of zero starts neither timer.
            Timer::Hold | Timer::Keepalive | Timer::SendHold if hold.is_zero() => None,
            Timer::Hold => Some(hold),
            // RFC 4271 §10: a third of the hold time.
            Timer::Keepalive => {
                let most = terms.peer.keepalive.unwrap_or(Duration::MAX);
                Some(transport.jitter.shorten((hold / 3).min(most)))
            }
            Timer::SendHold => Some(SEND_HOLD.max(hold.saturating_mul(2))),
            Timer::IdleHold => {
                let doublings = self.retries.saturating_sub(1).min(MAX_BACKOFF_DOUBLINGS);
                Some(
                    transport
                        .jitter
                        .shorten((retry / 4).saturating_mul(1 << doublings)),
                )
            }
        };
        *self.deadlines.slot(timer) = after.and_then(|after| transport.now.checked_add(after));
    }
}

/// RFC 6608 §4: the subcode names the state.
fn unexpected(state: State) -> Notification {
    let subcode = match state {
        State::OpenSent => fsm_error::UNEXPECTED_IN_OPEN_SENT,
        State::OpenConfirm => fsm_error::UNEXPECTED_IN_OPEN_CONFIRM,
        State::Established => fsm_error::UNEXPECTED_IN_ESTABLISHED,
        State::Idle | State::Connect | State::Active => UNSPECIFIC,
    };
    Notification::new(code::FINITE_STATE_MACHINE, subcode)
}

/// The graceful restart capability of an OPEN.
fn graceful_restart(open: &Open) -> Option<&GracefulRestart> {
    open.capabilities.iter().find_map(|capability| match capability {
        Capability::GracefulRestart(restart) => Some(restart),
        _ => None,
    })
}

/// What the long-lived graceful restart capability of an OPEN says of a family. RFC 9494 §4.1: without the capability
/// of RFC 4724 it counts for nothing.
fn long_lived(open: &Open, family: Family) -> Option<&LongLivedFamily> {
    graceful_restart(open)?;
    let mut families = open
        .capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::LongLivedGracefulRestart(families) => Some(families),
            _ => None,
        });
    families.next()?.iter().find(|of| of.family == family)
}
