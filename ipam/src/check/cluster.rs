//! All that is wrong between the objects of a cluster, and between them and the pods and nodes that use addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::affinity::{Affinity, AffinityState};
use crate::allocator::{Held, HeldAddress, Key, Kind, Object, Release, Request, Unclaim, Write};
use crate::block::{Block, Owner, address_of};
use crate::check::{Finding, named_block};
use crate::collect::leaks;
use crate::handle::Handle;
use crate::ordinals::Ordinals;
use crate::pool::Excluded;
use crate::ranges::bounds;
use crate::snapshot::{Action, Snapshot, Stored};
use crate::timestamp::Timestamp;

/// A thing that is wrong, and what mends it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is wrong.
    pub finding: Finding,
    /// What mends it, in this order. Each step names revisions or sequence numbers, so that it does nothing when things have
    /// changed since; without any step a person must decide.
    pub mends: Vec<Action>,
}

impl Problem {
    fn of(finding: Finding) -> Self {
        Self {
            finding,
            mends: Vec::new(),
        }
    }

    fn mended(finding: Finding, mend: Action) -> Self {
        Self {
            finding,
            mends: vec![mend],
        }
    }
}

/// Looks for everything that is wrong. Pods and nodes are only held against addresses where the snapshot is in sync: what is
/// not there may only not have been told yet.
#[must_use]
pub fn cluster(snapshot: &Snapshot, now: Timestamp) -> Vec<Problem> {
    let mut problems = settings(snapshot);
    for stored in snapshot.live_blocks() {
        block(snapshot, stored, now, &mut problems);
    }
    overlaps(snapshot, &mut problems);
    claims(snapshot, &mut problems);
    marks(snapshot, &mut problems);
    handles(snapshot, &mut problems);
    if snapshot.missing().is_empty() {
        users(snapshot, &mut problems);
        let leaked = leaks(snapshot).into_iter().map(|leak| {
            let release = Request::Release(Release {
                node: leak.node.clone().unwrap_or_default(),
                what: Held::Addresses(vec![HeldAddress {
                    address: leak.address,
                    handle: leak.handle.clone(),
                    sequence_number: Some(leak.sequence_number),
                }]),
            });
            Problem::mended(Finding::NotInUse(leak), Action::Request(release))
        });
        problems.extend(leaked);
    }
    problems
}

fn settings(snapshot: &Snapshot) -> Vec<Problem> {
    let wrong = snapshot.pools.wrong().iter().cloned().map(Finding::Pool);
    let overlapping = snapshot.pools.iter().filter_map(|pool| match pool.excluded() {
        Some(excluded @ Excluded::Overlaps { .. }) => Some(Finding::PoolOverlap {
            pool: pool.name().to_owned(),
            excluded: excluded.clone(),
        }),
        _ => None,
    });
    let limits = snapshot.limits.check().err().map(Finding::Limits);
    wrong.chain(overlapping).chain(limits).map(Problem::of).collect()
}

/// One block for itself.
fn block(snapshot: &Snapshot, stored: &Stored<Block>, now: Timestamp, problems: &mut Vec<Problem>) {
    let block = &stored.spec;
    if let Err(fault) = named_block(&stored.name, block) {
        problems.push(Problem::of(Finding::Block(fault)));
        return;
    }
    let used: BTreeSet<i64> = block.allocations.iter().flatten().copied().collect();
    let free: BTreeSet<i64> = block.unallocated.iter().copied().collect();
    let cidr = block.cidr;
    let mut untidy = Vec::new();
    for (index, attribute) in (0_i64..).zip(&block.attributes) {
        if !used.contains(&index) {
            untidy.push(Finding::UnusedAttribute {
                block: cidr,
                index: usize::try_from(index).unwrap_or(usize::MAX),
                handle: attribute.handle().unwrap_or("none").to_owned(),
            });
        }
    }
    for (ordinal, allocation) in (0_i64..).zip(&block.allocations) {
        if allocation.is_none() && !free.contains(&ordinal) {
            let address = address_of(cidr, usize::try_from(ordinal).unwrap_or(usize::MAX));
            untidy.push(Finding::LostAddress { block: cidr, address });
        }
    }
    problems.extend(untidy.into_iter().map(|finding| match tidied(stored) {
        Some(write) => Problem::mended(finding, Action::Write(write)),
        None => Problem::of(finding),
    }));
    for taken in block.taken().filter(|t| t.attribute.rests()) {
        let released_at = taken.attribute.released_at.clone().unwrap_or_default();
        if Timestamp::parse(&released_at).is_none_or(|at| at > now) {
            problems.push(Problem::of(Finding::ReleasedInFuture {
                block: cidr,
                address: taken.address,
                released_at,
            }));
        }
    }
    if snapshot.pools.are_known() && snapshot.pools.of_block(cidr).is_none() {
        problems.push(Problem::of(Finding::BlockWithoutPool {
            block: cidr,
            owner: owner(block),
        }));
    }
}

/// The block as any write leaves it: every address taken or free, and no attributes without an address.
fn tidied(stored: &Stored<Block>) -> Option<Write> {
    let mut ordinals = Ordinals::of(&stored.spec).ok()?;
    ordinals.drop_unused_attributes();
    Some(Write::Update {
        name: stored.name.clone(),
        revision: stored.revision.clone(),
        object: Object::Block(ordinals.into_written()),
    })
}

fn owner(block: &Block) -> String {
    block.affinity.clone().unwrap_or_else(|| "nobody".to_owned())
}

fn overlaps(snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let mut blocks: Vec<IpNet> = snapshot.live_blocks().map(|b| b.spec.cidr).collect();
    blocks.sort_unstable_by_key(|b| (bounds(*b).0, bounds(*b).1));
    for pair in blocks.windows(2) {
        if let [block, other] = pair
            && (block.contains(other) || other.contains(block))
        {
            problems.push(Problem::of(Finding::Overlap {
                block: *block,
                other: *other,
            }));
        }
    }
}

/// Claims against blocks.
fn claims(snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let blocks: BTreeMap<IpNet, &Block> = snapshot.live_blocks().map(|b| (b.spec.cidr, &b.spec)).collect();
    let mut confirmed: BTreeMap<IpNet, &str> = BTreeMap::new();
    let mut claimed = BTreeSet::new();
    for stored in snapshot.live_affinities() {
        let affinity = &stored.spec;
        let (node, cidr, state) = (affinity.node.clone(), affinity.cidr, affinity.state);
        claimed.insert((affinity.kind(), affinity.node.as_str(), cidr));
        if state == AffinityState::Confirmed
            && let Some(other) = confirmed.insert(cidr, &affinity.node)
        {
            problems.push(Problem::of(Finding::TwoOwners {
                block: cidr,
                node: other.to_owned(),
                other: node.clone(),
            }));
        }
        let finding = match blocks.get(&cidr) {
            None => Finding::AffinityWithoutBlock {
                node,
                block: cidr,
                state,
            },
            Some(block) if !is_of(block, affinity) => Finding::AffinityOfAnother {
                node,
                block: cidr,
                state,
                owner: owner(block),
            },
            Some(_) if state != AffinityState::Confirmed => Finding::HalfDone {
                node,
                block: cidr,
                state,
            },
            Some(_) => continue,
        };
        let is_left_to_its_node = matches!(finding, Finding::HalfDone { .. });
        let is_host = affinity.kind() == "host";
        problems.push(match is_host && !is_left_to_its_node {
            true => Problem::mended(finding, unclaim(&affinity.node, cidr)),
            false => Problem::of(finding),
        });
    }
    for stored in snapshot.live_blocks() {
        let Owner::Host(node) = stored.spec.owner() else {
            continue;
        };
        let cidr = stored.spec.cidr;
        let (block, node_name) = (cidr, node.to_owned());
        if snapshot.missing().is_empty() && !snapshot.nodes.contains_key(node) {
            let finding = Finding::GoneNode {
                block,
                node: node_name,
            };
            problems.push(Problem::mended(finding, unclaim(node, cidr)));
        } else if !claimed.contains(&("host", node, cidr)) {
            let node = node_name;
            problems.push(Problem::of(Finding::BlockWithoutAffinity { block, node }));
        }
    }
}

fn is_of(block: &Block, affinity: &Affinity) -> bool {
    block.affinity.as_deref() == Some(format!("{}:{}", affinity.kind(), affinity.node).as_str())
}

fn unclaim(node: &str, block: IpNet) -> Action {
    Action::Request(Request::Unclaim(Unclaim {
        node: node.to_owned(),
        block,
        must_be_empty: false,
        sequence_number: None,
    }))
}

/// Objects that were deleted, and whose deletion was not finished.
fn marks(snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    for (key, revision) in snapshot.marks() {
        let delete = Write::Delete {
            key: key.clone(),
            revision: revision.to_owned(),
        };
        problems.push(Problem::mended(Finding::Deleted { key }, Action::Write(delete)));
    }
}

/// Handles against blocks.
fn handles(snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let mut has = snapshot.counted();
    // A block that is broken cannot say what a handle has.
    let broken: BTreeSet<IpNet> = snapshot
        .live_blocks()
        .filter(|b| named_block(&b.name, &b.spec).is_err())
        .map(|b| b.spec.cidr)
        .collect();
    for stored in snapshot.live_handles() {
        let found = has.remove(&stored.name);
        handle(stored, found.as_ref(), &broken, problems);
    }
    for (name, handle) in has {
        let finding = Finding::MissingHandle {
            handle: handle.handle_id.clone(),
            addresses: handle
                .block
                .values()
                .map(|n| usize::try_from(*n).unwrap_or(0))
                .sum(),
        };
        let object = Object::Handle(handle);
        problems.push(Problem::mended(
            finding,
            Action::Write(Write::Create { name, object }),
        ));
    }
}

fn handle(
    stored: &Stored<Handle>,
    found: Option<&Handle>,
    broken: &BTreeSet<IpNet>,
    problems: &mut Vec<Problem>,
) {
    let mut right = stored.spec.clone();
    let found_blocks = found.iter().flat_map(|h| h.block.keys());
    let blocks: BTreeSet<IpNet> = stored.spec.block.keys().chain(found_blocks).copied().collect();
    let mut wrong = Vec::new();
    for block in blocks.difference(broken) {
        let has = found.map_or(0, |h| h.count(*block));
        let counts = stored.spec.count(*block);
        if has != counts {
            right.set(*block, has);
            let handle = stored.spec.handle_id.clone();
            wrong.push(Finding::WrongCount {
                handle,
                block: *block,
                counts,
                has,
            });
        }
    }
    let (name, revision) = (stored.name.clone(), stored.revision.clone());
    if right.block.is_empty() {
        let counts = stored
            .spec
            .block
            .values()
            .fold(0, |sum: u32, n| sum.saturating_add(*n));
        let handle = stored.spec.handle_id.clone();
        let key = Key::new(Kind::Handle, name);
        let write = Action::Write(Write::Delete { key, revision });
        problems.push(Problem::mended(Finding::EmptyHandle { handle, counts }, write));
        return;
    }
    let object = Object::Handle(right);
    let write = Action::Write(Write::Update {
        name,
        revision,
        object,
    });
    problems.extend(
        wrong
            .into_iter()
            .map(|finding| Problem::mended(finding, write.clone())),
    );
}

/// Who uses addresses, against who has them.
fn users(snapshot: &Snapshot, problems: &mut Vec<Problem>) {
    let taken: BTreeSet<IpAddr> = snapshot.held().map(|held| held.address).collect();
    let pods = snapshot
        .pods
        .iter()
        .flat_map(|pod| pod.addresses.iter().map(|a| (*a, pod.to_string())));
    let tunnels = snapshot.nodes.iter().flat_map(|(node, addresses)| {
        addresses
            .iter()
            .map(move |a| (*a, format!("the tunnel of node {node}")))
    });
    let mut users: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (address, user) in pods.chain(tunnels) {
        if let Some(other) = users.get(&address) {
            let (user, other) = (other.clone(), user.clone());
            problems.push(Problem::of(Finding::TwoUsers { address, user, other }));
            continue;
        }
        users.insert(address, user.clone());
        if taken.contains(&address) {
            continue;
        }
        problems.push(Problem::of(match snapshot.pools.of_address(address) {
            Some(_) => Finding::NotAllocated { address, user },
            None => Finding::NotInPool { address, user },
        }));
    }
}
