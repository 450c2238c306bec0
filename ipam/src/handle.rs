//! The addresses that one owner has (Calico's IPAMHandle).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The spec of an IPAMHandle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handle {
    /// The owner's name.
    #[serde(rename = "handleID")]
    pub handle_id: String,
    /// How many addresses it has in each block.
    pub block: BTreeMap<IpNet, u32>,
    /// Soft delete.
    #[serde(default)]
    pub deleted: bool,
    /// Fields that this version does not know, kept for the next write.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}
