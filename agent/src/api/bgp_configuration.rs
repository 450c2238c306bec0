//! BGPConfiguration: settings of the BGP speakers. `default` is the cluster's; `node.NAME` has what is otherwise on one node.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::bgp_peer::BgpPassword;
use super::{AsNumber, Custom, GoDuration, UnknownFields};

/// Settings of the BGP speakers.
pub type BgpConfiguration = Custom<BgpConfigurationSpec>;

/// What a BGPConfiguration says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpConfigurationSpec {
    /// The cluster's AS number; 64512 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// Whether every node peers with every other; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// TCP port of the speakers; 179 when absent. A node may have its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// The addresses that speakers listen on; all when absent. A node may have its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bind_mode: Option<BindMode>,
    /// The password of the sessions between nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_mesh_password: Option<BgpPassword>,
    /// How long nodes keep each other's routes after a session is lost; 120 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_mesh_max_restart_time: Option<GoDuration>,
    /// The ranges whose cluster IPs are advertised.
    #[serde(
        default,
        rename = "serviceClusterIPs",
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_cluster_ips: Vec<ServiceCidr>,
    /// The ranges whose external IPs are advertised.
    #[serde(
        default,
        rename = "serviceExternalIPs",
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_external_ips: Vec<ServiceCidr>,
    /// The ranges whose load balancer IPs are advertised.
    #[serde(
        default,
        rename = "serviceLoadBalancerIPs",
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub service_load_balancer_ips: Vec<ServiceCidr>,
    /// Whether a range of load balancer IPs is advertised as one; else each address is. Enabled when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_load_balancer_aggregation: Option<Aggregation>,
    /// Names for communities.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub communities: Vec<NamedCommunity>,
    /// The communities that routes go out with, by range. A node may have its own.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    /// Interfaces whose subnets lead to no router: no next hop of a route from outside the cluster is looked for there. What
    /// is on them is not advertised either, as it is of no interface. A node may have its own.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub ignored_interfaces: Vec<String>,
    /// The priority of an ordinary IPv4 route, 1 to 2147483646, in the terms of a BGPFilter. When it is given, routes go out
    /// with it, as from Calico 3.33 and later.
    #[serde(
        default,
        rename = "ipv4NormalRoutePriority",
        skip_serializing_if = "Option::is_none"
    )]
    pub ipv4_normal_route_priority: Option<u32>,
    /// The same for IPv6.
    #[serde(
        default,
        rename = "ipv6NormalRoutePriority",
        skip_serializing_if = "Option::is_none"
    )]
    pub ipv6_normal_route_priority: Option<u32>,
    /// Anything else, as it was read. Of Calico's fields: `logSeverityScreen` (the agent's own log has `log.level`),
    /// `programClusterRoutes` (which of Calico's two programs writes routes; here there is one), and `localWorkloadPeeringIPV4`
    /// and `…V6`, which are named as left out.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// The addresses that a speaker listens on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BindMode {
    /// All of the host.
    #[default]
    None,
    /// Those that the node advertises.
    NodeIP,
}

/// Whether addresses are advertised as their range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregation {
    /// The range is.
    #[default]
    Enabled,
    /// Each address is.
    Disabled,
}

/// A range of service addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceCidr {
    /// The range.
    pub cidr: IpNet,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// A name for a community.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NamedCommunity {
    /// The name.
    #[serde(default)]
    pub name: String,
    /// `AA:NN` or `AA:NN:MM`.
    #[serde(default)]
    pub value: String,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// The communities that the routes of a range go out with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrefixAdvertisement {
    /// The range: every route inside it is meant.
    pub cidr: IpNet,
    /// Names, or communities themselves.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub communities: Vec<String>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}
