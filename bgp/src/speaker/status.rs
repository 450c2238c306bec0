//! What is known of a peer, for people and for metrics.

use std::net::IpAddr;
use std::time::Instant;

use crate::fsm::State;
use crate::id::{Asn, HoldTime, RouterId};
use crate::reason::Reason;

/// What is known of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its address.
    pub peer: IpAddr,
    /// Its AS, as configured.
    pub asn: Asn,
    /// The state of its session.
    pub state: State,
    /// Why it last went down, or does not come up.
    pub reason: Option<Reason>,
    /// How often a session or an attempt at one has failed since it was last Established.
    pub failures: u64,
    /// When [`Self::reason`] last came up.
    pub failed: Option<Instant>,
    /// Routes in Adj-RIB-In, stale ones included.
    pub prefixes_received: usize,
    /// Routes in Adj-RIB-Out.
    pub prefixes_sent: usize,
    /// How often it has become Established.
    pub established_count: u64,
    /// Whether it has sent all its routes, in the session that is up.
    pub end_of_rib: bool,
    /// Routes of a session that is gone, not announced again yet (RFC 4724 §4.2).
    pub stale: usize,
    /// Faults in its UPDATEs that cost a route or an attribute, but not the session (RFC 7606).
    pub faults: u64,
    /// Messages received.
    pub messages_in: u64,
    /// Messages sent.
    pub messages_out: u64,
    /// Since when it is in its state.
    pub since: Instant,
    /// Its BGP Identifier, while Established.
    pub router_id: Option<RouterId>,
    /// The hold time agreed on, while Established.
    pub hold_time: Option<HoldTime>,
}
