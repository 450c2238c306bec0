//! Where the ends of a trace are, and how packets are to get from one to the other.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{End, Way};
use crate::desired::TUNNEL_DEVICE;
use crate::fib::{MAIN_TABLE, Route, RouteKind};
use crate::inquiry::Known;

/// Why there is no way to trace.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    /// Nobody has the address.
    #[error(
        "no node owns a block around {0}, and no node has it: is it the address of a pod? `culvert ipam show --ip={0}` says more"
    )]
    Nobody(Ipv4Addr),
    /// The node has published no address.
    #[error("node {0} has {1} and has published no address: look at its agent")]
    NoAddress(String, Ipv4Addr),
    /// Both ends are the same.
    #[error("{0} is both ends: name two pods")]
    Same(Ipv4Addr),
}

/// The way from one address to another, as this node knows it.
pub(crate) fn locate(known: &Known<'_>, from: Ipv4Addr, to: Ipv4Addr) -> Result<Way, NoWay> {
    if from == to {
        return Err(NoWay::Same(from));
    }
    let (from, to) = (end(known, from)?, end(known, to)?);
    let desired = known.plan.desired.routes.values();
    let desired = longest(desired, to.address);
    let is_through_tunnel = |route: &Route| {
        let device = known.actual.link_named(TUNNEL_DEVICE);
        device.is_some_and(|device| route.is_only_through(device.index))
    };
    let kernel = longest(known.actual.routes(), to.address);
    let route = desired.or(kernel);
    let link = route.and_then(|route| known.actual.link_at(route.next_hops.first()?.link));
    Ok(Way {
        tunnelled: from.node != to.node && route.is_some_and(is_through_tunnel),
        mtu: route
            .and_then(|route| route.mtu)
            .or(link.map(|link| link.mtu))
            .unwrap_or(known.plan.pod_mtu),
        route: kernel.map(|route| known.named(route)),
        from,
        to,
    })
}

/// The narrowest route around an address, of the main table.
fn longest<'a>(routes: impl Iterator<Item = &'a Route>, address: Ipv4Addr) -> Option<&'a Route> {
    let address = IpAddr::V4(address);
    let around = routes.filter(|route| {
        route.key.table == MAIN_TABLE
            && route.key.prefix.contains(&address)
            && route.key.prefix.prefix_len() > 0
    });
    around.min_by_key(|route| (Reverse(route.key.prefix.prefix_len()), route.key.metric))
}

fn end(known: &Known<'_>, address: Ipv4Addr) -> Result<End, NoWay> {
    let own = || End {
        address,
        node: known.settings.node.clone(),
        node_address: known.settings.address,
        link: None,
        is_node: true,
    };
    if known.actual.link_with_address(IpAddr::V4(address)).is_some() {
        return Ok(own());
    }
    // The link of a pod of this host.
    let here = known.actual.routes().find(|route| {
        route.key.prefix == IpNet::from(IpAddr::V4(address))
            && route.kind == RouteKind::Unicast
            && route.next_hops.iter().all(|hop| hop.gateway.is_none())
    });
    if let Some(hop) = here.and_then(|route| route.next_hops.first()) {
        return Ok(End {
            link: known.actual.link_at(hop.link).map(|link| link.name.clone()),
            is_node: false,
            ..own()
        });
    }
    let mut nodes = known.cluster.nodes();
    let with_tunnel = nodes.find(|(_, node)| node.tunnel_address == Some(address));
    let is_node = with_tunnel.is_some();
    let node = with_tunnel
        .map(|(name, _)| name)
        .or_else(|| owner(known, address));
    let node = node.ok_or(NoWay::Nobody(address))?;
    let node_address = known.cluster.node(node).and_then(|node| node.address);
    let node_address = node_address.ok_or_else(|| NoWay::NoAddress(node.to_owned(), address))?;
    Ok(End {
        address,
        node: node.to_owned(),
        node_address: node_address.addr(),
        link: None,
        is_node,
    })
}

/// Whose an address is: of a /32 that BGP tells of, the node that it leads to; else the node of its block.
fn owner<'a>(known: &Known<'a>, address: Ipv4Addr) -> Option<&'a str> {
    let net = IpNet::from(IpAddr::V4(address));
    let alone = known
        .plan
        .desired
        .routes
        .values()
        .find(|route| route.key.prefix == net);
    let gateway = alone.and_then(|route| route.next_hops.first()?.gateway);
    let nodes = known.cluster.nodes_by_address();
    let borrower = gateway.and_then(|gateway| nodes.get(&gateway).copied());
    borrower.or_else(|| known.cluster.block_around(&net).map(|(_, node)| node))
}
