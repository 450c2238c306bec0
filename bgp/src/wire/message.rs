//! Messages as values: what RFC 4271 §4 puts on the wire, checked.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::id::{Asn, HoldTime, Prefix, RouterId};

/// A message of RFC 4271 §4 or RFC 2918.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// RFC 4271 §4.2.
    Open(Open),
    /// RFC 4271 §4.3.
    Update(Update),
    /// RFC 4271 §4.5.
    Notification(Notification),
    /// RFC 4271 §4.4.
    Keepalive,
    /// RFC 2918 §3.
    RouteRefresh(Family),
}

/// An address family and its subsequent identifier (RFC 4760 §3), as numbers: a peer may name any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
}

impl Family {
    /// IPv4 unicast.
    pub const IPV4_UNICAST: Family = Family { afi: 1, safi: 1 };
    /// IPv6 unicast.
    pub const IPV6_UNICAST: Family = Family { afi: 2, safi: 1 };
}

/// What a speaker says of itself when a session begins (RFC 4271 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS: the four octets of its capability where it sent one, else My Autonomous System (RFC 6793 §4.1).
    pub asn: Asn,
    /// The hold time it proposes.
    pub hold_time: HoldTime,
    /// Its BGP Identifier.
    pub router_id: RouterId,
    /// Its capabilities (RFC 5492), in the order of the message.
    pub capabilities: Vec<Capability>,
}

/// A capability (RFC 5492 §4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760 §8.
    MultiProtocol(Family),
    /// RFC 2918 §2.
    RouteRefresh,
    /// RFC 6793 §3.
    FourOctetAs(Asn),
    /// RFC 4724 §3.
    GracefulRestart(GracefulRestart),
    /// One that this speaker does not know or does not use.
    Unknown {
        /// Its code.
        code: u8,
        /// Its value, as received.
        value: Vec<u8>,
    },
}

/// The graceful restart capability (RFC 4724 §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GracefulRestart {
    /// The sender has restarted (the R bit).
    pub restarted: bool,
    /// Seconds, 0 to 4095, within which it means to be back after a restart.
    pub restart_time: u16,
    /// The families it keeps forwarding for; the flag says that their forwarding state was kept (the F bit).
    pub families: Vec<(Family, bool)>,
}

/// Routes withdrawn and announced (RFC 4271 §4.3, RFC 4760 §3 and §4).
///
/// An empty one is written as the End-of-RIB marker of IPv4 unicast (RFC 4724 §2). One that was read is such a marker
/// only where `end_of_rib` says so: what speaks of families that were not negotiated alone is read as empty too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Destinations that are no longer reachable through the sender.
    pub withdrawn: Vec<Prefix>,
    /// Destinations that are, all with the same attributes.
    pub announced: Vec<Prefix>,
    /// The attributes of `announced`; `Some` whenever `announced` is not empty.
    pub attributes: Option<Arc<PathAttributes>>,
    /// The families whose End-of-RIB marker this message is (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
}

/// The attributes of a path (RFC 4271 §5), valid as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAttributes {
    /// RFC 4271 §5.1.1.
    pub origin: Origin,
    /// RFC 4271 §5.1.2.
    pub as_path: AsPath,
    /// RFC 4271 §5.1.3.
    pub next_hop: Ipv4Addr,
    /// RFC 4271 §5.1.4.
    pub med: Option<u32>,
    /// RFC 4271 §5.1.5; present on every path of an internal peer.
    pub local_pref: Option<u32>,
    /// RFC 4271 §5.1.6.
    pub atomic_aggregate: bool,
    /// RFC 4271 §5.1.7.
    pub aggregator: Option<(Asn, Ipv4Addr)>,
    /// RFC 1997; ascending and each once in what was read, and always so on the wire.
    pub communities: Vec<u32>,
    /// RFC 8092; ascending and each once in what was read, and always so on the wire.
    pub large_communities: Vec<[u32; 3]>,
    /// Optional transitive attributes that this speaker does not know, to be passed on with the Partial bit
    /// (RFC 4271 §5), and EXTENDED_COMMUNITIES (RFC 4360), which it passes on unread: type code and value, ascending.
    pub unknown: Vec<(u8, Vec<u8>)>,
}

/// How a path came to be known; the lower is preferred (RFC 4271 §5.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// From an interior protocol, or from the operator.
    Igp,
    /// From the EGP protocol.
    Egp,
    /// By other means.
    Incomplete,
}

/// The autonomous systems that a path went through (RFC 4271 §4.3, §5.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AsPath {
    /// Its segments, nearest first. Never an AS_SET: those are treated as withdraw (RFC 9774).
    pub segments: Vec<AsSegment>,
}

/// An ordered run of autonomous systems, 1 to 255 of them on the wire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AsSegment {
    /// AS_SEQUENCE.
    Sequence(Vec<Asn>),
    /// AS_CONFED_SEQUENCE (RFC 5065): never accepted from a peer, kept apart so that it cannot be mistaken.
    ConfedSequence(Vec<Asn>),
}

/// Why a session ends (RFC 4271 §4.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// Error code.
    pub code: u8,
    /// Error subcode.
    pub subcode: u8,
    /// What the code's definition puts there.
    pub data: Vec<u8>,
}
