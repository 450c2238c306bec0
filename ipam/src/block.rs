//! A block of addresses, and who has each of them (Calico's IPAMBlock), as it is written.
//!
//! This is the object, right or wrong: numbers that can be wrong in a file are read as they are, so that a broken block
//! is told about and never lost. What works on the addresses in it is [`crate::ordinals::Ordinals`], which takes sound
//! blocks only. What is absent and what is null mean the same here, as in Calico and Kubernetes: the default.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

use crate::timestamp::Timestamp;

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
    /// Who has addresses. Ordinals refer to these by index.
    #[serde(default, deserialize_with = "null_is_default")]
    pub attributes: Vec<Attribute>,
    /// Nanoseconds since 1970 when the block was made, plus one for each write since: no two lives of a block, and no two
    /// lives of an address in it, have the same. Above 2^53, so that no floating point number can hold it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub sequence_number: u64,
    /// The block's sequence number when an ordinal was taken, by ordinal. Objects of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_number_for_allocation: Option<BTreeMap<String, u64>>,
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
            sequence_number_for_allocation: Some(BTreeMap::new()),
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

    /// Whether somebody has an address in it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.allocations.iter().any(Option::is_some)
    }
}

/// Number of addresses of a block; `None` for a range that is too large to be one.
pub(crate) fn size_of(cidr: IpNet) -> Option<usize> {
    let bits = cidr.max_prefix_len() - cidr.prefix_len();
    (bits <= 12).then(|| 1_usize << bits)
}

/// Reads null as the default.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
