//! IPAMBlock: a block of addresses, and who has each of them.

use super::Custom;

/// A block of addresses.
pub type IpamBlock = Custom<culvert_ipam::block::Block>;
