//! IPPool: a range of pod addresses, and how packets travel to them.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Custom, UnknownFields};

/// A range of pod addresses.
pub type IpPool = Custom<IpPoolSpec>;

/// What an IPPool says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpPoolSpec {
    /// The range.
    pub cidr: IpNet,
    /// Prefix length of its blocks: 20 to 32 (default 26), for IPv6 116 to 128 (default 122).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u8>,
    /// Whether packets travel in IPv4 (protocol 4).
    #[serde(default)]
    pub ipip_mode: EncapsulationMode,
    /// Whether packets travel in VXLAN, which Culvert does not do.
    #[serde(default)]
    pub vxlan_mode: EncapsulationMode,
    /// Whether packets that leave the cluster get the node's source address.
    #[serde(default)]
    pub nat_outgoing: bool,
    /// No new addresses from it.
    #[serde(default)]
    pub disabled: bool,
    /// Its blocks are not advertised.
    #[serde(default, rename = "disableBGPExport")]
    pub disable_bgp_export: bool,
    /// The nodes that may have blocks of it; empty and `all()` mean every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<String>,
    /// What its addresses are for: `Workload`, `Tunnel`, `LoadBalancer`. Empty means the first two.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_uses: Vec<String>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl IpPoolSpec {
    /// Whether addresses are taken from it only where a pod or an operator asks for it by name (`assignmentMode: Manual`).
    #[must_use]
    pub fn is_manual(&self) -> bool {
        self.unknown
            .get("assignmentMode")
            .and_then(serde_json::Value::as_str)
            == Some("Manual")
    }

    /// Whether pods get IPv6 addresses from it.
    #[must_use]
    pub fn gives_ipv6(&self) -> bool {
        self.cidr.addr().is_ipv6() && !self.disabled
    }

    /// Whether packets to its blocks travel in IPv4 to any node at all. Those of IPv6 never do, whatever it says: IPIP
    /// carries IPv4 alone (RFC 2003).
    #[must_use]
    pub fn may_tunnel(&self) -> bool {
        self.cidr.addr().is_ipv4() && self.ipip_mode != EncapsulationMode::Never
    }
}

/// When packets are encapsulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncapsulationMode {
    /// Never; Calico's default.
    #[default]
    Never,
    /// To every other node.
    Always,
    /// To nodes outside this node's own subnet.
    CrossSubnet,
}
