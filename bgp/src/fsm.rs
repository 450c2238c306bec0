//! The state machine of RFC 4271 §8, as a function from a state and an event to the next state and its effects.
//!
//! It knows nothing of bytes, clocks or peers: an event says only what kind of thing happened, an effect says only
//! what kind of thing is to be done. The session supplies the rest. One machine belongs to one connection (or
//! to the attempt at one), as RFC 4271 §8.2.1 has it; which of two connections lives is decided above it.
//!
//! Left out, because they are optional (RFC 4271 §8.1.1): DelayOpen. Where the machine differs from the text, the line
//! says so and `COMPLIANCE.md` has the reason.

use std::fmt;

/// A state of RFC 4271 §8.2.2, in the order of progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// No connection, and none is being tried.
    Idle,
    /// A connection is being opened.
    Connect,
    /// Waiting: for the peer to connect, or for the next attempt.
    Active,
    /// Our OPEN is sent, the peer's is awaited.
    OpenSent,
    /// The peer's OPEN is accepted, its KEEPALIVE is awaited.
    OpenConfirm,
    /// Routes are exchanged.
    Established,
}

impl State {
    /// All of them, in the order of progress.
    pub const ALL: [State; 6] = [
        State::Idle,
        State::Connect,
        State::Active,
        State::OpenSent,
        State::OpenConfirm,
        State::Established,
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Idle => "Idle",
            State::Connect => "Connect",
            State::Active => "Active",
            State::OpenSent => "OpenSent",
            State::OpenConfirm => "OpenConfirm",
            State::Established => "Established",
        })
    }
}

/// What happened (RFC 4271 §8.1); the numbers are the RFC's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// 1 and 3: begin, by dialling.
    Start,
    /// 4 and 5: begin, by waiting for the peer.
    StartPassive,
    /// 2: the operator ends it; the peer is told.
    Stop,
    /// Beside 2: end it without a word, so that the peer keeps our routes (RFC 4724 §4.1).
    Abandon,
    /// 8: the speaker ends it for a reason of its own (a limit, a changed configuration).
    AutomaticStop,
    /// 9.
    ConnectRetryExpires,
    /// 10.
    HoldExpires,
    /// 11.
    KeepaliveExpires,
    /// 6 and 13: the pause after a failure is over, and the next attempt dials.
    IdleHoldExpires,
    /// 7: the same, and the next attempt waits for the peer.
    IdleHoldExpiresPassive,
    /// 16 and 17: the transport connection stands, whoever opened it.
    TcpEstablished,
    /// 18: the transport connection failed, or could not be made.
    TcpFails,
    /// 19: an acceptable OPEN.
    Open,
    /// 21: a message whose header is wrong.
    HeaderError,
    /// 22: an OPEN that is wrong or not acceptable.
    OpenError,
    /// 23: the other connection to the peer is the one that stays.
    CollisionDump,
    /// 24: a NOTIFICATION that says our version is not supported.
    VersionError,
    /// 25: any other NOTIFICATION.
    Notification,
    /// 26.
    Keepalive,
    /// 27: an UPDATE; faults that RFC 7606 confines to its routes are no errors here.
    Update,
    /// 28: an UPDATE that RFC 7606 lets end the session.
    UpdateError,
    /// RFC 2918 §4.
    RouteRefresh,
    /// 29 (RFC 9687 §3): for too long the peer has taken in nothing of what we send.
    SendHoldExpires,
}

impl Event {
    /// All of them, in the order of RFC 4271 §8.1.
    pub const ALL: [Event; 23] = [
        Event::Start,
        Event::StartPassive,
        Event::Stop,
        Event::Abandon,
        Event::AutomaticStop,
        Event::ConnectRetryExpires,
        Event::HoldExpires,
        Event::KeepaliveExpires,
        Event::IdleHoldExpires,
        Event::IdleHoldExpiresPassive,
        Event::TcpEstablished,
        Event::TcpFails,
        Event::Open,
        Event::HeaderError,
        Event::OpenError,
        Event::CollisionDump,
        Event::VersionError,
        Event::Notification,
        Event::Keepalive,
        Event::Update,
        Event::UpdateError,
        Event::RouteRefresh,
        Event::SendHoldExpires,
    ];
}

/// A timer of RFC 4271 §8.1.3 and §10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// How long one attempt may take, and how long to wait for the next.
    ConnectRetry,
    /// How long the peer may be silent.
    Hold,
    /// When the next KEEPALIVE is due.
    Keepalive,
    /// How long to stay Idle after a failure.
    IdleHold,
    /// How long the peer may take in nothing (RFC 9687 §3).
    SendHold,
}

/// What is to be done, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Open a transport connection to the peer.
    Dial,
    /// Close the transport connection, or give the attempt up.
    Drop,
    /// Send our OPEN.
    SendOpen,
    /// Send a KEEPALIVE.
    SendKeepalive,
    /// Send the NOTIFICATION that the event calls for; where it calls for none, Finite State Machine Error (RFC 6608).
    SendNotification,
    /// Start a timer, or start it again. In OpenSent the hold timer is the large one.
    Arm(Timer),
    /// Stop a timer.
    Disarm(Timer),
    /// Stop all timers, close the transport connection, forget what was negotiated.
    Release,
    /// ConnectRetryCounter + 1.
    CountRetry,
    /// ConnectRetryCounter = 0.
    ForgetRetries,
    /// Hand the message on to the routes.
    Deliver,
}

/// The answer to an event: the state after it, and what is to be done on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The state after the event.
    pub next: State,
    /// What is to be done, in this order.
    pub effects: &'static [Effect],
}

const fn to(next: State, effects: &'static [Effect]) -> Step {
    Step { next, effects }
}

/// RFC 4271 §8.2.2, the ending most states share: close, count, and pause before the next attempt.
const FAIL: &[Effect] = &[Effect::Release, Effect::CountRetry, Effect::Arm(Timer::IdleHold)];

/// The same, with a NOTIFICATION first.
const FAIL_NOTIFYING: &[Effect] = &[
    Effect::SendNotification,
    Effect::Release,
    Effect::CountRetry,
    Effect::Arm(Timer::IdleHold),
];

/// RFC 4271 §8.2.2, event 2: the operator's stop starts the count anew.
const STOP: &[Effect] = &[Effect::Release, Effect::ForgetRetries];

/// The same, with a NOTIFICATION (Cease) first.
const STOP_NOTIFYING: &[Effect] = &[Effect::SendNotification, Effect::Release, Effect::ForgetRetries];

/// A connection attempt begins.
const DIAL: &[Effect] = &[Effect::Arm(Timer::ConnectRetry), Effect::Dial];

/// RFC 4271 §8.2.2, events 16 and 17 in Connect and Active.
const GREET: &[Effect] = &[
    Effect::Disarm(Timer::ConnectRetry),
    Effect::SendOpen,
    Effect::Arm(Timer::Hold),
];

/// What `event` does to a machine in `state`.
#[must_use]
pub fn step(state: State, event: Event) -> Step {
    match state {
        State::Idle => idle(event),
        State::Connect => connect(event),
        State::Active => active(event),
        State::OpenSent => open_sent(event),
        State::OpenConfirm => open_confirm(event),
        State::Established => established(event),
    }
}

fn idle(event: Event) -> Step {
    match event {
        Event::Start => to(
            State::Connect,
            &[
                Effect::ForgetRetries,
                Effect::Arm(Timer::ConnectRetry),
                Effect::Dial,
            ],
        ),
        Event::StartPassive => to(
            State::Active,
            &[Effect::ForgetRetries, Effect::Arm(Timer::ConnectRetry)],
        ),
        // RFC 4271 §8.1.1: DampPeerOscillations, the pause is over and the count stays.
        Event::IdleHoldExpires => to(State::Connect, DIAL),
        Event::IdleHoldExpiresPassive => to(State::Active, &[Effect::Arm(Timer::ConnectRetry)]),
        Event::Stop | Event::Abandon | Event::AutomaticStop => to(
            State::Idle,
            &[Effect::Disarm(Timer::IdleHold), Effect::ForgetRetries],
        ),
        // RFC 4271 §8.2.2: "any other event received in the Idle state does not cause change".
        _ => to(State::Idle, &[]),
    }
}

fn connect(event: Event) -> Step {
    match event {
        Event::Start | Event::StartPassive => to(State::Connect, &[]),
        Event::Stop | Event::Abandon => to(State::Idle, STOP),
        Event::ConnectRetryExpires => to(
            State::Connect,
            &[Effect::Drop, Effect::Arm(Timer::ConnectRetry), Effect::Dial],
        ),
        Event::TcpEstablished => to(State::OpenSent, GREET),
        // Differs from RFC 4271 §8.2.2 (Idle): a peer that is not up yet is no failure, and is waited for in Active.
        Event::TcpFails => to(
            State::Active,
            &[Effect::Release, Effect::Arm(Timer::ConnectRetry)],
        ),
        _ => to(State::Idle, FAIL),
    }
}

fn active(event: Event) -> Step {
    match event {
        Event::Start | Event::StartPassive => to(State::Active, &[]),
        Event::Stop | Event::Abandon => to(State::Idle, STOP),
        Event::ConnectRetryExpires => to(State::Connect, DIAL),
        Event::TcpEstablished => to(State::OpenSent, GREET),
        _ => to(State::Idle, FAIL),
    }
}

fn open_sent(event: Event) -> Step {
    match event {
        Event::Start | Event::StartPassive => to(State::OpenSent, &[]),
        Event::Stop => to(State::Idle, STOP_NOTIFYING),
        Event::Abandon => to(State::Idle, STOP),
        // RFC 4271 §8.2.2: back to listening, with the ConnectRetryTimer.
        Event::TcpFails => to(
            State::Active,
            &[Effect::Release, Effect::Arm(Timer::ConnectRetry)],
        ),
        // RFC 4271 §8.2.2: KEEPALIVE, and the hold timer from large to negotiated.
        Event::Open => to(
            State::OpenConfirm,
            &[
                Effect::Disarm(Timer::ConnectRetry),
                Effect::SendKeepalive,
                Effect::Arm(Timer::Keepalive),
                Effect::Arm(Timer::Hold),
            ],
        ),
        // RFC 4271 §8.2.2: not counted, the peer may offer another version next time.
        Event::VersionError => to(State::Idle, &[Effect::Release, Effect::Arm(Timer::IdleHold)]),
        // Differs from RFC 4271 §8.2.2 (FSM Error): a NOTIFICATION is never answered with one (§6.4).
        Event::Notification => to(State::Idle, FAIL),
        _ => to(State::Idle, FAIL_NOTIFYING),
    }
}

fn open_confirm(event: Event) -> Step {
    match event {
        Event::Start | Event::StartPassive => to(State::OpenConfirm, &[]),
        Event::Stop => to(State::Idle, STOP_NOTIFYING),
        Event::Abandon => to(State::Idle, STOP),
        Event::KeepaliveExpires => to(
            State::OpenConfirm,
            &[Effect::SendKeepalive, Effect::Arm(Timer::Keepalive)],
        ),
        Event::TcpFails | Event::Notification => to(State::Idle, FAIL),
        Event::VersionError => to(State::Idle, &[Effect::Release, Effect::Arm(Timer::IdleHold)]),
        Event::Keepalive => to(State::Established, &[Effect::Arm(Timer::Hold)]),
        // A second OPEN on one connection is among them: the text's collision check is for another connection.
        _ => to(State::Idle, FAIL_NOTIFYING),
    }
}

fn established(event: Event) -> Step {
    match event {
        Event::Start | Event::StartPassive => to(State::Established, &[]),
        Event::Stop => to(State::Idle, STOP_NOTIFYING),
        Event::Abandon => to(State::Idle, STOP),
        Event::KeepaliveExpires => to(
            State::Established,
            &[Effect::SendKeepalive, Effect::Arm(Timer::Keepalive)],
        ),
        Event::TcpFails | Event::Notification | Event::VersionError => to(State::Idle, FAIL),
        // RFC 4271 §8.2.2: a received KEEPALIVE restarts the hold timer only.
        Event::Keepalive => to(State::Established, &[Effect::Arm(Timer::Hold)]),
        // RFC 2918 §4; it shows that the peer is alive as much as an UPDATE does.
        Event::Update | Event::RouteRefresh => {
            to(State::Established, &[Effect::Arm(Timer::Hold), Effect::Deliver])
        }
        _ => to(State::Idle, FAIL_NOTIFYING),
    }
}

#[cfg(test)]
mod tests;
