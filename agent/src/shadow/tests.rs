//! A node that Calico has routed so far, with two others.

use super::*;
use crate::api::{Object, annotation};
use crate::fib::{Link, RouteKey, Snapshot};
use crate::fixtures::{ETH0, TUNL0, address, affinity, link, node, pool, route, settings, tunnel};

const BIRD: u8 = 12;

/// A node with the address of its tunnel.
fn tunnelling(name: &str, address: &str, tunnel: &str) -> Object {
    let Object::Node(mut node) = node(name, address) else {
        unreachable!()
    };
    node.metadata
        .annotations
        .insert(annotation::IPIP_TUNNEL_ADDRESS.to_owned(), tunnel.to_owned());
    Object::Node(node)
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for object in [
        tunnelling("node1", "172.18.0.11/24", "10.65.1.0"),
        tunnelling("node2", "172.18.0.12/24", "10.65.2.0"),
        tunnelling("node3", "172.18.0.13/24", "10.65.3.0"),
        pool("pool", "cidr: 10.65.0.0/16, ipipMode: Always"),
        affinity("node1", "10.65.1.0/26"),
        affinity("node2", "10.65.2.0/26"),
        affinity("node3", "10.65.3.0/26"),
    ] {
        cluster.upsert(&object);
    }
    cluster
}

/// As calico-node leaves it.
fn kernel() -> Snapshot {
    Snapshot {
        links: vec![
            link(ETH0, "eth0"),
            Link {
                path_mtu_discovery: Some(true),
                ..tunnel()
            },
        ],
        addresses: vec![address(ETH0, "172.18.0.11/24"), address(TUNL0, "10.65.1.0/32")],
        routes: vec![
            route("172.18.0.0/24", None, ETH0, 2),
            Route::blackhole(RouteKey::main("10.65.1.0/26".parse().unwrap()), BIRD),
            route("10.65.2.0/26", Some("172.18.0.12"), TUNL0, BIRD),
            route("10.65.3.0/26", Some("172.18.0.13"), TUNL0, BIRD),
            // A pod of this node, as Calico's own agent writes it.
            route("10.65.1.7/32", None, ETH0, 80),
        ],
        forwarding: true,
        ..Snapshot::default()
    }
}

#[test]
fn a_node_that_bird_routes_as_we_would_is_taken_over_as_it_is() {
    let shadow = compare(
        &settings("node1", "172.18.0.11"),
        &cluster(),
        &Actual::new(kernel()),
    );
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
    for there in &mut kernel.routes {
        if there.key.prefix.to_string() == "10.65.3.0/26" {
            *there = route("10.65.3.0/26", Some("172.18.0.12"), TUNL0, BIRD);
        }
    }
    kernel
        .routes
        .push(route("10.65.9.0/26", Some("172.18.0.19"), TUNL0, BIRD));
    kernel.forwarding = false;
    let shadow = compare(
        &settings("node1", "172.18.0.11"),
        &cluster(),
        &Actual::new(kernel),
    );
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
    cluster.upsert(&node("node1", "172.18.0.99/24"));
    cluster.remove(&affinity("node1", "10.65.1.0/26").key());
    let shadow = compare(
        &settings("node1", "172.18.0.11"),
        &cluster,
        &Actual::new(kernel()),
    );
    assert_eq!(
        shadow.writes,
        [
            "Node node1: its advertised address becomes 172.18.0.11",
            "a first block is claimed for this node",
            "an address is assigned for tunl0",
        ]
    );
}
