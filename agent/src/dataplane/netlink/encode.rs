//! The values of `fib` as messages to the kernel.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, InetDevConf, InfoKind, LinkAttribute};
use netlink_packet_route::neighbour_table::{
    NeighbourTableAttribute, NeighbourTableMessage, NeighbourTableParameter,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteProtocol,
    RouteScope, RouteType, RouteVia,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, IpProtocol, RouteNetlinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::connection::Request;
use crate::fib::{Address, NextHop, Route, RouteKind, Rule};

/// The link whose name as the incoming one (`iif`) makes a rule match what this host sends itself.
pub(super) const OWN_PACKETS: &str = "lo";

/// Installs a route in place of whatever has its key.
pub(super) fn replace_route(route: &Route) -> io::Result<Request> {
    let message = installed(&route.as_reported())?;
    Ok((
        RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    ))
}

/// Removes the first route of this key, protocol and kind. Next hops are not named: one changed by hand goes too.
///
/// Metric zero means any to the kernel here; the protocol keeps it to our own, and the lowest metric is met first.
pub(super) fn delete_route(route: &Route) -> io::Result<Request> {
    if route.protocol == 0 {
        return Err(invalid(
            "protocol 0 means any, so that the deletion could hit somebody else's route".into(),
        ));
    }
    // net/ipv4/fib_trie.c, fib_table_delete(): RT_SCOPE_NOWHERE means any scope.
    let message = skeleton(route, RouteScope::NoWhere)?.build();
    Ok((RouteNetlinkMessage::DelRoute(message), 0))
}

/// Creates the tunnel device, any to any.
pub(super) fn create_tunnel(name: &str) -> Request {
    let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::IpIp)
        .name(name)
        .build();
    (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Sets a link up with an MTU.
pub(super) fn set_link(link: u32, mtu: u32) -> Request {
    (
        RouteNetlinkMessage::NewLink(LinkUnspec::new_with_index(link).mtu(mtu).up().build()),
        0,
    )
}

/// Lets a link take packets from any source that there is a route to (`rp_filter` 2). A container of which the kernel's
/// switches under `/proc/sys` are read-only may do this all the same (net/ipv4/devinet.c, `inet_set_link_af`).
pub(super) fn loosen_reverse_path(link: u32) -> Request {
    const LOOSE: i32 = 2;
    let mut switches = InetDevConf::default();
    switches.rp_filter = LOOSE;
    set_switches(link, switches)
}

/// Sets the switches that the host's end of a pod needs: it answers for `169.254.1.1` (`proxy_arp`), takes from the pod only
/// what the pod may send (`rp_filter` 1), and forwards.
pub(super) fn set_pod_switches(link: u32) -> Request {
    let mut switches = InetDevConf::default();
    (switches.proxy_arp, switches.rp_filter, switches.forwarding) = (1, 1, 1);
    set_switches(link, switches)
}

fn set_switches(link: u32, switches: InetDevConf) -> Request {
    let switches = AfSpecInet::DevConfRequest(switches);
    let message = LinkUnspec::new_with_index(link).append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![
        AfSpecUnspec::Inet(vec![switches]),
    ]));
    (RouteNetlinkMessage::NewLink(message.build()), 0)
}

/// Has a link answer at once where it does for others (`proxy_delay` 0): the usual delay is meant for several proxies on one
/// link.
pub(super) fn answer_at_once(link: u32) -> Request {
    let mut message = NeighbourTableMessage::default();
    message.header.family = AddressFamily::Inet;
    message.attributes = vec![
        // net/ipv4/arp.c: arp_tbl.
        NeighbourTableAttribute::Name("arp_cache".to_owned()),
        NeighbourTableAttribute::Parms(vec![
            NeighbourTableParameter::Ifindex(link),
            NeighbourTableParameter::ProxyDelay(0),
        ]),
    ];
    (RouteNetlinkMessage::SetNeighbourTable(message), 0)
}

/// Sets a link down.
pub(super) fn set_link_down(link: u32) -> Request {
    (
        RouteNetlinkMessage::NewLink(LinkUnspec::new_with_index(link).down().build()),
        0,
    )
}

/// Adds an address.
pub(super) fn add_address(address: &Address) -> Request {
    (
        RouteNetlinkMessage::NewAddress(address_message(address)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Adds an address that nobody else can have, so that the link need not ask for it first (RFC 4862 §5.4).
pub(super) fn add_own_address(address: &Address) -> Request {
    let mut message = address_message(address);
    if address.net.addr().is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    (
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Removes an address.
pub(super) fn delete_address(address: &Address) -> Request {
    (RouteNetlinkMessage::DelAddress(address_message(address)), 0)
}

fn address_message(address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.net.addr());
    message.header.prefix_len = address.net.prefix_len();
    message.header.index = address.link;
    message
        .attributes
        .push(AddressAttribute::Local(address.net.addr()));
    message
        .attributes
        .push(AddressAttribute::Address(address.net.addr()));
    message
}

/// Adds a rule.
pub(super) fn add_rule(rule: &Rule) -> Request {
    (
        RouteNetlinkMessage::NewRule(rule_message(rule)),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// Removes a rule. Its protocol is named: the kernel leaves those of others alone.
pub(super) fn delete_rule(rule: &Rule) -> Request {
    (RouteNetlinkMessage::DelRule(rule_message(rule)), 0)
}

fn rule_message(rule: &Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Iifname(OWN_PACKETS.to_owned()),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Protocol(RouteProtocol::from(rule.protocol)),
    ];
    let ip_protocol = rule
        .ip_protocol
        .map(|number| RuleAttribute::IpProtocol(IpProtocol::from(number)));
    message.attributes.extend(ip_protocol);
    message
}

/// What tells a route apart: its key, its protocol and its kind.
fn skeleton(route: &Route, scope: RouteScope) -> io::Result<RouteMessageBuilder<IpAddr>> {
    let prefix = route.key.prefix;
    let kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Blackhole => RouteType::BlackHole,
        RouteKind::Other(kind) => RouteType::from(kind),
    };
    let builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.network(), prefix.prefix_len())
        .map_err(|why| invalid(why.to_string()))?
        .table_id(route.key.table)
        .protocol(RouteProtocol::from(route.protocol))
        .kind(kind)
        .scope(scope);
    Ok(if route.key.metric == 0 {
        builder
    } else {
        builder.priority(route.key.metric)
    })
}

fn installed(route: &Route) -> io::Result<RouteMessage> {
    let mut builder = skeleton(route, RouteScope::from(route.scope))?;
    match route.next_hops.as_slice() {
        [] => {}
        [hop] => {
            builder.get_mut().attributes.extend(gateway(hop, route)?);
            if hop.link != 0 {
                builder = builder.output_interface(hop.link);
            }
            if hop.onlink {
                builder = builder.onlink();
            }
        }
        several => {
            let next_hops: io::Result<_> = several.iter().map(|hop| next_hop(hop, route)).collect();
            builder = builder.multipath(next_hops?);
        }
    }
    if let Some(source) = route.source {
        builder
            .get_mut()
            .attributes
            .push(RouteAttribute::PrefSource(route_address(source)));
    }
    if let Some(mtu) = route.mtu {
        builder
            .get_mut()
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    Ok(builder.build())
}

fn next_hop(hop: &NextHop, route: &Route) -> io::Result<RouteNextHop> {
    let mut message = RouteNextHop::default();
    message.interface_index = hop.link;
    // linux/rtnetlink.h, struct rtnexthop: the weight less one, in eight bits.
    message.hops = hop
        .weight
        .checked_sub(1)
        .and_then(|hops| u8::try_from(hops).ok())
        .ok_or_else(|| invalid(format!("a next hop weighs {}, allowed is 1 to 256", hop.weight)))?;
    if hop.onlink {
        message.flags = RouteNextHopFlags::Onlink;
    }
    message.attributes.extend(gateway(hop, route)?);
    Ok(message)
}

/// The gateway of a next hop of `route`: one of the other family has an attribute of its own.
fn gateway(hop: &NextHop, route: &Route) -> io::Result<Option<RouteAttribute>> {
    let Some(gateway) = hop.gateway else {
        return Ok(None);
    };
    match (route.key.prefix, gateway) {
        (IpNet::V4(_), IpAddr::V6(address)) => Ok(Some(RouteAttribute::Via(RouteVia::Inet6(address)))),
        (IpNet::V6(prefix), IpAddr::V4(address)) => Err(invalid(format!(
            "{prefix} via {address}: an IPv6 route takes no IPv4 gateway"
        ))),
        _ => Ok(Some(RouteAttribute::Gateway(route_address(gateway)))),
    }
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

pub(super) fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
