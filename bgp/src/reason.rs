//! Why a session is not, or no longer, up: in words for people, with both values.

use std::fmt;
use std::io;

use crate::id::{Asn, RouterId};
use crate::wire::message::{Capability, Family, Notification, Open};
use crate::wire::notification::{cease, code, open};

/// What ended a transport connection, or kept it from being made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// The peer's host is there, but nobody listens.
    #[error("connection refused: no speaker listens there yet, or a filter there rejects TCP port 179")]
    Refused,
    /// No answer at all.
    #[error("connection timed out: the host is down, or something filters TCP port 179")]
    TimedOut,
    /// The peer's host knows nothing of the connection.
    #[error("connection reset by the peer")]
    Reset,
    /// Nobody at the address answers ARP, the kernel has no route, or a router said so.
    #[error(
        "peer address is unreachable: its host is down or has another address now, or no route leads there"
    )]
    Unreachable,
    /// The peer closed without a NOTIFICATION.
    #[error("peer closed the connection without a NOTIFICATION")]
    Ended,
    /// The peer closed before it said anything.
    #[error(
        "peer closed the connection before its OPEN: it likely expects this node at another address, or not at all"
    )]
    NotWelcome,
    /// No answer, while the kernel refused segments with another signature than expected (RFC 2385 §3).
    #[error(
        "connection timed out, and the kernel refuses segments with a wrong MD5 signature: the passwords likely differ; give both ends the same"
    )]
    Md5Differs,
    /// No answer, while the kernel refused segments without a signature (RFC 2385 §3).
    #[error(
        "connection timed out, and the kernel refuses segments without an MD5 signature: the peer likely has no password; give it the one of this node"
    )]
    Md5Missing,
    /// No answer, while the kernel refused segments with a signature (RFC 2385 §3).
    #[error(
        "connection timed out, and the kernel refuses segments with an MD5 signature: the peer likely has a password, this node none; give this node the same"
    )]
    Md5Unexpected,
    /// The peer's password cannot be given to the kernel.
    #[error(
        "the kernel does not take the MD5 password ({0}): raise net.core.optmem_max if it is out of memory"
    )]
    Md5Refused(io::ErrorKind),
    /// The peer takes in less than it is sent.
    #[error("peer does not take in what we send: the send queue is full")]
    SendQueueFull,
    /// Anything else.
    #[error("connection failed: {0}")]
    Other(io::ErrorKind),
}

/// Why a session went down, or does not come up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The transport did not hold.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// The peer's OPEN has another AS than its configuration (RFC 4271 §6.2).
    #[error("peer says it is AS {got}, we expect AS {want}")]
    WrongAs {
        /// What the peer says.
        got: Asn,
        /// What it is configured as.
        want: Asn,
    },
    /// The peer has our BGP Identifier (RFC 6286 §2.2).
    #[error("peer has router id {got}, which is ours ({ours}): each node needs its own")]
    SameRouterId {
        /// The peer's.
        got: RouterId,
        /// Ours.
        ours: RouterId,
    },
    /// The two ends have no family in common (RFC 4760 §8).
    #[error("peer offers {offered}, we are configured for {ours}")]
    NoCommonFamily {
        /// What it offers.
        offered: Families,
        /// What we do.
        ours: Families,
    },
    /// The peer was silent for too long (RFC 4271 §6.5).
    #[error("hold timer expired after {seconds} s of silence")]
    HoldTimer {
        /// For how long.
        seconds: u16,
    },
    /// The peer took in nothing of what was sent (RFC 9687 §4.4).
    #[error("send hold timer expired: the peer's host is there, but its speaker does not read what we send")]
    SendHoldTimer,
    /// The connection stood, but no OPEN came (RFC 4271 §8.2.2, the large hold timer).
    #[error("no OPEN came within {seconds} s")]
    NoOpen {
        /// For how long.
        seconds: u64,
    },
    /// The peer ended the session.
    #[error("peer sent NOTIFICATION: {}", Words(.0))]
    NotificationReceived(Notification),
    /// The peer made an error.
    #[error("we sent NOTIFICATION: {0}")]
    NotificationSent(Notification),
    /// Two connections to the peer crossed; the other one stays (RFC 4271 §6.8).
    #[error("the other connection to the peer was kept")]
    Collision,
    /// The peer opened a new connection while the old one seemed to stand (RFC 4724 §4.2).
    #[error("peer came back on a new connection")]
    PeerRestarted,
    /// The peer announced more than this speaker takes.
    #[error("peer announced {got} prefixes, we take {limit}")]
    TooManyPrefixes {
        /// How many it announced.
        got: usize,
        /// How many are taken.
        limit: usize,
    },
    /// The attributes of what the peer announced take more memory than this speaker gives to one peer.
    #[error("peer announced {got} octets of attributes beyond the usual, we take {limit}")]
    TooLargeAttributes {
        /// How many it announced.
        got: usize,
        /// How many are taken.
        limit: usize,
    },
    /// The peer is no longer configured.
    #[error("peer was removed from the configuration")]
    Deconfigured,
    /// The peer's configuration has changed.
    #[error("peer's configuration changed")]
    Reconfigured,
    /// An operator asked for a new session.
    #[error("the session was cleared by an operator of this node")]
    Cleared,
    /// This speaker stops.
    #[error("this speaker was stopped")]
    Stopped,
}

impl Reason {
    /// Whether it lies in the configuration of one of the two ends: trying again does not mend it. A host that is down, or a
    /// speaker that is about to start, does so by itself.
    #[must_use]
    pub fn needs_a_person(&self) -> bool {
        match self {
            Self::WrongAs { .. }
            | Self::SameRouterId { .. }
            | Self::NoCommonFamily { .. }
            | Self::TooManyPrefixes { .. }
            | Self::TooLargeAttributes { .. } => true,
            Self::Transport(error) => matches!(
                error,
                TransportError::NotWelcome
                    | TransportError::Md5Differs
                    | TransportError::Md5Missing
                    | TransportError::Md5Unexpected
                    | TransportError::Md5Refused(_)
            ),
            // RFC 4271 §6.2: what the two say of themselves in their OPENs.
            Self::NotificationReceived(said) | Self::NotificationSent(said) => {
                said.code == code::OPEN_MESSAGE
            }
            Self::HoldTimer { .. }
            | Self::SendHoldTimer
            | Self::NoOpen { .. }
            | Self::Collision
            | Self::PeerRestarted
            | Self::Deconfigured
            | Self::Reconfigured
            | Self::Cleared
            | Self::Stopped => false,
        }
    }
}

/// Address families as words: `IPv4 unicast, family 1/4`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Families(pub Vec<Family>);

impl Families {
    /// Those that an OPEN names, in its order (RFC 4760 §8).
    #[must_use]
    pub fn of(open: &Open) -> Self {
        let named = open
            .capabilities
            .iter()
            .filter_map(|capability| match capability {
                Capability::MultiProtocol(family) => Some(*family),
                _ => None,
            });
        Self(named.collect())
    }
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, family) in self.0.iter().enumerate() {
            write!(f, "{}{family}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A NOTIFICATION and the text its sender's operator gave along, made harmless for a terminal.
struct Words<'a>(&'a Notification);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        // RFC 8538 §3.1: a hard reset carries the NOTIFICATION that is meant.
        if (self.0.code, self.0.subcode) == (code::CEASE, cease::HARD_RESET)
            && let [code, subcode, data @ ..] = self.0.data.as_slice()
        {
            let inner = Notification::with_data(*code, *subcode, data.to_vec());
            write!(f, " of {inner}")?;
            return text(&inner, f);
        }
        // RFC 4271 §6.2: it has compared the AS in our OPEN with the one that it was told.
        if (self.0.code, self.0.subcode) == (code::OPEN_MESSAGE, open::BAD_PEER_AS) {
            f.write_str(": the peer is configured with another AS for this node")?;
        }
        text(self.0, f)
    }
}

fn text(notification: &Notification, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match notification.shutdown_text() {
        Ok(Some(text)) => write!(f, ", saying \"{}\"", text.escape_debug()),
        Ok(None) | Err(_) => Ok(()),
    }
}
