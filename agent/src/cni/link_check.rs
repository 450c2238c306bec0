//! What a container's network namespace and the host's routes say, before anything in them is touched.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
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
pub(super) fn addresses_behind(interface: &str) -> Result<Vec<Ipv4Addr>, CniError> {
    let table = main_table()?;
    let behind = host_routes(&table).filter(|(link, _)| *link == interface);
    Ok(behind.map(|(_, address)| address).collect())
}

/// The host's ends of pods through which the main table leads to any of these addresses.
///
/// # Errors
/// When the table cannot be read.
pub(super) fn links_to(addresses: &[IpAddr]) -> Result<Vec<String>, CniError> {
    let table = main_table()?;
    let leading = host_routes(&table)
        .filter(|(link, address)| link.starts_with("cali") && addresses.contains(&IpAddr::V4(*address)));
    Ok(leading.map(|(link, _)| link.to_owned()).collect())
}

fn main_table() -> Result<String, CniError> {
    fs::read_to_string("/proc/self/net/route")
        .map_err(|error| CniError::new(Code::Io, format!("/proc/self/net/route: {error}")))
}

/// The links and addresses of all host routes. The columns are those of net/ipv4/fib_trie.c `fib_route_seq_show`; addresses are in the byte order of the network,
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

/// The IPv4 addresses of an interface in another network namespace.
///
/// # Errors
/// When the namespace cannot be entered or its interfaces cannot be read.
pub(super) fn addresses_in(netns: &Path, interface: &str) -> Result<Vec<Ipv4Addr>, CniError> {
    let found = Namespace::open(netns)
        .and_then(|namespace| namespace.run(|| Ok(getifaddrs()?.collect::<Vec<_>>())))
        .map_err(|error| CniError::new(Code::Io, format!("{}: {error}", netns.display())))?;
    let address = |entry: &nix::ifaddrs::InterfaceAddress| match entry.address?.as_sockaddr_in()?.ip().into()
    {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
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
            Ok(addresses) => assert!(addresses.contains(&Ipv4Addr::LOCALHOST), "{addresses:?}"),
            Err(error) => assert!(error.message.contains("EPERM"), "{error}"),
        }
    }
}
