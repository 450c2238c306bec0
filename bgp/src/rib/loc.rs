//! Loc-RIB: what this speaker uses (RFC 4271 §3.2): its own routes, and the best of what import let in.

use std::collections::BTreeMap;
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

/// A path to a destination that may be told, with the Path Identifier that it is told under (RFC 7911 §3).
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
    paths: Vec<Candidate>,
    /// Of each path, as long as it is there.
    path_ids: Vec<u32>,
    /// Which of the paths is the best.
    best: usize,
    next_hops: Vec<NextHop>,
}

impl Destination {
    fn best(&self) -> Option<Best<'_>> {
        if self.local {
            return Some(Best::Local);
        }
        self.paths.get(self.best).map(Best::Learned)
    }

    fn position(&self, peer: IpAddr, received_id: u32) -> Option<usize> {
        let is_it = |path: &Candidate| path.received_id == received_id && path.from.peer == peer;
        self.paths.iter().position(is_it)
    }

    /// A number that no other path has.
    fn free_id(&self) -> u32 {
        let mut id = LOCAL_ID + 1;
        while self.path_ids.contains(&id) {
            id += 1;
        }
        id
    }

    fn insert(&mut self, path: Candidate) -> bool {
        if let Some(at) = self.position(path.from.peer, path.received_id)
            && let Some(known) = self.paths.get_mut(at)
        {
            let differs = *known != path;
            *known = path;
            return differs;
        }
        let id = self.free_id();
        if self.paths.is_empty() {
            // Most destinations have one path for ever.
            (self.paths, self.path_ids) = (vec![path], vec![id]);
        } else {
            self.paths.push(path);
            self.path_ids.push(id);
        }
        true
    }

    fn remove(&mut self, peer: IpAddr, received_id: u32) -> bool {
        let Some(at) = self.position(peer, received_id) else {
            return false;
        };
        self.paths.remove(at);
        self.path_ids.remove(at);
        true
    }

    /// Selects anew.
    fn decide(&mut self, multipath: usize) {
        self.next_hops.clear();
        let Some(Selection { best, equal }) = decision::select(&self.paths) else {
            return;
        };
        self.best = best;
        if self.local {
            return;
        }
        let hop = |at: usize| {
            self.paths.get(at).map(|path| NextHop {
                address: path.attributes.next_hop,
                peer: path.from.peer,
            })
        };
        let mut hops: Vec<NextHop> = hop(best).into_iter().collect();
        if multipath > 1 && equal.len() > 1 {
            let mut others: Vec<NextHop> = equal.into_iter().filter_map(hop).collect();
            others.sort_unstable();
            for other in others {
                if hops.len() < multipath && hops.iter().all(|known| known.address != other.address) {
                    hops.push(other);
                }
            }
        }
        self.next_hops = hops;
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
    pub fn next_hops(&self, prefix: Prefix) -> &[NextHop] {
        self.destinations.get(&prefix).map_or(&[], |at| &at.next_hops)
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
            let learned = at.paths.iter().zip(&at.path_ids).map(|(path, &path_id)| Path {
                path_id,
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
        let before = destination.paths.get(destination.best).cloned();
        let hops_before = std::mem::take(&mut destination.next_hops);
        if !edit(destination) {
            destination.next_hops = hops_before;
            if destination.best().is_none() {
                self.destinations.remove(&prefix);
            }
            return None;
        }
        destination.decide(self.multipath);
        let best = was_local != destination.local
            || (!destination.local && before.as_ref() != destination.paths.get(destination.best));
        let hops = (destination.next_hops != hops_before).then(|| destination.next_hops.clone());
        if !destination.local && destination.paths.is_empty() {
            self.destinations.remove(&prefix);
        }
        Some(Change {
            prefix,
            next_hops: hops,
            best,
        })
    }
}
