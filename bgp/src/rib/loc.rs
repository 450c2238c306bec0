//! Loc-RIB: what this speaker uses (RFC 4271 §3.2): its own routes, and the best of what import let in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::decision::{self, Candidate, Selection};
use crate::id::{NextHop, Prefix};

/// The route in use for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Best<'a> {
    /// This node originates the prefix: nothing that a peer says of it is used.
    Local,
    /// The best path that a peer announced.
    Learned(&'a Candidate),
}

/// A path to a destination that may be told, with the Path Identifier that it is told under (RFC 7911 §3, §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// Ours: it says nothing about the one that the path came with.
    pub path_id: u32,
    /// The path.
    pub path: Best<'a>,
}

/// The Path Identifier of what this node originates.
const LOCAL_ID: u32 = 1;

/// What is known of a destination has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The destination.
    pub prefix: Prefix,
    /// Where packets go from now on, if that has changed; none for a route of our own, or where there is none.
    pub next_hops: Option<Vec<NextHop>>,
    /// The best path has changed. If not, one of the others has.
    pub best: bool,
}

#[derive(Clone, Debug, Default)]
struct Destination {
    local: bool,
    /// Which of the paths is the best.
    best: u32,
    paths: Vec<Candidate>,
    /// Where packets go besides the next hop of the best path. Mostly nowhere, so that it takes no memory.
    others: Vec<NextHop>,
}

fn next_hop(path: &Candidate) -> NextHop {
    NextHop {
        address: path.attributes.next_hop,
        peer: path.from.peer,
    }
}

impl Destination {
    fn best_path(&self) -> Option<&Candidate> {
        self.paths.get(usize::try_from(self.best).ok()?)
    }

    fn best(&self) -> Option<Best<'_>> {
        if self.local {
            return Some(Best::Local);
        }
        self.best_path().map(Best::Learned)
    }

    /// Where packets go; nowhere from here for what this node originates: it delivers that itself.
    fn next_hops(&self) -> impl Iterator<Item = NextHop> {
        let learned = (!self.local).then(|| self.best_path().map(next_hop)).flatten();
        let others = learned.is_some().then_some(&self.others);
        learned.into_iter().chain(others.into_iter().flatten().copied())
    }

    fn position(&self, peer: IpAddr, received_id: u32) -> Option<usize> {
        let is_it = |path: &Candidate| path.received_id == received_id && path.from.peer == peer;
        self.paths.iter().position(is_it)
    }

    /// A number that no other path has.
    fn free_id(&self) -> u32 {
        let ids = || self.paths.iter().map(|path| path.path_id);
        let highest = ids().max().unwrap_or(LOCAL_ID);
        highest.checked_add(1).unwrap_or_else(|| {
            let taken: BTreeSet<u32> = ids().collect();
            let mut free = LOCAL_ID + 1;
            while taken.contains(&free) {
                free += 1;
            }
            free
        })
    }

    fn insert(&mut self, mut path: Candidate) -> bool {
        if let Some(at) = self.position(path.from.peer, path.received_id)
            && let Some(known) = self.paths.get_mut(at)
        {
            path.path_id = known.path_id;
            let differs = *known != path;
            *known = path;
            return differs;
        }
        path.path_id = self.free_id();
        if self.paths.is_empty() {
            // Most destinations have one path for ever.
            self.paths = vec![path];
        } else {
            self.paths.push(path);
        }
        true
    }

    fn remove(&mut self, peer: IpAddr, received_id: u32) -> bool {
        let Some(at) = self.position(peer, received_id) else {
            return false;
        };
        self.paths.remove(at);
        true
    }

    /// Selects anew.
    fn decide(&mut self, multipath: usize) {
        self.best = 0;
        self.others.clear();
        // What is ours needs no decision: all nodes may announce a destination that all of them originate.
        if self.local || self.paths.len() < 2 {
            return;
        }
        let Some(Selection { best, equal }) = decision::select(&self.paths) else {
            return;
        };
        self.best = u32::try_from(best).unwrap_or(0);
        let Some(first) = self.paths.get(best).map(next_hop) else {
            return;
        };
        if multipath > 1 && equal.len() > 1 {
            let mut equal: Vec<NextHop> = equal
                .into_iter()
                .filter_map(|at| self.paths.get(at).map(next_hop))
                .collect();
            equal.sort_unstable();
            for hop in equal {
                let is_new = hop.address != first.address
                    && self.others.iter().all(|known| known.address != hop.address);
                if is_new && self.others.len() + 1 < multipath {
                    self.others.push(hop);
                }
            }
        }
    }
}

/// The routes in use and, for each destination, the paths they were chosen from.
#[derive(Clone, Debug)]
pub struct LocRib {
    destinations: BTreeMap<Prefix, Destination>,
    multipath: usize,
}

impl LocRib {
    /// One that gives a route up to `multipath` next hops.
    #[must_use]
    pub fn new(multipath: usize) -> Self {
        Self {
            destinations: BTreeMap::new(),
            multipath,
        }
    }

    /// Adds a path, in place of one that the same peer gave before under the same Path Identifier.
    pub fn insert(&mut self, prefix: Prefix, path: Candidate) -> Option<Change> {
        self.change(prefix, |destination| destination.insert(path))
    }

    /// Removes the path of `peer` with a Path Identifier.
    pub fn remove(&mut self, prefix: Prefix, peer: IpAddr, received_id: u32) -> Option<Change> {
        if !self.destinations.contains_key(&prefix) {
            return None;
        }
        self.change(prefix, |destination| destination.remove(peer, received_id))
    }

    /// Says whether this node originates `prefix`.
    pub fn set_local(&mut self, prefix: Prefix, local: bool) -> Option<Change> {
        self.change(prefix, |destination| {
            std::mem::replace(&mut destination.local, local) != local
        })
    }

    /// The route in use for `prefix`.
    #[must_use]
    pub fn get(&self, prefix: Prefix) -> Option<Best<'_>> {
        self.destinations.get(&prefix)?.best()
    }

    /// Where packets for `prefix` go.
    #[must_use]
    pub fn next_hops(&self, prefix: Prefix) -> Vec<NextHop> {
        let destination = self.destinations.get(&prefix);
        destination.map_or_else(Vec::new, |at| at.next_hops().collect())
    }

    /// The paths of peers to `prefix`, in no order.
    #[must_use]
    pub fn candidates(&self, prefix: Prefix) -> &[Candidate] {
        self.destinations.get(&prefix).map_or(&[], |at| &at.paths)
    }

    /// All paths to `prefix`, that of this node first.
    pub fn paths(&self, prefix: Prefix) -> impl Iterator<Item = Path<'_>> {
        self.destinations.get(&prefix).into_iter().flat_map(|at| {
            let local = at.local.then_some(Path {
                path_id: LOCAL_ID,
                path: Best::Local,
            });
            let learned = at.paths.iter().map(|path| Path {
                path_id: path.path_id,
                path: Best::Learned(path),
            });
            local.into_iter().chain(learned)
        })
    }

    /// The routes in use, in order of their prefix.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, Best<'_>)> {
        self.destinations
            .iter()
            .filter_map(|(&prefix, at)| Some((prefix, at.best()?)))
    }

    /// How many destinations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.destinations.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.destinations.is_empty()
    }

    fn change(&mut self, prefix: Prefix, edit: impl FnOnce(&mut Destination) -> bool) -> Option<Change> {
        let destination = self.destinations.entry(prefix).or_default();
        let was_local = destination.local;
        let before = destination.best_path().cloned();
        let others = std::mem::take(&mut destination.others);
        if !edit(destination) {
            destination.others = others;
            if destination.best().is_none() {
                self.destinations.remove(&prefix);
            }
            return None;
        }
        destination.decide(self.multipath);
        let best = was_local != destination.local
            || (!destination.local && before.as_ref() != destination.best_path());
        let hop_before = before.as_ref().filter(|_| !was_local).map(next_hop);
        let hops_before = hop_before
            .into_iter()
            .chain(others.into_iter().filter(|_| !was_local));
        let next_hops = if destination.next_hops().eq(hops_before) {
            None
        } else {
            Some(destination.next_hops().collect())
        };
        if destination.best().is_none() {
            self.destinations.remove(&prefix);
        }
        Some(Change {
            prefix,
            next_hops,
            best,
        })
    }
}
