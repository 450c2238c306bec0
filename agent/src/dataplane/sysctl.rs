//! The switches under `/proc/sys/net`, of the namespace of the calling thread.

use std::{fs, io};

use super::DataplaneError;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
const ROUTES_V6: &str = "/proc/thread-self/net/ipv6_route";

/// Whether IPv4 packets are forwarded.
pub(super) fn forwarding() -> io::Result<bool> {
    Ok(fs::read_to_string(FORWARDING)?.trim() != "0")
}

/// Switches IPv4 forwarding on.
pub(super) fn enable_forwarding() -> Result<(), DataplaneError> {
    set(FORWARDING, "1")
}

/// Whether IPv6 packets are forwarded. A kernel without IPv6 forwards none.
pub(super) fn forwarding_v6() -> bool {
    fs::read_to_string(FORWARDING_V6).is_ok_and(|text| text.trim() != "0")
}

/// Switches IPv6 forwarding on, unless the host would lose its default route by that.
///
/// A kernel that forwards takes router advertisements only on links whose `accept_ra` is 2, and drops the default routes
/// that it had from others at once (net/ipv6/addrconf.c, addrconf_fixup_forwarding; net/ipv6/route.c, rt6_purge_dflt_routers).
pub(super) fn enable_forwarding_v6() -> Result<(), DataplaneError> {
    if forwarding_v6() {
        return Ok(());
    }
    let operation = || format!("write 1 to {FORWARDING_V6}");
    let routes = fs::read_to_string(ROUTES_V6).map_err(|source| DataplaneError::new(operation(), source))?;
    let mut would_lose = advertised_defaults(&routes).filter(|link| accept_ra(link) != Some(2));
    if let Some(link) = would_lose.next() {
        let words = format!(
            "{link} has its IPv6 default route from router advertisements, and a kernel that forwards drops that unless \
             accept_ra is 2: set net.ipv6.conf.{link}.accept_ra=2 first (in /etc/sysctl.d as well, so that it stays), or \
             give the host a static default route"
        );
        return Err(DataplaneError::new(operation(), io::Error::other(words)));
    }
    set(FORWARDING_V6, "1")
}

/// The links through which the kernel itself has made a default route, of all routes as `/proc/net/ipv6_route` shows them:
/// destination, its length, source, its length, gateway, metric, uses, references, flags, link, and numbers in base 16.
fn advertised_defaults(routes: &str) -> impl Iterator<Item = &str> {
    // linux/ipv6_route.h: RTF_DEFAULT, RTF_ADDRCONF.
    const OF_ROUTERS: u32 = 0x0001_0000 | 0x0004_0000;
    routes.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "00", _, _, _, _, _, _, flags, link] = fields.as_slice() else {
            return None;
        };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        (flags & OF_ROUTERS != 0).then_some(*link)
    })
}

/// Whether a link takes router advertisements: 0 never, 1 unless it forwards, 2 always.
fn accept_ra(link: &str) -> Option<u8> {
    let text = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/accept_ra")).ok()?;
    text.trim().parse().ok()
}

/// Whether a link's reverse-path filter is strict: the greater of its own value and that of all links counts
/// (Documentation/networking/ip-sysctl.rst). A link that is gone meanwhile is not.
pub(super) fn is_strict(link: &str) -> bool {
    let value = |of: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{of}/rp_filter")).ok()?;
        text.trim().parse::<u8>().ok()
    };
    value(link).is_some_and(|own| own.max(value("all").unwrap_or(0)) == 1)
}

/// Sets `net.ipv6.conf.LINK.KEY`.
pub(super) fn set_link_v6(link: &str, key: &str, value: &str) -> Result<(), DataplaneError> {
    set(&format!("/proc/sys/net/ipv6/conf/{link}/{key}"), value)
}

/// Writes `value` unless it is there: a container may see the switch as it should be and not be allowed to write it.
fn set(path: &str, value: &str) -> Result<(), DataplaneError> {
    if fs::read_to_string(path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| {
        let operation = format!("write {value} to {path}");
        let is_read_only = source.kind() == io::ErrorKind::ReadOnlyFilesystem;
        let switch = path.trim_start_matches("/proc/sys/").replace('/', ".");
        let source = if is_read_only {
            io::Error::other(format!(
                "a container may not: run `sysctl -w {switch}={value}` on the host, and write {switch}={value} into /etc/sysctl.d"
            ))
        } else {
            source
        };
        DataplaneError::new(operation, source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // As Linux 6.1 shows them: a prefix, a default route of a router advertisement, one by hand, and the one to nowhere.
    const ROUTES: &str = "\
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth1
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";

    #[test]
    fn of_all_routes_the_default_ones_of_router_advertisements_are_found() {
        assert_eq!(advertised_defaults(ROUTES).collect::<Vec<_>>(), ["eth0"]);
        assert_eq!(advertised_defaults("").count(), 0);
    }
}
