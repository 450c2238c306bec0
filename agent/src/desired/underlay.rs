//! The network below the tunnel: the ways to the other nodes, and the source of the packets that go there.
//!
//! The other nodes know this one by the address it advertises, and may drop encapsulated packets from any other. But the
//! outer source is the kernel's choice, made for the route to the next hop (net/ipv4/ip_tunnel.c, `ip_tunnel_xmit`): on
//! a host with two NICs, or with a second address on one, it is often another. The tunnel device of the ipip module
//! takes no address of its own, and `src` on a route through it sets the inner source alone. So each node gets a route
//! in a table of ours, a pin, that repeats the way of the main table with the advertised address as source; and a rule
//! leads there what this host encapsulates, and nothing else.
//!
//! In a fabric that has no default route the way to another node is itself a route of ours, learned from a router at the top
//! of the rack. Such routes are part of the underlay too. They cannot lead back into it: their next hops lie on subnets
//! that the host knows by itself, and are neither nodes nor behind the tunnel (`external.rs`).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{Settings, TUNNEL_DEVICE};
use crate::cluster::Cluster;
use crate::fib::{MAIN_TABLE, NextHop, Route, RouteKey, RouteKind, Rule, SCOPE_LINK, SCOPE_UNIVERSE};
use crate::reconcile::Actual;

/// `IPPROTO_IPIP`: IPv4 in IPv4 (RFC 2003). As a number: to iproute2 the name `ipip` means protocol 94.
pub const IPIP: u8 = 4;

/// The priority of the rule that leads to the pins: after the local table, which is at 0 (or at 100, where Cilium has put
/// it), and before the rules of other network plugins for the addresses of pods (512 and up) and the main table at 32766.
pub const PIN_PRIORITY: u32 = 110;

/// Why packets to a node do not get the advertised address as their source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unpinned {
    /// No link carries it: the kernel takes no such route, and may have removed those that were there.
    #[error(
        "the advertised address {address} is on no link of this host: tunnelled packets leave with another source, \
         which the other nodes may drop; add the address again, or set node.address to one that is there"
    )]
    AddressGone {
        /// The advertised address.
        address: Ipv4Addr,
    },
    /// The main table has no way to the node.
    #[error(
        "this host has no route to the node at {peer}, so tunnelled packets to it go nowhere; add one, or a default route"
    )]
    Unreachable {
        /// The node's advertised address.
        peer: Ipv4Addr,
    },
}

/// The routes that give packets to the other nodes their source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pins {
    /// One route a node.
    pub(super) routes: BTreeMap<RouteKey, Route>,
    /// Pins that stay as they are: what they need is missing for the moment.
    pub(super) held: BTreeSet<RouteKey>,
    /// What could not be pinned, and why.
    pub(super) unpinned: Vec<Unpinned>,
}

/// The rule that leads encapsulated packets to the pins in `table`.
pub(super) fn rule(settings: &Settings, table: u32) -> Rule {
    Rule {
        priority: PIN_PRIORITY,
        ip_protocol: Some(IPIP),
        table,
        protocol: settings.protocol,
    }
}

/// A route in `table` for each of `peers`, with the advertised address as source.
pub(super) fn pins(
    settings: &Settings,
    table: u32,
    peers: impl IntoIterator<Item = Ipv4Addr>,
    underlay: &Underlay<'_>,
) -> Pins {
    let address = settings.address;
    let mut pins = Pins::default();
    if underlay.carriers.is_empty() {
        let present = underlay.actual.routes().map(|route| route.key);
        pins.held = present.filter(|key| key.table == table).collect();
        pins.unpinned.push(Unpinned::AddressGone { address });
        return pins;
    }
    for peer in peers {
        let key = RouteKey {
            table,
            prefix: IpNet::from(IpAddr::V4(peer)),
            metric: 0,
        };
        let Some(way) = underlay.way_to(IpAddr::V4(peer)) else {
            pins.held.insert(key);
            pins.unpinned.push(Unpinned::Unreachable { peer });
            continue;
        };
        let through_gateway = way.next_hops.iter().any(|hop| hop.gateway.is_some());
        let route = Route {
            key,
            kind: RouteKind::Unicast,
            next_hops: way.next_hops,
            source: Some(IpAddr::V4(address)),
            protocol: settings.protocol,
            scope: if through_gateway {
                SCOPE_UNIVERSE
            } else {
                SCOPE_LINK
            },
            mtu: way.mtu,
        };
        pins.routes.insert(key, route);
    }
    pins
}

/// What of the kernel the ways to nodes rest on.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    /// The nodes, and the gateways on the ways to them.
    addresses: BTreeSet<IpAddr>,
    /// The links on the ways to them, and those that carry the advertised address.
    pub(super) links: BTreeSet<u32>,
    /// The links that carry the advertised address.
    pub(super) carriers: BTreeSet<u32>,
}

impl Watched {
    /// Whether a route to `prefix` would be looked at.
    pub(super) fn is_asked_for(&self, prefix: &IpNet) -> bool {
        self.addresses
            .range(prefix.network()..=prefix.broadcast())
            .next()
            .is_some()
    }
}

/// Which routes of ours that are in the kernel, and are not wanted as they are, stay there all the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Former<'a> {
    pub(super) cluster: &'a Cluster,
    /// Those that lack something for the moment.
    pub(super) held: &'a BTreeSet<RouteKey>,
    /// All, since peers may yet tell of them.
    pub(super) all: bool,
}

impl Former<'_> {
    /// Whether a route of ours is one that a router told, and stays.
    fn stays(&self, route: &Route) -> bool {
        (self.all || self.held.contains(&route.key)) && self.cluster.pool_of(&route.key.prefix).is_none()
    }
}

/// How packets get to a node.
struct UnderlayWay {
    next_hops: Vec<NextHop>,
    mtu: Option<u32>,
}

/// The main table's routes that are not through the tunnel, nor ours to where pods are.
pub(super) struct Underlay<'a> {
    actual: &'a Actual,
    routes: Vec<&'a Route>,
    /// The links that carry the advertised address.
    carriers: BTreeSet<u32>,
}

impl<'a> Underlay<'a> {
    /// What the host knows by itself, and of ours `learned`: the ways to nodes that routers tell, as they should be.
    pub(super) fn new(
        settings: &Settings,
        actual: &'a Actual,
        learned: &'a BTreeMap<RouteKey, Route>,
        former: Former<'_>,
    ) -> Self {
        let tunnel = actual.link_named(TUNNEL_DEVICE).map(|link| link.index);
        let present = actual.routes().filter(|route| {
            let is_ours = route.protocol == settings.protocol;
            // What is learned takes the place of whatever has its key.
            (!is_ours || former.stays(route)) && !learned.contains_key(&route.key)
        });
        let routes = present.chain(learned.values()).filter(|route| {
            route.key.table == MAIN_TABLE && route.next_hops.iter().all(|hop| Some(hop.link) != tunnel)
        });
        let address = IpAddr::V4(settings.address);
        Self {
            actual,
            routes: routes.collect(),
            carriers: actual
                .links_with_address(address)
                .map(|link| link.index)
                .collect(),
        }
    }

    /// What the answers about these nodes rest on.
    pub(super) fn watched(&self, nodes: impl IntoIterator<Item = IpAddr>) -> Watched {
        let mut watched = Watched {
            addresses: nodes.into_iter().collect(),
            links: self.carriers.clone(),
            carriers: self.carriers.clone(),
        };
        for route in &self.routes {
            if watched.is_asked_for(&route.key.prefix) {
                watched.links.extend(route.next_hops.iter().map(|hop| hop.link));
            }
        }
        let gateways = self
            .routes
            .iter()
            .filter(|route| watched.is_asked_for(&route.key.prefix))
            .flat_map(|route| route.next_hops.iter().filter_map(|hop| hop.gateway));
        let gateways: Vec<IpAddr> = gateways.collect();
        watched.addresses.extend(gateways);
        watched
    }

    /// The kernel's own choice: the longest, then the one of the lowest metric, of which the first. None where that one
    /// does not let packets through.
    pub(super) fn route_to(&self, node: IpAddr) -> Option<&'a Route> {
        let around = self.routes.iter().copied();
        around
            .filter(|route| route.key.prefix.contains(&node))
            // Of equals the first is given, which is the one that counts for the kernel too.
            .min_by_key(|route| (Reverse(route.key.prefix.prefix_len()), route.key.metric))
            .filter(|route| route.kind == RouteKind::Unicast && !route.next_hops.is_empty())
    }

    /// The way of a tunnelled packet: through the NIC of the advertised address, if that has one which is as specific as
    /// the kernel's own choice; else that choice, on whatever NIC.
    ///
    /// Never a less specific one: a node on the subnet of another NIC is reached there, where the BGP session reaches it
    /// too, and not through a default gateway that may not know it.
    fn way_to(&self, node: IpAddr) -> Option<UnderlayWay> {
        let choice = self.route_to(node)?;
        let own = |hop: &NextHop| self.is_live_carrier(hop.link);
        let preferred = self
            .routes
            .iter()
            .filter(|route| route.key.prefix == choice.key.prefix && route.kind == RouteKind::Unicast)
            .find(|route| route.next_hops.iter().any(own));
        let (route, hops): (_, Vec<&NextHop>) = match preferred {
            Some(route) => (*route, route.next_hops.iter().filter(|hop| own(hop)).collect()),
            None => (choice, choice.next_hops.iter().collect()),
        };
        Some(UnderlayWay {
            next_hops: hops.into_iter().map(|hop| self.pinned(hop)).collect(),
            mtu: route.mtu,
        })
    }

    /// The largest tunnelled packet, outer header included, that gets to a node in one piece: what the route says, or less
    /// where a NIC takes less. None where there is no way.
    pub(super) fn tunnelled_mtu_to(&self, node: IpAddr, is_pinned: bool) -> Option<u32> {
        let way = if is_pinned {
            self.way_to(node)?
        } else {
            let route = self.route_to(node)?;
            UnderlayWay {
                next_hops: route.next_hops.clone(),
                mtu: route.mtu,
            }
        };
        way.mtu
            .filter(|mtu| *mtu != 0)
            .into_iter()
            .chain(self.nic_mtu(&way.next_hops))
            .min()
    }

    /// What the route to a node says of the largest packet, where that is less than its NICs take. A node that is reached
    /// through `own_link`, whatever the routes say, has what a route through that link says.
    pub(super) fn direct_mtu_to(&self, node: IpAddr, own_link: Option<u32>) -> Option<u32> {
        let route = self.route_to(node)?;
        let mtu = route.mtu.filter(|mtu| *mtu != 0)?;
        let goes_there = own_link.is_none_or(|link| route.is_only_through(link));
        let is_less = self.nic_mtu(&route.next_hops).is_none_or(|nic| mtu < nic);
        (goes_there && is_less).then_some(mtu)
    }

    /// What the least of these next hops' NICs takes.
    fn nic_mtu(&self, next_hops: &[NextHop]) -> Option<u32> {
        let links = next_hops.iter().filter_map(|hop| self.actual.link_at(hop.link));
        links.map(|link| link.mtu).filter(|mtu| *mtu != 0).min()
    }

    /// Whether this link carries the advertised address, and packets.
    fn is_live_carrier(&self, link: u32) -> bool {
        self.carriers.contains(&link) && self.actual.link_at(link).is_some_and(|link| link.running)
    }

    /// A next hop of a pin: its gateway is taken to be on the link where no subnet of the link says so.
    fn pinned(&self, hop: &NextHop) -> NextHop {
        let connected = |gateway: IpAddr| {
            let on_link = |other: &NextHop| other.link == hop.link && other.gateway.is_none();
            self.routes
                .iter()
                .any(|route| route.key.prefix.contains(&gateway) && route.next_hops.iter().any(on_link))
        };
        NextHop {
            onlink: hop
                .gateway
                .is_some_and(|gateway| hop.onlink || !connected(gateway)),
            ..*hop
        }
    }
}

#[cfg(test)]
mod tests;
