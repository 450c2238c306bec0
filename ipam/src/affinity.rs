//! Which node a block belongs to (Calico's BlockAffinity).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize};

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
    #[serde(default = "not_deleted", deserialize_with = "null_is_not_deleted")]
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

/// The field is required of what is written; rows of older versions may lack it.
fn not_deleted() -> String {
    "false".to_owned()
}

fn null_is_not_deleted<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_else(not_deleted))
}

impl Affinity {
    /// The announcement that `node` is about to claim `cidr`.
    #[must_use]
    pub fn pending(node: &str, cidr: IpNet) -> Self {
        Self {
            cidr,
            node: node.to_owned(),
            state: AffinityState::Pending,
            r#type: Some("host".to_owned()),
            deleted: "false".to_owned(),
            unknown: BTreeMap::new(),
        }
    }

    /// Whether `node` owns the block through this: confirmed, not deleted, and of type host.
    #[must_use]
    pub fn is_confirmed_for(&self, node: &str) -> bool {
        self.state == AffinityState::Confirmed && !self.is_deleted() && self.is_of_node(node)
    }

    /// Whether this is a claim, of whatever state, of `node` (not of a virtual owner of that name).
    #[must_use]
    pub fn is_of_node(&self, node: &str) -> bool {
        self.node == node && self.kind() == "host"
    }

    /// What owns the block by it: `host` where it says nothing, as rows of older versions do.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self.r#type.as_deref() {
            None | Some("") => "host",
            Some(kind) => kind,
        }
    }

    /// The labels that its object has to have; see [`crate::name::affinity_labels`].
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        crate::name::affinity_labels(&self.node, self.kind(), self.cidr)
    }

    /// Whether it is deleted already, though the object is still there. All spellings of truth that Go's `ParseBool` takes.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        matches!(self.deleted.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_affinity_of_calico_is_read_and_written_as_it_was() {
        let written = serde_json::json!({
            "cidr": "10.244.0.64/26", "deleted": "false", "node": "a", "state": "pendingDeletion", "type": "host", "later": [1],
        });
        let affinity: Affinity = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(affinity.state, AffinityState::PendingDeletion);
        assert_eq!(serde_json::to_value(&affinity).unwrap(), written);
    }

    #[test]
    fn only_a_confirmed_live_claim_of_the_host_owns() {
        let cidr = "10.0.0.0/26".parse().unwrap();
        let mut affinity = Affinity::pending("a", cidr);
        assert!(!affinity.is_confirmed_for("a"));
        affinity.state = AffinityState::Confirmed;
        assert!(affinity.is_confirmed_for("a") && !affinity.is_confirmed_for("b"));
        affinity.r#type = None;
        assert!(
            affinity.is_confirmed_for("a"),
            "rows of older versions have no type"
        );
        affinity.r#type = Some("virtual".to_owned());
        assert!(!affinity.is_confirmed_for("a"));
        affinity.r#type = Some("host".to_owned());
        affinity.deleted = "true".to_owned();
        assert!(!affinity.is_confirmed_for("a"));
    }
}
