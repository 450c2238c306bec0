//! The kernel's structures that no library has, and the calls that take them.
//!
//! All the unsafe code of the workspace is here: a test sees to it. Each function is safe to call; each `unsafe` block says
//! why it is sound.

#![allow(
    unsafe_code,
    reason = "the kernel is called with a pointer to a structure of its own"
)]

use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// The longest key of RFC 2385 that the kernel takes, in octets (`TCP_MD5SIG_MAXKEYLEN`).
pub const MD5_KEY_MAX: usize = libc::TCP_MD5SIG_MAXKEYLEN;

/// `struct tcp_md5sig` of include/uapi/linux/tcp.h.
#[repr(C)]
struct TcpMd5Sig {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: libc::c_int,
    key: [u8; MD5_KEY_MAX],
}

/// The family of a socket, as its options are numbered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketFamily {
    /// AF_INET.
    V4,
    /// AF_INET6. One that takes IPv4 as well has the addresses of IPv4 mapped (RFC 4291 §2.5.5.2).
    V6,
}

impl SocketFamily {
    /// The family of sockets that connect to `address`.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Signs the segments to `peer`, and takes none from it that is not signed (RFC 2385 §2); without a key, no longer.
///
/// # Errors
/// When the key is empty or longer than [`MD5_KEY_MAX`], `peer` is not of the socket's family, or the kernel refuses:
/// with out-of-memory where `net.core.optmem_max` has no room for another key.
pub fn set_md5_key(
    socket: &impl AsFd,
    family: SocketFamily,
    peer: IpAddr,
    key: Option<&[u8]>,
) -> io::Result<()> {
    let bytes = key.unwrap_or_default();
    let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
    // SAFETY: all fields are integers, or arrays and structures of them, of which zero is a value.
    let mut option: TcpMd5Sig = unsafe { zeroed() };
    if key.is_some_and(<[u8]>::is_empty) {
        return Err(wrong());
    }
    option
        .key
        .get_mut(..bytes.len())
        .ok_or_else(wrong)?
        .copy_from_slice(bytes);
    option.key_length = u16::try_from(bytes.len()).map_err(|_| wrong())?;
    match (family, peer) {
        (SocketFamily::V4, IpAddr::V4(peer)) => {
            let address = libc::sockaddr_in {
                sin_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(|_| wrong())?,
                sin_port: 0,
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(peer.octets()),
                },
                sin_zero: [0; 8],
            };
            write_address(&mut option.address, address);
        }
        (SocketFamily::V6, peer) => {
            let peer: Ipv6Addr = match peer {
                IpAddr::V4(peer) => peer.to_ipv6_mapped(),
                IpAddr::V6(peer) => peer,
            };
            let address = libc::sockaddr_in6 {
                sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).map_err(|_| wrong())?,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: peer.octets(),
                },
                sin6_scope_id: 0,
            };
            write_address(&mut option.address, address);
        }
        (SocketFamily::V4, IpAddr::V6(_)) => return Err(wrong()),
    }
    match set_option(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &option) {
        // There was none to take away.
        Err(error) if key.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Refuses packets whose TTL, or Hop Limit, is below `least` when they arrive (RFC 5082 §3).
///
/// # Errors
/// When the kernel refuses.
pub fn set_least_ttl(socket: &impl AsFd, family: SocketFamily, least: u8) -> io::Result<()> {
    let least = libc::c_int::from(least);
    match family {
        SocketFamily::V4 => set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &least),
        SocketFamily::V6 => {
            // A connection of IPv4 may be on a socket of IPv6: then its TTL is what counts.
            let _ = set_option(socket, libc::IPPROTO_IP, libc::IP_MINTTL, &least);
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MINHOPCOUNT, &least)
        }
    }
}

/// Writes one of the kernel's address structures into the space for any of them.
fn write_address<T: Copy>(storage: &mut libc::sockaddr_storage, address: T) {
    const {
        assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>());
    }
    // SAFETY: `storage` is large enough (checked above) and aligned for every address structure (POSIX, <sys/socket.h>:
    // that is what it is for), and any bytes are a value of it.
    unsafe { std::ptr::from_mut(storage).cast::<T>().write(address) }
}

fn set_option<T>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open as long as it is borrowed, and the kernel only reads, `length` octets at most, of a
    // value that lives until it returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

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
pub fn set_path_mtu_discovery(socket: &impl AsFd, device: &str, on: bool) -> io::Result<()> {
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
    socket: &impl AsFd,
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
    let answer = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), operation, &raw mut request) };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `IPT_BASE_CTL` (linux/netfilter_ipv4/ip_tables.h) and one more: `IPT_SO_GET_INFO`, `IPT_SO_GET_ENTRIES`.
const GET_TABLE_INFO: libc::c_int = 64;
const GET_TABLE_ENTRIES: libc::c_int = 65;

/// `struct ipt_getinfo` (linux/netfilter_ipv4/ip_tables.h).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct TableInfo {
    name: [u8; TABLE_NAME_SIZE],
    /// Which hooks call it: bit N for `NF_INET_*` N.
    pub hooks: u32,
    /// Where in the entries each hook begins.
    pub entries: [u32; 5],
    /// Where the policy of each is.
    pub policies: [u32; 5],
    /// How many entries there are.
    pub count: u32,
    /// Octets of all of them.
    pub size: u32,
}

/// `XT_TABLE_MAXNAMELEN`, with the zero at its end.
const TABLE_NAME_SIZE: usize = 32;

/// The octets of a table of ip_tables before its entries (`struct ipt_get_entries`, which is aligned as a 64-bit number).
const TABLE_HEAD: usize = 40;

/// The most octets that are read of a table: some hundred thousand rules.
const TABLE_MOST: u32 = 64 << 20;

/// A table of ip_tables, as it is in the kernel: what it holds, and its entries. `socket` is a raw one of IPv4. The kernel
/// loads the table's module if it is not there: ask only for one that is.
///
/// # Errors
/// Those of the kernel: EPERM without CAP_NET_ADMIN, ENOENT without such a table, EAGAIN when it has just been changed.
/// `InvalidInput` for a name that is too long, or a table that is too large.
pub fn iptables_table(socket: &impl AsFd, name: &str) -> io::Result<(TableInfo, Vec<u8>)> {
    let mut info = TableInfo::default();
    info.name
        .get_mut(..name.len())
        .filter(|place| place.len() < TABLE_NAME_SIZE)
        .ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(name.as_bytes());
    let named = info.name;
    // SAFETY: the structure is made of numbers alone, laid out as the kernel has it.
    let octets = unsafe {
        std::slice::from_raw_parts_mut(std::ptr::from_mut(&mut info).cast::<u8>(), size_of::<TableInfo>())
    };
    get_option(socket, GET_TABLE_INFO, octets)?;
    if info.size > TABLE_MOST {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let size = usize::try_from(info.size).map_err(io::Error::other)?;
    let mut table = vec![0; TABLE_HEAD + size];
    let head = named.iter().copied().chain(info.size.to_ne_bytes());
    table
        .iter_mut()
        .zip(head)
        .for_each(|(place, octet)| *place = octet);
    get_option(socket, GET_TABLE_ENTRIES, &mut table)?;
    table.drain(..TABLE_HEAD);
    Ok((info, table))
}

/// Asks for an option of level IP, whose value begins with what is asked for.
fn get_option(socket: &impl AsFd, name: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads and writes `length` octets at most, of a buffer that is as long and lives until it returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the kernel knows of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockState {
    /// Somebody keeps it in step with others (`STA_UNSYNC` is off).
    pub synchronized: bool,
    /// How wrong it may be at most, in microseconds (`maxerror`).
    pub most_error: u64,
}

/// Asks the kernel for the state of its clock (adjtimex(2)); changes nothing.
///
/// # Errors
/// When the kernel refuses, which it does not.
pub fn clock_state() -> io::Result<ClockState> {
    // SAFETY: all fields are integers, or structures of them, of which zero is a value; no mode is set, so that the
    // kernel only writes, to a structure of its own layout.
    let (answer, state) = unsafe {
        let mut state: libc::timex = zeroed();
        (libc::adjtimex(&raw mut state), state)
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ClockState {
        synchronized: state.status & libc::STA_UNSYNC == 0,
        most_error: u64::try_from(state.maxerror).unwrap_or(0),
    })
}

/// Has a packet socket hear of all protocols on all links, what goes out included (packet(7)).
///
/// # Errors
/// Those of the kernel.
pub fn bind_to_all_links(socket: &impl AsFd) -> io::Result<()> {
    let number = |of: libc::c_int| u16::try_from(of).map_err(io::Error::other);
    // SAFETY: all fields are integers, or arrays of them, of which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = number(libc::AF_PACKET)?;
    address.sll_protocol = number(libc::ETH_P_ALL)?.to_be();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` octets of an address that lives until the call returns.
    let result = unsafe {
        libc::bind(
            socket.as_fd().as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A packet that a packet socket has heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedPacket {
    /// Octets that were written; a longer packet is cut off.
    pub length: usize,
    /// The index of its link.
    pub link: u32,
    /// It goes out there (`PACKET_OUTGOING`).
    pub outgoing: bool,
}

/// The next packet of a packet socket, without the header of its link where the socket leaves that out.
///
/// # Errors
/// Those of the kernel: `WouldBlock` while there is none.
pub fn receive_packet(socket: &impl AsFd, octets: &mut [u8]) -> io::Result<ReceivedPacket> {
    // SAFETY: all fields are integers, or arrays of them, of which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes as many octets at most as both places are long, which live until the call returns; any
    // octets are a value of the address.
    let received = unsafe {
        libc::recvfrom(
            socket.as_fd().as_raw_fd(),
            octets.as_mut_ptr().cast(),
            octets.len(),
            0,
            std::ptr::from_mut(&mut address).cast(),
            &raw mut length,
        )
    };
    Ok(ReceivedPacket {
        length: usize::try_from(received).map_err(|_| io::Error::last_os_error())?,
        link: u32::try_from(address.sll_ifindex).unwrap_or(0),
        outgoing: address.sll_pkttype == libc::PACKET_OUTGOING,
    })
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn a_key_is_taken_replaced_and_taken_away_on_sockets_of_both_families() {
        for (address, family) in [("127.0.0.1:0", SocketFamily::V4), ("[::]:0", SocketFamily::V6)] {
            let listener = TcpListener::bind(address).unwrap();
            for key in [Some("one"), Some("another"), None, None] {
                set_md5_key(&listener, family, PEER, key.map(str::as_bytes)).unwrap();
            }
        }
    }

    #[test]
    fn a_key_that_the_kernel_would_cut_or_take_for_none_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let set = |key: &[u8]| set_md5_key(&listener, SocketFamily::V4, PEER, Some(key));
        assert!(set(&[b'x'; MD5_KEY_MAX]).is_ok());
        for wrong in [&[b'x'; MD5_KEY_MAX + 1][..], &[]] {
            assert_eq!(set(wrong).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        let v6 = set_md5_key(
            &listener,
            SocketFamily::V4,
            Ipv6Addr::LOCALHOST.into(),
            Some(b"x"),
        );
        assert_eq!(v6.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_least_ttl_is_taken_on_sockets_of_both_families() {
        for (address, family) in [("127.0.0.1:0", SocketFamily::V4), ("[::]:0", SocketFamily::V6)] {
            let listener = TcpListener::bind(address).unwrap();
            set_least_ttl(&listener, family, 255).unwrap();
        }
    }

    #[test]
    fn the_clock_is_asked_and_left_alone() {
        let before = std::time::Instant::now();
        assert!(clock_state().is_ok());
        assert!(before.elapsed().as_secs() < 3600);
    }

    #[test]
    fn a_table_whose_name_is_too_long_is_refused() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let error = iptables_table(&socket, &"x".repeat(TABLE_NAME_SIZE)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_tunnel_that_is_none_is_refused_and_so_is_a_name_that_no_link_can_have() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let refused = |device| set_path_mtu_discovery(&socket, device, true).unwrap_err();
        assert!(refused("nosuchlink").raw_os_error().is_some());
        assert_eq!(refused("sixteen-octets-x").kind(), io::ErrorKind::InvalidInput);
    }
}
