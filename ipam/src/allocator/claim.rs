//! Claims of blocks: finishing what is half done, and making new ones.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::affinity::{Affinity, AffinityState};
use crate::block::Block;
use crate::error::{Error, PoolSize};
use crate::name;
use crate::pool::{Excluded, Family, Pool};
use crate::ranges::Ranges;

use super::object::{Kind, Object};
use super::request::{Claim, Outcome};
use super::round::Round;
use super::view::{AffinitySeen, BlockSeen};
use super::{Halt, Progress};

/// What stands of a node's claims.
pub(super) struct Settled<'a> {
    /// Its confirmed claims to blocks that are there and its own, in order of address.
    pub(super) owned: Vec<AffinitySeen<'a>>,
    /// Whether something of them is under way.
    pub(super) is_unsettled: bool,
}

impl<'a> Round<'a> {
    /// The node's confirmed blocks, at least one of them in a pool for this use.
    pub(super) fn claim(&mut self, request: &'a Claim) -> Progress<Outcome> {
        // Not from a memory: what stands now.
        self.view.affinities()?;
        self.settle(&request.node)?;
        self.adopt(&request.node)?;
        let node = &request.node;
        let settled = self.settle(node)?;
        if settled.is_unsettled {
            return Err(Halt::Wait);
        }
        let owned = settled.owned.iter().map(|o| o.affinity.cidr);
        let owned: Vec<IpNet> = owned.filter(|c| Family::of(*c) == request.family).collect();
        let none = BTreeMap::new();
        let pools = self.pools(node, request.usage, request.family, &[], &none)?;
        if pools.iter().any(|p| owned.iter().any(|c| p.cidr().contains(c))) {
            return Ok(Outcome::Claimed(owned));
        }
        Err(self.new_block(node, request.usage, request.family, &pools)?)
    }

    /// Carries on whatever the node's claims were left at, once a round, and tells those that stand.
    pub(super) fn settle(&mut self, node: &'a str) -> Progress<&Settled<'a>> {
        if !self.nodes.contains_key(node) {
            let settled = self.look_at_claims(node)?;
            self.nodes.insert(node, settled);
        }
        self.nodes.get(node).ok_or(Halt::Wait)
    }

    fn look_at_claims(&mut self, node: &str) -> Progress<Settled<'a>> {
        let mut settled = Settled {
            owned: Vec::new(),
            is_unsettled: false,
        };
        for claim in self.view.affinities_of(node)? {
            match self.look_at(node, claim) {
                Ok(true) => settled.owned.push(claim),
                Ok(false) => {}
                Err(halt) => {
                    self.note(halt);
                    settled.is_unsettled = true;
                }
            }
        }
        settled.owned.sort_by_key(|o| o.affinity.cidr);
        Ok(settled)
    }

    /// Whether the node owns the block by this claim; what is left to do for one that is between two states.
    fn look_at(&self, node: &str, claim: AffinitySeen<'_>) -> Progress<bool> {
        if claim.affinity.is_deleted() {
            return Err(withdrawn(claim));
        }
        match claim.affinity.state {
            AffinityState::Confirmed => self.stand(node, claim),
            AffinityState::Pending => self.carry_on(node, claim).map(|()| false),
            AffinityState::PendingDeletion => self.give_up(node, claim).map(|()| false),
        }
    }

    /// A confirmed claim. One to a block that is not there any more is made anew, one to another's block is taken back, and
    /// one to an empty block of a pool that is gone or does not select the node any more is given up (Calico's
    /// `ensureConsistentAffinity`). Something can be taken from the block unless it is broken.
    fn stand(&self, node: &str, claim: AffinitySeen<'_>) -> Progress<bool> {
        match self.view.block(claim.affinity.cidr)? {
            BlockSeen::Absent | BlockSeen::Deleted { .. } => Err(with_state(claim, AffinityState::Pending)),
            BlockSeen::Unreadable { .. } => Ok(false),
            BlockSeen::Present { block, .. } if !block.is_of_node(node) => Err(withdrawn(claim)),
            BlockSeen::Present { block, .. } if self.is_unwanted(block) => {
                Err(with_state(claim, AffinityState::PendingDeletion))
            }
            BlockSeen::Present { fault, .. } => Ok(fault.is_none()),
        }
    }

    /// Whether a node should not have this empty block: only said when all pools are known, and not of one that it has just
    /// claimed, because a request named its pool.
    fn is_unwanted(&self, block: &Block) -> bool {
        if block.is_in_use() || self.was_just_claimed(block) {
            return false;
        }
        let pools = &self.view.policy().pools;
        match pools.of_block(block.cidr) {
            Some(pool) => matches!(pool.excluded(), Some(Excluded::NodeSelector(_))),
            None => pools.are_known(),
        }
    }

    /// A pending claim: the block is made and the claim confirmed, or it is taken back. Nothing is done where the block
    /// cannot be read.
    ///
    /// What is confirmed must be there, and stay. Somebody else of this node (an agent that is being replaced, Calico's own
    /// plugin) may have decided to delete the block, on an earlier state of the claim. So a block is only trusted that was
    /// written after the claim was seen to be pending: whoever decided on what was before is refused now.
    fn carry_on(&self, node: &str, claim: AffinitySeen<'_>) -> Progress<()> {
        let cidr = claim.affinity.cidr;
        match self.view.block(cidr)? {
            BlockSeen::Present { block, .. }
                if block.is_of_node(node) && self.view.wrote_block_after(cidr, claim.name) =>
            {
                Err(with_state(claim, AffinityState::Confirmed))
            }
            BlockSeen::Present { block, revision, .. } if block.is_of_node(node) => {
                Err(self.touched(block, revision))
            }
            BlockSeen::Present { .. } => Err(withdrawn(claim)),
            BlockSeen::Unreadable { .. } => Ok(()),
            BlockSeen::Deleted { revision } => Err(Halt::delete(Kind::Block, &name::block(cidr), revision)),
            BlockSeen::Absent => {
                // A pool may be gone or cut otherwise since, and somebody may have a block of another size there.
                if !self.may_have_block(cidr)
                    || Ranges::from_iter(self.of_others(node, Pending::Ignored)?).overlaps(cidr)
                {
                    return Err(withdrawn(claim));
                }
                let block = Block::new(cidr, node, self.now);
                Err(Halt::create(name::block(cidr), Object::Block(block)))
            }
        }
    }

    /// Whether a block of this range may be made at all, for whatever use. Unknown pools do not speak against it.
    fn may_have_block(&self, cidr: IpNet) -> bool {
        let pools = &self.view.policy().pools;
        let refuses = |p: &Pool| p.excluded().is_some_and(|e| !e.yields_to_names());
        match pools.of_block(cidr) {
            Some(pool) => pool.has_block(cidr) && !refuses(pool),
            None => !pools.are_known(),
        }
    }

    /// A claim that was being given up: finished when the block is empty, taken up again when somebody lives in it.
    fn give_up(&self, node: &str, claim: AffinitySeen<'_>) -> Progress<()> {
        match self.view.block(claim.affinity.cidr)? {
            BlockSeen::Present { block, .. } if block.is_of_node(node) && block.is_in_use() => {
                Err(with_state(claim, AffinityState::Pending))
            }
            BlockSeen::Unreadable { .. } => Ok(()),
            _ => self.take_away(node, claim),
        }
    }

    /// The block with nothing changed but its sequence number and the time of the claim.
    fn touched(&self, block: &Block, revision: &str) -> Halt {
        let mut block = block.clone();
        block.sequence_number = block.sequence_number.wrapping_add(1);
        block.affinity_claim_time = Some(self.now.to_string());
        Halt::update(name::block(block.cidr), revision, Object::Block(block))
    }

    /// Announces a claim to a block that says it is the node's, and to which the node has no claim. Such a block stays
    /// behind when two of one node decide on different states of it.
    pub(super) fn adopt(&self, node: &str) -> Progress<()> {
        let claims = self.view.affinities_of(node)?;
        let claimed: BTreeSet<IpNet> = claims.iter().map(|a| a.affinity.cidr).collect();
        let blocks = self.view.blocks()?.into_iter();
        for block in blocks.filter(|b| b.is_of_node(node) && !claimed.contains(&b.cidr)) {
            let understood = matches!(self.view.block(block.cidr)?, BlockSeen::Present { .. });
            if understood && self.view.affinity(node, block.cidr)?.is_none() {
                return Err(announced(node, block.cidr));
            }
        }
        Ok(())
    }

    /// The first write of a new claim: a pending affinity for the first block, in the node's walking order through the
    /// pools in turn, that belongs to nobody; or what makes another node's empty block one that belongs to nobody.
    ///
    /// # Errors
    /// When the node may not have another block, or there is none.
    pub(super) fn new_block(
        &mut self,
        node: &'a str,
        usage: crate::pool::Use,
        family: Family,
        pools: &[&Pool],
    ) -> Progress<Halt> {
        if self.settle(node)?.is_unsettled {
            return Ok(Halt::Wait);
        }
        self.view.affinities()?;
        self.adopt(node)?;
        self.within_limits(node, family, pools)?;
        // Blocks that others have announced a claim to are left to them; but if nothing else is there, they may have died.
        for pending in [Pending::Respected, Pending::Ignored] {
            let mut taken = self.of_others(node, pending)?;
            let own = self.view.affinities_of(node)?;
            taken.extend(own.iter().map(|a| a.affinity.cidr));
            for pool in pools {
                if let Some(cidr) = self.unclaimed(node, pool, taken.clone())? {
                    return Ok(announced(node, cidr));
                }
            }
            if let (Pending::Respected, Some(halt)) = (pending, self.reclaim(node, pools)?) {
                return Ok(halt);
            }
        }
        Err(Error::Exhausted {
            node: node.to_owned(),
            usage,
            pools: pools.iter().map(|p| PoolSize::of(p)).collect(),
        }
        .into())
    }

    fn within_limits(&self, node: &str, family: Family, pools: &[&Pool]) -> Progress<()> {
        let limits = self.view.policy().limits;
        let node_name = node.to_owned();
        if !limits.auto_allocate_blocks {
            let node = node_name;
            return Err(Error::AutoAllocateOff { node, family }.into());
        }
        let limit = limits.max_blocks();
        let claims = self.view.affinities_of(node)?;
        let counts = |cidr: IpNet| pools.iter().any(|p| p.cidr().contains(&cidr));
        let owned = claims.iter().filter(|a| counts(a.affinity.cidr)).count();
        if u32::try_from(owned).is_ok_and(|owned| owned < limit) {
            return Ok(());
        }
        Err(Error::BlockLimit {
            node: node_name,
            family,
            owned,
            limit,
        }
        .into())
    }

    /// The first block of a pool that belongs to nobody, and in whose way no object is that cannot be understood.
    fn unclaimed(&self, node: &str, pool: &Pool, mut taken: Vec<IpNet>) -> Progress<Option<IpNet>> {
        let reserved = &self.view.policy().reserved;
        while let Some(cidr) = pool.free_block(node, &taken.iter().copied().collect(), reserved) {
            let unreadable = matches!(self.view.block(cidr)?, BlockSeen::Unreadable { .. });
            if !unreadable && !self.view.is_there(Kind::Affinity, &name::affinity(node, cidr))? {
                return Ok(Some(cidr));
            }
            taken.push(cidr);
        }
        Ok(None)
    }

    /// What is not the node's to claim: every block that is there, whoever's it is and of whatever size, and others' live
    /// claims.
    fn of_others(&self, node: &str, pending: Pending) -> Progress<Vec<IpNet>> {
        let mut taken: Vec<IpNet> = self.view.blocks()?.into_iter().map(|block| block.cidr).collect();
        let claims = self.view.affinities()?;
        let live = claims
            .iter()
            .map(|claim| claim.affinity)
            .filter(|a| !a.is_deleted() && !a.is_of_node(node));
        let counting = live.filter(|a| a.state == AffinityState::Confirmed || pending == Pending::Respected);
        taken.extend(counting.map(|a| a.cidr));
        Ok(taken)
    }
}

/// Whether other nodes' unconfirmed claims count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    Respected,
    Ignored,
}

/// The announcement of a claim.
pub(super) fn announced(node: &str, cidr: IpNet) -> Halt {
    let affinity = Affinity::pending(node, cidr);
    Halt::create(name::affinity(node, cidr), Object::Affinity(affinity))
}

pub(super) fn with_state(claim: AffinitySeen<'_>, state: AffinityState) -> Halt {
    let mut affinity = claim.affinity.clone();
    affinity.state = state;
    Halt::update(claim.name.to_owned(), claim.revision, Object::Affinity(affinity))
}

pub(super) fn withdrawn(claim: AffinitySeen<'_>) -> Halt {
    Halt::delete(Kind::Affinity, claim.name, claim.revision)
}
