//! Routes to the blocks of nodes behind a path that takes less than the NIC: from the host's own routes through the plan
//! to the kernel, and back.

use culvert_agent::api::{IpPool, Node, Object, annotation};
use culvert_agent::cluster::Cluster;
use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::desired::{Known, Learned, Settings, plan};
use culvert_agent::fib::{Change, Desired};
use culvert_agent::reconcile::{Actual, Removal, diff};
use culvert_bgp::id::{NextHop, Prefix};

use crate::netns::{OURS, in_namespace, ip, underlay};

/// This node, one on its subnet, and one behind a router.
fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for (name, address) in [
        ("node1", "172.18.0.1/24"),
        ("node2", "172.18.0.12/24"),
        ("node3", "172.19.0.13/24"),
    ] {
        let mut node = Node::named(name);
        let published = (annotation::IPV4_ADDRESS.to_owned(), address.to_owned());
        node.metadata.annotations.extend([published]);
        cluster.upsert(&Object::Node(node));
    }
    let pool = "metadata: {name: pool}\nspec: {cidr: 10.65.0.0/16, ipipMode: CrossSubnet}";
    cluster.upsert(&Object::IpPool(serde_yaml::from_str::<IpPool>(pool).unwrap()));
    cluster
}

fn learned() -> Learned {
    let blocks = [
        ("10.65.17.64/26", "172.18.0.12"),
        ("10.65.99.0/26", "172.19.0.13"),
    ];
    let learned = blocks.map(|(block, node)| {
        let (address, peer) = (node.parse().unwrap(), node.parse().unwrap());
        (
            Prefix::new(block.parse().unwrap()),
            vec![NextHop { address, peer }],
        )
    });
    Learned::from(learned)
}

/// Plans and applies until there is nothing left to do: all changes that it took.
async fn converge(netlink: &Netlink) -> Vec<Change> {
    let settings = Settings {
        node: "node1".into(),
        address: "172.18.0.1".parse().unwrap(),
        speaking: culvert_agent::peering::Speaking::default(),
        protocol: OURS.protocol,
        tunnel_mtu: None,
        path_mtu_discovery: None,
        pin_table: Some(886),
    };
    let (cluster, learned) = (cluster(), learned());
    let mut taken = Vec::new();
    for _ in 0..4 {
        let actual = Actual::new(netlink.dump().await.unwrap());
        let known = Known {
            cluster: &cluster,
            learned: &learned,
            actual: &actual,
            converged: true,
        };
        let desired = Desired {
            // The device is the test's own.
            tunnel: None,
            ..plan(&settings, known).desired
        };
        let changes = diff(&desired, &actual, &OURS, Removal::Now);
        if changes.is_empty() {
            return taken;
        }
        for (change, result) in changes.iter().zip(netlink.apply(&changes).await) {
            result.unwrap_or_else(|why| panic!("{change:?}: {why}"));
        }
        taken.extend(changes);
    }
    panic!("four rounds, and there is still a difference");
}

/// The routes to the blocks, as iproute2 prints them.
fn shown() -> Vec<String> {
    let all = ip("route show proto 201");
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    all.lines().map(words).collect()
}

#[test]
fn a_narrower_path_is_told_to_the_kernel_once_and_taken_back_with_the_route_that_said_so() {
    in_namespace(async || {
        underlay();
        ip("route add 172.18.0.12 dev u0 mtu 1300");
        ip("route add 172.19.0.0/24 via 172.18.0.254 dev u0 mtu 1400");
        let netlink = Netlink::open().unwrap();
        let create = Change::CreateTunnel { name: "tunl0".into() };
        if netlink.apply(&[create]).await.remove(0).is_err() {
            // Without ipip any device of the name will do: no packet goes through it.
            ip("link add tunl0 type veth peer name tunl0-peer");
            ip("link set tunl0-peer up");
        }
        ip("link set tunl0 up");

        converge(&netlink).await;
        let narrow = [
            "10.65.17.64/26 via 172.18.0.12 dev u0 src 172.18.0.1 onlink mtu 1300",
            "10.65.99.0/26 via 172.19.0.13 dev tunl0 onlink mtu 1380",
        ];
        assert_eq!(shown(), narrow);
        // What ends `converge` is an empty difference; a new look at the kernel finds none either.
        assert_eq!(converge(&netlink).await, []);

        ip("route change 172.19.0.0/24 via 172.18.0.254 dev u0");
        let changes = converge(&netlink).await;
        assert!(!changes.is_empty());
        assert_eq!(
            shown(),
            [narrow[0], "10.65.99.0/26 via 172.19.0.13 dev tunl0 onlink"]
        );
    });
}
