//! How many plans a second are made, in memory: a node with two blocks, half full, on which pods come and go.
//!
//! `cargo bench -p culvert-ipam`; the goal is 50,000 a second on one core. Each group is measured beside what no planner
//! can do without, in the same run: a copy of the block that is about to be written, and a scan of it for a free address.
//! `requests` are whole requests, each with all its plans (three for an address: count, take, answer) and all its writes, the
//! store being a map.

#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench that fails stops, and criterion's macros make public items"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures time"
)]

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_ipam::allocator::{
    Assign, Held, Key, Kind, Object, Policy, Read, Release, Request, Step, View, Wanted, Write, plan,
};
use culvert_ipam::block::Block;
use culvert_ipam::check;
use culvert_ipam::pool::{Family, Pool, Pools, Use};
use culvert_ipam::timestamp::Timestamp;

/// Pods on the node: two blocks of 64 are half full.
const PODS: usize = 64;

#[derive(Clone, Default)]
struct Store {
    objects: BTreeMap<Key, (u64, Object)>,
    writes: u64,
}

impl Store {
    fn read(&self, read: &Read, view: &mut View) {
        match read {
            Read::List(kind) => {
                let all = self.objects.iter().filter(|(key, _)| key.kind == *kind);
                view.listed(
                    *kind,
                    all.map(|(k, (r, o))| (k.name.clone(), r.to_string(), o.clone())),
                );
            }
            Read::Get(key) => {
                let found = self.objects.get(key).map(|(r, o)| (r.to_string(), o.clone()));
                view.got(key.clone(), found);
            }
        }
    }

    fn write(&mut self, write: &Write) -> String {
        self.writes += 1;
        let key = write.key();
        match write {
            Write::Create { object, .. } | Write::Update { object, .. } => {
                self.objects.insert(key, (self.writes, object.clone()));
            }
            Write::Delete { .. } => {
                self.objects.remove(&key);
            }
        }
        self.writes.to_string()
    }
}

/// The store, and a view that is kept from one batch to the next.
#[derive(Clone)]
struct Node {
    store: Store,
    view: View,
    /// The pods, oldest first.
    living: VecDeque<usize>,
    next: usize,
}

impl Node {
    /// With two blocks, and [`PODS`] pods.
    fn half_full() -> Self {
        let pool = Pool::new("p", "10.0.0.0/16".parse().unwrap(), None);
        let policy = Policy {
            pools: Pools::new([pool]),
            ..Policy::default()
        };
        let mut node = Self {
            store: Store::default(),
            view: View::new(policy),
            living: VecDeque::new(),
            next: 2 * PODS,
        };
        node.run((0..2 * PODS).map(assign).collect());
        // Of each block half goes.
        let (odd, even): (Vec<usize>, Vec<usize>) = (0..2 * PODS).partition(|pod| pod % 2 == 1);
        node.run(odd.into_iter().map(release).collect());
        node.living = even.into();
        assert_eq!(node.blocks().count(), 2);
        node
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_unix_nanos(1_790_000_000_000_000_000 + self.store.writes)
    }

    fn run(&mut self, mut batch: Vec<Request>) {
        loop {
            let planned = plan(&self.view, &batch, self.now());
            let mut outcomes = planned.outcomes.into_iter();
            batch.retain(|_| outcomes.next().unwrap().map(Result::unwrap).is_none());
            match planned.step {
                Step::Read(reads) => reads
                    .iter()
                    .for_each(|read| self.store.read(read, &mut self.view)),
                Step::Write(changes) => {
                    for change in changes {
                        let revision = self.store.write(&change.write);
                        self.view.wrote(change, revision);
                    }
                }
                Step::Done if batch.is_empty() => return,
                Step::Done => {}
            }
        }
    }

    /// As many pods come as go.
    fn churn(&mut self, count: usize) {
        let new = self.next..self.next + count;
        self.next = new.end;
        self.living.extend(new.clone());
        self.run(new.map(assign).collect());
        let oldest = self.living.drain(..count).map(release).collect();
        self.run(oldest);
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.store
            .objects
            .values()
            .filter_map(|(_, object)| match object {
                Object::Block(block) => Some(block),
                Object::Affinity(_) | Object::Handle(_) => None,
            })
    }
}

fn handle(pod: usize) -> String {
    // The digits that differ come first, as in a container's ID.
    let digits: String = format!("{pod:016x}").chars().rev().collect();
    format!("k8s-pod-network.{digits}{:048x}", 0)
}

fn assign(pod: usize) -> Request {
    let text = |text: &str| text.to_owned();
    Request::Assign(Assign {
        node: text("node-1"),
        handle: handle(pod),
        attributes: BTreeMap::from([
            (text("namespace"), text("default")),
            (text("pod"), format!("web-{pod}")),
            (text("timestamp"), text("2026-08-01 10:00:01 +0000 UTC")),
        ]),
        usage: Use::Workload,
        wanted: vec![Wanted::one(Family::V4)],
        excluded: BTreeMap::new(),
    })
}

fn release(pod: usize) -> Request {
    Request::Release(Release {
        node: "node-1".to_owned(),
        what: Held::Handle(handle(pod)),
    })
}

/// What is done at least for each address that is taken.
fn limits(criterion: &mut Criterion) {
    let node = Node::half_full();
    let block = node.blocks().next().unwrap();
    let mut group = criterion.benchmark_group("limit");
    group.throughput(Throughput::Elements(1));
    group.bench_function("copy of a block", |b| b.iter(|| black_box(block).clone()));
    group.bench_function("check of a block", |b| b.iter(|| check::block(black_box(block))));
    group.bench_function("scan for a free address", |b| {
        b.iter(|| black_box(block).allocations.iter().position(Option::is_none));
    });
    group.finish();
}

/// One plan: the one that takes an address, for a request whose handle counts it already.
fn plans(criterion: &mut Criterion) {
    let node = Node::half_full();
    let mut group = criterion.benchmark_group("plans");
    for size in [1, 16] {
        let batch: Vec<Request> = (node.next..node.next + size).map(assign).collect();
        // Each request of a batch is planned.
        group.throughput(Throughput::Elements(u64::try_from(size).unwrap()));
        let first = &batch;
        group.bench_with_input(BenchmarkId::new("count", size), first, |b, batch| {
            b.iter(|| plan(&node.view, batch, node.now()));
        });
        let mut counted = node.clone();
        let Step::Write(changes) = plan(&counted.view, &batch, counted.now()).step else {
            unreachable!("a handle is counted before its address is taken")
        };
        for change in changes
            .into_iter()
            .filter(|change| change.write.key().kind == Kind::Handle)
        {
            let revision = counted.store.write(&change.write);
            counted.view.wrote(change, revision);
        }
        group.bench_with_input(BenchmarkId::new("take", size), first, |b, batch| {
            b.iter(|| plan(&counted.view, batch, counted.now()));
        });
    }
    group.finish();
}

/// Whole requests, one in two an address and the other its release.
fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("requests");
    let fresh = Node::half_full();
    for size in [1, 4, 16, 32] {
        group.throughput(Throughput::Elements(2 * u64::try_from(size).unwrap()));
        let mut node = fresh.clone();
        let mut rounds = 0;
        group.bench_function(BenchmarkId::new("batch", size), |b| {
            b.iter_batched(
                || (),
                |()| {
                    node.churn(size);
                    rounds += 1;
                    // What is known of handles that are gone is forgotten in time, as by an agent between two bursts.
                    if rounds % 1000 == 0 {
                        node = fresh.clone();
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, limits, plans, requests);
criterion_main!(benches);
