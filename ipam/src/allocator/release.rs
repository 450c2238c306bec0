//! Addresses given back by a handle.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::error::Error;
use crate::name;
use crate::ordinals::Ordinals;
use crate::timestamp::Timestamp;

use super::claim::key_of;
use super::view::{BlockSeen, HandleSeen};
use super::{Halt, Key, Kind, Object, Progress, Release, View, Write};

/// Frees the handle's addresses, block by block, and then forgets the handle.
pub(super) fn plan(view: &View, request: &Release, now: Timestamp) -> Progress<()> {
    if request.handle.is_empty() {
        return Err(Error::EmptyHandle {
            node: request.node.clone(),
        }
        .into());
    }
    let mut broken = BTreeSet::new();
    let mut first_fault = None;
    for (cidr, certain) in places(view, request)? {
        match free(view, request, cidr, now) {
            // The handle's other blocks can be freed all the same.
            Err(Halt::Error(error)) if certain => {
                broken.insert(cidr);
                first_fault.get_or_insert(error);
            }
            // A block that the handle does not name is searched only in case, and is no reason to fail.
            Ok(()) | Err(Halt::Error(_)) => {}
            Err(step @ Halt::Step(_)) => return Err(step),
        }
    }
    forget(view, request, &broken)?;
    first_fault.map_or(Ok(()), |error| Err(Halt::Error(error)))
}

/// Where the handle's addresses can be: in the blocks that it names (true), and in those of the node (false), which are
/// searched in case the handle lost count.
fn places(view: &View, request: &Release) -> Progress<Vec<(IpNet, bool)>> {
    let named: BTreeSet<IpNet> = match view.handle(&request.handle)? {
        HandleSeen::Present { handle, .. } => handle.block.keys().copied().collect(),
        HandleSeen::Unreadable { reason } => {
            return Err(Error::Unreadable {
                key: Key::new(Kind::Handle, name::handle(&request.handle)),
                reason: reason.to_owned(),
            }
            .into());
        }
        HandleSeen::Absent | HandleSeen::Deleted { .. } => BTreeSet::new(),
    };
    let affinities = view.affinities()?;
    let own = affinities
        .iter()
        .filter(|(_, _, a)| a.is_of_node(&request.node))
        .map(|(_, _, a)| a.cidr);
    let all: BTreeSet<IpNet> = own.chain(named.iter().copied()).collect();
    Ok(all
        .into_iter()
        .map(|cidr| (cidr, named.contains(&cidr)))
        .collect())
}

/// Frees the handle's addresses in one block.
fn free(view: &View, request: &Release, cidr: IpNet, now: Timestamp) -> Progress<()> {
    let (block, revision) = match view.block(cidr)? {
        BlockSeen::Present { block, revision } => (block, revision),
        BlockSeen::Absent | BlockSeen::Deleted { .. } => return Ok(()),
        BlockSeen::Unreadable { reason } => {
            return Err(Error::Unreadable {
                key: key_of(cidr),
                reason: reason.to_owned(),
            }
            .into());
        }
    };
    let name = name::block(cidr);
    let mut ordinals = Ordinals::of(block).map_err(Error::from)?;
    let cooldown = view.limits().cooldown_seconds;
    let frees = ordinals.release(&request.handle, (cooldown > 0).then_some(now));
    if frees.is_empty() {
        return Ok(());
    }
    ordinals.collect(now, cooldown);
    // A block that belongs to nobody is only there for the addresses in it.
    let useless = block.affinity.is_none() && !ordinals.block().is_in_use();
    let revision = revision.to_owned();
    let write = if useless {
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
    Err(Halt::write_freeing(write, frees))
}

/// Deletes the handle, all of whose addresses are free, but for those in blocks that are broken.
fn forget(view: &View, request: &Release, broken: &BTreeSet<IpNet>) -> Progress<()> {
    let name = name::handle(&request.handle);
    match view.handle(&request.handle)? {
        HandleSeen::Absent | HandleSeen::Unreadable { .. } => Ok(()),
        HandleSeen::Deleted { revision } => Err(Halt::delete(Kind::Handle, &name, revision)),
        HandleSeen::Present { revision, handle } => {
            let mut rest = handle.clone();
            rest.block.retain(|cidr, _| broken.contains(cidr));
            if rest.block.is_empty() {
                Err(Halt::delete(Kind::Handle, &name, revision))
            } else if rest == *handle {
                Ok(())
            } else {
                Err(Halt::update(name, revision, Object::Handle(rest)))
            }
        }
    }
}
