//! BGPFilter: which routes are taken from a peer, and told to it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{AsNumber, Custom, UnknownFields};

/// Rules for the routes from and to peers.
pub type BgpFilter = Custom<BgpFilterSpec>;

/// What a BGPFilter says: four lists of rules, each tried in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpFilterSpec {
    /// For IPv4 routes to a peer.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub export_v4: Vec<FilterRule>,
    /// For IPv4 routes from a peer.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub import_v4: Vec<FilterRule>,
    /// For IPv6 routes to a peer.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub export_v6: Vec<FilterRule>,
    /// For IPv6 routes from a peer.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub import_v6: Vec<FilterRule>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// A rule: the routes that meet all of its conditions are let through or kept out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterRule {
    /// A range to compare destinations with; together with `matchOperator`.
    #[serde(
        default,
        deserialize_with = "super::empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub cidr: Option<IpNet>,
    /// How to compare.
    #[serde(
        default,
        deserialize_with = "super::empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub match_operator: Option<MatchOperator>,
    /// The prefix lengths that are meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix_length: Option<PrefixLengths>,
    /// Where the route comes from; from anywhere when absent.
    #[serde(
        default,
        deserialize_with = "super::empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub source: Option<MatchSource>,
    /// The interface that packets for the route leave by.
    #[serde(
        default,
        deserialize_with = "super::empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub interface: Option<String>,
    /// In which AS the peer is; in any when absent.
    #[serde(
        default,
        deserialize_with = "super::empty_as_none",
        skip_serializing_if = "Option::is_none"
    )]
    pub peer_type: Option<PeerTypeMatch>,
    /// A community that the route carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communities: Option<CommunityMatch>,
    /// The AS numbers that the route's path begins with.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub as_path_prefix: Vec<AsNumber>,
    /// The route's priority, 1 to 2147483646: the lower is preferred, and 1024 is an ordinary one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// What becomes of the routes.
    pub action: FilterAction,
    /// Changes to the routes that are let through, in order.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub operations: Vec<FilterOperation>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// How a destination is compared with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatchOperator {
    /// It is the range.
    Equal,
    /// It is not the range.
    NotEqual,
    /// It is the range or lies in it.
    In,
    /// It does not.
    NotIn,
}

/// Prefix lengths from one to another, both included.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefixLengths {
    /// The least; that of the range when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u8>,
    /// The most; 32 or 128 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u8>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Where a route comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MatchSource {
    /// From a BGP peer.
    RemotePeers,
}

/// In which AS a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerTypeMatch {
    /// In another one.
    #[serde(rename = "eBGP")]
    External,
    /// In the node's.
    #[serde(rename = "iBGP")]
    Internal,
}

/// Communities that a route carries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CommunityMatch {
    /// `AA:NN` or `AA:NN:MM`; one.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub values: Vec<String>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// What becomes of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterAction {
    /// It is let through.
    Accept,
    /// It is kept out.
    Reject,
}

/// A change to a route: exactly one of the three.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterOperation {
    /// Adds a community.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add_community: Option<AddCommunity>,
    /// Puts AS numbers in front of the path.
    #[serde(default, rename = "prependASPath", skip_serializing_if = "Option::is_none")]
    pub prepend_as_path: Option<PrependAsPath>,
    /// Sets the priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_priority: Option<SetPriority>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Adds a community.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AddCommunity {
    /// `AA:NN` or `AA:NN:MM`.
    #[serde(default)]
    pub value: String,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Puts AS numbers in front of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrependAsPath {
    /// The numbers; the first of them is the nearest afterwards.
    #[serde(default, deserialize_with = "super::null_as_default")]
    pub prefix: Vec<AsNumber>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Sets a priority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetPriority {
    /// 1 to 2147483646: the lower is preferred, and 1024 is an ordinary one.
    pub value: u32,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}
