//! The kernel's forwarding state as values: routes, rules, links, addresses, and the changes made to them.
//!
//! Nothing here talks to the kernel: `desired` says what should be, `dataplane` what is, and `reconcile` what differs.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use culvert_bgp::id::order;
use ipnet::IpNet;

/// The kernel's main routing table (`RT_TABLE_MAIN`).
pub const MAIN_TABLE: u32 = 254;

/// The kernel's table of its own addresses (`RT_TABLE_LOCAL`), which nobody else writes.
pub const LOCAL_TABLE: u32 = 255;

/// `RTPROT_KERNEL`: the protocol of routes that the kernel makes by itself, for the subnets of its addresses.
pub const PROTOCOL_KERNEL: u8 = 2;

/// `RTPROT_BIRD`: the protocol of routes of BIRD's, which Calico's nodes run.
pub const PROTOCOL_BIRD: u8 = 12;
/// The protocols of the routes of Calico's nodes: BIRD's, and the number that Felix uses (felix/dataplane/linux,
/// `DefaultRouteProto`).
pub const PROTOCOLS_OF_CALICO: [u8; 2] = [PROTOCOL_BIRD, 80];

/// `RT_SCOPE_UNIVERSE`: the scope of routes through a gateway, and of blackholes.
pub const SCOPE_UNIVERSE: u8 = 0;

/// `RT_SCOPE_LINK`: the scope of routes whose destination is on the link itself.
pub const SCOPE_LINK: u8 = 253;

/// What the kernel itself tells routes apart by, within one address family and type of service zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteKey {
    /// Routing table, 1 to 4294967295.
    pub table: u32,
    /// Destination, host bits cleared.
    pub prefix: IpNet,
    /// Priority; the lower wins. Zero is what `ip route` leaves out.
    pub metric: u32,
}

impl RouteKey {
    /// The key in the main table of a route that is given no metric. IPv6 has none of zero: the kernel makes that 1024
    /// (net/ipv6/route.c, `IP6_RT_PRIO_USER`).
    #[must_use]
    pub fn main(prefix: IpNet) -> Self {
        Self {
            table: MAIN_TABLE,
            prefix,
            metric: match prefix {
                IpNet::V4(_) => 0,
                IpNet::V6(_) => 1024,
            },
        }
    }
}

/// By table, destination and priority.
impl Ord for RouteKey {
    fn cmp(&self, other: &Self) -> Ordering {
        let prefixes = || order(&self.prefix, &other.prefix);
        let metrics = || self.metric.cmp(&other.metric);
        self.table
            .cmp(&other.table)
            .then_with(prefixes)
            .then_with(metrics)
    }
}

impl PartialOrd for RouteKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
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

impl Route {
    /// A route that drops packets for `key`, as `ip route add blackhole` makes it.
    #[must_use]
    pub fn blackhole(key: RouteKey, protocol: u8) -> Self {
        Self {
            key,
            kind: RouteKind::Blackhole,
            next_hops: Vec::new(),
            source: None,
            protocol,
            scope: SCOPE_UNIVERSE,
            mtu: None,
        }
    }

    /// Whether the kernel would report the two alike: it keeps no weight for a lone next hop, no next hop for a
    /// blackhole, no `onlink` where there is no gateway, and the order of several next hops means nothing.
    #[must_use]
    pub fn is_same_as(&self, other: &Self) -> bool {
        self == other || self.as_reported() == other.as_reported()
    }

    /// This route as the kernel reports it once it is installed, next hops in order.
    #[must_use]
    pub fn as_reported(&self) -> Self {
        let mut route = self.clone();
        if route.kind == RouteKind::Blackhole {
            route.next_hops.clear();
        }
        if let [hop] = route.next_hops.as_mut_slice() {
            hop.weight = 1;
        }
        for hop in &mut route.next_hops {
            hop.onlink &= hop.gateway.is_some();
        }
        route.next_hops.sort_unstable();
        route.mtu = route.mtu.filter(|mtu| *mtu != 0);
        route
    }

    /// Whether every next hop leaves through `link`. False for a route without next hops.
    #[must_use]
    pub fn is_only_through(&self, link: u32) -> bool {
        !self.next_hops.is_empty() && self.next_hops.iter().all(|hop| hop.link == link)
    }

    /// This route as `ip route` prints it, with `name` giving the names of links. A link without one is `if` and its index.
    pub fn with_names<'a, N>(&'a self, name: N) -> impl fmt::Display + 'a
    where
        N: Fn(u32) -> Option<String> + 'a,
    {
        Named { route: self, name }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_names(|_| None).fmt(f)
    }
}

struct Named<'a, N> {
    route: &'a Route,
    name: N,
}

impl<N: Fn(u32) -> Option<String>> Named<'_, N> {
    fn hop(&self, f: &mut fmt::Formatter<'_>, hop: &NextHop) -> fmt::Result {
        if let Some(gateway) = hop.gateway {
            let family = if gateway.is_ipv6() && self.route.key.prefix.addr().is_ipv4() {
                "inet6 "
            } else {
                ""
            };
            write!(f, " via {family}{gateway}")?;
        }
        if hop.link != 0 {
            let name = (self.name)(hop.link).unwrap_or_else(|| format!("if{}", hop.link));
            write!(f, " dev {name}")?;
        }
        Ok(())
    }
}

// The order is that of iproute2's print_route().
impl<N: Fn(u32) -> Option<String>> fmt::Display for Named<'_, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let route = self.route;
        match route.kind {
            RouteKind::Unicast => {}
            RouteKind::Blackhole => f.write_str("blackhole ")?,
            RouteKind::Other(kind) => match KIND_NAMES.iter().find(|(number, _)| *number == kind) {
                Some((_, name)) => write!(f, "{name} ")?,
                None => write!(f, "{kind} ")?,
            },
        }
        let prefix = route.key.prefix;
        if prefix.prefix_len() == 0 {
            f.write_str("default")?;
        } else if prefix.prefix_len() == prefix.max_prefix_len() {
            write!(f, "{}", prefix.addr())?;
        } else {
            write!(f, "{prefix}")?;
        }
        let alone = if let [hop] = route.next_hops.as_slice() {
            Some(hop)
        } else {
            None
        };
        if let Some(hop) = alone {
            self.hop(f, hop)?;
        }
        if route.key.table != MAIN_TABLE {
            write!(f, " table {}", route.key.table)?;
        }
        if route.protocol != PROTOCOL_BOOT {
            write!(f, " proto {}", protocol_name(route.protocol))?;
        }
        match route.scope {
            SCOPE_UNIVERSE => {}
            SCOPE_LINK => f.write_str(" scope link")?,
            254 => f.write_str(" scope host")?,
            other => write!(f, " scope {other}")?,
        }
        if let Some(source) = route.source {
            write!(f, " src {source}")?;
        }
        if route.key.metric != 0 {
            write!(f, " metric {}", route.key.metric)?;
        }
        if alone.is_some_and(|hop| hop.onlink) {
            f.write_str(" onlink")?;
        }
        if let Some(mtu) = route.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if alone.is_none() {
            for hop in &route.next_hops {
                f.write_str(" nexthop")?;
                self.hop(f, hop)?;
                write!(f, " weight {}", hop.weight)?;
                if hop.onlink {
                    f.write_str(" onlink")?;
                }
            }
        }
        Ok(())
    }
}

// linux/rtnetlink.h: RTPROT_BOOT, which `ip route` leaves out.
const PROTOCOL_BOOT: u8 = 3;

// linux/rtnetlink.h: RTN_*, in the words of iproute2.
const KIND_NAMES: [(u8, &str); 7] = [
    (2, "local"),
    (3, "broadcast"),
    (4, "anycast"),
    (5, "multicast"),
    (7, "unreachable"),
    (8, "prohibit"),
    (9, "throw"),
];

/// The name of a route's protocol number as `ip route` knows it without configuration, else the number.
#[must_use]
pub fn protocol_name(protocol: u8) -> Cow<'static, str> {
    // linux/rtnetlink.h: RTPROT_*.
    let name = match protocol {
        0 => "unspec",
        1 => "redirect",
        2 => "kernel",
        3 => "boot",
        4 => "static",
        8 => "gated",
        9 => "ra",
        10 => "mrt",
        11 => "zebra",
        12 => "bird",
        13 => "dnrouted",
        14 => "xorp",
        15 => "ntk",
        16 => "dhcp",
        18 => "keepalived",
        42 => "babel",
        186 => "bgp",
        187 => "isis",
        188 => "ospf",
        189 => "rip",
        192 => "eigrp",
        other => return Cow::Owned(other.to_string()),
    };
    Cow::Borrowed(name)
}

/// A rule that sends packets of this host's own making (`iif lo`) to a table: `ip rule add iif lo ipproto N lookup T`.
///
/// Packets that are received or forwarded do not match it: neither their way nor the check of their source (`rp_filter`)
/// is another because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Rules are tried from the lowest to the highest: 0 is the local table's, 32766 the main table's.
    pub priority: u32,
    /// The packets' protocol (`IPPROTO_*`); none for all packets.
    pub ip_protocol: Option<u8>,
    /// The table to look into. Where that has no route for a packet, the next rule is tried.
    pub table: u32,
    /// Who installed it (`proto`), as for a route.
    pub protocol: u8,
}

// As `ip rule` takes it; the protocol as a number, since iproute2 and /etc/protocols disagree on the names of 4 and 94.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pref {} iif lo", self.priority)?;
        if let Some(protocol) = self.ip_protocol {
            write!(f, " ipproto {protocol}")?;
        }
        write!(f, " lookup {} proto {}", self.table, protocol_name(self.protocol))
    }
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
    /// Of an ipip link whether it sets DF in every outer header (`pmtudisc`); none for other links.
    pub path_mtu_discovery: Option<bool>,
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
    /// All addresses but those of IPv6 that are link-local, which every link has, temporary (RFC 8981), or not known to
    /// be nobody else's yet (RFC 4862 §5.4).
    pub addresses: Vec<Address>,
    /// Those of them that nobody should begin to use: IPv6 addresses whose preferred lifetime is over (RFC 4862 §5.5.4).
    pub deprecated: BTreeSet<Address>,
    /// All routes but those of the local table, and those of IPv6 to link-local and loopback addresses, which the kernel
    /// gives every link.
    pub routes: Vec<Route>,
    /// All rules for packets of this host's own making that select by nothing but the packet's protocol.
    pub rules: Vec<Rule>,
    /// Whether the kernel forwards IPv4 packets (`net.ipv4.ip_forward`).
    pub forwarding: bool,
    /// Whether it forwards IPv6 packets (`net.ipv6.conf.all.forwarding`). Not where the kernel has no IPv6.
    pub forwarding_v6: bool,
    /// The ipip links, and those with an IPv4 address, that drop a packet whose source they would not be the way to (RFC 3704 §2.2, strict
    /// reverse path forwarding), by their index: those where the greater of `rp_filter` of the link and of all links is 1.
    pub strict: BTreeSet<u32>,
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
    /// An address appeared that nobody should begin to use, or has become such a one.
    AddressDeprecated(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route appeared.
    Route(Route),
    /// A route took the place of the first one of its key (`NLM_F_REPLACE`).
    RouteReplaced(Route),
    /// A route is gone.
    RouteGone(Route),
    /// A rule appeared.
    Rule(Rule),
    /// A rule is gone.
    RuleGone(Rule),
    /// IPv4 forwarding was switched on or off for the whole host (`net.ipv4.ip_forward`).
    Forwarding(bool),
    /// The same for IPv6 (`net.ipv6.conf.all.forwarding`).
    ForwardingV6(bool),
    /// `rp_filter` was written: of a link, by its index, or of all.
    ReversePathFilter(Option<u32>),
    /// Events were lost: only a new [`Snapshot`] tells what is.
    Overrun,
}

/// The tunnel device that the node should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Device name, `tunl0`.
    pub name: String,
    /// Bytes: the underlay's less the 20 of the outer header.
    pub mtu: u32,
    /// The only address that the device should have, as a /32. None leaves its addresses alone.
    pub address: Option<Ipv4Addr>,
    /// Whether it should set DF in every outer header (`pmtudisc`). None leaves that as it is.
    pub path_mtu_discovery: Option<bool>,
}

/// What the kernel should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The routes, each under its own key.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Left as they are: neither written nor removed.
    pub held: BTreeSet<RouteKey>,
    /// The rules.
    pub rules: BTreeSet<Rule>,
    /// The tunnel device. None leaves whatever is there alone.
    pub tunnel: Option<Tunnel>,
    /// Whether the kernel must forward IPv4 packets. False leaves the switch alone.
    pub forwarding: bool,
    /// The same for IPv6 packets.
    pub forwarding_v6: bool,
}

/// A step towards the desired state, complete in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Switch `net.ipv4.ip_forward` on.
    EnableForwarding,
    /// Switch `net.ipv6.conf.all.forwarding` on. Links whose `accept_ra` is 1 take no router advertisements from then on
    /// (Documentation/networking/ip-sysctl.rst).
    EnableForwardingV6,
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
    /// Set whether an ipip link sets DF in every outer header (`pmtudisc`).
    SetPathMtuDiscovery {
        /// Interface index.
        link: u32,
        /// Interface name.
        name: String,
        /// `pmtudisc` or `nopmtudisc`.
        on: bool,
    },
    /// Set a link down.
    SetLinkDown {
        /// Interface index.
        link: u32,
    },
    /// Set `rp_filter` of a link to 2, loose: it takes any packet whose source there is a route to.
    LoosenReversePath {
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
    /// Add a rule; one that exists is left alone.
    AddRule(Rule),
    /// Remove a rule, if it is still there with this protocol.
    DeleteRule(Rule),
}
