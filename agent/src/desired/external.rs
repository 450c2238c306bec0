//! The ways out of the cluster: to destinations outside every pool that a router of the network tells of, and to the routers
//! that are themselves reached through another (`reachableBy`).
//!
//! What such a peer tells is installed as it tells it: unencapsulated, through the next hop that it names, which must lie
//! on a subnet of this host. It never takes the place of what the host knows by itself: the subnets of its links, and
//! the routes that others have put there. BIRD's are the exception: they are what this agent takes over.
//!
//! How a destination is reached is looked up in the kernel's routes when it is asked for. What the answers rest on is kept,
//! so that an event that cannot change one costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::ways::Way;
use super::{Rejection, Settings, TUNNEL_DEVICE};
use crate::fib::{MAIN_TABLE, NextHop, PROTOCOL_BIRD, Route, RouteKey, RouteKind};
use crate::peering::Peering;
use crate::reconcile::{Actual, Touched};

/// The destinations that were asked for, and through which next hops.
#[derive(Clone, Debug, Default)]
pub(super) struct External {
    next_hops_of: BTreeMap<IpNet, BTreeSet<IpAddr>>,
    /// How many destinations there are for each next hop.
    uses: BTreeMap<IpAddr, usize>,
}

impl External {
    /// Takes note of the next hops that were asked for; none for a destination that is not outside, or is gone.
    pub(super) fn note(&mut self, prefix: IpNet, next_hops: BTreeSet<IpAddr>) {
        for hop in &next_hops {
            *self.uses.entry(*hop).or_default() += 1;
        }
        let before = if next_hops.is_empty() {
            self.next_hops_of.remove(&prefix)
        } else {
            self.next_hops_of.insert(prefix, next_hops)
        };
        for hop in before.into_iter().flatten() {
            if let Some(count) = self.uses.get_mut(&hop) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.uses.remove(&hop);
                }
            }
        }
    }

    /// The destinations whose ways may be others after what was touched in the kernel.
    pub(super) fn touched(&self, touched: &Touched, actual: &Actual) -> Vec<IpNet> {
        if self.next_hops_of.is_empty() {
            return Vec::new();
        }
        let in_main = || touched.routes.iter().filter(|key| key.table == MAIN_TABLE);
        let leads_to_hop = |key: &RouteKey| {
            let range = key.prefix.network()..=key.prefix.broadcast();
            self.uses.range(range).next().is_some()
        };
        let is_on = |link: &u32, hop: &IpAddr| {
            let mut around = routes_around(actual, &IpNet::from(*hop));
            around.any(|route| route.next_hops.iter().any(|hop| hop.link == *link))
        };
        let is_way_to_hop = |link: &u32| self.uses.keys().any(|hop| is_on(link, hop));
        let has_moved = in_main().any(leads_to_hop)
            || touched.links.iter().any(is_way_to_hop)
            || touched
                .addresses
                .iter()
                .any(|address| self.uses.contains_key(address));
        if has_moved {
            return self.next_hops_of.keys().copied().collect();
        }
        // A subnet that came or went has all that lies in it.
        let inside = in_main().flat_map(|key| {
            let range = lowest(&key.prefix)..=IpNet::from(key.prefix.broadcast());
            self.next_hops_of.range(range).map(|(prefix, _)| *prefix)
        });
        inside.collect()
    }
}

/// What of the kernel and of the peers a way out rests on.
pub(super) struct Outside<'a> {
    pub(super) settings: &'a Settings,
    pub(super) peering: &'a Peering,
    pub(super) actual: &'a Actual,
}

impl Outside<'_> {
    /// The way to `prefix` through `next_hop`.
    pub(super) fn way(&self, prefix: IpNet, next_hop: IpAddr) -> Result<Way, Rejection> {
        if prefix.prefix_len() == 0 && !self.settings.speaking.accepts_default {
            return Err(Rejection::DefaultRoute);
        }
        let foreign = || {
            let around = routes_around(self.actual, &prefix);
            around.filter(|route| route.protocol != self.settings.protocol)
        };
        let is_subnet = |route: &&Route| route.key.prefix.prefix_len() > 0 && is_connected(route);
        if let Some(subnet) = foreign().find(is_subnet) {
            return Err(Rejection::OwnSubnet {
                subnet: subnet.key.prefix,
            });
        }
        let key = RouteKey::main(prefix);
        let is_others = |route: &&Route| route.key == key && route.protocol != PROTOCOL_BIRD;
        if let Some(other) = foreign().find(is_others) {
            return Err(Rejection::OthersRoute {
                protocol: other.protocol,
            });
        }
        let gateways = &self.peering.gateways;
        let gateway = if self.link_to(next_hop).is_some() {
            next_hop
        } else {
            gateways.get(&next_hop).copied().unwrap_or(next_hop)
        };
        let is_own = self.actual.links_with_address(gateway).next().is_some();
        let link = self.link_to(gateway).filter(|_| !is_own);
        let link = link
            .filter(|_| prefix.addr().is_ipv4() == gateway.is_ipv4())
            .ok_or(Rejection::NotConnected { next_hop })?;
        let hop = NextHop {
            gateway: Some(gateway),
            link,
            onlink: false,
            weight: 1,
        };
        Ok(Way {
            next_hops: vec![hop],
            ..Way::default()
        })
    }

    /// The link on whose subnet an address is, by the most specific route to it.
    fn link_to(&self, address: IpAddr) -> Option<u32> {
        let around = routes_around(self.actual, &IpNet::from(address));
        let mut others = around.filter(|route| route.protocol != self.settings.protocol);
        let route = others.next().filter(|route| is_connected(route))?;
        let hop = route.next_hops.first()?;
        let link = self.actual.link_at(hop.link)?;
        let leads_there = link.name != TUNNEL_DEVICE && !self.peering.ignored_interfaces.contain(&link.name);
        leads_there.then_some(link.index)
    }
}

/// Whether a route says that its destination is on a link of this host.
fn is_connected(route: &Route) -> bool {
    route.kind == RouteKind::Unicast
        && !route.next_hops.is_empty()
        && route.next_hops.iter().all(|hop| hop.gateway.is_none())
}

/// The routes of the main table to `net` or more than it, in the order in which they count.
fn routes_around<'a>(actual: &'a Actual, net: &IpNet) -> impl Iterator<Item = &'a Route> + use<'a> {
    let net = *net;
    let shorter = (0..=net.prefix_len()).rev();
    let supernets = shorter.filter_map(move |length| IpNet::new(net.addr(), length).ok());
    supernets.flat_map(|around| actual.routes_to(&around.trunc()))
}

/// The first network, in order, that begins where this one does.
fn lowest(net: &IpNet) -> IpNet {
    IpNet::new(net.network(), 0).unwrap_or(*net)
}
