//! Why a request cannot be fulfilled as things stand.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::allocator::Key;
use crate::block::Attribute;
use crate::check::BlockFault;
use crate::pool::{Family, Pool, Refusal, Use};

/// Why no address or block was given. None of these goes away by trying again at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The handle has no name.
    #[error("node {node}: the handle is empty; name the owner of the address")]
    EmptyHandle {
        /// The node.
        node: String,
    },
    /// There is no pool to take from.
    #[error(
        "node {node}: no enabled {family} pool for {usage} ({}); create an IPPool, or change one of these",
        list(.refusals, "there is no IPPool")
    )]
    NoPool {
        /// The node.
        node: String,
        /// What the address is for.
        usage: Use,
        /// Its family.
        family: Family,
        /// Each pool, and what is against it.
        refusals: Vec<PoolRefusal>,
    },
    /// All blocks of all pools belong to somebody.
    #[error(
        "node {node}: no block is left for {usage} in {}; add an IPPool, or free blocks of nodes that are gone",
        list(.pools, "no pool")
    )]
    Exhausted {
        /// The node.
        node: String,
        /// What the address is for.
        usage: Use,
        /// The pools that were searched.
        pools: Vec<PoolSize>,
    },
    /// The node has as many blocks as it may have, and all are full.
    #[error(
        "node {node}: it has {owned} {family} blocks, the limit is {limit}, and none has a free address; \
         raise maxBlocksPerHost of IPAMConfig default, or release addresses"
    )]
    BlockLimit {
        /// The node.
        node: String,
        /// The family.
        family: Family,
        /// Blocks that it has.
        owned: usize,
        /// Blocks that it may have.
        limit: u32,
    },
    /// Nodes may not claim blocks.
    #[error(
        "node {node}: none of its {family} blocks has a free address, and autoAllocateBlocks of IPAMConfig default is false; \
         set it to true"
    )]
    AutoAllocateOff {
        /// The node.
        node: String,
        /// The family.
        family: Family,
    },
    /// A pool that was asked for by its range is not there.
    #[error("node {node}: there is no pool {cidr}; name the cidr of an IPPool")]
    NoSuchPool {
        /// The node.
        node: String,
        /// What was asked for.
        cidr: IpNet,
    },
    /// An address that was asked for is in no pool.
    #[error(
        "node {node}: {address} is in none of the pools ({}); ask for one that is, or create an IPPool with it",
        list(.pools, "there is no IPPool")
    )]
    NotInPool {
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
        /// Those that there are of its family.
        pools: Vec<PoolSize>,
    },
    /// The pool of an address that was asked for gives nothing.
    #[error("node {node}: {address} cannot be had: {refusal}; ask for another, or change the pool")]
    AddressRefused {
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
        /// What is against its pool.
        refusal: PoolRefusal,
    },
    /// An address that was asked for is not free.
    #[error("node {node}: {address} cannot be had: {holder} has it; ask for another, or release it")]
    AddressTaken {
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
        /// Who has it.
        holder: Holder,
    },
    /// An address that was asked for is in another's block.
    #[error(
        "node {node}: {address} is in block {block} of {owner}, and strictAffinity of IPAMConfig default is true; ask for one \
         in a block of the node"
    )]
    StrictAffinity {
        /// The node.
        node: String,
        /// The address.
        address: IpAddr,
        /// Its block.
        block: IpNet,
        /// Whose the block is.
        owner: String,
    },
    /// An address was taken again since somebody decided to give it back.
    #[error(
        "{address} was to be given back as taken at sequence number {requested}, but was taken at {found}; look again who has it"
    )]
    BadSequenceNumber {
        /// The address.
        address: IpAddr,
        /// With which it was to be given back.
        requested: u64,
        /// With which it was taken.
        found: u64,
    },
    /// An address is another's.
    #[error("{address} was to be given back by {requested}, but is that of {found}; look again who has it")]
    BadHandle {
        /// The address.
        address: IpAddr,
        /// Who was said to have it.
        requested: String,
        /// Who has it.
        found: String,
    },
    /// A block that was to be given up is in use.
    #[error("node {node}: block {block} is in use ({in_use} addresses); release them first")]
    BlockInUse {
        /// Its owner.
        node: String,
        /// The block.
        block: IpNet,
        /// Addresses that are not free.
        in_use: usize,
    },
    /// A block was written since somebody decided to take it away.
    #[error(
        "block {block} was to be given up at sequence number {expected}, but is at {found}; look at it again"
    )]
    BlockChanged {
        /// The block.
        block: IpNet,
        /// What it was.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// A block that is needed is not sound.
    #[error(transparent)]
    Broken(#[from] BlockFault),
    /// An object that is needed is there, but cannot be read.
    #[error("{key} cannot be used: {reason}")]
    Unreadable {
        /// The object.
        key: Key,
        /// What the store says of it.
        reason: String,
    },
}

/// Who has an address, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The namespace and name of the pod.
    pub pod: Option<(String, String)>,
    /// The node that it was taken for.
    pub node: Option<String>,
    /// The handle; `None` while the address rests.
    pub handle: Option<String>,
}

impl Holder {
    /// Who has it by these attributes.
    #[must_use]
    pub fn of(attribute: &Attribute) -> Self {
        let known = |key: &str| attribute.value(key).filter(|v| !v.is_empty()).map(str::to_owned);
        Self {
            pod: known("namespace").zip(known("pod")),
            node: known("node"),
            handle: attribute.handle().map(str::to_owned),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(handle) = &self.handle else {
            return f.write_str("its last owner released it, and the cooldown still");
        };
        if let Some((namespace, pod)) = &self.pod {
            write!(f, "pod {namespace}/{pod} (handle {handle})")?;
        } else {
            write!(f, "handle {handle}")?;
        }
        self.node
            .as_ref()
            .map_or(Ok(()), |node| write!(f, " on node {node}"))
    }
}

/// A pool, and what is against taking from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolRefusal {
    /// The pool.
    pub pool: String,
    /// What is against it.
    pub refusal: Refusal,
}

impl fmt::Display for PoolRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refusal {
            // It names the pool itself.
            Refusal::Wrong(error) => write!(f, "{error}"),
            refusal => write!(f, "pool {}: {refusal}", self.pool),
        }
    }
}

/// A pool, and how large it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// The pool.
    pub pool: String,
    /// Its range.
    pub cidr: IpNet,
    /// Its blocks.
    pub blocks: u128,
    /// Addresses of each block.
    pub addresses_per_block: u128,
}

impl PoolSize {
    /// The size of a pool.
    #[must_use]
    pub fn of(pool: &Pool) -> Self {
        Self {
            pool: pool.name().to_owned(),
            cidr: pool.cidr(),
            blocks: pool.block_count(),
            addresses_per_block: pool.addresses_per_block(),
        }
    }
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pool, cidr, blocks, each) = (&self.pool, self.cidr, self.blocks, self.addresses_per_block);
        write!(f, "pool {pool} ({cidr}, {blocks} blocks of {each} addresses)")
    }
}

fn list<T: fmt::Display>(items: &[T], none: &str) -> String {
    if items.is_empty() {
        return none.to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}
