//! The difference itself: where what should be and what is are not the same, and the steps that this takes.

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

use super::{Actual, Ours, Removal, overshadowing};
use crate::fib::{Address, Change, Desired, Link, MAIN_TABLE, Route, RouteKey, RouteKind, Tunnel};

/// The keys whose routes are not as they should be. Kept current key by key, it costs what differs, not what there is.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    ours: Ours,
    /// Of routes that should be there and are not, or are others.
    missing: BTreeSet<RouteKey>,
    /// Of routes of ours that should not be there.
    unwanted: BTreeSet<RouteKey>,
    /// Of routes that should be there and get no packets, since another program's has a better metric.
    overshadowed: BTreeSet<RouteKey>,
}

impl Difference {
    /// No difference: that of nothing from nothing.
    #[must_use]
    pub fn none(ours: Ours) -> Self {
        Self {
            ours,
            missing: BTreeSet::new(),
            unwanted: BTreeSet::new(),
            overshadowed: BTreeSet::new(),
        }
    }

    /// The difference of all that should be and all that is.
    #[must_use]
    pub fn whole(desired: &Desired, actual: &Actual, ours: Ours) -> Self {
        let mut difference = Self::none(ours);
        // Both are in order of their keys: side by side each is walked once.
        let mut present = actual.by_key().peekable();
        for (key, route) in &desired.routes {
            while let Some((other, routes)) = present.next_if(|(other, _)| *other < key) {
                difference.unwanted_at(other, routes, desired);
            }
            let there = present.next_if(|(other, _)| *other == key);
            if !is_first(route, there.map_or(&[], |(_, routes)| routes)) {
                difference.missing.insert(*key);
            }
            if overshadowing(key, actual).is_some() {
                difference.overshadowed.insert(*key);
            }
        }
        for (other, routes) in present {
            difference.unwanted_at(other, routes, desired);
        }
        difference
    }

    /// Looks at `key` again, since what should be there or what is there may be another now.
    pub fn look_at(&mut self, key: &RouteKey, desired: &Desired, actual: &Actual) {
        // A table is filled and emptied key by key: each of the two is looked into once.
        let last = RouteKey {
            metric: u32::MAX,
            ..*key
        };
        let mut from_here = desired.routes.range(*key..=last).peekable();
        let wanted = from_here.next_if(|(there, _)| *there == key);
        let (best, routes) = actual.best_and_routes_of(key);
        match wanted {
            Some((_, route)) if is_first(route, routes) => {
                self.missing.remove(key);
                self.unwanted.remove(key);
            }
            Some(_) => {
                self.missing.insert(*key);
                self.unwanted.remove(key);
            }
            None => {
                self.missing.remove(key);
                self.unwanted.remove(key);
                self.unwanted_at(key, routes, desired);
            }
        }
        // A route overshadows those of its prefix that have a greater metric.
        if wanted.is_some() && best.is_some_and(|best| best.key.metric < key.metric) {
            self.overshadowed.insert(*key);
        } else {
            self.overshadowed.remove(key);
        }
        for (below, _) in from_here {
            if overshadowing(below, actual).is_some() {
                self.overshadowed.insert(*below);
            } else {
                self.overshadowed.remove(below);
            }
        }
    }

    /// Whether a route should be there and is not, or is another.
    #[must_use]
    pub fn is_missing(&self, key: &RouteKey) -> bool {
        self.missing.contains(key)
    }

    /// How many routes should be there and are not, or are others.
    #[must_use]
    pub fn missing(&self) -> usize {
        self.missing.len()
    }

    /// The routes that should be there and get no packets, since another program's has a better metric.
    #[must_use]
    pub fn overshadowed(&self) -> &BTreeSet<RouteKey> {
        &self.overshadowed
    }

    /// The steps that lead from `actual` to `desired`, in the order in which they work: forwarding, the tunnel device, its
    /// MTU and addresses; routes of private tables, the rules that lead there, routes of the main table; and what is
    /// deleted in reverse, addresses last. So no packet takes a new route before the tables that it goes by are complete.
    ///
    /// A tunnel device that is still to be created has no index yet: its MTU and addresses follow in the difference that
    /// is taken once it is there.
    #[must_use]
    pub fn steps(&self, desired: &Desired, actual: &Actual, removal: Removal) -> Vec<Change> {
        let mut steps = Vec::new();
        if desired.forwarding && !actual.forwarding() {
            steps.push(Change::EnableForwarding);
        }
        if desired.forwarding_v6 && !actual.forwarding_v6() {
            steps.push(Change::EnableForwardingV6);
        }
        let mut surplus = Vec::new();
        if let Some(tunnel) = &desired.tunnel {
            match actual.link_named(&tunnel.name) {
                Some(link) if link.kind.as_deref() == Some("ipip") => {
                    surplus = configure(tunnel, link, actual, &mut steps);
                }
                // A device of that name and another kind is not ours to touch: the kernel's answer to this says so.
                _ => steps.push(Change::CreateTunnel {
                    name: tunnel.name.clone(),
                }),
            }
        }
        self.write_routes(desired, actual, Tables::Private, &mut steps);
        let missing = desired.rules.iter().filter(|rule| !actual.has_rule(rule));
        steps.extend(missing.copied().map(Change::AddRule));
        self.write_routes(desired, actual, Tables::Main, &mut steps);

        self.delete_routes(actual, removal, Tables::Main, &mut steps);
        let unwanted = actual
            .rules()
            .filter(|rule| self.ours.owns_rule(rule) && !desired.rules.contains(rule));
        steps.extend(unwanted.map(Change::DeleteRule));
        self.delete_routes(actual, removal, Tables::Private, &mut steps);
        steps.extend(surplus.into_iter().map(Change::DeleteAddress));
        steps
    }

    /// The deletion of those routes of `keys` that are not wanted, whatever a [`Removal`] says of others.
    pub fn deletions_of<'a>(
        &'a self,
        keys: impl Iterator<Item = RouteKey> + 'a,
        actual: &'a Actual,
    ) -> impl Iterator<Item = Change> + 'a {
        keys.filter(|key| self.unwanted.contains(key)).flat_map(|key| {
            let routes = actual.routes_of(&key).iter();
            let ours = routes.filter(|route| self.ours.owns(route) && route.kind == RouteKind::Unicast);
            ours.cloned().map(Change::DeleteRoute)
        })
    }

    fn unwanted_at(&mut self, key: &RouteKey, routes: &[Route], desired: &Desired) {
        if routes.iter().any(|route| self.ours.owns(route)) && !desired.held.contains(key) {
            self.unwanted.insert(*key);
        }
    }

    fn write_routes(&self, desired: &Desired, actual: &Actual, tables: Tables, steps: &mut Vec<Change>) {
        let keys = self.missing.iter().filter(|key| tables.hold(key));
        let mut missing: Vec<&Route> = keys
            .filter(|key| !desired.held.contains(key))
            .filter_map(|key| desired.routes.get(key))
            .collect();
        // The kernel takes a gateway only if it can reach it: routes that name none come first.
        missing.sort_by_key(|route| {
            route
                .next_hops
                .iter()
                .any(|hop| hop.gateway.is_some() && !hop.onlink)
        });
        for route in missing {
            // A replacement that equals a route further down the list of its key is refused (EEXIST): that one goes first.
            if let Some(shadowed) = actual
                .shadowed(&route.key)
                .find(|present| present.is_same_as(route))
                && self.ours.owns(shadowed)
            {
                steps.push(Change::DeleteRoute(shadowed.clone()));
            }
            steps.push(Change::ReplaceRoute(route.clone()));
        }
    }

    fn delete_routes(&self, actual: &Actual, removal: Removal, tables: Tables, steps: &mut Vec<Change>) {
        let keys = self.unwanted.iter().filter(|key| tables.hold(key));
        let unwanted = keys
            .flat_map(|key| actual.routes_of(key))
            .filter(|route| self.ours.owns(route))
            .filter(|route| removal == Removal::Now || route.kind != RouteKind::Unicast);
        steps.extend(unwanted.cloned().map(Change::DeleteRoute));
    }
}

/// Whether of the routes of a key it is `route` that counts.
fn is_first(route: &Route, routes: &[Route]) -> bool {
    routes.first().is_some_and(|first| first.is_same_as(route))
}

/// Which tables' routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tables {
    /// Those of the main table.
    Main,
    /// Those of tables that only a rule leads to.
    Private,
}

impl Tables {
    fn hold(self, key: &RouteKey) -> bool {
        (self == Self::Main) == (key.table == MAIN_TABLE)
    }
}

/// Pushes what the tunnel device lacks, and gives the addresses that it has too many.
fn configure(tunnel: &Tunnel, link: &Link, actual: &Actual, steps: &mut Vec<Change>) -> Vec<Address> {
    if !link.up || link.mtu != tunnel.mtu {
        steps.push(Change::SetLink {
            link: link.index,
            mtu: tunnel.mtu,
        });
    }
    if let Some(on) = tunnel.path_mtu_discovery
        && link.path_mtu_discovery.is_some_and(|present| present != on)
    {
        let (link, name) = (link.index, link.name.clone());
        steps.push(Change::SetPathMtuDiscovery { link, name, on });
    }
    // Two nodes need not agree at every moment on what goes through the tunnel: a pool steps its mode, or one of them
    // has the other in its subnet. A packet that comes through it and would be answered outside is right all the same.
    if actual.is_strict(link.index) {
        steps.push(Change::LoosenReversePath { link: link.index });
    }
    let Some(address) = tunnel.address else {
        return Vec::new();
    };
    let wanted = Address {
        link: link.index,
        net: IpNet::V4(Ipv4Net::from(address)),
    };
    let mut surplus: BTreeSet<Address> = actual
        .addresses_of(link.index)
        .filter(|address| address.net.addr().is_ipv4())
        .collect();
    if !surplus.remove(&wanted) {
        steps.push(Change::AddAddress(wanted));
    }
    // Deleted last: a link that loses its last address loses its routes too (net/ipv4/fib_frontend.c, fib_disable_ip).
    surplus.into_iter().collect()
}
