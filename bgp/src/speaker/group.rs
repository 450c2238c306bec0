//! Peers that are told the same share one Adj-RIB-Out, and the bytes that tell it: a thousand peers of a mesh cost one
//! decision, one UPDATE and a thousand references to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::id::Prefix;
use crate::policy::export::Export;
use crate::rib::adj_out::{AdjRibOut, Advertised, Difference, Pending};
use crate::rib::attributes::AttributeTable;
use crate::rib::decision::Neighbour;
use crate::rib::loc::{Best, LocRib};
use crate::wire::message::{Family, Nlri, PathAttributes};
use crate::wire::{self, Negotiated};

/// Bytes that several connections are sent are cut into pieces of about this many.
const PIECE: usize = 64 * 1024;

/// Messages, written out.
#[derive(Clone, Debug, Default)]
pub(super) struct Encoded {
    /// Each a number of messages, and their bytes.
    pub(super) pieces: Vec<(u64, Arc<Vec<u8>>)>,
}

impl Encoded {
    /// Writes out what is to be sent: withdrawals first, and each set of attributes once for all its routes.
    pub(super) fn new(pending: &Pending, negotiated: Negotiated) -> Self {
        let mut encoded = Self::default();
        let (mut count, mut bytes) = (0, Vec::new());
        let mut add = |messages: Vec<Vec<u8>>| {
            for message in messages {
                count += 1;
                bytes.extend_from_slice(&message);
                if bytes.len() >= PIECE {
                    let piece = (std::mem::take(&mut count), Arc::new(std::mem::take(&mut bytes)));
                    encoded.pieces.push(piece);
                }
            }
        };
        add(wire::encode_withdrawals(&pending.withdrawn, negotiated));
        for (attributes, routes) in &pending.announced {
            add(wire::encode_announcements(attributes, routes, negotiated));
        }
        if count > 0 {
            encoded.pieces.push((count, Arc::new(bytes)));
        }
        encoded
    }
}

/// The last path that was looked at, and what became of it: of many routes in a row it is the same.
#[derive(Clone, Debug)]
struct Last {
    attributes: Arc<PathAttributes>,
    from: Arc<Neighbour>,
    family: Family,
    told: Option<Arc<PathAttributes>>,
}

/// Peers that are told the same.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) export: Export,
    pub(super) members: BTreeSet<IpAddr>,
    pub(super) routes: AdjRibOut,
    last: Option<Last>,
}

impl Group {
    fn new(export: Export, loc: &LocRib, table: &mut AttributeTable) -> Self {
        let mut group = Self {
            export,
            members: BTreeSet::new(),
            routes: AdjRibOut::default(),
            last: None,
        };
        for (prefix, _) in loc.iter() {
            group.update(prefix, loc, table);
        }
        // Whoever joins is told all.
        group.routes.take_differences();
        group
    }

    /// Looks at a destination anew.
    fn update(&mut self, prefix: Prefix, loc: &LocRib, table: &mut AttributeTable) {
        if !self.export.tells_all_paths(prefix) {
            let route = loc
                .get(prefix)
                .and_then(|best| self.advertised(prefix, best, table));
            self.routes.set(prefix.into(), route);
            return;
        }
        let mut gone = self.routes.path_ids(prefix);
        for path in loc.paths(prefix) {
            let path_id = path.path_id;
            let route = self.advertised(prefix, path.path, table);
            self.routes.set(Nlri { prefix, path_id }, route);
            gone.retain(|&id| id != path_id);
        }
        for path_id in gone {
            self.routes.set(Nlri { prefix, path_id }, None);
        }
    }

    fn advertised(
        &mut self,
        prefix: Prefix,
        path: Best<'_>,
        table: &mut AttributeTable,
    ) -> Option<Advertised> {
        let intern = |attributes| table.intern(&attributes);
        let Best::Learned(candidate) = path else {
            let attributes = self.export.route(prefix, path).map(intern)?;
            return Some(Advertised {
                attributes,
                source: None,
            });
        };
        let source = Some(candidate.from.peer);
        let family = Family::of(prefix);
        if let Some(last) = &self.last
            && Arc::ptr_eq(&last.attributes, &candidate.attributes)
            && Arc::ptr_eq(&last.from, &candidate.from)
            && last.family == family
        {
            let attributes = last.told.clone()?;
            return Some(Advertised { attributes, source });
        }
        let told = self.export.route(prefix, path).map(intern);
        if !self.export.has_policy() {
            self.last = Some(Last {
                attributes: Arc::clone(&candidate.attributes),
                from: Arc::clone(&candidate.from),
                family,
                told: told.clone(),
            });
        }
        let attributes = told?;
        Some(Advertised { attributes, source })
    }

    /// All that `peer` is told.
    pub(super) fn all(&self, peer: IpAddr, family: Option<Family>) -> Pending {
        let mut pending = Pending::default();
        for (nlri, route) in self.routes.iter() {
            if route.is_for(peer) && family.is_none_or(|family| Family::of(nlri.prefix) == family) {
                pending.announce(nlri, &route.attributes);
            }
        }
        pending
    }

    /// What `peer`, which was told what `before` says, is to be told to know what this group knows.
    pub(super) fn difference_to(&self, before: &Group, peer: IpAddr) -> Pending {
        let view = |group: &Group| -> BTreeMap<Nlri, Advertised> {
            let routes = group.routes.iter().filter(|(_, route)| route.is_for(peer));
            routes.map(|(nlri, route)| (nlri, route.clone())).collect()
        };
        let (mut old, new) = (view(before), view(self));
        let mut pending = Pending::default();
        for (nlri, after) in new {
            let difference = Difference {
                nlri,
                before: old.remove(&nlri),
                after: Some(after),
            };
            pending.add(&difference, None);
        }
        pending.withdrawn.extend(old.into_keys());
        pending
    }
}

/// What is to be sent to one peer.
pub(super) struct Message {
    pub(super) to: IpAddr,
    pub(super) encoded: Encoded,
}

/// All groups, by a number that is not used again.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<u64, Group>,
    last: u64,
    /// Some of them have something to tell.
    dirty: bool,
}

impl Groups {
    pub(super) fn get(&self, group: u64) -> Option<&Group> {
        self.groups.get(&group)
    }

    /// Adds a peer to the group of those who are told the same, and says which that is.
    pub(super) fn join(
        &mut self,
        peer: IpAddr,
        export: Export,
        loc: &LocRib,
        table: &mut AttributeTable,
    ) -> u64 {
        let known = self.groups.iter_mut().find(|(_, group)| group.export == export);
        if let Some((&number, group)) = known {
            group.members.insert(peer);
            return number;
        }
        self.last += 1;
        let mut group = Group::new(export, loc, table);
        group.members.insert(peer);
        self.groups.insert(self.last, group);
        self.last
    }

    /// Takes a peer out, and gives the group back if it was the last.
    pub(super) fn leave(&mut self, peer: IpAddr, group: u64) {
        if let Some(left) = self.groups.get_mut(&group) {
            left.members.remove(&peer);
            if left.members.is_empty() {
                self.groups.remove(&group);
            }
        }
    }

    /// A destination has changed, in its best path or in another one.
    pub(super) fn update(&mut self, prefix: Prefix, best: bool, loc: &LocRib, table: &mut AttributeTable) {
        for group in self.groups.values_mut() {
            if best || group.export.tells_all_paths(prefix) {
                group.update(prefix, loc, table);
                self.dirty |= group.routes.has_differences();
            }
        }
    }

    /// What the members are to be told of what has changed since the last call.
    pub(super) fn flush(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        if !std::mem::take(&mut self.dirty) {
            return messages;
        }
        for group in self.groups.values_mut() {
            let differences = group.routes.take_differences();
            if differences.is_empty() {
                continue;
            }
            let negotiated = group.export.negotiated;
            // Whoever is the source of one of the routes is told something of its own.
            let sources: BTreeSet<IpAddr> = differences
                .iter()
                .flat_map(|one| one.before.iter().chain(&one.after))
                .filter_map(|route| route.source)
                .collect();
            let pending = |peer| {
                let mut pending = Pending::default();
                for difference in &differences {
                    pending.add(difference, peer);
                }
                Encoded::new(&pending, negotiated)
            };
            let mut shared = None;
            for &to in &group.members {
                let encoded = if sources.contains(&to) {
                    pending(Some(to))
                } else {
                    shared.get_or_insert_with(|| pending(None)).clone()
                };
                messages.push(Message { to, encoded });
            }
        }
        messages
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }
}
