//! What a driver tells a speaker.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::config::PeerConfig;
use crate::id::{ConnectionId, Prefix};
use crate::reason::TransportError;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// The whole set of peers. The difference to the one before is applied: an unchanged peer is not disturbed, a
    /// removed one is told (Cease, peer de-configured) and its routes go at once.
    Peers(BTreeMap<IpAddr, PeerConfig>),
    /// The whole set of prefixes that this node originates. Until it is given for the first time, no peer gets an
    /// End-of-RIB marker, because that would end its patience with the routes of our former run (RFC 4724 §4.2).
    Exports(BTreeSet<Prefix>),
    /// The connection of an [`crate::output::Output::Dial`] stands.
    Dialled {
        /// Its number.
        connection: ConnectionId,
    },
    /// A peer has connected. Where there is no such peer, the answer is [`crate::output::Output::Close`].
    Accepted {
        /// A number from [`crate::speaker::Speaker::next_connection`].
        connection: ConnectionId,
        /// The address it comes from.
        peer: IpAddr,
    },
    /// Bytes came in, in the order of the stream.
    Received {
        /// On this connection.
        connection: ConnectionId,
        /// Any number of them.
        bytes: &'a [u8],
    },
    /// A connection, or the attempt at one, is over. It needs no [`crate::output::Output::Close`], and gets none.
    Closed {
        /// Its number.
        connection: ConnectionId,
        /// How it ended.
        error: TransportError,
    },
    /// Bytes of an [`crate::output::Output::Send`] cannot be handed to the kernel, since the peer does not take in
    /// those before them. Told once, until [`Input::Sent`] (RFC 9687).
    Stalled {
        /// On this connection.
        connection: ConnectionId,
    },
    /// After [`Input::Stalled`]: bytes could be handed to the kernel again.
    Sent {
        /// On this connection.
        connection: ConnectionId,
    },
    /// Ask a peer for all its routes once more (RFC 2918 §3), if it can tell them.
    Refresh {
        /// The address of the peer.
        peer: IpAddr,
    },
    /// End the session with a peer and begin a new one, as an operator asks (Cease, administrative reset). Its routes
    /// stay meanwhile where both ends keep them over a NOTIFICATION (RFC 8538).
    Reset {
        /// The address of the peer.
        peer: IpAddr,
    },
    /// The [`crate::speaker::Speaker::deadline`] has passed.
    Timer,
    /// The end of this speaker: every session goes down, every connection is closed, and nothing else is answered any
    /// more. No route is withdrawn from the driver: packets are to flow on.
    Stop {
        /// Tell the peers (Cease, administrative shutdown), so that they remove our routes at once. Else the
        /// connections just close, and peers with graceful restart keep our routes for our restart time.
        notify: bool,
    },
}
