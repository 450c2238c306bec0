mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::{Actual, Observed, Ours, Removal, diff};
use crate::fib::{
    Address, Change, Desired, KernelEvent, Link, NextHop, Route, RouteKey, RouteKind, Rule, Snapshot, Tunnel,
};

const OURS: Ours = Ours { protocol: 86 };
const TUNNEL: u32 = 7;

/// A kernel as far as it matters: lists of routes per key, links, addresses. Told apart from [`Actual`] on purpose: it
/// is written after net/ipv4/fib_trie.c, from the side of the one who is asked.
#[derive(Clone, Debug)]
struct Kernel {
    routes: BTreeMap<RouteKey, Vec<Route>>,
    tunnel: Option<Link>,
    addresses: Vec<Address>,
    rules: BTreeSet<Rule>,
    forwarding: bool,
    forwarding_v6: bool,
    strict: bool,
}

impl Kernel {
    fn dump(&self) -> Snapshot {
        let strict = |tunnel: &Link| self.strict.then_some(tunnel.index);
        Snapshot {
            links: self.tunnel.iter().cloned().collect(),
            deprecated: BTreeSet::new(),
            addresses: self.addresses.clone(),
            routes: self.routes.values().flatten().cloned().collect(),
            rules: self.rules.iter().copied().collect(),
            forwarding: self.forwarding,
            forwarding_v6: self.forwarding_v6,
            strict: self.tunnel.iter().filter_map(strict).collect(),
        }
    }

    fn apply(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::EnableForwarding => self.forwarding = true,
            Change::EnableForwardingV6 => self.forwarding_v6 = true,
            Change::CreateTunnel { name } => {
                assert!(self.tunnel.is_none(), "the device is there");
                self.tunnel = Some(device(name, false, 1500));
            }
            Change::SetLink { link, mtu } => {
                let tunnel = self
                    .tunnel
                    .as_mut()
                    .filter(|tunnel| tunnel.index == *link)
                    .ok_or("no such link")?;
                tunnel.up = true;
                tunnel.mtu = *mtu;
            }
            Change::LoosenReversePath { .. } => self.strict = false,
            Change::SetPathMtuDiscovery { link, on, .. } => {
                let tunnel = self.tunnel.as_mut().filter(|tunnel| tunnel.index == *link);
                tunnel.ok_or("no such link")?.path_mtu_discovery = Some(*on);
            }
            Change::SetLinkDown { .. } => return Err("nobody asks for that".into()),
            Change::AddAddress(address) => self.addresses.push(*address),
            Change::DeleteAddress(address) => {
                self.addresses.retain(|present| present != address);
                // fib_disable_ip(): the routes of a link without addresses go.
                if !self.addresses.iter().any(|present| present.link == address.link) {
                    self.routes.retain(|_, routes| {
                        routes.retain(|route| !route.is_only_through(address.link));
                        !routes.is_empty()
                    });
                }
            }
            Change::AddRule(rule) => {
                self.rules.insert(*rule).then_some(()).ok_or("file exists")?;
            }
            Change::DeleteRule(rule) => {
                self.rules.remove(rule).then_some(()).ok_or("no such rule")?;
            }
            Change::ReplaceRoute(route) => return self.replace(&route.as_reported()),
            Change::DeleteRoute(route) => {
                let routes = self.routes.get_mut(&route.key).ok_or("no such process")?;
                let place = routes
                    .iter()
                    .position(|present| present.protocol == route.protocol && present.kind == route.kind);
                routes.remove(place.ok_or("no such process")?);
                if routes.is_empty() {
                    self.routes.remove(&route.key);
                }
            }
        }
        Ok(())
    }

    /// fib_table_insert() with NLM_F_CREATE | NLM_F_REPLACE.
    fn replace(&mut self, route: &Route) -> Result<(), String> {
        let down = self.tunnel.as_ref().is_some_and(|tunnel| !tunnel.up);
        if down && route.next_hops.iter().any(|hop| hop.link == TUNNEL) {
            return Err("network is down".into());
        }
        let routes = self.routes.entry(route.key).or_default();
        match routes.iter().position(|present| present.as_reported() == *route) {
            Some(0) => {}
            Some(_) => return Err("file exists".into()),
            None if routes.is_empty() => routes.push(route.clone()),
            None => routes[0] = route.clone(),
        }
        Ok(())
    }
}

fn device(name: &str, up: bool, mtu: u32) -> Link {
    Link {
        index: TUNNEL,
        name: name.into(),
        up,
        running: up,
        mtu,
        kind: Some("ipip".into()),
        path_mtu_discovery: Some(false),
    }
}

fn some_key() -> impl Strategy<Value = RouteKey> {
    (
        0u8..4,
        prop_oneof![Just(254u32), Just(886)],
        prop_oneof![3 => Just(0u32), 1 => Just(512)],
    )
        .prop_map(|(block, table, metric)| RouteKey {
            table,
            prefix: format!("10.65.{block}.0/26").parse().unwrap(),
            metric,
        })
}

/// Next hops through an underlay link, which stays up, or the tunnel.
fn some_hop() -> impl Strategy<Value = NextHop> {
    (
        1u8..4,
        prop_oneof![Just(2u32), Just(TUNNEL)],
        any::<bool>(),
        1u16..3,
    )
        .prop_map(|(host, link, onlink, weight)| NextHop {
            gateway: Some(Ipv4Addr::new(172, 18, 0, host).into()),
            link,
            onlink,
            weight,
        })
}

fn some_route(protocols: impl Strategy<Value = u8>) -> impl Strategy<Value = Route> {
    let unicast = vec(some_hop(), 1..3);
    (some_key(), unicast, protocols, 0u8..4, any::<bool>()).prop_map(
        |(key, next_hops, protocol, kind, narrow)| {
            if kind == 0 {
                return Route::blackhole(key, protocol);
            }
            let mtu = narrow.then_some(1400);
            Route {
                key,
                kind: RouteKind::Unicast,
                next_hops,
                source: None,
                protocol,
                scope: 0,
                mtu,
            }
        },
    )
}

fn some_address() -> impl Strategy<Value = Address> {
    (
        0u8..3,
        prop_oneof![Just(32u8), Just(24)],
        prop_oneof![Just(2u32), Just(TUNNEL)],
    )
        .prop_map(|(host, length, link)| Address {
            link,
            net: format!("10.65.42.{host}/{length}").parse().unwrap(),
        })
}

fn some_rules(protocols: impl Strategy<Value = u8>) -> impl Strategy<Value = BTreeSet<Rule>> {
    let rule = (109u32..111, prop_oneof![Just(None), Just(Some(4u8))], protocols);
    let rule = rule.prop_map(|(priority, ip_protocol, protocol)| Rule {
        priority,
        ip_protocol,
        table: 886,
        protocol,
    });
    btree_set(rule, 0..4)
}

fn some_kernel() -> impl Strategy<Value = Kernel> {
    let routes = vec(some_route(prop_oneof![Just(86u8), Just(12), Just(4)]), 0..12);
    let tunnel = proptest::option::of((any::<bool>(), prop_oneof![Just(1480u32), Just(1500)]));
    let rules = some_rules(prop_oneof![Just(86u8), Just(3)]);
    (
        routes,
        tunnel,
        btree_set(some_address(), 0..4),
        rules,
        any::<[bool; 3]>(),
    )
        .prop_map(
            |(all, tunnel, addresses, rules, [forwarding, forwarding_v6, strict])| {
                let tunnel = tunnel.map(|(up, mtu)| device("tunl0", up, mtu));
                let up = tunnel.as_ref().is_some_and(|tunnel| tunnel.up);
                let mut routes: BTreeMap<RouteKey, Vec<Route>> = BTreeMap::new();
                for route in all.iter().map(Route::as_reported) {
                    let list = routes.entry(route.key).or_default();
                    // The kernel holds no route twice, and none through a link that is down.
                    if !list.contains(&route) && (up || !route.next_hops.iter().any(|hop| hop.link == TUNNEL))
                    {
                        list.push(route);
                    }
                }
                routes.retain(|_, list| !list.is_empty());
                let addresses = addresses
                    .into_iter()
                    .filter(|address| tunnel.is_some() || address.link != TUNNEL)
                    .collect();
                Kernel {
                    routes,
                    tunnel,
                    addresses,
                    rules,
                    forwarding,
                    forwarding_v6,
                    strict,
                }
            },
        )
}

fn some_desired() -> impl Strategy<Value = Desired> {
    let tunnel = proptest::option::of((0u8..3).prop_map(|host| Ipv4Addr::new(10, 65, 42, host)));
    let routes = vec(some_route(Just(86)), 0..8);
    let rules = some_rules(Just(86));
    let rest = (any::<[bool; 2]>(), any::<Option<bool>>());
    (routes, btree_set(some_key(), 0..3), rules, tunnel, rest).prop_map(
        |(routes, held, rules, address, ([forwarding, forwarding_v6], path_mtu_discovery))| Desired {
            routes: routes.into_iter().map(|route| (route.key, route)).collect(),
            held,
            rules,
            tunnel: Some(Tunnel {
                name: "tunl0".into(),
                mtu: 1480,
                address,
                path_mtu_discovery,
            }),
            forwarding,
            forwarding_v6,
        },
    )
}

/// Dumps, takes the difference and applies it, as often as the agent would: once, and once more for a new tunnel.
fn converge(kernel: &mut Kernel, desired: &Desired, removal: Removal) -> Vec<Change> {
    let mut made = Vec::new();
    for _ in 0..2 {
        for change in diff(desired, &Actual::new(kernel.dump()), &OURS, removal) {
            // A route through a tunnel that the same difference creates has to wait for the next.
            if kernel.apply(&change).is_ok() {
                made.push(change);
            }
        }
    }
    made
}

proptest! {
    #[test]
    fn one_pass_makes_it_so_and_the_next_finds_nothing_to_do(
        mut kernel in some_kernel(),
        desired in some_desired(),
    ) {
        let before = kernel.clone();
        let made = converge(&mut kernel, &desired, Removal::Now);
        let after = Actual::new(kernel.dump());
        prop_assert_eq!(diff(&desired, &after, &OURS, Removal::Now), vec![]);

        for (key, route) in &desired.routes {
            if !desired.held.contains(key) {
                prop_assert!(after.route(key).is_some_and(|present| present.is_same_as(route)), "{}", route);
            }
        }
        for route in after.routes().filter(|route| route.protocol == OURS.protocol) {
            let wanted = desired.routes.contains_key(&route.key) || desired.held.contains(&route.key);
            prop_assert!(wanted, "left over: {}", route);
        }
        for key in &desired.held {
            prop_assert_eq!(before.routes.get(key), kernel.routes.get(key));
        }
        // What is not ours is only ever replaced, by what is wanted in its place.
        for (key, list) in &before.routes {
            for foreign in list.iter().filter(|route| route.protocol != OURS.protocol) {
                let stays = kernel.routes.get(key).is_some_and(|list| list.contains(foreign));
                let taken_over = desired.routes.contains_key(key) && !desired.held.contains(key);
                prop_assert!(stays || taken_over, "gone: {}", foreign);
            }
        }
        for change in &made {
            if let Change::DeleteRoute(route) = change {
                prop_assert_eq!(route.protocol, OURS.protocol);
            }
        }
        let foreign = before.rules.iter().filter(|rule| rule.protocol != OURS.protocol);
        let all: BTreeSet<Rule> = foreign.chain(&desired.rules).copied().collect();
        prop_assert_eq!(&kernel.rules, &all);
        let tunnel = kernel.tunnel.as_ref();
        prop_assert!(tunnel.is_some_and(|tunnel| tunnel.up && tunnel.mtu == 1480));
        let on = |kernel: &Kernel, link| kernel.addresses.iter().filter(|at| at.link == link).copied().collect::<Vec<_>>();
        prop_assert_eq!(on(&before, 2), on(&kernel, 2));
        match desired.tunnel.as_ref().and_then(|tunnel| tunnel.address) {
            Some(address) => {
                let net = ipnet::Ipv4Net::from(address).into();
                prop_assert_eq!(on(&kernel, TUNNEL), vec![Address { link: TUNNEL, net }]);
            }
            None => prop_assert_eq!(on(&before, TUNNEL), on(&kernel, TUNNEL)),
        }
        prop_assert!(!kernel.strict || before.tunnel.is_none());
        prop_assert_eq!(kernel.forwarding, before.forwarding || desired.forwarding);
        prop_assert_eq!(kernel.forwarding_v6, before.forwarding_v6 || desired.forwarding_v6);
    }

    #[test]
    fn nothing_that_forwards_is_removed_before_the_speaker_has_converged(
        mut kernel in some_kernel(),
        mut desired in some_desired(),
    ) {
        desired.tunnel = None;
        let before = kernel.clone();
        for change in converge(&mut kernel, &desired, Removal::Later) {
            if let Change::DeleteRoute(route) = change {
                prop_assert!(route.kind != RouteKind::Unicast || desired.routes.contains_key(&route.key));
            }
        }
        for key in before.routes.iter().filter(|(_, list)| list[0].kind == RouteKind::Unicast).map(|(key, _)| key) {
            prop_assert!(kernel.routes.contains_key(key), "{}", key);
        }
    }

    #[test]
    fn what_was_applied_is_known_without_a_dump(mut kernel in some_kernel(), desired in some_desired()) {
        let mut actual = Actual::new(kernel.dump());
        for change in diff(&desired, &actual.clone(), &OURS, Removal::Now) {
            if kernel.apply(&change).is_ok() && !matches!(change, Change::CreateTunnel { .. }) {
                actual.applied(&change);
            }
        }
        // The last address of a link takes routes along, which is an event's to tell: it asks for a dump.
        prop_assume!(desired.tunnel.as_ref().is_some_and(|tunnel| tunnel.address.is_some()));
        let known: Vec<Route> = actual.routes().cloned().collect();
        let dumped: Vec<Route> = Actual::new(kernel.dump()).routes().cloned().collect();
        prop_assert_eq!(known, dumped);
        prop_assert_eq!(actual.forwarding(), kernel.forwarding);
        prop_assert_eq!(actual.forwarding_v6(), kernel.forwarding_v6);
    }

    #[test]
    fn events_in_their_order_lead_from_one_state_to_the_next(
        from in btree_map(some_key(), some_route(Just(12)), 0..8),
        to in btree_map(some_key(), some_route(Just(12)), 0..8),
    ) {
        let keyed = |routes: BTreeMap<RouteKey, Route>| -> Vec<Route> {
            routes.into_iter().map(|(key, route)| Route { key, ..route.as_reported() }).collect()
        };
        let (from, to) = (keyed(from), keyed(to));
        let mut actual = Actual::new(Snapshot { routes: from.clone(), ..Snapshot::default() });
        for route in &from {
            let observed = actual.observe(&KernelEvent::RouteGone(route.clone()));
            prop_assert_eq!(observed, Observed::Changed);
        }
        for route in &to {
            prop_assert_eq!(actual.observe(&KernelEvent::Route(route.clone())), Observed::Changed);
            prop_assert_eq!(actual.observe(&KernelEvent::RouteReplaced(route.clone())), Observed::Unchanged);
        }
        prop_assert_eq!(actual.routes().cloned().collect::<Vec<_>>(), to);
    }
}

fn route(prefix: &str, link: u32) -> Route {
    Route {
        key: RouteKey {
            table: 254,
            prefix: prefix.parse().unwrap(),
            metric: 0,
        },
        kind: RouteKind::Unicast,
        next_hops: vec![NextHop {
            gateway: None,
            link,
            onlink: false,
            weight: 1,
        }],
        source: None,
        protocol: 86,
        scope: 253,
        mtu: None,
    }
}

const FIRST: &str = "10.65.42.0/32";
const SECOND: &str = "10.65.43.0/32";

fn on_tunnel(net: &str) -> Address {
    Address {
        link: TUNNEL,
        net: net.parse().unwrap(),
    }
}

/// A tunnel with two addresses, one route through it, one elsewhere with the second address as its source, and an
/// idle link of index 9.
fn tunnel_and_two_routes() -> Actual {
    let source = Some(on_tunnel(SECOND).net.addr());
    Actual::new(Snapshot {
        links: vec![
            device("tunl0", true, 1480),
            Link {
                index: 9,
                name: "idle".into(),
                ..device("", true, 1480)
            },
        ],
        addresses: vec![on_tunnel(FIRST), on_tunnel(SECOND)],
        routes: vec![
            route("10.65.1.0/26", TUNNEL),
            Route {
                source,
                ..route("10.65.2.0/26", 2)
            },
        ],
        ..Snapshot::default()
    })
}

#[test]
fn only_routes_that_may_have_gone_in_silence_ask_for_a_dump() {
    let tunnel = device("tunl0", true, 1480);
    let idle = Link {
        index: 9,
        name: "idle".into(),
        up: false,
        ..tunnel.clone()
    };
    for (event, expected) in [
        (KernelEvent::Overrun, Observed::MustDump),
        (KernelEvent::Link(tunnel.clone()), Observed::Unchanged),
        (
            KernelEvent::Link(Link {
                mtu: 1400,
                ..tunnel.clone()
            }),
            Observed::Changed,
        ),
        (
            KernelEvent::Link(Link { up: false, ..tunnel }),
            Observed::MustDump,
        ),
        (KernelEvent::Link(idle), Observed::Changed),
        (KernelEvent::LinkGone(TUNNEL), Observed::Changed),
        (KernelEvent::LinkGone(4711), Observed::Unchanged),
        (KernelEvent::Address(on_tunnel(FIRST)), Observed::Unchanged),
        (KernelEvent::AddressGone(on_tunnel(FIRST)), Observed::Changed),
        (KernelEvent::AddressGone(on_tunnel(SECOND)), Observed::MustDump),
    ] {
        assert_eq!(tunnel_and_two_routes().observe(&event), expected, "{event:?}");
    }
    let mut actual = tunnel_and_two_routes();
    assert_eq!(
        actual.observe(&KernelEvent::RouteGone(route("10.65.3.0/26", 2))),
        Observed::Unchanged
    );
    let _ = actual.observe(&KernelEvent::AddressGone(on_tunnel(SECOND)));
    // The last address of its link.
    assert_eq!(
        actual.observe(&KernelEvent::AddressGone(on_tunnel(FIRST))),
        Observed::MustDump
    );
}

#[test]
fn a_route_event_that_does_not_fit_what_is_known_asks_for_a_dump() {
    let known = route("10.65.1.0/26", TUNNEL);
    let other = Route {
        mtu: Some(1400),
        ..known.clone()
    };
    for (event, expected) in [
        (KernelEvent::Route(known.clone()), Observed::Unchanged),
        (KernelEvent::Route(other.clone()), Observed::MustDump),
        (KernelEvent::RouteReplaced(known.clone()), Observed::Unchanged),
        (KernelEvent::RouteReplaced(other.clone()), Observed::Changed),
        (KernelEvent::RouteGone(known), Observed::Changed),
        (KernelEvent::RouteGone(other), Observed::MustDump),
        (
            KernelEvent::RouteGone(route("10.65.3.0/26", 2)),
            Observed::Unchanged,
        ),
    ] {
        assert_eq!(tunnel_and_two_routes().observe(&event), expected, "{event:?}");
    }
}
