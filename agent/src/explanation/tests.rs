//! A destination, what is known of the way to it, and what is said of that.

use culvert_bgp::id::NextHop as BgpNextHop;
use culvert_bgp::rib::decision::Verdict;
use culvert_bgp::speaker::PathView;
use culvert_bgp::wire::message::PathAttributes;
use std::sync::Arc;

use super::*;
use crate::desired::{self, Learned};
use crate::fib::{Link, RouteKey, Snapshot};
use crate::fixtures::{ETH0, TUNL0, address, affinity, link, node, pool, route, settings, tunnel};
use crate::inquiry::Undone;
use crate::reconcile::Actual;
use crate::status::{DatastoreStatus, PeerStatus, PeerType, SourceMismatch};

const VETH: u32 = 4;

/// The kernel of node1 with `routes` beside those of its NIC.
fn kernel(routes: &[Route]) -> Snapshot {
    let mut all = vec![
        route("192.168.3.0/24", None, ETH0, 2),
        route("0.0.0.0/0", Some("192.168.3.1"), ETH0, 3),
    ];
    all.extend_from_slice(routes);
    Snapshot {
        links: vec![
            link(ETH0, "eth0"),
            tunnel(),
            Link {
                kind: Some("veth".to_owned()),
                ..link(VETH, "cali12345678901")
            },
        ],
        addresses: vec![address(ETH0, "192.168.3.111/24")],
        routes: all,
        forwarding: true,
        ..Snapshot::default()
    }
}

/// Two nodes on one subnet, with a block each.
struct World {
    cluster: Cluster,
    status: AgentStatus,
    /// What is announced, and the next hop that is told.
    announced: Option<(&'static str, &'static str)>,
}

impl World {
    fn new(mode: &str) -> Self {
        let mut cluster = Cluster::default();
        for object in [
            node("node0", "192.168.3.110/24"),
            node("node1", "192.168.3.111/24"),
            pool("pods", &format!("cidr: 10.122.0.0/16, ipipMode: {mode}")),
            affinity("node0", "10.122.17.64/26"),
            affinity("node1", "10.122.42.0/26"),
        ] {
            cluster.upsert(&object);
        }
        let status = AgentStatus {
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            peers: vec![peer("Established", None)],
            ..AgentStatus::starting("node1")
        };
        Self {
            cluster,
            status,
            announced: Some(("10.122.17.64/26", "192.168.3.110")),
        }
    }

    fn explain(&self, destination: &str, kernel: Snapshot) -> Explanation {
        let destination = destination.parse().unwrap();
        self.ask(kernel, |known, view| {
            let view = view.filter(|view| view.prefix.net().contains(&destination));
            explain(known, destination, view.as_ref())
        })
    }

    fn wrong(&self, kernel: Snapshot) -> Vec<String> {
        let wrong = self.ask(kernel, |known, _| wrong_destinations(known));
        wrong.iter().map(ToString::to_string).collect()
    }

    fn ask<T>(&self, kernel: Snapshot, question: impl FnOnce(&Known<'_>, Option<RouteView>) -> T) -> T {
        let actual = Actual::new(kernel);
        let peer: IpAddr = "192.168.3.110".parse().unwrap();
        let announced = self.announced.map(|(prefix, next_hop)| {
            let prefix = Prefix::new(prefix.parse().unwrap());
            let address = next_hop.parse().unwrap();
            (prefix, BgpNextHop { address, peer })
        });
        let learned: Learned = announced
            .map(|(prefix, hop)| (prefix, vec![hop]))
            .into_iter()
            .collect();
        let view = announced.map(|(prefix, hop)| RouteView {
            prefix,
            local: false,
            next_hops: vec![hop],
            paths: vec![PathView {
                peer,
                path_id: 0,
                attributes: Arc::new(PathAttributes::new(hop.address)),
                verdict: Verdict::Best,
            }],
            rejected: Vec::new(),
        });
        let settings = settings("node1", "192.168.3.111");
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
            undone: Undone::default(),
            refused: &|_| None,
        };
        question(&known, view)
    }
}

fn peer(state: &str, reason: Option<&str>) -> PeerStatus {
    PeerStatus {
        address: "192.168.3.110".parse().unwrap(),
        node: Some("node0".to_owned()),
        r#type: PeerType::Mesh,
        state: state.to_owned(),
        since: "2026-11-21T10:00:00Z".parse().unwrap(),
        reason: reason.map(str::to_owned),
        prefixes_received: 1,
        prefixes_sent: 1,
        established_count: 1,
        failures: 0,
        failed: None,
        stale: false,
        outer_source: Some("192.168.3.111".parse().unwrap()),
    }
}

#[test]
fn destinations_are_wrong_whose_routes_are_missing_others_or_taken_by_others() {
    let own = Route::blackhole(RouteKey::main("10.122.42.0/26".parse().unwrap()), 86);
    let pod = route("10.122.42.1/32", None, VETH, 3);
    let world = World::new("Always");
    let mut well = vec![right(), own, pod];
    assert_eq!(world.wrong(kernel(&well)), Vec::<String>::new());
    // A narrower one of somebody else's, and one outside of all pools.
    well.push(route("10.122.17.70/32", Some("192.168.3.7"), ETH0, 4));
    well.push(route("172.16.0.0/12", Some("192.168.3.7"), ETH0, 4));
    assert_eq!(world.wrong(kernel(&well)), ["10.122.17.70/32"]);
    // And nothing of ours.
    assert_eq!(world.wrong(kernel(&[])), ["10.122.17.64/26", "10.122.42.0/26"]);
    let mut rejecting = World::new("Always");
    rejecting
        .status
        .routes
        .rejected
        .push(crate::status::RouteProblem {
            route: "10.122.99.0/26".to_owned(),
            reason: "its next hop is nobody".to_owned(),
        });
    well.truncate(3);
    assert_eq!(rejecting.wrong(kernel(&well)), ["10.122.99.0/26"]);
}

fn right() -> Route {
    route("10.122.17.64/26", Some("192.168.3.110"), TUNL0, 86)
}

/// The only finding.
fn finding(explained: &Explanation) -> &str {
    let [finding] = explained.findings.as_slice() else {
        panic!("{:#?}", explained.findings)
    };
    finding
}

#[test]
fn where_all_is_well_each_part_is_told_and_nothing_is_found() {
    let world = World::new("Always");
    let text = world.explain("10.122.17.70/32", kernel(&[right()])).render();
    assert_eq!(
        text,
        "\
Destination    10.122.17.70, seen from node node1 (192.168.3.111)
Pool           pods (10.122.0.0/16), ipipMode Always
Block          10.122.17.64/26 of node node0, known by 192.168.3.110
BGP            10.122.17.64/26 via 192.168.3.110 from 192.168.3.110 (node0): best
Encapsulation  IPIP: ipipMode of pool pods is Always
Outer header   192.168.3.111 to 192.168.3.110, and so says the kernel
Expected route 10.122.17.64/26 via 192.168.3.110 dev tunl0 proto 86 onlink
Kernel route   10.122.17.64/26 via 192.168.3.110 dev tunl0 proto 86 onlink
Finding        nothing is wrong on this node
"
    );
}

#[test]
fn a_next_hop_inside_the_pod_network_is_named_as_what_it_is() {
    let wrong = route("10.122.17.64/26", Some("10.122.127.128"), TUNL0, 12);
    let explained = World::new("Always").explain("10.122.17.64/26", kernel(&[wrong]));
    assert_eq!(
        explained.findings,
        [
            "wrong next hop: the kernel sends 10.122.17.64/26 to 10.122.127.128, which lies inside the pool \
             10.122.0.0/16: that is an address of the pod network, no node is there, and the packets are lost",
            "the kernel has `10.122.17.64/26 via 10.122.127.128 dev tunl0 proto bird onlink` (protocol bird), and should \
             have `10.122.17.64/26 via 192.168.3.110 dev tunl0 proto 86 onlink`; by hand: ip route replace \
             10.122.17.64/26 via 192.168.3.110 dev tunl0 proto 86 onlink",
        ]
    );
}

#[test]
fn a_peer_that_announces_such_a_next_hop_is_named_and_the_owner_with_it() {
    let mut world = World::new("Always");
    world.announced = Some(("10.122.17.64/26", "10.122.127.128"));
    let explained = world.explain("10.122.17.70/32", kernel(&[]));
    let [announced, rejected] = explained.findings.as_slice() else {
        panic!("{explained:#?}")
    };
    assert_eq!(
        announced,
        "BGP sends packets to 10.122.127.128, but 10.122.17.64/26 belongs to node node0, known by 192.168.3.110: look at \
         what 10.122.127.128 announces, and at the agent of node0"
    );
    assert!(
        rejected.contains("next hop 10.122.127.128 lies inside the pool 10.122.0.0/16"),
        "{rejected}"
    );
}

#[test]
fn a_wrong_outer_source_is_named_with_both_addresses() {
    let mut world = World::new("Always");
    world.status.peers[0].outer_source = Some("192.168.0.111".parse().unwrap());
    world.status.sources.mismatches = vec![SourceMismatch {
        peer: "192.168.3.110".parse().unwrap(),
        source: "192.168.0.111".parse().unwrap(),
        problem: "packets would leave with 192.168.0.111".to_owned(),
    }];
    let explained = world.explain("10.122.17.70/32", kernel(&[right()]));
    assert_eq!(
        finding(&explained),
        "wrong outer source: packets would leave with 192.168.0.111"
    );
    assert!(
        explained
            .render()
            .contains("192.168.3.111 to 192.168.3.110, but the kernel says 192.168.0.111")
    );
}

#[test]
fn a_block_that_nobody_announces_leads_to_the_session_with_its_node() {
    let mut world = World::new("Always");
    world.announced = None;
    world.status.peers = vec![peer("Active", Some("connection refused"))];
    let explained = world.explain("10.122.17.70/32", kernel(&[]));
    assert_eq!(
        finding(&explained),
        "node node0 owns 10.122.17.64/26, and the BGP session with it (192.168.3.110) is Active since \
         2026-11-21T10:00:00Z: connection refused"
    );
    world.status.peers = vec![peer("Established", None)];
    let explained = world.explain("10.122.17.70/32", kernel(&[]));
    assert!(finding(&explained).contains("does not announce it, though the session with it is up"));
    world.status.peers.clear();
    let explained = world.explain("10.122.17.70/32", kernel(&[]));
    assert!(finding(&explained).contains("is no BGP peer of this one"));
}

#[test]
fn a_route_that_the_kernel_lacks_is_named() {
    let explained = World::new("Always").explain("10.122.17.70/32", kernel(&[]));
    assert!(
        finding(&explained)
            .starts_with("the kernel lacks `10.122.17.64/26 via 192.168.3.110 dev tunl0 proto 86 onlink`"),
        "{explained:#?}"
    );
}

#[test]
fn a_narrower_route_of_another_program_is_found() {
    let narrower = route("10.122.17.64/28", Some("192.168.3.1"), ETH0, 4);
    let explained = World::new("Always").explain("10.122.17.70/32", kernel(&[right(), narrower]));
    let finding = finding(&explained);
    assert!(
        finding.starts_with(
            "a narrower route, of protocol static, has the packets: `10.122.17.64/28 via 192.168.3.1"
        ),
        "{finding}"
    );
}

#[test]
fn cross_subnet_says_which_subnet_decides() {
    let direct = route("10.122.17.64/26", Some("192.168.3.110"), ETH0, 86);
    let explained = World::new("CrossSubnet").explain("10.122.17.70/32", kernel(&[direct]));
    assert_eq!(
        explained.encapsulation.as_deref(),
        Some(
            "none: ipipMode of pool pods is CrossSubnet, and 192.168.3.110 is in this node's subnet 192.168.3.0/24 (eth0)"
        )
    );
    assert_eq!(explained.outer, None);
}

#[test]
fn an_address_of_this_nodes_own_block_is_a_pods_or_dropped() {
    let world = World::new("Always");
    let blackhole = Route::blackhole(RouteKey::main("10.122.42.0/26".parse().unwrap()), 86);
    let nobody = world.explain("10.122.42.7/32", kernel(std::slice::from_ref(&blackhole)));
    assert!(
        finding(&nobody).starts_with("no pod on this node has 10.122.42.7: "),
        "{nobody:#?}"
    );
    let pod = route("10.122.42.7/32", None, VETH, 3);
    let there = world.explain("10.122.42.7/32", kernel(&[blackhole, pod]));
    assert_eq!(there.findings, Vec::<String>::new());
    assert_eq!(
        there.kernel.as_deref(),
        Some("10.122.42.7 dev cali12345678901 scope link")
    );
}

#[test]
fn what_lies_outside_of_all_pools_and_blocks_is_said_so() {
    let world = World::new("Always");
    let outside = world.explain("8.8.8.8/32", kernel(&[]));
    assert!(
        finding(&outside).starts_with("8.8.8.8/32 lies in no IPPool"),
        "{outside:#?}"
    );
    let unowned = world.explain("10.122.99.1/32", kernel(&[]));
    assert!(
        finding(&unowned)
            .starts_with("no node owns a block around 10.122.99.1/32 in pool pods (10.122.0.0/16)"),
        "{unowned:#?}"
    );
}

#[test]
fn the_ranges_around_an_address_are_asked_for_from_the_narrowest() {
    let ranges = around("10.65.17.70/32".parse().unwrap());
    assert_eq!(ranges.len(), 33);
    assert_eq!(ranges[0].to_string(), "10.65.17.70/32");
    assert_eq!(ranges[6].to_string(), "10.65.17.64/26");
    assert_eq!(ranges[32].to_string(), "0.0.0.0/0");
}
