//! What is let in and what is let out (RFC 4271 §9.1.1, §9.1.3, §9.2).

pub mod filter;
pub mod rule;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::id::Asn;
use crate::rib::decision::DEFAULT_LOCAL_PREF;
use crate::rib::loc::Best;
use crate::wire::message::{AsSegment, PathAttributes};

/// Why a path that a peer announced is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// RFC 4271 §9.1.2: the path has been here before.
    #[error("path went through our own AS {0} already")]
    AsLoop(Asn),
    /// RFC 4271 §6.3: the next hop is no address that a packet can be sent to.
    #[error("next hop {0} is no unicast address of a host")]
    NextHopNotUnicast(IpAddr),
    /// RFC 4271 §5.1.3: the next hop is this node.
    #[error("next hop {0} is our own address")]
    NextHopOurs(IpAddr),
}

/// Whether a path that a peer announced may be used.
///
/// # Errors
/// Says why not.
pub fn import(attributes: &PathAttributes, asn: Asn, local_address: Ipv4Addr) -> Result<(), Rejection> {
    // RFC 4271 §9.1.2: an AS loop excludes the route.
    if attributes
        .as_path
        .segments
        .iter()
        .any(|segment| contains(segment, asn))
    {
        return Err(Rejection::AsLoop(asn));
    }
    let next_hop = attributes.next_hop;
    // RFC 4271 §6.3: a valid IP host address.
    if !is_host(next_hop) {
        return Err(Rejection::NextHopNotUnicast(next_hop));
    }
    // RFC 4271 §5.1.3: not the address of the receiving speaker.
    if next_hop == local_address {
        return Err(Rejection::NextHopOurs(next_hop));
    }
    Ok(())
}

fn contains(segment: &AsSegment, asn: Asn) -> bool {
    let (AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers)) = segment;
    numbers.contains(&asn)
}

/// RFC 1122 §3.2.1.3: not "this network", loopback, multicast, reserved or broadcast.
fn is_host(address: IpAddr) -> bool {
    let IpAddr::V4(address) = address else {
        return false;
    };
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

/// What this speaker puts into the paths that it sends.
#[derive(Clone, Debug)]
pub struct Export {
    asn: Asn,
    local_address: Ipv4Addr,
    to_internal: Arc<PathAttributes>,
    to_external: Arc<PathAttributes>,
}

impl Export {
    /// For a speaker of AS `asn` that packets reach at `local_address`.
    #[must_use]
    pub fn new(asn: Asn, local_address: Ipv4Addr) -> Self {
        let originated = PathAttributes {
            // RFC 4271 §5.1.5: to internal peers always, to external ones never.
            local_pref: Some(DEFAULT_LOCAL_PREF),
            // RFC 4271 §5.1.3: for a route that the speaker originates, its own address.
            ..PathAttributes::new(local_address.into())
        };
        let external = leave_as(&originated, asn, local_address);
        Self {
            asn,
            local_address,
            to_internal: Arc::new(originated),
            to_external: Arc::new(external),
        }
    }

    /// What a peer is told of the route in use; `None` where it is told nothing.
    #[must_use]
    pub fn route(&self, best: &Best, peer: IpAddr, peer_internal: bool) -> Option<Arc<PathAttributes>> {
        match (best, peer_internal) {
            (Best::Local, true) => Some(Arc::clone(&self.to_internal)),
            (Best::Local, false) => Some(Arc::clone(&self.to_external)),
            // RFC 4271 §9.1.3: not back to where it came from.
            (Best::Learned(path), _) if path.peer == peer => None,
            // RFC 4271 §9.2: from an internal peer never to another one.
            (Best::Learned(path), true) if path.internal => None,
            (Best::Learned(path), true) => {
                let mut attributes = PathAttributes::clone(&path.attributes);
                attributes.local_pref = Some(attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF));
                attributes.next_hop = self.local_address.into();
                Some(Arc::new(attributes))
            }
            (Best::Learned(path), false) => {
                Some(Arc::new(leave_as(&path.attributes, self.asn, self.local_address)))
            }
        }
    }
}

/// RFC 4271 §5.1.2 (b): our AS in front; §5.1.4 and §5.1.5: neither MED of another AS nor LOCAL_PREF goes along.
fn leave_as(attributes: &PathAttributes, asn: Asn, local_address: Ipv4Addr) -> PathAttributes {
    let mut out = attributes.clone();
    rule::prepend(&mut out.as_path, &[asn]);
    out.next_hop = local_address.into();
    out.med = None;
    out.local_pref = None;
    out
}

#[cfg(test)]
mod tests;
