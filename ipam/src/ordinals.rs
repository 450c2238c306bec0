//! The addresses of a sound block: taken in the order in which they became free, and given back to the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

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
        Ok(Self::of_sound(block))
    }

    /// The same for a block that was found to be sound.
    pub(crate) fn of_sound(block: &Block) -> Self {
        let mut block = block.clone();
        block.unallocated.extend(lost(&block));
        Self(block)
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
    pub fn of_handle<'a>(&'a self, handle: &str) -> impl Iterator<Item = (IpAddr, &'a Attribute)> + use<'a> {
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
        let mut takes = vec![false; block.allocations.len()];
        let mut any = false;
        for ordinal in ordinals {
            if let (Some(None), Some(takes)) = (block.allocations.get(*ordinal), takes.get_mut(*ordinal)) {
                *takes = true;
                any = true;
            }
        }
        if !any {
            return Vec::new();
        }
        // FIFO reuse: what is taken leaves its place in the queue, the others keep theirs.
        let is_taken = |free: &i64| usize::try_from(*free).is_ok_and(|o| takes.get(o) == Some(&true));
        block.unallocated.retain(|free| !is_taken(free));
        let index = attribute_index(block, handle, secondary);
        let sequence_number = block.sequence_number;
        let numbers = block.sequence_number_for_allocation.get_or_insert_default();
        let mut addresses = Vec::with_capacity(ordinals.len());
        for ordinal in ordinals.iter().copied() {
            let allocation = block.allocations.get_mut(ordinal);
            if let Some(allocation) = allocation.filter(|a| a.is_none()) {
                *allocation = i64::try_from(index).ok();
                numbers.insert(ordinal, sequence_number);
                addresses.push(address_of(block.cidr, ordinal));
            }
        }
        addresses
    }

    /// Gives back all addresses of a handle, and returns them; see [`Ordinals::give_back`].
    pub fn release(&mut self, handle: &str, rest: Option<Timestamp>) -> Vec<IpAddr> {
        let ordinals: BTreeSet<usize> = ordinals_of_handle(&self.0, handle)
            .map(|(ordinal, _)| ordinal)
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
            let mut resting = Attribute::clone(attribute);
            resting.handle_id = None;
            resting.released_at = Some(now.to_string());
            let resting = Arc::new(resting);
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
        let mut frees = Vec::new();
        for (ordinal, allocation) in block.allocations.iter_mut().enumerate() {
            let attribute = allocation.and_then(|index| block.attributes.get(usize::try_from(index).ok()?));
            if attribute.is_some_and(|attribute| condition(ordinal, attribute)) {
                *allocation = None;
                frees.push(ordinal);
            }
        }
        if frees.is_empty() {
            return;
        }
        for ordinal in frees {
            block.unallocated.extend(i64::try_from(ordinal));
            if let Some(numbers) = &mut block.sequence_number_for_allocation {
                numbers.remove(ordinal);
            }
        }
        self.drop_unused_attributes();
    }

    /// Drops the attributes to which no ordinal refers.
    pub(crate) fn drop_unused_attributes(&mut self) {
        let block = &mut self.0;
        let mut used = vec![false; block.attributes.len()];
        for index in block.allocations.iter().flatten() {
            if let Some(used) = usize::try_from(*index).ok().and_then(|i| used.get_mut(i)) {
                *used = true;
            }
        }
        if used.iter().all(|used| *used) {
            return;
        }
        // Where the attributes at each index go: those before it that stay.
        let mut next = 0_i64..;
        let places: Vec<Option<i64>> = used
            .iter()
            .map(|used| if *used { next.next() } else { None })
            .collect();
        for allocation in &mut block.allocations {
            *allocation = allocation.and_then(|index| *places.get(usize::try_from(index).ok()?)?);
        }
        let mut used = used.into_iter();
        block.attributes.retain(|_| used.next().unwrap_or(false));
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
        block.attributes.push(Arc::new(Attribute {
            handle_id: Some(handle.to_owned()),
            secondary: Some(secondary.clone()),
            ..Attribute::default()
        }));
        block.attributes.len() - 1
    })
}

/// The addresses of a handle in a block, ascending, each with its attributes.
pub(crate) fn of_handle<'a>(
    block: &'a Block,
    handle: &str,
) -> impl Iterator<Item = (IpAddr, &'a Attribute)> + use<'a> {
    ordinals_of_handle(block, handle).map(|(ordinal, attribute)| (address_of(block.cidr, ordinal), attribute))
}

/// The ordinals of a handle in a block, ascending, each with its attributes.
pub(crate) fn ordinals_of_handle<'a>(
    block: &'a Block,
    handle: &str,
) -> impl Iterator<Item = (usize, &'a Attribute)> + use<'a> {
    // Attributes are compared once each, not once for each address; and nearly always there are none, or one.
    let matching: Vec<(i64, &Attribute)> = (0_i64..)
        .zip(&block.attributes)
        .filter(|(_, attribute)| attribute.is_of_handle(handle))
        .map(|(index, attribute)| (index, attribute.as_ref()))
        .collect();
    let allocations = if matching.is_empty() {
        &[][..]
    } else {
        &block.allocations
    };
    allocations
        .iter()
        .enumerate()
        .filter_map(move |(ordinal, index)| {
            let index = (*index)?;
            let place = matching.binary_search_by_key(&index, |(i, _)| *i).ok()?;
            Some((ordinal, matching.get(place)?.1))
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
