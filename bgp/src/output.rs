//! What a speaker asks of its driver, and tells it.

use std::net::IpAddr;
use std::sync::Arc;

use crate::fsm::State;
use crate::id::{ConnectionId, NextHop, Prefix};
use crate::reason::Reason;

/// What the driver is to do, or to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection to a peer; answer with [`crate::input::Input::Dialled`] or [`crate::input::Input::Closed`].
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
        /// These. Several connections may share them.
        bytes: Arc<Vec<u8>>,
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
    /// Given once: every configured peer's End-of-RIB is in, or [`crate::config::SpeakerConfig::restart_time`] has passed since the
    /// first [`crate::input::Input::Peers`]. Routes of a former run that no peer has announced by now are not coming back.
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
