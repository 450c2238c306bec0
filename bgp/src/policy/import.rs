//! What is let in of what a peer announces (RFC 4271 §9.1.1, §9.1.2).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::filter::{Policy, RejectedBy};
use super::rule::{PeerType, Source};
use crate::config::{PeerConfig, SpeakerConfig};
use crate::id::{Asn, Prefix, RouterId};
use crate::rib::decision::{as_path_length, neighbour_as};
use crate::wire::message::{AsSegment, PathAttributes};

/// More AS numbers than this are no path that a packet takes; the longest of the Internet have some tens.
pub const MAX_AS_PATH: usize = 255;

/// Why a path that a peer announced is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// RFC 4271 §9.1.2: the path has been here before.
    #[error("path went through our own AS {0} already")]
    AsLoop(Asn),
    /// The path is too long to be one.
    #[error("path has {got} AS numbers, we take {MAX_AS_PATH}")]
    AsPathTooLong {
        /// How many it has.
        got: usize,
    },
    /// RFC 4271 §6.3: an external peer puts its own AS in front.
    #[error("path begins with {}, the peer is AS {want}", first(.got))]
    FirstAs {
        /// What the path begins with, if it has anything.
        got: Option<Asn>,
        /// The AS of the peer.
        want: Asn,
    },
    /// RFC 4271 §6.3: the next hop is no address that a packet can be sent to.
    #[error("next hop {0} is no unicast address of a host")]
    NextHopNotUnicast(IpAddr),
    /// RFC 4271 §5.1.3: the next hop is this node.
    #[error("next hop {0} is our own address")]
    NextHopOurs(IpAddr),
    /// RFC 4456 §8: this speaker brought the path into the AS.
    #[error("path was reflected back to us: its ORIGINATOR_ID {0} is our router id")]
    OriginatorOurs(RouterId),
    /// RFC 4456 §8: the path has been in this cluster before.
    #[error("path was reflected in our cluster {0} already")]
    ClusterLoop(Ipv4Addr),
    /// RFC 8212 §2: nothing is taken from an external peer without a policy.
    #[error("external peer has no import policy: configure one")]
    NoPolicy,
    /// The policy keeps it out.
    #[error("{0}")]
    Policy(RejectedBy),
}

fn first(asn: &Option<Asn>) -> String {
    asn.map_or_else(|| "no AS".to_owned(), |asn| format!("AS {asn}"))
}

/// What a path of one peer has to stand.
#[derive(Clone, Debug)]
pub struct Import {
    /// Our AS, to ourselves and to the peer.
    own_as: [Asn; 2],
    allowed_own_as: usize,
    /// What the path is to begin with.
    first_as: Option<Asn>,
    router_id: RouterId,
    local_addresses: (Ipv4Addr, Option<Ipv6Addr>),
    peer_type: PeerType,
    policy: Option<Arc<Policy>>,
    needs_policy: bool,
}

impl Import {
    /// For what `peer` announces.
    #[must_use]
    pub fn new(speaker: &SpeakerConfig, peer: &PeerConfig) -> Self {
        let local_asn = peer.local_asn.unwrap_or(speaker.asn);
        let internal = peer.asn == local_asn;
        Self {
            own_as: [speaker.asn, local_asn],
            allowed_own_as: peer.allowed_own_as.into(),
            first_as: (!internal && peer.enforce_first_as).then_some(peer.asn),
            router_id: speaker.router_id,
            local_addresses: (speaker.local_address, speaker.local_address_v6),
            peer_type: if internal {
                PeerType::Internal
            } else {
                PeerType::External
            },
            policy: peer.import.clone(),
            needs_policy: !internal && speaker.external_needs_policy,
        }
    }

    /// Whether a path may be used, whatever it leads to. `clusters` are those in which this speaker reflects.
    ///
    /// # Errors
    /// Says why not.
    pub fn check(&self, path: &PathAttributes, clusters: &BTreeSet<Ipv4Addr>) -> Result<(), Rejection> {
        let length = as_path_length(path);
        if length > MAX_AS_PATH {
            return Err(Rejection::AsPathTooLong { got: length });
        }
        // RFC 4271 §9.1.2: an AS loop excludes the route.
        if let Some(looped) = self.looped(path) {
            return Err(Rejection::AsLoop(looped));
        }
        if let Some(want) = self.first_as
            && neighbour_as(path) != Some(want)
        {
            let got = neighbour_as(path);
            return Err(Rejection::FirstAs { got, want });
        }
        let next_hop = path.next_hop;
        // RFC 4271 §6.3: a valid IP host address.
        if !is_host(next_hop) {
            return Err(Rejection::NextHopNotUnicast(next_hop));
        }
        // RFC 4271 §5.1.3: not the address of the receiving speaker.
        let (ours, ours_v6) = self.local_addresses;
        if next_hop == IpAddr::V4(ours) || Some(next_hop) == ours_v6.map(IpAddr::V6) {
            return Err(Rejection::NextHopOurs(next_hop));
        }
        // RFC 4456 §8.
        if path.originator_id == Some(self.router_id) {
            return Err(Rejection::OriginatorOurs(self.router_id));
        }
        if let Some(cluster) = path
            .cluster_list
            .iter()
            .find(|cluster| clusters.contains(cluster))
        {
            return Err(Rejection::ClusterLoop(*cluster));
        }
        // RFC 8212 §2.
        if self.needs_policy && self.policy.is_none() {
            return Err(Rejection::NoPolicy);
        }
        Ok(())
    }

    /// What the policy makes of a path that may be used.
    ///
    /// # Errors
    /// Says why it is not used after all.
    pub fn filter(
        &self,
        prefix: Prefix,
        path: &Arc<PathAttributes>,
    ) -> Result<Arc<PathAttributes>, Rejection> {
        match &self.policy {
            None => Ok(Arc::clone(path)),
            Some(policy) => policy
                .evaluate(prefix, Source::Peers, self.peer_type, path)
                .map_err(Rejection::Policy),
        }
    }

    /// Whether there is a policy, so that the result may differ from prefix to prefix.
    #[must_use]
    pub fn has_policy(&self) -> bool {
        self.policy.is_some()
    }

    /// Our own AS, if it stands in the path more often than it may.
    fn looped(&self, path: &PathAttributes) -> Option<Asn> {
        let numbers = path.as_path.segments.iter().flat_map(|segment| {
            let (AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers)) = segment;
            numbers.iter().copied()
        });
        numbers
            .filter(|number| self.own_as.contains(number))
            .nth(self.allowed_own_as)
    }
}

/// RFC 1122 §3.2.1.3, RFC 4291 §2.5: not "this network", loopback, multicast, reserved or broadcast.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => !address.is_unspecified() && !address.is_loopback() && !address.is_multicast(),
    }
}
