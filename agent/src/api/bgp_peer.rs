//! BGPPeer: who is a BGP peer of which nodes, and how.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{AsNumber, Custom, GoDuration, PeerAddress, UnknownFields};

/// The annotations of a BGPPeer that are Culvert's own: what Calico has no field for.
pub mod peer_annotation {
    /// What all of them begin with.
    pub const OWN: &str = "culvert/";
    /// In place of `bgp.addPath` of the agent's configuration.
    pub const ADD_PATH: &str = "culvert/add-path";
    /// In place of `bgp.maxPrefixes` of the agent's configuration.
    pub const MAX_PREFIXES: &str = "culvert/max-prefixes";
}

/// A peer of some nodes or of all.
pub type BgpPeer = Custom<BgpPeerSpec>;

/// What a BGPPeer says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPeerSpec {
    /// The one node that has this peer. Without it and `nodeSelector` every node has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The nodes that have this peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// The peer's address, and its port where that is not its usual one.
    #[serde(default, rename = "peerIP", skip_serializing_if = "Option::is_none")]
    pub peer_ip: Option<PeerAddress>,
    /// The peer's AS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_number: Option<AsNumber>,
    /// The AS that the nodes are in towards this peer, where it is not their own.
    #[serde(default, rename = "localASNumber", skip_serializing_if = "Option::is_none")]
    pub local_as_number: Option<AsNumber>,
    /// The nodes that are the peers, in place of `peerIP` and `asNumber`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_selector: Option<String>,
    /// The pods that are the peers. Culvert does not speak BGP with pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_workload_selector: Option<String>,
    /// The next hop of a route is left as it is, towards a peer in another AS.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "is_false"
    )]
    pub keep_original_next_hop: bool,
    /// Whose address is the next hop of what the peer is told; Auto when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop_mode: Option<NextHopMode>,
    /// The password of the session (RFC 2385).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<BgpPassword>,
    /// The address that the session comes from; the node's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<SourceAddress>,
    /// How long the peer keeps the node's routes after the session is lost; 120 s when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_restart_time: Option<GoDuration>,
    /// How often a KEEPALIVE is sent; a third of the hold time when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keepalive_time: Option<GoDuration>,
    /// How often the node's own AS may stand in the path of a route that the peer tells of; 0 when absent.
    #[serde(
        default,
        rename = "numAllowedLocalASNumbers",
        skip_serializing_if = "Option::is_none"
    )]
    pub num_allowed_local_as_numbers: Option<i32>,
    /// The most hops that the peer is away (RFC 5082); when absent it is not checked.
    #[serde(default, rename = "ttlSecurity", skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<i32>,
    /// The gateway through which the peer is reached: the node gets a route to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reachable_by: Option<IpAddr>,
    /// The names of the BGPFilters for this peer, in the order in which they are tried.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub filters: Vec<String>,
    /// Whether nodes that `peerSelector` names have the nodes of this peer as peers in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverse_peering: Option<ReversePeering>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Whose address is the next hop of what a peer is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NextHopMode {
    /// As BGP has it: the node's own for what it tells peers of another AS, and for its own routes.
    #[default]
    Auto,
    /// Always the node's own.
    #[serde(rename = "Self")]
    Own,
    /// That of the route.
    Keep,
}

/// The address that a session comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceAddress {
    /// The one that the node advertises.
    #[default]
    UseNodeIP,
    /// What the kernel chooses.
    None,
}

/// Whether the nodes that a `peerSelector` names have the nodes of the peer as peers in turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReversePeering {
    /// They do.
    #[default]
    Auto,
    /// They do only where another BGPPeer says so.
    Manual,
}

/// Where a password stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpPassword {
    /// A key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// A key of a Secret in the agent's namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[serde(default)]
    pub name: String,
    /// The key in it.
    #[serde(default)]
    pub key: String,
    /// Without the Secret or the key there is no password, instead of no session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}
