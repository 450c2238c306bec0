//! AS_PATH and AS4_PATH (RFC 4271 §4.3, RFC 6793 §3): segments, their octets, and how the two become one.

use super::Negotiated;
use super::fault::FaultReason;
use super::message::{AsPath, AsSegment};
use super::octets::Octets;
use crate::id::Asn;

/// The most a segment holds: its count has one octet (RFC 4271 §4.3).
const SEGMENT_LIMIT: usize = 255;

/// Segment types (RFC 4271 §4.3, RFC 5065 §3).
mod segment {
    pub(super) const AS_SET: u8 = 1;
    pub(super) const AS_SEQUENCE: u8 = 2;
    pub(super) const AS_CONFED_SEQUENCE: u8 = 3;
    pub(super) const AS_CONFED_SET: u8 = 4;
}

/// How many octets an AS number has in a path (RFC 6793 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    Two,
    Four,
}

impl Width {
    /// What both ends know.
    pub(super) fn of(negotiated: Negotiated) -> Self {
        if negotiated.four_octet_as {
            Width::Four
        } else {
            Width::Two
        }
    }

    pub(super) fn octets(self) -> usize {
        match self {
            Width::Two => 2,
            Width::Four => 4,
        }
    }

    /// One AS number off the front; `None` for AS 0 (RFC 7607 §2) and when octets are missing.
    pub(super) fn read(self, octets: &mut Octets<'_>) -> Option<Asn> {
        match self {
            Width::Two => octets.u16().map(u32::from),
            Width::Four => octets.u32(),
        }
        .and_then(Asn::new)
    }

    pub(super) fn push(self, asn: Asn, octets: &mut Vec<u8>) {
        match self {
            Width::Two => octets.extend_from_slice(&asn.two_octets().to_be_bytes()),
            Width::Four => octets.extend_from_slice(&asn.get().to_be_bytes()),
        }
    }
}

/// The segments of AS_PATH.
///
/// # Errors
/// What makes it malformed (RFC 7606 §7.2), and what no peer of ours may send.
pub(super) fn decode(value: &[u8], width: Width) -> Result<AsPath, FaultReason> {
    walk(value, width, || Err(FaultReason::ConfederationSegment))
}

/// The segments of AS4_PATH.
///
/// # Errors
/// What makes it malformed (RFC 6793 §6).
pub(super) fn decode_as4(value: &[u8]) -> Result<AsPath, FaultReason> {
    // RFC 6793 §6: confederation segments have no place in it: they are dropped and the rest stands.
    walk(value, Width::Four, || Ok(()))
}

fn walk(
    value: &[u8],
    width: Width,
    confederation: fn() -> Result<(), FaultReason>,
) -> Result<AsPath, FaultReason> {
    let mut octets = Octets::new(value);
    let mut segments = Vec::new();
    while !octets.is_empty() {
        let left = octets.len();
        let (Some(kind), Some(count)) = (octets.u8(), octets.u8()) else {
            return Err(FaultReason::SegmentOverrun { wanted: 2, left });
        };
        if !(segment::AS_SET..=segment::AS_CONFED_SET).contains(&kind) {
            return Err(FaultReason::SegmentType(kind));
        }
        // RFC 7606 §7.2: a length of zero is malformed.
        if count == 0 {
            return Err(FaultReason::SegmentEmpty(kind));
        }
        let wanted = usize::from(count) * width.octets();
        let left = octets.len();
        let numbers = octets
            .take(wanted)
            .ok_or(FaultReason::SegmentOverrun { wanted, left })?;
        let numbers = numbers_of(numbers, width)?;
        match kind {
            segment::AS_SEQUENCE => segments.push(AsSegment::Sequence(numbers)),
            segment::AS_CONFED_SEQUENCE => confederation()?,
            // RFC 9774 §3: neither kind of set is allowed any more.
            _ => return Err(FaultReason::AsSet),
        }
    }
    Ok(AsPath { segments })
}

fn numbers_of(octets: &[u8], width: Width) -> Result<Vec<Asn>, FaultReason> {
    octets
        .chunks_exact(width.octets())
        // RFC 7607 §2: AS 0 makes the path malformed.
        .map(|number| width.read(&mut Octets::new(number)).ok_or(FaultReason::AsZero))
        .collect()
}

/// The path that a speaker of two octets passed on: what it prepended, then what AS4_PATH kept (RFC 6793 §4.2.3).
pub(super) fn merge(as_path: AsPath, as4_path: AsPath) -> AsPath {
    let Some(mut lead) = count(&as_path).checked_sub(count(&as4_path)) else {
        // RFC 6793 §4.2.3: an AS4_PATH that is longer is ignored.
        return as_path;
    };
    let mut segments = Vec::new();
    for part in as_path.segments {
        if lead == 0 {
            break;
        }
        // AS_PATH holds sequences only: `decode` refuses every other segment.
        let AsSegment::Sequence(mut numbers) = part else {
            continue;
        };
        numbers.truncate(lead);
        lead -= numbers.len();
        segments.push(AsSegment::Sequence(numbers));
    }
    for part in as4_path.segments {
        match (segments.last_mut(), part) {
            (Some(AsSegment::Sequence(before)), AsSegment::Sequence(after))
                if before.len() + after.len() <= SEGMENT_LIMIT =>
            {
                before.extend(after);
            }
            (_, part) => segments.push(part),
        }
    }
    AsPath { segments }
}

/// AS numbers that count for the length of a path: those of confederations do not (RFC 5065 §5.3).
fn count(path: &AsPath) -> usize {
    path.segments
        .iter()
        .map(|part| match part {
            AsSegment::Sequence(numbers) => numbers.len(),
            AsSegment::ConfedSequence(_) => 0,
        })
        .sum()
}

/// Whether some AS number of the path does not fit into two octets, so that AS4_PATH must go along (RFC 6793 §4.2.2).
pub(super) fn needs_four(path: &AsPath) -> bool {
    path.segments.iter().any(|part| match part {
        AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => {
            numbers.iter().any(|asn| asn.get() > u32::from(u16::MAX))
        }
    })
}

/// The value of AS_PATH. A segment of more than 255 is written as several, which means the same (RFC 4271 §5.1.2).
pub(super) fn encode(path: &AsPath, width: Width, value: &mut Vec<u8>) {
    for part in &path.segments {
        match part {
            AsSegment::Sequence(numbers) => push(value, segment::AS_SEQUENCE, numbers, width),
            AsSegment::ConfedSequence(numbers) => {
                push(value, segment::AS_CONFED_SEQUENCE, numbers, width);
            }
        }
    }
}

/// The value of AS4_PATH, which has no confederation segments (RFC 6793 §4.2.2).
pub(super) fn encode_as4(path: &AsPath, value: &mut Vec<u8>) {
    for part in &path.segments {
        if let AsSegment::Sequence(numbers) = part {
            push(value, segment::AS_SEQUENCE, numbers, Width::Four);
        }
    }
}

fn push(value: &mut Vec<u8>, kind: u8, numbers: &[Asn], width: Width) {
    for run in numbers.chunks(SEGMENT_LIMIT) {
        value.push(kind);
        value.push(u8::try_from(run.len()).unwrap_or(u8::MAX));
        for asn in run {
            width.push(*asn, value);
        }
    }
}
