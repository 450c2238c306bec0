//! Blocks taken from their owners: by request, or because a node that needs one finds only empty ones of others.

use ipnet::IpNet;

use crate::affinity::AffinityState;
use crate::block::{Block, Owner};
use crate::error::Error;
use crate::name;
use crate::pool::Pool;
use crate::timestamp::Timestamp;

use super::claim::{with_state, withdrawn};
use super::object::{Key, Kind, Object, Read};
use super::request::{Outcome, Unclaim};
use super::round::Round;
use super::view::{AffinitySeen, BlockSeen};
use super::{Halt, Progress};

/// For so long a node keeps an empty block that another needs, in seconds (Calico's `EmptyBlockMinReclaimAge`): otherwise two
/// nodes could take a block from each other for ever, and neither get to use it.
const MIN_RECLAIM_AGE_SECONDS: u64 = 60;

impl<'a> Round<'a> {
    pub(super) fn unclaim(&self, request: &Unclaim) -> Progress<Outcome> {
        let (node, cidr) = (request.node.as_str(), request.block);
        let claim = self.view.affinity(node, cidr)?;
        let claim = claim.filter(|c| c.affinity.is_of_node(node));
        let block = match self.view.block(cidr)? {
            BlockSeen::Present { block, revision, .. } => Some((block, revision)),
            BlockSeen::Unreadable { reason } => {
                let key = Key::new(Kind::Block, name::block(cidr));
                let reason = reason.to_owned();
                return Err(Error::Unreadable { key, reason }.into());
            }
            BlockSeen::Absent | BlockSeen::Deleted { .. } => None,
        };
        if let Some((block, _)) = block.filter(|(b, _)| b.is_of_node(node)) {
            allowed(request, block)?;
        }
        match (claim, block) {
            (Some(claim), Some((block, _)))
                if block.is_of_node(node) && claim.affinity.state != AffinityState::PendingDeletion =>
            {
                Err(with_state(claim, AffinityState::PendingDeletion))
            }
            (Some(claim), _) => Err(match self.take_away(node, claim) {
                Err(halt) => halt,
                Ok(()) => Halt::Wait,
            }),
            (None, Some((block, revision))) if block.is_of_node(node) => {
                self.view
                    .missed_affinity_after(&name::affinity(node, cidr), cidr)?;
                Err(orphaned(block, revision))
            }
            (None, _) => Ok(Outcome::Unclaimed),
        }
    }

    /// The next write towards the end of a claim that is being given up.
    pub(super) fn take_away(&self, node: &str, claim: AffinitySeen<'_>) -> Progress<()> {
        let cidr = claim.affinity.cidr;
        match self.view.block(cidr)? {
            BlockSeen::Present { block, revision, .. } if block.is_of_node(node) => {
                // The claim may have been made anew between reading it and reading the block.
                if !self.view.saw_affinity_after(claim.name, cidr) {
                    let key = Key::new(Kind::Affinity, claim.name);
                    return Err(Halt::Read(Read::Get(key)));
                }
                Err(orphaned(block, revision))
            }
            BlockSeen::Present { .. }
            | BlockSeen::Deleted { .. }
            | BlockSeen::Absent
            | BlockSeen::Unreadable { .. } => Err(withdrawn(claim)),
        }
    }

    /// The next write that frees an empty block of another node, the first in this node's walking order; or that finishes
    /// where somebody else began to. `None` when there is no such block.
    pub(super) fn reclaim(&mut self, node: &str, pools: &[&Pool]) -> Progress<Option<Halt>> {
        if let Some(halt) = self.leftover(pools)? {
            return Ok(Some(halt));
        }
        for pool in pools {
            for cidr in self.walk(node, pool)? {
                let Some(draft) = self.draft(cidr)? else { continue };
                let (block, free): (&'a Block, usize) = (draft.block, draft.free());
                if block.is_in_use() || free == 0 || self.was_just_claimed(block) {
                    continue;
                }
                let owner = match block.owner() {
                    // Without its claim to mark, its owner may be just about to confirm one.
                    Owner::Host(owner) if owner != node && self.view.affinity(owner, cidr)?.is_some() => {
                        owner.to_owned()
                    }
                    Owner::None if block.affinity.is_none() => String::new(),
                    Owner::Host(_) | Owner::Virtual(_) | Owner::None => continue,
                };
                let request = Unclaim {
                    node: owner,
                    block: cidr,
                    must_be_empty: true,
                    sequence_number: None,
                };
                return Ok(Some(self.freeing(&request)?));
            }
        }
        Ok(None)
    }

    fn freeing(&self, request: &Unclaim) -> Progress<Halt> {
        if request.node.is_empty() {
            return Ok(match self.view.block(request.block)? {
                BlockSeen::Present { block, revision, .. } => orphaned(block, revision),
                _ => Halt::Wait,
            });
        }
        Ok(self.unclaim(request).err().unwrap_or(Halt::Wait))
    }

    /// Ends a claim that somebody began to give up, and whose block is gone already.
    fn leftover(&self, pools: &[&Pool]) -> Progress<Option<Halt>> {
        for claim in self.view.affinities()? {
            let affinity = claim.affinity;
            let given_up = affinity.state == AffinityState::PendingDeletion || affinity.is_deleted();
            if !given_up || !pools.iter().any(|p| p.has_block(affinity.cidr)) {
                continue;
            }
            if let BlockSeen::Absent = self.view.block(affinity.cidr)? {
                return Ok(Some(withdrawn(claim)));
            }
        }
        Ok(None)
    }

    pub(super) fn was_just_claimed(&self, block: &Block) -> bool {
        let claimed = block.affinity_claim_time.as_deref().and_then(Timestamp::parse);
        claimed.is_some_and(|claimed| self.now.seconds_since(claimed) < MIN_RECLAIM_AGE_SECONDS)
    }

    /// The blocks of a pool that are there, in the node's walking order.
    pub(super) fn walk(&self, node: &str, pool: &Pool) -> Progress<Vec<IpNet>> {
        let blocks = self.view.blocks()?.into_iter().map(|b| b.cidr);
        let mut ranked: Vec<(u128, IpNet)> = blocks
            .filter_map(|cidr| Some((pool.rank(node, cidr)?, cidr)))
            .collect();
        ranked.sort_unstable();
        Ok(ranked.into_iter().map(|(_, cidr)| cidr).collect())
    }
}

/// Whether the block may be taken from its owner as the request says.
fn allowed(request: &Unclaim, block: &Block) -> Progress<()> {
    let (node, cidr) = (request.node.clone(), block.cidr);
    if request.must_be_empty && block.is_in_use() {
        let in_use = block.in_use();
        return Err(Error::BlockInUse {
            node,
            block: cidr,
            in_use,
        }
        .into());
    }
    match request.sequence_number {
        Some(expected) if expected != block.sequence_number => Err(Error::BlockChanged {
            block: cidr,
            expected,
            found: block.sequence_number,
        }
        .into()),
        Some(_) | None => Ok(()),
    }
}

/// The block without an owner: none at all when it is empty.
fn orphaned(block: &Block, revision: &str) -> Halt {
    let name = name::block(block.cidr);
    if !block.is_in_use() {
        return Halt::delete(Kind::Block, &name, revision);
    }
    let mut block = block.clone();
    block.affinity = None;
    block.affinity_claim_time = None;
    block.sequence_number = block.sequence_number.wrapping_add(1);
    Halt::update(name, revision, Object::Block(block))
}
