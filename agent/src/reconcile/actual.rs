//! What the kernel holds, kept current by its events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::fib::{Address, Change, KernelEvent, Link, MAIN_TABLE, Route, RouteKey, Rule, Snapshot};

/// What an event did to the knowledge of the kernel; of several the greatest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use]
pub enum Observed {
    /// Nothing: it was known.
    Unchanged,
    /// Something is different now.
    Changed,
    /// The kernel may have done more than it said: only a new dump tells.
    MustDump,
}

/// What of the kernel may be another than it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// The keys of routes. Not those of our own in the main table that were written where nothing was, or over another of
    /// ours: there may be a hundred thousand of them, and a plan rests on none of them while it is wanted.
    pub routes: BTreeSet<RouteKey>,
    /// The links, by index.
    pub links: BTreeSet<u32>,
    /// The addresses that came or went.
    pub addresses: BTreeSet<IpAddr>,
}

/// What the kernel holds, kept current by events.
#[derive(Clone, Debug, Default)]
pub struct Actual {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<Address>,
    // Of the addresses.
    deprecated: BTreeSet<Address>,
    // In the kernel's order: the first of a key is the one that counts. Never empty.
    routes: BTreeMap<RouteKey, Vec<Route>>,
    rules: BTreeSet<Rule>,
    forwarding: bool,
    forwarding_v6: bool,
    strict: BTreeSet<u32>,
    touched: Touched,
}

impl Actual {
    /// What a dump showed.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        let mut routes: BTreeMap<RouteKey, Vec<Route>> = BTreeMap::new();
        for route in snapshot.routes {
            routes
                .entry(route.key)
                .or_insert_with(|| Vec::with_capacity(1))
                .push(route);
        }
        Self {
            links: snapshot
                .links
                .into_iter()
                .map(|link| (link.index, link))
                .collect(),
            addresses: snapshot.addresses.into_iter().collect(),
            deprecated: snapshot.deprecated,
            routes,
            rules: snapshot.rules.into_iter().collect(),
            forwarding: snapshot.forwarding,
            forwarding_v6: snapshot.forwarding_v6,
            strict: snapshot.strict,
            touched: Touched::default(),
        }
    }

    /// What events and changes have touched since this was last asked.
    pub fn take_touched(&mut self) -> Touched {
        std::mem::take(&mut self.touched)
    }

    /// Takes note of an event.
    ///
    /// For IPv4 the kernel says nothing of the routes that it removes because a link went down or was deleted
    /// (net/ipv4/fib_frontend.c, fib_disable_ip), because it lost its last address (the same), or because their source
    /// address is gone (fib_semantics.c, fib_sync_down_addr). For IPv6 it takes such a source off its routes in silence,
    /// and leaves them (net/ipv6/route.c, rt6_remove_prefsrc). Such events ask for a new dump if a known route may be hit.
    pub fn observe(&mut self, event: &KernelEvent) -> Observed {
        match event {
            KernelEvent::Link(link) => self.link(link),
            KernelEvent::LinkGone(link) => self.link_gone(*link),
            KernelEvent::Address(address) => {
                let preferred_again = self.deprecated.remove(address);
                changed(self.insert_address(*address) || preferred_again)
            }
            KernelEvent::AddressDeprecated(address) => {
                let new = self.insert_address(*address);
                changed(self.deprecated.insert(*address) || new)
            }
            KernelEvent::AddressGone(address) => self.address_gone(address),
            KernelEvent::Route(route) => self.route_added(route),
            KernelEvent::RouteReplaced(route) => self.route_replaced(route),
            KernelEvent::RouteGone(route) => self.route_gone(route),
            KernelEvent::Rule(rule) => changed(self.rules.insert(*rule)),
            KernelEvent::RuleGone(rule) => changed(self.rules.remove(rule)),
            KernelEvent::Forwarding(on) => changed(std::mem::replace(&mut self.forwarding, *on) != *on),
            KernelEvent::ForwardingV6(on) => changed(std::mem::replace(&mut self.forwarding_v6, *on) != *on),
            KernelEvent::ReversePathFilter(Some(link)) => match self.links.get(link) {
                Some(link) if link.kind.as_deref() == Some("ipip") || self.has_ipv4(link.index) => {
                    Observed::MustDump
                }
                _ => Observed::Unchanged,
            },
            KernelEvent::ReversePathFilter(None) | KernelEvent::Overrun => Observed::MustDump,
        }
    }

    /// Takes note of a change that the kernel has confirmed, ahead of the event that tells of it. A route written
    /// over its equal has no event: without this the next difference would repeat it.
    pub fn applied(&mut self, change: &Change) {
        match change {
            Change::EnableForwarding => self.forwarding = true,
            Change::EnableForwardingV6 => self.forwarding_v6 = true,
            Change::AddAddress(address) => {
                self.insert_address(*address);
            }
            Change::DeleteAddress(address) => {
                self.remove_address(address);
            }
            Change::ReplaceRoute(route) => self.written(route.as_reported()),
            Change::DeleteRoute(route) => self.remove(&route.key, |present| {
                present.protocol == route.protocol && present.kind == route.kind
            }),
            Change::LoosenReversePath { link } => {
                self.strict.remove(link);
            }
            Change::SetLink { link, mtu } => {
                if let Some(link) = self.links.get_mut(link) {
                    self.touched.links.insert(link.index);
                    link.up = true;
                    link.mtu = *mtu;
                }
            }
            Change::SetPathMtuDiscovery { link, on, .. } => {
                if let Some(link) = self.links.get_mut(link) {
                    link.path_mtu_discovery = Some(*on);
                }
            }
            Change::AddRule(rule) => {
                self.rules.insert(*rule);
            }
            Change::DeleteRule(rule) => {
                self.rules.remove(rule);
            }
            // The link's own event tells more than the change does: the index, the state, what else it took along.
            Change::CreateTunnel { .. } | Change::SetLinkDown { .. } => {}
        }
    }

    /// Whether the kernel forwards IPv4 packets.
    #[must_use]
    pub fn forwarding(&self) -> bool {
        self.forwarding
    }

    /// Whether the kernel forwards IPv6 packets.
    #[must_use]
    pub fn forwarding_v6(&self) -> bool {
        self.forwarding_v6
    }

    /// Whether the link of this index, which is an ipip link or has an IPv4 address, drops a packet whose source it would not be the way to.
    #[must_use]
    pub fn is_strict(&self, link: u32) -> bool {
        self.strict.contains(&link)
    }

    /// All links, by index.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        self.links.values()
    }

    /// The link of this index.
    #[must_use]
    pub fn link_at(&self, index: u32) -> Option<&Link> {
        self.links.get(&index)
    }

    /// The link of this name.
    #[must_use]
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The addresses of a link, by its index.
    pub fn addresses_of(&self, link: u32) -> impl Iterator<Item = Address> {
        self.addresses
            .iter()
            .filter(move |address| address.link == link)
            .copied()
    }

    /// Those addresses that nobody should begin to use.
    #[must_use]
    pub fn deprecated(&self) -> &BTreeSet<Address> {
        &self.deprecated
    }

    /// The link that carries `address`, and the address with its prefix length.
    #[must_use]
    pub fn link_with_address(&self, address: IpAddr) -> Option<(&Link, IpNet)> {
        let found = self
            .addresses
            .iter()
            .find(|present| present.net.addr() == address)?;
        Some((self.links.get(&found.link)?, found.net))
    }

    /// All links that carry `address`.
    pub fn links_with_address(&self, address: IpAddr) -> impl Iterator<Item = &Link> {
        let carrying = self
            .addresses
            .iter()
            .filter(move |present| present.net.addr() == address);
        carrying.filter_map(|found| self.links.get(&found.link))
    }

    /// All routes in order of their keys; of one key, the one that counts first.
    pub fn routes(&self) -> impl Iterator<Item = &Route> {
        self.routes.values().flatten()
    }

    /// The routes of the main table to `prefix`, in the order in which they count.
    pub(crate) fn routes_to(&self, prefix: &IpNet) -> impl Iterator<Item = &Route> + use<'_> {
        let of_metric = |metric| RouteKey {
            table: MAIN_TABLE,
            prefix: *prefix,
            metric,
        };
        let all = self.routes.range(of_metric(0)..=of_metric(u32::MAX));
        all.flat_map(|(_, routes)| routes)
    }

    /// All routes by their keys, in order of these; of one key, the one that counts first.
    pub(super) fn by_key(&self) -> impl Iterator<Item = (&RouteKey, &[Route])> {
        self.routes.iter().map(|(key, routes)| (key, routes.as_slice()))
    }

    /// The routes of `key`, the one that counts first.
    pub(super) fn routes_of(&self, key: &RouteKey) -> &[Route] {
        self.routes.get(key).map_or(&[], Vec::as_slice)
    }

    /// The route that counts for `key`.
    #[must_use]
    pub fn route(&self, key: &RouteKey) -> Option<&Route> {
        self.routes.get(key)?.first()
    }

    /// The route that counts for the table and prefix of `key`, if its metric is not greater; and the routes of `key`, the
    /// one that counts first.
    pub(super) fn best_and_routes_of(&self, key: &RouteKey) -> (Option<&Route>, &[Route]) {
        // No metric is below zero.
        if key.metric == 0 {
            let routes = self.routes_of(key);
            return (routes.first(), routes);
        }
        let first = RouteKey { metric: 0, ..*key };
        let mut to_here = self.routes.range(first..=*key);
        let lowest = to_here.next();
        let routes = match to_here.next_back().or(lowest) {
            Some((last, routes)) if last == key => routes.as_slice(),
            _ => &[],
        };
        (lowest.and_then(|(_, routes)| routes.first()), routes)
    }

    /// The routes of `key` that another of the same key keeps from counting.
    pub fn shadowed(&self, key: &RouteKey) -> impl Iterator<Item = &Route> {
        self.routes.get(key).into_iter().flatten().skip(1)
    }

    /// All rules, in their order.
    pub fn rules(&self) -> impl Iterator<Item = Rule> {
        self.rules.iter().copied()
    }

    /// Whether this very rule is there.
    #[must_use]
    pub fn has_rule(&self, rule: &Rule) -> bool {
        self.rules.contains(rule)
    }

    fn link(&mut self, link: &Link) -> Observed {
        let former = self.links.insert(link.index, link.clone());
        if former.as_ref() == Some(link) {
            return Observed::Unchanged;
        }
        self.touched.links.insert(link.index);
        if former.is_some_and(|former| former.up) && !link.up && self.any_route_through(link.index) {
            return Observed::MustDump;
        }
        Observed::Changed
    }

    fn link_gone(&mut self, index: u32) -> Observed {
        let known = self.links.remove(&index).is_some();
        self.touched.links.insert(index);
        let Touched {
            routes: touched_routes,
            addresses: touched_addresses,
            ..
        } = &mut self.touched;
        self.addresses.retain(|address| {
            let stays = address.link != index;
            if !stays {
                touched_addresses.insert(address.net.addr());
            }
            stays
        });
        self.deprecated.retain(|address| address.link != index);
        // No index is given twice, so this cannot hit a route newer than the event. A multipath route stays, with a
        // next hop less or a dead one.
        self.routes.retain(|key, routes| {
            let count = routes.len();
            routes.retain(|route| !route.is_only_through(index));
            if routes.len() != count {
                touched_routes.insert(*key);
            }
            !routes.is_empty()
        });
        if self.any_route_through(index) {
            return Observed::MustDump;
        }
        changed(known)
    }

    fn address_gone(&mut self, address: &Address) -> Observed {
        if !self.remove_address(address) {
            return Observed::Unchanged;
        }
        let last = address.net.addr().is_ipv4() && !self.has_ipv4(address.link);
        let source = Some(address.net.addr());
        if self.routes().any(|route| route.source == source) || last && self.any_route_through(address.link) {
            return Observed::MustDump;
        }
        Observed::Changed
    }

    fn route_added(&mut self, route: &Route) -> Observed {
        match self.routes.get(&route.key) {
            None => {
                self.touched.routes.insert(route.key);
                self.routes.insert(route.key, vec![route.clone()]);
                Observed::Changed
            }
            Some(routes) if routes.contains(route) => Observed::Unchanged,
            // Appended, prepended, or in place of one that went in silence: the event does not tell which.
            Some(_) => Observed::MustDump,
        }
    }

    fn route_replaced(&mut self, route: &Route) -> Observed {
        let routes = self.routes.entry(route.key).or_default();
        match routes.first_mut() {
            Some(first) if first == route => return Observed::Unchanged,
            Some(first) => *first = route.clone(),
            None => routes.push(route.clone()),
        }
        self.touched.routes.insert(route.key);
        Observed::Changed
    }

    /// Takes note of a route of ours that was written.
    fn written(&mut self, route: Route) {
        if route.key.table != MAIN_TABLE {
            self.touched.routes.insert(route.key);
        }
        let routes = self
            .routes
            .entry(route.key)
            .or_insert_with(|| Vec::with_capacity(1));
        match routes.first_mut() {
            Some(first) => {
                if first.protocol != route.protocol {
                    self.touched.routes.insert(route.key);
                }
                *first = route;
            }
            None => routes.push(route),
        }
    }

    fn insert_address(&mut self, address: Address) -> bool {
        self.touched.addresses.insert(address.net.addr());
        self.addresses.insert(address)
    }

    fn remove_address(&mut self, address: &Address) -> bool {
        self.touched.addresses.insert(address.net.addr());
        self.deprecated.remove(address);
        self.addresses.remove(address)
    }

    fn route_gone(&mut self, route: &Route) -> Observed {
        match self.routes.get(&route.key) {
            None => Observed::Unchanged,
            Some(routes) if routes.contains(route) => {
                self.remove(&route.key, |present| present == route);
                Observed::Changed
            }
            Some(_) => Observed::MustDump,
        }
    }

    /// Removes the first route of `key` that is `meant`.
    fn remove(&mut self, key: &RouteKey, meant: impl Fn(&Route) -> bool) {
        let Some(routes) = self.routes.get_mut(key) else {
            return;
        };
        if let Some(place) = routes.iter().position(meant) {
            routes.remove(place);
            self.touched.routes.insert(*key);
        }
        if routes.is_empty() {
            self.routes.remove(key);
        }
    }

    fn has_ipv4(&self, link: u32) -> bool {
        self.addresses_of(link)
            .any(|address| address.net.addr().is_ipv4())
    }

    fn any_route_through(&self, link: u32) -> bool {
        self.routes()
            .any(|route| route.next_hops.iter().any(|hop| hop.link == link))
    }
}

fn changed(is: bool) -> Observed {
    if is {
        Observed::Changed
    } else {
        Observed::Unchanged
    }
}
