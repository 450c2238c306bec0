//! Values that cannot be wrong: each is checked where it enters, and trusted afterwards.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;

use ipnet::IpNet;

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(IpNet);

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
