//! Which node a block belongs to (Calico's BlockAffinity).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The spec of a BlockAffinity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Affinity {
    /// The block.
    pub cidr: IpNet,
    /// The node, or the virtual owner.
    pub node: String,
    /// How far the claim has come.
    pub state: AffinityState,
    /// `host`, or `virtual`; rows of older versions have none and mean `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Soft delete, as the string that Calico writes: `"true"` or `"false"`.
    #[serde(default)]
    pub deleted: String,
    /// Fields that this version does not know, kept for the next write.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

/// How far a claim has come. Only `Confirmed` owns the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AffinityState {
    /// Announced; the block may not exist yet.
    Pending,
    /// The block is the node's.
    Confirmed,
    /// Being given up.
    PendingDeletion,
}

impl Affinity {
    /// Whether `node` owns the block through this: confirmed, not deleted, and of type host.
    #[must_use]
    pub fn is_confirmed_for(&self, node: &str) -> bool {
        self.state == AffinityState::Confirmed
            && self.deleted != "true"
            && self.node == node
            && self.r#type.as_deref().is_none_or(|t| t == "host")
    }
}
