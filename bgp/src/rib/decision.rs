//! The decision process (RFC 4271 §9.1): which of several paths to one destination is the best.
//!
//! It is a chain of rules, each of which strikes out what another path beats. A rule looks at the set of paths that
//! the rules before it left, never at an order of arrival, so that the result depends on the paths alone. (A fold over
//! pairs would not do: MED compares within one neighbour AS only, so that "better" is no order.)

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::community::{self, LLGR_STALE};
use crate::id::{Asn, RouterId};
use crate::wire::message::{AsSegment, PathAttributes};

/// A degree of preference for paths that carry none (RFC 4271 §9.1.1), and what this speaker gives its own.
pub const DEFAULT_LOCAL_PREF: u32 = 100;

/// The peer that a path comes from, as far as that concerns the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The address of the peer.
    pub peer: IpAddr,
    /// The peer's BGP Identifier.
    pub router_id: RouterId,
    /// Whether the peer is in our AS.
    pub internal: bool,
    /// The cluster that it is a client of ours in (RFC 4456 §2).
    pub reflector_client: Option<Ipv4Addr>,
}

/// A path that import let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Who told of it.
    pub from: Arc<Neighbour>,
    /// The Path Identifier that the peer gave it; 0 without ADD-PATH (RFC 7911 §3).
    pub received_id: u32,
    /// The Path Identifier that we give it (RFC 7911 §3), for as long as it is there. Loc-RIB sets it.
    pub path_id: u32,
    /// The path, as import left it.
    pub attributes: Arc<PathAttributes>,
}

/// A rule of the decision, in the order in which they count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// RFC 9494 §4.3: a path that is not stale for long.
    LongLivedStale,
    /// RFC 4271 §9.1.1: the highest degree of preference.
    LocalPref,
    /// RFC 4271 §9.1.2.2 (a): the fewest AS numbers in AS_PATH.
    AsPathLength,
    /// RFC 4271 §9.1.2.2 (b): the lowest ORIGIN.
    Origin,
    /// RFC 4271 §9.1.2.2 (c): the lowest MULTI_EXIT_DISC among those of one neighbour AS.
    Med,
    /// RFC 4271 §9.1.2.2 (d): learned over EBGP rather than IBGP.
    External,
    /// RFC 4271 §9.1.2.2 (f), RFC 4456 §9: the lowest ORIGINATOR_ID or, without one, BGP Identifier.
    RouterId,
    /// RFC 4456 §9: the shortest CLUSTER_LIST.
    ClusterList,
    /// RFC 4271 §9.1.2.2 (g): the lowest peer address.
    PeerAddress,
    /// The lowest Path Identifier, since RFC 7911 leaves open which of one peer's paths is better.
    PathId,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rule::LongLivedStale => "not stale for long",
            Rule::LocalPref => "higher LOCAL_PREF",
            Rule::AsPathLength => "shorter AS_PATH",
            Rule::Origin => "lower ORIGIN",
            Rule::Med => "lower MED from the same neighbour AS",
            Rule::External => "external rather than internal peer",
            Rule::RouterId => "lower originator or router id",
            Rule::ClusterList => "shorter CLUSTER_LIST",
            Rule::PeerAddress => "lower peer address",
            Rule::PathId => "lower path id",
        })
    }
}

/// The result for a destination: the best path, and those that are as good in all that matters to packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Which of the candidates is the best.
    pub best: usize,
    /// Those that no rule before RFC 4271 §9.1.2.2 (f) tells apart, the best among them, in no order.
    pub equal: Vec<usize>,
}

/// Selects among `candidates`; `None` if there are none. Two candidates with the same peer and Path Identifier do not
/// occur.
#[must_use]
pub fn select(candidates: &[Candidate]) -> Option<Selection> {
    run(candidates, |_, _, _| {})
}

/// The best of `candidates`; `None` if there are none.
#[must_use]
pub fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates.get(select(candidates)?.best)
}

/// Why a path is used, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the best.
    Best,
    /// It is as good as the best in all that matters to packets, and yields only to the rule named.
    Equal(Rule),
    /// Another path beats it.
    Beaten {
        /// By this rule, the first that tells them apart.
        rule: Rule,
        /// What it has.
        has: String,
        /// What the other path has.
        other: String,
        /// Who told of the other path.
        by: IpAddr,
    },
}

impl Verdict {
    /// The lower, the further the path came in the decision.
    #[must_use]
    pub fn rank(&self) -> Reverse<u8> {
        Reverse(match self {
            Verdict::Best => u8::MAX,
            Verdict::Equal(rule) | Verdict::Beaten { rule, .. } => *rule as u8,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Best => f.write_str("best"),
            Verdict::Equal(rule) => write!(f, "as good as the best, which has the {rule}"),
            Verdict::Beaten { rule, has, other, by } => {
                write!(f, "{rule} wins: {has} here, {other} from {by}")
            }
        }
    }
}

/// The rule that decided for or against each of `candidates`, in their order.
#[must_use]
pub fn explain(candidates: &[Candidate]) -> Vec<Verdict> {
    let mut verdicts = vec![Verdict::Best; candidates.len()];
    run(candidates, |rule, struck, by| {
        let (Some(path), Some(other), Some(verdict)) = (
            candidates.get(struck),
            candidates.get(by),
            verdicts.get_mut(struck),
        ) else {
            return;
        };
        *verdict = if rule >= Rule::RouterId {
            Verdict::Equal(rule)
        } else {
            Verdict::Beaten {
                rule,
                has: value(rule, path),
                other: value(rule, other),
                by: other.from.peer,
            }
        };
    });
    verdicts
}

/// What a rule looks at, in words.
fn value(rule: Rule, path: &Candidate) -> String {
    let attributes = &path.attributes;
    match rule {
        Rule::LongLivedStale if is_long_lived_stale(path) => "stale".to_owned(),
        Rule::LongLivedStale => "fresh".to_owned(),
        Rule::LocalPref => preference(path).to_string(),
        Rule::AsPathLength => as_path_length(attributes).to_string(),
        Rule::Origin => format!("{:?}", attributes.origin),
        Rule::Med => med(path).to_string(),
        Rule::External if path.from.internal => "internal".to_owned(),
        Rule::External => "external".to_owned(),
        Rule::RouterId => originator(path).to_string(),
        Rule::ClusterList => attributes.cluster_list.len().to_string(),
        Rule::PeerAddress => path.from.peer.to_string(),
        Rule::PathId => path.received_id.to_string(),
    }
}

/// The chain. `struck` is told which path a rule strikes out, and one that beats it.
fn run(candidates: &[Candidate], mut struck: impl FnMut(Rule, usize, usize)) -> Option<Selection> {
    if let [_] = candidates {
        return Some(Selection {
            best: 0,
            equal: vec![0],
        });
    }
    let mut round = Round {
        left: candidates.iter().enumerate().collect(),
        struck: &mut struck,
    };
    round.keep_least(Rule::LongLivedStale, is_long_lived_stale);
    round.keep_least(Rule::LocalPref, |path| Reverse(preference(path)));
    round.keep_least(Rule::AsPathLength, |path| as_path_length(&path.attributes));
    round.keep_least(Rule::Origin, |path| path.attributes.origin);
    round.keep_least_med();
    round.keep_least(Rule::External, |path| path.from.internal);
    // RFC 4271 §9.1.2.2 (e), the interior cost, is the same for all: every next hop is one hop through the underlay.
    let equal = round.left.iter().map(|&(at, _)| at).collect();
    round.keep_least(Rule::RouterId, originator);
    round.keep_least(Rule::ClusterList, |path| path.attributes.cluster_list.len());
    round.keep_least(Rule::PeerAddress, |path| path.from.peer);
    round.keep_least(Rule::PathId, |path| path.received_id);
    let &(best, _) = round.left.first()?;
    Some(Selection { best, equal })
}

/// What the rules so far have left.
struct Round<'a, F> {
    left: Vec<(usize, &'a Candidate)>,
    struck: &'a mut F,
}

impl<F: FnMut(Rule, usize, usize)> Round<'_, F> {
    /// Strikes out every path whose key is not the least.
    fn keep_least<K: Ord>(&mut self, rule: Rule, key: impl Fn(&Candidate) -> K) {
        let Some((least, by)) = self.left.iter().map(|&(at, path)| (key(path), at)).min() else {
            return;
        };
        self.left.retain(|&(at, path)| {
            let stays = key(path) == least;
            if !stays {
                (self.struck)(rule, at, by);
            }
            stays
        });
    }

    /// Strikes out every path that one of the same neighbour AS beats on MULTI_EXIT_DISC.
    fn keep_least_med(&mut self) {
        let mut values = self.left.iter().map(|(_, path)| med(path));
        let first = values.next();
        if values.all(|value| Some(value) == first) {
            return;
        }
        let mut least: BTreeMap<Option<Asn>, (u32, usize)> = BTreeMap::new();
        for &(at, path) in &self.left {
            let this = (med(path), at);
            let known = least.entry(neighbour_as(&path.attributes)).or_insert(this);
            *known = this.min(*known);
        }
        self.left.retain(|&(at, path)| {
            let better = least
                .get(&neighbour_as(&path.attributes))
                .filter(|(value, _)| *value < med(path));
            if let Some(&(_, by)) = better {
                (self.struck)(Rule::Med, at, by);
            }
            better.is_none()
        });
    }
}

fn is_long_lived_stale(path: &Candidate) -> bool {
    community::has(&path.attributes, LLGR_STALE)
}

fn preference(path: &Candidate) -> u32 {
    path.attributes.local_pref.unwrap_or(DEFAULT_LOCAL_PREF)
}

/// RFC 4271 §9.1.2.2 (c): an absent MULTI_EXIT_DISC counts as the lowest.
fn med(path: &Candidate) -> u32 {
    path.attributes.med.unwrap_or(0)
}

/// RFC 4456 §9: a reflected path counts by who brought it into the AS.
fn originator(path: &Candidate) -> RouterId {
    path.attributes.originator_id.unwrap_or(path.from.router_id)
}

/// RFC 5065 §5.3: confederation segments do not count.
pub(crate) fn as_path_length(attributes: &PathAttributes) -> usize {
    let count = |segment: &AsSegment| match segment {
        AsSegment::Sequence(numbers) => numbers.len(),
        AsSegment::ConfedSequence(_) => 0,
    };
    attributes.as_path.segments.iter().map(count).sum()
}

/// RFC 4271 §9.1.2.2 (c): the leftmost AS of the path; `None` stands for our own, where the path is empty.
pub(crate) fn neighbour_as(attributes: &PathAttributes) -> Option<Asn> {
    attributes
        .as_path
        .segments
        .iter()
        .find_map(|segment| match segment {
            AsSegment::Sequence(numbers) => numbers.first().copied(),
            AsSegment::ConfedSequence(_) => None,
        })
}

#[cfg(test)]
mod tests;
