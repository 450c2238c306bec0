//! Whether a block's parts agree with each other ([`block()`]), and whether the objects of a cluster do ([`cluster()`]).

mod cluster;
mod finding;

use std::net::IpAddr;

use ipnet::IpNet;

use crate::block::{Block, address_of, size_of};
use crate::name;

pub use cluster::{Problem, cluster};
pub use finding::Finding;

/// What is wrong with a block. Such a block is left as it is, and nothing is taken from it or given back to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockFault {
    /// The object's name is that of another block.
    #[error("IPAMBlock {name}: its cidr is {cidr}, whose block is named {expected}; delete the wrong one")]
    Name {
        /// The object.
        name: String,
        /// Its range.
        cidr: IpNet,
        /// The name that a block of this range has.
        expected: String,
    },
    /// The range is no block's.
    #[error(
        "block {block}: a block has at most 4096 addresses and no host bits, this is {block}; its network is {network}"
    )]
    Range {
        /// The block.
        block: IpNet,
        /// The address it should begin with.
        network: IpAddr,
    },
    /// There are more or fewer allocations than addresses.
    #[error(
        "block {block}: allocations has {entries} entries, the block has {size} addresses; make them equal"
    )]
    Size {
        /// The block.
        block: IpNet,
        /// Entries of `allocations`.
        entries: usize,
        /// Addresses of the block.
        size: usize,
    },
    /// An ordinal refers to attributes that are not there.
    #[error(
        "block {block}: ordinal {ordinal} ({address}) refers to attributes[{index}], but attributes has {attributes} entries; \
         set it to null and add it to unallocated if nobody uses the address"
    )]
    AttributeIndex {
        /// The block.
        block: IpNet,
        /// The ordinal.
        ordinal: usize,
        /// Its address.
        address: IpAddr,
        /// What it refers to.
        index: i64,
        /// Entries of `attributes`.
        attributes: usize,
    },
    /// A free ordinal is outside the block.
    #[error("block {block}: unallocated has ordinal {ordinal}, the block's are 0 to {last}; remove it")]
    Ordinal {
        /// The block.
        block: IpNet,
        /// The ordinal.
        ordinal: i64,
        /// The last ordinal of the block.
        last: usize,
    },
    /// An ordinal is free and taken.
    #[error(
        "block {block}: ordinal {ordinal} ({address}) is in unallocated, but allocations says attributes[{index}]; \
         remove it from unallocated if the address is in use"
    )]
    AllocatedAndUnallocated {
        /// The block.
        block: IpNet,
        /// The ordinal.
        ordinal: usize,
        /// Its address.
        address: IpAddr,
        /// The attributes it refers to.
        index: i64,
    },
    /// An ordinal is free twice, and would be given out twice.
    #[error("block {block}: ordinal {ordinal} ({address}) is in unallocated twice; remove one")]
    UnallocatedTwice {
        /// The block.
        block: IpNet,
        /// The ordinal.
        ordinal: usize,
        /// Its address.
        address: IpAddr,
    },
}

/// Checks that the object `name` is the block that it says it is, and sound.
///
/// # Errors
/// The first fault found.
pub fn named_block(object: &str, block: &Block) -> Result<(), BlockFault> {
    let expected = name::block(block.cidr);
    if expected != object {
        return Err(BlockFault::Name {
            name: object.to_owned(),
            cidr: block.cidr,
            expected,
        });
    }
    self::block(block)
}

/// Checks that a block's parts agree. An ordinal that is neither taken nor free is no fault: nobody can be harmed by
/// freeing it, which the next write does.
///
/// # Errors
/// The first fault found.
pub fn block(block: &Block) -> Result<(), BlockFault> {
    let cidr = block.cidr;
    let Some(size) = size_of(cidr).filter(|_| cidr == cidr.trunc()) else {
        return Err(BlockFault::Range {
            block: cidr,
            network: cidr.network(),
        });
    };
    if block.allocations.len() != size {
        return Err(BlockFault::Size {
            block: cidr,
            entries: block.allocations.len(),
            size,
        });
    }
    allocations(block)?;
    unallocated(block)
}

fn allocations(block: &Block) -> Result<(), BlockFault> {
    for (ordinal, index) in block.allocations.iter().enumerate() {
        let Some(index) = *index else { continue };
        let attributes = block.attributes.len();
        if usize::try_from(index).is_ok_and(|i| i < attributes) {
            continue;
        }
        return Err(BlockFault::AttributeIndex {
            block: block.cidr,
            ordinal,
            address: address_of(block.cidr, ordinal),
            index,
            attributes,
        });
    }
    Ok(())
}

fn unallocated(block: &Block) -> Result<(), BlockFault> {
    let mut seen = vec![false; block.allocations.len()];
    for free in &block.unallocated {
        let slot = usize::try_from(*free)
            .ok()
            .and_then(|o| Some((o, block.allocations.get(o)?, seen.get_mut(o)?)));
        let Some((ordinal, allocation, seen)) = slot else {
            return Err(BlockFault::Ordinal {
                block: block.cidr,
                ordinal: *free,
                last: block.allocations.len().saturating_sub(1),
            });
        };
        if let Some(index) = *allocation {
            return Err(BlockFault::AllocatedAndUnallocated {
                block: block.cidr,
                ordinal,
                address: address_of(block.cidr, ordinal),
                index,
            });
        }
        if std::mem::replace(seen, true) {
            return Err(BlockFault::UnallocatedTwice {
                block: block.cidr,
                ordinal,
                address: address_of(block.cidr, ordinal),
            });
        }
    }
    Ok(())
}
