//! Messages as values: what RFC 4271 §4 puts on the wire, checked.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::attribute;
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
    /// RFC 2918 §3, RFC 7313 §3.2.
    RouteRefresh {
        /// What it speaks of.
        family: Family,
        /// What it says of it.
        kind: RefreshKind,
    },
}

/// What a ROUTE-REFRESH says (RFC 7313 §3.2: Message Subtype).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefreshKind {
    /// The sender asks for all routes of the family (RFC 2918 §4). Also every message of a peer with which the
    /// subtypes were not agreed on.
    Request,
    /// BoRR: all the sender's routes of the family follow (RFC 7313 §4).
    BeginOfRr,
    /// EoRR: they have followed (RFC 7313 §4).
    EndOfRr,
    /// A subtype that nobody defined: the message is to be ignored (RFC 7313 §5).
    Unknown(u8),
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

    /// The family of unicast that `prefix` belongs to.
    #[must_use]
    pub fn of(prefix: Prefix) -> Self {
        if prefix.is_ipv4() {
            Self::IPV4_UNICAST
        } else {
            Self::IPV6_UNICAST
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IPV4_UNICAST => f.write_str("IPv4 unicast"),
            Self::IPV6_UNICAST => f.write_str("IPv6 unicast"),
            Self { afi, safi } => write!(f, "family {afi}/{safi}"),
        }
    }
}

/// A destination, and which of the sender's paths to it is meant (RFC 7911 §3). By prefix first, then by path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri {
    /// The destination.
    pub prefix: Prefix,
    /// The Path Identifier that the sender gave it; 0 where ADD-PATH was not agreed on.
    pub path_id: u32,
}

impl From<Prefix> for Nlri {
    /// The only path to `prefix` that the sender tells of.
    fn from(prefix: Prefix) -> Self {
        Self { prefix, path_id: 0 }
    }
}

impl fmt::Display for Nlri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path_id {
            0 => self.prefix.fmt(f),
            path_id => write!(f, "{} (path {path_id})", self.prefix),
        }
    }
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
    /// RFC 7313 §3.1.
    EnhancedRouteRefresh,
    /// RFC 6793 §3.
    FourOctetAs(Asn),
    /// RFC 4724 §3.
    GracefulRestart(GracefulRestart),
    /// RFC 9494 §3.1.
    LongLivedGracefulRestart(Vec<LongLivedFamily>),
    /// RFC 7911 §4: for each family, whether the sender means to send, and is able to receive, several paths.
    AddPath(Vec<(Family, Directions)>),
    /// RFC 8654 §3.
    ExtendedMessage,
    /// RFC 8950 §4: families of NLRI, each with an AFI that its next hop may be of besides its own.
    ExtendedNextHop(Vec<(Family, u16)>),
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
    /// The sender keeps routes over a NOTIFICATION too (RFC 8538 §2: the N bit).
    pub notification: bool,
    /// Seconds, 0 to 4095, within which it means to be back after a restart.
    pub restart_time: u16,
    /// The families it keeps forwarding for; the flag says that their forwarding state was kept (the F bit).
    pub families: Vec<(Family, bool)>,
}

/// What the long-lived graceful restart capability says of a family (RFC 9494 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongLivedFamily {
    /// The family.
    pub family: Family,
    /// Its forwarding state was kept over the restart (the F bit).
    pub forwarding_kept: bool,
    /// Long-Lived Stale Time: seconds, 0 to 16777215, for which its stale routes are to be kept.
    pub stale_time: u32,
}

/// Ways in which something goes over a session, seen from the one who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directions {
    /// From the speaker.
    pub send: bool,
    /// To the speaker.
    pub receive: bool,
}

impl Directions {
    /// In none.
    pub const NEITHER: Directions = Directions {
        send: false,
        receive: false,
    };
}

/// Routes withdrawn and announced (RFC 4271 §4.3, RFC 4760 §3 and §4).
///
/// An empty one is written as the End-of-RIB marker of IPv4 unicast (RFC 4724 §2). One that was read is such a marker
/// only where `end_of_rib` says so: what speaks of families that were not negotiated alone is read as empty too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Destinations that are no longer reachable through the sender.
    pub withdrawn: Vec<Nlri>,
    /// Destinations that are, all with the same attributes.
    pub announced: Vec<Nlri>,
    /// The attributes of `announced`; `Some` whenever `announced` is not empty.
    pub attributes: Option<Arc<PathAttributes>>,
    /// What MP_REACH_NLRI announces, where that stands beside an NLRI field with another next hop. RFC 7606 §5.1
    /// forbids to send such a message and asks to read it.
    pub beside: Option<Box<Announcement>>,
    /// The families whose End-of-RIB marker this message is (RFC 4724 §2).
    pub end_of_rib: Option<Family>,
}

impl Update {
    /// All that is announced: destinations, and the attributes that they share.
    pub fn announcements(&self) -> impl Iterator<Item = (&[Nlri], &Arc<PathAttributes>)> {
        let first = self
            .attributes
            .as_ref()
            .map(|attributes| (self.announced.as_slice(), attributes));
        let second = self
            .beside
            .as_deref()
            .map(|beside| (beside.nlri.as_slice(), &beside.attributes));
        first
            .into_iter()
            .chain(second)
            .filter(|(nlri, _)| !nlri.is_empty())
    }
}

/// Destinations that share attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The destinations.
    pub nlri: Vec<Nlri>,
    /// Their attributes.
    pub attributes: Arc<PathAttributes>,
}

/// The attributes of a path (RFC 4271 §5), valid as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathAttributes {
    /// RFC 4271 §5.1.1.
    pub origin: Origin,
    /// RFC 4271 §5.1.2.
    pub as_path: AsPath,
    /// RFC 4271 §5.1.3, RFC 4760 §3; of another family than the destination's where RFC 8950 was agreed on. The
    /// link-local address that may stand beside a global one (RFC 2545 §3) is not kept.
    pub next_hop: IpAddr,
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
    /// RFC 4360 §2; ascending and each once in what was read, and always so on the wire. Those that are not
    /// transitive are not sent to external peers (RFC 4360 §6).
    pub extended_communities: Vec<[u8; 8]>,
    /// RFC 4456 §8: who brought the path into the AS; only on paths of internal peers, and only sent to them.
    pub originator_id: Option<RouterId>,
    /// RFC 4456 §8: the clusters that reflected the path, the last one first; as `originator_id`.
    pub cluster_list: Vec<Ipv4Addr>,
    /// Which of the known optional transitive attributes arrived with the Partial bit.
    pub partial: Partial,
    /// Optional transitive attributes that this speaker does not know, to be passed on with the Partial bit
    /// (RFC 4271 §5): type code and value, ascending.
    pub unknown: Vec<(u8, Vec<u8>)>,
}

impl PathAttributes {
    /// A path of ORIGIN IGP that went through no AS and carries nothing else.
    #[must_use]
    pub fn new(next_hop: IpAddr) -> Self {
        Self {
            origin: Origin::Igp,
            as_path: AsPath::default(),
            next_hop,
            med: None,
            local_pref: None,
            atomic_aggregate: false,
            aggregator: None,
            communities: Vec::new(),
            large_communities: Vec::new(),
            extended_communities: Vec::new(),
            originator_id: None,
            cluster_list: Vec::new(),
            partial: Partial::default(),
            unknown: Vec::new(),
        }
    }
}

/// The Partial bits of known attributes: somebody on the way passed the attribute on without knowing it, and once
/// set the bit stays (RFC 4271 §5). The wire alone looks at them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partial(u8);

impl Partial {
    /// Notes the bit of `attribute`, if that is one of those whose bits are kept.
    pub(super) fn insert(&mut self, attribute: u8) {
        self.0 |= Self::place(attribute);
    }

    /// Whether `attribute` is to be sent with the bit.
    pub(super) fn contains(self, attribute: u8) -> bool {
        self.0 & Self::place(attribute) != 0
    }

    fn place(attribute: u8) -> u8 {
        match attribute {
            attribute::AGGREGATOR => 1,
            attribute::COMMUNITIES => 2,
            attribute::EXTENDED_COMMUNITIES => 4,
            attribute::LARGE_COMMUNITIES => 8,
            _ => 0,
        }
    }
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
