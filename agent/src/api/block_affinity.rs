//! BlockAffinity: which node a block belongs to.

use super::Custom;

/// The claim of a node to a block.
pub type BlockAffinity = Custom<culvert_ipam::affinity::Affinity>;
