//! From bytes to events: what each message of a peer (RFC 4271 §4) means to its session.

use std::net::IpAddr;

use super::Speaker;
use super::routes::FAMILIES;
use crate::fsm::{Event, State};
use crate::id::ConnectionId;
use crate::reason::Reason;
use crate::session::{Cause, Fate};
use crate::wire::Decoded;
use crate::wire::message::{Message, Notification, Open};
use crate::wire::notification::{cease, code, open as open_error};

impl Speaker {
    /// Takes bytes that came in.
    pub(super) fn received(&mut self, connection: ConnectionId, bytes: &[u8]) {
        let Some((address, key)) = self.find(connection) else {
            return;
        };
        if let Some(session) = self
            .peers
            .get_mut(&address)
            .and_then(|peer| peer.session_mut(key))
        {
            session.receive(bytes);
        }
        // Each message may end the session, and with it what is left of the bytes.
        while self.transport.owner(connection) == Some(address) {
            let Some(peer) = self.peers.get_mut(&address) else {
                return;
            };
            match peer
                .session_mut(key)
                .and_then(|session| Some((session.state, session.next_message()?)))
            {
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
                // A peer can send any number of them.
                if peer.faults.is_power_of_two() {
                    let count = peer.faults;
                    tracing::warn!(peer = %address, count, ?fault, "fault in UPDATE");
                }
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
                let fate = match (notification.code, notification.subcode) {
                    // The other connection was kept: the peer is as alive as before.
                    (code::CEASE, cease::CONNECTION_COLLISION) => Fate::Stale,
                    // RFC 8538 §3.1.
                    (code::CEASE, cease::HARD_RESET) => Fate::Drop,
                    // RFC 4724 §4: a NOTIFICATION ends retention as well. RFC 8538 §4: unless that was agreed on.
                    _ => Fate::Notified,
                };
                let reason = Reason::NotificationReceived(notification);
                self.apply(address, key, event, Cause::reason(reason, fate));
            }
            Message::Update(update) => {
                if self.apply(address, key, Event::Update, Cause::NONE) {
                    self.learn(address, key, &update);
                }
            }
            Message::RouteRefresh { family, kind } => {
                if self.apply(address, key, Event::RouteRefresh, Cause::NONE) {
                    self.refresh(address, family, kind);
                }
            }
        }
    }

    fn open(&mut self, address: IpAddr, key: ConnectionId, open: Open) {
        let Some(peer) = self.peers.get(&address) else {
            return;
        };
        let terms = peer.terms(&self.config, self.converged);
        if peer
            .session(key)
            .is_some_and(|session| session.state == State::OpenSent)
        {
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
            let Some(peer) = self.peers.get_mut(&address) else {
                return;
            };
            let terms = peer.terms(&self.config, self.converged);
            if let Some(session) = peer.session_mut(key) {
                session.accept_open(open, &terms);
            }
        }
        self.apply(address, key, Event::Open, Cause::NONE);
    }

    fn keepalive(&mut self, address: IpAddr, key: ConnectionId) {
        let Some(peer) = self.peers.get(&address) else {
            return;
        };
        // A peer without graceful restart sends no End-of-RIB: by the first KEEPALIVE after the one that brought the
        // session up, it has sent what it had.
        let stands_for_end = peer.session(key).is_some_and(|session| {
            session.state == State::Established && !session.has_graceful_restart() && !peer.has_sent_all()
        });
        self.apply(address, key, Event::Keepalive, Cause::NONE);
        if stands_for_end {
            for family in FAMILIES {
                self.end_of_rib(address, family);
            }
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
