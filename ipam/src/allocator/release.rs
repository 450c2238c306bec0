//! Addresses given back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::block::Block;
use crate::error::Error;
use crate::name;
use crate::ordinals::ordinals_of_handle;

use super::object::{Key, Kind, Object};
use super::request::{Held, HeldAddress, Outcome, Release};
use super::round::Round;
use super::view::{BlockSeen, HandleSeen};
use super::{Halt, Progress, delete, update};

impl<'a> Round<'a> {
    pub(super) fn release(&mut self, index: usize, request: &'a Release) -> Progress<Outcome> {
        match &request.what {
            Held::Handle(handle) => self.release_handle(index, &request.node, handle),
            Held::Addresses(addresses) => self.release_addresses(index, addresses),
        }
    }

    /// Frees the handle's addresses, block by block, and then forgets the handle.
    fn release_handle(&mut self, index: usize, node: &'a str, handle: &str) -> Progress<Outcome> {
        if handle.is_empty() {
            let node = node.to_owned();
            return Err(Error::EmptyHandle { node }.into());
        }
        let mut broken = BTreeSet::new();
        let mut first_fault = None;
        let mut is_under_way = false;
        for (cidr, certain) in self.places(node, handle)? {
            match self.free(index, handle, cidr) {
                Ok(found) => is_under_way |= found,
                // The handle's other blocks can be freed all the same.
                Err(Halt::Error(error)) if certain => {
                    broken.insert(cidr);
                    first_fault.get_or_insert(error);
                }
                // A block that the handle does not name is searched only in case, and is no reason to fail.
                Err(Halt::Error(_)) => {}
                Err(halt) => {
                    self.note(halt);
                    is_under_way = true;
                }
            }
        }
        if is_under_way {
            return Err(Halt::Wait);
        }
        self.forget(handle, &broken)?;
        // The node's claims too may be out of date after this: an empty block of a pool that does not want it.
        self.settle(node)?;
        first_fault.map_or(Ok(Outcome::Released), |error| Err(Halt::Error(error)))
    }

    /// Where the handle's addresses can be: in the blocks that it names (true), and in those of the node (false), which are
    /// searched in case the handle lost count.
    fn places(&self, node: &str, handle: &str) -> Progress<Vec<(IpNet, bool)>> {
        let named: BTreeSet<IpNet> = match self.view.handle(handle)? {
            HandleSeen::Present { handle, .. } => handle.block.keys().copied().collect(),
            HandleSeen::Unreadable { reason } => {
                let key = Key::new(Kind::Handle, name::handle(handle));
                let reason = reason.to_owned();
                return Err(Error::Unreadable { key, reason }.into());
            }
            HandleSeen::Absent | HandleSeen::Unknown | HandleSeen::Deleted { .. } => BTreeSet::new(),
        };
        let affinities = self.view.affinities_of(node)?;
        let own = affinities.iter().map(|a| a.affinity.cidr);
        let all: BTreeSet<IpNet> = own.chain(named.iter().copied()).collect();
        Ok(all
            .into_iter()
            .map(|cidr| (cidr, named.contains(&cidr)))
            .collect())
    }

    /// Frees the handle's addresses in one block; whether there were any.
    fn free(&mut self, index: usize, handle: &str, cidr: IpNet) -> Progress<bool> {
        let Some(block) = self.present(cidr)? else {
            return Ok(false);
        };
        let of_handle = ordinals_of_handle(block, handle);
        let ordinals: BTreeSet<usize> = of_handle.map(|(ordinal, _)| ordinal).collect();
        if ordinals.is_empty() {
            return Ok(false);
        }
        self.give_back(index, cidr, &ordinals)?;
        Ok(true)
    }

    /// A sound block; `None` where there is none.
    pub(super) fn present(&self, cidr: IpNet) -> Progress<Option<&'a Block>> {
        match self.view.block(cidr)? {
            BlockSeen::Present {
                fault: Some(fault), ..
            } => Err(Error::from(fault.clone()).into()),
            BlockSeen::Present { block, .. } => Ok(Some(block)),
            BlockSeen::Absent | BlockSeen::Deleted { .. } => Ok(None),
            BlockSeen::Unreadable { reason } => {
                let key = Key::new(Kind::Block, name::block(cidr));
                let reason = reason.to_owned();
                Err(Error::Unreadable { key, reason }.into())
            }
        }
    }

    /// Deletes the handle, all of whose addresses are free, but for those in blocks that are broken.
    fn forget(&self, handle: &str, broken: &BTreeSet<IpNet>) -> Progress<()> {
        let name = name::handle(handle);
        match self.view.handle(handle)? {
            HandleSeen::Absent | HandleSeen::Unknown | HandleSeen::Unreadable { .. } => Ok(()),
            HandleSeen::Deleted { revision } => Err(Halt::delete(Kind::Handle, &name, revision)),
            HandleSeen::Present { revision, handle } => {
                let mut rest = handle.clone();
                rest.block.retain(|cidr, _| broken.contains(cidr));
                if rest.block.is_empty() {
                    Err(Halt::settle(delete(Kind::Handle, &name, revision)))
                } else if rest == *handle {
                    Ok(())
                } else {
                    Err(Halt::settle(update(name, revision, Object::Handle(rest))))
                }
            }
        }
    }

    /// Frees these addresses, if each is still whose it is said to be.
    fn release_addresses(&mut self, index: usize, addresses: &[HeldAddress]) -> Progress<Outcome> {
        let mut places: BTreeMap<IpNet, BTreeSet<usize>> = BTreeMap::new();
        for held in addresses {
            let Some(block) = self.block_of(held.address)? else {
                continue;
            };
            let Some(ordinal) = block.ordinal_of(held.address) else {
                continue;
            };
            if block.allocations.get(ordinal).copied().flatten().is_none() {
                continue;
            }
            // Calico's release: one address that is another's by now, and the whole request is refused.
            is_still(held, block, ordinal)?;
            if block.holder(ordinal).is_some_and(|a| !a.rests()) {
                places.entry(block.cidr).or_default().insert(ordinal);
            }
        }
        if places.is_empty() {
            return Ok(Outcome::Released);
        }
        for (cidr, ordinals) in places {
            self.give_back(index, cidr, &ordinals)?;
        }
        Err(Halt::Wait)
    }

    /// The block that has an address, in whatever pool it is or was.
    fn block_of(&self, address: IpAddr) -> Progress<Option<&'a Block>> {
        let pool = self.view.policy().pools.of_address(address);
        if let Some(cidr) = pool.and_then(|p| p.block_of(address))
            && let Some(block) = self.present(cidr)?
        {
            return Ok(Some(block));
        }
        let blocks = self.view.blocks()?;
        match blocks.iter().find(|b| b.cidr.contains(&address)) {
            Some(block) => self.present(block.cidr),
            None => Ok(None),
        }
    }
}

/// Whether an address that is taken is still whose it is said to be.
fn is_still(held: &HeldAddress, block: &Block, ordinal: usize) -> Progress<()> {
    let address = held.address;
    let found = block.sequence_number_of(ordinal);
    if let Some(requested) = held.sequence_number
        && requested != found
    {
        return Err(Error::BadSequenceNumber {
            address,
            requested,
            found,
        }
        .into());
    }
    let holder = block.holder(ordinal).and_then(|a| a.handle());
    match &held.handle {
        Some(requested) if holder.is_some_and(|h| h != requested) => Err(Error::BadHandle {
            address,
            requested: requested.clone(),
            found: holder.unwrap_or_default().to_owned(),
        }
        .into()),
        Some(_) | None => Ok(()),
    }
}
