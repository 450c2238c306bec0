//! How many requests a second are planned, in memory: pods that come and go on one node, in batches, each plan with all its
//! steps, the store being a map. `cargo bench -p culvert-ipam`; the goal is 50,000 a second.

#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a bench that fails stops; its numbers are small"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures time"
)]

use std::collections::BTreeMap;
use std::time::Instant;

use culvert_ipam::allocator::{
    Assign, Held, Key, Kind, Object, Policy, Read, Release, Request, Step, View, Wanted, Write, plan,
};
use culvert_ipam::pool::{Family, Pool, Pools, Use};
use culvert_ipam::timestamp::Timestamp;

const REQUESTS: usize = 100_000;

#[derive(Default)]
struct Store {
    objects: BTreeMap<Key, (u64, Object)>,
    writes: u64,
    block_writes: u64,
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
        self.block_writes += u64::from(key.kind == Kind::Block);
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

fn run(store: &mut Store, view: &mut View, mut batch: Vec<Request>) {
    loop {
        let now = Timestamp::from_unix_nanos(1_790_000_000_000_000_000 + store.writes);
        let planned = plan(view, &batch, now);
        let mut outcomes = planned.outcomes.into_iter();
        batch.retain(|_| outcomes.next().unwrap().map(Result::unwrap).is_none());
        match planned.step {
            Step::Read(reads) => reads.iter().for_each(|read| store.read(read, view)),
            Step::Write(changes) => {
                for change in changes {
                    let revision = store.write(&change.write);
                    view.wrote(change, revision);
                }
            }
            Step::Done if batch.is_empty() => return,
            Step::Done => {}
        }
    }
}

fn assign(pod: usize) -> Request {
    let text = |text: &str| text.to_owned();
    Request::Assign(Assign {
        node: text("node-1"),
        handle: format!("k8s-pod-network.{pod:064x}"),
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
        what: Held::Handle(format!("k8s-pod-network.{pod:064x}")),
    })
}

fn main() {
    for size in [1, 4, 16, 64] {
        let pool = Pool::new("p", "10.0.0.0/16".parse().unwrap(), None);
        let policy = Policy {
            pools: Pools::new([pool]),
            ..Policy::default()
        };
        let (mut store, mut view) = (Store::default(), View::new(policy));
        // A node that is half full: 120 pods.
        run(&mut store, &mut view, (0..120).map(assign).collect());
        store.writes = 0;
        store.block_writes = 0;
        let start = Instant::now();
        let mut next = 120;
        for _ in 0..REQUESTS / size / 2 {
            run(&mut store, &mut view, (next..next + size).map(assign).collect());
            run(
                &mut store,
                &mut view,
                (next - 120..next - 120 + size).map(release).collect(),
            );
            next += size;
        }
        let seconds = start.elapsed().as_secs_f64();
        let per_request = |n: u64| n as f64 / REQUESTS as f64;
        println!(
            "batches of {size:2}: {:7.0} requests/s, {:.2} writes a request, {:.2} of them of blocks",
            REQUESTS as f64 / seconds,
            per_request(store.writes),
            per_request(store.block_writes),
        );
    }
}
