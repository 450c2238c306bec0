//! A node that is well, and one fault after another.

use culvert_bgp::id::{NextHop as BgpNextHop, Prefix};

use super::*;
use crate::api::{BgpConfiguration, Object};
use crate::cluster::Cluster;
use crate::desired::{self, Learned, Settings};
use crate::fib::Snapshot;
use crate::fixtures::{ETH0, TUNL0, address, affinity, link, node, pool, route, tunnel};
use crate::inquiry::Undone;
use crate::peering::Speaking;
use crate::reconcile::Actual;
use crate::status::{AgentStatus, DatastoreStatus, PeerStatus, PeerType, RouteProblem, SourceMismatch};

mod filters;

const ETH1: u32 = 4;

/// Two NICs with a network each, and the tunnel.
fn kernel() -> Snapshot {
    Snapshot {
        links: vec![link(ETH0, "eth0"), tunnel(), link(ETH1, "eth1")],
        addresses: vec![
            address(ETH0, "192.168.0.113/24"),
            address(ETH1, "192.168.3.113/24"),
            address(TUNL0, "10.122.42.1/32"),
        ],
        routes: vec![
            route("192.168.0.0/24", None, ETH0, 2),
            route("192.168.3.0/24", None, ETH1, 2),
            route("0.0.0.0/0", Some("192.168.0.1"), ETH0, 3),
        ],
        forwarding: true,
        ..Snapshot::default()
    }
}

/// A node on two networks, and another that is known by its address on the second.
struct World {
    kernel: Snapshot,
    cluster: Cluster,
    status: AgentStatus,
    undone: Undone,
    /// A prefix, and the next hop that BGP has for it.
    learned: Option<(&'static str, &'static str)>,
    host: Host,
}

impl World {
    fn new() -> Self {
        let mut cluster = Cluster::default();
        let block = "10.122.42.0/26".parse().unwrap();
        for object in [
            node("node4", "192.168.3.113/24"),
            node("node2", "192.168.0.111/24"),
            pool("pods", "cidr: 10.122.0.0/16, ipipMode: Always"),
            affinity("node4", "10.122.42.0/26"),
        ] {
            cluster.upsert(&object);
        }
        let status = AgentStatus {
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            blocks: vec![block],
            pools: 1,
            peers: vec![PeerStatus {
                address: "192.168.0.111".parse().unwrap(),
                node: Some("node2".to_owned()),
                r#type: PeerType::Mesh,
                state: "Established".to_owned(),
                since: "2026-11-21T10:00:00Z".parse().unwrap(),
                reason: None,
                prefixes_received: 1,
                prefixes_sent: 1,
                established_count: 1,
                failures: 0,
                failed: None,
                stale: false,
                outer_source: Some("192.168.3.113".parse().unwrap()),
            }],
            ..AgentStatus::starting("node4")
        };
        Self {
            kernel: kernel(),
            cluster,
            status,
            undone: Undone {
                forwarding: 1,
                tunnel: 1,
            },
            learned: None,
            host: Host::default(),
        }
    }

    fn examine(self) -> Report {
        let settings = Settings {
            node: "node4".to_owned(),
            address: "192.168.3.113".parse().unwrap(),
            speaking: Speaking::default(),
            protocol: 86,
            tunnel_mtu: None,
            path_mtu_discovery: None,
            pin_table: None,
        };
        let actual = Actual::new(self.kernel);
        let learned: Learned = self
            .learned
            .iter()
            .map(|(prefix, next_hop)| {
                let address = next_hop.parse().unwrap();
                let hop = BgpNextHop {
                    address,
                    peer: address,
                };
                (Prefix::new(prefix.parse().unwrap()), vec![hop])
            })
            .collect();
        let plan = desired::plan(
            &settings,
            desired::Known {
                cluster: &self.cluster,
                learned: &learned,
                actual: &actual,
                converged: true,
            },
        );
        let known = Known {
            settings: &settings,
            cluster: &self.cluster,
            plan: &plan,
            actual: &actual,
            status: &self.status,
            undone: self.undone,
            refused: &|_| None,
        };
        examine(&known, &self.host)
    }
}

/// The only finding, of this check, with the fault made by `break_it`.
fn only(check: Check, break_it: impl FnOnce(&mut World)) -> Finding {
    let mut world = World::new();
    break_it(&mut world);
    let report = world.examine();
    let [finding] = report.findings.as_slice() else {
        panic!("{report:#?}")
    };
    assert_eq!(finding.check, check, "{finding:#?}");
    finding.clone()
}

#[test]
fn nothing_is_found_on_a_node_that_is_well() {
    let report = World::new().examine();
    assert_eq!(report.findings, []);
    let text = report.render();
    assert!(text.starts_with("Node node4\n  ok       agent\n"), "{text}");
    assert_eq!(text.lines().count(), Check::ALL.len() + 2, "{text}");
    assert!(text.ends_with("Nothing is wrong.\n"), "{text}");
}

#[test]
fn a_next_hop_inside_the_pod_network_is_found_with_the_command_that_mends_it() {
    let found = only(Check::NextHop, |world| {
        world
            .kernel
            .routes
            .push(route("10.122.17.64/26", Some("10.122.127.128"), TUNL0, 4));
    });
    assert_eq!(
        found.finding,
        "wrong next hop: 10.122.17.64/26 is sent to 10.122.127.128, an address inside the pool 10.122.0.0/16"
    );
    assert_eq!(
        found.cure,
        "ip route del 10.122.17.64/26 via 10.122.127.128 dev tunl0 proto static onlink"
    );
}

#[test]
fn a_strict_filter_on_the_nic_of_the_advertised_address_is_found_where_the_way_back_is_another() {
    let found = only(Check::ReversePath, |world| {
        world.kernel.strict.insert(ETH1);
        world.host.reverse_path_drops = 5;
    });
    assert_eq!(
        found.finding,
        "a strict reverse-path filter on eth1 drops packets of node 192.168.0.111"
    );
    assert!(found.evidence.contains("dropped 5 packets"), "{found:#?}");
    assert_eq!(found.cure, "sysctl -w net.ipv4.conf.eth1.rp_filter=2");
    assert_eq!(found.fix.unwrap().command(), found.cure);
    // Without a drop it may be that the packets come in elsewhere; on the other NIC it is no matter.
    for (nic, drops) in [(ETH1, 0), (ETH0, 5)] {
        let mut world = World::new();
        world.kernel.strict.insert(nic);
        world.host.reverse_path_drops = drops;
        assert_eq!(world.examine().findings, []);
    }
}

#[test]
fn forwarding_that_is_off_is_found() {
    let found = only(Check::Forwarding, |world| world.kernel.forwarding = false);
    assert!(
        found.evidence.starts_with("net.ipv4.ip_forward is 0"),
        "{found:#?}"
    );
    assert_eq!(found.fix.unwrap().command(), "sysctl -w net.ipv4.ip_forward=1");
    let undone = only(Check::Forwarding, |world| world.undone.forwarding = 3);
    assert_eq!(
        undone.finding,
        "something keeps switching forwarding off on this host"
    );
}

#[test]
fn an_advertised_address_that_is_gone_down_or_shared_is_found() {
    let down = only(Check::Address, |world| world.kernel.links[2].up = false);
    assert_eq!(down.cure, "ip link set eth1 up");
    let cut = only(Check::Address, |world| world.kernel.links[2].running = false);
    assert_eq!(cut.evidence, "eth1 is up, without a carrier");
    let gone = only(Check::Address, |world| {
        world.kernel.addresses.remove(1);
    });
    assert_eq!(
        gone.finding,
        "the advertised address 192.168.3.113 is on no link of this host"
    );
    let shared = only(Check::Address, |world| {
        world.cluster.upsert(&node("node5", "192.168.0.111/24"));
    });
    assert_eq!(shared.finding, "nodes node2 and node5 advertise one address");
}

#[test]
fn a_tunnel_that_is_missing_or_down_or_too_large_is_found() {
    let down = only(Check::Tunnel, |world| world.kernel.links[1].up = false);
    assert_eq!(down.finding, "the tunnel device tunl0 is down");
    let undone = only(Check::Tunnel, |world| world.undone.tunnel = 4);
    assert_eq!(undone.finding, "something keeps setting tunl0 down on this host");
    let missing = only(Check::Tunnel, |world| {
        world.kernel.links.remove(1);
        world.kernel.addresses.remove(2);
    });
    assert!(missing.cure.starts_with("modprobe ipip"), "{missing:#?}");
    let deleted = only(Check::Tunnel, |world| {
        world.host.has_ipip = true;
        world.kernel.links.remove(1);
        world.kernel.addresses.remove(2);
    });
    assert_eq!(deleted.cure, "ip link add tunl0 type ipip");
    let large = only(Check::Tunnel, |world| world.kernel.links[1].mtu = 1500);
    assert!(
        large.cure.starts_with("set tunnel.mtu to 1480 or less"),
        "{large:#?}"
    );
}

#[test]
fn a_wrong_outer_source_is_found_with_what_the_agent_says_of_it() {
    let found = only(Check::OuterSource, |world| {
        world.status.sources.mismatches = vec![SourceMismatch {
            peer: "192.168.0.111".parse().unwrap(),
            source: "192.168.0.113".parse().unwrap(),
            problem: "node4: packets would leave with 192.168.0.113".to_owned(),
        }];
    });
    assert_eq!(
        found.consequence,
        "192.168.0.111 knows no node at 192.168.0.113, and may drop them"
    );
}

#[test]
fn a_session_that_is_down_is_found_with_its_reason_and_a_node_without_peers_too() {
    let down = only(Check::Sessions, |world| {
        world.status.peers[0].state = "Active".to_owned();
        world.status.peers[0].reason = Some("connection refused".to_owned());
    });
    assert_eq!(
        (down.finding.as_str(), down.evidence.as_str()),
        (
            "the BGP session with node node2 (192.168.0.111) is down",
            "Active since 2026-11-21T10:00:00Z: connection refused"
        )
    );
    let alone = only(Check::Sessions, |world| world.status.peers.clear());
    assert_eq!(alone.finding, "this node has no BGP peers");
}

#[test]
fn pools_that_overlap_each_other_the_hosts_networks_or_services_are_found() {
    let each_other = only(Check::Pools, |world| {
        world
            .cluster
            .upsert(&pool("more", "cidr: 10.122.128.0/17, ipipMode: Always"));
    });
    assert_eq!(each_other.finding, "pools more and pods overlap");
    let host = only(Check::Pools, |world| {
        world.kernel.addresses.push(address(ETH0, "10.122.9.1/24"));
    });
    assert_eq!(host.evidence, "10.122.0.0/16, and 10.122.9.0/24 on eth0");
    let around = only(Check::Pools, |world| {
        world
            .kernel
            .routes
            .push(route("10.0.0.0/8", Some("192.168.0.1"), ETH0, 4));
    });
    assert_eq!(
        around.evidence,
        "10.122.0.0/16, and `10.0.0.0/8 via 192.168.0.1 dev eth0 proto static`"
    );
    let services = only(Check::Pools, |world| {
        let yaml = "metadata: {name: default}\nspec: {serviceClusterIPs: [{cidr: 10.122.240.0/20}]}";
        let settings: BgpConfiguration = serde_yaml::from_str(yaml).unwrap();
        world.cluster.upsert(&Object::BgpConfiguration(settings));
    });
    assert_eq!(services.finding, "pool pods overlaps a range of services");
}

#[test]
fn what_the_kernel_refuses_and_what_other_daemons_do_is_found() {
    let failed = only(Check::Routes, |world| {
        world.status.routes.failed = vec![RouteProblem {
            route: "10.122.17.64/26".to_owned(),
            reason: "network is unreachable".to_owned(),
        }];
    });
    assert_eq!(failed.evidence, "network is unreachable");
    let bird = only(Check::Routes, |world| {
        world
            .kernel
            .routes
            .push(route("10.122.17.64/26", Some("192.168.0.111"), ETH0, 12));
    });
    assert!(bird.evidence.ends_with("protocol bird"), "{bird:#?}");
}

#[test]
fn what_the_agent_lacks_and_what_the_datastore_says_is_found() {
    let away = only(Check::Datastore, |world| {
        world.status.datastore.problem = Some("connection refused".to_owned());
    });
    assert_eq!(away.evidence, "connection refused");
    let held = only(Check::Datastore, |world| world.status.withdrawals_held = 12);
    assert!(held.cure.ends_with("culvert node accept-withdrawal"), "{held:#?}");
    let not_ready = only(Check::Agent, |world| world.status.blocks.clear());
    assert_eq!(not_ready.evidence, "node node4 has no block of pod addresses yet");
    let stranger = only(Check::Strangers, |world| {
        world.status.firewall.refused = vec!["5 packets from 192.168.0.113".to_owned()];
    });
    assert_eq!(stranger.evidence, "5 packets from 192.168.0.113");
}

#[test]
fn of_many_findings_of_a_kind_ten_are_told_and_the_others_counted() {
    let mut world = World::new();
    let down = PeerStatus {
        state: "Idle".to_owned(),
        ..world.status.peers[0].clone()
    };
    world.status.peers = vec![down; 13];
    let report = world.examine();
    assert_eq!(report.findings.len(), TOLD_OF_A_KIND);
    assert!(
        report.findings[9].finding.ends_with("(and 3 more of this kind)"),
        "{report:#?}"
    );
    assert!(report.render().ends_with("10 findings.\n"));
}

#[test]
fn a_way_that_takes_less_than_the_tunnel_sends_is_found() {
    let break_it = |world: &mut World, most| {
        world.cluster.upsert(&affinity("node2", "10.122.17.64/26"));
        world.learned = Some(("10.122.17.64/26", "192.168.0.111"));
        world
            .kernel
            .routes
            .push(route("10.122.17.64/26", Some("192.168.0.111"), TUNL0, 86));
        world.host.path_mtu.insert("192.168.0.111".parse().unwrap(), most);
    };
    let narrow = only(Check::Tunnel, |world| break_it(world, 1400));
    assert_eq!(
        narrow.finding,
        "the way to 192.168.0.111 takes smaller packets than pods send"
    );
    let mut world = World::new();
    break_it(&mut world, 1500);
    assert_eq!(world.examine().findings, []);
}

#[test]
fn a_pool_around_the_api_servers_service_is_found() {
    let found = only(Check::Pools, |world| {
        world.host.service = Some("10.122.0.1".parse().unwrap());
    });
    assert!(found.evidence.contains("is at 10.122.0.1"), "{found:#?}");
}

#[test]
fn blocks_of_nodes_that_are_gone_and_pools_that_are_used_up_are_found() {
    let orphan = only(Check::Blocks, |world| {
        world.cluster.upsert(&affinity("node9", "10.122.17.64/26"));
    });
    assert_eq!(
        orphan.finding,
        "block 10.122.17.64/26 belongs to the node node9, which does not exist"
    );
    let small = pool("pods", "cidr: 10.122.42.0/25, ipipMode: Always");
    let used_up = |world: &mut World| {
        world.cluster.upsert(&small);
        world.cluster.upsert(&affinity("node2", "10.122.42.64/26"));
        world.cluster.upsert(&block("10.122.42.0/26", 64));
    };
    let found = only(Check::Blocks, used_up);
    assert_eq!(
        found.evidence,
        "2 of 2 blocks of 10.122.42.0/25 are claimed, and of this node's 64 addresses 64 are in use"
    );
    // Another pool has room.
    let mut world = World::new();
    used_up(&mut world);
    world
        .cluster
        .upsert(&pool("more", "cidr: 10.123.0.0/16, ipipMode: Always"));
    assert_eq!(world.examine().findings, []);
}

/// A block of which so many addresses are in use.
fn block(cidr: &str, used: usize) -> Object {
    let taken: Vec<&str> = (0..64).map(|at| if at < used { "0" } else { "null" }).collect();
    let free: Vec<String> = (used..64).map(|at| at.to_string()).collect();
    let yaml = format!(
        "metadata: {{name: {}}}\nspec: {{cidr: {cidr}, affinity: 'host:node4', allocations: [{}], unallocated: [{}], \
         attributes: [{{handle_id: a, secondary: {{node: node4}}}}], deleted: false, strictAffinity: false}}",
        cidr.replace(['.', '/'], "-"),
        taken.join(", "),
        free.join(", "),
    );
    Object::IpamBlock(serde_yaml::from_str(&yaml).unwrap())
}

#[test]
fn routes_that_nothing_asks_for_are_found_once_the_peers_have_told_theirs() {
    let leave = |world: &mut World| {
        world
            .kernel
            .routes
            .push(route("10.122.17.64/26", Some("192.168.0.111"), TUNL0, 86));
    };
    let found = only(Check::Routes, |world| {
        leave(world);
        world.status.converged = true;
    });
    assert_eq!(
        found.finding,
        "a stale route of ours is left in the kernel: 10.122.17.64/26"
    );
    let mut world = World::new();
    leave(&mut world);
    assert_eq!(world.examine().findings, []);
}

#[test]
fn routes_of_any_routing_daemon_in_the_pod_network_are_found() {
    for (protocol, who) in [
        (11, "`proto zebra`"),
        (80, "Felix"),
        (12, "BIRD"),
        (189, "`proto rip`"),
    ] {
        let found = only(Check::Routes, |world| {
            let left = route("10.122.17.64/26", Some("192.168.0.111"), ETH0, protocol);
            world.kernel.routes.push(left);
        });
        assert!(found.cure.contains(who), "{found:#?}");
    }
    for protocol in [2, 3, 4, 9, 16] {
        let mut world = World::new();
        world
            .kernel
            .routes
            .push(route("10.122.17.64/26", None, ETH0, protocol));
        assert_eq!(world.examine().findings, [], "{protocol}");
    }
}
