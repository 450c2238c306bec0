//! What the tests of several modules make their nodes and kernels of: a NIC, a tunnel, routes, nodes, pools, blocks.

use culvert_ipam::affinity::{Affinity, AffinityState};

use crate::api::{BlockAffinity, IpPool, Node, Object, annotation};
use crate::desired::Settings;
use crate::fib::{Address, Link, NextHop, Route, RouteKey, RouteKind, SCOPE_LINK, SCOPE_UNIVERSE, Snapshot};
use crate::peering::Speaking;
use crate::status::{AgentStatus, DatastoreStatus, PeerStatus, PeerType, RouteStatus};

/// The index of the first NIC.
pub(crate) const ETH0: u32 = 2;
/// The index of the tunnel.
pub(crate) const TUNL0: u32 = 3;

/// An agent of this node, known by this address, with all else as it is by default and no pins.
pub(crate) fn settings(node: &str, address: &str) -> Settings {
    Settings {
        node: node.to_owned(),
        address: address.parse().unwrap(),
        speaking: Speaking::default(),
        protocol: 86,
        tunnel_mtu: None,
        path_mtu_discovery: None,
        pin_table: None,
    }
}

/// A link that is up and takes packets of 1500 bytes.
pub(crate) fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        up: true,
        running: true,
        mtu: 1500,
        kind: None,
        path_mtu_discovery: None,
    }
}

/// `tunl0`, over a NIC of 1500 bytes.
pub(crate) fn tunnel() -> Link {
    Link {
        mtu: 1480,
        kind: Some("ipip".to_owned()),
        ..link(TUNL0, "tunl0")
    }
}

/// An address with its prefix length, on a link.
pub(crate) fn address(link: u32, net: &str) -> Address {
    Address {
        link,
        net: net.parse().unwrap(),
    }
}

/// A kernel with a NIC for each of these names, and its address.
pub(crate) fn addressed(addresses: &[(&str, &str)]) -> Snapshot {
    let indexed = || (1..).zip(addresses);
    Snapshot {
        links: indexed().map(|(index, (name, _))| link(index, name)).collect(),
        addresses: indexed().map(|(index, (_, net))| address(index, net)).collect(),
        ..Snapshot::default()
    }
}

/// A route of the main table: through a router (`onlink` where that is across the tunnel), or to what is connected.
pub(crate) fn route(prefix: &str, gateway: Option<&str>, link: u32, protocol: u8) -> Route {
    Route {
        key: RouteKey::main(prefix.parse().unwrap()),
        kind: RouteKind::Unicast,
        next_hops: vec![NextHop {
            gateway: gateway.map(|address| address.parse().unwrap()),
            link,
            onlink: gateway.is_some() && link == TUNL0,
            weight: 1,
        }],
        source: None,
        protocol,
        scope: if gateway.is_some() {
            SCOPE_UNIVERSE
        } else {
            SCOPE_LINK
        },
        mtu: None,
    }
}

/// A node that is known by this address of IPv4.
pub(crate) fn node(name: &str, address: &str) -> Object {
    let mut node = Node::named(name);
    node.metadata
        .annotations
        .insert(annotation::IPV4_ADDRESS.to_owned(), address.to_owned());
    Object::Node(node)
}

/// A pool with these fields of its `spec`, in YAML.
pub(crate) fn pool(name: &str, fields: &str) -> Object {
    let yaml = format!("metadata: {{name: {name}}}\nspec: {{{fields}}}");
    Object::IpPool(serde_yaml::from_str::<IpPool>(&yaml).unwrap())
}

/// A node's confirmed claim to a block.
pub(crate) fn affinity(node: &str, cidr: &str) -> Object {
    affinity_in(AffinityState::Confirmed, node, cidr)
}

/// A node's claim to a block, in any state.
pub(crate) fn affinity_in(state: AffinityState, node: &str, cidr: &str) -> Object {
    let spec = Affinity {
        state,
        ..Affinity::pending(node, cidr.parse().unwrap())
    };
    let name = format!("{node}-{cidr}").replace(['.', ':', '/'], "-");
    Object::BlockAffinity(BlockAffinity::new(name, spec))
}

/// A peer of the mesh that has been in this state since 1970, and has exchanged nothing.
pub(crate) fn mesh_peer(address: &str, state: &str) -> PeerStatus {
    PeerStatus {
        address: address.parse().unwrap(),
        node: None,
        r#type: PeerType::Mesh,
        state: state.to_owned(),
        since: jiff::Timestamp::UNIX_EPOCH,
        reason: None,
        prefixes_received: 0,
        prefixes_sent: 0,
        established_count: 0,
        failures: 0,
        failed: None,
        stale: false,
        outer_source: None,
    }
}

/// The status of a node with which nothing is wrong.
pub(crate) fn settled() -> AgentStatus {
    AgentStatus {
        node: "a".into(),
        datastore: DatastoreStatus {
            in_sync: true,
            problem: None,
        },
        pools: 1,
        blocks: vec!["10.65.42.0/26".parse().unwrap()],
        routes: RouteStatus {
            desired: 4,
            programmed: 4,
            ..RouteStatus::default()
        },
        ..AgentStatus::default()
    }
}
