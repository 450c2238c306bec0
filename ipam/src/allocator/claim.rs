//! Claims of blocks: finishing what is half done, and making new ones.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::affinity::{Affinity, AffinityState};
use crate::block::Block;
use crate::error::{Error, PoolSize};
use crate::name;
use crate::ordinals::Ordinals;
use crate::pool::{Family, Pool, Ranges, Use};
use crate::timestamp::Timestamp;

use super::view::BlockSeen;
use super::{Claim, Halt, Key, Kind, Object, Progress, Read, Step, View};

/// A confirmed claim of the node.
#[derive(Clone, Copy)]
pub(super) struct Owned<'a> {
    name: &'a str,
    revision: &'a str,
    affinity: &'a Affinity,
}

impl Owned<'_> {
    pub(super) fn cidr(&self) -> IpNet {
        self.affinity.cidr
    }
}

/// The node's confirmed blocks, at least one of them in a pool for this use.
pub(super) fn plan(view: &View, request: &Claim, now: Timestamp) -> Progress<Vec<IpNet>> {
    let mut owned = settle(view, &request.node, now)?;
    adopt(view, &request.node)?;
    owned.retain(|o| Family::of(o.cidr()) == request.family);
    for block in &owned {
        stand(view, &request.node, block, now)?;
    }
    let claimed: Vec<IpNet> = owned.iter().map(Owned::cidr).collect();
    if view
        .pools_for(request.usage, request.family)
        .any(|p| claimed.iter().any(|c| p.cidr().contains(c)))
    {
        return Ok(claimed);
    }
    Err(new_claim(view, &request.node, request.usage, request.family)?)
}

/// Carries on whatever the node's claims were left at, until none is between two states, and gives the confirmed ones, in
/// order of address.
pub(super) fn settle<'a>(view: &'a View, node: &str, now: Timestamp) -> Progress<Vec<Owned<'a>>> {
    let mut owned = Vec::new();
    for (name, revision, affinity) in view.affinities()? {
        if !affinity.is_of_node(node) {
            continue;
        }
        if affinity.is_deleted() {
            return Err(Halt::delete(Kind::Affinity, name, revision));
        }
        let claim = Owned {
            name,
            revision,
            affinity,
        };
        match affinity.state {
            AffinityState::Confirmed => owned.push(claim),
            AffinityState::Pending => carry_on(view, node, &claim, now)?,
            AffinityState::PendingDeletion => give_up(view, node, &claim)?,
        }
    }
    owned.sort_by_key(Owned::cidr);
    Ok(owned)
}

/// A pending claim: the block is made and the claim confirmed, or it is taken back. Nothing is done where the block cannot
/// be read.
///
/// What is confirmed must be there, and stay. Somebody else of this node (an agent that is being replaced, Calico's own
/// plugin) may have decided to delete the block, on an earlier state of the claim. So a block is only trusted that was
/// written after the claim was seen to be pending: whoever decided on what was before is refused now.
fn carry_on(view: &View, node: &str, claim: &Owned<'_>, now: Timestamp) -> Progress<()> {
    let cidr = claim.cidr();
    match view.block(cidr)? {
        BlockSeen::Present { block, .. }
            if block.is_of_node(node) && view.wrote_block_after(cidr, claim.name) =>
        {
            Err(with_state(claim, AffinityState::Confirmed))
        }
        BlockSeen::Present { block, revision } if block.is_of_node(node) => {
            Err(touched(block, revision, now))
        }
        BlockSeen::Present { .. } => Err(withdrawn(claim)),
        BlockSeen::Unreadable { .. } => Ok(()),
        BlockSeen::Deleted { revision } => Err(Halt::delete(Kind::Block, &name::block(cidr), revision)),
        BlockSeen::Absent => {
            // A pool may be gone or cut otherwise since, and somebody may have a block of another size there.
            if !view.may_have_block(cidr)
                || Ranges::from_iter(of_others(view, node, Pending::Ignored)?).overlaps(cidr)
            {
                return Err(withdrawn(claim));
            }
            let block = Block::new(cidr, node, now);
            Err(Halt::create(name::block(cidr), Object::Block(block)))
        }
    }
}

/// A claim that was being given up: finished when the block is empty, taken up again when somebody lives in it.
fn give_up(view: &View, node: &str, claim: &Owned<'_>) -> Progress<()> {
    match view.block(claim.cidr())? {
        BlockSeen::Present { block, .. } if block.is_of_node(node) && block.is_in_use() => {
            Err(with_state(claim, AffinityState::Pending))
        }
        BlockSeen::Present { block, revision } if block.is_of_node(node) => {
            // The claim may have been made anew between reading it and reading the block.
            if !view.saw_affinity_after(claim.name, claim.cidr()) {
                let key = Key::new(Kind::Affinity, claim.name);
                return Err(Halt::step(Step::Read(Read::Get(key))));
            }
            Err(Halt::delete(Kind::Block, &name::block(claim.cidr()), revision))
        }
        BlockSeen::Unreadable { .. } => Ok(()),
        BlockSeen::Present { .. } | BlockSeen::Deleted { .. } | BlockSeen::Absent => Err(withdrawn(claim)),
    }
}

/// The sound block of a confirmed claim and its revision, with what has rested long enough free already; `None` when nothing
/// can be taken from it, because it is broken. A claim to a block that is not there any more is made anew, one to another's block is
/// taken back.
pub(super) fn stand<'a>(
    view: &'a View,
    node: &str,
    claim: &Owned<'_>,
    now: Timestamp,
) -> Progress<Option<(&'a str, Ordinals)>> {
    match view.block(claim.cidr())? {
        BlockSeen::Absent | BlockSeen::Deleted { .. } => Err(with_state(claim, AffinityState::Pending)),
        BlockSeen::Unreadable { .. } => Ok(None),
        BlockSeen::Present { block, .. } if !block.is_of_node(node) => Err(withdrawn(claim)),
        BlockSeen::Present { block, revision } => Ok(Ordinals::of(block).ok().map(|mut ordinals| {
            ordinals.collect(now, view.limits().cooldown_seconds);
            (revision, ordinals)
        })),
    }
}

/// The block with nothing changed but its sequence number and the time of the claim.
fn touched(block: &Block, revision: &str, now: Timestamp) -> Halt {
    let mut block = block.clone();
    block.sequence_number = block.sequence_number.wrapping_add(1);
    block.affinity_claim_time = Some(now.to_string());
    Halt::update(name::block(block.cidr), revision, Object::Block(block))
}

/// Announces a claim to a block that says it is the node's, and to which the node has no claim. Such a block stays behind
/// when two of one node decide on different states of it.
fn adopt(view: &View, node: &str) -> Progress<()> {
    let claims = view.affinities()?;
    let claimed: BTreeSet<IpNet> = claims
        .iter()
        .filter(|(_, _, a)| a.is_of_node(node))
        .map(|(_, _, a)| a.cidr)
        .collect();
    for block in view
        .blocks()?
        .into_iter()
        .filter(|b| b.is_of_node(node) && !claimed.contains(&b.cidr))
    {
        let name = name::affinity(node, block.cidr);
        let understood = matches!(view.block(block.cidr)?, BlockSeen::Present { .. });
        if understood && !view.is_there(Kind::Affinity, &name)? {
            return Err(Halt::create(
                name,
                Object::Affinity(Affinity::pending(node, block.cidr)),
            ));
        }
    }
    Ok(())
}

fn with_state(claim: &Owned<'_>, state: AffinityState) -> Halt {
    let mut affinity = claim.affinity.clone();
    affinity.state = state;
    Halt::update(claim.name.to_owned(), claim.revision, Object::Affinity(affinity))
}

fn withdrawn(claim: &Owned<'_>) -> Halt {
    Halt::delete(Kind::Affinity, claim.name, claim.revision)
}

/// The first write of a new claim: a pending affinity for the first block, in the node's walking order through the pools
/// in turn, that belongs to nobody.
pub(super) fn new_claim(view: &View, node: &str, usage: Use, family: Family) -> Progress<Halt> {
    let pools: Vec<&Pool> = view.pools_for(usage, family).collect();
    if pools.is_empty() {
        let refusals = view.refusals(usage, family);
        return Err(Error::NoPool {
            node: node.to_owned(),
            usage,
            family,
            refusals,
        }
        .into());
    }
    adopt(view, node)?;
    within_limits(view, node, family)?;
    // Blocks that others have announced a claim to are left to them; but if nothing else is there, they may have died.
    for pending in [Pending::Respected, Pending::Ignored] {
        let mut taken = of_others(view, node, pending)?;
        let claims = view.affinities()?;
        taken.extend(
            claims
                .iter()
                .filter(|(_, _, a)| a.is_of_node(node))
                .map(|(_, _, a)| a.cidr),
        );
        for pool in &pools {
            if let Some(cidr) = unclaimed(view, node, pool, taken.clone())? {
                let affinity = Object::Affinity(Affinity::pending(node, cidr));
                return Ok(Halt::create(name::affinity(node, cidr), affinity));
            }
        }
    }
    Err(Error::Exhausted {
        node: node.to_owned(),
        usage,
        pools: pools.into_iter().map(PoolSize::of).collect(),
    }
    .into())
}

fn within_limits(view: &View, node: &str, family: Family) -> Progress<()> {
    let node = node.to_owned();
    if !view.limits().auto_allocate_blocks {
        return Err(Error::AutoAllocateOff { node, family }.into());
    }
    let limit = view.limits().max_blocks();
    let claims = view.affinities()?;
    let owned = claims
        .iter()
        .filter(|(_, _, a)| a.is_of_node(&node) && Family::of(a.cidr) == family)
        .count();
    if u32::try_from(owned).is_ok_and(|owned| owned < limit) {
        return Ok(());
    }
    Err(Error::BlockLimit {
        node,
        family,
        owned,
        limit,
    }
    .into())
}

/// The first block of a pool that belongs to nobody, and in whose way no object is that cannot be understood.
fn unclaimed(view: &View, node: &str, pool: &Pool, mut taken: Vec<IpNet>) -> Progress<Option<IpNet>> {
    while let Some(cidr) = pool.free_block(node, &taken.iter().copied().collect()) {
        let unreadable = matches!(view.block(cidr)?, BlockSeen::Unreadable { .. });
        if !unreadable && !view.is_there(Kind::Affinity, &name::affinity(node, cidr))? {
            return Ok(Some(cidr));
        }
        taken.push(cidr);
    }
    Ok(None)
}

/// Whether other nodes' unconfirmed claims count.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pending {
    Respected,
    Ignored,
}

/// What is not the node's to claim: every block that is there, whoever's it is and of whatever size, and others' live claims.
fn of_others(view: &View, node: &str, pending: Pending) -> Progress<Vec<IpNet>> {
    let mut taken: Vec<IpNet> = view.blocks()?.into_iter().map(|block| block.cidr).collect();
    let claims = view.affinities()?;
    let live = claims
        .iter()
        .map(|(_, _, affinity)| affinity)
        .filter(|a| !a.is_deleted() && !a.is_of_node(node));
    let counting = live.filter(|a| a.state == AffinityState::Confirmed || pending == Pending::Respected);
    taken.extend(counting.map(|a| a.cidr));
    Ok(taken)
}

/// The key of a block, for errors.
pub(super) fn key_of(cidr: IpNet) -> Key {
    Key::new(Kind::Block, name::block(cidr))
}
