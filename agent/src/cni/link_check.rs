//! What a container's network namespace and the host's routes say, before anything in them is touched.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use super::protocol::{CniError, Code};
use crate::dataplane::Namespace;

/// Whether a path is a network namespace, and not the one that this process is in.
///
/// # Errors
/// When it is not there, is no namespace, or is the host's own.
pub(super) fn of_another(netns: &Path) -> Result<(), CniError> {
    let wrong = |message| Err(CniError::new(Code::InvalidEnvironment, message));
    if let Err(error) = fs::metadata(netns) {
        let message = format!("CNI_NETNS {} is gone: {error}", netns.display());
        return Err(CniError::new(Code::UnknownContainer, message));
    }
    // What is left of a namespace after a restart of the machine is an ordinary file.
    if !statfs(netns).is_ok_and(|system| system.filesystem_type() == NSFS_MAGIC) {
        return wrong(format!("CNI_NETNS {} is no namespace", netns.display()));
    }
    let namespace = Namespace::open(netns)
        .map_err(|error| CniError::new(Code::Io, format!("CNI_NETNS {}: {error}", netns.display())))?;
    if namespace.is_current() {
        return wrong(format!(
            "CNI_NETNS {} is the network namespace of the host",
            netns.display()
        ));
    }
    Ok(())
}

/// The addresses that the host's main table leads to through an interface, a route for each.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn addresses_behind(interface: &str) -> Result<Vec<IpAddr>, CniError> {
    let tables = Tables::read()?;
    let behind = tables.host_routes().filter(|(link, _)| *link == interface);
    Ok(behind.map(|(_, address)| address).collect())
}

/// The host's ends of pods through which the main table leads to any of these addresses.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn links_to(addresses: &[IpAddr]) -> Result<Vec<String>, CniError> {
    let tables = Tables::read()?;
    let leading: BTreeSet<&str> = tables
        .host_routes()
        .filter(|(link, address)| link.starts_with("cali") && addresses.contains(address))
        .map(|(link, _)| link)
        .collect();
    Ok(leading.into_iter().map(str::to_owned).collect())
}

/// The host's routes as the kernel prints them.
struct Tables {
    v4: String,
    /// Empty on a kernel without IPv6.
    v6: String,
}

impl Tables {
    fn read() -> Result<Self, CniError> {
        const V4: &str = "/proc/self/net/route";
        let v4 = fs::read_to_string(V4).map_err(|error| CniError::new(Code::Io, format!("{V4}: {error}")))?;
        let v6 = fs::read_to_string("/proc/self/net/ipv6_route").unwrap_or_default();
        Ok(Self { v4, v6 })
    }

    /// The links and addresses of all routes to single addresses.
    fn host_routes(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let v4 = host_routes(&self.v4).map(|(link, address)| (link, IpAddr::V4(address)));
        v4.chain(host_routes_v6(&self.v6).map(|(link, address)| (link, IpAddr::V6(address))))
    }
}

/// Those of IPv6. The columns are those of net/ipv6/route.c `rt6_info_route`; the routes to the host's own addresses are
/// among them.
fn host_routes_v6(table: &str) -> impl Iterator<Item = (&str, Ipv6Addr)> {
    // linux/ipv6_route.h: RTF_LOCAL, RTF_ANYCAST.
    const OWN: u32 = 0x8000_0000 | 0x0010_0000;
    table.lines().filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let (destination, length) = (columns.next()?, columns.next()?);
        let (flags, link) = (columns.nth(6)?, columns.next()?);
        let is_own = u32::from_str_radix(flags, 16).ok()? & OWN != 0;
        let address = Ipv6Addr::from(u128::from_str_radix(destination, 16).ok()?);
        (length == "80" && !is_own).then_some((link, address))
    })
}

/// Those of IPv4. The columns are those of net/ipv4/fib_trie.c `fib_route_seq_show`; addresses are in the byte order of the network,
/// printed as a number of this machine.
fn host_routes(table: &str) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_ascii_whitespace();
        let (link, destination) = (columns.next()?, columns.next()?);
        let mask = columns.nth(5)?;
        let number = u32::from_str_radix(destination, 16).ok()?;
        (mask == "FFFFFFFF").then(|| (link, Ipv4Addr::from(number.to_ne_bytes())))
    })
}

/// The addresses of an interface in another network namespace.
///
/// # Errors
/// When the namespace cannot be entered or its interfaces cannot be read.
pub(super) fn addresses_in(netns: &Path, interface: &str) -> Result<Vec<IpAddr>, CniError> {
    let found = Namespace::open(netns)
        .and_then(|namespace| namespace.run(|| Ok(getifaddrs()?.collect::<Vec<_>>())))
        .map_err(|error| CniError::new(Code::Io, format!("{}: {error}", netns.display())))?;
    let address = |entry: &nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    Ok(found
        .iter()
        .filter(|entry| entry.interface_name == interface)
        .filter_map(address)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a Linux 6.1 on a little-endian machine: a default route, a subnet, two host routes.
    const TABLE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010012AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
cali19f6ea143e3\t002A410A\t00000000\t0001\t0\t0\t0\tC0FFFFFF\t0\t0\t0
cali19f6ea143e3\t012A410A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
cali00000000000\t022A410A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";

    #[test]
    #[cfg(target_endian = "little")]
    fn the_host_routes_are_told_with_their_links_and_no_others() {
        let routes: Vec<_> = host_routes(TABLE).collect();
        assert_eq!(
            routes,
            [
                ("cali19f6ea143e3", Ipv4Addr::new(10, 65, 42, 1)),
                ("cali00000000000", Ipv4Addr::new(10, 65, 42, 2)),
            ]
        );
        assert_eq!(host_routes("").count(), 0);
        assert_eq!(host_routes("head\nshort\nx y z").count(), 0);
    }

    #[test]
    fn of_ipv6_routes_to_single_addresses_are_told_and_not_those_to_the_hosts_own() {
        // As Linux 6.1 shows them: a pod, a subnet, the host's own link-local address, and its multicast.
        const TABLE: &str = "\
fd000065000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000400 00000001 00000000 00000001 cali19f6ea143e3
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001 cali19f6ea143e3
fe80000000000000eceeeefffeeeeeee 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001 cali19f6ea143e3
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000003 00000000 00000001 cali19f6ea143e3
";
        let routes: Vec<_> = host_routes_v6(TABLE).collect();
        assert_eq!(routes, [("cali19f6ea143e3", "fd00:65::1".parse().unwrap())]);
        assert_eq!(host_routes_v6("short\nx 80\n").count(), 0);
    }

    #[test]
    fn a_path_that_is_gone_or_no_namespace_or_the_hosts_own_is_refused() {
        let error = of_another(Path::new("/var/run/netns/there-is-none")).unwrap_err();
        assert_eq!(error.code, Code::UnknownContainer);
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = of_another(file.path()).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.message.ends_with(" is no namespace"), "{error}");
        let error = of_another(Path::new("/proc/self/ns/net")).unwrap_err();
        assert_eq!(
            error.message,
            "CNI_NETNS /proc/self/ns/net is the network namespace of the host"
        );
    }

    #[test]
    fn the_addresses_of_an_interface_are_read_in_the_namespace_it_is_in() {
        // Entering the namespace one is in needs the same right as entering another.
        match addresses_in(Path::new("/proc/self/ns/net"), "lo") {
            Ok(addresses) => assert!(
                addresses.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)),
                "{addresses:?}"
            ),
            Err(error) => assert!(error.message.contains("EPERM"), "{error}"),
        }
    }
}
