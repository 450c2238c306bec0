//! One rule of a filter: which routes it is about, and what becomes of them.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;

use crate::id::{Asn, Prefix};
use crate::rib::decision::DEFAULT_LOCAL_PREF;
use crate::wire::message::{AsPath, AsSegment, PathAttributes};

/// The most AS numbers in one segment of an AS_PATH (RFC 4271 §4.3: its length is one octet).
const SEGMENT_MAX: usize = 255;

/// A rule: it decides for the routes that meet all its conditions, and leaves the others alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The conditions.
    pub matching: Match,
    /// What becomes of a route that meets them.
    pub action: Action,
}

/// The conditions of a rule. One that is absent is met by every route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The destination.
    pub prefix: Option<PrefixMatch>,
    /// Where the route comes from.
    pub source: Option<Source>,
    /// The peer that the route comes from (import) or goes to (export).
    pub peer: Option<PeerType>,
    /// A community that the path carries.
    pub community: Option<Community>,
    /// The AS numbers that the path begins with, nearest first; empty for any path.
    pub as_path_prefix: Vec<Asn>,
    /// The LOCAL_PREF of the path is one of these; empty for any. A path without one counts as 100.
    pub local_pref: Vec<u32>,
}

/// A condition on the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    operator: Operator,
    net: IpNet,
    lengths: RangeInclusive<u8>,
}

/// How a destination is compared with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is the range.
    Equal,
    /// It is not the range.
    NotEqual,
    /// It is the range or a part of it.
    In,
    /// It is not.
    NotIn,
}

impl PrefixMatch {
    /// Compares destinations with `range`. `lengths` narrows down what [`Operator::Equal`] and [`Operator::In`] are met
    /// by to prefix lengths from the one bound to the other, both included; the other two operators are met by the
    /// rest. A bound that is absent is the range's own length, and the longest that there is.
    #[must_use]
    pub fn new(operator: Operator, range: Prefix, lengths: (Option<u8>, Option<u8>)) -> Self {
        let net = range.net();
        let (least, most) = lengths;
        Self {
            operator,
            net,
            lengths: least.unwrap_or(net.prefix_len())..=most.unwrap_or(net.max_prefix_len()),
        }
    }

    fn is_met_by(&self, prefix: IpNet) -> bool {
        let length = self.lengths.contains(&prefix.prefix_len());
        match self.operator {
            Operator::Equal => self.net == prefix && length,
            Operator::NotEqual => !(self.net == prefix && length),
            Operator::In => self.net.contains(&prefix) && length,
            Operator::NotIn => !(self.net.contains(&prefix) && length),
        }
    }
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This speaker originates it.
    Own,
    /// A peer announced it.
    Peers,
}

/// On which side of our AS border a peer is (RFC 4271 §1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerType {
    /// In our AS (IBGP).
    Internal,
    /// In another one (EBGP).
    External,
}

/// A community, as it is carried in one of three attributes. An extended one is shown as route target (`rt:`) or route origin
/// (`ro:`, RFC 4360 §4, §5), where it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    /// RFC 1997.
    Standard(u32),
    /// RFC 8092.
    Large([u32; 3]),
    /// RFC 4360 §2: its octets, the type first.
    Extended([u8; 8]),
}

impl Community {
    fn is_in(self, attributes: &PathAttributes) -> bool {
        match self {
            Self::Standard(value) => attributes.communities.contains(&value),
            Self::Large(value) => attributes.large_communities.contains(&value),
            Self::Extended(value) => attributes.extended_communities.contains(&value),
        }
    }

    fn add_to(self, attributes: &mut PathAttributes) {
        match self {
            Self::Standard(value) => insert(&mut attributes.communities, value),
            Self::Large(value) => insert(&mut attributes.large_communities, value),
            Self::Extended(value) => insert(&mut attributes.extended_communities, value),
        }
    }
}

/// The lists are ascending and hold each value once.
fn insert<T: Ord>(list: &mut Vec<T>, value: T) {
    if let Err(at) = list.binary_search(&value) {
        list.insert(at, value);
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Standard(value) => write!(f, "{}:{}", value >> 16, value & 0xffff),
            Self::Large([global, first, second]) => write!(f, "{global}:{first}:{second}"),
            Self::Extended(octets) => {
                let [kind, _, a, b, c, d, e, g] = octets;
                let name = match octets {
                    [0..=2, 2, ..] => "rt",
                    [0..=2, 3, ..] => "ro",
                    _ => return write!(f, "0x{:016x}", u64::from_be_bytes(*octets)),
                };
                let low = u16::from_be_bytes([*e, *g]);
                match kind {
                    0 => {
                        let (asn, local) =
                            (u16::from_be_bytes([*a, *b]), u32::from_be_bytes([*c, *d, *e, *g]));
                        write!(f, "{name}:{asn}:{local}")
                    }
                    1 => write!(f, "{name}:{a}.{b}.{c}.{d}:{low}"),
                    _ => write!(f, "{name}:{}:{low}", u32::from_be_bytes([*a, *b, *c, *d])),
                }
            }
        }
    }
}

/// What becomes of a route that meets the conditions of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is let through with these changes, made in order. No later rule sees it.
    Accept(Vec<Operation>),
    /// It is kept out.
    Reject,
    /// These changes are made in order, and the rules that follow decide.
    Continue(Vec<Operation>),
}

/// A change to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Adds a community, unless the path carries it already.
    AddCommunity(Community),
    /// Puts these AS numbers in front of the AS_PATH; the first of them is the nearest afterwards.
    PrependAsPath(Vec<Asn>),
    /// Sets LOCAL_PREF. An external peer is not told of it (RFC 4271 §5.1.5).
    SetLocalPref(u32),
}

impl Operation {
    /// Makes the change; what other holders of the path see stays as it is. Nothing is copied for a change that is none.
    pub(super) fn apply(&self, attributes: &mut Arc<PathAttributes>) {
        match self {
            Self::AddCommunity(community) if community.is_in(attributes) => {}
            Self::AddCommunity(community) => community.add_to(Arc::make_mut(attributes)),
            Self::PrependAsPath(numbers) if numbers.is_empty() => {}
            Self::PrependAsPath(numbers) => prepend(&mut Arc::make_mut(attributes).as_path, numbers),
            Self::SetLocalPref(value) if attributes.local_pref == Some(*value) => {}
            Self::SetLocalPref(value) => Arc::make_mut(attributes).local_pref = Some(*value),
        }
    }
}

/// Puts AS numbers in front of a path (RFC 4271 §5.1.2 (b)), in segments that are no longer than the wire allows.
pub(super) fn prepend(path: &mut AsPath, numbers: &[Asn]) {
    for numbers in numbers.rchunks(SEGMENT_MAX) {
        match path.segments.first_mut() {
            Some(AsSegment::Sequence(first)) if first.len() + numbers.len() <= SEGMENT_MAX => {
                first.splice(..0, numbers.iter().copied());
            }
            _ => path.segments.insert(0, AsSegment::Sequence(numbers.to_vec())),
        }
    }
}

/// A route as the rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Route<'a> {
    /// The destination.
    pub prefix: Prefix,
    /// Where it comes from.
    pub source: Source,
    /// The peer that it comes from (import) or goes to (export).
    pub peer: PeerType,
    /// The path.
    pub attributes: &'a PathAttributes,
}

impl Match {
    /// Whether `route` meets all the conditions.
    pub(super) fn is_met_by(&self, route: Route<'_>) -> bool {
        let Route {
            prefix,
            source,
            peer,
            attributes,
        } = route;
        self.prefix
            .as_ref()
            .is_none_or(|wanted| wanted.is_met_by(prefix.net()))
            && self.source.is_none_or(|wanted| wanted == source)
            && self.peer.is_none_or(|wanted| wanted == peer)
            && self.community.is_none_or(|wanted| wanted.is_in(attributes))
            && begins_with(&attributes.as_path, &self.as_path_prefix)
            && (self.local_pref.is_empty()
                || self
                    .local_pref
                    .contains(&attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)))
    }
}

fn begins_with(path: &AsPath, prefix: &[Asn]) -> bool {
    let mut numbers = path.segments.iter().flat_map(|segment| match segment {
        AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => numbers,
    });
    prefix.iter().all(|wanted| numbers.next() == Some(wanted))
}
