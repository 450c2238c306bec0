//! What can be wrong between the objects of a cluster.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::affinity::AffinityState;
use crate::allocator::Key;
use crate::check::BlockFault;
use crate::collect::Leak;
use crate::limits::LimitsError;
use crate::pool::{Excluded, PoolError};

/// A thing that is wrong, in words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// A pool's values are wrong.
    #[error(transparent)]
    Pool(PoolError),
    /// A pool overlaps another.
    #[error("pool {pool}: {excluded}")]
    PoolOverlap {
        /// The pool.
        pool: String,
        /// The other, and both ranges.
        excluded: Excluded,
    },
    /// The settings contradict each other.
    #[error(transparent)]
    Limits(LimitsError),
    /// A block's parts do not agree.
    #[error(transparent)]
    Block(BlockFault),
    /// Attributes that no address has.
    #[error(
        "block {block}: no address refers to attributes[{index}] (handle {handle}); the block's next write drops it"
    )]
    UnusedAttribute {
        /// The block.
        block: IpNet,
        /// Which.
        index: usize,
        /// Its handle.
        handle: String,
    },
    /// An address that can never be given out.
    #[error("block {block}: {address} is neither taken nor free; the block's next write frees it")]
    LostAddress {
        /// The block.
        block: IpNet,
        /// The address.
        address: IpAddr,
    },
    /// An address was released at a time that cannot be.
    #[error(
        "block {block}: {address} was released at {released_at}, which is in the future or no time; it rests until then, set \
         releasedAt to a time that is past"
    )]
    ReleasedInFuture {
        /// The block.
        block: IpNet,
        /// The address.
        address: IpAddr,
        /// What it says.
        released_at: String,
    },
    /// Two blocks have addresses in common.
    #[error(
        "block {block} overlaps block {other}: their addresses can be given out twice; empty and delete one"
    )]
    Overlap {
        /// One.
        block: IpNet,
        /// The other.
        other: IpNet,
    },
    /// A block is in no pool.
    #[error("block {block} of {owner} is in no IPPool; it goes when it is empty")]
    BlockWithoutPool {
        /// The block.
        block: IpNet,
        /// Its owner.
        owner: String,
    },
    /// A block says it is a node's, which has no claim to it.
    #[error(
        "block {block} is node {node}'s, but the node has no claim to it: nothing routes to it; start the node's agent"
    )]
    BlockWithoutAffinity {
        /// The block.
        block: IpNet,
        /// The node.
        node: String,
    },
    /// A claim to a block that is not there.
    #[error("node {node} has a claim ({state:?}) to block {block}, which is not there")]
    AffinityWithoutBlock {
        /// The node.
        node: String,
        /// The block.
        block: IpNet,
        /// How far the claim has come.
        state: AffinityState,
    },
    /// A claim to another's block.
    #[error("node {node} has a claim ({state:?}) to block {block}, which is that of {owner}")]
    AffinityOfAnother {
        /// The node.
        node: String,
        /// The block.
        block: IpNet,
        /// How far the claim has come.
        state: AffinityState,
        /// Whose the block is.
        owner: String,
    },
    /// Two claims to one block are confirmed.
    #[error(
        "block {block} is confirmed for node {node} and for node {other}: packets to it go to either; delete the wrong claim"
    )]
    TwoOwners {
        /// The block.
        block: IpNet,
        /// One.
        node: String,
        /// The other.
        other: String,
    },
    /// A claim is between two states.
    #[error(
        "the claim of node {node} to block {block} was left {state:?}: nothing routes to the block; the node's agent finishes it"
    )]
    HalfDone {
        /// The node.
        node: String,
        /// The block.
        block: IpNet,
        /// How far it has come.
        state: AffinityState,
    },
    /// A block of a node that is gone.
    #[error("block {block} belongs to node {node}, which is gone")]
    GoneNode {
        /// The block.
        block: IpNet,
        /// The node.
        node: String,
    },
    /// An object that was deleted is still there.
    #[error("{key} is marked as deleted, and still there")]
    Deleted {
        /// Which.
        key: Key,
    },
    /// Somebody has an address that nobody uses.
    #[error("{0} is allocated, but not in use")]
    NotInUse(Leak),
    /// Somebody uses an address of a pool that nobody has.
    #[error(
        "{address} is in use by {user}, but not allocated: it can be given to another; start the pod anew"
    )]
    NotAllocated {
        /// The address.
        address: IpAddr,
        /// Who uses it.
        user: String,
    },
    /// Somebody uses an address that is in no pool.
    #[error("{address} is in use by {user}, but in no IPPool; start the pod anew, or create a pool")]
    NotInPool {
        /// The address.
        address: IpAddr,
        /// Who uses it.
        user: String,
    },
    /// Two use one address.
    #[error("{address} is in use by {user} and by {other}; start one of them anew")]
    TwoUsers {
        /// The address.
        address: IpAddr,
        /// One.
        user: String,
        /// The other.
        other: String,
    },
    /// A handle without an address.
    #[error("handle {handle} has no address, though it counts {counts}")]
    EmptyHandle {
        /// The handle.
        handle: String,
        /// How many it counts.
        counts: u32,
    },
    /// Addresses whose handle is not there.
    #[error(
        "handle {handle} is not there, but {addresses} addresses are its own: a release by it finds none of them"
    )]
    MissingHandle {
        /// The handle.
        handle: String,
        /// How many.
        addresses: usize,
    },
    /// A handle counts wrong.
    #[error("handle {handle} counts {counts} addresses in block {block}, and has {has}")]
    WrongCount {
        /// The handle.
        handle: String,
        /// The block.
        block: IpNet,
        /// What it says.
        counts: u32,
        /// What the block says.
        has: u32,
    },
}
