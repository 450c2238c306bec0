//! Structures of the kernel's interface that no library has, and the calls that take them. The only file with `unsafe`.

#![expect(
    unsafe_code,
    reason = "the kernel is handed pointers to structures of its own"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// `IFNAMSIZ` (linux/if.h): the longest name of a link, with the zero at its end.
const NAME_SIZE: usize = 16;

/// `SIOCGETTUNNEL` and `SIOCCHGTUNNEL` (linux/if_tunnel.h): `SIOCDEVPRIVATE` and three more.
const GET_TUNNEL: libc::Ioctl = 0x89F0;
const CHANGE_TUNNEL: libc::Ioctl = 0x89F3;

/// `IP_DF` (net/ip.h), in the order of the host.
const DONT_FRAGMENT: u16 = 0x4000;

/// `struct iphdr` (linux/ip.h). Numbers are in the order of the network.
#[derive(Default)]
#[repr(C)]
struct Ipv4Header {
    version_and_length: u8,
    type_of_service: u8,
    total_length: u16,
    identification: u16,
    flags_and_offset: u16,
    time_to_live: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

/// `struct ip_tunnel_parm` (linux/if_tunnel.h).
#[derive(Default)]
#[repr(C)]
struct TunnelParameters {
    name: [u8; NAME_SIZE],
    link: i32,
    input_flags: u16,
    output_flags: u16,
    input_key: u32,
    output_key: u32,
    header: Ipv4Header,
}

/// `struct ifreq` (linux/if.h) with a pointer in its union, which the kernel takes for as large as `struct ifmap`.
#[repr(C)]
struct TunnelRequest {
    name: [u8; NAME_SIZE],
    parameters: *mut TunnelParameters,
    rest_of_union: [u64; 2],
}

const _: () = assert!(size_of::<TunnelParameters>() == 52);
const _: () = assert!(size_of::<TunnelRequest>() == size_of::<libc::ifreq>());

/// Sets whether an ipip device sets DF in every outer header, with everything else of it as it is. `socket` is any of the
/// IPv4 family in the device's network namespace.
///
/// # Errors
/// Those of the kernel: ENODEV without such a device, EINVAL or EOPNOTSUPP for one of another kind, EPERM without
/// CAP_NET_ADMIN. `InvalidInput` for a name that is too long. `Other` when the device has a TTL of its own: then the
/// kernel sets DF in any case.
pub(crate) fn set_path_mtu_discovery(socket: BorrowedFd<'_>, device: &str, on: bool) -> io::Result<()> {
    let mut parameters = TunnelParameters::default();
    tunnel(socket, GET_TUNNEL, device, &mut parameters)?;
    parameters.header.flags_and_offset = if on { DONT_FRAGMENT.to_be() } else { 0 };
    tunnel(socket, CHANGE_TUNNEL, device, &mut parameters)?;
    tunnel(socket, GET_TUNNEL, device, &mut parameters)?;
    if (parameters.header.flags_and_offset == 0) == on {
        return Err(io::Error::other(format!(
            "{device} has the fixed TTL {}, and the kernel insists on DF with one: `ip tunnel change {device} ttl inherit`",
            parameters.header.time_to_live
        )));
    }
    Ok(())
}

fn tunnel(
    socket: BorrowedFd<'_>,
    operation: libc::Ioctl,
    device: &str,
    parameters: &mut TunnelParameters,
) -> io::Result<()> {
    let mut name = [0; NAME_SIZE];
    // One byte is left for the zero at the end.
    name.get_mut(..device.len())
        .filter(|place| place.len() < NAME_SIZE)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no link can be named {device:?}"),
            )
        })?
        .copy_from_slice(device.as_bytes());
    parameters.name = name;
    let mut request = TunnelRequest {
        name,
        parameters,
        rest_of_union: [0; 2],
    };
    // SAFETY: both operations take a pointer to a `struct ifreq` whose union points to a `struct ip_tunnel_parm`, which the
    // kernel reads and writes and keeps no pointer to. Both are laid out as it expects (checked above where sizes tell), are
    // initialized, and outlive the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), operation, &raw mut request) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
