//! Tables: what is known, and what should be.

mod borrowed;
mod external;
mod ipv6;
mod multipath;

use super::*;
use crate::api::{Node, Object, annotation};
use crate::fib::{Link, Route, Snapshot};
use crate::fixtures::{self, ETH0, TUNL0, address, affinity, affinity_in, link, node, tunnel};
use culvert_ipam::affinity::AffinityState;

fn settings() -> Settings {
    fixtures::settings("node1", "172.18.0.11")
}

fn route(prefix: &str, gateway: Option<&str>, protocol: u8) -> Route {
    fixtures::route(prefix, gateway, ETH0, protocol)
}

fn kernel() -> Snapshot {
    Snapshot {
        links: vec![link(ETH0, "eth0"), tunnel()],
        addresses: vec![address(ETH0, "172.18.0.11/24")],
        routes: vec![
            route("172.18.0.0/24", None, 2),
            route("0.0.0.0/0", Some("172.18.0.1"), 3),
        ],
        rules: Vec::new(),
        forwarding: true,
        ..Snapshot::default()
    }
}

fn pool(fields: &str) -> Object {
    fixtures::pool("pool", &format!("cidr: 10.65.0.0/16, {fields}"))
}

/// Three nodes: ourselves, one on our subnet, one on another.
fn cluster(pool_fields: &str) -> Cluster {
    let mut cluster = Cluster::default();
    for object in [
        node("node1", "172.18.0.11/24"),
        node("node2", "172.18.0.12/24"),
        node("node3", "172.19.0.13/24"),
        pool(pool_fields),
        affinity("node1", "10.65.42.0/26"),
    ] {
        cluster.upsert(&object);
    }
    cluster
}

fn learned(routes: &[(&str, &str)]) -> Learned {
    let hop = |address: &str| {
        let address = address.parse().unwrap();
        vec![BgpNextHop {
            address,
            peer: address,
        }]
    };
    routes
        .iter()
        .map(|(prefix, next_hop)| (Prefix::new(prefix.parse().unwrap()), hop(next_hop)))
        .collect()
}

fn plan_of(cluster: &Cluster, learned: &Learned, kernel: Snapshot) -> Plan {
    plan(
        &settings(),
        Known {
            cluster,
            learned,
            actual: &Actual::new(kernel),
            converged: true,
        },
    )
}

/// The routes as an operator reads them.
fn printed(plan: &Plan) -> Vec<String> {
    let name = |index| match index {
        ETH0 => Some("eth0".to_owned()),
        TUNL0 => Some("tunl0".to_owned()),
        _ => None,
    };
    plan.desired
        .routes
        .values()
        .map(|route| route.with_names(name).to_string())
        .collect()
}

const LEARNED: &[(&str, &str)] = &[
    ("10.65.17.64/26", "172.18.0.12"),
    ("10.65.99.0/26", "172.19.0.13"),
];

#[test]
fn ipip_always_sends_everything_through_the_tunnel() {
    let plan = plan_of(&cluster("ipipMode: Always"), &learned(LEARNED), kernel());
    assert_eq!(
        printed(&plan),
        [
            "10.65.17.64/26 via 172.18.0.12 dev tunl0 proto 86 onlink",
            "blackhole 10.65.42.0/26 proto 86",
            "10.65.99.0/26 via 172.19.0.13 dev tunl0 proto 86 onlink",
        ]
    );
    assert_eq!(
        (plan.desired.tunnel.map(|t| t.mtu), plan.pod_mtu),
        (Some(1480), 1480)
    );
}

#[test]
fn cross_subnet_sends_directly_what_is_on_this_nodes_own_subnet() {
    let plan = plan_of(&cluster("ipipMode: CrossSubnet"), &learned(LEARNED), kernel());
    assert_eq!(
        printed(&plan),
        [
            "10.65.17.64/26 via 172.18.0.12 dev eth0 proto 86 src 172.18.0.11 onlink",
            "blackhole 10.65.42.0/26 proto 86",
            "10.65.99.0/26 via 172.19.0.13 dev tunl0 proto 86 onlink",
        ]
    );
}

#[test]
fn without_encapsulation_other_subnets_are_reached_as_the_underlay_has_it() {
    let plan = plan_of(&cluster("ipipMode: Never"), &learned(LEARNED), kernel());
    assert_eq!(
        printed(&plan),
        [
            "10.65.17.64/26 via 172.18.0.12 dev eth0 proto 86 src 172.18.0.11 onlink",
            "blackhole 10.65.42.0/26 proto 86",
            "10.65.99.0/26 via 172.18.0.1 dev eth0 proto 86 src 172.18.0.11 onlink",
        ]
    );
    assert_eq!((plan.desired.tunnel, plan.pod_mtu), (None, 1500));
}

#[test]
fn a_next_hop_must_be_the_advertised_address_of_a_node() {
    let wrong = [
        ("10.65.17.64/26", "10.65.127.128"),
        ("10.65.99.0/26", "172.18.0.99"),
    ];
    let plan = plan_of(&cluster("ipipMode: Always"), &learned(&wrong), kernel());
    assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86"]);
    let reasons: Vec<_> = plan.rejected.values().flatten().collect();
    assert!(
        matches!(
            reasons[..],
            [Rejection::NextHopInPool { .. }, Rejection::NextHopUnknown { .. }]
        ),
        "{reasons:?}"
    );
    assert!(
        plan.desired.held.is_empty(),
        "a wrong route must not stay in the kernel"
    );
}

#[test]
fn a_destination_whose_pool_is_gone_is_left_as_it_is_in_the_kernel() {
    let mut cluster = cluster("ipipMode: Always");
    cluster.remove(&crate::api::Key::new(crate::api::Kind::IpPool, "pool"));
    let plan = plan_of(&cluster, &learned(LEARNED), kernel());
    assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86"]);
    let held: Vec<_> = plan
        .desired
        .held
        .iter()
        .map(|key| key.prefix.to_string())
        .collect();
    assert_eq!(held, ["10.65.17.64/26", "10.65.99.0/26"]);
    assert_eq!(
        plan.exports,
        [Prefix::new("10.65.42.0/26".parse().unwrap())].into()
    );
}

#[test]
fn only_confirmed_claims_are_blackholed_and_exported() {
    let mut cluster = cluster("ipipMode: Always");
    cluster.upsert(&affinity_in(AffinityState::Pending, "node1", "10.65.50.0/26"));
    cluster.upsert(&affinity_in(
        AffinityState::PendingDeletion,
        "node1",
        "10.65.51.0/26",
    ));
    cluster.upsert(&affinity("node2", "10.65.52.0/26"));
    let plan = plan_of(&cluster, &Learned::new(), kernel());
    assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86"]);
    assert_eq!(plan.exports.len(), 1);
}

#[test]
fn a_block_of_one_address_is_exported_but_has_no_blackhole() {
    let mut cluster = cluster("ipipMode: Always");
    cluster.upsert(&affinity("node1", "10.65.50.7/32"));
    let plan = plan_of(&cluster, &Learned::new(), kernel());
    assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86"]);
    assert_eq!(plan.exports.len(), 2);
}

#[test]
fn a_pool_that_disables_export_keeps_its_blocks_to_this_node() {
    let plan = plan_of(&cluster("disableBGPExport: true"), &Learned::new(), kernel());
    assert!(plan.exports.is_empty());
    assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86"]);
}

#[test]
fn the_peers_are_the_other_nodes_with_an_address_each_with_its_own_as_number() {
    let mut cluster = cluster("ipipMode: Always");
    let Object::Node(mut other) = node("node4", "172.18.0.14/24") else {
        panic!("a node")
    };
    other
        .metadata
        .annotations
        .insert(annotation::AS_NUMBER.to_owned(), "65001".to_owned());
    cluster.upsert(&Object::Node(other));
    cluster.upsert(&Object::Node(Node::named("node5")));
    let plan = plan_of(&cluster, &Learned::new(), kernel());
    let peers: Vec<_> = plan
        .peering
        .peers
        .values()
        .map(|p| (p.address.to_string(), p.asn.get()))
        .collect();
    let expected = [
        ("172.18.0.12", 64_512),
        ("172.18.0.14", 65_001),
        ("172.19.0.13", 64_512),
    ];
    assert_eq!(peers, expected.map(|(address, asn)| (address.to_owned(), asn)));
}

#[test]
fn the_tunnels_mtu_follows_the_link_of_the_advertised_address() {
    let mut jumbo = kernel();
    jumbo.links = vec![
        Link {
            mtu: 9000,
            ..link(ETH0, "eth0")
        },
        tunnel(),
        Link {
            mtu: 1400,
            ..link(4, "eth1")
        },
    ];
    let plan = plan_of(&cluster("ipipMode: Always"), &Learned::new(), jumbo);
    assert_eq!(plan.desired.tunnel.map(|t| t.mtu), Some(8980));
    assert_eq!(plan.pod_mtu, 8980);
}

#[test]
fn what_cannot_be_installed_for_the_moment_stays_as_it_is() {
    let mut no_tunnel = kernel();
    no_tunnel.links.retain(|link| link.name != "tunl0");
    let plan = plan_of(&cluster("ipipMode: Always"), &learned(LEARNED), no_tunnel);
    assert_eq!(plan.desired.held.len(), 2);
    let mut no_address = kernel();
    no_address.addresses.clear();
    let plan = plan_of(&cluster("ipipMode: CrossSubnet"), &learned(LEARNED), no_address);
    assert_eq!(plan.desired.held.len(), 2);
    let mut no_default = kernel();
    no_default.routes.truncate(1);
    let plan = plan_of(&cluster("ipipMode: Never"), &learned(LEARNED), no_default);
    let reasons: Vec<_> = plan.rejected.values().flatten().collect();
    assert!(matches!(reasons[..], [Rejection::Unreachable { .. }]));
}

#[test]
fn the_order_in_which_objects_come_makes_no_difference() {
    let objects = [
        node("node1", "172.18.0.11/24"),
        node("node2", "172.18.0.12/24"),
        node("other2", "172.18.0.12/24"),
        pool("ipipMode: Always"),
        affinity("node1", "10.65.42.0/26"),
    ];
    let mut forward = Cluster::default();
    let mut backward = Cluster::default();
    for (one, other) in objects.iter().zip(objects.iter().rev()) {
        forward.upsert(one);
        backward.upsert(other);
    }
    assert_eq!(forward, backward);
    let routes = learned(LEARNED);
    assert_eq!(
        plan_of(&forward, &routes, kernel()),
        plan_of(&backward, &routes, kernel())
    );
    assert_eq!(forward.shared_addresses()[0].left_out, "other2");
}

/// The plan of a node that pins its sources in table 886.
fn pinning(pool_fields: &str, kernel: Snapshot) -> Plan {
    let settings = Settings {
        pin_table: Some(886),
        ..settings()
    };
    let known = Known {
        cluster: &cluster(pool_fields),
        learned: &Learned::new(),
        actual: &Actual::new(kernel),
        converged: true,
    };
    plan(&settings, known)
}

#[test]
fn every_other_node_is_pinned_by_a_route_and_one_rule_where_packets_are_encapsulated() {
    for mode in ["Always", "CrossSubnet"] {
        let plan = pinning(&format!("ipipMode: {mode}"), kernel());
        assert_eq!(
            printed(&plan),
            [
                "blackhole 10.65.42.0/26 proto 86",
                "172.18.0.12 dev eth0 table 886 proto 86 scope link src 172.18.0.11",
                "172.19.0.13 via 172.18.0.1 dev eth0 table 886 proto 86 src 172.18.0.11",
            ]
        );
        let rules: Vec<_> = plan.desired.rules.iter().map(ToString::to_string).collect();
        assert_eq!(rules, ["pref 110 iif lo ipproto 4 lookup 886 proto 86"]);
        let to: Vec<_> = plan.tunnelled_to.iter().map(ToString::to_string).collect();
        assert_eq!(to, ["172.18.0.12", "172.19.0.13"]);
    }
}

#[test]
fn nothing_is_pinned_where_nothing_is_encapsulated_or_where_that_is_switched_off() {
    let never = pinning("ipipMode: Never", kernel());
    assert!(never.desired.rules.is_empty() && never.tunnelled_to.is_empty());
    let off = plan_of(&cluster("ipipMode: Always"), &Learned::new(), kernel());
    assert!(off.desired.rules.is_empty() && off.unpinned.is_empty());
    for plan in [&never, &off] {
        assert_eq!(printed(plan), ["blackhole 10.65.42.0/26 proto 86"]);
    }
    // The nodes are still asked about, so that a wrong source is told.
    assert_eq!(off.tunnelled_to.len(), 2);
}

#[test]
fn while_the_advertised_address_is_gone_its_pins_are_held_and_the_rule_stays() {
    let mut gone = kernel();
    let pins = pinning("ipipMode: Always", kernel()).desired.routes;
    gone.routes
        .extend(pins.into_values().filter(|route| route.key.table == 886));
    gone.addresses.clear();
    let plan = pinning("ipipMode: Always", gone);
    assert_eq!(plan.desired.held.iter().filter(|key| key.table == 886).count(), 2);
    assert_eq!(plan.desired.rules.len(), 1);
    assert!(matches!(plan.unpinned[..], [Unpinned::AddressGone { .. }]));
}

/// The host's own ways to the two other nodes, and what follows for the routes to their blocks.
struct PathCase {
    what: &'static str,
    mode: &'static str,
    tunnel_mtu: Option<u32>,
    /// The `mtu` of the connected route, and of the default route.
    route_mtus: [Option<u32>; 2],
    eth0_mtu: u32,
    /// The `mtu` of the routes to the blocks of the node on the subnet, and of the one behind the gateway.
    expected: [Option<u32>; 2],
}

const PATH: PathCase = PathCase {
    what: "a path as wide as its NIC",
    mode: "Always",
    tunnel_mtu: None,
    route_mtus: [None, None],
    eth0_mtu: 1500,
    expected: [None, None],
};

const PATH_CASES: &[PathCase] = &[
    PATH,
    PathCase {
        what: "a narrow way through the gateway, tunnelled: less the outer header",
        route_mtus: [None, Some(1400)],
        expected: [None, Some(1380)],
        ..PATH
    },
    PathCase {
        what: "a narrow way on the subnet, tunnelled",
        route_mtus: [Some(1300), None],
        expected: [Some(1280), None],
        ..PATH
    },
    PathCase {
        what: "tunnelled to the one behind the gateway only",
        mode: "CrossSubnet",
        route_mtus: [Some(1300), Some(1400)],
        expected: [Some(1300), Some(1380)],
        ..PATH
    },
    PathCase {
        what: "no tunnel: as the underlay has it",
        mode: "Never",
        route_mtus: [Some(1300), Some(1400)],
        expected: [Some(1300), Some(1400)],
        ..PATH
    },
    PathCase {
        what: "as much as the NIC, or more, says nothing",
        mode: "Never",
        route_mtus: [Some(1500), Some(9000)],
        ..PATH
    },
    PathCase {
        what: "as much as the NIC, or more, says nothing to the tunnel either",
        route_mtus: [Some(1500), Some(9000)],
        ..PATH
    },
    PathCase {
        what: "a tunnel that is configured to fit already",
        tunnel_mtu: Some(1380),
        route_mtus: [Some(1399), Some(1400)],
        expected: [Some(1379), None],
        ..PATH
    },
    PathCase {
        what: "a wide NIC, and a way of Ethernet's size behind the gateway",
        route_mtus: [None, Some(1500)],
        eth0_mtu: 9000,
        expected: [None, Some(1480)],
        ..PATH
    },
    PathCase {
        what: "nonsense stays above the least that a link takes",
        route_mtus: [Some(0), Some(70)],
        expected: [None, Some(68)],
        ..PATH
    },
];

#[test]
fn a_narrower_path_to_a_node_limits_the_routes_to_its_blocks_and_no_others() {
    for case in PATH_CASES {
        for pin_table in [None, Some(886)] {
            let mut kernel = kernel();
            kernel.links[0].mtu = case.eth0_mtu;
            for (route, mtu) in kernel.routes.iter_mut().zip(case.route_mtus) {
                route.mtu = mtu;
            }
            let settings = Settings {
                tunnel_mtu: case.tunnel_mtu,
                pin_table,
                ..settings()
            };
            let known = Known {
                cluster: &cluster(&format!("ipipMode: {}", case.mode)),
                learned: &learned(LEARNED),
                actual: &Actual::new(kernel),
                converged: true,
            };
            let plan = plan(&settings, known);
            let mtus = LEARNED.iter().map(|(prefix, _)| {
                let prefix = prefix.parse().unwrap();
                plan.desired
                    .routes
                    .values()
                    .find(|route| route.key.prefix == prefix)
                    .unwrap()
                    .mtu
            });
            assert_eq!(
                mtus.collect::<Vec<_>>(),
                case.expected,
                "{}, pins in {pin_table:?}",
                case.what
            );
        }
    }
}

#[test]
fn a_node_that_is_reached_through_a_smaller_nic_than_the_tunnels_is_sent_what_that_one_takes() {
    const ETH1: u32 = 4;
    let mut kernel = kernel();
    kernel.links.push(Link {
        mtu: 1400,
        ..link(ETH1, "eth1")
    });
    let mut through_eth1 = route("172.19.0.0/24", Some("172.20.0.1"), 3);
    through_eth1.next_hops[0].link = ETH1;
    kernel.routes.push(through_eth1);
    let plan = plan_of(&cluster("ipipMode: Always"), &learned(LEARNED), kernel);
    assert_eq!(
        printed(&plan),
        [
            "10.65.17.64/26 via 172.18.0.12 dev tunl0 proto 86 onlink",
            "blackhole 10.65.42.0/26 proto 86",
            "10.65.99.0/26 via 172.19.0.13 dev tunl0 proto 86 onlink mtu 1380",
        ]
    );
}

#[test]
fn a_route_through_another_link_says_nothing_of_a_node_that_is_reached_on_this_nodes_subnet() {
    const ETH1: u32 = 4;
    let mut kernel = kernel();
    kernel.links.push(link(ETH1, "eth1"));
    let mut elsewhere = Route {
        mtu: Some(1300),
        ..route("172.18.0.12/32", Some("172.20.0.1"), 3)
    };
    elsewhere.next_hops[0].link = ETH1;
    kernel.routes.push(elsewhere);
    let plan = plan_of(&cluster("ipipMode: CrossSubnet"), &learned(LEARNED), kernel);
    assert_eq!(
        printed(&plan)[0],
        "10.65.17.64/26 via 172.18.0.12 dev eth0 proto 86 src 172.18.0.11 onlink"
    );
}

#[test]
fn of_several_next_hops_the_narrowest_path_counts() {
    let mut kernel = kernel();
    kernel.routes[1].mtu = Some(1400);
    let mut both = learned(&LEARNED[..1]);
    let other = learned(&[("10.65.17.64/26", "172.19.0.13")]);
    for (prefix, hops) in other {
        both.entry(prefix).or_default().extend(hops);
    }
    let plan = plan_of(&cluster("ipipMode: Always"), &both, kernel);
    assert_eq!(
        printed(&plan)[0],
        "10.65.17.64/26 proto 86 mtu 1380 \
         nexthop via 172.18.0.12 dev tunl0 weight 1 onlink nexthop via 172.19.0.13 dev tunl0 weight 1 onlink"
    );
}
