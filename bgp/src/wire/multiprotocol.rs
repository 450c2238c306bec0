//! MP_REACH_NLRI and MP_UNREACH_NLRI (RFC 4760 §3, §4).
//!
//! A family that both ends agreed on is a row of [`Known`]; every other one is delimited and left alone.

use std::net::{IpAddr, Ipv4Addr};

use super::fault::FaultReason;
use super::message::Family;
use super::nlri;
use super::octets::Octets;
use crate::id::Prefix;

/// What one of the two attributes said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    pub(super) family: Family,
    /// `None` for a family that was not negotiated, whose octets were not read.
    pub(super) known: Option<Known>,
    /// Whether it names no destination.
    pub(super) is_empty: bool,
}

/// The routes of a family that was negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// `None` in MP_UNREACH_NLRI.
    pub(super) next_hop: Option<IpAddr>,
    pub(super) prefixes: Vec<Prefix>,
}

fn family(octets: &mut Octets<'_>) -> Option<Family> {
    Some(Family {
        afi: octets.u16()?,
        safi: octets.u8()?,
    })
}

/// Decodes MP_REACH_NLRI.
///
/// # Errors
/// RFC 7606 §5.3 and §7.11: all of them end the session, since the routes cannot be told.
pub(super) fn decode_reach(value: &[u8]) -> Result<Reach, FaultReason> {
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
    let known = if family == Family::IPV4_UNICAST {
        let [a, b, c, d] = next_hop else {
            return Err(FaultReason::Length {
                got: next_hop.len(),
                want: "4 of next hop",
            });
        };
        let next_hop = IpAddr::V4(Ipv4Addr::new(*a, *b, *c, *d));
        Some(Known {
            next_hop: Some(next_hop),
            prefixes: nlri::decode_ipv4(octets.rest())?,
        })
    } else {
        None
    };
    Ok(Reach {
        family,
        known,
        is_empty,
    })
}

/// Decodes MP_UNREACH_NLRI.
///
/// # Errors
/// RFC 7606 §5.3 and §7.12: all of them end the session.
pub(super) fn decode_unreach(value: &[u8]) -> Result<Reach, FaultReason> {
    let mut octets = Octets::new(value);
    let family = family(&mut octets).ok_or(FaultReason::Length {
        got: value.len(),
        want: "at least 3",
    })?;
    let is_empty = octets.is_empty();
    let known = if family == Family::IPV4_UNICAST {
        Some(Known {
            next_hop: None,
            prefixes: nlri::decode_ipv4(octets.rest())?,
        })
    } else {
        None
    };
    Ok(Reach {
        family,
        known,
        is_empty,
    })
}

/// The value of an MP_UNREACH_NLRI that names no destination: the End-of-RIB marker of `family` (RFC 4724 §2).
pub(super) fn encode_end_of_rib(family: Family) -> [u8; 3] {
    let [high, low] = family.afi.to_be_bytes();
    [high, low, family.safi]
}
