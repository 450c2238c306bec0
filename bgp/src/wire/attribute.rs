//! Path attributes as the wire has them (RFC 4271 §4.3): flags, type code, length, value.

use std::fmt;

use super::fault::{FaultReason, Verdict};
use super::octets::Octets;

/// The Optional flag.
pub(super) const OPTIONAL: u8 = 0x80;
/// The Transitive flag.
pub(super) const TRANSITIVE: u8 = 0x40;
/// The Partial flag.
pub(super) const PARTIAL: u8 = 0x20;
/// The Extended Length flag.
pub(super) const EXTENDED_LENGTH: u8 = 0x10;

pub(super) const ORIGIN: u8 = 1;
pub(super) const AS_PATH: u8 = 2;
pub(super) const NEXT_HOP: u8 = 3;
pub(super) const MULTI_EXIT_DISC: u8 = 4;
pub(super) const LOCAL_PREF: u8 = 5;
pub(super) const ATOMIC_AGGREGATE: u8 = 6;
pub(super) const AGGREGATOR: u8 = 7;
/// RFC 1997.
pub(super) const COMMUNITIES: u8 = 8;
/// RFC 4456 §8.
pub(super) const ORIGINATOR_ID: u8 = 9;
/// RFC 4456 §8.
pub(super) const CLUSTER_LIST: u8 = 10;
/// RFC 4760 §3.
pub(super) const MP_REACH_NLRI: u8 = 14;
/// RFC 4760 §4.
pub(super) const MP_UNREACH_NLRI: u8 = 15;
/// RFC 4360.
pub(super) const EXTENDED_COMMUNITIES: u8 = 16;
/// RFC 6793 §3.
pub(super) const AS4_PATH: u8 = 17;
/// RFC 6793 §3.
pub(super) const AS4_AGGREGATOR: u8 = 18;
/// RFC 8092.
pub(super) const LARGE_COMMUNITIES: u8 = 32;

/// A type code, shown by its name.
pub(super) struct Named(pub(super) u8);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "UPDATE",
            ORIGIN => "ORIGIN",
            AS_PATH => "AS_PATH",
            NEXT_HOP => "NEXT_HOP",
            MULTI_EXIT_DISC => "MULTI_EXIT_DISC",
            LOCAL_PREF => "LOCAL_PREF",
            ATOMIC_AGGREGATE => "ATOMIC_AGGREGATE",
            AGGREGATOR => "AGGREGATOR",
            COMMUNITIES => "COMMUNITIES",
            ORIGINATOR_ID => "ORIGINATOR_ID",
            CLUSTER_LIST => "CLUSTER_LIST",
            MP_REACH_NLRI => "MP_REACH_NLRI",
            MP_UNREACH_NLRI => "MP_UNREACH_NLRI",
            EXTENDED_COMMUNITIES => "EXTENDED_COMMUNITIES",
            AS4_PATH => "AS4_PATH",
            AS4_AGGREGATOR => "AS4_AGGREGATOR",
            LARGE_COMMUNITIES => "LARGE_COMMUNITY",
            unknown => return write!(f, "attribute {unknown}"),
        })
    }
}

/// The Optional and Transitive bits that an attribute's definition asks for; `None` where no definition is known.
pub(super) fn defined_flags(attribute: u8) -> Option<u8> {
    match attribute {
        ORIGIN | AS_PATH | NEXT_HOP | LOCAL_PREF | ATOMIC_AGGREGATE => Some(TRANSITIVE),
        AGGREGATOR | COMMUNITIES | EXTENDED_COMMUNITIES | AS4_PATH | AS4_AGGREGATOR | LARGE_COMMUNITIES => {
            Some(OPTIONAL | TRANSITIVE)
        }
        MULTI_EXIT_DISC | ORIGINATOR_ID | CLUSTER_LIST | MP_REACH_NLRI | MP_UNREACH_NLRI => Some(OPTIONAL),
        _ => None,
    }
}

/// What it costs when an attribute is malformed (RFC 7606 §3 e, f and §7).
pub(super) fn malformed(attribute: u8) -> Verdict {
    match attribute {
        // RFC 7606 §7.6, §7.7, RFC 6793 §6: these say nothing that a route needs.
        ATOMIC_AGGREGATE | AGGREGATOR | AS4_PATH | AS4_AGGREGATOR => Verdict::DiscardAttribute,
        // RFC 7606 §3 j, §5.3: without them it is not known which routes the message speaks of.
        MP_REACH_NLRI | MP_UNREACH_NLRI => Verdict::Reset,
        _ => Verdict::TreatAsWithdraw,
    }
}

/// One attribute, delimited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attribute<'a> {
    pub(super) flags: u8,
    pub(super) code: u8,
    pub(super) value: &'a [u8],
    /// All its octets, header included.
    pub(super) raw: &'a [u8],
}

/// An attribute that does not end within the attribute area (RFC 7606 §4).
#[derive(Clone, Copy, Debug)]
pub(super) struct Overrun<'a> {
    /// Its type code; zero when not even that is there.
    pub(super) code: u8,
    pub(super) reason: FaultReason,
    pub(super) raw: &'a [u8],
}

/// Takes the next attribute from the attribute area; `None` at its end.
pub(super) fn next<'a>(area: &mut Octets<'a>) -> Option<Result<Attribute<'a>, Overrun<'a>>> {
    if area.is_empty() {
        return None;
    }
    let start = *area;
    let attribute = whole(area);
    Some(attribute.map_err(|(code, reason)| {
        *area = Octets::new(&[]);
        Overrun {
            code,
            reason,
            raw: start.rest(),
        }
    }))
}

fn whole<'a>(area: &mut Octets<'a>) -> Result<Attribute<'a>, (u8, FaultReason)> {
    let start = *area;
    let cut = |code, wanted| {
        (
            code,
            FaultReason::Overrun {
                wanted,
                left: start.len(),
            },
        )
    };
    let flags = area.u8().ok_or(cut(0, 3))?;
    let code = area.u8().ok_or(cut(0, 3))?;
    let length = if flags & EXTENDED_LENGTH == 0 {
        area.u8().map(usize::from).ok_or(cut(code, 3))?
    } else {
        area.u16().map(usize::from).ok_or(cut(code, 4))?
    };
    let left = area.len();
    let value = area
        .take(length)
        .ok_or((code, FaultReason::Overrun { wanted: length, left }))?;
    let raw = start.rest().get(..start.len() - area.len()).unwrap_or_default();
    Ok(Attribute {
        flags,
        code,
        value,
        raw,
    })
}

/// Appends one attribute, whose value `write` appends; the Extended Length flag follows from how long that is
/// (RFC 4271 §4.3).
pub(super) fn push(area: &mut Vec<u8>, flags: u8, code: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let start = area.len();
    area.extend_from_slice(&[flags & !EXTENDED_LENGTH, code, 0]);
    let begin = area.len();
    write(area);
    let length = area.len() - begin;
    if let Ok(length) = u8::try_from(length) {
        area.splice(begin - 1..begin, [length]);
    } else {
        // The caller compares the whole area with what a message holds, which is 65535 at most.
        let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        area.splice(start..begin, [flags | EXTENDED_LENGTH, code, high, low]);
    }
}
