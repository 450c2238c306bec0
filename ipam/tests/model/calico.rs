//! A small model of the foreign writer: what Calico's IPAM library reads and writes, in its order.
//!
//! It shares nothing with the crate but the objects. Each request is a plain function that is run from its beginning for
//! every step: what it has read and written so far is on a tape, and the first access behind the end of the tape is done and
//! ends the step.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::allocator::{Key, Kind, Object, Write};
use culvert_ipam::block::{Attribute, Block};
use culvert_ipam::handle::Handle;
use culvert_ipam::name;
use culvert_ipam::pool::Pool;
use culvert_ipam::timestamp::Timestamp;
use ipnet::IpNet;

use crate::common::Store;

/// What Calico is asked for.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    Assign { handle: String, pod: String },
    Release { handle: String },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Came {
    Assigned(IpAddr),
    Released,
    Failed,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "a tape has few")]
enum Answer {
    One(Option<(String, Object)>),
    All(Vec<(String, String, Object)>),
    Written(Option<String>),
}

/// The step is over; go on from the tape.
struct Yield;
type Io<T> = Result<T, Yield>;

/// A request of Calico's on a node, and how far it has come.
#[derive(Clone, Debug)]
pub(crate) struct Calico {
    pub(crate) node: String,
    pub(crate) ask: Ask,
    pools: Vec<Pool>,
    strict: bool,
    /// When it began: what it decides by the clock must come out the same each time it is run.
    began: Timestamp,
    tape: Vec<Answer>,
}

struct Run<'a> {
    calico: &'a Calico,
    store: &'a mut Store,
    now: Timestamp,
    at: usize,
    new: Option<Answer>,
}

const RETRIES: usize = 20;

impl Calico {
    pub(crate) fn new(node: &str, ask: Ask, pools: &[Pool], strict: bool, began: Timestamp) -> Self {
        Self {
            node: node.to_owned(),
            ask,
            pools: pools.to_vec(),
            strict,
            began,
            tape: Vec::new(),
        }
    }

    /// One access; what came of the request when that was the last.
    pub(crate) fn step(&mut self, store: &mut Store) -> Option<Came> {
        let mut run = Run {
            calico: self,
            store,
            now: self.began,
            at: 0,
            new: None,
        };
        let came = match &self.ask {
            Ask::Assign { handle, pod } => run.auto_assign(handle, pod),
            Ask::Release { handle } => run.release_by_handle(handle),
        };
        let new = run.new.take();
        self.tape.extend(new);
        came.ok()
    }
}

impl Run<'_> {
    fn answer(&mut self, access: impl FnOnce(&mut Store) -> Answer) -> Io<Answer> {
        if let Some(answer) = self.calico.tape.get(self.at) {
            self.at += 1;
            return Ok(answer.clone());
        }
        if self.new.is_some() {
            return Err(Yield);
        }
        self.at += 1;
        let answer = access(self.store);
        self.new = Some(answer.clone());
        Ok(answer)
    }

    fn get(&mut self, kind: Kind, name: &str) -> Io<Option<(String, Object)>> {
        let key = Key::new(kind, name);
        let answer = self
            .answer(|store| Answer::One(store.objects.get(&key).map(|(r, o)| (r.to_string(), o.clone()))))?;
        let Answer::One(found) = answer else {
            unreachable!()
        };
        let Some((revision, object)) = found else {
            return Ok(None);
        };
        let is_deleted = match &object {
            Object::Affinity(a) => a.is_deleted(),
            Object::Block(b) => b.deleted,
            Object::Handle(h) => h.deleted,
        };
        if is_deleted {
            // A mark that was left behind is finished by whoever reads it.
            let key = Key::new(kind, name);
            self.write(Write::Delete { key, revision })?;
            return Ok(None);
        }
        Ok(Some((revision, object)))
    }

    fn list(&mut self, kind: Kind) -> Io<Vec<(String, String, Object)>> {
        let answer = self.answer(|store| {
            let all = store.objects.iter().filter(|(key, _)| key.kind == kind);
            Answer::All(
                all.map(|(k, (r, o))| (k.name.clone(), r.to_string(), o.clone()))
                    .collect(),
            )
        })?;
        let Answer::All(all) = answer else { unreachable!() };
        Ok(all)
    }

    /// The new revision; `None` when it was refused.
    #[allow(clippy::needless_pass_by_value, reason = "each write is made for this")]
    fn write(&mut self, write: Write) -> Io<Option<String>> {
        let answer = self.answer(|store| Answer::Written(store.write(&write).ok()))?;
        let Answer::Written(revision) = answer else {
            unreachable!()
        };
        Ok(revision)
    }

    fn update(&mut self, name: &str, revision: &str, object: Object) -> Io<Option<String>> {
        let (name, revision) = (name.to_owned(), revision.to_owned());
        self.write(Write::Update {
            name,
            revision,
            object,
        })
    }

    /// Soft, then hard.
    fn delete(&mut self, name: &str, revision: &str, mut object: Object) -> Io<bool> {
        match &mut object {
            Object::Affinity(a) => "true".clone_into(&mut a.deleted),
            Object::Block(b) => b.deleted = true,
            Object::Handle(h) => h.deleted = true,
        }
        let key = Key::new(object.kind(), name);
        let Some(revision) = self.update(name, revision, object)? else {
            return Ok(false);
        };
        self.write(Write::Delete { key, revision })?;
        Ok(true)
    }

    fn affinity(&mut self, node: &str, cidr: IpNet) -> Io<Option<(String, Affinity)>> {
        Ok(match self.get(Kind::Affinity, &name::affinity(node, cidr))? {
            Some((revision, Object::Affinity(affinity))) => Some((revision, affinity)),
            _ => None,
        })
    }

    fn block(&mut self, cidr: IpNet) -> Io<Option<(String, Block)>> {
        Ok(match self.get(Kind::Block, &name::block(cidr))? {
            Some((revision, Object::Block(block))) => Some((revision, block)),
            _ => None,
        })
    }

    fn set_state(
        &mut self,
        revision: &str,
        affinity: &mut Affinity,
        state: AffinityState,
    ) -> Io<Option<String>> {
        affinity.state = state;
        let name = name::affinity(&affinity.node, affinity.cidr);
        self.update(&name, revision, Object::Affinity(affinity.clone()))
    }

    fn update_block(&mut self, revision: &str, block: &mut Block) -> Io<Option<String>> {
        block.sequence_number += 1;
        self.update(&name::block(block.cidr), revision, Object::Block(block.clone()))
    }

    fn auto_assign(&mut self, handle: &str, pod: &str) -> Io<Came> {
        let node = self.calico.node.clone();
        let all = self.list(Kind::Affinity)?;
        let own = all.into_iter().filter_map(|(_, _, object)| match object {
            Object::Affinity(a) if a.is_of_node(&node) && !a.is_deleted() => Some(a.cidr),
            _ => None,
        });
        let own: Vec<IpNet> = own.collect();
        for cidr in own {
            let Some((revision, affinity)) = self.affinity(&node, cidr)? else {
                continue;
            };
            if self.block_from_affinity(&revision, affinity)?
                && let Some(address) = self.assign_from(cidr, handle, pod, true)?
            {
                return Ok(Came::Assigned(address));
            }
        }
        for _ in 0..RETRIES {
            let Some(cidr) = self.find_usable_block()? else {
                break;
            };
            let Some((revision, affinity)) = self.pending_affinity(cidr)? else {
                continue;
            };
            if self.block_from_affinity(&revision, affinity)?
                && let Some(address) = self.assign_from(cidr, handle, pod, true)?
            {
                return Ok(Came::Assigned(address));
            }
        }
        if !self.calico.strict {
            let blocks = self.blocks()?;
            for block in blocks {
                if let Some(address) = self.assign_from(block.cidr, handle, pod, false)? {
                    return Ok(Came::Assigned(address));
                }
            }
        }
        Ok(Came::Failed)
    }

    fn blocks(&mut self) -> Io<Vec<Block>> {
        let all = self.list(Kind::Block)?;
        let blocks = all.into_iter().filter_map(|(_, _, object)| match object {
            Object::Block(b) if !b.deleted => Some(b),
            _ => None,
        });
        Ok(blocks.collect())
    }

    fn pending_affinity(&mut self, cidr: IpNet) -> Io<Option<(String, Affinity)>> {
        let node = self.calico.node.clone();
        let affinity = Affinity::pending(&node, cidr);
        let name = name::affinity(&node, cidr);
        let object = Object::Affinity(affinity.clone());
        if let Some(revision) = self.write(Write::Create { name, object })? {
            return Ok(Some((revision, affinity)));
        }
        let Some((revision, mut affinity)) = self.affinity(&node, cidr)? else {
            return Ok(None);
        };
        if affinity.state == AffinityState::Confirmed {
            return Ok(Some((revision, affinity)));
        }
        let revision = self.set_state(&revision, &mut affinity, AffinityState::Pending)?;
        Ok(revision.map(|r| (r, affinity)))
    }

    /// Whether the claim stands, after whatever it takes.
    fn block_from_affinity(&mut self, revision: &str, mut affinity: Affinity) -> Io<bool> {
        let (cidr, node) = (affinity.cidr, affinity.node.clone());
        let Some((block_revision, mut block)) = self.block(cidr)? else {
            let Some(revision) = self.set_state(revision, &mut affinity, AffinityState::Pending)? else {
                return Ok(false);
            };
            return self.claim(&revision, affinity);
        };
        if block.affinity != Some(format!("host:{node}")) {
            let name = name::affinity(&node, cidr);
            self.delete(&name, revision, Object::Affinity(affinity))?;
            return Ok(false);
        }
        if affinity.state == AffinityState::Confirmed {
            return Ok(true);
        }
        let Some(revision) = self.set_state(revision, &mut affinity, AffinityState::Pending)? else {
            return Ok(false);
        };
        if self.update_block(&block_revision, &mut block)?.is_none() {
            return Ok(false);
        }
        Ok(self
            .set_state(&revision, &mut affinity, AffinityState::Confirmed)?
            .is_some())
    }

    fn claim(&mut self, revision: &str, mut affinity: Affinity) -> Io<bool> {
        let (cidr, node) = (affinity.cidr, affinity.node.clone());
        let block = Block::new(cidr, &node, self.now);
        let object = Object::Block(block);
        let created = self.write(Write::Create {
            name: name::block(cidr),
            object,
        })?;
        if created.is_none() {
            let Some((_, block)) = self.block(cidr)? else {
                return Ok(false);
            };
            if block.affinity != Some(format!("host:{node}")) {
                let name = name::affinity(&node, cidr);
                self.delete(&name, revision, Object::Affinity(affinity))?;
                return Ok(false);
            }
        }
        Ok(self
            .set_state(revision, &mut affinity, AffinityState::Confirmed)?
            .is_some())
    }

    fn find_usable_block(&mut self) -> Io<Option<IpNet>> {
        let node = self.calico.node.clone();
        let there: BTreeMap<IpNet, Block> = self.blocks()?.into_iter().map(|b| (b.cidr, b)).collect();
        let mut empty = Vec::new();
        for pool in &self.calico.pools {
            for index in 0..pool.block_count() {
                let cidr = pool.block(index).unwrap();
                match there.get(&cidr) {
                    None => return Ok(Some(cidr)),
                    Some(b) if b.is_of_node(&node) && !b.unallocated.is_empty() => return Ok(Some(cidr)),
                    Some(b) if b.allocations.iter().all(Option::is_none) => empty.push(b.clone()),
                    Some(_) => {}
                }
            }
        }
        for block in empty {
            let claimed = block.affinity_claim_time.as_deref().and_then(Timestamp::parse);
            if claimed.is_none_or(|at| self.now.seconds_since(at) < 60) {
                continue;
            }
            let Some(owner) = block.affinity.as_deref().and_then(|a| a.strip_prefix("host:")) else {
                continue;
            };
            if self.release_empty(owner, &block)? {
                return Ok(Some(block.cidr));
            }
        }
        Ok(None)
    }

    /// Takes an empty block from its owner, if nobody has written it since.
    fn release_empty(&mut self, owner: &str, seen: &Block) -> Io<bool> {
        let Some((revision, mut affinity)) = self.affinity(owner, seen.cidr)? else {
            return Ok(false);
        };
        let Some((block_revision, block)) = self.block(seen.cidr)? else {
            return Ok(false);
        };
        if block.sequence_number != seen.sequence_number || block.affinity != seen.affinity {
            return Ok(false);
        }
        let marked = self.set_state(&revision, &mut affinity, AffinityState::PendingDeletion)?;
        let Some(revision) = marked else { return Ok(false) };
        if !self.delete(&name::block(seen.cidr), &block_revision, Object::Block(block))? {
            return Ok(false);
        }
        let name = name::affinity(owner, seen.cidr);
        self.delete(&name, &revision, Object::Affinity(affinity))?;
        Ok(true)
    }

    fn assign_from(&mut self, cidr: IpNet, handle: &str, pod: &str, own: bool) -> Io<Option<IpAddr>> {
        for _ in 0..RETRIES {
            let Some((revision, mut block)) = self.block(cidr)? else {
                return Ok(None);
            };
            if own && block.affinity != Some(format!("host:{}", self.calico.node))
                || block.unallocated.is_empty()
            {
                return Ok(None);
            }
            let ordinal = block.unallocated.remove(0);
            block.attributes.push(Arc::new(Attribute {
                handle_id: Some(handle.to_owned()),
                secondary: Some(secondary(&self.calico.node, pod)),
                ..Attribute::default()
            }));
            let index = i64::try_from(block.attributes.len()).unwrap() - 1;
            let slot = usize::try_from(ordinal).unwrap();
            block.allocations[slot] = Some(index);
            let number = block.sequence_number;
            let numbers = block.sequence_number_for_allocation.get_or_insert_default();
            numbers.insert(slot, number);
            self.count(handle, cidr, 1)?;
            if self.update_block(&revision, &mut block)?.is_some() {
                return Ok(cidr.hosts().next().map(|_| address(cidr, slot)));
            }
            self.count(handle, cidr, -1)?;
        }
        Ok(None)
    }

    /// Raises or lowers what a handle counts; a failure to lower it is only logged.
    fn count(&mut self, handle: &str, cidr: IpNet, by: i64) -> Io<()> {
        let name = name::handle(handle);
        for _ in 0..RETRIES {
            let found = self.get(Kind::Handle, &name)?;
            let Some((revision, Object::Handle(mut handle))) = found else {
                if by < 0 {
                    return Ok(());
                }
                let mut new = Handle::new(handle);
                new.set(cidr, u32::try_from(by).unwrap());
                let (name, object) = (name.clone(), Object::Handle(new));
                if self.write(Write::Create { name, object })?.is_some() {
                    return Ok(());
                }
                continue;
            };
            let count = i64::from(handle.count(cidr)) + by;
            let Ok(count) = u32::try_from(count) else {
                return Ok(());
            };
            handle.set(cidr, count);
            let done = if handle.block.is_empty() {
                self.delete(&name, &revision, Object::Handle(handle))?
            } else {
                self.update(&name, &revision, Object::Handle(handle))?.is_some()
            };
            if done {
                return Ok(());
            }
        }
        Ok(())
    }

    fn release_by_handle(&mut self, handle: &str) -> Io<Came> {
        let Some((_, Object::Handle(found))) = self.get(Kind::Handle, &name::handle(handle))? else {
            return Ok(Came::Released);
        };
        for cidr in found.block.keys() {
            for _ in 0..RETRIES {
                let Some((revision, mut block)) = self.block(*cidr)? else {
                    break;
                };
                let released = free(&mut block, handle);
                if released == 0 {
                    break;
                }
                let done = if block.affinity.is_none() && block.allocations.iter().all(Option::is_none) {
                    self.delete(&name::block(*cidr), &revision, Object::Block(block))?
                } else {
                    self.update_block(&revision, &mut block)?.is_some()
                };
                if done {
                    self.count(handle, *cidr, -released)?;
                    break;
                }
            }
        }
        Ok(Came::Released)
    }
}

/// What is written beside an address of a pod.
pub(crate) fn secondary(node: &str, pod: &str) -> BTreeMap<String, String> {
    let pairs = [("node", node), ("namespace", "default"), ("pod", pod)];
    pairs
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect()
}

fn address(cidr: IpNet, ordinal: usize) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + u32::try_from(ordinal).unwrap()).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::try_from(ordinal).unwrap()).into()),
    }
}

/// Frees all of a handle; how many that were.
fn free(block: &mut Block, handle: &str) -> i64 {
    let mut freed = 0;
    for slot in 0..block.allocations.len() {
        let Some(index) = block.allocations[slot] else {
            continue;
        };
        if block.attributes[usize::try_from(index).unwrap()]
            .handle_id
            .as_deref()
            == Some(handle)
        {
            block.allocations[slot] = None;
            block.unallocated.push(i64::try_from(slot).unwrap());
            if let Some(numbers) = &mut block.sequence_number_for_allocation {
                numbers.remove(slot);
            }
            freed += 1;
        }
    }
    let gone: Vec<bool> = block
        .attributes
        .iter()
        .map(|a| a.handle_id.as_deref() == Some(handle))
        .collect();
    let kept = |index: usize| gone[..index].iter().filter(|g| !**g).count();
    for allocation in block.allocations.iter_mut().flatten() {
        *allocation = i64::try_from(kept(usize::try_from(*allocation).unwrap())).unwrap();
    }
    let mut gone = gone.iter();
    block.attributes.retain(|_| !gone.next().unwrap());
    freed
}
