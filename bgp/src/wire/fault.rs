//! Faults of an UPDATE, and what each costs (RFC 7606 §2): verdicts, not errors.

use std::fmt;
use std::net::IpAddr;

use super::attribute;
use super::message::{Family, Notification};
use super::notification::{code, update};
use crate::id::Prefix;

/// What a fault costs; a later one is stronger than an earlier one (RFC 7606 §3 h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Nothing: the part at fault is left aside, the rest stands.
    Accept,
    /// The attribute is ignored and the routes stand.
    DiscardAttribute,
    /// The routes of the message are taken for withdrawn.
    TreatAsWithdraw,
    /// The session ends. Never found in a [`Fault`] that is reported: it becomes a NOTIFICATION.
    Reset,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Accept => "the rest is accepted",
            Verdict::DiscardAttribute => "the attribute is discarded",
            Verdict::TreatAsWithdraw => "the routes are treated as withdrawn",
            Verdict::Reset => "the session is reset",
        })
    }
}

/// A fault of an UPDATE that did not end the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}; {verdict}", attribute::Named(*attribute))]
pub struct Fault {
    /// The type code of the attribute; zero where the fault lies in none, or in one whose code is cut off.
    pub attribute: u8,
    /// What it costs.
    pub verdict: Verdict,
    /// What it is.
    pub reason: FaultReason,
}

/// A peer can make a fault of every third octet. More of one message than this are not worth keeping.
const MOST_FAULTS: usize = 32;

/// The faults of one message: the first of them, and of the strongest verdict at least one.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<Fault>);

impl Faults {
    pub(super) fn push(&mut self, attribute: u8, verdict: Verdict, reason: FaultReason) {
        let fault = Fault {
            attribute,
            verdict,
            reason,
        };
        if self.0.len() < MOST_FAULTS {
            self.0.push(fault);
        } else if self.verdict() < verdict
            && let Some(last) = self.0.last_mut()
        {
            *last = fault;
        }
    }

    /// The strongest verdict (RFC 7606 §3 h).
    pub(super) fn verdict(&self) -> Verdict {
        self.0
            .iter()
            .map(|fault| fault.verdict)
            .max()
            .unwrap_or(Verdict::Accept)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them lies in `attribute`.
    pub(super) fn concern(&self, attribute: u8) -> bool {
        self.0.iter().any(|fault| fault.attribute == attribute)
    }

    /// Takes back what was found in `attribute`.
    pub(super) fn forgive(&mut self, attribute: u8) {
        self.0.retain(|fault| fault.attribute != attribute);
    }

    pub(super) fn into_vec(self) -> Vec<Fault> {
        self.0
    }
}

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultReason {
    /// RFC 7606 §4: the attribute ends after the attribute area.
    #[error("{wanted} octets follow by its length, but the attribute area has {left} left")]
    Overrun {
        /// Octets wanted.
        wanted: usize,
        /// Octets left.
        left: usize,
    },
    /// RFC 7606 §3 c: Optional or Transitive is not as the attribute's definition has it.
    #[error("flags are {got:#04x}, but its Optional and Transitive bits must be {want:#04x}")]
    Flags {
        /// The flags octet.
        got: u8,
        /// The two bits wanted.
        want: u8,
    },
    /// RFC 7606 §7.
    #[error("has {got} octets, not {want}")]
    Length {
        /// Octets of the value.
        got: usize,
        /// What the definition allows.
        want: &'static str,
    },
    /// RFC 7606 §3 g.
    #[error("stands in the message again")]
    Duplicate,
    /// RFC 7606 §3 d.
    #[error("is missing, but prefixes are announced")]
    Missing,
    /// RFC 7606 §7.1.
    #[error("value is {0}, not 0 (IGP), 1 (EGP) or 2 (incomplete)")]
    Origin(u8),
    /// RFC 7606 §7.2: a segment of a type that nobody defined.
    #[error("segment type is {0}, not 1 to 4")]
    SegmentType(u8),
    /// RFC 7606 §7.2.
    #[error("segment of type {0} is empty")]
    SegmentEmpty(u8),
    /// RFC 7606 §7.2: overrun, or too few octets for another segment.
    #[error("segment wants {wanted} octets, but {left} are left")]
    SegmentOverrun {
        /// Octets wanted.
        wanted: usize,
        /// Octets left.
        left: usize,
    },
    /// RFC 9774 §3.
    #[error("has an AS_SET or AS_CONFED_SET, which are no longer allowed")]
    AsSet,
    /// RFC 5065 §5.3: the peer is in no confederation with us.
    #[error("has a confederation segment, but the peer shares no confederation with this speaker")]
    ConfederationSegment,
    /// RFC 7607 §2.
    #[error("holds AS 0")]
    AsZero,
    /// RFC 7606 §7.3, RFC 4271 §6.3.
    #[error("next hop {0} is not the address of a host")]
    NextHop(IpAddr),
    /// RFC 7606 §7.5, §7.9, §7.10.
    #[error("came from an external peer, but only internal ones may send it")]
    FromExternal,
    /// RFC 6793 §4.1.
    #[error("came from a peer that speaks of four-octet AS numbers, which has no use for it")]
    FromFourOctet,
    /// RFC 6793 §4.2.3: AGGREGATOR holds an AS of its own, and so the attributes of four octets are stale.
    #[error("is ignored, since AGGREGATOR does not hold AS_TRANS")]
    Stale,
    /// RFC 4760 §8: nobody agreed on this family.
    #[error("family {}/{} was not negotiated", .0.afi, .0.safi)]
    FamilyNotNegotiated(Family),
    /// RFC 7606 §5.3: a prefix is longer than its family allows.
    #[error("a prefix has {got} bits, but the family allows {most}")]
    PrefixTooLong {
        /// Bits it says.
        got: u8,
        /// Bits of an address.
        most: u8,
    },
    /// RFC 7606 §5.3: the last prefix is cut off.
    #[error("a prefix wants {wanted} octets, but {left} are left")]
    PrefixOverrun {
        /// Octets wanted.
        wanted: usize,
        /// Octets left.
        left: usize,
    },
    /// RFC 4271 §6.3: a prefix that cannot be a destination of unicast; it is ignored.
    #[error("prefix {0} is not unicast")]
    NotUnicast(Prefix),
    /// RFC 4456 §8, RFC 6286 §2.1: ORIGINATOR_ID is a BGP Identifier, and zero is none.
    #[error("is 0.0.0.0, which identifies no speaker")]
    OriginatorZero,
    /// RFC 4271 §6.3: mandatory for all to know, yet not known.
    #[error("is marked well-known, but this speaker does not know it")]
    UnrecognizedWellKnown,
    /// RFC 4271 §6.3: the lengths of the message's fields do not add up.
    #[error("fields of the message want {wanted} octets, but {left} are left")]
    FieldOverrun {
        /// Octets wanted.
        wanted: usize,
        /// Octets left.
        left: usize,
    },
}

impl FaultReason {
    /// The subcode that names this reason when it ends a session (RFC 4271 §6.3, RFC 4760 §7).
    fn subcode(self, attribute: u8) -> u8 {
        match self {
            FaultReason::Flags { .. } => update::ATTRIBUTE_FLAGS,
            FaultReason::UnrecognizedWellKnown => update::UNRECOGNIZED_WELL_KNOWN_ATTRIBUTE,
            FaultReason::Missing => update::MISSING_WELL_KNOWN_ATTRIBUTE,
            FaultReason::Duplicate | FaultReason::FieldOverrun { .. } | FaultReason::Overrun { .. } => {
                update::MALFORMED_ATTRIBUTE_LIST
            }
            _ => match attribute {
                0 => update::INVALID_NETWORK_FIELD,
                attribute::AS_PATH => update::MALFORMED_AS_PATH,
                attribute::MP_REACH_NLRI | attribute::MP_UNREACH_NLRI => update::OPTIONAL_ATTRIBUTE,
                _ => match self {
                    FaultReason::Length { .. } => update::ATTRIBUTE_LENGTH,
                    FaultReason::Origin(_) => update::INVALID_ORIGIN,
                    FaultReason::NextHop(_) => update::INVALID_NEXT_HOP,
                    _ => update::OPTIONAL_ATTRIBUTE,
                },
            },
        }
    }

    /// The NOTIFICATION for this reason; `raw` is the whole attribute, where there is one (RFC 4271 §6.3).
    pub(super) fn notification(self, attribute: u8, raw: &[u8]) -> Notification {
        let subcode = self.subcode(attribute);
        let carries_data = !matches!(
            subcode,
            update::MALFORMED_ATTRIBUTE_LIST | update::INVALID_NETWORK_FIELD | update::MALFORMED_AS_PATH
        );
        let data = if carries_data { raw.to_vec() } else { Vec::new() };
        Notification::with_data(code::UPDATE_MESSAGE, subcode, data)
    }
}
