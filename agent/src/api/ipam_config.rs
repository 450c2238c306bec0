//! IPAMConfig: settings of address allocation; there is one, named `default`.

use serde::{Deserialize, Serialize};

use super::{Custom, UnknownFields};

/// Settings of address allocation.
pub type IpamConfig = Custom<IpamConfigSpec>;

/// What an IPAMConfig says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamConfigSpec {
    /// A node hands out addresses of its own blocks only.
    #[serde(default)]
    pub strict_affinity: bool,
    /// A node whose blocks are full claims another.
    #[serde(default = "yes")]
    pub auto_allocate_blocks: bool,
    /// Most blocks a node may have; 0 means Calico's limit of 20.
    #[serde(default)]
    pub max_blocks_per_host: u32,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

fn yes() -> bool {
    true
}

impl Default for IpamConfigSpec {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            unknown: UnknownFields::new(),
        }
    }
}
