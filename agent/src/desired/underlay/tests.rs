//! Tables: a host's links, addresses and main table, and the pins that follow.

mod learned;

use super::*;
use crate::api::Object;
use crate::fib::{Address, Link, Snapshot};

const T: u32 = 886;
const OURS: u8 = 86;
const BOOT: u8 = 3;

/// Links by their place, from 1.
const LINKS: [&str; 5] = ["lo", "eth0", "eth1", "tunl0", "dhcp0"];

fn link(name: &str) -> u32 {
    let place = LINKS.iter().position(|known| *known == name).unwrap();
    u32::try_from(place).unwrap() + 1
}

/// A next hop in the words of `ip route`: `via G dev L weight W onlink`, each part but `dev` optional.
fn hop(words: &str) -> NextHop {
    let words: Vec<_> = words.split(' ').collect();
    let after = |name: &str| {
        words
            .iter()
            .position(|word| *word == name)
            .map(|place| words[place + 1])
    };
    NextHop {
        gateway: after("via").map(|gateway| gateway.parse().unwrap()),
        link: link(after("dev").unwrap()),
        onlink: words.contains(&"onlink"),
        weight: after("weight").map_or(1, |weight| weight.parse().unwrap()),
    }
}

/// A route of the main table: `PREFIX HOP`, or `PREFIX metric M HOP nexthop HOP`.
fn route(words: &str) -> Route {
    let (prefix, rest) = words.split_once(' ').unwrap();
    let prefix = if prefix == "default" { "0.0.0.0/0" } else { prefix };
    let (metric, rest) = match rest.strip_prefix("metric ") {
        Some(rest) => rest.split_once(' ').unwrap(),
        None => ("0", rest),
    };
    Route {
        key: RouteKey {
            table: MAIN_TABLE,
            prefix: prefix.parse().unwrap(),
            metric: metric.parse().unwrap(),
        },
        kind: RouteKind::Unicast,
        next_hops: rest.split(" nexthop ").map(hop).collect(),
        source: None,
        protocol: BOOT,
        scope: 0,
        mtu: None,
    }
}

/// The same of ours.
fn ours(words: &str) -> Route {
    Route {
        protocol: OURS,
        ..route(words)
    }
}

fn host(addresses: &[&str], routes: Vec<Route>) -> Snapshot {
    let links = LINKS.iter().map(|name| Link {
        index: link(name),
        name: (*name).to_owned(),
        up: true,
        running: true,
        mtu: 1500,
        kind: None,
        path_mtu_discovery: None,
    });
    let addresses = addresses.iter().map(|words| {
        let (net, name) = words.split_once(' ').unwrap();
        Address {
            link: link(name),
            net: net.parse().unwrap(),
        }
    });
    Snapshot {
        links: links.collect(),
        addresses: addresses.collect(),
        routes,
        ..Snapshot::default()
    }
}

fn settings(address: &str) -> Settings {
    Settings {
        node: "node4".to_owned(),
        address: address.parse().unwrap(),
        speaking: crate::peering::Speaking::default(),
        protocol: OURS,
        tunnel_mtu: None,
        path_mtu_discovery: None,
        pin_table: Some(T),
    }
}

fn pins_of(address: &str, peers: &[&str], host: Snapshot) -> Pins {
    pins_with(address, peers, host, &[], &[], true)
}

/// The pins, where routers tell of `learned`, what there is to `held` stays as it is, and the peers have `converged`.
fn pins_with(
    address: &str,
    peers: &[&str],
    host: Snapshot,
    learned: &[&str],
    held: &[&str],
    converged: bool,
) -> Pins {
    let settings = settings(address);
    let actual = Actual::new(host);
    let learned: BTreeMap<RouteKey, Route> = learned
        .iter()
        .map(|words| ours(words))
        .map(|route| (route.key, route))
        .collect();
    let mut cluster = Cluster::default();
    let yaml = "metadata: {name: pool}\nspec: {cidr: 10.65.0.0/16}";
    cluster.upsert(&Object::IpPool(serde_yaml::from_str(yaml).unwrap()));
    let former = Former {
        cluster: &cluster,
        held: &held
            .iter()
            .map(|prefix| RouteKey::main(prefix.parse().unwrap()))
            .collect(),
        all: !converged,
    };
    let underlay = Underlay::new(&settings, &actual, &learned, former);
    let peers = peers.iter().map(|peer| peer.parse().unwrap());
    let pins = pins(&settings, T, peers, &underlay);
    for (key, pin) in &pins.routes {
        assert_eq!((key.table, key.metric, pin.protocol), (T, 0, OURS));
        assert_eq!(*key, pin.key);
        assert_eq!(key.prefix.prefix_len(), 32);
    }
    pins
}

/// The pins as an operator reads them, without what all have in common.
fn printed(pins: &Pins) -> Vec<String> {
    let name = |index: u32| LINKS.get(index as usize - 1).map(|name| (*name).to_owned());
    let print = |route: &Route| route.with_names(name).to_string();
    let common = " table 886 proto 86";
    pins.routes
        .values()
        .map(|route| print(route).replace(common, ""))
        .collect()
}

struct Case {
    what: &'static str,
    address: &'static str,
    addresses: &'static [&'static str],
    routes: &'static [&'static str],
    peer: &'static str,
    pin: &'static str,
}

/// The host of the field report: known by its address on eth1, and on the network of eth0 as well.
const TWO: &[&str] = &["192.168.0.113/24 eth0", "192.168.3.113/24 eth1"];
const KNOWN_BY: &str = "192.168.3.113";

const CASES: &[Case] = &[
    Case {
        what: "one NIC, and a node on its subnet",
        address: "172.18.0.11",
        addresses: &["172.18.0.11/24 eth0"],
        routes: &["default via 172.18.0.1 dev eth0", "172.18.0.0/24 dev eth0"],
        peer: "172.18.0.12",
        pin: "172.18.0.12 dev eth0 scope link src 172.18.0.11",
    },
    Case {
        what: "one NIC, and a node behind the gateway",
        address: "172.18.0.11",
        addresses: &["172.18.0.11/24 eth0"],
        routes: &["default via 172.18.0.1 dev eth0", "172.18.0.0/24 dev eth0"],
        peer: "172.19.0.13",
        pin: "172.19.0.13 via 172.18.0.1 dev eth0 src 172.18.0.11",
    },
    Case {
        what: "two NICs, and a node on the subnet of the advertised address",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default via 192.168.0.253 dev eth0",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "192.168.3.110",
        pin: "192.168.3.110 dev eth1 scope link src 192.168.3.113",
    },
    Case {
        what: "two NICs, and a node on the other's subnet",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default via 192.168.0.253 dev eth0",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "192.168.0.111",
        pin: "192.168.0.111 dev eth0 scope link src 192.168.3.113",
    },
    Case {
        what: "two NICs, a node on the other's subnet, and the default route through the advertised address's NIC: \
               a gateway may not know what a subnet reaches for certain",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default via 192.168.3.253 dev eth1",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "192.168.0.111",
        pin: "192.168.0.111 dev eth0 scope link src 192.168.3.113",
    },
    Case {
        what: "both NICs on one subnet: the one of the advertised address, though the other has the lower metric",
        address: "172.18.0.12",
        addresses: &["172.18.0.11/24 eth0", "172.18.0.12/24 eth1"],
        routes: &[
            "172.18.0.0/24 metric 100 dev eth0",
            "172.18.0.0/24 metric 101 dev eth1",
        ],
        peer: "172.18.0.20",
        pin: "172.18.0.20 dev eth1 scope link src 172.18.0.12",
    },
    Case {
        what: "the advertised address is a secondary one of the only NIC",
        address: "172.18.0.99",
        addresses: &["172.18.0.11/24 eth0", "172.18.0.99/24 eth0"],
        routes: &["default via 172.18.0.1 dev eth0", "172.18.0.0/24 dev eth0"],
        peer: "172.18.0.12",
        pin: "172.18.0.12 dev eth0 scope link src 172.18.0.99",
    },
    Case {
        what: "the advertised address is on lo, and the node behind the gateway",
        address: "10.255.0.4",
        addresses: &["172.18.0.11/24 eth0", "10.255.0.4/32 lo"],
        routes: &["default via 172.18.0.1 dev eth0", "172.18.0.0/24 dev eth0"],
        peer: "10.255.0.5",
        pin: "10.255.0.5 via 172.18.0.1 dev eth0 src 10.255.0.4",
    },
    Case {
        what: "a gateway on each NIC: that of the advertised address's, though the other has the lower metric",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default metric 100 via 192.168.0.253 dev eth0",
            "default metric 200 via 192.168.3.253 dev eth1",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "10.9.9.9",
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Case {
        what: "of two gateways on the advertised address's NIC the one of the lower metric",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default metric 300 via 192.168.3.254 dev eth1",
            "default metric 200 via 192.168.3.253 dev eth1",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "10.9.9.9",
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Case {
        what: "a route of its own to the node's network through the other NIC: longer than the default route",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default via 192.168.3.253 dev eth1",
            "10.9.0.0/16 via 192.168.0.253 dev eth0",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "10.9.9.9",
        pin: "10.9.9.9 via 192.168.0.253 dev eth0 src 192.168.3.113",
    },
    Case {
        what: "DHCP has moved the default route to another NIC, gateway and metric",
        address: KNOWN_BY,
        addresses: &["192.168.3.113/24 eth1", "10.20.0.7/24 dhcp0"],
        routes: &[
            "default metric 50 via 10.20.0.1 dev dhcp0",
            "10.20.0.0/24 dev dhcp0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "192.168.0.111",
        pin: "192.168.0.111 via 10.20.0.1 dev dhcp0 src 192.168.3.113",
    },
    Case {
        what: "several next hops, none on the advertised address's NIC: all are kept, with their weights",
        address: "10.255.0.4",
        addresses: &[
            "10.255.0.4/32 lo",
            "192.168.0.113/24 eth0",
            "192.168.3.113/24 eth1",
        ],
        routes: &[
            "default via 192.168.0.253 dev eth0 weight 3 nexthop via 192.168.3.253 dev eth1 weight 1",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "10.255.0.5",
        pin: "10.255.0.5 src 10.255.0.4 nexthop via 192.168.0.253 dev eth0 weight 3 nexthop via 192.168.3.253 dev eth1 weight 1",
    },
    Case {
        what: "several next hops, some on the advertised address's NIC: those",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &[
            "default via 192.168.0.253 dev eth0 nexthop via 192.168.3.253 dev eth1 nexthop via 192.168.3.254 dev eth1",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        peer: "10.9.9.9",
        pin: "10.9.9.9 src 192.168.3.113 nexthop via 192.168.3.253 dev eth1 weight 1 nexthop via 192.168.3.254 dev eth1 weight 1",
    },
    Case {
        what: "a gateway on no subnet of its NIC, as clouds have it, is taken to be on the link",
        address: "203.0.113.7",
        addresses: &["203.0.113.7/32 eth0"],
        routes: &["default via 172.31.1.1 dev eth0 onlink"],
        peer: "203.0.113.8",
        pin: "203.0.113.8 via 172.31.1.1 dev eth0 src 203.0.113.7 onlink",
    },
    Case {
        what: "the subnet that the gateway was on is gone from its NIC, and is on another",
        address: KNOWN_BY,
        addresses: TWO,
        routes: &["default via 192.168.3.253 dev eth1", "192.168.3.0/24 dev eth0"],
        peer: "10.9.9.9",
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113 onlink",
    },
    Case {
        what: "an onlink flag that the gateway's subnet makes needless stays",
        address: "172.18.0.11",
        addresses: &["172.18.0.11/24 eth0"],
        routes: &["default via 172.18.0.1 dev eth0 onlink", "172.18.0.0/24 dev eth0"],
        peer: "172.19.0.13",
        pin: "172.19.0.13 via 172.18.0.1 dev eth0 src 172.18.0.11 onlink",
    },
];

#[test]
fn each_node_is_pinned_on_the_nic_that_reaches_it_with_the_advertised_source() {
    for case in CASES {
        let mut routes: Vec<Route> = case.routes.iter().map(|words| route(words)).collect();
        for _ in 0..2 {
            let pins = pins_of(case.address, &[case.peer], host(case.addresses, routes.clone()));
            assert_eq!(printed(&pins), [case.pin], "{}", case.what);
            assert!(pins.held.is_empty() && pins.unpinned.is_empty(), "{}", case.what);
            // The order in which the kernel tells of its routes changes nothing.
            routes.reverse();
        }
    }
}

fn two_nics() -> Vec<Route> {
    [
        "default via 192.168.3.253 dev eth1",
        "192.168.0.0/24 dev eth0",
        "192.168.3.0/24 dev eth1",
    ]
    .map(route)
    .to_vec()
}

#[test]
fn a_node_without_a_way_is_named_and_its_pin_is_left_as_it_is() {
    let routes = vec![route("192.168.3.0/24 dev eth1")];
    let pins = pins_of(KNOWN_BY, &["192.168.0.111", "192.168.3.110"], host(TWO, routes));
    assert_eq!(
        printed(&pins),
        ["192.168.3.110 dev eth1 scope link src 192.168.3.113"]
    );
    let held: Vec<String> = pins.held.iter().map(ToString::to_string).collect();
    assert_eq!(held, ["192.168.0.111/32 table 886"]);
    let [problem] = pins.unpinned.as_slice() else {
        panic!("{:?}", pins.unpinned)
    };
    assert!(problem.to_string().contains("192.168.0.111"), "{problem}");
}

#[test]
fn a_route_that_lets_nothing_through_is_no_way() {
    for kind in [RouteKind::Blackhole, RouteKind::Other(7)] {
        let mut routes = two_nics();
        let closed = Route {
            kind,
            ..route("192.168.0.111/32 dev eth0")
        };
        routes.push(closed);
        let pins = pins_of(KNOWN_BY, &["192.168.0.111"], host(TWO, routes));
        assert_eq!(
            pins.unpinned,
            [Unpinned::Unreachable {
                peer: "192.168.0.111".parse().unwrap()
            }]
        );
    }
}

#[test]
fn while_the_advertised_address_is_on_no_link_nothing_is_pinned_and_what_is_there_is_held() {
    let mut routes = two_nics();
    let former = pins_of(
        KNOWN_BY,
        &["192.168.0.111", "192.168.3.110"],
        host(TWO, routes.clone()),
    );
    assert_eq!(former.routes.len(), 2);
    routes.extend(former.routes.values().cloned());
    let gone = pins_of(
        KNOWN_BY,
        &["192.168.0.111", "192.168.3.110"],
        host(&["192.168.0.113/24 eth0"], routes),
    );
    assert_eq!(printed(&gone), [""; 0]);
    assert_eq!(gone.held, former.routes.keys().copied().collect());
    // One sentence, and not one a node.
    assert_eq!(
        gone.unpinned,
        [Unpinned::AddressGone {
            address: KNOWN_BY.parse().unwrap()
        }]
    );
}

#[test]
fn neither_our_own_routes_nor_those_through_the_tunnel_are_the_underlay() {
    let mut routes = two_nics();
    routes.push(Route {
        protocol: OURS,
        ..route("192.168.0.111/32 via 192.168.0.9 dev eth0")
    });
    // Somebody sends all that is not on a subnet through the tunnel.
    routes.push(route("192.168.0.0/25 dev tunl0"));
    let mut elsewhere = route("192.168.0.111/32 via 192.168.3.9 dev eth1");
    elsewhere.key.table = 100;
    routes.push(elsewhere);
    let pins = pins_of(KNOWN_BY, &["192.168.0.111"], host(TWO, routes));
    assert_eq!(
        printed(&pins),
        ["192.168.0.111 dev eth0 scope link src 192.168.3.113"]
    );
}

#[test]
fn a_nic_without_carrier_is_not_preferred() {
    let routes: Vec<Route> = [
        "default metric 100 via 192.168.0.253 dev eth0",
        "default metric 200 via 192.168.3.253 dev eth1",
        "192.168.0.0/24 dev eth0",
    ]
    .map(route)
    .to_vec();
    let mut host = host(TWO, routes);
    host.links[2].running = false;
    let pins = pins_of(KNOWN_BY, &["10.9.9.9"], host);
    assert_eq!(
        printed(&pins),
        ["10.9.9.9 via 192.168.0.253 dev eth0 src 192.168.3.113"]
    );
}

#[test]
fn of_several_routes_of_one_key_the_first_counts_and_a_smaller_mtu_is_kept() {
    let first = Route {
        mtu: Some(1400),
        ..route("10.9.0.0/16 via 192.168.0.1 dev eth0")
    };
    let routes = vec![
        route("192.168.0.0/24 dev eth0"),
        first,
        route("10.9.0.0/16 via 192.168.0.2 dev eth0"),
    ];
    let pins = pins_of("192.168.0.113", &["10.9.9.9"], host(TWO, routes));
    assert_eq!(
        printed(&pins),
        ["10.9.9.9 via 192.168.0.1 dev eth0 src 192.168.0.113 mtu 1400"]
    );
}
