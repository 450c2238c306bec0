//! Handles, blocks and claims that nobody needs.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::allocator::{Key, Kind, Object, Write};
use crate::block::{Block, Owner};
use crate::name;
use crate::ordinals::Ordinals;
use crate::pool::Family;
use crate::snapshot::{Snapshot, Stored};
use crate::timestamp::Timestamp;

use super::{Collection, Leftover, Memory, Reclaim, Settings, Sighting};

/// For so long a handle may count an address that its owner is about to take, in seconds: between two writes of one request.
const HANDLE_AGE_SECONDS: u64 = 60;

pub(super) fn collect(
    snapshot: &Snapshot,
    settings: Settings,
    memory: &Memory,
    now: Timestamp,
    collection: &mut Collection,
) {
    handles(snapshot, memory, now, collection);
    marks(snapshot, memory, now, collection);
    for stored in snapshot.live_blocks() {
        rested(snapshot, stored, now, collection);
    }
    gone_nodes(snapshot, memory, now, collection);
    if settings.grace_seconds > 0 {
        empty_blocks(snapshot, settings, memory, now, collection);
    }
}

/// Handles that do not count what they have, unchanged since they were last seen not to. One that is missing though it has
/// addresses is made: no request leaves it so, only one that was held up for so long that its count was taken back.
fn handles(snapshot: &Snapshot, memory: &Memory, now: Timestamp, collection: &mut Collection) {
    let mut has = snapshot.counted();
    for stored in snapshot.live_handles() {
        let mut right = stored.spec.clone();
        let found = has.remove(&stored.name);
        right.block = found.map(|h| h.block).unwrap_or_default();
        if right == stored.spec && !right.block.is_empty() {
            continue;
        }
        let key = (stored.name.clone(), stored.revision.clone());
        let sighting = Sighting::again(memory.handles.get(&key), now);
        collection.memory.handles.insert(key, sighting);
        if sighting.is_proven(now, HANDLE_AGE_SECONDS) {
            let (name, revision) = (stored.name.clone(), stored.revision.clone());
            let handle = stored.spec.handle_id.clone();
            let write = if right.block.is_empty() {
                let key = Key::new(Kind::Handle, name);
                Write::Delete { key, revision }
            } else {
                let object = Object::Handle(right);
                Write::Update {
                    name,
                    revision,
                    object,
                }
            };
            collection.reclaims.push(Reclaim::Handle { handle, write });
        } else {
            collection.wait(Leftover::Handle);
        }
    }
    for (name, missing) in has {
        let key = (name.clone(), String::new());
        let sighting = Sighting::again(memory.handles.get(&key), now);
        collection.memory.handles.insert(key, sighting);
        if sighting.is_proven(now, HANDLE_AGE_SECONDS) {
            let handle = missing.handle_id.clone();
            let object = Object::Handle(missing);
            let write = Write::Create { name, object };
            collection.reclaims.push(Reclaim::Handle { handle, write });
        } else {
            collection.wait(Leftover::Handle);
        }
    }
}

/// Objects that are marked as deleted: whoever marked them is about to delete them, unless it died.
fn marks(snapshot: &Snapshot, memory: &Memory, now: Timestamp, collection: &mut Collection) {
    for (key, revision) in snapshot.marks() {
        let seen = (key.clone(), revision.to_owned());
        let sighting = Sighting::again(memory.marks.get(&seen), now);
        collection.memory.marks.insert(seen, sighting);
        if sighting.is_proven(now, 0) {
            let write = Write::Delete {
                key: key.clone(),
                revision: revision.to_owned(),
            };
            collection.reclaims.push(Reclaim::Mark { key, write });
        } else {
            collection.wait(Leftover::Mark);
        }
    }
}

/// Addresses that have rested long enough. Any write of their block frees them; here nobody writes it.
fn rested(snapshot: &Snapshot, stored: &Stored<Block>, now: Timestamp, collection: &mut Collection) {
    if !stored.spec.attributes.iter().any(|attribute| attribute.rests()) {
        return;
    }
    let Ok(mut ordinals) = Ordinals::of(&stored.spec) else {
        return;
    };
    ordinals.collect(now, snapshot.limits.cooldown_seconds);
    if ordinals.free() == stored.spec.unallocated.len() {
        return;
    }
    let block = stored.spec.cidr;
    let (name, revision) = (stored.name.clone(), stored.revision.clone());
    // A block that belongs to nobody is only there for the addresses in it.
    let write = if stored.spec.affinity.is_none() && !ordinals.block().is_in_use() {
        let key = Key::new(Kind::Block, name);
        Write::Delete { key, revision }
    } else {
        let object = Object::Block(ordinals.into_written());
        Write::Update {
            name,
            revision,
            object,
        }
    };
    collection.reclaims.push(Reclaim::Rested { block, write });
}

/// Whether a node is gone, and nobody has an address that was taken for it.
pub(super) fn is_rid_of(snapshot: &Snapshot, node: &str) -> bool {
    !snapshot.nodes.contains_key(node) && !snapshot.held().any(|held| held.node() == Some(node))
}

/// Claims of nodes that are gone, once none of their addresses is left. Others' addresses in their blocks stay.
fn gone_nodes(snapshot: &Snapshot, memory: &Memory, now: Timestamp, collection: &mut Collection) {
    let claimed = snapshot
        .live_affinities()
        .filter(|a| a.spec.kind() == "host")
        .map(|a| (a.spec.node.as_str(), a.spec.cidr));
    let owned = snapshot.live_blocks().filter_map(|b| match b.spec.owner() {
        Owner::Host(node) => Some((node, b.spec.cidr)),
        Owner::Virtual(_) | Owner::None => None,
    });
    let gone: BTreeSet<(&str, IpNet)> = claimed
        .chain(owned)
        .filter(|(node, _)| !snapshot.nodes.contains_key(*node))
        .collect();
    if gone.is_empty() {
        return;
    }
    let alive_in_them: BTreeSet<&str> = snapshot.held().filter_map(|held| held.node()).collect();
    for (node, block) in gone {
        let key = (node.to_owned(), block);
        let sighting = Sighting::again(memory.blocks_of_gone_nodes.get(&key), now);
        collection.memory.blocks_of_gone_nodes.insert(key, sighting);
        if sighting.is_proven(now, 0) && !alive_in_them.contains(node) {
            let node = node.to_owned();
            collection.reclaims.push(Reclaim::GoneNode { node, block });
        } else {
            collection.wait(Leftover::Claim);
        }
    }
}

/// The confirmed blocks of a node in the family of `block`.
fn blocks_of(snapshot: &Snapshot, node: &str, family: Family) -> BTreeSet<IpNet> {
    let confirmed = snapshot
        .live_affinities()
        .filter(|a| a.spec.is_confirmed_for(node));
    confirmed
        .map(|a| a.spec.cidr)
        .filter(|cidr| Family::of(*cidr) == family)
        .collect()
}

/// Whether a node has another block of the family.
pub(super) fn may_spare(snapshot: &Snapshot, node: &str, block: IpNet) -> bool {
    let blocks = blocks_of(snapshot, node, Family::of(block));
    blocks.contains(&block) && blocks.len() > 1
}

/// Blocks that were empty both times and not written in between; never a node's last of a family, which its next pod would
/// have to claim again.
fn empty_blocks(
    snapshot: &Snapshot,
    settings: Settings,
    memory: &Memory,
    now: Timestamp,
    collection: &mut Collection,
) {
    let mut owned: BTreeMap<(&str, Family), BTreeSet<IpNet>> = BTreeMap::new();
    for stored in snapshot.live_affinities() {
        let claim = &stored.spec;
        if claim.is_confirmed_for(&claim.node) {
            let of_family = owned.entry((claim.node.as_str(), Family::of(claim.cidr)));
            of_family.or_default().insert(claim.cidr);
        }
    }
    for stored in snapshot.live_blocks() {
        let block = &stored.spec;
        let Owner::Host(node) = block.owner() else {
            continue;
        };
        let is_named = name::block(block.cidr) == stored.name;
        if block.is_in_use() || !is_named || !snapshot.nodes.contains_key(node) {
            continue;
        }
        let key = (block.cidr, block.sequence_number);
        let sighting = Sighting::again(memory.empty_blocks.get(&key), now);
        collection.memory.empty_blocks.insert(key, sighting);
        let Some(left) = owned.get_mut(&(node, Family::of(block.cidr))) else {
            continue;
        };
        if left.len() < 2 || !left.contains(&block.cidr) {
            continue;
        }
        if sighting.is_proven(now, settings.grace_seconds) {
            left.remove(&block.cidr);
            collection.reclaims.push(Reclaim::EmptyBlock {
                node: node.to_owned(),
                block: block.cidr,
                sequence_number: block.sequence_number,
            });
        } else {
            collection.wait(Leftover::EmptyBlock);
        }
    }
}
