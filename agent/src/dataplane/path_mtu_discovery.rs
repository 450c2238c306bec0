//! Whether an ipip device sets DF in every outer header (`pmtudisc`).
//!
//! It is read by netlink as every other property of a link. To write it takes the old ioctl: over netlink the kernel
//! refuses every change of parameters to the fallback device, which `tunl0` is wherever the ipip module made it
//! (net/ipv4/ip_tunnel.c, `ip_tunnel_changelink`: EINVAL).

use socket2::{Domain, Socket, Type};

use super::DataplaneError;
use crate::uapi;

/// Sets it, for a device of the calling thread's namespace.
pub(super) fn set(name: &str, on: bool) -> Result<(), DataplaneError> {
    let failed = |source| DataplaneError::new(words(name, on), source);
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).map_err(failed)?;
    uapi::set_path_mtu_discovery(&socket, name, on).map_err(failed)
}

/// What [`set`] does, as `ip` is told to.
pub(super) fn words(name: &str, on: bool) -> String {
    let parameter = if on { "pmtudisc" } else { "nopmtudisc" };
    format!("change the tunnel {name} to {parameter}")
}
