//! What the plugin asks the agent, and what the agent answers: JSON over the agent's socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::protocol::{Name, Pod};

/// Asks for an address for a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddRequest {
    /// The network's name in its configuration.
    pub network: Name,
    /// The container's id.
    pub container_id: Name,
    /// The pod, where Kubernetes asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// What the container gets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AddAnswer {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its address of IPv6, where pods get one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<Ipv6Addr>,
    /// The MTU of its interface in bytes.
    pub mtu: u32,
}

/// A container, of which the agent gives back the addresses, or tells them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// The network's name in its configuration.
    pub network: Name,
    /// The container's id.
    pub container_id: Name,
    /// The pod, where Kubernetes asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// Asks which containers of a network have addresses on this node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkRequest {
    /// The network's name in its configuration.
    pub network: Name,
}

/// Containers of one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Containers {
    /// Their ids.
    pub containers: Vec<Name>,
}

/// The addresses that a container has, or had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Addresses {
    /// None when it has none.
    pub addresses: Vec<IpAddr>,
}

/// Asks whether an address is still a container's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckRequest {
    /// The network's name in its configuration.
    pub network: Name,
    /// The container's id.
    pub container_id: Name,
    /// The address that the container was given.
    pub address: Ipv4Addr,
    /// That of IPv6, where it was given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address_v6: Option<Ipv6Addr>,
}

/// Why the agent did not do it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Why, in words.
    pub reason: String,
    /// Whether the same request may be granted later.
    pub retry: bool,
}
