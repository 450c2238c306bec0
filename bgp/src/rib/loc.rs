//! Loc-RIB: what this speaker uses (RFC 4271 §3.2): its own routes, and the best of what import let in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::decision::{self, Candidate};
use crate::id::{NextHop, Prefix};

/// The route in use for a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Best {
    /// This node originates the prefix: nothing that a peer says of it is used.
    Local,
    /// The best path that a peer announced.
    Learned(Candidate),
}

impl Best {
    /// Where packets go. `None` for a route of our own: the node delivers those itself.
    #[must_use]
    pub fn next_hop(&self) -> Option<NextHop> {
        match self {
            Best::Local => None,
            Best::Learned(path) => Some(NextHop {
                address: path.attributes.next_hop,
                peer: path.peer,
            }),
        }
    }

    /// Whether it did not come from an internal peer, so that internal peers are told of it (RFC 4271 §9.2).
    #[must_use]
    pub fn is_outward(&self) -> bool {
        match self {
            Best::Local => true,
            Best::Learned(path) => !path.internal,
        }
    }
}

/// The route in use for a prefix has become another one, or there is none any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BestChange {
    /// The destination.
    pub prefix: Prefix,
    /// What was in use.
    pub before: Option<Best>,
    /// What is in use now.
    pub after: Option<Best>,
}

#[derive(Clone, Debug, Default)]
struct Destination {
    local: bool,
    candidates: Vec<Candidate>,
    best: Option<Best>,
}

/// The routes in use and, for each destination, the paths they were chosen from.
#[derive(Clone, Debug, Default)]
pub struct LocRib {
    destinations: BTreeMap<Prefix, Destination>,
    /// The prefixes whose route in use is outward: few, where most routes came from internal peers.
    outward: BTreeSet<Prefix>,
}

impl LocRib {
    /// Adds a path, in place of one that the same peer gave before.
    pub fn insert(&mut self, prefix: Prefix, path: Candidate) -> Option<BestChange> {
        self.change(prefix, |destination| {
            match destination
                .candidates
                .iter_mut()
                .find(|old| old.peer == path.peer)
            {
                Some(old) => *old = path,
                None => destination.candidates.push(path),
            }
        })
    }

    /// Removes the path of `peer`.
    pub fn remove(&mut self, prefix: Prefix, peer: IpAddr) -> Option<BestChange> {
        if !self.destinations.contains_key(&prefix) {
            return None;
        }
        self.change(prefix, |destination| {
            destination.candidates.retain(|path| path.peer != peer);
        })
    }

    /// Says whether this node originates `prefix`.
    pub fn set_local(&mut self, prefix: Prefix, local: bool) -> Option<BestChange> {
        self.change(prefix, |destination| destination.local = local)
    }

    /// The route in use for `prefix`.
    #[must_use]
    pub fn get(&self, prefix: Prefix) -> Option<&Best> {
        self.destinations.get(&prefix)?.best.as_ref()
    }

    /// The routes in use, in order of their prefix.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &Best)> {
        self.destinations
            .iter()
            .filter_map(|(&prefix, at)| Some((prefix, at.best.as_ref()?)))
    }

    /// Those of them that are outward ([`Best::is_outward`]).
    pub fn outward(&self) -> impl Iterator<Item = (Prefix, &Best)> {
        self.outward
            .iter()
            .filter_map(|&prefix| Some((prefix, self.get(prefix)?)))
    }

    fn change(&mut self, prefix: Prefix, edit: impl FnOnce(&mut Destination)) -> Option<BestChange> {
        let destination = self.destinations.entry(prefix).or_default();
        edit(destination);
        let after = if destination.local {
            Some(Best::Local)
        } else {
            decision::best(&destination.candidates)
                .cloned()
                .map(Best::Learned)
        };
        let before = std::mem::replace(&mut destination.best, after.clone());
        if after.is_none() {
            self.destinations.remove(&prefix);
        }
        if before == after {
            return None;
        }
        if after.as_ref().is_some_and(Best::is_outward) {
            self.outward.insert(prefix);
        } else {
            self.outward.remove(&prefix);
        }
        Some(BestChange {
            prefix,
            before,
            after,
        })
    }
}
