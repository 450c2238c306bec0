//! Destinations outside every pool, and routers that are reached through another.

use serde_json::json;

use super::*;
use crate::api::{BgpConfiguration, BgpPeer};
use crate::fib::RouteKey;

const ROUTER: &str = "172.18.0.254";

/// A BGPPeer for all nodes.
fn router(name: &str, fields: &serde_json::Value) -> Object {
    let manifest = json!({"metadata": {"name": name}, "spec": fields});
    let peer: BgpPeer = serde_json::from_value(manifest).unwrap();
    Object::BgpPeer(peer)
}

/// The cluster of the other tables, and a router on this node's subnet.
fn with_router() -> Cluster {
    let mut cluster = cluster("ipipMode: Always");
    cluster.upsert(&router("tor", &json!({"peerIP": ROUTER, "asNumber": 65_001})));
    cluster
}

/// Told by `peer`.
fn told(peer: &str, prefix: &str, next_hops: &[&str]) -> Learned {
    let hop = |address: &&str| BgpNextHop {
        address: address.parse().unwrap(),
        peer: peer.parse().unwrap(),
    };
    [(
        Prefix::new(prefix.parse().unwrap()),
        next_hops.iter().map(hop).collect(),
    )]
    .into()
}

/// The routes besides this node's own block, and why a destination is rejected.
fn outcome(cluster: &Cluster, learned: &Learned, kernel: Snapshot) -> (Vec<String>, Vec<Rejection>) {
    let plan = plan_of(cluster, learned, kernel);
    let routes = printed(&plan)
        .into_iter()
        .filter(|route| !route.starts_with("blackhole"));
    (
        routes.collect(),
        plan.rejected.values().flatten().cloned().collect(),
    )
}

#[test]
fn what_a_router_tells_is_installed_as_it_tells_it_without_a_tunnel() {
    for (prefix, next_hops, route) in [
        (
            "203.0.113.0/24",
            &[ROUTER][..],
            "203.0.113.0/24 via 172.18.0.254 dev eth0 proto 86",
        ),
        // The next hop need not be the peer (RFC 4271 §5.1.3).
        (
            "203.0.113.7/32",
            &["172.18.0.253"],
            "203.0.113.7 via 172.18.0.253 dev eth0 proto 86",
        ),
        (
            "203.0.113.0/24",
            &[ROUTER, "172.18.0.253"],
            "203.0.113.0/24 proto 86 nexthop via 172.18.0.253 dev eth0 weight 1 nexthop via 172.18.0.254 dev eth0 weight 1",
        ),
        // More than a pool is no pool.
        (
            "10.64.0.0/10",
            &[ROUTER],
            "10.64.0.0/10 via 172.18.0.254 dev eth0 proto 86",
        ),
    ] {
        let (routes, rejected) = outcome(&with_router(), &told(ROUTER, prefix, next_hops), kernel());
        assert_eq!(routes, [route]);
        assert_eq!(rejected, []);
    }
}

#[test]
fn what_the_host_knows_better_is_not_taken_from_a_router() {
    let subnet: IpNet = "172.18.0.0/24".parse().unwrap();
    let pool: IpNet = "10.65.0.0/16".parse().unwrap();
    let (peer, next_hop): (IpAddr, IpAddr) = (ROUTER.parse().unwrap(), ROUTER.parse().unwrap());
    let unconnected: IpAddr = "198.51.100.1".parse().unwrap();
    let in_pool: IpAddr = "10.65.7.7".parse().unwrap();
    let own: IpAddr = "172.18.0.77".parse().unwrap();
    for (prefix, hop, reason) in [
        ("0.0.0.0/0", ROUTER, Rejection::DefaultRoute),
        ("172.18.0.0/24", ROUTER, Rejection::OwnSubnet { subnet }),
        ("172.18.0.128/25", ROUTER, Rejection::OwnSubnet { subnet }),
        ("172.18.0.9/32", ROUTER, Rejection::OwnSubnet { subnet }),
        ("198.51.100.0/24", ROUTER, Rejection::OthersRoute { protocol: 4 }),
        (
            "203.0.113.0/24",
            "198.51.100.1",
            Rejection::NotConnected {
                next_hop: unconnected,
            },
        ),
        (
            "203.0.113.0/24",
            "172.18.0.77",
            Rejection::NotConnected { next_hop: own },
        ),
        (
            "203.0.113.0/24",
            "10.65.7.7",
            Rejection::NextHopInPool {
                next_hop: in_pool,
                pool,
                peer,
            },
        ),
        // A block is at a node.
        (
            "10.65.99.0/26",
            ROUTER,
            Rejection::NextHopUnknown { next_hop, peer },
        ),
        // It may be a block of a pool that was deleted by accident.
        ("10.66.99.0/26", "172.18.0.12", Rejection::NoPool { peer }),
    ] {
        let mut kernel = kernel();
        kernel
            .routes
            .push(route("198.51.100.0/24", Some("172.18.0.1"), 4));
        kernel.addresses.push(address(ETH0, "172.18.0.77/24"));
        let (routes, rejected) = outcome(&with_router(), &told(ROUTER, prefix, &[hop]), kernel);
        assert_eq!(routes, Vec::<String>::new(), "{prefix}");
        assert_eq!(rejected, [reason], "{prefix}");
    }
}

#[test]
fn a_node_of_the_mesh_has_nothing_to_tell_of_the_outside() {
    let node = "172.18.0.12";
    let (routes, rejected) = outcome(&with_router(), &told(node, "203.0.113.0/24", &[ROUTER]), kernel());
    assert_eq!(routes, Vec::<String>::new());
    let unknown = Rejection::NextHopUnknown {
        next_hop: ROUTER.parse().unwrap(),
        peer: node.parse().unwrap(),
    };
    assert_eq!(rejected, [unknown]);
}

#[test]
fn a_route_of_bird_to_the_outside_is_taken_over() {
    let mut kernel = kernel();
    kernel.routes.push(route("203.0.113.0/24", Some(ROUTER), 12));
    let (routes, rejected) = outcome(&with_router(), &told(ROUTER, "203.0.113.0/24", &[ROUTER]), kernel);
    assert_eq!(routes, ["203.0.113.0/24 via 172.18.0.254 dev eth0 proto 86"]);
    assert_eq!(rejected, []);
}

#[test]
fn a_default_route_is_taken_where_the_configuration_says_so_and_nobody_else_has_one() {
    let mut settings = settings();
    settings.speaking.accepts_default = true;
    let learned = told(ROUTER, "0.0.0.0/0", &[ROUTER]);
    let cluster = with_router();
    let with = |kernel: Snapshot| {
        let known = Known {
            cluster: &cluster,
            learned: &learned,
            actual: &Actual::new(kernel),
            converged: true,
        };
        plan(&settings, known)
    };
    let mut none = kernel();
    none.routes.truncate(1);
    assert!(printed(&with(none)).contains(&"default via 172.18.0.254 dev eth0 proto 86".to_owned()));
    let refused = with(kernel());
    assert_eq!(
        refused.rejected.values().flatten().collect::<Vec<_>>(),
        [&Rejection::OthersRoute { protocol: 3 }]
    );
}

#[test]
fn a_next_hop_on_an_ignored_interface_is_none() {
    let mut cluster = with_router();
    let learned = told(ROUTER, "203.0.113.0/24", &[ROUTER]);
    for (pattern, is_used) in [("docker*", true), ("eth*", false)] {
        let manifest = json!({"metadata": {"name": "default"}, "spec": {"ignoredInterfaces": [pattern]}});
        let bgp: BgpConfiguration = serde_json::from_value(manifest).unwrap();
        cluster.upsert(&Object::BgpConfiguration(bgp));
        let (routes, rejected) = outcome(&cluster, &learned, kernel());
        assert_eq!(
            (routes.len(), rejected.len()),
            (usize::from(is_used), usize::from(!is_used))
        );
    }
}

#[test]
fn a_router_that_is_reached_through_another_gets_a_route_and_may_be_a_next_hop() {
    let far = "192.0.2.1";
    let mut cluster = cluster("ipipMode: Always");
    let spec = json!({"peerIP": far, "asNumber": 65_001, "reachableBy": ROUTER});
    cluster.upsert(&router("far", &spec));
    let learned = told(far, "203.0.113.0/24", &[far]);
    let expected = [
        "192.0.2.1 via 172.18.0.254 dev eth0 proto 86",
        "203.0.113.0/24 via 172.18.0.254 dev eth0 proto 86",
    ];
    let (routes, rejected) = outcome(&cluster, &learned, kernel());
    assert_eq!(
        (routes.as_slice(), rejected.len()),
        (&expected.map(str::to_owned)[..], 0)
    );

    let spec = json!({"peerIP": far, "asNumber": 65_001, "reachableBy": "198.51.100.9"});
    cluster.upsert(&router("far", &spec));
    let (routes, rejected) = outcome(&cluster, &Learned::new(), kernel());
    let next_hop = "198.51.100.9".parse().unwrap();
    assert_eq!(routes, Vec::<String>::new(), "the gateway is nowhere");
    assert_eq!(rejected, [Rejection::NotConnected { next_hop }]);
}

/// What a plan says of the ways to the node behind a router: the routes of all tables, printed, and the nodes not reached.
fn ways_of(cluster: &Cluster, learned: &Learned, kernel: Snapshot) -> (Vec<String>, usize) {
    let settings = Settings {
        pin_table: Some(886),
        ..settings()
    };
    let known = Known {
        cluster,
        learned,
        actual: &Actual::new(kernel),
        converged: true,
    };
    let plan = plan(&settings, known);
    let routes = printed(&plan)
        .into_iter()
        .filter(|route| !route.starts_with("blackhole"));
    (routes.collect(), plan.unpinned.len())
}

#[test]
fn in_a_fabric_without_a_default_route_nodes_are_reached_as_its_routers_tell() {
    let block = ("10.65.17.64/26", "172.19.0.13");
    for (mode, expected) in [
        (
            "ipipMode: Always",
            &[
                "10.65.17.64/26 via 172.19.0.13 dev tunl0 proto 86 onlink",
                "172.19.0.0/24 via 172.18.0.254 dev eth0 proto 86",
                "172.18.0.12 dev eth0 table 886 proto 86 scope link src 172.18.0.11",
                "172.19.0.13 via 172.18.0.254 dev eth0 table 886 proto 86 src 172.18.0.11",
            ][..],
        ),
        (
            "ipipMode: Never",
            &[
                "10.65.17.64/26 via 172.18.0.254 dev eth0 proto 86 src 172.18.0.11 onlink",
                "172.19.0.0/24 via 172.18.0.254 dev eth0 proto 86",
            ],
        ),
    ] {
        let mut cluster = cluster(mode);
        cluster.upsert(&router("tor", &json!({"peerIP": ROUTER, "asNumber": 65_001})));
        let mut kernel = kernel();
        kernel.routes.truncate(1);
        // Without what the router tells there is no way, and what is there is left alone.
        let mut known = learned(&[block]);
        let (routes, unpinned) = ways_of(&cluster, &known, kernel.clone());
        assert!(
            !routes.iter().any(|route| route.contains("172.19.0.13 via")),
            "{routes:?}"
        );
        assert_eq!(unpinned, usize::from(mode.ends_with("Always")));

        known.extend(told(ROUTER, "172.19.0.0/24", &[ROUTER]));
        let (routes, unpinned) = ways_of(&cluster, &known, kernel);
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        let mut routes: Vec<&str> = routes.iter().map(String::as_str).collect();
        routes.sort_unstable();
        assert_eq!((routes, unpinned), (expected, 0), "{mode}");
    }
}

#[test]
fn what_a_node_says_of_the_way_to_another_is_none() {
    // Not even where it names itself: the way to a node never leads through one, nor through a tunnel to it.
    let mut known = learned(&[("10.65.17.64/26", "172.19.0.13")]);
    known.extend(told("172.18.0.12", "172.19.0.13/32", &["172.18.0.12"]));
    known.extend(told(ROUTER, "172.19.0.0/24", &["172.19.0.13"]));
    let mut kernel = kernel();
    kernel.routes.truncate(1);
    let (routes, unpinned) = ways_of(&with_router(), &known, kernel);
    assert_eq!(unpinned, 1);
    assert!(
        !routes.iter().any(|route| route.starts_with("172.19")),
        "{routes:?}"
    );
}

#[test]
fn what_a_node_tells_of_outside_the_pools_is_held_whether_the_ways_are_known_already_or_not() {
    let (cluster, learned) = (
        cluster("ipipMode: Always"),
        learned(&[("172.19.0.0/16", "172.18.0.12")]),
    );
    let mut kernel = kernel();
    kernel.routes.push(route("172.19.0.0/16", None, 86));
    let actual = Actual::new(kernel);
    let known = Known {
        cluster: &cluster,
        learned: &learned,
        actual: &actual,
        converged: true,
    };
    let everything = Changed {
        everything: true,
        ..Changed::default()
    };
    let mut planner = Planner::new(Settings {
        pin_table: Some(886),
        ..settings()
    });
    planner.update(known, &everything);
    let first = planner.plan().clone();
    planner.update(known, &everything);
    assert_eq!(planner.plan(), &first);
    let key = RouteKey::main("172.19.0.0/16".parse().unwrap());
    assert!(first.desired.held.contains(&key), "{first:?}");
}
