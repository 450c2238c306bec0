//! Ways to nodes that are our own routes: told by routers, or left by a former run.

use super::*;

/// A fabric without a default route: the host knows its own subnets, and routers tell of the others.
const FABRIC: &[&str] = &["192.168.0.0/24 dev eth0", "192.168.3.0/24 dev eth1"];

struct Told {
    what: &'static str,
    host: &'static [&'static str],
    learned: &'static [&'static str],
    pin: &'static str,
}

const TOLD: &[Told] = &[
    Told {
        what: "the node's address by itself",
        host: FABRIC,
        learned: &["10.9.9.9/32 via 192.168.3.253 dev eth1"],
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Told {
        what: "the network it is in, through the other NIC",
        host: FABRIC,
        learned: &["10.9.0.0/16 via 192.168.0.253 dev eth0"],
        pin: "10.9.9.9 via 192.168.0.253 dev eth0 src 192.168.3.113",
    },
    Told {
        what: "a router on each NIC: that on the advertised address's",
        host: FABRIC,
        learned: &["10.9.0.0/16 via 192.168.0.253 dev eth0 nexthop via 192.168.3.253 dev eth1"],
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Told {
        what: "two routers, both on the advertised address's NIC",
        host: FABRIC,
        learned: &["10.9.0.0/16 via 192.168.3.253 dev eth1 nexthop via 192.168.3.254 dev eth1"],
        pin: "10.9.9.9 src 192.168.3.113 nexthop via 192.168.3.253 dev eth1 weight 1 nexthop via 192.168.3.254 dev eth1 weight 1",
    },
    Told {
        what: "longer than the host's default route",
        host: &[
            "default via 192.168.0.253 dev eth0",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        learned: &["10.9.0.0/16 via 192.168.3.253 dev eth1"],
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Told {
        what: "shorter than what the host knows by itself",
        host: &[
            "10.9.9.0/24 via 192.168.0.253 dev eth0",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        learned: &["10.9.0.0/16 via 192.168.3.253 dev eth1"],
        pin: "10.9.9.9 via 192.168.0.253 dev eth0 src 192.168.3.113",
    },
    Told {
        what: "a default route that a router tells",
        host: FABRIC,
        learned: &["default via 192.168.3.253 dev eth1"],
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Told {
        what: "in place of BIRD's, and of what the kernel had before",
        host: &[
            "10.9.0.0/16 via 192.168.0.253 dev eth0",
            "192.168.0.0/24 dev eth0",
            "192.168.3.0/24 dev eth1",
        ],
        learned: &["10.9.0.0/16 via 192.168.3.253 dev eth1"],
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
    Told {
        what: "never through the tunnel",
        host: &["default via 192.168.3.253 dev eth1", "192.168.3.0/24 dev eth1"],
        learned: &["10.9.9.9/32 via 10.65.0.1 dev tunl0 onlink"],
        pin: "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113",
    },
];

#[test]
fn a_way_to_a_node_may_be_one_that_a_router_tells() {
    for case in TOLD {
        let routes = case.host.iter().map(|words| route(words)).collect();
        let pins = pins_with(
            KNOWN_BY,
            &["10.9.9.9"],
            host(TWO, routes),
            case.learned,
            &[],
            true,
        );
        assert_eq!(printed(&pins), [case.pin], "{}", case.what);
        assert!(pins.held.is_empty() && pins.unpinned.is_empty(), "{}", case.what);
    }
}

#[test]
fn what_a_former_run_left_is_a_way_until_the_peers_have_told_all_and_while_it_is_held() {
    let with = |former: &str, held: &[&str], converged| {
        let mut routes: Vec<Route> = FABRIC.iter().map(|words| route(words)).collect();
        routes.push(ours(former));
        let pins = pins_with(KNOWN_BY, &["10.9.9.9"], host(TWO, routes), &[], held, converged);
        printed(&pins)
    };
    let told = "10.9.0.0/16 via 192.168.3.253 dev eth1";
    let pin = "10.9.9.9 via 192.168.3.253 dev eth1 src 192.168.3.113";
    assert_eq!(with(told, &[], false), [pin]);
    assert_eq!(with(told, &["10.9.0.0/16"], true), [pin]);
    assert_eq!(with(told, &["10.9.0.0/17"], true), [""; 0]);
    assert_eq!(with(told, &[], true), [""; 0]);
    // A block is where pods are, never a way to a node.
    let block = "10.65.0.0/16 via 192.168.3.253 dev eth1";
    let mut routes: Vec<Route> = FABRIC.iter().map(|words| route(words)).collect();
    routes.push(ours(block));
    let pins = pins_with(KNOWN_BY, &["10.65.9.9"], host(TWO, routes), &[], &[], false);
    assert_eq!(printed(&pins), [""; 0]);
}
