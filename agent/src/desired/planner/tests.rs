//! Whatever happens, and however it is squashed and repeated: the plan that is kept is the one that would be made anew.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::api::{
    BgpConfiguration, BgpPeer, BlockAffinity, IpPool, IpamBlock, Key, Kind, Node, Object, annotation,
};
use crate::cluster::Cluster;
use crate::desired::{Learned, plan};
use crate::fib::{Address, Change, KernelEvent, NextHop, Snapshot};
use crate::reconcile::{Actual, Difference, Ours};
use culvert_bgp::id::NextHop as BgpNextHop;
use culvert_ipam::affinity::{Affinity, AffinityState};

const OURS: Ours = Ours { protocol: 86 };
const PIN_TABLE: u32 = 886;

/// This node's address first; two more on its subnet, two on another.
const ADDRESSES: [&str; 5] = [
    "172.18.0.11",
    "172.18.0.12",
    "172.18.0.14",
    "172.19.0.13",
    "172.19.0.15",
];

/// The same of IPv6: this node's, one on its subnet, one behind a router.
const ADDRESSES_V6: [&str; 3] = ["2001:db8::11", "2001:db8::12", "2001:db8:1::13"];
/// A router on this node's subnet, and one that is reached through it.
const ROUTERS: [&str; 2] = ["172.18.0.254", "192.0.2.1"];

/// Blocks, pods, and what lies in no pool.
const PREFIXES: [&str; 16] = [
    "10.65.42.0/26",
    "10.65.42.64/26",
    "10.65.42.7/32",
    "10.65.17.64/26",
    "fd00:65::/122",
    "fd00:65::47/128",
    "fd00:65::40/122",
    "10.66.0.0/26",
    "10.65.42.9/32",
    "192.168.7.0/24",
    "198.51.100.0/25",
    "0.0.0.0/0",
    "192.0.2.1/32",
    "172.19.0.0/16",
    "172.19.0.13/32",
    "2001:db8:1::/64",
];

/// So many of them are claimed now and then.
const CLAIMED: usize = 6;

/// What the host's own routes lead to.
const UNDERLAY: [&str; 12] = [
    "::/0",
    "2001:db8::/64",
    "2001:db8:1::13/128",
    "fd00:65::47/128",
    "0.0.0.0/0",
    "172.18.0.0/24",
    "172.19.0.0/16",
    "172.19.0.13/32",
    "172.18.0.1/32",
    "10.65.42.7/32",
    "10.65.42.0/26",
    "198.51.100.0/24",
];

#[derive(Clone, Debug)]
enum Event {
    Upsert(Box<Object>),
    Remove(Key),
    Learned(Prefix, Vec<BgpNextHop>),
    Kernel(KernelEvent),
    Applied(Change),
    /// The peers have told all.
    Converged,
    /// Something is said to have changed that has not.
    Noise(Prefix),
}

fn settings(pin_table: Option<u32>, has_v6: bool) -> Settings {
    Settings {
        node: "node0".to_owned(),
        address: [172, 18, 0, 11].into(),
        speaking: crate::peering::Speaking {
            address_v6: has_v6.then(|| ADDRESSES_V6[0].parse().unwrap()),
            ..crate::peering::Speaking::default()
        },
        protocol: OURS.protocol,
        tunnel_mtu: None,
        path_mtu_discovery: None,
        pin_table,
    }
}

fn some_node() -> impl Strategy<Value = Object> {
    let v6 = proptest::option::of(select(&ADDRESSES_V6[..]));
    (0usize..5, select(&ADDRESSES[..]), any::<bool>(), v6).prop_map(|(n, address, published, v6)| {
        let mut node = Node::named(format!("node{n}"));
        if published {
            let annotations = &mut node.metadata.annotations;
            annotations.insert(annotation::IPV4_ADDRESS.to_owned(), format!("{address}/24"));
        }
        if let Some(v6) = v6 {
            let annotations = &mut node.metadata.annotations;
            annotations.insert(annotation::IPV6_ADDRESS.to_owned(), format!("{v6}/64"));
        }
        Object::Node(node)
    })
}

fn some_pool() -> impl Strategy<Value = Object> {
    (
        select(vec![
            ("a", "10.65.0.0/16"),
            ("b", "10.65.42.0/24"),
            ("c", "172.19.0.0/28"),
            ("d", "'fd00:65::/64'"),
            ("e", "'2001:db8:1::/120'"),
        ]),
        select(vec!["Always", "Never", "CrossSubnet"]),
        any::<bool>(),
    )
        .prop_map(|((name, cidr), mode, hidden)| {
            let yaml = format!(
                "metadata: {{name: {name}}}\nspec: {{cidr: {cidr}, ipipMode: {mode}, disableBGPExport: {hidden}}}"
            );
            let pool: IpPool = serde_yaml::from_str(&yaml).unwrap();
            Object::IpPool(pool)
        })
}

fn some_object() -> impl Strategy<Value = Object> {
    let affinity =
        (0usize..2, select(&PREFIXES[..CLAIMED]), any::<bool>()).prop_map(|(n, block, confirmed)| {
            let node = format!("node{n}");
            let mut spec = Affinity::pending(&node, block.parse().unwrap());
            if confirmed {
                spec.state = AffinityState::Confirmed;
            }
            Object::BlockAffinity(BlockAffinity::new(affinity_name(n, block), spec))
        });
    let block = (select(&PREFIXES[..2]), 0usize..3, 0usize..3).prop_map(|(cidr, owner, holder)| {
        let name = block_name(cidr);
        let yaml = format!(
            "metadata: {{name: {name}}}\nspec: {{cidr: {cidr}, affinity: 'host:node{owner}', allocations: [null, 0], \
             attributes: [{{handle_id: h, secondary: {{node: node{holder}}}}}]}}"
        );
        let block: IpamBlock = serde_yaml::from_str(&yaml).unwrap();
        Object::IpamBlock(block)
    });
    let bgp = any::<bool>().prop_map(|mesh| {
        let yaml = format!("metadata: {{name: default}}\nspec: {{nodeToNodeMeshEnabled: {mesh}}}");
        let bgp: BgpConfiguration = serde_yaml::from_str(&yaml).unwrap();
        Object::BgpConfiguration(bgp)
    });
    let router =
        (select(&ROUTERS[..]), any::<bool>(), any::<bool>()).prop_map(|(address, is_behind, is_node)| {
            let gateway = if is_behind {
                ", reachableBy: 172.18.0.254"
            } else {
                ""
            };
            let only = if is_node { ", node: node0" } else { "" };
            let yaml = format!(
                "metadata: {{name: '{address}'}}\nspec: {{peerIP: {address}, asNumber: 65001{gateway}{only}}}"
            );
            let peer: BgpPeer = serde_yaml::from_str(&yaml).unwrap();
            Object::BgpPeer(peer)
        });
    prop_oneof![4 => some_node(), 3 => some_pool(), 3 => affinity, 2 => block, 1 => bgp, 2 => router]
}

fn block_name(cidr: &str) -> String {
    cidr.replace(['.', '/'], "-")
}

fn affinity_name(node: usize, block: &str) -> String {
    format!("node{node}-{block}").replace(['.', ':', '/'], "-")
}

fn some_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        (0usize..5).prop_map(|n| Key::new(Kind::Node, format!("node{n}"))),
        select(vec!["a", "b", "c", "d", "e"]).prop_map(|name| Key::new(Kind::IpPool, name)),
        select(&PREFIXES[..2]).prop_map(|cidr| Key::new(Kind::IpamBlock, block_name(cidr))),
        select(&ROUTERS[..]).prop_map(|name| Key::new(Kind::BgpPeer, name)),
        (0usize..2, select(&PREFIXES[..CLAIMED]))
            .prop_map(|(n, block)| Key::new(Kind::BlockAffinity, affinity_name(n, block))),
    ]
}

fn some_prefix() -> impl Strategy<Value = Prefix> {
    select(&PREFIXES[..]).prop_map(|prefix| Prefix::new(prefix.parse().unwrap()))
}

fn some_best() -> impl Strategy<Value = Vec<BgpNextHop>> {
    let addresses: Vec<&str> = ADDRESSES[1..]
        .iter()
        .copied()
        .chain(ADDRESSES_V6)
        .chain(["10.65.42.3", "203.0.113.9", "fe80::12", "fd00:65::3"])
        .chain(ROUTERS)
        .collect();
    let peers: Vec<&str> = ADDRESSES[1..].iter().chain(&ROUTERS).copied().collect();
    let hop = (select(addresses), select(peers), any::<bool>()).prop_map(|(address, peer, is_own)| {
        let address = address.parse().unwrap();
        let peer = if is_own { address } else { peer.parse().unwrap() };
        BgpNextHop { address, peer }
    });
    vec(hop, 0..3)
}

fn some_link() -> impl Strategy<Value = Link> {
    let devices = vec![(2, "eth0"), (4, "eth1"), (3, "tunl0"), (8, "tunl0"), (9, "cali1")];
    (
        select(devices),
        prop_oneof![3 => Just(true), 1 => Just(false)],
        select(vec![1500, 1400]),
    )
        .prop_map(|((index, name), up, mtu)| Link {
            index,
            name: name.to_owned(),
            up,
            running: up,
            mtu,
            kind: (name == "tunl0").then(|| "ipip".to_owned()),
            path_mtu_discovery: None,
        })
}

fn some_address() -> impl Strategy<Value = Address> {
    let nets = vec![
        "172.18.0.11/24",
        "172.18.0.11/32",
        "172.19.0.11/16",
        "10.65.42.0/32",
        "2001:db8::11/64",
        "2001:db8::11/128",
    ];
    (select(vec![2u32, 4, 3, 9]), select(nets)).prop_map(|(link, net)| Address {
        link,
        net: net.parse().unwrap(),
    })
}

fn some_route() -> impl Strategy<Value = Route> {
    let hop = (
        select(vec![
            None,
            Some("172.18.0.1"),
            Some("172.19.0.1"),
            Some("fe80::1"),
            Some("2001:db8::1"),
        ]),
        select(vec![2u32, 4, 3, 9]),
    )
        .prop_map(|(gateway, link)| NextHop {
            gateway: gateway.map(|gateway: &str| gateway.parse().unwrap()),
            link,
            onlink: false,
            weight: 1,
        });
    (
        select(&UNDERLAY[..]),
        prop_oneof![4 => Just(MAIN_TABLE), 1 => Just(PIN_TABLE)],
        select(vec![0u32, 100, 1024]),
        vec(hop, 1..3),
        select(vec![2u8, 3, 12, OURS.protocol]),
        select(vec![None, Some(1300u32)]),
    )
        .prop_map(|(prefix, table, metric, mut next_hops, protocol, mtu)| {
            let prefix: IpNet = prefix.parse().unwrap();
            // A gateway of the other family is none that a host would have.
            for hop in &mut next_hops {
                hop.gateway = hop
                    .gateway
                    .filter(|gateway| gateway.is_ipv4() == prefix.addr().is_ipv4());
            }
            Route {
                key: RouteKey {
                    table,
                    prefix,
                    metric,
                },
                kind: RouteKind::Unicast,
                next_hops,
                source: None,
                protocol,
                scope: 0,
                mtu,
            }
        })
}

fn some_kernel_event() -> impl Strategy<Value = KernelEvent> {
    prop_oneof![
        3 => some_link().prop_map(KernelEvent::Link),
        1 => select(vec![2u32, 3, 4, 8, 9]).prop_map(KernelEvent::LinkGone),
        2 => some_address().prop_map(KernelEvent::Address),
        1 => some_address().prop_map(KernelEvent::AddressGone),
        3 => some_route().prop_map(KernelEvent::Route),
        2 => some_route().prop_map(KernelEvent::RouteReplaced),
        2 => some_route().prop_map(KernelEvent::RouteGone),
    ]
}

fn some_event() -> impl Strategy<Value = Event> {
    let ours = || {
        some_route().prop_map(|route| Route {
            protocol: OURS.protocol,
            ..route
        })
    };
    let applied = prop_oneof![
        ours().prop_map(Change::ReplaceRoute),
        ours().prop_map(Change::DeleteRoute),
        select(vec![2u32, 3]).prop_map(|link| Change::SetLink { link, mtu: 1450 }),
        some_address().prop_map(Change::AddAddress),
        some_address().prop_map(Change::DeleteAddress),
    ];
    prop_oneof![
        3 => some_object().prop_map(|object| Event::Upsert(Box::new(object))),
        1 => some_key().prop_map(Event::Remove),
        4 => (some_prefix(), some_best()).prop_map(|(prefix, best)| Event::Learned(prefix, best)),
        4 => some_kernel_event().prop_map(Event::Kernel),
        1 => applied.prop_map(Event::Applied),
        1 => Just(Event::Converged),
        1 => some_prefix().prop_map(Event::Noise),
    ]
}

/// All that is known, and what was not told of it yet.
struct World {
    cluster: Cluster,
    learned: Learned,
    actual: Actual,
    converged: bool,
    changed: Changed,
    /// Routes that were written or deleted: whoever does that looks at them again.
    written: BTreeSet<RouteKey>,
}

impl World {
    /// A kernel with the usual links, address and routes; a cluster of three nodes and one pool.
    fn usual() -> Self {
        let link = |index, name: &str| Link {
            index,
            name: name.to_owned(),
            up: true,
            running: true,
            mtu: 1500,
            kind: (name == "tunl0").then(|| "ipip".to_owned()),
            path_mtu_discovery: None,
        };
        let actual = Actual::new(Snapshot {
            links: vec![link(2, "eth0"), link(3, "tunl0"), link(4, "eth1")],
            addresses: ["172.18.0.11/24", "2001:db8::11/64"]
                .map(|net| Address {
                    link: 2,
                    net: net.parse().unwrap(),
                })
                .to_vec(),
            ..Snapshot::default()
        });
        let mut cluster = Cluster::default();
        for (n, address) in ["172.18.0.11", "172.18.0.12", "172.19.0.13"].iter().enumerate() {
            let mut node = Node::named(format!("node{n}"));
            let annotations = &mut node.metadata.annotations;
            annotations.insert(annotation::IPV4_ADDRESS.to_owned(), format!("{address}/24"));
            annotations.insert(
                annotation::IPV6_ADDRESS.to_owned(),
                format!("{}/64", ADDRESSES_V6[n]),
            );
            cluster.upsert(&Object::Node(node));
        }
        for spec in [
            "cidr: 10.65.0.0/16, ipipMode: CrossSubnet",
            "cidr: 'fd00:65::/64'",
        ] {
            let name = if spec.contains('\'') { "d" } else { "a" };
            let yaml = format!("metadata: {{name: {name}}}\nspec: {{{spec}}}");
            let pool: IpPool = serde_yaml::from_str(&yaml).unwrap();
            cluster.upsert(&Object::IpPool(pool));
        }
        Self {
            cluster,
            learned: Learned::new(),
            actual,
            converged: false,
            written: BTreeSet::new(),
            changed: Changed {
                everything: true,
                ..Changed::default()
            },
        }
    }

    fn known(&self) -> Known<'_> {
        Known {
            cluster: &self.cluster,
            learned: &self.learned,
            actual: &self.actual,
            converged: self.converged,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Upsert(object) => {
                let change = self.cluster.upsert(&object);
                self.changed.cluster = self.changed.cluster.max(change);
            }
            Event::Remove(key) => {
                let change = self.cluster.remove(&key);
                self.changed.cluster = self.changed.cluster.max(change);
            }
            Event::Learned(prefix, best) => {
                self.changed.learned.insert(prefix);
                if best.is_empty() {
                    self.learned.remove(&prefix);
                } else {
                    self.learned.insert(prefix, best);
                }
            }
            // Where only a dump could tell the rest, what was told is taken in all the same.
            Event::Kernel(event) => drop(self.actual.observe(&event)),
            Event::Applied(change) => {
                if let Change::ReplaceRoute(route) | Change::DeleteRoute(route) = &change {
                    self.written.insert(route.key);
                    // The loop writes none that is not wanted, and says when one is wanted no longer.
                    self.changed.learned.insert(Prefix::new(route.key.prefix));
                }
                self.actual.applied(&change);
            }
            Event::Converged => {}
            Event::Noise(prefix) => drop(self.changed.learned.insert(prefix)),
        }
    }

    fn take_changed(&mut self) -> Changed {
        let mut changed = mem::take(&mut self.changed);
        changed.kernel = self.actual.take_touched();
        changed
    }
}

/// The keys under which two plans differ, searched for in the simplest way.
fn keys_that_differ(before: &Desired, now: &Desired) -> BTreeSet<RouteKey> {
    let all = [before, now].map(|desired| desired.routes.keys().chain(&desired.held));
    let all: BTreeSet<RouteKey> = all.into_iter().flatten().copied().collect();
    let differs = |key: &RouteKey| {
        before.routes.get(key) != now.routes.get(key) || before.held.contains(key) != now.held.contains(key)
    };
    all.into_iter().filter(differs).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_plan_kept_up_to_date_is_the_one_that_would_be_made_anew(
        turns in vec(vec(some_event(), 1..4), 1..24),
        pinned in any::<bool>(),
        has_v6 in any::<bool>(),
    ) {
        let settings = settings(pinned.then_some(PIN_TABLE), has_v6);
        let mut world = World::usual();
        let mut planner = Planner::new(settings.clone());
        let mut difference = Difference::none(OURS);
        let first = world.take_changed();
        planner.update(world.known(), &first);
        difference.clone_from(&Difference::whole(&planner.plan().desired, &world.actual, OURS));
        for turn in turns {
            let before = planner.plan().clone();
            for event in turn {
                if matches!(event, Event::Converged) && !world.converged {
                    // As the loop does it.
                    world.changed.everything |= planner.rests_on_former_run(&world.actual);
                    world.converged = true;
                }
                world.take(event);
            }
            let changed = world.take_changed();
            let updated = planner.update(world.known(), &changed);
            let anew = plan(&settings, world.known());
            prop_assert_eq!(planner.plan(), &anew);
            prop_assert_eq!(&updated.keys, &keys_that_differ(&before.desired, &anew.desired));
            prop_assert_eq!(&updated.rejected, &newly_rejected(&before.rejected, &anew.rejected));
            if !updated.beyond_routes {
                prop_assert_eq!((&before.peering, &before.exports), (&anew.peering, &anew.exports));
                prop_assert_eq!((&before.tunnelled_to, &before.unpinned), (&anew.tunnelled_to, &anew.unpinned));
            }
            let written = mem::take(&mut world.written);
            for key in updated.keys.iter().chain(&changed.kernel.routes).chain(&written) {
                difference.look_at(key, &anew.desired, &world.actual);
            }
            let whole = Difference::whole(&anew.desired, &world.actual, OURS);
            prop_assert_eq!(&difference, &whole);
            // Half of it is carried out, and looked at again as the loop does it.
            for change in whole.steps(&anew.desired, &world.actual, crate::reconcile::Removal::Now).iter().step_by(2) {
                world.actual.applied(change);
                if let Change::ReplaceRoute(route) | Change::DeleteRoute(route) = change {
                    difference.look_at(&route.key, &anew.desired, &world.actual);
                }
            }
        }
    }
}

#[test]
fn what_cannot_move_a_way_leaves_the_ways_alone() {
    let mut world = World::usual();
    let mut planner = Planner::new(settings(Some(PIN_TABLE), true));
    let first = world.take_changed();
    assert!(planner.update(world.known(), &first).beyond_routes);
    let pod = Route {
        next_hops: vec![NextHop {
            gateway: None,
            link: 9,
            onlink: false,
            weight: 1,
        }],
        protocol: 3,
        scope: 253,
        ..Route::blackhole(RouteKey::main("10.65.42.7/32".parse().unwrap()), 3)
    };
    let veth = Link {
        index: 9,
        name: "cali1".to_owned(),
        up: true,
        running: true,
        mtu: 1480,
        kind: Some("veth".to_owned()),
        path_mtu_discovery: None,
    };
    let link_local = Address {
        link: 9,
        net: "fe80::1/64".parse().unwrap(),
    };
    for event in [
        KernelEvent::Link(veth),
        KernelEvent::Address(link_local),
        KernelEvent::Route(Route {
            kind: RouteKind::Unicast,
            ..pod
        }),
        KernelEvent::LinkGone(9),
    ] {
        let _ = world.actual.observe(&event);
        let changed = world.take_changed();
        assert_ne!(changed.kernel, Touched::default(), "{event:?} is noticed");
        let updated = planner.update(world.known(), &changed);
        assert_eq!(updated, Updated::default(), "{event:?}");
    }
}

#[test]
fn what_is_rejected_is_new_by_destination_and_reason() {
    let unreachable = |last: u8| Rejection::Unreachable {
        next_hop: [172, 18, 0, last].into(),
    };
    let prefix = |n: u8| -> IpNet { format!("10.65.{n}.0/26").parse().unwrap() };
    let before = BTreeMap::from([
        (prefix(1), vec![unreachable(1)]),
        (prefix(2), vec![unreachable(2)]),
    ]);
    let now = BTreeMap::from([
        (prefix(1), vec![unreachable(1), Rejection::NoTunnel]),
        (prefix(3), vec![unreachable(2)]),
    ]);
    let new = |n, reason| Rejected {
        prefix: prefix(n),
        reason,
    };
    assert_eq!(
        newly_rejected(&before, &now),
        [new(1, Rejection::NoTunnel), new(3, unreachable(2))]
    );
    assert!(newly_rejected(&now, &now).is_empty());
}
