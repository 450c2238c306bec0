//! The addresses that one owner has (Calico's IPAMHandle).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::block::null_is_default;

/// The spec of an IPAMHandle.
///
/// It says in which blocks to look for the owner's addresses. A count is raised before an address is taken in a block and
/// lowered after it was given back, so that it may be too high after a crash, but never too low.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handle {
    /// The owner's name.
    #[serde(rename = "handleID")]
    pub handle_id: String,
    /// How many addresses it has in each block.
    #[serde(default, deserialize_with = "null_is_default")]
    pub block: BTreeMap<IpNet, u32>,
    /// Soft delete.
    #[serde(default, deserialize_with = "null_is_default")]
    pub deleted: bool,
    /// Fields that this version does not know, kept for the next write.
    #[serde(flatten)]
    pub unknown: BTreeMap<String, serde_json::Value>,
}

impl Handle {
    /// A handle without addresses.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self {
            handle_id: id.to_owned(),
            block: BTreeMap::new(),
            deleted: false,
            unknown: BTreeMap::new(),
        }
    }

    /// Sets the count of a block; 0 forgets the block.
    pub fn set(&mut self, block: IpNet, count: u32) {
        if count == 0 {
            self.block.remove(&block);
        } else {
            self.block.insert(block, count);
        }
    }

    /// How many addresses it says to have in a block.
    #[must_use]
    pub fn count(&self, block: IpNet) -> u32 {
        self.block.get(&block).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_of_calico_is_read_and_written_as_it_was() {
        let written = serde_json::json!({
            "handleID": "k8s-pod-network.0a1b", "block": {"10.244.0.64/26": 1, "10.244.1.0/26": 2}, "deleted": false, "later": null,
        });
        let handle: Handle = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(handle.count("10.244.1.0/26".parse().unwrap()), 2);
        assert_eq!(serde_json::to_value(&handle).unwrap(), written);
    }

    #[test]
    fn a_count_of_nothing_forgets_the_block() {
        let block = "10.0.0.0/26".parse().unwrap();
        let mut handle = Handle::new("h");
        handle.set(block, 2);
        assert_eq!(handle.count(block), 2);
        handle.set(block, 0);
        assert!(handle.block.is_empty());
    }
}
