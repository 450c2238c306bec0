//! Addresses for a handle.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::Error;
use crate::handle::Handle;
use crate::name;
use crate::ordinals::Ordinals;
use crate::pool::{Family, number};
use crate::timestamp::Timestamp;

use super::claim::{self, Owned};
use super::view::{BlockSeen, HandleSeen};
use super::{Assign, Halt, Kind, Object, Progress, View};

/// As many addresses as are asked for, those that the handle has on the node first.
pub(super) fn plan(view: &View, request: &Assign, now: Timestamp) -> Progress<Vec<IpAddr>> {
    if request.handle.is_empty() {
        return Err(Error::EmptyHandle {
            node: request.node.clone(),
        }
        .into());
    }
    let mut addresses = existing(view, request)?;
    let missing = request.count.saturating_sub(addresses.len());
    if missing == 0 {
        record(view, request, None)?;
        addresses.truncate(request.count);
        return Ok(addresses);
    }
    let owned = claim::settle(view, &request.node, now)?;
    let Some((revision, mut ordinals)) = with_free_address(view, request, &owned, now)? else {
        return Err(claim::new_claim(
            view,
            &request.node,
            request.usage,
            request.family,
        )?);
    };
    let cidr = ordinals.block().cidr;
    record(view, request, Some((&ordinals, missing)))?;
    let mut attributes = request.attributes.clone();
    attributes.insert("node".to_owned(), request.node.clone());
    ordinals.assign(missing, &request.handle, &attributes);
    let block = ordinals.into_written();
    Err(Halt::update(name::block(cidr), revision, Object::Block(block)))
}

/// The addresses of the handle on the node, ascending.
fn existing(view: &View, request: &Assign) -> Progress<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    if let HandleSeen::Present { handle, .. } = view.handle(&request.handle)? {
        for cidr in handle.block.keys().filter(|c| Family::of(**c) == request.family) {
            let Some(ordinals) = sound(view, *cidr)? else {
                continue;
            };
            let of_node = ordinals.block().is_of_node(&request.node);
            let here = ordinals.of_handle(&request.handle).filter(|(_, attribute)| {
                let node = attribute.secondary.as_ref().and_then(|s| s.get("node"));
                node.map_or(of_node, |node| *node == request.node)
            });
            addresses.extend(here.map(|(address, _)| address));
        }
    }
    addresses.sort_by_key(|a| number(*a));
    Ok(addresses)
}

/// A block that a handle says it has addresses in; `None` where there is no block.
pub(super) fn sound(view: &View, cidr: IpNet) -> Progress<Option<Ordinals>> {
    match view.block(cidr)? {
        BlockSeen::Absent | BlockSeen::Deleted { .. } => Ok(None),
        BlockSeen::Unreadable { reason } => Err(Error::Unreadable {
            key: claim::key_of(cidr),
            reason: reason.to_owned(),
        }
        .into()),
        BlockSeen::Present { block, .. } => Ok(Some(Ordinals::of(block).map_err(Error::from)?)),
    }
}

/// The first of the node's blocks that has a free address: pools in their order, blocks in order of address.
fn with_free_address<'a>(
    view: &'a View,
    request: &Assign,
    owned: &[Owned<'_>],
    now: Timestamp,
) -> Progress<Option<(&'a str, Ordinals)>> {
    for pool in view.pools_for(request.usage, request.family) {
        for block in owned.iter().filter(|o| pool.cidr().contains(&o.cidr())) {
            let stands = claim::stand(view, &request.node, block, now)?;
            if let Some(found) = stands.filter(|(_, ordinals)| ordinals.free() > 0) {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// Has the handle count what it has in the node's blocks, and what it is about to get in one of them (a block, and how many
/// more are wanted). Counts that a crash left too high are set right with it.
fn record(view: &View, request: &Assign, wanted: Option<(&Ordinals, usize)>) -> Progress<()> {
    let name = name::handle(&request.handle);
    let (old, mut new) = match view.handle(&request.handle)? {
        HandleSeen::Present { revision, handle } => (Some((revision, handle)), handle.clone()),
        HandleSeen::Absent => (None, Handle::new(&request.handle)),
        HandleSeen::Deleted { revision } => return Err(Halt::delete(Kind::Handle, &name, revision)),
        HandleSeen::Unreadable { reason } => {
            return Err(Error::Unreadable {
                key: super::Key::new(Kind::Handle, name),
                reason: reason.to_owned(),
            }
            .into());
        }
    };
    let cidrs: Vec<IpNet> = new.block.keys().copied().collect();
    for cidr in cidrs {
        // Only of its own blocks does the node know that nobody else is about to take an address for this handle in it.
        if let Some(ordinals) = sound(view, cidr)?.filter(|o| o.block().is_of_node(&request.node)) {
            new.set(cidr, count_of(&ordinals, &request.handle));
        }
    }
    if let Some((ordinals, missing)) = wanted {
        let more = u32::try_from(missing.min(ordinals.free())).unwrap_or(u32::MAX);
        new.set(
            ordinals.block().cidr,
            count_of(ordinals, &request.handle).saturating_add(more),
        );
    }
    match old {
        Some((_, old)) if *old == new => Ok(()),
        Some((revision, _)) => Err(Halt::update(name, revision, Object::Handle(new))),
        None => Err(Halt::create(name, Object::Handle(new))),
    }
}

fn count_of(ordinals: &Ordinals, handle: &str) -> u32 {
    u32::try_from(ordinals.of_handle(handle).count()).unwrap_or(u32::MAX)
}
