//! MP_REACH_NLRI and MP_UNREACH_NLRI (RFC 4760 §3, §4).
//!
//! A family that both ends agreed on is read; every other one is delimited and left alone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::attribute::{self, OPTIONAL};
use super::fault::FaultReason;
use super::message::Family;
use super::negotiated::{Negotiated, NegotiatedFamily};
use super::nlri::{Field, Form};
use super::octets::Octets;

/// What one of the two attributes said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reach<'a> {
    pub(super) family: Family,
    /// `None` for a family that was not negotiated, whose octets were not read.
    pub(super) known: Option<Known<'a>>,
    /// Whether it names no destination.
    pub(super) is_empty: bool,
}

/// The routes of a family that was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known<'a> {
    /// `None` in MP_UNREACH_NLRI.
    pub(super) next_hop: Option<IpAddr>,
    pub(super) field: Field<'a>,
}

fn family(octets: &mut Octets<'_>) -> Option<Family> {
    Some(Family {
        afi: octets.u16()?,
        safi: octets.u8()?,
    })
}

fn agreed(family: Family, negotiated: &Negotiated) -> Option<&NegotiatedFamily> {
    negotiated.family(family).filter(|terms| terms.agreed)
}

/// Decodes MP_REACH_NLRI.
///
/// # Errors
/// RFC 7606 §5.3 and §7.11: all of them end the session, since the routes cannot be told.
pub(super) fn decode_reach(value: &[u8], negotiated: Negotiated) -> Result<Reach<'_>, FaultReason> {
    // RFC 7606 §5.3: family, length and the reserved octet make five at least.
    let short = FaultReason::Length {
        got: value.len(),
        want: "at least 5",
    };
    let mut octets = Octets::new(value);
    let family = family(&mut octets).ok_or(short)?;
    let next_hop = octets.field8();
    // RFC 7606 §7.11: a next hop of another length than its family has hides where the prefixes begin.
    let next_hop = next_hop.ok_or(FaultReason::Length {
        got: value.len(),
        want: "enough for the next hop that it announces",
    })?;
    // RFC 4760 §3: a reserved octet, not looked at.
    let _reserved = octets.u8().ok_or(short)?;
    let is_empty = octets.is_empty();
    let known = match agreed(family, &negotiated) {
        Some(terms) => Some(Known {
            next_hop: Some(decode_next_hop(next_hop, family, *terms)?),
            field: Field::check(octets.rest(), Form::of(family, terms.add_path.receive))?,
        }),
        None => None,
    };
    Ok(Reach {
        family,
        known,
        is_empty,
    })
}

/// RFC 7606 §7.11: the length must be one that the family may have.
fn decode_next_hop(octets: &[u8], family: Family, terms: NegotiatedFamily) -> Result<IpAddr, FaultReason> {
    let ipv4 = family == Family::IPV4_UNICAST;
    if ipv4 && let [a, b, c, d] = octets {
        return Ok(IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d)));
    }
    // RFC 8950 §3: a next hop of IPv6 for destinations of IPv4, where both ends said that they know it.
    let takes_ipv6 = !ipv4 || terms.extended_next_hop;
    // RFC 2545 §3: a global address, or one and a link-local one behind it, which is not kept.
    match octets.first_chunk::<16>() {
        Some(global) if takes_ipv6 && matches!(octets.len(), 16 | 32) => {
            Ok(IpAddr::V6(Ipv6Addr::from(*global)))
        }
        _ => Err(FaultReason::Length {
            got: octets.len(),
            want: match (ipv4, takes_ipv6) {
                (true, false) => "4 of next hop",
                (true, true) => "4, 16 or 32 of next hop",
                (false, _) => "16 or 32 of next hop",
            },
        }),
    }
}

/// Decodes MP_UNREACH_NLRI.
///
/// # Errors
/// RFC 7606 §5.3 and §7.12: all of them end the session.
pub(super) fn decode_unreach(value: &[u8], negotiated: Negotiated) -> Result<Reach<'_>, FaultReason> {
    let mut octets = Octets::new(value);
    let family = family(&mut octets).ok_or(FaultReason::Length {
        got: value.len(),
        want: "at least 3",
    })?;
    let is_empty = octets.is_empty();
    let known = match agreed(family, &negotiated) {
        Some(terms) => Some(Known {
            next_hop: None,
            field: Field::check(octets.rest(), Form::of(family, terms.add_path.receive))?,
        }),
        None => None,
    };
    Ok(Reach {
        family,
        known,
        is_empty,
    })
}

/// Octets of an MP_REACH_NLRI with an IPv6 next hop besides its destinations: the header of a long attribute, family,
/// length, next hop, reserved octet.
pub(super) const REACH_OVERHEAD: usize = 4 + 3 + 1 + 16 + 1;
/// Octets of an MP_UNREACH_NLRI besides its destinations: the header of a long attribute, and the family.
pub(super) const UNREACH_OVERHEAD: usize = 4 + 3;

/// Appends an MP_REACH_NLRI around a field of destinations. One address alone: a link-local one would have to be of
/// the very link that the peer is on (RFC 2545 §3), and nobody tells this speaker.
pub(super) fn push_reach(area: &mut Vec<u8>, family: Family, next_hop: Ipv6Addr, field: &[u8]) {
    attribute::push(area, OPTIONAL, attribute::MP_REACH_NLRI, |value| {
        value.extend_from_slice(&encode_family(family));
        value.push(16);
        value.extend_from_slice(&next_hop.octets());
        // RFC 4760 §3: the reserved octet.
        value.push(0);
        value.extend_from_slice(field);
    });
}

/// Appends an MP_UNREACH_NLRI around a field of destinations. Around none it is the End-of-RIB marker of `family`
/// (RFC 4724 §2).
pub(super) fn push_unreach(area: &mut Vec<u8>, family: Family, field: &[u8]) {
    attribute::push(area, OPTIONAL, attribute::MP_UNREACH_NLRI, |value| {
        value.extend_from_slice(&encode_family(family));
        value.extend_from_slice(field);
    });
}

fn encode_family(family: Family) -> [u8; 3] {
    let [high, low] = family.afi.to_be_bytes();
    [high, low, family.safi]
}
