//! What two OPENs settle between their senders (RFC 5492 §3): the terms on which every later message is read and
//! written.

use super::message::{Capability, Directions, Family, Open};

/// What the two OPENs settled; it decides how the other messages are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    /// Both ends know AS numbers of four octets (RFC 6793 §4.1).
    pub four_octet_as: bool,
    /// Both ends are in the same AS (RFC 4271 §1.1: internal peers).
    pub internal: bool,
    /// Messages up to [`super::MAX_EXTENDED_LENGTH`] octets: to a peer that can take them, from one that was told that
    /// we can (RFC 8654 §4).
    pub extended_messages: Directions,
    /// Both ends know the subtypes of ROUTE-REFRESH (RFC 7313 §3.1).
    pub enhanced_route_refresh: bool,
    /// What was agreed on IPv4 unicast.
    pub ipv4_unicast: NegotiatedFamily,
    /// What was agreed on IPv6 unicast.
    pub ipv6_unicast: NegotiatedFamily,
}

/// What was agreed on one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NegotiatedFamily {
    /// Its routes are exchanged (RFC 4760 §8).
    pub agreed: bool,
    /// NLRI carry Path Identifiers (RFC 7911 §4).
    pub add_path: Directions,
    /// Its next hop may be of IPv6 (RFC 8950 §4). Says something of IPv4 only.
    pub extended_next_hop: bool,
}

impl NegotiatedFamily {
    /// A family without any extension.
    #[must_use]
    pub const fn plain(agreed: bool) -> Self {
        Self {
            agreed,
            add_path: Directions::NEITHER,
            extended_next_hop: false,
        }
    }
}

impl Negotiated {
    /// A session of IPv4 unicast and nothing else, before any capability counts.
    #[must_use]
    pub const fn plain(internal: bool) -> Self {
        Self {
            four_octet_as: false,
            internal,
            extended_messages: Directions::NEITHER,
            enhanced_route_refresh: false,
            ipv4_unicast: NegotiatedFamily::plain(true),
            ipv6_unicast: NegotiatedFamily::plain(false),
        }
    }

    /// What `ours`, which this speaker sent, and `theirs`, which the peer sent, settle.
    #[must_use]
    pub fn between(ours: &Open, theirs: &Open) -> Self {
        let both = |capability: &Capability| {
            ours.capabilities.contains(capability) && theirs.capabilities.contains(capability)
        };
        Self {
            four_octet_as: knows_four_octets(ours) && knows_four_octets(theirs),
            internal: ours.asn == theirs.asn,
            // RFC 8654 §4: each end says what it can take, and the other one may send it.
            extended_messages: Directions {
                send: theirs.capabilities.contains(&Capability::ExtendedMessage),
                receive: ours.capabilities.contains(&Capability::ExtendedMessage),
            },
            enhanced_route_refresh: both(&Capability::EnhancedRouteRefresh),
            ipv4_unicast: family(Family::IPV4_UNICAST, ours, theirs),
            ipv6_unicast: family(Family::IPV6_UNICAST, ours, theirs),
        }
    }

    /// What was agreed on `family`; `None` where that is not even known here.
    #[must_use]
    pub fn family(&self, family: Family) -> Option<&NegotiatedFamily> {
        match family {
            Family::IPV4_UNICAST => Some(&self.ipv4_unicast),
            Family::IPV6_UNICAST => Some(&self.ipv6_unicast),
            _ => None,
        }
    }

    /// The families whose routes are exchanged.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        [
            (Family::IPV4_UNICAST, self.ipv4_unicast.agreed),
            (Family::IPV6_UNICAST, self.ipv6_unicast.agreed),
        ]
        .into_iter()
        .filter_map(|(family, agreed)| agreed.then_some(family))
    }
}

fn knows_four_octets(open: &Open) -> bool {
    open.capabilities
        .iter()
        .any(|capability| matches!(capability, Capability::FourOctetAs(_)))
}

fn family(family: Family, ours: &Open, theirs: &Open) -> NegotiatedFamily {
    let (ours_add_path, theirs_add_path) = (add_path(family, ours), add_path(family, theirs));
    NegotiatedFamily {
        agreed: speaks(family, ours) && speaks(family, theirs),
        // RFC 7911 §4: one end is able to send and the other to receive.
        add_path: Directions {
            send: ours_add_path.send && theirs_add_path.receive,
            receive: ours_add_path.receive && theirs_add_path.send,
        },
        extended_next_hop: takes_ipv6_next_hop(family, ours) && takes_ipv6_next_hop(family, theirs),
    }
}

/// RFC 4760 §8: who names no family at all speaks IPv4 unicast, as before there were others.
fn speaks(family: Family, open: &Open) -> bool {
    let mut named = open
        .capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::MultiProtocol(family) => Some(*family),
            _ => None,
        });
    match named.next() {
        None => family == Family::IPV4_UNICAST,
        Some(first) => first == family || named.any(|other| other == family),
    }
}

/// RFC 7911 §4: of several entries for one family the first counts; an OPEN has one such capability.
fn add_path(family: Family, open: &Open) -> Directions {
    open.capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::AddPath(families) => Some(families),
            _ => None,
        })
        .flatten()
        .find(|(named, _)| *named == family)
        .map_or_else(Directions::default, |(_, directions)| *directions)
}

/// RFC 8950 §4.
fn takes_ipv6_next_hop(family: Family, open: &Open) -> bool {
    open.capabilities
        .iter()
        .filter_map(|capability| match capability {
            Capability::ExtendedNextHop(families) => Some(families),
            _ => None,
        })
        .flatten()
        .any(|named| *named == (family, Family::IPV6_UNICAST.afi))
}
