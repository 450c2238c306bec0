//! Single differences, whole.

use std::collections::{BTreeMap, BTreeSet};

use super::{OURS, TUNNEL, device, route};
use crate::fib::{
    Address, Change, Desired, KernelEvent, Link, NextHop, Route, RouteKey, Rule, Snapshot, Tunnel,
};
use crate::reconcile::{Actual, Difference, Observed, Ours, Removal, diff, taken_over_from};

fn pin(prefix: &str) -> Route {
    let route = route(prefix, 2);
    let key = RouteKey {
        table: 886,
        ..route.key
    };
    Route { key, ..route }
}

fn rule(priority: u32, protocol: u8) -> Rule {
    Rule {
        priority,
        ip_protocol: Some(4),
        table: 886,
        protocol,
    }
}

fn through_gateway(prefix: &str) -> Route {
    let gateway = NextHop {
        gateway: Some([172, 18, 0, 9].into()),
        link: 2,
        onlink: false,
        weight: 1,
    };
    Route {
        next_hops: vec![gateway],
        scope: 0,
        ..route(prefix, 2)
    }
}

#[test]
fn the_steps_come_in_the_order_in_which_they_work() {
    let wrong = Address {
        link: TUNNEL,
        net: "10.9.9.9/24".parse().unwrap(),
    };
    let old = Route::blackhole(
        RouteKey {
            prefix: "10.65.9.0/26".parse().unwrap(),
            ..route("10.0.0.0/8", 2).key
        },
        86,
    );
    let actual = Actual::new(Snapshot {
        links: vec![device("tunl0", false, 1500)],
        addresses: vec![wrong],
        routes: vec![old.clone(), pin("172.18.0.8/32")],
        rules: vec![rule(111, 86), rule(110, 3)],
        ..Snapshot::default()
    });
    let through_gateway = through_gateway("10.65.1.0/26");
    let on_link = route("172.18.0.9/32", 2);
    let new_pin = pin("172.18.0.9/32");
    let routes = [&through_gateway, &on_link, &new_pin].map(|route| (route.key, route.clone()));
    let desired = Desired {
        routes: BTreeMap::from(routes),
        tunnel: Some(Tunnel {
            name: "tunl0".into(),
            mtu: 1480,
            address: Some([10, 65, 42, 0].into()),
            path_mtu_discovery: None,
        }),
        rules: BTreeSet::from([rule(110, 86)]),
        forwarding: true,
        ..Desired::default()
    };
    let expected = [
        Change::EnableForwarding,
        Change::SetLink {
            link: TUNNEL,
            mtu: 1480,
        },
        Change::AddAddress(Address {
            link: TUNNEL,
            net: "10.65.42.0/32".parse().unwrap(),
        }),
        // No route is written before the table that its packets go by, and the rule that leads there.
        Change::ReplaceRoute(new_pin),
        Change::AddRule(rule(110, 86)),
        // The gateway can be reached only after its own route is there.
        Change::ReplaceRoute(on_link),
        Change::ReplaceRoute(through_gateway),
        Change::DeleteRoute(old),
        // The same in reverse. A rule of another protocol stays, even one that is the same otherwise.
        Change::DeleteRule(rule(111, 86)),
        Change::DeleteRoute(pin("172.18.0.8/32")),
        Change::DeleteAddress(wrong),
    ];
    assert_eq!(diff(&desired, &actual, &OURS, Removal::Now), expected);
}

#[test]
fn a_device_that_is_no_tunnel_is_not_touched() {
    let physical = Link {
        kind: None,
        path_mtu_discovery: None,
        ..device("tunl0", false, 1500)
    };
    let address = Address {
        link: TUNNEL,
        net: "10.9.9.9/24".parse().unwrap(),
    };
    let actual = Actual::new(Snapshot {
        links: vec![physical],
        addresses: vec![address],
        ..Snapshot::default()
    });
    let tunnel = Some(Tunnel {
        name: "tunl0".into(),
        mtu: 1480,
        address: Some([10, 65, 42, 0].into()),
        path_mtu_discovery: None,
    });
    let desired = Desired {
        tunnel,
        ..Desired::default()
    };
    assert_eq!(
        diff(&desired, &actual, &OURS, Removal::Now),
        [Change::CreateTunnel { name: "tunl0".into() }],
        "whose answer names the kind of the device"
    );
}

#[test]
fn the_former_owner_of_a_route_is_named_only_if_it_was_another() {
    let bird = Route {
        protocol: 12,
        ..route("10.65.1.0/26", 2)
    };
    let own = Route {
        mtu: Some(1400),
        ..route("10.65.2.0/26", 2)
    };
    let actual = Actual::new(Snapshot {
        routes: vec![bird, own],
        ..Snapshot::default()
    });
    for (prefix, former) in [
        ("10.65.1.0/26", Some(12)),
        ("10.65.2.0/26", None),
        ("10.65.3.0/26", None),
    ] {
        assert_eq!(
            taken_over_from(&Change::ReplaceRoute(route(prefix, 2)), &actual, &OURS),
            former,
            "{prefix}"
        );
    }
}

#[test]
fn an_address_leads_to_its_link() {
    let address = Address {
        link: TUNNEL,
        net: "10.65.42.3/24".parse().unwrap(),
    };
    let actual = Actual::new(Snapshot {
        links: vec![device("tunl0", true, 1480)],
        addresses: vec![address],
        ..Snapshot::default()
    });
    let (link, net) = actual.link_with_address("10.65.42.3".parse().unwrap()).unwrap();
    assert_eq!((link.name.as_str(), net), ("tunl0", address.net));
    assert!(actual.link_with_address("10.65.42.4".parse().unwrap()).is_none());
}

#[test]
fn rules_are_known_from_their_events_and_from_what_was_applied() {
    let mut actual = Actual::default();
    let ours = rule(110, 86);
    for (event, expected) in [
        (KernelEvent::Rule(ours), Observed::Changed),
        (KernelEvent::Rule(ours), Observed::Unchanged),
        (KernelEvent::RuleGone(rule(110, 3)), Observed::Unchanged),
        (KernelEvent::RuleGone(ours), Observed::Changed),
        (KernelEvent::RuleGone(ours), Observed::Unchanged),
    ] {
        assert_eq!(actual.observe(&event), expected, "{event:?}");
    }
    actual.applied(&Change::AddRule(ours));
    assert!(actual.has_rule(&ours));
    actual.applied(&Change::DeleteRule(ours));
    assert_eq!(actual.rules().count(), 0);
}

#[test]
fn a_protocol_of_zero_owns_no_rule() {
    let actual = Actual::new(Snapshot {
        rules: vec![rule(110, 0)],
        ..Snapshot::default()
    });
    let nobody = Ours { protocol: 0 };
    assert_eq!(diff(&Desired::default(), &actual, &nobody, Removal::Now), []);
}

#[test]
fn path_mtu_discovery_is_set_as_configured_and_else_left_as_it_is() {
    let steps = |present: bool, configured: Option<bool>| {
        let link = Link {
            path_mtu_discovery: Some(present),
            ..device("tunl0", true, 1480)
        };
        let actual = Actual::new(Snapshot {
            links: vec![link],
            ..Snapshot::default()
        });
        let tunnel = Tunnel {
            name: "tunl0".into(),
            mtu: 1480,
            address: None,
            path_mtu_discovery: configured,
        };
        let desired = Desired {
            tunnel: Some(tunnel),
            ..Desired::default()
        };
        diff(&desired, &actual, &OURS, Removal::Now)
    };
    for present in [true, false] {
        assert_eq!(steps(present, None), []);
        assert_eq!(steps(present, Some(present)), []);
        let name = "tunl0".to_owned();
        let set = Change::SetPathMtuDiscovery {
            link: TUNNEL,
            name,
            on: !present,
        };
        assert_eq!(steps(present, Some(!present)), [set]);
    }
}

#[test]
fn what_a_peer_has_taken_back_is_deleted_before_the_speaker_has_converged_and_nothing_else_is() {
    let [gone, wanted, former] = ["10.65.1.0/26", "10.65.2.0/26", "10.65.3.0/26"].map(through_gateway);
    let others = Route {
        protocol: 4,
        ..through_gateway("10.65.4.0/26")
    };
    let routes = [&gone, &wanted, &former, &others].map(Clone::clone);
    let actual = Actual::new(Snapshot {
        routes: routes.to_vec(),
        ..Snapshot::default()
    });
    let desired = Desired {
        routes: BTreeMap::from([(wanted.key, wanted.clone())]),
        ..Desired::default()
    };
    let difference = Difference::whole(&desired, &actual, OURS);
    assert_eq!(difference.steps(&desired, &actual, Removal::Later), []);
    let taken_back = [&gone, &wanted, &others].map(|route| route.key);
    let deletions: Vec<_> = difference.deletions_of(taken_back.into_iter(), &actual).collect();
    assert_eq!(deletions, [Change::DeleteRoute(gone)]);
}
