//! What was read of the store for one request, and kept up to date with what was written for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;

use crate::affinity::Affinity;
use crate::block::Block;
use crate::error::PoolRefusal;
use crate::handle::Handle;
use crate::name;
use crate::pool::{Family, Pool, PoolError, Refusal, Use};

use super::{Halt, Progress, Read, Step, Write};

/// Blocks a node may have when the configuration gives no number.
const DEFAULT_MAX_BLOCKS_PER_HOST: u32 = 20;

/// The kinds of objects that allocation reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// BlockAffinity.
    Affinity,
    /// IPAMBlock.
    Block,
    /// IPAMHandle.
    Handle,
}

/// An object's kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its `metadata.name`.
    pub name: String,
}

impl Key {
    /// The key of the object of this kind and name.
    #[must_use]
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Affinity => "BlockAffinity",
            Kind::Block => "IPAMBlock",
            Kind::Handle => "IPAMHandle",
        };
        write!(f, "{kind} {}", self.name)
    }
}

/// The spec of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// Of a BlockAffinity.
    Affinity(Affinity),
    /// Of an IPAMBlock.
    Block(Block),
    /// Of an IPAMHandle.
    Handle(Handle),
}

impl Object {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Object::Affinity(_) => Kind::Affinity,
            Object::Block(_) => Kind::Block,
            Object::Handle(_) => Kind::Handle,
        }
    }
}

/// Settings of allocation (Calico's IPAMConfig).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A node hands out addresses of its own blocks only. It does so here in any case: borrowing from others' blocks, which
    /// `false` would allow, is not done.
    pub strict_affinity: bool,
    /// A node whose blocks are full claims another.
    pub auto_allocate_blocks: bool,
    /// Most blocks a node may have of each family; 0 means 20.
    pub max_blocks_per_host: u32,
    /// Seconds for which a released address rests before it is free.
    pub cooldown_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            cooldown_seconds: 0,
        }
    }
}

impl Limits {
    /// Most blocks a node may have of each family.
    #[must_use]
    pub fn max_blocks(&self) -> u32 {
        match self.max_blocks_per_host {
            0 => DEFAULT_MAX_BLOCKS_PER_HOST,
            given => given,
        }
    }
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
    Absent,
    Present {
        revision: String,
        object: Object,
        since: Since,
    },
    Unreadable(String),
}

/// How the present state of an object came to be known, and when: as the number of the read or write among those of the
/// view.
#[derive(Clone, Copy, Debug)]
struct Since {
    turn: u64,
    written: bool,
}

/// A block, as far as a planner cares.
pub(super) enum BlockSeen<'a> {
    /// There is none.
    Absent,
    /// It is deleted, but still in the way of a new one.
    Deleted { revision: &'a str },
    /// It is there.
    Present { revision: &'a str, block: &'a Block },
    /// It is there, whatever it is.
    Unreadable { reason: &'a str },
}

/// A handle, as far as a planner cares.
pub(super) enum HandleSeen<'a> {
    Absent,
    Deleted { revision: &'a str },
    Present { revision: &'a str, handle: &'a Handle },
    Unreadable { reason: &'a str },
}

/// What was read: the pools and limits, and of the objects those that the planner asked for.
///
/// It may be out of date from the first moment; that shows when a write is refused, and then what was refused is
/// forgotten and read again.
#[derive(Clone, Debug, Default)]
pub struct View {
    pools: Vec<Pool>,
    wrong_pools: Vec<PoolError>,
    limits: Limits,
    listed: BTreeSet<Kind>,
    /// Counts reads and writes.
    turn: u64,
    seen: BTreeMap<Key, Seen>,
}

impl View {
    /// A view of which nothing was read yet but the pools (in the order in which they are to be used; those that are
    /// wrong are only told about) and the limits.
    #[must_use]
    pub fn new(pools: impl IntoIterator<Item = Result<Pool, PoolError>>, limits: Limits) -> Self {
        let mut view = Self {
            limits,
            ..Self::default()
        };
        for pool in pools {
            match pool {
                Ok(pool) => view.pools.push(pool),
                Err(error) => view.wrong_pools.push(error),
            }
        }
        view
    }

    /// Takes in all objects of a kind: name, revision, spec. Those it had and that are not among them are gone.
    pub fn listed(&mut self, kind: Kind, objects: impl IntoIterator<Item = (String, String, Object)>) {
        self.seen
            .retain(|key, seen| key.kind != kind || matches!(seen, Seen::Unreadable(_)));
        let since = self.next_turn(false);
        for (name, revision, object) in objects {
            let seen = Seen::Present {
                revision,
                object,
                since,
            };
            self.seen.insert(Key::new(kind, name), seen);
        }
        self.listed.insert(kind);
    }

    /// Takes in one object: its revision and spec, or that there is none.
    pub fn got(&mut self, key: Key, object: Option<(String, Object)>) {
        let seen = match object {
            Some((revision, object)) => Seen::Present {
                revision,
                object,
                since: self.next_turn(false),
            },
            None => Seen::Absent,
        };
        self.seen.insert(key, seen);
    }

    /// Takes in that an object is there, but is not what its kind says.
    pub fn unreadable(&mut self, key: Key, reason: String) {
        self.seen.insert(key, Seen::Unreadable(reason));
    }

    /// Takes in that a write succeeded; `revision` is the object's new one (of no meaning after a deletion).
    pub fn wrote(&mut self, write: Write, revision: String) {
        let key = write.key();
        let seen = match write {
            Write::Create { object, .. } | Write::Update { object, .. } => Seen::Present {
                revision,
                object,
                since: self.next_turn(true),
            },
            Write::Delete { .. } => Seen::Absent,
        };
        self.seen.insert(key, seen);
    }

    /// Forgets an object, so that it is read again: after a write to it was refused.
    pub fn forget(&mut self, key: Key) {
        self.seen.insert(key, Seen::Forgotten);
    }

    fn next_turn(&mut self, written: bool) -> Since {
        self.turn += 1;
        Since {
            turn: self.turn,
            written,
        }
    }

    fn since(&self, kind: Kind, name: &str) -> Option<Since> {
        match self.seen.get(&Key::new(kind, name)) {
            Some(Seen::Present { since, .. }) => Some(*since),
            _ => None,
        }
    }

    /// Whether the view itself wrote this block, after it learned the present state of this affinity.
    pub(super) fn wrote_block_after(&self, cidr: IpNet, affinity: &str) -> bool {
        let block = self.since(Kind::Block, &name::block(cidr));
        let affinity = self.since(Kind::Affinity, affinity);
        block
            .zip(affinity)
            .is_some_and(|(block, affinity)| block.written && block.turn > affinity.turn)
    }

    /// Whether the view learned the present state of this affinity after that of this block.
    pub(super) fn saw_affinity_after(&self, affinity: &str, cidr: IpNet) -> bool {
        let block = self.since(Kind::Block, &name::block(cidr));
        let affinity = self.since(Kind::Affinity, affinity);
        block
            .zip(affinity)
            .is_some_and(|(block, affinity)| affinity.turn > block.turn)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The pools from which such addresses may come, in order.
    pub(super) fn pools_for(&self, usage: Use, family: Family) -> impl Iterator<Item = &Pool> {
        self.pools
            .iter()
            .filter(move |p| p.family() == family && p.refusal(usage).is_none())
    }

    /// Whether a block of this range may be made at all.
    pub(super) fn may_have_block(&self, cidr: IpNet) -> bool {
        let usable = |p: &Pool| {
            [Use::Workload, Use::Tunnel]
                .into_iter()
                .any(|u| p.refusal(u).is_none())
        };
        self.pools.iter().any(|p| p.has_block(cidr) && usable(p))
    }

    /// What is against each pool.
    pub(super) fn refusals(&self, usage: Use, family: Family) -> Vec<PoolRefusal> {
        let of_family = |pool: &Pool| (pool.family() != family).then(|| Refusal::Family(pool.family()));
        let pools = self.pools.iter().filter_map(|pool| {
            Some(PoolRefusal {
                pool: pool.name().to_owned(),
                refusal: of_family(pool).or_else(|| pool.refusal(usage))?,
            })
        });
        let wrong = self.wrong_pools.iter().map(|error| PoolRefusal {
            pool: String::new(),
            refusal: Refusal::Wrong(error.clone()),
        });
        pools.chain(wrong).collect()
    }

    fn look(&self, kind: Kind, name: &str) -> Progress<&Seen> {
        let key = Key::new(kind, name);
        match self.seen.get(&key) {
            None if self.listed.contains(&kind) => Ok(&Seen::Absent),
            None | Some(Seen::Forgotten) => Err(Halt::step(Step::Read(Read::Get(key)))),
            Some(seen) => Ok(seen),
        }
    }

    /// Whether an object of this name is there, for all that is known.
    pub(super) fn is_there(&self, kind: Kind, name: &str) -> Progress<bool> {
        Ok(!matches!(self.look(kind, name)?, Seen::Absent))
    }

    pub(super) fn block(&self, cidr: IpNet) -> Progress<BlockSeen<'_>> {
        Ok(match self.look(Kind::Block, &name::block(cidr))? {
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
                ..
            } => BlockSeen::Present { revision, block },
            Seen::Unreadable(reason) => BlockSeen::Unreadable { reason },
            Seen::Absent | Seen::Forgotten | Seen::Present { .. } => BlockSeen::Absent,
        })
    }

    pub(super) fn handle(&self, id: &str) -> Progress<HandleSeen<'_>> {
        Ok(match self.look(Kind::Handle, &name::handle(id))? {
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
            Seen::Absent | Seen::Forgotten | Seen::Present { .. } => HandleSeen::Absent,
        })
    }

    /// All affinities that can be read, deleted ones too: name, revision, spec.
    pub(super) fn affinities(&self) -> Progress<Vec<(&str, &str, &Affinity)>> {
        let all = self.all(Kind::Affinity)?;
        Ok(all
            .into_iter()
            .filter_map(|(name, revision, object)| match object {
                Object::Affinity(affinity) => Some((name, revision, affinity)),
                Object::Block(_) | Object::Handle(_) => None,
            })
            .collect())
    }

    /// All blocks that can be read and are not deleted.
    pub(super) fn blocks(&self) -> Progress<Vec<&Block>> {
        let all = self.all(Kind::Block)?;
        Ok(all
            .into_iter()
            .filter_map(|(_, _, object)| match object {
                Object::Block(block) => (!block.deleted).then_some(block),
                Object::Affinity(_) | Object::Handle(_) => None,
            })
            .collect())
    }

    fn all(&self, kind: Kind) -> Progress<Vec<(&str, &str, &Object)>> {
        if !self.listed.contains(&kind) {
            return Err(Halt::step(Step::Read(Read::List(kind))));
        }
        let mut all = Vec::new();
        for (key, seen) in self.seen.iter().filter(|(key, _)| key.kind == kind) {
            match seen {
                Seen::Forgotten => return Err(Halt::step(Step::Read(Read::Get(key.clone())))),
                Seen::Present { revision, object, .. } => {
                    all.push((key.name.as_str(), revision.as_str(), object));
                }
                Seen::Absent | Seen::Unreadable(_) => {}
            }
        }
        Ok(all)
    }
}
