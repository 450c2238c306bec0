//! The kernel's messages as the values of `fib`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};
use netlink_packet_core::{NLM_F_REPLACE, NetlinkBuffer, NlaBuffer, NlasIterator};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoIpTunnel, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags,
    RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::encode::OWN_PACKETS;
use crate::fib::{Address, KernelEvent, LOCAL_TABLE, Link, NextHop, Route, RouteKey, RouteKind, Rule};

/// What a notification tells, if it tells anything that is kept. `flags` are the `NLM_F_*` of its header.
pub(super) fn event(message: &RouteNetlinkMessage, flags: u16) -> Option<KernelEvent> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link(message).map(KernelEvent::Link),
        // A bridge port that leaves its bridge is told as the deletion of a link of that family.
        RouteNetlinkMessage::DelLink(message) => link(message).map(|link| KernelEvent::LinkGone(link.index)),
        RouteNetlinkMessage::NewAddress(message) => match lasting_address(message)? {
            (address, true) => Some(KernelEvent::AddressDeprecated(address)),
            (address, false) => Some(KernelEvent::Address(address)),
        },
        RouteNetlinkMessage::DelAddress(message) => address(message).map(KernelEvent::AddressGone),
        RouteNetlinkMessage::NewRoute(message) if flags & NLM_F_REPLACE != 0 => {
            route(message).map(KernelEvent::RouteReplaced)
        }
        RouteNetlinkMessage::NewRoute(message) => route(message).map(KernelEvent::Route),
        RouteNetlinkMessage::DelRoute(message) => route(message).map(KernelEvent::RouteGone),
        RouteNetlinkMessage::NewRule(message) => rule(message).map(KernelEvent::Rule),
        RouteNetlinkMessage::DelRule(message) => rule(message).map(KernelEvent::RuleGone),
        _ => None,
    }
}

/// A notification about a link with nothing but what is kept of it; none if `message` is about something else, or malformed.
/// The counters of a link and the switches of its families are nine tenths of what it tells, and a pod that comes or goes is
/// told several times.
pub(super) fn lean_link(message: &[u8]) -> Option<Vec<u8>> {
    // linux/rtnetlink.h and linux/if_link.h.
    const RTM_NEWLINK: u16 = 16;
    const RTM_DELLINK: u16 = 17;
    const KEPT: [u16; 3] = [IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO];
    const IFLA_IFNAME: u16 = 3;
    const IFLA_MTU: u16 = 4;
    const IFLA_LINKINFO: u16 = 18;
    // struct nlmsghdr, struct ifinfomsg, and struct nlattr.
    const HEADERS: usize = 16 + 16;
    const ATTRIBUTE: usize = 4;
    let kind = NetlinkBuffer::new_checked(message).ok()?.message_type();
    if !matches!(kind, RTM_NEWLINK | RTM_DELLINK) {
        return None;
    }
    let (headers, attributes) = message.split_at_checked(HEADERS)?;
    let mut lean = headers.to_vec();
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<&[u8]> = attribute.ok()?;
        if KEPT.contains(&attribute.kind()) {
            let value = attribute.value();
            lean.extend(u16::try_from(ATTRIBUTE + value.len()).ok()?.to_ne_bytes());
            lean.extend(attribute.kind().to_ne_bytes());
            lean.extend(value);
            lean.resize(lean.len().next_multiple_of(4), 0);
        }
    }
    let length = u32::try_from(lean.len()).ok()?.to_ne_bytes();
    lean.get_mut(..length.len())?.copy_from_slice(&length);
    Some(lean)
}

/// What the kernel tells of its switches, which the library does not read: none if `message` is not about them.
pub(super) fn netconf(message: &[u8]) -> Option<Option<KernelEvent>> {
    // linux/rtnetlink.h and linux/netconf.h. The switches of single links follow that of the host.
    const RTM_NEWNETCONF: u16 = 80;
    const RTM_DELNETCONF: u16 = 81;
    const NETCONFA_IFINDEX: u16 = 1;
    const NETCONFA_FORWARDING: u16 = 2;
    const NETCONFA_RP_FILTER: u16 = 3;
    const ALL: i32 = -1;
    // struct netconfmsg: the family, and three bytes up to the next multiple of four.
    const FAMILY: usize = 4;
    let message = NetlinkBuffer::new_checked(message).ok()?;
    match message.message_type() {
        RTM_NEWNETCONF => {}
        // Those of a link that is gone.
        RTM_DELNETCONF => return Some(None),
        _ => return None,
    }
    let payload = message.payload();
    let number = |wanted: u16| {
        NlasIterator::new(payload.get(FAMILY..)?)
            .map_while(Result::ok)
            .find(|attribute: &NlaBuffer<&[u8]>| attribute.kind() == wanted)
            .and_then(|attribute| attribute.value().try_into().ok())
            .map(i32::from_ne_bytes)
    };
    let of = number(NETCONFA_IFINDEX);
    let is_family = |family: AddressFamily| payload.first().copied() == Some(u8::from(family));
    if is_family(AddressFamily::Inet6) {
        let all = number(NETCONFA_FORWARDING).filter(|_| of == Some(ALL));
        return Some(all.map(|on| KernelEvent::ForwardingV6(on != 0)));
    }
    if !is_family(AddressFamily::Inet) {
        return Some(None);
    }
    // A new link's tells all its switches; one that was written is told alone.
    Some(
        match (number(NETCONFA_FORWARDING), number(NETCONFA_RP_FILTER), of) {
            (Some(on), _, Some(ALL)) => Some(KernelEvent::Forwarding(on != 0)),
            (None, Some(_), Some(ALL)) => Some(KernelEvent::ReversePathFilter(None)),
            (None, Some(_), Some(link)) => u32::try_from(link)
                .ok()
                .map(|link| KernelEvent::ReversePathFilter(Some(link))),
            _ => None,
        },
    )
}

/// A link; None for what a bridge says about its port.
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::LowerUp),
        mtu: 0,
        kind: None,
        path_mtu_discovery: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
                link.path_mtu_discovery = infos.iter().find_map(path_mtu_discovery);
            }
            _ => {}
        }
    }
    Some(link)
}

/// Whether an ipip link sets DF in every outer header (`IFLA_IPTUN_PMTUDISC`).
fn path_mtu_discovery(info: &LinkInfo) -> Option<bool> {
    let LinkInfo::Data(InfoData::IpTunnel(parameters)) = info else {
        return None;
    };
    parameters.iter().find_map(|parameter| match parameter {
        InfoIpTunnel::PMtuDisc(on) => Some(*on),
        _ => None,
    })
}

/// An address, and whether it is deprecated; None for those of IPv6 that no node can be known by: link-local ones,
/// temporary ones (RFC 8981), and those that another host may have too (RFC 4862 §5.4).
pub(super) fn lasting_address(message: &AddressMessage) -> Option<(Address, bool)> {
    let address = address(message)?;
    if address.net.addr().is_ipv4() {
        return Some((address, false));
    }
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(AddressFlags::empty());
    // linux/if_addr.h: IFA_F_TEMPORARY is IFA_F_SECONDARY. An optimistic address is tentative, and used all the same.
    let is_tentative = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let is_passing = flags.intersects(AddressFlags::Secondary | AddressFlags::Dadfailed) || is_tentative;
    (!is_passing).then(|| (address, flags.contains(AddressFlags::Deprecated)))
}

/// An address; None for link-local ones of IPv6, which every link has and no node is known by.
fn address(message: &AddressMessage) -> Option<Address> {
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    // On a point-to-point link IFA_ADDRESS is the other end's; IFA_LOCAL is always this end's.
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(local) => Some(*local),
        _ => None,
    });
    let own = match message.header.family {
        AddressFamily::Inet => local?,
        // net/ipv6/addrconf.c, inet6_fill_ifaddr(): IFA_LOCAL is there only where there is another end.
        AddressFamily::Inet6 => local.or_else(|| {
            find(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        })?,
        _ => return None,
    };
    if matches!(own, IpAddr::V6(own) if own.is_unicast_link_local()) {
        return None;
    }
    Some(Address {
        link: message.header.index,
        net: IpNet::new(own, message.header.prefix_len).ok()?,
    })
}

/// A route; None for those that are not kept: of the local table, of a type of service, for single sources, learned in
/// passing (exceptions to a route, which the kernel clones from it), or what IPv6 gives every link.
pub(super) fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let unspecified = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    if header.tos != 0 || header.source_prefix_length != 0 || header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let any = IpNet::new(unspecified, header.destination_prefix_length).ok()?;
    let mut route = Route {
        key: RouteKey {
            table: u32::from(header.table),
            prefix: any,
            metric: 0,
        },
        kind: match header.kind {
            RouteType::Unicast => RouteKind::Unicast,
            RouteType::BlackHole => RouteKind::Blackhole,
            other => RouteKind::Other(other.into()),
        },
        next_hops: Vec::new(),
        source: None,
        protocol: header.protocol.into(),
        scope: header.scope.into(),
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.key.table = *table,
            RouteAttribute::Priority(metric) => route.key.metric = *metric,
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Destination(destination) => {
                route.key.prefix = IpNet::new(ip(destination)?, header.destination_prefix_length)
                    .ok()?
                    .trunc();
            }
            RouteAttribute::MultiPath(hops) => route.next_hops.extend(hops.iter().map(multipath_hop)),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    if matches!(route.key.prefix, IpNet::V6(prefix) if is_of_every_link(prefix)) {
        return None;
    }
    // The kernel names lo as the link of such a route of IPv6.
    if route.kind == RouteKind::Blackhole {
        route.next_hops.clear();
    } else if route.next_hops.is_empty() {
        let onlink = header.flags.contains(RouteFlags::Onlink);
        route.next_hops.extend(hop(&message.attributes, 0, onlink, 1));
    }
    (route.key.table != LOCAL_TABLE).then_some(route)
}

/// Whether a destination is one to which the kernel gives every link a route: link-local, multicast or loopback.
fn is_of_every_link(prefix: Ipv6Net) -> bool {
    let network = prefix.network();
    (network.is_unicast_link_local() && prefix.prefix_len() >= 10)
        || (network.is_multicast() && prefix.prefix_len() >= 8)
        || network.is_loopback()
}

/// A rule for this host's own packets; None for one that selects by anything but their protocol, or that does something
/// else than to look into a table.
pub(super) fn rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.family != AddressFamily::Inet
        || (header.dst_len, header.src_len, header.tos) != (0, 0, 0)
        || header.action != RuleAction::ToTable
        || header.flags.contains(RuleFlags::Invert)
    {
        return None;
    }
    let mut rule = Rule {
        priority: 0,
        ip_protocol: None,
        table: u32::from(header.table),
        protocol: 0,
    };
    let mut own_packets = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
            RuleAttribute::IpProtocol(protocol) => rule.ip_protocol = Some(u8::from(*protocol)),
            RuleAttribute::Iifname(name) if name == OWN_PACKETS => own_packets = true,
            // net/core/fib_rules.c, fib_nl_fill_rule(): always told, and -1 where it is not set.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    own_packets.then_some(rule)
}

fn multipath_hop(hop_message: &RouteNextHop) -> NextHop {
    let link = hop_message.interface_index;
    let onlink = hop_message.flags.contains(RouteNextHopFlags::Onlink);
    // linux/rtnetlink.h, struct rtnexthop: the weight less one.
    let weight = u16::from(hop_message.hops) + 1;
    hop(&hop_message.attributes, link, onlink, weight).unwrap_or(NextHop {
        gateway: None,
        link,
        onlink,
        weight,
    })
}

/// The next hop that `attributes` name, on `link` unless they name another; none if there is neither gateway nor link.
fn hop(attributes: &[RouteAttribute], link: u32, onlink: bool, weight: u16) -> Option<NextHop> {
    let mut hop = NextHop {
        gateway: None,
        link,
        onlink,
        weight,
    };
    for attribute in attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.link = *index,
            RouteAttribute::Gateway(gateway) => hop.gateway = ip(gateway),
            // A gateway of the other family.
            RouteAttribute::Via(RouteVia::Inet(gateway)) => hop.gateway = Some(IpAddr::V4(*gateway)),
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => hop.gateway = Some(IpAddr::V6(*gateway)),
            _ => {}
        }
    }
    (hop.link != 0 || hop.gateway.is_some()).then_some(hop)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}
