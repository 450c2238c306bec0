//! A node that Calico has routed so far, with two others.

use culvert_ipam::affinity::{Affinity, AffinityState};

use super::*;
use crate::api::{BlockAffinity, IpPool, Node, Object, annotation};
use crate::fib::{Address, Link, NextHop as Hop, RouteKey, SCOPE_LINK, SCOPE_UNIVERSE, Snapshot};
use crate::peering::Speaking;

const ETH0: u32 = 2;
const TUNL0: u32 = 3;
const BIRD: u8 = 12;

fn settings() -> Settings {
    Settings {
        node: "node1".to_owned(),
        address: "172.18.0.11".parse().unwrap(),
        speaking: Speaking::default(),
        protocol: 86,
        tunnel_mtu: None,
        path_mtu_discovery: None,
        pin_table: None,
    }
}

fn node(name: &str, address: &str, tunnel: &str) -> Object {
    let mut node = Node::named(name);
    for (name, value) in [
        (annotation::IPV4_ADDRESS, address),
        (annotation::IPIP_TUNNEL_ADDRESS, tunnel),
    ] {
        node.metadata
            .annotations
            .insert(name.to_owned(), value.to_owned());
    }
    Object::Node(node)
}

fn cluster() -> Cluster {
    let pool = "metadata: {name: pool}\nspec: {cidr: 10.65.0.0/16, ipipMode: Always}";
    let pool: IpPool = serde_yaml::from_str(pool).unwrap();
    let block = |node: &str, cidr: &str| {
        let spec = Affinity {
            state: AffinityState::Confirmed,
            ..Affinity::pending(node, cidr.parse().unwrap())
        };
        Object::BlockAffinity(BlockAffinity::new(format!("{node}-block"), spec))
    };
    let mut cluster = Cluster::default();
    for object in [
        node("node1", "172.18.0.11/24", "10.65.1.0"),
        node("node2", "172.18.0.12/24", "10.65.2.0"),
        node("node3", "172.18.0.13/24", "10.65.3.0"),
        Object::IpPool(pool),
        block("node1", "10.65.1.0/26"),
        block("node2", "10.65.2.0/26"),
        block("node3", "10.65.3.0/26"),
    ] {
        cluster.upsert(&object);
    }
    cluster
}

fn through(prefix: &str, gateway: Option<&str>, link: u32, protocol: u8) -> Route {
    let gateway = gateway.map(|gateway| gateway.parse().unwrap());
    Route {
        key: RouteKey::main(prefix.parse().unwrap()),
        kind: RouteKind::Unicast,
        next_hops: vec![Hop {
            gateway,
            link,
            onlink: link == TUNL0,
            weight: 1,
        }],
        source: None,
        protocol,
        scope: if gateway.is_none() {
            SCOPE_LINK
        } else {
            SCOPE_UNIVERSE
        },
        mtu: None,
    }
}

/// As calico-node leaves it.
fn kernel() -> Snapshot {
    let link = |index, name: &str, mtu, kind: Option<&str>| Link {
        index,
        name: name.to_owned(),
        up: true,
        running: true,
        mtu,
        kind: kind.map(str::to_owned),
        path_mtu_discovery: kind.map(|_| true),
    };
    let address = |link, net: &str| Address {
        link,
        net: net.parse().unwrap(),
    };
    Snapshot {
        links: vec![
            link(ETH0, "eth0", 1500, None),
            link(TUNL0, "tunl0", 1480, Some("ipip")),
        ],
        addresses: vec![address(ETH0, "172.18.0.11/24"), address(TUNL0, "10.65.1.0/32")],
        routes: vec![
            through("172.18.0.0/24", None, ETH0, 2),
            Route::blackhole(RouteKey::main("10.65.1.0/26".parse().unwrap()), BIRD),
            through("10.65.2.0/26", Some("172.18.0.12"), TUNL0, BIRD),
            through("10.65.3.0/26", Some("172.18.0.13"), TUNL0, BIRD),
            // A pod of this node, as Calico's own agent writes it.
            through("10.65.1.7/32", None, ETH0, 80),
        ],
        forwarding: true,
        ..Snapshot::default()
    }
}

#[test]
fn a_node_that_bird_routes_as_we_would_is_taken_over_as_it_is() {
    let shadow = compare(&settings(), &cluster(), &Actual::new(kernel()));
    assert!(shadow.agrees(), "{shadow:?}");
    assert_eq!((shadow.wanted, shadow.there, shadow.peers), (3, 3, 2));
    assert_eq!(shadow.taken_over, BTreeMap::from([("bird".to_owned(), 3)]));
    assert_eq!(
        shadow.to_string(),
        "node1 (172.18.0.11), 2 peers: 3 of 3 routes are in the kernel as they should be\n\
         take over: 3 routes of proto bird, as they are\n"
    );
}

#[test]
fn every_difference_is_named() {
    let mut kernel = kernel();
    kernel
        .routes
        .retain(|route| route.key.prefix.to_string() != "10.65.2.0/26");
    for route in &mut kernel.routes {
        if route.key.prefix.to_string() == "10.65.3.0/26" {
            *route = through("10.65.3.0/26", Some("172.18.0.12"), TUNL0, BIRD);
        }
    }
    kernel
        .routes
        .push(through("10.65.9.0/26", Some("172.18.0.19"), TUNL0, BIRD));
    kernel.forwarding = false;
    let shadow = compare(&settings(), &cluster(), &Actual::new(kernel));
    assert!(!shadow.agrees());
    assert_eq!((shadow.wanted, shadow.there), (3, 1));
    let text = shadow.to_string();
    for line in [
        "take over: 1 routes of proto bird, as they are",
        "change: net.ipv4.ip_forward becomes 1",
        "add: 10.65.2.0/26 via 172.18.0.12 dev tunl0",
        "change: 10.65.3.0/26 via 172.18.0.12 dev tunl0",
        "becomes 10.65.3.0/26 via 172.18.0.13 dev tunl0",
        "leave: 10.65.9.0/26 via 172.18.0.19 dev tunl0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[test]
fn what_would_be_written_to_the_datastore_is_told() {
    let mut cluster = cluster();
    let Object::Node(mut bare) = node("node1", "172.18.0.99/24", "") else {
        unreachable!()
    };
    bare.metadata.annotations.remove(annotation::IPIP_TUNNEL_ADDRESS);
    cluster.upsert(&Object::Node(bare));
    let claim = crate::api::Key::new(crate::api::Kind::BlockAffinity, "node1-block");
    cluster.remove(&claim);
    let shadow = compare(&settings(), &cluster, &Actual::new(kernel()));
    assert_eq!(
        shadow.writes,
        [
            "Node node1: its advertised address becomes 172.18.0.11",
            "a first block is claimed for this node",
            "an address is assigned for tunl0",
        ]
    );
}
