//! Tables: what the datastore says, and what should be; and what is said of what was refused.

use super::*;
use crate::api::{IpPool, Key, Kind, Node, NodeAddress, Object, annotation};

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// A Node that advertises `advertised` (nothing if empty) and whose status names `others`.
fn node(name: &str, advertised: &str, others: &[&str]) -> Object {
    let mut node = Node::named(name);
    if !advertised.is_empty() {
        let annotations = &mut node.metadata.annotations;
        annotations.insert(annotation::IPV4_ADDRESS.to_owned(), advertised.to_owned());
    }
    let addresses = others.iter().map(|address| NodeAddress {
        r#type: "InternalIP".into(),
        address: (*address).into(),
    });
    node.status.addresses = addresses.collect();
    Object::Node(node)
}

fn pool(name: &str, fields: &str) -> Object {
    let yaml = format!("metadata: {{name: {name}}}\nspec: {{{fields}}}");
    let pool: IpPool = serde_yaml::from_str(&yaml).unwrap();
    Object::IpPool(pool)
}

/// The field case: each node has two addresses, all but the first are known by their second.
fn objects() -> Vec<Object> {
    vec![
        node("node1", "192.168.0.110/24", &["192.168.0.110"]),
        node(
            "node4",
            "192.168.3.113/24",
            &["192.168.0.113", "node4", "fd00::113"],
        ),
        node("node5", "", &["192.168.0.114"]),
        pool(
            "outgoing",
            "cidr: 10.65.0.0/16, natOutgoing: true, ipipMode: Always",
        ),
        pool("inside", "cidr: 10.66.0.0/16"),
        pool("closed", "cidr: 10.67.0.0/16, natOutgoing: true, disabled: true"),
        pool("six", "cidr: 'fd00:65::/48', natOutgoing: true"),
    ]
}

fn cluster(objects: &[Object]) -> Cluster {
    let mut cluster = Cluster::default();
    for object in objects {
        cluster.upsert(object);
    }
    cluster
}

fn of_node1(cluster: &Cluster) -> Option<Wanted> {
    wanted(
        "node1",
        address("192.168.0.110"),
        UnknownTunnelPeers::Drop,
        cluster,
    )
}

#[test]
fn every_advertised_address_is_admitted_and_every_pool_with_nat_outgoing_is_masqueraded() {
    let filter = of_node1(&cluster(&objects())).unwrap().filter;
    let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
    let expected = Filter {
        unknown_tunnel_peers: UnknownTunnelPeers::Drop,
        nodes: [address("192.168.0.110"), address("192.168.3.113")].into(),
        pools: [net("10.65.0.0/16"), net("10.66.0.0/16"), net("10.67.0.0/16")].into(),
        masqueraded: [net("10.65.0.0/16"), net("10.67.0.0/16")].into(),
    };
    assert_eq!(filter, expected);
}

#[test]
fn unknown_peers_are_refused_only_where_a_pool_is_tunnelled_and_the_configuration_wants_it() {
    let of = |pool_fields: &str, policy| {
        let cluster = cluster(&[node("node1", "192.168.0.110/24", &[]), pool("pool", pool_fields)]);
        let wanted = wanted("node1", address("192.168.0.110"), policy, &cluster);
        wanted.unwrap().filter.unknown_tunnel_peers
    };
    let (drop, off) = (UnknownTunnelPeers::Drop, UnknownTunnelPeers::Off);
    assert_eq!(of("cidr: 10.65.0.0/16, ipipMode: Always", drop), drop);
    assert_eq!(of("cidr: 10.65.0.0/16, ipipMode: CrossSubnet", drop), drop);
    assert_eq!(
        of("cidr: 10.65.0.0/16, ipipMode: Never", drop),
        off,
        "another's tunnels are not ours"
    );
    assert_eq!(of("cidr: 10.65.0.0/16, ipipMode: Always", off), off);
}

#[test]
fn the_order_in_which_objects_come_makes_no_difference() {
    let mut reversed = objects();
    reversed.reverse();
    assert_eq!(of_node1(&cluster(&reversed)), of_node1(&cluster(&objects())));
}

#[test]
fn nothing_is_wanted_while_the_list_of_nodes_does_not_hold_this_node_with_an_address() {
    assert_eq!(of_node1(&Cluster::default()), None);
    let mut cluster = cluster(&objects());
    assert!(of_node1(&cluster).is_some());
    cluster.remove(&Key::new(Kind::Node, "node1"));
    assert_eq!(of_node1(&cluster), None, "the others alone are not the cluster");
    cluster.upsert(&node("node1", "", &["192.168.0.110"]));
    assert_eq!(of_node1(&cluster), None);
}

#[test]
fn this_nodes_own_address_is_admitted_even_while_another_one_is_published() {
    let former = cluster(&[node("node1", "192.168.0.99/24", &[])]);
    let filter = of_node1(&former).unwrap().filter;
    assert!(filter.nodes.contains(&address("192.168.0.110")));
}

#[test]
fn whoever_sent_what_was_refused_is_named_with_what_to_do() {
    let wanted = of_node1(&cluster(&objects())).unwrap();
    for (source, packets, sentence) in [
        (
            "192.168.0.113",
            5,
            "5 packets from 192.168.0.113, which no node advertises; node4 advertises 192.168.3.113 and owns that \
             address: its source pin is missing",
        ),
        (
            "192.168.0.114",
            1,
            "1 packet from 192.168.0.114, which no node advertises; node5 owns that address and advertises none: look \
             whether its agent runs and has found its address",
        ),
        (
            "10.66.1.2",
            2,
            "2 packets from 10.66.1.2, which no node advertises; it is a pod's, of the pool 10.66.0.0/16: a pod sends \
             packets of protocol 4 by itself",
        ),
        (
            "203.0.113.9",
            2,
            "2 packets from 203.0.113.9, which no node advertises; no Node object names it either: a node that has left \
             the cluster, another cluster, or forged",
        ),
    ] {
        assert_eq!(
            wanted.sentence(address(source), packets).as_deref(),
            Some(sentence)
        );
    }
    assert_eq!(
        wanted.sentence(address("192.168.3.113"), 5),
        None,
        "it is a node's by now"
    );
}

#[test]
fn a_source_is_told_once_a_burst() {
    const NONE: [Ipv4Addr; 0] = [];
    let (first, second) = (address("192.0.2.1"), address("192.0.2.2"));
    let mut refused = Refused::default();
    let mut take = |seconds, read: &[(Ipv4Addr, u64)]| {
        let read = read.iter().copied().collect();
        refused.take(Duration::from_secs(seconds), &read)
    };
    assert_eq!(take(0, &[(first, 5)]), [first], "it is new");
    assert_eq!(take(5, &[(first, 9)]), NONE, "the burst goes on");
    assert_eq!(take(10, &[(first, 9), (second, 1)]), [second]);
    assert_eq!(
        take(64, &[(first, 10), (second, 1)]),
        NONE,
        "not a minute of silence"
    );
    assert_eq!(take(124, &[(first, 10), (second, 1)]), NONE, "silence");
    assert_eq!(take(129, &[(first, 11), (second, 1)]), [first], "it begins anew");
    assert_eq!(take(200, &[(second, 1)]), NONE, "forgotten after an hour");
    assert_eq!(take(205, &[(first, 1), (second, 1)]), [first], "and new again");
}

#[test]
fn what_was_read_last_is_what_is_told() {
    let mut refused = Refused::default();
    let read = BTreeMap::from([(address("192.0.2.1"), 5), (address("192.0.2.2"), 1)]);
    refused.take(Duration::ZERO, &read);
    assert!(refused.by_source().eq(read));
    refused.take(Duration::ZERO, &BTreeMap::new());
    assert_eq!(refused.by_source().count(), 0);
}
