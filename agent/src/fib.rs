//! The kernel's forwarding state as values: routes, links, addresses, and the changes made to them.
//!
//! Nothing here talks to the kernel: `desired` says what should be, `dataplane` what is, and `reconcile` what differs.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// The kernel's main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// What the kernel itself tells routes apart by, within one address family and type of service zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Routing table, 1 to 4294967295.
    pub table: u32,
    /// Destination, host bits cleared.
    pub prefix: IpNet,
    /// Priority; the lower wins. Zero is what `ip route` leaves out.
    pub metric: u32,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        if self.table != MAIN_TABLE {
            write!(f, " table {}", self.table)?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        Ok(())
    }
}

/// A route of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Its key.
    pub key: RouteKey,
    /// What it does with a packet.
    pub kind: RouteKind,
    /// Where packets go: none for a blackhole, several for equal-cost multipath.
    pub next_hops: Vec<NextHop>,
    /// The source address for packets of this host (`src`).
    pub source: Option<IpAddr>,
    /// Who installed it (`proto`): a number of rtnetlink(7), our own by default 86.
    pub protocol: u8,
    /// `RT_SCOPE_*`: 0 universe, 253 link, 254 host.
    pub scope: u8,
    /// The largest packet on this route in bytes, where it differs from the link's.
    pub mtu: Option<u32>,
}

/// What a route does with a packet (`rtm_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// Sends it on.
    Unicast,
    /// Drops it in silence.
    Blackhole,
    /// Anything else, by its `RTN_*` number.
    Other(u8),
}

/// One way on for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NextHop {
    /// The next router; none means that the destination itself is on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the link that the packet leaves through.
    pub link: u32,
    /// The gateway is taken to be on the link, whatever the addresses say.
    pub onlink: bool,
    /// Share of a multipath route, from 1.
    pub weight: u16,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Interface name.
    pub name: String,
    /// Administratively up (`IFF_UP`).
    pub up: bool,
    /// Carrier present (`IFF_LOWER_UP`).
    pub running: bool,
    /// Bytes.
    pub mtu: u32,
    /// The kernel's name of its kind (`ipip`, `veth`, `bridge`…); none for a physical one.
    pub kind: Option<String>,
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Index of the link that carries it.
    pub link: u32,
    /// The address with its prefix length.
    pub net: IpNet,
}

/// The state of the kernel at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All links.
    pub links: Vec<Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// All routes but those of the local table.
    pub routes: Vec<Route>,
    /// Whether the kernel forwards IPv4 packets (`net.ipv4.ip_forward`).
    pub forwarding: bool,
}

/// Something that happened in the kernel, whoever did it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A link appeared or changed.
    Link(Link),
    /// A link is gone: its index.
    LinkGone(u32),
    /// An address appeared.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route appeared, or replaced the one of the same key.
    Route(Route),
    /// A route is gone.
    RouteGone(Route),
    /// Events were lost: only a new [`Snapshot`] tells what is.
    Overrun,
}

/// A step towards the desired state, complete in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Switch `net.ipv4.ip_forward` on.
    EnableForwarding,
    /// Create the tunnel device `name` (`type ipip`, any to any); one that exists is left alone.
    CreateTunnel {
        /// Device name, `tunl0`.
        name: String,
    },
    /// Set a link up, with this MTU in bytes.
    SetLink {
        /// Interface index.
        link: u32,
        /// Bytes.
        mtu: u32,
    },
    /// Set a link down.
    SetLinkDown {
        /// Interface index.
        link: u32,
    },
    /// Add an address.
    AddAddress(Address),
    /// Remove an address.
    DeleteAddress(Address),
    /// Install a route, in place of whatever has its key.
    ReplaceRoute(Route),
    /// Remove a route, if it is still the one of this key and protocol.
    DeleteRoute(Route),
}
