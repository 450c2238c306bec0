//! The switches under `/proc/sys/net`, of the namespace of the calling thread.

use std::{fs, io};

use super::DataplaneError;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
const FORWARDING_V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";

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

/// Switches IPv6 forwarding on.
pub(super) fn enable_forwarding_v6() -> Result<(), DataplaneError> {
    set(FORWARDING_V6, "1")
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

/// Sets `net.ipv4.conf.LINK.KEY`.
pub(super) fn set_link(link: &str, key: &str, value: &str) -> Result<(), DataplaneError> {
    set(&format!("/proc/sys/net/ipv4/conf/{link}/{key}"), value)
}

/// Sets `net.ipv4.neigh.LINK.KEY`.
pub(super) fn set_neighbour(link: &str, key: &str, value: &str) -> Result<(), DataplaneError> {
    set(&format!("/proc/sys/net/ipv4/neigh/{link}/{key}"), value)
}

/// Writes `value` unless it is there: a container may see the switch as it should be and not be allowed to write it.
fn set(path: &str, value: &str) -> Result<(), DataplaneError> {
    if fs::read_to_string(path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(path, value).map_err(|source| DataplaneError::new(format!("write {value} to {path}"), source))
}
