//! IPAMHandle: the addresses that one owner has, counted by block.

use super::Custom;

/// The addresses of one owner.
pub type IpamHandle = Custom<culvert_ipam::handle::Handle>;
