//! Attributes that stand in one UPDATE after another: a peer that announces a hundred thousand routes with the same
//! attributes sends the same octets in every message, and they are decoded, and kept, once.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::attribute::{self, Attribute};
use super::message::PathAttributes;
use super::octets::Octets;

/// Octets of attributes that are worth remembering, for there may be a thousand sessions.
const MOST_OCTETS: usize = 1024;

/// An attribute area, taken apart into what speaks of destinations and what does not.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// MP_REACH_NLRI and MP_UNREACH_NLRI, in the order of the message: of two faults the first is told.
    pub(super) multiprotocol: [Option<Attribute<'a>>; 2],
    /// What is before, between and behind those two.
    others: [&'a [u8]; 3],
}

impl<'a> Parts<'a> {
    /// `None` where the area does not end with an attribute, or one of the two stands there twice: nothing is gained
    /// for what is at fault.
    pub(super) fn of(area: &'a [u8]) -> Option<Self> {
        let mut parts = Parts {
            multiprotocol: [None; 2],
            others: [&[]; 3],
        };
        let (mut octets, mut place, mut begin, mut end) = (Octets::new(area), 0, 0, 0);
        while let Some(next) = attribute::next(&mut octets) {
            let attribute = next.ok()?;
            let after = end + attribute.raw.len();
            if matches!(
                attribute.code,
                attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI
            ) {
                let mut before = parts.multiprotocol.iter().flatten();
                if before.any(|one| one.code == attribute.code) {
                    return None;
                }
                *parts.multiprotocol.get_mut(place)? = Some(attribute);
                *parts.others.get_mut(place)? = area.get(begin..end)?;
                place += 1;
                begin = after;
            }
            end = after;
        }
        *parts.others.get_mut(place)? = area.get(begin..end)?;
        Some(parts)
    }
}

/// What the attributes of an UPDATE were decoded to.
#[derive(Clone, Debug)]
pub(super) struct Repeated {
    octets: Vec<u8>,
    /// With the next hop of that message, which may have come from MP_REACH_NLRI.
    pub(super) attributes: Arc<PathAttributes>,
    /// The NEXT_HOP attribute.
    pub(super) next_hop: Option<Ipv4Addr>,
}

impl Repeated {
    /// `None` where there is more than is worth remembering.
    pub(super) fn new(
        parts: &Parts<'_>,
        attributes: &Arc<PathAttributes>,
        next_hop: Option<Ipv4Addr>,
    ) -> Option<Self> {
        let length: usize = parts.others.iter().map(|part| part.len()).sum();
        (length <= MOST_OCTETS).then(|| Self {
            octets: parts.others.concat(),
            attributes: Arc::clone(attributes),
            next_hop,
        })
    }

    /// Whether these are the same octets.
    pub(super) fn is(&self, parts: &Parts<'_>) -> bool {
        let mut rest = self.octets.as_slice();
        for part in parts.others {
            let Some(tail) = rest.strip_prefix(part) else {
                return false;
            };
            rest = tail;
        }
        rest.is_empty()
    }
}
