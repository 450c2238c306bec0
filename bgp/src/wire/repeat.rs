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
    pub(super) reach: Option<Attribute<'a>>,
    pub(super) unreach: Option<Attribute<'a>>,
    /// What is before, between and behind those two.
    others: [&'a [u8]; 3],
}

impl<'a> Parts<'a> {
    /// `None` where the area does not end with an attribute, or one of the two stands there twice: nothing is gained
    /// for what is at fault.
    pub(super) fn of(area: &'a [u8]) -> Option<Self> {
        let mut parts = Parts {
            reach: None,
            unreach: None,
            others: [&[]; 3],
        };
        let (mut octets, mut place, mut begin, mut end) = (Octets::new(area), 0, 0, 0);
        while let Some(next) = attribute::next(&mut octets) {
            let attribute = next.ok()?;
            let after = end + attribute.raw.len();
            let slot = match attribute.code {
                attribute::MP_REACH_NLRI => Some(&mut parts.reach),
                attribute::MP_UNREACH_NLRI => Some(&mut parts.unreach),
                _ => None,
            };
            if let Some(slot) = slot {
                if slot.replace(attribute).is_some() {
                    return None;
                }
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
