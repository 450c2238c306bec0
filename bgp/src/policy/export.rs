//! What peers are told of a route in use (RFC 4271 §9.1.3, §9.2), and how it is changed on the way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::filter::Policy;
use super::rule::{self, PeerType, Source};
use crate::config::{NextHopMode, PeerConfig, SpeakerConfig};
use crate::id::{Asn, Prefix};
use crate::rib::community::{self, LLGR_STALE};
use crate::rib::decision::{Candidate, DEFAULT_LOCAL_PREF};
use crate::rib::loc::Best;
use crate::wire::Negotiated;
use crate::wire::message::{Family, PathAttributes};

/// All that decides what a peer is told, and in which octets. Peers for which it is the same are told the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    internal: bool,
    /// Our AS towards the peer.
    asn: Asn,
    reflector_client: Option<Ipv4Addr>,
    next_hop: NextHopMode,
    local_address: Ipv4Addr,
    local_address_v6: Option<Ipv6Addr>,
    /// What was agreed on.
    pub negotiated: Negotiated,
    /// The peer knows routes that are stale for long (RFC 9494 §4.3).
    long_lived: bool,
    policy: Option<Arc<Policy>>,
    needs_policy: bool,
}

impl Export {
    /// For a peer with which `negotiated` was agreed on.
    #[must_use]
    pub fn new(speaker: &SpeakerConfig, peer: &PeerConfig, negotiated: Negotiated, long_lived: bool) -> Self {
        let asn = peer.local_asn.unwrap_or(speaker.asn);
        let internal = peer.asn == asn;
        Self {
            internal,
            asn,
            reflector_client: peer.reflector_client.filter(|_| internal),
            next_hop: peer.next_hop,
            local_address: speaker.local_address,
            local_address_v6: speaker.local_address_v6,
            negotiated,
            long_lived,
            policy: peer.export.clone(),
            needs_policy: !internal && speaker.external_needs_policy,
        }
    }

    /// Whether several paths to a destination are told (RFC 7911).
    #[must_use]
    pub fn tells_all_paths(&self, prefix: Prefix) -> bool {
        let family = self.negotiated.family(Family::of(prefix));
        family.is_some_and(|family| family.add_path.send)
    }

    /// Whether there is a policy, so that the result may differ from prefix to prefix.
    #[must_use]
    pub fn has_policy(&self) -> bool {
        self.policy.is_some()
    }

    /// What the peer is told of a path; `None` where it is told nothing. That a peer is not told what it said itself
    /// is not looked at here.
    #[must_use]
    pub fn route(&self, prefix: Prefix, path: Best<'_>) -> Option<Arc<PathAttributes>> {
        let agreed = self.negotiated.family(Family::of(prefix))?.agreed;
        // RFC 8212 §2: nothing goes to an external peer without a policy.
        if !agreed || (self.needs_policy && self.policy.is_none()) {
            return None;
        }
        let (mut attributes, source) = match path {
            Best::Local => (PathAttributes::new(self.own_address(prefix)?), Source::Own),
            Best::Learned(path) => (self.learned(prefix, path)?, Source::Peers),
        };
        if self.internal {
            // RFC 4271 §5.1.5: to internal peers always, to external ones never.
            attributes.local_pref.get_or_insert(DEFAULT_LOCAL_PREF);
        } else {
            self.leave_as(&mut attributes, path);
        }
        let attributes = Arc::new(attributes);
        let Some(policy) = &self.policy else {
            return Some(attributes);
        };
        let peer_type = if self.internal {
            PeerType::Internal
        } else {
            PeerType::External
        };
        let attributes = policy.evaluate(prefix, source, peer_type, &attributes).ok()?;
        // What a policy has put on counts as what the path came with.
        community::may_be_told(&attributes, self.internal).then_some(attributes)
    }

    /// RFC 4271 §9.2, RFC 4456 §6: whether, and with which next hop and marks of reflection, a peer's path goes on.
    fn learned(&self, prefix: Prefix, path: &Candidate) -> Option<PathAttributes> {
        let from = &path.from;
        let reflected = from.internal && self.internal;
        // RFC 4271 §9.2: from an internal peer never to another one. RFC 4456 §6: unless one of them is a client.
        if reflected && from.reflector_client.is_none() && self.reflector_client.is_none() {
            return None;
        }
        if !community::may_be_told(&path.attributes, self.internal) {
            return None;
        }
        // RFC 9494 §4.3: not to those who would take it for a fresh one.
        if !self.long_lived && community::has(&path.attributes, LLGR_STALE) {
            return None;
        }
        let keeps = match self.next_hop {
            NextHopMode::Auto => reflected,
            NextHopMode::Own => false,
            NextHopMode::Keep => true,
        };
        let next_hop = if keeps {
            path.attributes.next_hop
        } else {
            self.own_address(prefix)?
        };
        if prefix.is_ipv4() && next_hop.is_ipv6() && !self.negotiated.ipv4_unicast.extended_next_hop {
            return None;
        }
        let mut attributes = PathAttributes::clone(&path.attributes);
        attributes.next_hop = next_hop;
        if reflected {
            // RFC 4456 §8: who brought it into the AS, and the clusters that it has gone through.
            attributes.originator_id.get_or_insert(from.router_id);
            let mut clusters: Vec<_> = self.reflector_client.into_iter().collect();
            clusters.extend(from.reflector_client.filter(|id| !clusters.contains(id)));
            attributes.cluster_list.splice(..0, clusters);
        }
        Some(attributes)
    }

    /// RFC 4271 §5.1.2 (b): our AS in front; §5.1.4 and §5.1.5: neither MED of another AS nor LOCAL_PREF goes along.
    fn leave_as(&self, attributes: &mut PathAttributes, path: Best<'_>) {
        rule::prepend(&mut attributes.as_path, &[self.asn]);
        if matches!(path, Best::Learned(_)) {
            attributes.med = None;
        }
        attributes.local_pref = None;
        attributes.originator_id = None;
        attributes.cluster_list = Vec::new();
    }

    /// RFC 4271 §5.1.3, RFC 4760 §3: the address that packets for `prefix` reach this node at.
    fn own_address(&self, prefix: Prefix) -> Option<IpAddr> {
        if prefix.is_ipv4() {
            Some(self.local_address.into())
        } else {
            self.local_address_v6.map(IpAddr::V6)
        }
    }
}
