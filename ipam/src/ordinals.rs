//! The addresses of a sound block: taken in the order in which they became free, and given back to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::block::{Attribute, Block, address_of};
use crate::check::{self, BlockFault};
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
        block.unallocated.extend(lost(&block));
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
        of_handle(&self.0, handle)
    }

    /// Takes up to `count` free addresses for a handle, those that have been free for longest.
    pub fn assign(
        &mut self,
        count: usize,
        handle: &str,
        secondary: &BTreeMap<String, String>,
    ) -> Vec<IpAddr> {
        let ordinals: Vec<usize> = ordinals(&self.0.unallocated).take(count).collect();
        self.take(&ordinals, handle, secondary)
    }

    /// Takes these ordinals for a handle, as far as they are free; returns their addresses.
    pub fn take(
        &mut self,
        ordinals: &[usize],
        handle: &str,
        secondary: &BTreeMap<String, String>,
    ) -> Vec<IpAddr> {
        let block = &mut self.0;
        let free = |ordinal: &&usize| block.allocations.get(**ordinal).is_some_and(Option::is_none);
        let taken: BTreeSet<i64> = ordinals
            .iter()
            .filter(free)
            .filter_map(|o| i64::try_from(*o).ok())
            .collect();
        if taken.is_empty() {
            return Vec::new();
        }
        // FIFO reuse: what is taken leaves its place in the queue, the others keep theirs.
        block.unallocated.retain(|ordinal| !taken.contains(ordinal));
        let index = attribute_index(block, handle, secondary);
        let sequence_number = block.sequence_number;
        let numbers = block.sequence_number_for_allocation.get_or_insert_default();
        let mut addresses = Vec::with_capacity(taken.len());
        for ordinal in ordinals.iter().copied() {
            let allocation = block.allocations.get_mut(ordinal);
            if let Some(allocation) = allocation.filter(|a| a.is_none()) {
                *allocation = i64::try_from(index).ok();
                numbers.insert(ordinal.to_string(), sequence_number);
                addresses.push(address_of(block.cidr, ordinal));
            }
        }
        addresses
    }

    /// Gives back all addresses of a handle, and returns them; see [`Ordinals::give_back`].
    pub fn release(&mut self, handle: &str, rest: Option<Timestamp>) -> Vec<IpAddr> {
        let ordinals: BTreeSet<usize> = self
            .0
            .taken()
            .filter(|t| t.attribute.handle() == Some(handle))
            .map(|t| t.ordinal)
            .collect();
        self.give_back(&ordinals, rest);
        ordinals.into_iter().map(|o| address_of(self.0.cidr, o)).collect()
    }

    /// Gives back these ordinals. With `rest`, they stay taken, by nobody, stamped with that instant, until
    /// [`Ordinals::collect`] finds that they have rested long enough.
    pub fn give_back(&mut self, given: &BTreeSet<usize>, rest: Option<Timestamp>) {
        match rest {
            None => self.free_where(|ordinal, _| given.contains(&ordinal)),
            Some(now) => self.lay_to_rest(given, now),
        }
    }

    /// Stamps the attributes of these ordinals as released. Where other ordinals share them, they get some of their own.
    fn lay_to_rest(&mut self, given: &BTreeSet<usize>, now: Timestamp) {
        let block = &mut self.0;
        let mut by_attribute: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
        for (ordinal, index) in block.allocations.iter().enumerate() {
            if let Some(index) = index {
                by_attribute.entry(*index).or_default().push(ordinal);
            }
        }
        for (index, sharers) in by_attribute {
            let going: Vec<usize> = sharers.iter().copied().filter(|o| given.contains(o)).collect();
            let slot = usize::try_from(index).unwrap_or(usize::MAX);
            let Some(attribute) = block
                .attributes
                .get(slot)
                .filter(|a| !going.is_empty() && !a.rests())
            else {
                continue;
            };
            let mut resting = attribute.clone();
            resting.handle_id = None;
            resting.released_at = Some(now.to_string());
            if going.len() == sharers.len() {
                block.attributes.splice(slot..=slot, [resting]);
                continue;
            }
            let own = i64::try_from(block.attributes.len()).ok();
            block.attributes.push(resting);
            for ordinal in going {
                if let Some(allocation) = block.allocations.get_mut(ordinal) {
                    *allocation = own;
                }
            }
        }
    }

    /// Frees what was released at least `cooldown` seconds before `now`.
    pub fn collect(&mut self, now: Timestamp, cooldown: u32) {
        self.free_where(|_, attribute| has_rested(attribute, now, cooldown));
    }

    /// Frees every ordinal that fulfils the condition. Attributes to which no ordinal refers any more go, and the others
    /// move up, as in Calico.
    fn free_where(&mut self, condition: impl Fn(usize, &Attribute) -> bool) {
        let block = &mut self.0;
        let frees: Vec<usize> = block
            .taken()
            .filter(|t| condition(t.ordinal, t.attribute))
            .map(|t| t.ordinal)
            .collect();
        if frees.is_empty() {
            return;
        }
        for ordinal in frees {
            if let Some(allocation) = block.allocations.get_mut(ordinal) {
                *allocation = None;
            }
            block.unallocated.extend(i64::try_from(ordinal));
            if let Some(numbers) = &mut block.sequence_number_for_allocation {
                numbers.remove(&ordinal.to_string());
            }
        }
        self.drop_unused_attributes();
    }

    /// Drops the attributes to which no ordinal refers.
    pub(crate) fn drop_unused_attributes(&mut self) {
        let block = &mut self.0;
        let used: BTreeSet<i64> = block.allocations.iter().flatten().copied().collect();
        let renumbered: BTreeMap<i64, i64> = used.iter().copied().zip(0_i64..).collect();
        for allocation in &mut block.allocations {
            *allocation = allocation.and_then(|index| renumbered.get(&index).copied());
        }
        let mut index = 0_i64..;
        block
            .attributes
            .retain(|_| index.next().is_some_and(|i| used.contains(&i)));
    }
}

/// The index of the attributes of a handle, which are added if need be: all its addresses share them.
fn attribute_index(block: &mut Block, handle: &str, secondary: &BTreeMap<String, String>) -> usize {
    let same = block.attributes.iter().position(|a| {
        a.handle_id.as_deref() == Some(handle)
            && a.secondary.as_ref() == Some(secondary)
            && a.released_at.is_none()
            && a.unknown.is_empty()
    });
    same.unwrap_or_else(|| {
        block.attributes.push(Attribute {
            handle_id: Some(handle.to_owned()),
            secondary: Some(secondary.clone()),
            ..Attribute::default()
        });
        block.attributes.len() - 1
    })
}

/// The addresses of a handle in a block, ascending, each with its attributes.
pub(crate) fn of_handle<'a>(
    block: &'a Block,
    handle: &'a str,
) -> impl Iterator<Item = (IpAddr, &'a Attribute)> + 'a {
    // Attributes are compared once each, not once for each address.
    let matching: Vec<bool> = block
        .attributes
        .iter()
        .map(|a| a.handle() == Some(handle))
        .collect();
    let any = matching.contains(&true);
    block
        .allocations
        .iter()
        .enumerate()
        .filter(move |_| any)
        .filter_map(move |(ordinal, index)| {
            let index = usize::try_from((*index)?).ok()?;
            let attribute = block
                .attributes
                .get(index)
                .filter(|_| matching.get(index) == Some(&true))?;
            Some((address_of(block.cidr, ordinal), attribute))
        })
}

/// The ordinals of a sound block that can be taken at this instant, those that have been free for longest first; the last
/// are those that have rested long enough, as [`Ordinals::collect`] would free them.
pub(crate) fn available(block: &Block, now: Timestamp, cooldown: u32) -> Vec<usize> {
    let mut all: Vec<usize> = ordinals(&block.unallocated).collect();
    all.extend(ordinals(&lost(block)));
    if block.attributes.iter().any(|a| has_rested(a, now, cooldown)) {
        all.extend(
            block
                .taken()
                .filter(|t| has_rested(t.attribute, now, cooldown))
                .map(|t| t.ordinal),
        );
    }
    all
}

/// Ordinals that are neither taken nor free.
fn lost(block: &Block) -> Vec<i64> {
    let nulls = block.allocations.iter().filter(|a| a.is_none()).count();
    if nulls == block.unallocated.len() {
        return Vec::new();
    }
    let free: BTreeSet<i64> = block.unallocated.iter().copied().collect();
    (0_i64..)
        .zip(&block.allocations)
        .filter(|(ordinal, allocation)| allocation.is_none() && !free.contains(ordinal))
        .map(|(ordinal, _)| ordinal)
        .collect()
}

fn ordinals(queue: &[i64]) -> impl Iterator<Item = usize> + '_ {
    queue.iter().filter_map(|o| usize::try_from(*o).ok())
}

fn has_rested(attribute: &Attribute, now: Timestamp, cooldown: u32) -> bool {
    attribute.rests()
        && attribute
            .released_at
            .as_deref()
            .and_then(Timestamp::parse)
            .is_some_and(|released| released.plus_seconds(cooldown) <= now)
}
