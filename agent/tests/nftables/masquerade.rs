//! Real packets through a forwarding namespace, and the source that is seen at the far end.

use std::net::UdpSocket;
use std::process::Command;

use culvert_agent::dataplane::Nftables;
use culvert_agent::filter::Filter;

use crate::netns::in_namespace;
use crate::world::{Host, address, admitting, ip, source_seen, udp};

/// A node with pods of two pools, of which the first has natOutgoing; another node, 198.51.100.7, with a pod 10.65.9.9;
/// and 198.51.100.9, which is neither. The tunnel is a veth of its name: this kernel may have no ipip.
struct Cluster {
    pods: Host,
    outside: Host,
}

async fn cluster() -> Cluster {
    let pods = Host::joined("cali0", "10.65.0.1/24", &["10.65.0.5/24", "10.66.0.5/24"]);
    pods.run(|| ip("route add default via 10.65.0.1"));
    ip("route add 10.66.0.0/24 dev cali0");
    let outside = Host::joined("u0", "198.51.100.1/24", &["198.51.100.7/24", "198.51.100.9/24"]);
    outside.run(|| {
        ip("addr add 10.65.9.9/32 dev lo");
        ip("route add 10.65.0.0/24 via 198.51.100.1");
        ip("route add 10.66.0.0/24 via 198.51.100.1");
    });
    ip("route add 10.65.9.0/24 via 198.51.100.7");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    let filter = Filter {
        pools: ["10.65.0.0/16", "10.66.0.0/16"]
            .map(|net| net.parse().unwrap())
            .into(),
        masqueraded: ["10.65.0.0/16".parse().unwrap()].into(),
        ..admitting(&["198.51.100.1", "198.51.100.7"])
    };
    Nftables::open().unwrap().apply(&filter).await.unwrap();
    Cluster { pods, outside }
}

impl Cluster {
    fn seen(&self, pod: &str, destination: &str) -> std::net::IpAddr {
        let from = self.pods.udp(&format!("{pod}:0"));
        source_seen(&from, destination, &self.outside.udp(destination)).ip()
    }
}

#[test]
fn what_leaves_the_cluster_from_a_pool_with_nat_outgoing_has_the_nodes_address() {
    in_namespace(|| async {
        let cluster = cluster().await;
        assert_eq!(
            cluster.seen("10.65.0.5", "198.51.100.9:5000"),
            address("198.51.100.1")
        );
    });
}

#[test]
fn a_pool_without_nat_outgoing_is_left_alone() {
    in_namespace(|| async {
        let cluster = cluster().await;
        assert_eq!(
            cluster.seen("10.66.0.5", "198.51.100.9:5000"),
            address("10.66.0.5")
        );
    });
}

#[test]
fn to_pods_and_nodes_a_pod_is_seen_as_itself() {
    in_namespace(|| async {
        let cluster = cluster().await;
        assert_eq!(cluster.seen("10.65.0.5", "10.65.9.9:5000"), address("10.65.0.5"));
        assert_eq!(
            cluster.seen("10.65.0.5", "198.51.100.7:5000"),
            address("10.65.0.5")
        );
    });
}

#[test]
fn through_the_tunnel_this_hosts_other_addresses_become_the_tunnels_and_nobody_elses_do() {
    in_namespace(|| async {
        let cluster = cluster().await;
        // Where the kernel has ipip it has made one by itself, which cannot be removed.
        let _ = Command::new("ip")
            .args(["link", "set", "tunl0", "name", "tunl-own"])
            .output();
        let remote = Host::joined("tunl0", "10.65.0.64/32", &[]);
        remote.run(|| {
            ip("addr add 10.65.8.8/32 dev lo");
            ip("route add default dev eth0");
        });
        ip("route add 10.65.8.0/24 dev tunl0");
        let there: UdpSocket = remote.udp("10.65.8.8:5000");
        let seen = |from: &UdpSocket| source_seen(from, "10.65.8.8:5000", &there);

        // As a connection to a service has it: its source was chosen for another destination.
        assert_eq!(seen(&udp("198.51.100.1:0")).ip(), address("10.65.0.64"));
        let own = udp("10.65.0.64:0");
        assert_eq!(
            seen(&own),
            own.local_addr().unwrap(),
            "its own address keeps its port, too"
        );
        let pod = cluster.pods.udp("10.65.0.5:0");
        assert_eq!(seen(&pod), pod.local_addr().unwrap());
    });
}
