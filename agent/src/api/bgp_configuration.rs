//! BGPConfiguration: settings of the BGP speakers; `default` is the cluster's.

use serde::{Deserialize, Serialize};

use super::{Custom, UnknownFields};

/// Settings of the BGP speakers.
pub type BgpConfiguration = Custom<BgpConfigurationSpec>;

/// What a BGPConfiguration says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BgpConfigurationSpec {
    /// The cluster's AS number; 64512 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_number: Option<u32>,
    /// Whether every node peers with every other; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_to_node_mesh_enabled: Option<bool>,
    /// TCP port of the speakers; 179 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listen_port: Option<u16>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}
