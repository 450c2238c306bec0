//! How fast routes are written, read and planned, against a goal for each.
//!
//! The ceiling is a raw socket with its own path to the kernel: messages made beforehand, blocking sends of 256, an
//! acknowledgement read for each. Both write the same 100,000 routes, in turns. Needs root: it works in a network
//! namespace of its own. `cargo bench -p culvert-agent --bench routes`

#![allow(clippy::unwrap_used, reason = "what a benchmark cannot set up ends it")]

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::{Duration, Instant};

use culvert_agent::api::{IpPool, Node, Object, annotation};
use culvert_agent::cluster::Cluster;
use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::desired::{self, Changed, Known, Learned, Planner, Settings};
use culvert_agent::fib::{
    Address, Change, Desired, Link, MAIN_TABLE, NextHop, Route, RouteKey, RouteKind, SCOPE_UNIVERSE, Snapshot,
};
use culvert_agent::reconcile::{Actual, Difference, Ours, Removal, diff};
use culvert_bgp::id::{NextHop as BgpNextHop, Prefix};
use ipnet::{IpNet, Ipv4Net};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, unshare};

const ROUTES: u32 = 100_000;
const ROUNDS: usize = 5;
const BATCH: usize = 256;
const OURS: Ours = Ours { protocol: 86 };
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 12);

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of its own: run as root");
    ip("link add name u0 type veth peer name u1");
    ip("addr add 172.18.0.1/24 dev u0");
    ip("link set u0 up");
    ip("link set u1 up");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let netlink = Netlink::open().unwrap();
        let link = link(&netlink).await;
        println!("{ROUTES} routes, medians of {ROUNDS} rounds\n");
        write(&netlink, link).await;
        resync(&netlink, link).await;
    });
    plan();
    println!("\npeak memory of all this: {}", peak_memory());
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

async fn link(netlink: &Netlink) -> u32 {
    let snapshot = netlink.dump().await.unwrap();
    snapshot
        .links
        .iter()
        .find(|link| link.name == "u0")
        .unwrap()
        .index
}

/// The `n`th /26 from 10.0.0.0 on.
fn block(n: u32) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 + n * 64), 26).unwrap()
}

fn route(n: u32, link: u32) -> Route {
    Route {
        key: RouteKey {
            table: MAIN_TABLE,
            prefix: IpNet::V4(block(n)),
            metric: 0,
        },
        kind: RouteKind::Unicast,
        next_hops: vec![NextHop {
            gateway: Some(IpAddr::V4(GATEWAY)),
            link,
            onlink: true,
            weight: 1,
        }],
        source: None,
        protocol: OURS.protocol,
        scope: SCOPE_UNIVERSE,
        mtu: None,
    }
}

async fn write(netlink: &Netlink, link: u32) {
    let routes = || (0..ROUTES).map(|n| route(n, link));
    let additions: Vec<Change> = routes().map(Change::ReplaceRoute).collect();
    let deletions: Vec<Change> = routes().map(Change::DeleteRoute).collect();
    let raw = Raw::open();
    let (raw_additions, raw_deletions) = (raw_batches(true, link), raw_batches(false, link));
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..ROUNDS {
        // Whoever is second finds the kernel's memory warm: they take turns at that too.
        for of_ours in [round % 2 == 0, round % 2 != 0] {
            let (adding, deleting) = if of_ours {
                (apply(netlink, &additions).await, apply(netlink, &deletions).await)
            } else {
                (raw.send(&raw_additions), raw.send(&raw_deletions))
            };
            let place = usize::from(of_ours);
            times[place].push(adding);
            times[place + 2].push(deleting);
        }
    }
    let [raw_add, our_add, raw_delete, our_delete] = times.map(median);
    for (what, raw, ours) in [("add", raw_add, our_add), ("delete", raw_delete, our_delete)] {
        let ratio = raw.as_secs_f64() / ours.as_secs_f64();
        let what = format!(
            "{what}: {:.0} routes/s, raw socket {:.0} routes/s",
            rate(ours),
            rate(raw)
        );
        goal(&what, &format!("ratio {ratio:.2}"), "0.80 or more", ratio >= 0.8);
    }
}

async fn apply(netlink: &Netlink, changes: &[Change]) -> Duration {
    let begin = Instant::now();
    let results = netlink.apply(changes).await;
    let took = begin.elapsed();
    let refused = results.iter().find(|result| result.is_err());
    assert!(refused.is_none(), "{refused:?}");
    took
}

async fn resync(netlink: &Netlink, link: u32) {
    let changes: Vec<Change> = (0..ROUTES)
        .map(|n| Change::ReplaceRoute(route(n, link)))
        .collect();
    apply(netlink, &changes).await;
    drop(changes);
    let routes = (0..ROUTES).map(|n| route(n, link));
    let mut desired = Desired {
        routes: routes.map(|route| (route.key, route)).collect(),
        ..Desired::default()
    };
    let mut parts: [Vec<Duration>; 4] = Default::default();
    let mut writes = 0;
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let snapshot = netlink.dump().await.unwrap();
        let dumped = Instant::now();
        let actual = Actual::new(snapshot);
        let known = Instant::now();
        writes += diff(&desired, &actual, &OURS, Removal::Now).len();
        let end = Instant::now();
        parts[0].push(end - begin);
        parts[1].push(dumped - begin);
        parts[2].push(known - dumped);
        parts[3].push(end - known);
    }
    let [all, dump, new, difference] = parts.map(median);
    let what = format!("resync: dump {dump:.0?}, take in {new:.0?}, difference {difference:.0?}");
    goal(
        &what,
        &format!("{all:.0?}"),
        "below 500 ms",
        all < Duration::from_millis(500),
    );
    goal(
        "resync of what is right",
        &format!("{writes} writes"),
        "0",
        writes == 0,
    );

    // The same difference does find the one route that is not right.
    let actual = Actual::new(netlink.dump().await.unwrap());
    desired
        .routes
        .entry(route(77, link).key)
        .and_modify(|route| route.mtu = Some(1400));
    let found = diff(&desired, &actual, &OURS, Removal::Now).len();
    goal(
        "resync with one route changed",
        &format!("{found} writes"),
        "1",
        found == 1,
    );
}

/// What the plan and the difference cost: all anew, and for one changed route as the loop does it.
fn plan() {
    let settings = Settings {
        node: "node0".to_owned(),
        address: Ipv4Addr::new(172, 18, 0, 1),
        speaking: culvert_agent::peering::Speaking::default(),
        protocol: OURS.protocol,
        tunnel_mtu: None,
        path_mtu_discovery: None,
        pin_table: None,
    };
    let cluster = cluster();
    let mut learned: Learned = (0..ROUTES)
        .map(|n| (Prefix::new(IpNet::V4(block(n))), vec![next_hop(1 + n % 100)]))
        .collect();
    let mut actual = Actual::new(kernel());
    let known = Known {
        cluster: &cluster,
        learned: &learned,
        actual: &actual,
        converged: true,
    };
    let first = desired::plan(&settings, known);
    for change in diff(&first.desired, &actual, &OURS, Removal::Now) {
        actual.applied(&change);
    }
    let mut parts: [Vec<Duration>; 2] = Default::default();
    for round in 0..10 {
        learned.insert(
            Prefix::new(IpNet::V4(block(5000))),
            vec![next_hop(50 + round % 2)],
        );
        let begin = Instant::now();
        let known = Known {
            cluster: &cluster,
            learned: &learned,
            actual: &actual,
            converged: true,
        };
        let plan = desired::plan(&settings, known);
        let planned = Instant::now();
        let changes = diff(&plan.desired, &actual, &OURS, Removal::Now);
        parts[0].push(planned - begin);
        parts[1].push(planned.elapsed());
        assert_eq!(changes.len(), 1);
        for change in changes {
            actual.applied(&change);
        }
    }
    let [plan, difference] = parts.map(median);
    println!("all of {ROUTES} routes: plan {plan:.1?}, difference {difference:.1?} (no goal)");
    one_route(settings, &cluster, learned, actual);
}

fn known<'a>(cluster: &'a Cluster, learned: &'a Learned, actual: &'a Actual) -> Known<'a> {
    Known {
        cluster,
        learned,
        actual,
        converged: true,
    }
}

/// A peer changes the next hop of one route: from there to what is to be written, and taking note that it was.
fn one_route(settings: Settings, cluster: &Cluster, mut learned: Learned, mut actual: Actual) {
    const CHANGES: u32 = 10_000;
    let mut planner = Planner::new(settings);
    let everything = Changed {
        everything: true,
        ..Changed::default()
    };
    planner.update(known(cluster, &learned, &actual), &everything);
    let mut difference = Difference::whole(&planner.plan().desired, &actual, OURS);
    let mut times = Vec::new();
    for n in 0..CHANGES {
        // All over the table: what is in the processor's caches is not the same each time.
        let prefix = Prefix::new(IpNet::V4(block(n.wrapping_mul(7919) % ROUTES)));
        let next = vec![next_hop(1 + (n + 37) % 100)];
        let begin = Instant::now();
        learned.insert(prefix, next);
        let changed = Changed {
            learned: [prefix].into(),
            kernel: actual.take_touched(),
            ..Changed::default()
        };
        let updated = planner.update(known(cluster, &learned, &actual), &changed);
        let desired = &planner.plan().desired;
        for key in updated.keys.union(&changed.kernel.routes) {
            difference.look_at(key, desired, &actual);
        }
        let steps = difference.steps(desired, &actual, Removal::Now);
        assert!(steps.len() <= 1, "{steps:?}");
        for step in steps {
            actual.applied(&step);
            if let Change::ReplaceRoute(route) = &step {
                difference.look_at(&route.key, desired, &actual);
            }
        }
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    goal(
        &format!("one route changed of {ROUTES}, plan and difference, median {half:.1?}"),
        &format!("99 of 100 within {most:.1?}"),
        "below 100 µs",
        most < Duration::from_micros(100),
    );
}

fn next_hop(node: u32) -> BgpNextHop {
    let address = IpAddr::V4(Ipv4Addr::from(0xac12_0001 + node));
    BgpNextHop {
        address,
        peer: address,
    }
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::default();
    for n in 0..=100 {
        let mut node = Node::named(format!("node{n}"));
        let address = format!("{}/24", next_hop(n).address);
        node.metadata
            .annotations
            .insert(annotation::IPV4_ADDRESS.to_owned(), address);
        cluster.upsert(&Object::Node(node));
    }
    let yaml = "metadata: {name: pool}\nspec: {cidr: 10.0.0.0/8, ipipMode: Always}";
    let pool: IpPool = serde_yaml::from_str(yaml).unwrap();
    cluster.upsert(&Object::IpPool(pool));
    cluster
}

fn kernel() -> Snapshot {
    let link = |index, name: &str, kind: Option<&str>, mtu| Link {
        index,
        name: name.to_owned(),
        up: true,
        running: true,
        mtu,
        kind: kind.map(str::to_owned),
        path_mtu_discovery: None,
    };
    Snapshot {
        links: vec![link(2, "eth0", None, 1500), link(3, "tunl0", Some("ipip"), 1480)],
        addresses: vec![Address {
            link: 2,
            net: "172.18.0.1/24".parse().unwrap(),
        }],
        routes: Vec::new(),
        forwarding: true,
        ..Snapshot::default()
    }
}

/// A blocking socket that knows nothing but bytes.
struct Raw(Socket);

impl Raw {
    fn open() -> Self {
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        socket.bind_auto().unwrap();
        socket.connect(&SocketAddr::new(0, 0)).unwrap();
        socket.set_rx_buf_sz(1 << 20).unwrap();
        socket.set_cap_ack(true).unwrap();
        Self(socket)
    }

    fn send(&self, batches: &[(Vec<u8>, usize)]) -> Duration {
        let mut buffer = Vec::with_capacity(8192);
        let begin = Instant::now();
        for (batch, count) in batches {
            assert_eq!(self.0.send(batch, 0).unwrap(), batch.len());
            let mut open = *count;
            while open > 0 {
                buffer.clear();
                self.0.recv(&mut buffer, 0).unwrap();
                // struct nlmsghdr, then the error number of struct nlmsgerr.
                let errno = i32::from_ne_bytes(buffer[16..20].try_into().unwrap());
                assert_eq!(errno, 0);
                open -= 1;
            }
        }
        begin.elapsed()
    }
}

/// Messages of rtnetlink(7), byte by byte, and how many are in each batch.
fn raw_batches(adding: bool, link: u32) -> Vec<(Vec<u8>, usize)> {
    let numbers: Vec<u32> = (0..ROUTES).collect();
    let batch = |numbers: &[u32]| {
        let mut bytes = Vec::new();
        for n in numbers {
            raw_message(&mut bytes, adding, *n, link);
        }
        (bytes, numbers.len())
    };
    numbers.chunks(BATCH).map(batch).collect()
}

fn raw_message(bytes: &mut Vec<u8>, adding: bool, n: u32, link: u32) {
    // RTM_NEWROUTE with NLM_F_REQUEST, ACK, REPLACE and CREATE; RTM_DELROUTE with the first two.
    let (kind, flags): (u16, u16) = if adding { (24, 0x505) } else { (25, 0x005) };
    let length: u32 = if adding { 52 } else { 36 };
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(n.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    // struct rtmsg: family, lengths, tos, table main, protocol, scope (any for a deletion), unicast, RTNH_F_ONLINK.
    let scope = if adding { 0 } else { 255 };
    bytes.extend([2, 26, 0, 0, 254, OURS.protocol, scope, 1]);
    bytes.extend((if adding { 4_u32 } else { 0 }).to_ne_bytes());
    let mut attribute = |kind: u16, value: [u8; 4]| {
        bytes.extend(8_u16.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
    };
    attribute(1, block(n).addr().octets());
    if adding {
        attribute(4, link.to_ne_bytes());
        attribute(5, GATEWAY.octets());
    }
}

fn goal(what: &str, got: &str, wanted: &str, reached: bool) {
    let verdict = if reached { "REACHED" } else { "MISSED" };
    println!("{verdict:8} {what}: {got} (goal: {wanted})");
}

fn rate(took: Duration) -> f64 {
    f64::from(ROUTES) / took.as_secs_f64()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let fields: BTreeMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
    fields["VmHWM"].trim().to_owned()
}
