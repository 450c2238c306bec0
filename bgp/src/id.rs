//! Values that cannot be wrong: each is checked where it enters, and trusted afterwards.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use ipnet::{IpNet, Ipv4Net};

/// An autonomous system number of four octets (RFC 6793). Zero is not one (RFC 7607).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asn(NonZeroU32);

impl Asn {
    /// The number that stands for one that does not fit into two octets (RFC 6793 §9: AS_TRANS).
    pub const TRANS: Asn = match NonZeroU32::new(23456) {
        Some(n) => Asn(n),
        None => unreachable!(),
    };

    /// `None` for zero (RFC 7607 §2).
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number itself, 1 to 4294967295.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// What a field of two octets carries: the number, or AS_TRANS when it does not fit (RFC 6793 §4.1).
    #[must_use]
    pub fn two_octets(self) -> u16 {
        u16::try_from(self.get()).unwrap_or(23456)
    }
}

impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A BGP Identifier: four octets, not zero, unique within the AS (RFC 6286 §2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(NonZeroU32);

impl RouterId {
    /// `None` for 0.0.0.0 (RFC 6286 §2.2).
    #[must_use]
    pub fn new(address: Ipv4Addr) -> Option<Self> {
        NonZeroU32::new(u32::from(address)).map(Self)
    }

    /// The identifier as it is written.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0.get())
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

/// A hold time in seconds: zero (no keepalives) or at least three (RFC 4271 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HoldTime(u16);

impl HoldTime {
    /// 90 seconds (RFC 4271 §10).
    pub const SUGGESTED: HoldTime = HoldTime(90);

    /// `None` for one and two seconds.
    #[must_use]
    pub const fn new(seconds: u16) -> Option<Self> {
        if seconds == 0 || seconds >= 3 {
            Some(Self(seconds))
        } else {
            None
        }
    }

    /// Seconds; zero means that the session needs no keepalives.
    #[must_use]
    pub fn seconds(self) -> u16 {
        self.0
    }
}

impl fmt::Display for HoldTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0)
    }
}

/// A network layer destination: an address range whose host bits are cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix(IpNet);

/// How two ranges are ordered: IPv4 before IPv6, by address, the wider first. It is the order of [`IpNet`] itself, with IPv4
/// compared as one number: of what a full table costs, a good part is looking up prefixes.
#[must_use]
pub fn order(one: &IpNet, other: &IpNet) -> Ordering {
    let number = |net: &Ipv4Net| u64::from(u32::from(net.addr())) << 8 | u64::from(net.prefix_len());
    match (one, other) {
        (IpNet::V4(one), IpNet::V4(other)) => number(one).cmp(&number(other)),
        _ => one.cmp(other),
    }
}

impl Ord for Prefix {
    fn cmp(&self, other: &Self) -> Ordering {
        order(&self.0, &other.0)
    }
}

impl PartialOrd for Prefix {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Prefix {
    /// The range that `net` lies in; its host bits are dropped.
    #[must_use]
    pub fn new(net: IpNet) -> Self {
        Self(net.trunc())
    }

    /// The range itself.
    #[must_use]
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Whether it is an IPv4 range.
    #[must_use]
    pub fn is_ipv4(self) -> bool {
        matches!(self.0, IpNet::V4(_))
    }
}

impl From<IpNet> for Prefix {
    fn from(net: IpNet) -> Self {
        Self::new(net)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One transport connection, for as long as it lives. Numbers are never used again, so that a late event of a
/// connection that is gone finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Where packets for a prefix go, and who said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The NEXT_HOP of the path (RFC 4271 §5.1.3).
    pub address: IpAddr,
    /// The peer whose path it is.
    pub peer: IpAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_the_order_of_their_type() {
        let nets: Vec<IpNet> = [
            "0.0.0.0/0",
            "10.65.0.0/16",
            "10.65.0.0/26",
            "10.65.0.255/26",
            "10.65.1.0/24",
            "128.0.0.0/1",
            "255.255.255.255/32",
            "::/0",
            "::ffff:a41:0/112",
            "fd00::/8",
            "fd00::/64",
            "fd00::1/128",
        ]
        .iter()
        .map(|net| net.parse().unwrap())
        .collect();
        for one in &nets {
            for other in &nets {
                assert_eq!(order(one, other), one.cmp(other), "{one} and {other}");
            }
        }
    }
}
