//! A block of addresses, and who has each of them (Calico's IPAMBlock), as it is written.
//!
//! This is the object, right or wrong: numbers that can be wrong in a file are read as they are, so that a broken block
//! is told about and never lost. What works on the addresses in it is [`crate::ordinals::Ordinals`], which takes sound
//! blocks only. What is absent and what is null mean the same here, as in Calico and Kubernetes: the default.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use crate::pool::{Family, number};
use crate::sequence::SequenceNumbers;
use crate::timestamp::Timestamp;

/// The handle of addresses that Windows keeps for itself; they do not make a block one that is in use.
pub const WINDOWS_RESERVED_HANDLE: &str = "windows-reserved-ipam-handle";

/// The spec of an IPAMBlock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Block {
    /// Its range.
    pub cidr: IpNet,
    /// Its owner, `host:<node>` or `virtual:<owner>`; none for a block without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<String>,
    /// When the owner claimed it, RFC 3339. Calico takes an empty block from its owner only a minute after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_claim_time: Option<String>,
    /// For each ordinal (how far an address is into the block), the index of its attributes; `None` for a free one.
    #[serde(default, deserialize_with = "null_is_default")]
    pub allocations: Vec<Option<i64>>,
    /// The free ordinals, in the order in which they are given out: an address that was released comes last, so that it
    /// is not used again soon.
    #[serde(default, deserialize_with = "null_is_default")]
    pub unallocated: Vec<i64>,
    /// Who has addresses. Ordinals refer to these by index. A copy of the block shares them: each write is made on a copy, and
    /// changes one or two.
    #[serde(default, deserialize_with = "null_is_default")]
    pub attributes: Vec<Arc<Attribute>>,
    /// Nanoseconds since 1970 when the block was made, plus one for each write since: no two lives of a block, and no two
    /// lives of an address in it, have the same. Above 2^53, so that no floating point number can hold it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub sequence_number: u64,
    /// The block's sequence number when an ordinal was taken, by ordinal. Objects of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_number_for_allocation: Option<SequenceNumbers>,
    /// Soft delete.
    #[serde(default, deserialize_with = "null_is_default")]
    pub deleted: bool,
    /// Without meaning for long; the CRD wants it written.
    #[serde(default, deserialize_with = "null_is_default")]
    pub strict_affinity: bool,
    /// Fields that this version does not know, kept for the next write.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Who has an address, and what else is known of that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attribute {
    /// The handle.
    #[serde(default, rename = "handle_id", skip_serializing_if = "Option::is_none")]
    pub handle_id: Option<String>,
    /// `pod`, `namespace`, `node`, `type`, `timestamp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary: Option<BTreeMap<String, String>>,
    /// When it was released, RFC 3339, where addresses rest for a while before they are free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<String>,
    /// Fields that this version does not know, kept for the next write.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// Who owns a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A node.
    Host(&'a str),
    /// Something that is no node.
    Virtual(&'a str),
    /// Nobody, or something this version does not know.
    None,
}

impl Block {
    /// A new block of `node` with all addresses free. `cidr` must be at most 4096 addresses; more are cut off.
    #[must_use]
    pub fn new(cidr: IpNet, node: &str, now: Timestamp) -> Self {
        let size = size_of(cidr).unwrap_or(0);
        Self {
            cidr,
            affinity: Some(format!("host:{node}")),
            affinity_claim_time: Some(now.to_string()),
            allocations: vec![None; size],
            unallocated: (0_i64..).take(size).collect(),
            attributes: Vec::new(),
            sequence_number: now.unix_nanos(),
            sequence_number_for_allocation: Some(SequenceNumbers::default()),
            deleted: false,
            strict_affinity: false,
            unknown: BTreeMap::new(),
        }
    }

    /// Its owner.
    #[must_use]
    pub fn owner(&self) -> Owner<'_> {
        match self.affinity.as_deref().and_then(|a| a.split_once(':')) {
            Some(("host", node)) => Owner::Host(node),
            Some(("virtual", owner)) => Owner::Virtual(owner),
            _ => Owner::None,
        }
    }

    /// Whether it is the block of `node`.
    #[must_use]
    pub fn is_of_node(&self, node: &str) -> bool {
        self.owner() == Owner::Host(node)
    }

    /// Whether somebody has an address in it, or one in it still rests. What Windows reserves does not count, as in Calico.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.allocations
            .iter()
            .flatten()
            .any(|index| !self.attribute(*index).is_some_and(Attribute::is_windows_reserved))
    }

    /// How many addresses are not free.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.allocations.iter().flatten().count()
    }

    /// Attributes by their index.
    #[must_use]
    pub fn attribute(&self, index: i64) -> Option<&Attribute> {
        self.attributes.get(usize::try_from(index).ok()?).map(Arc::as_ref)
    }

    /// Who has the address of an ordinal, and what else is known of that; `None` for one that is free.
    #[must_use]
    pub fn holder(&self, ordinal: usize) -> Option<&Attribute> {
        self.attribute((*self.allocations.get(ordinal)?)?)
    }

    /// The ordinal of an address; `None` when it is not in the block.
    #[must_use]
    pub fn ordinal_of(&self, address: IpAddr) -> Option<usize> {
        if !self.cidr.contains(&address) {
            return None;
        }
        let first = number(self.cidr.network());
        usize::try_from(number(address).checked_sub(first)?).ok()
    }

    /// The block's sequence number when the address of an ordinal was taken; 0 where that was not written down, as Calico
    /// reads it.
    #[must_use]
    pub fn sequence_number_of(&self, ordinal: usize) -> u64 {
        self.sequence_number_for_allocation
            .as_ref()
            .and_then(|numbers| numbers.get(ordinal))
            .unwrap_or(0)
    }

    /// All addresses that are not free, ascending, each with its ordinal and attributes. One whose attributes are missing is
    /// left out.
    pub fn taken(&self) -> impl Iterator<Item = Taken<'_>> {
        (0..self.allocations.len()).filter_map(|ordinal| {
            Some(Taken {
                ordinal,
                address: address_of(self.cidr, ordinal),
                attribute: self.holder(ordinal)?,
            })
        })
    }
}

/// An address that is not free.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// How far it is into the block.
    pub ordinal: usize,
    /// The address.
    pub address: IpAddr,
    /// Who has it.
    pub attribute: &'a Attribute,
}

impl Attribute {
    /// The handle. What follows a carriage return is no part of it: a migration from another allocator wrote such handles.
    #[must_use]
    pub fn handle(&self) -> Option<&str> {
        self.handle_id.as_deref().and_then(|h| h.split('\r').next())
    }

    /// Whether it is of this handle; see [`Attribute::handle`].
    #[must_use]
    pub fn is_of_handle(&self, handle: &str) -> bool {
        // Compared with each of a block's attributes: the length alone tells nearly all apart.
        self.handle_id.as_deref().is_some_and(|id| {
            id.strip_prefix(handle)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('\r'))
        }) && !handle.contains('\r')
    }

    /// A value of `secondary`.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.secondary.as_ref()?.get(key).map(String::as_str)
    }

    /// Whether the address was released and rests.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.handle_id.is_none() && self.released_at.is_some()
    }

    /// Whether Windows keeps the address for itself.
    #[must_use]
    pub fn is_windows_reserved(&self) -> bool {
        self.handle()
            .is_some_and(|h| h.eq_ignore_ascii_case(WINDOWS_RESERVED_HANDLE))
    }
}

/// The address of an ordinal; the block's first for one that lies outside.
pub(crate) fn address_of(cidr: IpNet, ordinal: usize) -> IpAddr {
    let first = cidr.network();
    u128::try_from(ordinal)
        .ok()
        .and_then(|o| number(first).checked_add(o))
        .and_then(|n| crate::pool::address(Family::of(cidr), n))
        .unwrap_or(first)
}

/// Number of addresses of a block; `None` for a range that is too large to be one.
pub(crate) fn size_of(cidr: IpNet) -> Option<usize> {
    let bits = cidr.max_prefix_len() - cidr.prefix_len();
    (bits <= 12).then(|| 1_usize << bits)
}

/// Reads null as the default.
pub(crate) fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
