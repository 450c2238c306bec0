//! core/v1 Node: how a node is known to the others.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::{Metadata, UnknownFields};

/// The annotations in which Calico keeps what it knows of a node.
pub mod annotation {
    /// The advertised IPv4 address, with its prefix length (`172.18.0.11/24`).
    pub const IPV4_ADDRESS: &str = "projectcalico.org/IPv4Address";
    /// The node's AS number, where it has one of its own.
    pub const AS_NUMBER: &str = "projectcalico.org/ASNumber";
    /// The address of the node's `tunl0`.
    pub const IPIP_TUNNEL_ADDRESS: &str = "projectcalico.org/IPv4IPIPTunnelAddr";
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Name, annotations.
    pub metadata: Metadata,
    /// What is asked of it.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub spec: NodeSpec,
    /// What is known of it.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub status: NodeStatus,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Of a Node's spec, nothing that the agent uses yet; all of it is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// All fields, as they were read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Of a Node's status, its addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Host name and addresses, in order of preference.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub addresses: Vec<NodeAddress>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// One of a node's addresses or names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname`…
    pub r#type: String,
    /// The address or name.
    pub address: String,
}

impl Node {
    /// A node of this name about which nothing is known.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            metadata: Metadata::named(name),
            spec: NodeSpec::default(),
            status: NodeStatus::default(),
            unknown: UnknownFields::new(),
        }
    }

    /// All IPv4 addresses of its status, internal or external; names are left out.
    pub fn ipv4_addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.status
            .addresses
            .iter()
            .filter_map(|a| a.address.parse().ok())
    }

    /// Its internal addresses, in their order; what is no address is left out.
    pub fn internal_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let internal = self.status.addresses.iter().filter(|a| a.r#type == "InternalIP");
        internal.filter_map(|a| a.address.parse().ok())
    }
}
