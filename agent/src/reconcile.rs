//! The ordered difference between what should be and what is.
//!
//! Two things make this more than a set difference. The kernel keeps a list of routes per key, of which the first
//! counts (`ip route append` and `prepend` make more than one), and it removes routes in silence: when a link goes
//! down or its last address goes, when the address named as a source goes. [`Actual`] knows both, and says when only a
//! new dump can tell.
//!
//! What is ours is what carries our protocol number, a route or a rule, and on the tunnel device its addresses. Nothing
//! else is removed.

mod actual;

pub use actual::{Actual, Observed};

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net};

use crate::fib::{Address, Change, Desired, Link, MAIN_TABLE, Route, RouteKey, RouteKind, Rule, Tunnel};

/// How to tell what is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ours {
    /// The protocol number that our routes carry, and nobody else's. Not zero, which the kernel takes to mean any.
    pub protocol: u8,
}

impl Ours {
    fn owns(self, route: &Route) -> bool {
        self.protocol != 0 && route.protocol == self.protocol
    }

    fn owns_rule(self, rule: &Rule) -> bool {
        self.protocol != 0 && rule.protocol == self.protocol
    }
}

/// What becomes of routes of ours that are not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They are deleted.
    Now,
    /// Unicast ones stay: before the speaker has converged, a route that is not wanted yet may be wanted soon.
    Later,
}

/// The steps that lead from `actual` to `desired`, in the order in which they work: forwarding, the tunnel device, its
/// MTU and addresses; routes of private tables, the rules that lead there, routes of the main table; and what is deleted
/// in reverse, addresses last. So no packet takes a new route before the tables that it goes by are complete.
///
/// A tunnel device that is still to be created has no index yet: its MTU and addresses follow in the difference that
/// is taken once it is there.
#[must_use]
pub fn diff(desired: &Desired, actual: &Actual, ours: &Ours, removal: Removal) -> Vec<Change> {
    let mut changes = Vec::new();
    if desired.forwarding && !actual.forwarding() {
        changes.push(Change::EnableForwarding);
    }
    let mut surplus = Vec::new();
    if let Some(tunnel) = &desired.tunnel {
        match actual.link_named(&tunnel.name) {
            Some(link) if link.kind.as_deref() == Some("ipip") => {
                surplus = configure(tunnel, link, actual, &mut changes);
            }
            // A device of that name and another kind is not ours to touch: the kernel's answer to this says so.
            _ => changes.push(Change::CreateTunnel {
                name: tunnel.name.clone(),
            }),
        }
    }
    write_routes(desired, actual, *ours, Tables::Private, &mut changes);
    let missing = desired.rules.iter().filter(|rule| !actual.has_rule(rule));
    changes.extend(missing.copied().map(Change::AddRule));
    write_routes(desired, actual, *ours, Tables::Main, &mut changes);

    delete_routes(desired, actual, *ours, removal, Tables::Main, &mut changes);
    let unwanted = actual
        .rules()
        .filter(|rule| ours.owns_rule(rule) && !desired.rules.contains(rule));
    changes.extend(unwanted.map(Change::DeleteRule));
    delete_routes(desired, actual, *ours, removal, Tables::Private, &mut changes);
    changes.extend(surplus.into_iter().map(Change::DeleteAddress));
    changes
}

/// The protocol number that a route carries before `change` takes it over from somebody else.
#[must_use]
pub fn taken_over_from(change: &Change, actual: &Actual, ours: &Ours) -> Option<u8> {
    let Change::ReplaceRoute(route) = change else {
        return None;
    };
    let former = actual.route(&route.key)?;
    (!ours.owns(former)).then_some(former.protocol)
}

/// The route that gets the packets of the route of `key`, since it has the same prefix and a better metric. It is not ours
/// to remove, and replacing ours does not help.
#[must_use]
pub fn overshadowing<'a>(key: &RouteKey, actual: &'a Actual) -> Option<&'a Route> {
    actual
        .best_metric(key)
        .filter(|best| best.key.metric < key.metric)
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
fn configure(tunnel: &Tunnel, link: &Link, actual: &Actual, changes: &mut Vec<Change>) -> Vec<Address> {
    if !link.up || link.mtu != tunnel.mtu {
        changes.push(Change::SetLink {
            link: link.index,
            mtu: tunnel.mtu,
        });
    }
    if let Some(on) = tunnel.path_mtu_discovery
        && link.path_mtu_discovery.is_some_and(|present| present != on)
    {
        let (link, name) = (link.index, link.name.clone());
        changes.push(Change::SetPathMtuDiscovery { link, name, on });
    }
    // Two nodes need not agree at every moment on what goes through the tunnel: a pool changes its mode, or one of them
    // has the other in its subnet. A packet that comes through it and would be answered outside is right all the same.
    if actual.is_strict(link.index) {
        changes.push(Change::LoosenReversePath {
            name: link.name.clone(),
        });
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
        changes.push(Change::AddAddress(wanted));
    }
    // Deleted last: a link that loses its last address loses its routes too (net/ipv4/fib_frontend.c, fib_disable_ip).
    surplus.into_iter().collect()
}

fn write_routes(desired: &Desired, actual: &Actual, ours: Ours, tables: Tables, changes: &mut Vec<Change>) {
    // Both are in order of their keys: side by side each is walked once.
    let mut present = actual.counting().peekable();
    let mut missing: Vec<&Route> = desired
        .routes
        .values()
        .filter(|route| tables.hold(&route.key))
        .filter(|route| {
            while present.next_if(|other| other.key < route.key).is_some() {}
            let same = present.peek().filter(|other| other.key == route.key);
            !same.is_some_and(|other| other.is_same_as(route))
        })
        .filter(|route| !desired.held.contains(&route.key))
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
            && ours.owns(shadowed)
        {
            changes.push(Change::DeleteRoute(shadowed.clone()));
        }
        changes.push(Change::ReplaceRoute(route.clone()));
    }
}

fn delete_routes(
    desired: &Desired,
    actual: &Actual,
    ours: Ours,
    removal: Removal,
    tables: Tables,
    changes: &mut Vec<Change>,
) {
    let mut wanted = desired.routes.keys().peekable();
    let unwanted = actual
        .routes()
        .filter(|route| ours.owns(route) && tables.hold(&route.key))
        .filter(|route| {
            while wanted.next_if(|key| **key < route.key).is_some() {}
            wanted.peek() != Some(&&route.key) && !desired.held.contains(&route.key)
        })
        .filter(|route| removal == Removal::Now || route.kind != RouteKind::Unicast);
    changes.extend(unwanted.cloned().map(Change::DeleteRoute));
}

#[cfg(test)]
mod tests;
