//! core/v1 Node: how a node is known to the others.

use std::net::{IpAddr, Ipv4Addr};

use culvert_bgp::id::Asn;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::{Metadata, UnknownFields};

/// The annotations in which Calico keeps what it knows of a node.
pub mod annotation {
    /// What all of them begin with.
    pub const PREFIX: &str = "projectcalico.org/";
    /// The advertised IPv4 address, with its prefix length (`172.18.0.11/24`).
    pub const IPV4_ADDRESS: &str = "projectcalico.org/IPv4Address";
    /// The node's AS number, where it has one of its own.
    pub const AS_NUMBER: &str = "projectcalico.org/ASNumber";
    /// The advertised IPv6 address, with its prefix length.
    pub const IPV6_ADDRESS: &str = "projectcalico.org/IPv6Address";
    /// The cluster that the node is a route reflector of: four octets, written as an address.
    pub const ROUTE_REFLECTOR_CLUSTER_ID: &str = "projectcalico.org/RouteReflectorClusterID";
    /// The address of the node's `tunl0`.
    pub const IPIP_TUNNEL_ADDRESS: &str = "projectcalico.org/IPv4IPIPTunnelAddr";
}

/// An address, whose prefix length may be left to the link that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdvertisedAddress {
    /// The address.
    pub address: IpAddr,
    /// Its prefix length, where it was given: one that its family has.
    prefix_length: Option<u8>,
}

impl AdvertisedAddress {
    /// Reads an address with or without `/N`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(Self::from(address));
        }
        let net = text.parse::<IpNet>().ok()?;
        Some(Self {
            address: net.addr(),
            prefix_length: Some(net.prefix_len()),
        })
    }

    /// With its prefix length, or else that by which a link carries it.
    #[must_use]
    pub fn carried_as(self, net: IpNet) -> IpNet {
        let given = self.prefix_length;
        let own = given.and_then(|length| IpNet::new(self.address, length).ok());
        own.unwrap_or(net)
    }
}

impl Serialize for AdvertisedAddress {
    /// As [`AdvertisedAddress::parse`] reads it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.prefix_length {
            Some(length) => serializer.collect_str(&format_args!("{}/{length}", self.address)),
            None => serializer.collect_str(&self.address),
        }
    }
}

impl From<IpAddr> for AdvertisedAddress {
    fn from(address: IpAddr) -> Self {
        Self {
            address,
            prefix_length: None,
        }
    }
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

    /// The address that it advertises, as it has published it; one without a prefix length counts as /32.
    #[must_use]
    pub fn advertised_address(&self) -> Option<Ipv4Net> {
        match self.published(annotation::IPV4_ADDRESS)? {
            IpNet::V4(net) => Some(net),
            IpNet::V6(_) => None,
        }
    }

    /// The IPv6 address that it advertises, as it has published it; one without a prefix length counts as /128.
    #[must_use]
    pub fn advertised_address_v6(&self) -> Option<Ipv6Net> {
        match self.published(annotation::IPV6_ADDRESS)? {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some(net),
        }
    }

    fn published(&self, name: &str) -> Option<IpNet> {
        let address = AdvertisedAddress::parse(self.annotation(name)?)?;
        Some(address.carried_as(IpNet::from(address.address)))
    }

    /// The cluster that it is a route reflector of (RFC 4456 §7); none where it is none.
    #[must_use]
    pub fn reflector_cluster(&self) -> Option<Ipv4Addr> {
        super::text::four_octets(self.annotation(annotation::ROUTE_REFLECTOR_CLUSTER_ID)?)
    }

    /// The AS number that it has for its own; none for the cluster's.
    #[must_use]
    pub fn as_number(&self) -> Option<Asn> {
        let number = self.annotation(annotation::AS_NUMBER)?.parse().ok();
        number.and_then(Asn::new)
    }

    /// The address of its tunnel device.
    #[must_use]
    pub fn tunnel_address(&self) -> Option<Ipv4Addr> {
        self.annotation(annotation::IPIP_TUNNEL_ADDRESS)?.parse().ok()
    }

    fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(annotations: &[(&str, &str)]) -> Node {
        let mut node = Node::named("node1");
        let owned = annotations
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        node.metadata.annotations.extend(owned);
        node
    }

    #[test]
    fn the_annotations_say_how_a_node_is_known() {
        let node = annotated(&[
            ("projectcalico.org/IPv4Address", "172.18.0.11/24"),
            ("projectcalico.org/ASNumber", "65001"),
            ("projectcalico.org/IPv4IPIPTunnelAddr", "10.65.17.64"),
            ("projectcalico.org/IPv6Address", "2001:db8::11/64"),
            ("projectcalico.org/RouteReflectorClusterID", "244.0.0.1"),
        ]);
        assert_eq!(node.advertised_address_v6(), "2001:db8::11/64".parse().ok());
        assert_eq!(node.reflector_cluster(), Some(Ipv4Addr::new(244, 0, 0, 1)));
        assert_eq!(node.advertised_address(), "172.18.0.11/24".parse().ok());
        assert_eq!(node.as_number(), Asn::new(65_001));
        assert_eq!(node.tunnel_address(), Some(Ipv4Addr::new(10, 65, 17, 64)));
    }

    #[test]
    fn an_address_without_a_prefix_length_is_the_node_alone() {
        let node = annotated(&[("projectcalico.org/IPv4Address", "172.18.0.11")]);
        assert_eq!(node.advertised_address(), "172.18.0.11/32".parse().ok());
    }

    #[test]
    fn what_is_missing_or_makes_no_sense_is_not_known() {
        let wrong = annotated(&[
            ("projectcalico.org/IPv4Address", "172.18.0.11/33"),
            ("projectcalico.org/ASNumber", "0"),
            ("projectcalico.org/IPv4IPIPTunnelAddr", "10.65.17.64/26"),
            ("projectcalico.org/IPv6Address", "172.18.0.11"),
            ("projectcalico.org/RouteReflectorClusterID", "0.0.0.0"),
        ]);
        for node in [wrong, annotated(&[])] {
            assert_eq!(node.advertised_address(), None);
            assert_eq!(node.advertised_address_v6(), None);
            assert_eq!(node.reflector_cluster(), None);
            assert_eq!(node.as_number(), None);
            assert_eq!(node.tunnel_address(), None);
        }
    }
}
