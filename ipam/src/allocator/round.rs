//! One look at a whole batch: what each request needs next, joined so that no object is written twice.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::block::{Block, address_of};
use crate::name;
use crate::ordinals::{Ordinals, available, of_handle};
use crate::timestamp::Timestamp;

use super::claim::Settled;
use super::object::{Key, Kind, Object, Read};
use super::request::{Freed, Held, Request};
use super::view::{BlockSeen, HandleSeen, View};
use super::{Change, Halt, Plan, Progress, Step, delete, update};

pub(super) fn plan(view: &View, batch: &[Request], now: Timestamp) -> Plan {
    let mut round = Round::new(view, now);
    let mut busy = BTreeSet::new();
    let mut outcomes = Vec::with_capacity(batch.len());
    for (index, request) in batch.iter().enumerate() {
        let is_first = handle_of(request).is_none_or(|handle| busy.insert(name::handle(handle)));
        if !is_first {
            outcomes.push(None);
            continue;
        }
        let progress = match request {
            Request::Assign(assign) => round.assign(assign),
            Request::Release(release) => round.release(index, release),
            Request::Claim(claim) => round.claim(claim),
            Request::Unclaim(unclaim) => round.unclaim(unclaim),
        };
        outcomes.push(match progress {
            Ok(outcome) => Some(Ok(outcome)),
            Err(Halt::Error(error)) => Some(Err(*error)),
            Err(halt) => {
                round.note(halt);
                None
            }
        });
    }
    for (handle, counts) in view.owed() {
        if !busy.contains(handle) {
            let halt = round.lower(handle, counts);
            round.note(halt.err().unwrap_or(Halt::Wait));
        }
    }
    Plan {
        outcomes,
        step: round.into_step(),
    }
}

/// The handle that a request is about.
fn handle_of(request: &Request) -> Option<&str> {
    match request {
        Request::Assign(assign) => Some(&assign.handle),
        Request::Release(release) => match &release.what {
            Held::Handle(handle) => Some(handle),
            Held::Addresses(_) => None,
        },
        Request::Claim(_) | Request::Unclaim(_) => None,
    }
}

/// What the requests of a batch need next, as far as they have been looked at.
pub(super) struct Round<'a> {
    pub(super) view: &'a View,
    pub(super) now: Timestamp,
    /// The claims of each node that a request came from.
    pub(super) nodes: BTreeMap<&'a str, Settled<'a>>,
    drafts: BTreeMap<IpNet, Draft<'a>>,
    reads: BTreeSet<Read>,
    writes: BTreeMap<Key, Change>,
}

/// A sound block on which requests of the batch work together.
pub(super) struct Draft<'a> {
    /// As it is in the view.
    pub(super) block: &'a Block,
    revision: &'a str,
    /// The ordinals that nobody of the batch is to get yet, in the order in which they are given out.
    available: VecDeque<usize>,
    /// How many were set aside for requests whose handles do not count them yet.
    set_aside: usize,
    /// With what the batch takes and gives back; `None` while that is nothing.
    changed: Option<Ordinals>,
    frees: Vec<Freed>,
}

impl<'a> Round<'a> {
    fn new(view: &'a View, now: Timestamp) -> Self {
        Self {
            view,
            now,
            nodes: BTreeMap::new(),
            drafts: BTreeMap::new(),
            reads: BTreeSet::new(),
            writes: BTreeMap::new(),
        }
    }

    /// Takes in what a request waits for.
    pub(super) fn note(&mut self, halt: Halt) {
        match halt {
            Halt::Read(read) => {
                self.reads.insert(read);
            }
            // Two requests that need the same write both have it; of two different ones the second comes next time.
            Halt::Write(change) => {
                self.writes.entry(change.write.key()).or_insert(*change);
            }
            Halt::Wait | Halt::Error(_) => {}
        }
    }

    /// The block to work on; `None` where there is none, or none that can be worked on.
    pub(super) fn draft(&mut self, cidr: IpNet) -> Progress<Option<&mut Draft<'a>>> {
        if !self.drafts.contains_key(&cidr) {
            let BlockSeen::Present {
                block,
                revision,
                fault: None,
            } = self.view.block(cidr)?
            else {
                return Ok(None);
            };
            let policy = self.view.policy();
            let mut available = available(block, self.now, policy.limits.cooldown_seconds);
            if policy.reserved.overlaps(cidr) {
                available.retain(|ordinal| !policy.reserved.contains(address_of(cidr, *ordinal)));
            }
            let draft = Draft {
                block,
                revision,
                available: available.into(),
                set_aside: 0,
                changed: None,
                frees: Vec::new(),
            };
            self.drafts.insert(cidr, draft);
        }
        Ok(self.drafts.get_mut(&cidr))
    }

    /// Takes ordinals of a block for a handle, with the next write of it.
    pub(super) fn take(
        &mut self,
        cidr: IpNet,
        ordinals: &[usize],
        handle: &str,
        attributes: &BTreeMap<String, String>,
    ) -> Progress<()> {
        if let Some(changed) = self.changed(cidr)? {
            changed.take(ordinals, handle, attributes);
        }
        if let Some(draft) = self.draft(cidr)? {
            draft.set_aside = draft.set_aside.saturating_sub(ordinals.len());
        }
        Ok(())
    }

    /// Gives ordinals of a block back, with the next write of it. Those that are free or rest already are passed over.
    pub(super) fn give_back(
        &mut self,
        request: usize,
        cidr: IpNet,
        ordinals: &BTreeSet<usize>,
    ) -> Progress<()> {
        let rests = self.view.policy().limits.cooldown_seconds > 0;
        let rest = rests.then_some(self.now);
        let Some(changed) = self.changed(cidr)? else {
            return Ok(());
        };
        let held = |o: &usize| changed.block().holder(*o).is_some_and(|a| !a.rests());
        let ordinals: BTreeSet<usize> = ordinals.iter().copied().filter(held).collect();
        changed.give_back(&ordinals, rest);
        if let Some(draft) = self.draft(cidr)? {
            let holder = |o: usize| draft.block.holder(o)?.handle();
            let frees = ordinals.into_iter().map(|ordinal| Freed {
                address: address_of(cidr, ordinal),
                handle: holder(ordinal).map(str::to_owned),
                request,
            });
            draft.frees.extend(frees);
        }
        Ok(())
    }

    fn changed(&mut self, cidr: IpNet) -> Progress<Option<&mut Ordinals>> {
        let (now, cooldown) = (self.now, self.view.policy().limits.cooldown_seconds);
        let Some(draft) = self.draft(cidr)? else {
            return Ok(None);
        };
        if draft.changed.is_none() {
            let mut ordinals = Ordinals::of_sound(draft.block);
            ordinals.collect(now, cooldown);
            draft.changed = Some(ordinals);
        }
        Ok(draft.changed.as_mut())
    }

    /// Lowers the counts of a handle by what was given back, but never below what it is seen to have: somebody may have
    /// taken an address for it since, on the count that was still too high.
    fn lower(&self, handle: &str, counts: &BTreeMap<IpNet, u32>) -> Progress<()> {
        let HandleSeen::Present {
            revision,
            handle: old,
        } = self.view.handle(handle)?
        else {
            return Ok(());
        };
        let mut new = old.clone();
        for (cidr, given_back) in counts {
            let has = match self.view.block(*cidr)? {
                BlockSeen::Present { block, .. } => count(of_handle(block, &old.handle_id)),
                BlockSeen::Absent | BlockSeen::Deleted { .. } | BlockSeen::Unreadable { .. } => 0,
            };
            let old = new.count(*cidr);
            new.set(*cidr, old.min(old.saturating_sub(*given_back).max(has)));
        }
        if new == *old {
            return Ok(());
        }
        let name = name::handle(handle);
        let write = if new.block.is_empty() {
            delete(Kind::Handle, &name, revision)
        } else {
            update(name, revision, Object::Handle(new))
        };
        Err(Halt::settle(write))
    }

    fn into_step(mut self) -> Step {
        if !self.reads.is_empty() {
            return Step::Read(self.reads.into_iter().collect());
        }
        let counts_are_raised = self.writes.keys().any(|key| key.kind == Kind::Handle);
        for (cidr, draft) in self.drafts {
            let Some(changed) = draft.changed else { continue };
            // Those whose handles are about to count their addresses share the write: it waits for them.
            if draft.set_aside > 0 && counts_are_raised {
                continue;
            }
            let name = name::block(cidr);
            // A block that belongs to nobody is only there for the addresses in it.
            let is_useless = draft.block.affinity.is_none() && !changed.block().is_in_use();
            let write = if is_useless {
                delete(Kind::Block, &name, draft.revision)
            } else {
                update(name, draft.revision, Object::Block(changed.into_written()))
            };
            let frees = draft.frees;
            let change = Change {
                frees,
                ..Change::from(write)
            };
            // A claim that writes the block goes first.
            self.writes.entry(change.write.key()).or_insert(change);
        }
        if self.writes.is_empty() {
            return Step::Done;
        }
        Step::Write(self.writes.into_values().collect())
    }
}

impl Draft<'_> {
    /// How many of its addresses are still to be had.
    pub(super) fn free(&self) -> usize {
        self.available.len()
    }

    /// Sets aside up to `count` ordinals, those that have been free for longest.
    pub(super) fn pick(&mut self, count: usize) -> Vec<usize> {
        let count = count.min(self.available.len());
        self.set_aside += count;
        self.available.drain(..count).collect()
    }

    /// Sets aside this ordinal, reserved or not, if nobody of the batch has it yet.
    pub(super) fn pick_one(&mut self, ordinal: usize) {
        self.set_aside += 1;
        self.available.retain(|o| *o != ordinal);
    }

    /// The addresses of ordinals.
    pub(super) fn addresses(&self, ordinals: &[usize]) -> Vec<IpAddr> {
        ordinals.iter().map(|o| address_of(self.block.cidr, *o)).collect()
    }
}

/// How many there are, as a handle counts.
pub(super) fn count(items: impl Iterator) -> u32 {
    u32::try_from(items.count()).unwrap_or(u32::MAX)
}
