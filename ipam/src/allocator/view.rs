//! What was read of the store, and kept up to date with what was written.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::affinity::Affinity;
use crate::block::Block;
use crate::check::{self, BlockFault};
use crate::handle::Handle;
use crate::limits::Limits;
use crate::name;
use crate::pool::Pools;
use crate::ranges::Ranges;

use super::object::{Key, Kind, Object, Read, Write};
use super::request::Freed;
use super::{Change, Halt, Progress};

/// What allocation goes by, besides the objects that it reads and writes.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// All pools, as the node of the requests may use them.
    pub pools: Pools,
    /// Addresses that are given out only by name (the ranges of all IPReservations).
    pub reserved: Ranges,
    /// Settings.
    pub limits: Limits,
}

/// What is known of one object.
#[derive(Clone, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all objects that are seen are there"
)]
enum Seen {
    /// It was known, and is not any more.
    Forgotten,
    Absent {
        /// When it was last seen to be.
        last: u64,
    },
    Present {
        revision: String,
        object: Object,
        since: Since,
        /// Of a block: what is wrong with it. It is looked at by every plan, and changes with the object only.
        fault: Option<Box<BlockFault>>,
    },
    Unreadable(String),
}

/// How the present state of an object came to be known, and when: as the number of the read or write among those of the
/// view.
#[derive(Clone, Copy, Debug)]
struct Since {
    /// When this state was first seen or written.
    first: u64,
    /// When it was last seen to be this one.
    last: u64,
    written: bool,
}

/// A block, as far as a planner cares.
pub(super) enum BlockSeen<'a> {
    /// There is none.
    Absent,
    /// It is deleted, but still in the way of a new one.
    Deleted { revision: &'a str },
    /// It is there.
    Present {
        revision: &'a str,
        block: &'a Block,
        /// What is wrong with it.
        fault: Option<&'a BlockFault>,
    },
    /// It is there, whatever it is.
    Unreadable { reason: &'a str },
}

/// A handle, as far as a planner cares.
pub(super) enum HandleSeen<'a> {
    /// Nobody has looked.
    Unknown,
    Absent,
    Deleted {
        revision: &'a str,
    },
    Present {
        revision: &'a str,
        handle: &'a Handle,
    },
    Unreadable {
        reason: &'a str,
    },
}

/// An affinity: its object's name and revision, and what it says.
#[derive(Clone, Copy)]
pub(super) struct AffinitySeen<'a> {
    pub(super) name: &'a str,
    pub(super) revision: &'a str,
    pub(super) affinity: &'a Affinity,
}

/// What was read: the policy, and of the objects those that the planner asked for, or that its driver was told about by
/// other ways.
///
/// It may be out of date from the first moment; that shows when a write is refused, and then what was refused is
/// forgotten and read again. So it may live as long as its driver, and be kept fresh from a watch.
#[derive(Clone, Debug, Default)]
pub struct View {
    policy: Policy,
    /// When all objects of a kind were last read.
    listed: BTreeMap<Kind, u64>,
    /// Nodes whose affinities are known from a memory, where not all affinities were read.
    recalled: BTreeSet<String>,
    /// Counts reads and writes.
    turn: u64,
    seen: BTreeMap<Key, Seen>,
    /// What is to be read again.
    forgotten: BTreeSet<Key>,
    /// The names of the affinities of each node.
    of_node: BTreeMap<String, BTreeSet<String>>,
    /// By how much the counts of handles (by name) are still to be lowered, by block, after addresses were given back.
    owed: BTreeMap<String, BTreeMap<IpNet, u32>>,
}

impl View {
    /// A view of which nothing was read yet but the policy.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            ..Self::default()
        }
    }

    /// Goes by another policy from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What it goes by.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Takes in all objects of a kind: name, revision, spec. Those it had and that are not among them are gone.
    pub fn listed(&mut self, kind: Kind, objects: impl IntoIterator<Item = (String, String, Object)>) {
        let old: Vec<Key> = self
            .seen
            .iter()
            .filter(|(key, seen)| key.kind == kind && !matches!(seen, Seen::Unreadable(_)))
            .map(|(key, _)| key.clone())
            .collect();
        let mut kept = BTreeMap::new();
        for key in old {
            if let Some(seen) = self.remove(&key) {
                kept.insert(key, seen);
            }
        }
        self.turn += 1;
        for (name, revision, object) in objects {
            let key = Key::new(kind, name);
            let seen = self.present(kept.get(&key), revision, object, false);
            self.insert(key, seen);
        }
        self.listed.insert(kind, self.turn);
    }

    /// Takes in all affinities of a node (name, revision, spec) as they were some time ago, where to read those of all nodes
    /// costs too much. That is enough to try a write, which is refused where they are too old. It is not enough for a claim,
    /// which asks for all of them still, nor for the driver to refuse a request: [`View::recalled_no_more`].
    ///
    /// Nothing else may have been taken in before.
    pub fn recalled(&mut self, node: &str, affinities: impl IntoIterator<Item = (String, String, Affinity)>) {
        self.turn += 1;
        for (name, revision, affinity) in affinities {
            let seen = self.present(None, revision, Object::Affinity(affinity), false);
            self.insert(Key::new(Kind::Affinity, name), seen);
        }
        self.recalled.insert(node.to_owned());
    }

    /// Goes by memories no longer: what comes of the next plan comes of what was read.
    pub fn recalled_no_more(&mut self) {
        self.recalled.clear();
    }

    /// Takes in one object: its revision and spec, or that there is none.
    pub fn got(&mut self, key: Key, object: Option<(String, Object)>) {
        self.turn += 1;
        let seen = match object {
            Some((revision, object)) => {
                let old = self.remove(&key);
                self.present(old.as_ref(), revision, object, false)
            }
            None => {
                if key.kind == Kind::Handle {
                    self.owed.remove(&key.name);
                }
                Seen::Absent { last: self.turn }
            }
        };
        self.insert(key, seen);
    }

    /// Takes in that an object is there, but is not what its kind says.
    pub fn unreadable(&mut self, key: Key, reason: String) {
        self.insert(key, Seen::Unreadable(reason));
    }

    /// Takes in that a change was written; `revision` is the object's new one (of no meaning after a deletion).
    pub fn wrote(&mut self, change: Change, revision: String) {
        self.turn += 1;
        let key = change.write.key();
        for freed in &change.frees {
            self.owe(&key, freed);
        }
        if key.kind == Kind::Handle && change.settles {
            self.owed.remove(&key.name);
        }
        let seen = match change.write {
            Write::Create { object, .. } | Write::Update { object, .. } => {
                self.present(None, revision, object, true)
            }
            Write::Delete { .. } => Seen::Absent { last: self.turn },
        };
        self.insert(key, seen);
    }

    /// Forgets an object, so that it is read again: after a write to it was refused.
    pub fn forget(&mut self, key: Key) {
        self.insert(key, Seen::Forgotten);
    }

    /// The revision at which an object is known, for a driver that is told of it by a watch too.
    #[must_use]
    pub fn revision(&self, key: &Key) -> Option<&str> {
        match self.seen.get(key) {
            Some(Seen::Present { revision, .. }) => Some(revision),
            _ => None,
        }
    }

    fn owe(&mut self, block: &Key, freed: &Freed) {
        let (Some(handle), Some(Seen::Present { object, .. })) = (&freed.handle, self.seen.get(block)) else {
            return;
        };
        let name = name::handle(handle);
        let is_gone = match self.seen.get(&Key::new(Kind::Handle, name.as_str())) {
            Some(Seen::Absent { .. }) => true,
            None => self.listed.contains_key(&Kind::Handle),
            Some(_) => false,
        };
        if is_gone {
            return;
        }
        if let Object::Block(block) = object {
            let cidr = block.cidr;
            let owed = self.owed.entry(name).or_default();
            *owed.entry(cidr).or_default() += 1;
        }
    }

    fn present(&self, old: Option<&Seen>, revision: String, object: Object, written: bool) -> Seen {
        let mut since = Since {
            first: self.turn,
            last: self.turn,
            written,
        };
        // The same state seen again.
        if let Some(Seen::Present {
            revision: known,
            since: before,
            ..
        }) = old
            && *known == revision
        {
            since.first = before.first;
            since.written = before.written;
        }
        let fault = match &object {
            Object::Block(block) => check::block(block).err().map(Box::new),
            Object::Affinity(_) | Object::Handle(_) => None,
        };
        Seen::Present {
            revision,
            object,
            since,
            fault,
        }
    }

    fn insert(&mut self, key: Key, seen: Seen) {
        self.remove(&key);
        if let Some(node) = node_of(&seen) {
            self.of_node
                .entry(node.to_owned())
                .or_default()
                .insert(key.name.clone());
        }
        if matches!(seen, Seen::Forgotten) {
            self.forgotten.insert(key.clone());
        }
        self.seen.insert(key, seen);
    }

    fn remove(&mut self, key: &Key) -> Option<Seen> {
        self.forgotten.remove(key);
        let seen = self.seen.remove(key)?;
        if let Some(node) = node_of(&seen)
            && let Some(names) = self.of_node.get_mut(node)
        {
            names.remove(&key.name);
        }
        Some(seen)
    }

    fn since(&self, kind: Kind, name: &str) -> Option<Since> {
        match self.seen.get(&Key::new(kind, name)) {
            Some(Seen::Present { since, .. }) => Some(*since),
            _ => None,
        }
    }

    /// Whether the view itself wrote this block, after this affinity came to be as it is.
    pub(super) fn wrote_block_after(&self, cidr: IpNet, affinity: &str) -> bool {
        let block = self.since(Kind::Block, &name::block(cidr));
        let affinity = self.since(Kind::Affinity, affinity);
        block
            .zip(affinity)
            .is_some_and(|(block, affinity)| block.written && block.first > affinity.first)
    }

    /// Whether this affinity was seen to be as it is after this block was.
    pub(super) fn saw_affinity_after(&self, affinity: &str, cidr: IpNet) -> bool {
        let block = self.since(Kind::Block, &name::block(cidr));
        let affinity = self.since(Kind::Affinity, affinity);
        block
            .zip(affinity)
            .is_some_and(|(block, affinity)| affinity.last > block.first)
    }

    /// The counts of handles that are still to be lowered.
    pub(super) fn owed(&self) -> &BTreeMap<String, BTreeMap<IpNet, u32>> {
        &self.owed
    }

    /// Makes sure that this affinity, which is not there, was not there after this block came to be as it is.
    pub(super) fn missed_affinity_after(&self, affinity: &str, cidr: IpNet) -> Progress<()> {
        let key = Key::new(Kind::Affinity, affinity);
        let last = match self.seen.get(&key) {
            Some(Seen::Absent { last }) => Some(*last),
            None => self.listed.get(&Kind::Affinity).copied(),
            Some(_) => None,
        };
        let block = self.since(Kind::Block, &name::block(cidr));
        match last.zip(block) {
            Some((last, block)) if last > block.first => Ok(()),
            _ => Err(Halt::Read(Read::Get(key))),
        }
    }

    /// What is known of an object; `None` when all of its kind were read, and it was not among them.
    fn look(&self, kind: Kind, name: &str) -> Progress<Option<&Seen>> {
        let key = Key::new(kind, name);
        match self.seen.get(&key) {
            None if self.listed.contains_key(&kind) => Ok(None),
            None | Some(Seen::Forgotten) => Err(Halt::Read(Read::Get(key))),
            Some(seen) => Ok(Some(seen)),
        }
    }

    /// Whether an object of this name is there, for all that is known.
    pub(super) fn is_there(&self, kind: Kind, name: &str) -> Progress<bool> {
        Ok(!matches!(
            self.look(kind, name)?,
            None | Some(Seen::Absent { .. })
        ))
    }

    pub(super) fn block(&self, cidr: IpNet) -> Progress<BlockSeen<'_>> {
        let Some(seen) = self.look(Kind::Block, &name::block(cidr))? else {
            return Ok(BlockSeen::Absent);
        };
        Ok(match seen {
            Seen::Present {
                revision,
                object: Object::Block(block),
                ..
            } if block.deleted => BlockSeen::Deleted { revision },
            Seen::Present {
                object: Object::Block(block),
                ..
            } if block.cidr != cidr => BlockSeen::Unreadable {
                reason: "its cidr is that of another block than its name",
            },
            Seen::Present {
                revision,
                object: Object::Block(block),
                fault,
                ..
            } => BlockSeen::Present {
                revision,
                block,
                fault: fault.as_deref(),
            },
            Seen::Unreadable(reason) => BlockSeen::Unreadable { reason },
            Seen::Absent { .. } | Seen::Forgotten | Seen::Present { .. } => BlockSeen::Absent,
        })
    }

    /// A handle, even one that nobody has looked for yet.
    pub(super) fn handle_unread(&self, id: &str) -> Progress<HandleSeen<'_>> {
        let key = Key::new(Kind::Handle, name::handle(id));
        if !self.seen.contains_key(&key) && !self.listed.contains_key(&Kind::Handle) {
            return Ok(HandleSeen::Unknown);
        }
        self.handle(id)
    }

    pub(super) fn handle(&self, id: &str) -> Progress<HandleSeen<'_>> {
        let Some(seen) = self.look(Kind::Handle, &name::handle(id))? else {
            return Ok(HandleSeen::Absent);
        };
        Ok(match seen {
            Seen::Present {
                revision,
                object: Object::Handle(handle),
                ..
            } if handle.deleted => HandleSeen::Deleted { revision },
            Seen::Present {
                revision,
                object: Object::Handle(handle),
                ..
            } => HandleSeen::Present { revision, handle },
            Seen::Unreadable(reason) => HandleSeen::Unreadable { reason },
            Seen::Absent { .. } | Seen::Forgotten | Seen::Present { .. } => HandleSeen::Absent,
        })
    }

    /// The affinity of a node to a block; `None` when there is none, or none that can be read.
    pub(super) fn affinity(&self, node: &str, cidr: IpNet) -> Progress<Option<AffinitySeen<'_>>> {
        let key = Key::new(Kind::Affinity, name::affinity(node, cidr));
        self.look(Kind::Affinity, &key.name)?;
        Ok(self.seen.get_key_value(&key).and_then(affinity_seen))
    }

    /// All affinities that can be read, deleted ones too.
    pub(super) fn affinities(&self) -> Progress<Vec<AffinitySeen<'_>>> {
        self.all(Kind::Affinity)?;
        let first = Key::new(Kind::Affinity, "");
        Ok(self
            .seen
            .range(first..)
            .take_while(|(key, _)| key.kind == Kind::Affinity)
            .filter_map(affinity_seen)
            .collect())
    }

    /// All affinities of a host that can be read, deleted ones too.
    pub(super) fn affinities_of(&self, node: &str) -> Progress<Vec<AffinitySeen<'_>>> {
        if !self.recalled.contains(node) {
            self.all(Kind::Affinity)?;
        }
        self.none_forgotten(Kind::Affinity)?;
        let names = self.of_node.get(node).into_iter().flatten();
        let seen = names.filter_map(|name| self.seen.get_key_value(&Key::new(Kind::Affinity, name.as_str())));
        Ok(seen
            .filter_map(affinity_seen)
            .filter(|a| a.affinity.is_of_node(node))
            .collect())
    }

    /// All blocks that can be read and are not deleted.
    pub(super) fn blocks(&self) -> Progress<Vec<&Block>> {
        self.all(Kind::Block)?;
        let first = Key::new(Kind::Block, "");
        Ok(self
            .seen
            .range(first..)
            .take_while(|(key, _)| key.kind == Kind::Block)
            .filter_map(|(_, seen)| match seen {
                Seen::Present {
                    object: Object::Block(block),
                    ..
                } => (!block.deleted).then_some(block),
                _ => None,
            })
            .collect())
    }

    /// Makes sure that all objects of a kind are known.
    fn all(&self, kind: Kind) -> Progress<()> {
        if !self.listed.contains_key(&kind) {
            return Err(Halt::Read(Read::List(kind)));
        }
        self.none_forgotten(kind)
    }

    fn none_forgotten(&self, kind: Kind) -> Progress<()> {
        let forgotten = self.forgotten.range(Key::new(kind, "")..).next();
        let forgotten = forgotten.filter(|key| key.kind == kind);
        forgotten.map_or(Ok(()), |key| Err(Halt::Read(Read::Get(key.clone()))))
    }
}

fn node_of(seen: &Seen) -> Option<&str> {
    match seen {
        Seen::Present {
            object: Object::Affinity(affinity),
            ..
        } => Some(&affinity.node),
        _ => None,
    }
}

fn affinity_seen<'a>((key, seen): (&'a Key, &'a Seen)) -> Option<AffinitySeen<'a>> {
    match seen {
        Seen::Present {
            revision,
            object: Object::Affinity(affinity),
            ..
        } => Some(AffinitySeen {
            name: &key.name,
            revision,
            affinity,
        }),
        _ => None,
    }
}
