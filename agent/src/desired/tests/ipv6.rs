//! IPv6: the same plan, without tunnels.

use super::*;
use crate::fib::SCOPE_UNIVERSE;

const OWN: &str = "2001:db8::11";
const ON_SUBNET: &str = "2001:db8::12";
const BEHIND_ROUTER: &str = "2001:db8:1::13";

const LEARNED_V6: &[(&str, &str)] = &[("fd00:65::40/122", ON_SUBNET), ("fd00:65::80/122", BEHIND_ROUTER)];

fn known_by(address_v6: Option<&str>) -> Settings {
    Settings {
        speaking: Speaking {
            address_v6: address_v6.map(|text| text.parse().unwrap()),
            ..Speaking::default()
        },
        ..settings()
    }
}

fn dual(name: &str, v4: &str, v6: &str) -> Object {
    let Object::Node(mut node) = node(name, v4) else {
        unreachable!()
    };
    let annotations = &mut node.metadata.annotations;
    annotations.insert(annotation::IPV6_ADDRESS.to_owned(), v6.to_owned());
    Object::Node(node)
}

/// The cluster of the other tables, dual stack, with a block of each family.
fn dual_cluster(fields: &str) -> Cluster {
    let mut cluster = cluster("ipipMode: Always");
    for object in [
        dual("node1", "172.18.0.11/24", "2001:db8::11/64"),
        dual("node2", "172.18.0.12/24", "2001:db8::12/64"),
        dual("node3", "172.19.0.13/24", "2001:db8:1::13/64"),
        fixtures::pool("pool-v6", &format!("cidr: 'fd00:65::/64', {fields}")),
        affinity("node1", "fd00:65::/122"),
    ] {
        cluster.upsert(&object);
    }
    cluster
}

fn route_v6(prefix: &str, gateway: Option<&str>, protocol: u8, metric: u32) -> Route {
    let mut route = route(prefix, gateway, protocol);
    route.key.metric = metric;
    route
}

/// The kernel of the other tables, with the routes that IPv6 gives a host on a router's subnet.
fn dual_kernel() -> Snapshot {
    let mut kernel = kernel();
    kernel.addresses.push(address(ETH0, "2001:db8::11/64"));
    kernel.routes.extend([
        route_v6("2001:db8::/64", None, 2, 256),
        route_v6("::/0", Some("fe80::1"), 9, 1024),
    ]);
    kernel
}

fn plan_with(settings: &Settings, cluster: &Cluster, learned: &Learned, kernel: Snapshot) -> Plan {
    let actual = Actual::new(kernel);
    plan(
        settings,
        Known {
            cluster,
            learned,
            actual: &actual,
            converged: true,
        },
    )
}

fn dual_plan(cluster: &Cluster, learned: &Learned, kernel: Snapshot) -> Plan {
    plan_with(&known_by(Some(OWN)), cluster, learned, kernel)
}

/// Of the printed routes those of IPv6.
fn printed_v6(plan: &Plan) -> Vec<String> {
    let all = printed(plan);
    all.into_iter().filter(|route| route.contains(':')).collect()
}

const BLACKHOLE: &str = "blackhole fd00:65::/122 proto 86 metric 1024";

fn reasons(plan: &Plan) -> Vec<String> {
    plan.rejected
        .values()
        .flatten()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn ipv6_goes_directly_while_ipv4_goes_through_the_tunnel() {
    let mut both = learned(LEARNED);
    both.extend(learned(LEARNED_V6));
    let plan = dual_plan(&dual_cluster(""), &both, dual_kernel());
    assert_eq!(
        printed(&plan),
        [
            "10.65.17.64/26 via 172.18.0.12 dev tunl0 proto 86 onlink",
            "blackhole 10.65.42.0/26 proto 86",
            "10.65.99.0/26 via 172.19.0.13 dev tunl0 proto 86 onlink",
            BLACKHOLE,
            // A node of this node's own subnet; and one behind the router, which is known by a link-local address.
            "fd00:65::40/122 via 2001:db8::12 dev eth0 proto 86 src 2001:db8::11 metric 1024 onlink",
            "fd00:65::80/122 via fe80::1 dev eth0 proto 86 src 2001:db8::11 metric 1024 onlink",
        ]
    );
    assert!(plan.rejected.is_empty() && plan.desired.forwarding_v6);
    let exports: Vec<_> = plan.exports.iter().map(ToString::to_string).collect();
    assert_eq!(exports, ["10.65.42.0/26", "fd00:65::/122"]);
    let to: Vec<_> = plan.tunnelled_to.iter().map(ToString::to_string).collect();
    assert_eq!(to, ["172.18.0.12", "172.19.0.13"], "nobody is pinned by IPv6");
}

#[test]
fn forwarding_of_ipv6_is_asked_for_only_where_there_are_pods_and_an_address() {
    let none = Learned::new();
    assert!(
        !dual_plan(&cluster("ipipMode: Always"), &none, dual_kernel())
            .desired
            .forwarding_v6
    );
    let without = plan_with(&known_by(None), &dual_cluster(""), &none, dual_kernel());
    assert!(!without.desired.forwarding_v6 && without.desired.forwarding);
    // The pods of a pool that gives no more addresses are still there.
    assert!(
        dual_plan(&dual_cluster("disabled: true"), &none, dual_kernel())
            .desired
            .forwarding_v6
    );
}

#[test]
fn an_ipv6_pool_that_wants_a_tunnel_is_named_with_what_to_set_and_makes_no_tunnel() {
    for mode in ["Always", "CrossSubnet"] {
        let mut cluster = dual_cluster(&format!("ipipMode: {mode}"));
        cluster.upsert(&pool("ipipMode: Never"));
        let plan = dual_plan(&cluster, &learned(LEARNED_V6), dual_kernel());
        assert_eq!(printed_v6(&plan), [BLACKHOLE]);
        assert_eq!(plan.desired.tunnel, None);
        assert!(
            plan.desired.held.is_empty(),
            "it is wrong, and stays so until somebody changes it"
        );
        let told = reasons(&plan);
        assert_eq!(told.len(), 2);
        for words in [
            "fd00:65::/64",
            mode,
            "IPIP carries no IPv6",
            "set its ipipMode to Never",
        ] {
            assert!(told[0].contains(words), "{told:?}");
        }
    }
}

#[test]
fn a_next_hop_of_the_other_family_or_of_one_link_only_is_rejected_and_named() {
    for (prefix, next_hop, words) in [
        ("10.65.17.64/26", ON_SUBNET, "of the other address family"),
        ("fd00:65::40/122", "172.18.0.12", "of the other address family"),
        ("fd00:65::40/122", "fe80::12", "is link-local"),
        (
            "fd00:65::40/122",
            "2001:db8::99",
            "is not the advertised address of any node",
        ),
        (
            "fd00:65::40/122",
            "fd00:65::7",
            "lies inside the pool fd00:65::/64",
        ),
    ] {
        let plan = dual_plan(&dual_cluster(""), &learned(&[(prefix, next_hop)]), dual_kernel());
        assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86", BLACKHOLE]);
        assert!(plan.desired.held.is_empty(), "{next_hop}");
        let told = reasons(&plan);
        assert!(told[0].contains(words) && told[0].contains(next_hop), "{told:?}");
    }
}

#[test]
fn a_node_without_an_ipv6_address_leaves_ipv6_routes_as_they_are_and_says_what_it_needs() {
    let mut both = learned(&LEARNED[..1]);
    both.extend(learned(&LEARNED_V6[..1]));
    let plan = plan_with(&known_by(None), &dual_cluster(""), &both, dual_kernel());
    assert_eq!(
        printed(&plan)[0],
        "10.65.17.64/26 via 172.18.0.12 dev tunl0 proto 86 onlink"
    );
    assert_eq!(printed_v6(&plan), [BLACKHOLE]);
    let held = plan.desired.held.iter().map(|key| key.prefix.to_string());
    assert_eq!(held.collect::<Vec<_>>(), ["fd00:65::40/122"]);
    assert!(
        reasons(&plan)[0].contains("set node.addressV6"),
        "{:?}",
        reasons(&plan)
    );
}

#[test]
fn an_ipv6_address_that_is_gone_holds_ipv6_and_an_ipv4_address_that_is_gone_does_not() {
    let routes = learned(LEARNED_V6);
    for (gone, is_held) in [(OWN, true), ("172.18.0.11", false)] {
        let mut kernel = dual_kernel();
        kernel
            .addresses
            .retain(|address| address.net.addr().to_string() != gone);
        let plan = dual_plan(&dual_cluster(""), &routes, kernel);
        assert_eq!(
            plan.desired.held.len(),
            if is_held { 2 } else { 0 },
            "without {gone}"
        );
        assert_eq!(
            printed_v6(&plan).len(),
            if is_held { 1 } else { 3 },
            "without {gone}"
        );
    }
}

#[test]
fn a_node_of_ipv6_that_is_out_of_reach_for_the_moment_is_held() {
    let mut no_default = dual_kernel();
    no_default.routes.pop();
    let mut down = dual_kernel();
    down.links[0].up = false;
    for (kernel, words) in [(no_default, "has no route to its next hop"), (down, "eth0")] {
        let plan = dual_plan(&dual_cluster(""), &learned(LEARNED_V6), kernel);
        assert!(
            reasons(&plan).iter().any(|reason| reason.contains(words)),
            "{:?}",
            reasons(&plan)
        );
        assert!(!plan.desired.held.is_empty());
    }
}

#[test]
fn a_narrow_path_limits_an_ipv6_route_but_never_below_what_every_link_takes() {
    for (mtu, expected) in [(1400, " mtu 1400"), (1000, " mtu 1280"), (1500, "")] {
        let mut kernel = dual_kernel();
        for route in kernel
            .routes
            .iter_mut()
            .filter(|route| route.key.prefix.addr().is_ipv6())
        {
            route.mtu = Some(mtu);
        }
        let plan = dual_plan(&dual_cluster(""), &learned(LEARNED_V6), kernel);
        let routes = printed_v6(&plan);
        assert_eq!(
            routes[1..],
            [
                format!(
                    "fd00:65::40/122 via 2001:db8::12 dev eth0 proto 86 src 2001:db8::11 metric 1024 onlink{expected}"
                ),
                format!(
                    "fd00:65::80/122 via fe80::1 dev eth0 proto 86 src 2001:db8::11 metric 1024 onlink{expected}"
                ),
            ]
        );
    }
}

#[test]
fn two_nodes_with_one_ipv6_block_get_equal_shares() {
    let mut both = learned(&LEARNED_V6[..1]);
    for (prefix, hops) in learned(&[("fd00:65::40/122", BEHIND_ROUTER)]) {
        both.entry(prefix).or_default().extend(hops);
    }
    let plan = dual_plan(&dual_cluster(""), &both, dual_kernel());
    assert_eq!(
        printed_v6(&plan)[1],
        "fd00:65::40/122 proto 86 src 2001:db8::11 metric 1024 nexthop via 2001:db8::12 dev eth0 weight 1 onlink \
         nexthop via fe80::1 dev eth0 weight 1 onlink"
    );
}

#[test]
fn a_single_ipv6_address_has_no_blackhole_and_is_not_taken_from_a_pod_of_this_host() {
    let mut cluster = dual_cluster("");
    cluster.upsert(&affinity("node1", "fd00:65::7/128"));
    let mut kernel = dual_kernel();
    let mut pod = route_v6("fd00:65::47/128", None, 3, 1024);
    pod.scope = SCOPE_UNIVERSE;
    kernel.routes.push(pod);
    let plan = dual_plan(&cluster, &learned(&[("fd00:65::47/128", ON_SUBNET)]), kernel);
    assert_eq!(printed_v6(&plan), [BLACKHOLE]);
    assert_eq!(plan.exports.len(), 3);
    assert!(
        reasons(&plan)[0].contains("leads to that address"),
        "{:?}",
        reasons(&plan)
    );
}

#[test]
fn of_two_nodes_with_one_ipv6_address_the_first_by_name_counts() {
    let mut cluster = dual_cluster("");
    cluster.upsert(&dual("zother", "172.18.0.19/24", "2001:db8::12/64"));
    let shared = cluster.shared_addresses();
    assert_eq!(shared.len(), 1);
    assert_eq!(
        (
            shared[0].address.to_string().as_str(),
            shared[0].kept.as_str(),
            shared[0].left_out.as_str()
        ),
        (ON_SUBNET, "node2", "zother")
    );
    let peers = dual_plan(&cluster, &Learned::new(), dual_kernel())
        .peering
        .origins;
    let node = |address: &str| peers[&address.parse().unwrap()].node.clone();
    assert_eq!(node(ON_SUBNET).as_deref(), Some("node2"));
    assert_eq!(
        node("172.18.0.19").as_deref(),
        Some("zother"),
        "by IPv4 it is reached all the same"
    );
}
