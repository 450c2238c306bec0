//! The decision process (RFC 4271 §9.1): which of several paths to one destination is the best.
//!
//! It is a chain of rules, each of which strikes out what another path beats. A rule looks at the set of paths that
//! the rules before it left, never at an order of arrival, so that the result depends on the paths alone. (A fold over
//! pairs would not do: MED compares within one neighbour AS only, so that "better" is no order.)

use std::net::IpAddr;
use std::sync::Arc;

use crate::id::{Asn, RouterId};
use crate::wire::message::{AsSegment, PathAttributes};

/// A degree of preference for paths that carry none (RFC 4271 §9.1.1), and what this speaker gives its own.
pub const DEFAULT_LOCAL_PREF: u32 = 100;

/// A path that import let in, with what the decision needs to know of the peer it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The address of the peer.
    pub peer: IpAddr,
    /// The peer's BGP Identifier.
    pub router_id: RouterId,
    /// Whether the peer is in our AS.
    pub internal: bool,
    /// The path.
    pub attributes: Arc<PathAttributes>,
}

/// The best of `candidates`; `None` if there are none. Two candidates of one peer do not occur.
#[must_use]
pub fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    if let [] | [_] = candidates {
        return candidates.first();
    }
    let mut left: Vec<&Candidate> = candidates.iter().collect();
    // RFC 4271 §9.1.1: the highest degree of preference.
    keep_least(&mut left, |path| std::cmp::Reverse(preference(path)));
    // RFC 4271 §9.1.2.2 (a): the fewest AS numbers in AS_PATH.
    keep_least(&mut left, |path| as_path_length(&path.attributes));
    // RFC 4271 §9.1.2.2 (b): the lowest ORIGIN.
    keep_least(&mut left, |path| path.attributes.origin);
    // RFC 4271 §9.1.2.2 (c): the lowest MULTI_EXIT_DISC among those of one neighbour AS.
    keep_least_med(&mut left);
    // RFC 4271 §9.1.2.2 (d): learned over EBGP rather than IBGP.
    keep_least(&mut left, |path| path.internal);
    // RFC 4271 §9.1.2.2 (e), the interior cost, is the same for all: every next hop is one hop through the underlay.
    // RFC 4271 §9.1.2.2 (f): the lowest BGP Identifier.
    keep_least(&mut left, |path| path.router_id);
    // RFC 4271 §9.1.2.2 (g): the lowest peer address.
    keep_least(&mut left, |path| path.peer);
    left.first().copied()
}

/// Strikes out every path whose key is not the least.
fn keep_least<K: Ord>(paths: &mut Vec<&Candidate>, key: impl Fn(&Candidate) -> K) {
    if let Some(least) = paths.iter().map(|path| key(path)).min() {
        paths.retain(|path| key(path) == least);
    }
}

/// Strikes out every path that one of the same neighbour AS beats on MULTI_EXIT_DISC.
fn keep_least_med(paths: &mut Vec<&Candidate>) {
    let all = paths.clone();
    paths.retain(|path| {
        !all.iter().any(|other| {
            neighbour_as(&other.attributes) == neighbour_as(&path.attributes) && med(other) < med(path)
        })
    });
}

fn preference(path: &Candidate) -> u32 {
    path.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}

/// RFC 4271 §9.1.2.2 (c): an absent MULTI_EXIT_DISC counts as the lowest.
fn med(path: &Candidate) -> u32 {
    path.attributes.med.unwrap_or(0)
}

/// RFC 5065 §5.3: confederation segments do not count.
fn as_path_length(attributes: &PathAttributes) -> usize {
    let count = |segment: &AsSegment| match segment {
        AsSegment::Sequence(numbers) => numbers.len(),
        AsSegment::ConfedSequence(_) => 0,
    };
    attributes.as_path.segments.iter().map(count).sum()
}

/// RFC 4271 §9.1.2.2 (c): the leftmost AS of the path; `None` stands for our own, where the path is empty.
fn neighbour_as(attributes: &PathAttributes) -> Option<Asn> {
    attributes.as_path.segments.iter().find_map(|segment| match segment {
        AsSegment::Sequence(numbers) => numbers.first().copied(),
        AsSegment::ConfedSequence(_) => None,
    })
}

#[cfg(test)]
mod tests;
