//! One session: a state machine, the connection under it, the bytes that came in on it, and its deadlines.
//!
//! It turns messages into events of [`crate::fsm`] and effects into bytes and timers. It knows of no other session
//! to the same peer: [`crate::speaker`] decides collisions, keeps the routes, and counts.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::fsm::{self, Effect, Event, State, Timer};
use crate::id::{ConnectionId, HoldTime};
use crate::speaker::reason::Reason;
use crate::speaker::transport::Transport;
use crate::wire::message::{Capability, Family, GracefulRestart, Message, Notification, Open};
use crate::wire::notification::{UNSPECIFIC, code, fsm as fsm_error};
use crate::wire::{self, Decoded, Negotiated};

/// RFC 4271 §8.2.2: the large hold timer of OpenSent, "4 minutes is suggested".
pub(crate) const OPEN_HOLD: Duration = Duration::from_secs(240);

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

/// What becomes of the peer's routes when the session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// They go at once (RFC 4271 §8.2.2).
    Drop,
    /// They stay as stale ones, if graceful restart was agreed on (RFC 4724 §4.2).
    Stale,
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
    /// Of an event that is no failure in a state that expects it.
    pub(crate) const NONE: Cause = Cause {
        notify: None,
        reason: None,
        fate: Fate::Drop,
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
        Self::notify(notification, reason, Fate::Drop)
    }
}

/// What this speaker brings to a session with one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms<'a> {
    /// The speaker's configuration.
    pub(crate) config: &'a crate::speaker::SpeakerConfig,
    /// The peer.
    pub(crate) peer: IpAddr,
    /// Whether the peer is in our AS.
    pub(crate) internal: bool,
    /// RFC 4724 §3: the R bit.
    pub(crate) restarted: bool,
    /// RFC 4724 §3: the F bit of IPv4 unicast.
    pub(crate) forwarding_kept: bool,
}

impl Terms<'_> {
    fn open(&self) -> Open {
        let graceful_restart = GracefulRestart {
            restarted: self.restarted,
            notification: false,
            restart_time: self.config.restart_time.min(4095),
            families: vec![(Family::IPV4_UNICAST, self.forwarding_kept)],
        };
        Open {
            asn: self.config.asn,
            hold_time: self.config.hold_time,
            router_id: self.config.router_id,
            capabilities: vec![
                Capability::MultiProtocol(Family::IPV4_UNICAST),
                Capability::RouteRefresh,
                Capability::FourOctetAs(self.config.asn),
                Capability::GracefulRestart(graceful_restart),
            ],
        }
    }
}

/// When each timer of a session runs out.
#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    connect_retry: Option<Instant>,
    hold: Option<Instant>,
    keepalive: Option<Instant>,
    idle_hold: Option<Instant>,
}

impl Deadlines {
    fn slot(&mut self, timer: Timer) -> &mut Option<Instant> {
        match timer {
            Timer::ConnectRetry => &mut self.connect_retry,
            Timer::Hold => &mut self.hold,
            Timer::Keepalive => &mut self.keepalive,
            Timer::IdleHold => &mut self.idle_hold,
        }
    }

    fn all(&self) -> [(Timer, Option<Instant>); 4] {
        [
            (Timer::Hold, self.hold),
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
        let mut session = Self::new(
            connection,
            Origin::Accepted,
            terms.config.hold_time,
            terms.internal,
        );
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

    /// The graceful restart capability of the peer, if it covers IPv4 unicast.
    pub(crate) fn graceful_restart(&self) -> Option<(&GracefulRestart, bool)> {
        self.open.as_ref().and_then(graceful_restart)
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
            if held.is_some_and(|held| held >= terms.config.connect_retry) {
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
                Effect::Dial => self.connection = Some(transport.dial(terms.peer)),
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
        Some(wire::decode(message, self.negotiated))
    }

    /// Takes the peer's OPEN as the terms of this session.
    pub(crate) fn accept_open(&mut self, open: Open, terms: &Terms<'_>) {
        // RFC 4271 §4.2: the smaller of both; zero means none.
        self.hold_time = open.hold_time.min(terms.config.hold_time);
        self.negotiated = Negotiated::between(&terms.open(), &open);
        self.open = Some(open);
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
        self.negotiated = Negotiated::plain(self.negotiated.internal);
    }

    fn arm(&mut self, timer: Timer, terms: &Terms<'_>, transport: &mut Transport) {
        let retry = terms.config.connect_retry;
        let hold = Duration::from_secs(u64::from(self.hold_time.seconds()));
        let after = match timer {
            Timer::ConnectRetry => Some(transport.jitter.shorten(retry)),
            Timer::Hold if self.state == State::OpenSent => Some(OPEN_HOLD),
            // RFC 4271 §4.4, §8.2.2: a hold time of zero starts neither timer.
            Timer::Hold | Timer::Keepalive if hold.is_zero() => None,
            Timer::Hold => Some(hold),
            // RFC 4271 §10: a third of the hold time.
            Timer::Keepalive => Some(transport.jitter.shorten(hold / 3)),
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

/// The graceful restart capability of an OPEN, if it covers IPv4 unicast, and that family's F bit.
pub(crate) fn graceful_restart(open: &Open) -> Option<(&GracefulRestart, bool)> {
    open.capabilities.iter().find_map(|capability| {
        let Capability::GracefulRestart(restart) = capability else {
            return None;
        };
        let &(_, kept) = restart
            .families
            .iter()
            .find(|(family, _)| *family == Family::IPV4_UNICAST)?;
        Some((restart, kept))
    })
}
