//! core/v1 Pod: who an address is for.

use serde::{Deserialize, Serialize};

use super::{Metadata, UnknownFields};

/// A pod, as far as its addresses go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pod {
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// What is asked of it.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub spec: PodSpec,
    /// How it is.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub status: PodStatus,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Of a Pod's spec, where it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The node that it is on; none before it is sent to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// It has the node's network, and no address of its own; false when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_network: Option<bool>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Of a Pod's status, its addresses and whether it has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Its first address.
    #[serde(default, rename = "podIP", skip_serializing_if = "Option::is_none")]
    pub pod_ip: Option<String>,
    /// Its addresses, one a family.
    #[serde(
        default,
        rename = "podIPs",
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub pod_ips: Vec<PodIp>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// One of a pod's addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: String,
}

impl Pod {
    /// Whether all its containers have ended for good: its address is nobody's any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }
}
