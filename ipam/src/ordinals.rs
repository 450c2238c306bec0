//! The addresses of a sound block: taken in the order in which they became free, and given back to the end.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::block::{Attribute, Block};
use crate::check::{self, BlockFault, address_of};
use crate::timestamp::Timestamp;

/// A block whose parts were checked to agree, and that keeps them so.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordinals(Block);

impl Ordinals {
    /// Takes a sound block to work on. Ordinals that are neither taken nor free become free, behind all others.
    ///
    /// # Errors
    /// When the block is not sound.
    pub fn of(block: &Block) -> Result<Self, BlockFault> {
        check::block(block)?;
        let mut block = block.clone();
        let lost: Vec<i64> = (0_i64..)
            .zip(&block.allocations)
            .filter(|(ordinal, allocation)| allocation.is_none() && !block.unallocated.contains(ordinal))
            .map(|(ordinal, _)| ordinal)
            .collect();
        block.unallocated.extend(lost);
        Ok(Self(block))
    }

    /// The block as it is now.
    #[must_use]
    pub fn block(&self) -> &Block {
        &self.0
    }

    /// The block as it is to be written: with the next sequence number.
    #[must_use]
    pub fn into_written(mut self) -> Block {
        self.0.sequence_number = self.0.sequence_number.wrapping_add(1);
        self.0
    }

    /// Number of free addresses.
    #[must_use]
    pub fn free(&self) -> usize {
        self.0.unallocated.len()
    }

    /// The addresses of a handle, ascending, each with its attributes.
    pub fn of_handle<'a>(&'a self, handle: &'a str) -> impl Iterator<Item = (IpAddr, &'a Attribute)> + 'a {
        self.0
            .allocations
            .iter()
            .enumerate()
            .filter_map(move |(ordinal, index)| {
                let attribute = self.attribute((*index)?)?;
                is_of(attribute, handle).then(|| (address_of(self.0.cidr, ordinal), attribute))
            })
    }

    fn attribute(&self, index: i64) -> Option<&Attribute> {
        self.0.attributes.get(usize::try_from(index).ok()?)
    }

    /// Takes up to `count` free addresses for a handle, those that have been free for longest.
    pub fn assign(
        &mut self,
        count: usize,
        handle: &str,
        secondary: &BTreeMap<String, String>,
    ) -> Vec<IpAddr> {
        let block = &mut self.0;
        let taken: Vec<i64> = block
            .unallocated
            .drain(..count.min(block.unallocated.len()))
            .collect();
        if taken.is_empty() {
            return Vec::new();
        }
        let attribute = Attribute {
            handle_id: Some(handle.to_owned()),
            secondary: Some(secondary.clone()),
            ..Attribute::default()
        };
        let same = block.attributes.iter().position(|a| *a == attribute);
        let index = same.unwrap_or_else(|| {
            block.attributes.push(attribute);
            block.attributes.len() - 1
        });
        let sequence_number = block.sequence_number;
        let sequence_numbers = block.sequence_number_for_allocation.get_or_insert_default();
        let mut addresses = Vec::with_capacity(taken.len());
        for ordinal in taken {
            sequence_numbers.insert(ordinal.to_string(), sequence_number);
            let Ok(slot) = usize::try_from(ordinal) else {
                continue;
            };
            if let Some(allocation) = block.allocations.get_mut(slot) {
                *allocation = i64::try_from(index).ok();
                addresses.push(address_of(block.cidr, slot));
            }
        }
        addresses
    }

    /// Gives back all addresses of a handle, and returns them. With `rest`, they stay taken, by nobody, stamped with that
    /// instant, until [`Ordinals::collect`] finds that they have rested long enough.
    pub fn release(&mut self, handle: &str, rest: Option<Timestamp>) -> Vec<IpAddr> {
        let released = self.of_handle(handle).map(|(address, _)| address).collect();
        match rest {
            None => self.free_where(|attribute| is_of(attribute, handle)),
            Some(now) => {
                for attribute in self.0.attributes.iter_mut().filter(|a| is_of(a, handle)) {
                    attribute.handle_id = None;
                    attribute.released_at = Some(now.to_string());
                }
            }
        }
        released
    }

    /// Frees what was released at least `cooldown` seconds before `now`.
    pub fn collect(&mut self, now: Timestamp, cooldown: u32) {
        self.free_where(|attribute| {
            attribute.handle_id.is_none()
                && attribute
                    .released_at
                    .as_deref()
                    .and_then(Timestamp::parse)
                    .is_some_and(|released| released.plus_seconds(cooldown) <= now)
        });
    }

    /// Frees every ordinal whose attributes fulfil the condition. Attributes to which no ordinal refers any more go, and
    /// the others move up, as in Calico.
    fn free_where(&mut self, condition: impl Fn(&Attribute) -> bool) {
        let hits: Vec<bool> = self.0.attributes.iter().map(condition).collect();
        if !hits.contains(&true) {
            return;
        }
        let block = &mut self.0;
        let mut used = vec![false; block.attributes.len()];
        for (ordinal, allocation) in (0_i64..).zip(&mut block.allocations) {
            let Some(index) = allocation.and_then(|i| usize::try_from(i).ok()) else {
                continue;
            };
            if hits.get(index).copied().unwrap_or(false) {
                *allocation = None;
                block.unallocated.push(ordinal);
                if let Some(numbers) = &mut block.sequence_number_for_allocation {
                    numbers.remove(&ordinal.to_string());
                }
            } else if let Some(used) = used.get_mut(index) {
                *used = true;
            }
        }
        let mut next = 0_i64..;
        let renumbered: Vec<Option<i64>> = used
            .iter()
            .map(|used| if *used { next.next() } else { None })
            .collect();
        for allocation in &mut block.allocations {
            *allocation =
                allocation.and_then(|i| renumbered.get(usize::try_from(i).ok()?).copied().flatten());
        }
        let mut used = used.iter();
        block.attributes.retain(|_| used.next().copied().unwrap_or(true));
    }
}

/// Whether attributes are those of a handle. What follows a carriage return is no part of it: a migration from another
/// allocator wrote such handles.
fn is_of(attribute: &Attribute, handle: &str) -> bool {
    attribute.handle_id.as_deref().and_then(|h| h.split('\r').next()) == Some(handle)
}
