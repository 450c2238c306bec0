//! What can be asked for, and what comes of it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::pool::{Excluded, Family, Use};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Addresses for a handle.
    Assign(Assign),
    /// That addresses are given back.
    Release(Release),
    /// That a node has a block.
    Claim(Claim),
    /// That a block is no longer a node's.
    Unclaim(Unclaim),
}

/// Addresses for a handle on a node; those that it has there already count.
///
/// It comes true as a whole or ends with an error; after an error nothing is left of it, unless its writes were overtaken by
/// others: release the handle then, as a CNI plugin does in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assign {
    /// The node.
    pub node: String,
    /// Who gets them.
    pub handle: String,
    /// What is written beside them: `pod`, `namespace`, `type`, `timestamp`. `node` is written in any case.
    pub attributes: BTreeMap<String, String>,
    /// What they are for.
    pub usage: Use,
    /// Which, and how many. One entry a family makes a dual stack.
    pub wanted: Vec<Wanted>,
    /// Pools that are not for this request, by name, besides those that are not for the node: another namespace's.
    pub excluded: BTreeMap<String, Excluded>,
}

/// Some of the addresses that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Any that are free.
    Any {
        /// Their family.
        family: Family,
        /// How many.
        count: usize,
        /// From these pools only, in this order; they are used whatever their selectors say. From any where there are none.
        pools: Vec<IpNet>,
    },
    /// This one. It may be reserved, and its pool's selectors are not asked.
    Address(IpAddr),
}

impl Wanted {
    /// Any one address of a family.
    #[must_use]
    pub fn one(family: Family) -> Self {
        Wanted::Any {
            family,
            count: 1,
            pools: Vec::new(),
        }
    }
}

/// That addresses are given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The node that asks. For a handle its blocks are searched too, in case the handle lost count.
    pub node: String,
    /// Which.
    pub what: Held,
}

/// Addresses that somebody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// All of a handle, in any block that it says it has some in.
    Handle(String),
    /// These. If one is another's by now, none is given back; those that are free are passed over.
    Addresses(Vec<HeldAddress>),
}

/// An address that somebody has, and how to know that it is still the same who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldAddress {
    /// The address.
    pub address: IpAddr,
    /// Who must have it; `None` for whoever has it.
    pub handle: Option<String>,
    /// The sequence number with which it must have been taken ([`crate::block::Block::sequence_number_of`]), which tells two
    /// lives of it apart; `None` for any.
    pub sequence_number: Option<u64>,
}

/// That a node has at least one confirmed block in a pool for this use. What it left half done is finished on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The node.
    pub node: String,
    /// What its addresses are for.
    pub usage: Use,
    /// Its family.
    pub family: Family,
}

/// That a block is no longer a node's: deleted where it is empty, else without an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclaim {
    /// The node whose block it is.
    pub node: String,
    /// The block.
    pub block: IpNet,
    /// Only if nobody has an address in it.
    pub must_be_empty: bool,
    /// The sequence number that the block must still have; `None` for any.
    pub sequence_number: Option<u64>,
}

/// What a request has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As many addresses as were asked for, in the order in which they were.
    Assigned(Vec<IpAddr>),
    /// The addresses are given back. Those that were not free before were told with the changes that freed them.
    Released,
    /// The confirmed blocks of the node, in the request's family.
    Claimed(Vec<IpNet>),
    /// The block is not the node's.
    Unclaimed,
}

/// An address that a change gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// The address.
    pub address: IpAddr,
    /// Whose it was.
    pub handle: Option<String>,
    /// The place in the batch of the request that asked for it.
    pub request: usize,
}
