//! A store with compare-and-swap in memory, and a driver that does one step at a time.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::allocator::{
    Assign, Change, Claim, Freed, Held, HeldAddress, Key, Object, Outcome, Policy, Read, Release, Request,
    Step, Unclaim, View, Wanted, Write, plan,
};
use culvert_ipam::block::Block;
use culvert_ipam::error::Error;
use culvert_ipam::handle::Handle;
use culvert_ipam::limits::Limits;
use culvert_ipam::pool::{Family, Pool, Pools, Use};
use culvert_ipam::timestamp::Timestamp;
use ipnet::IpNet;

/// A moment of 2026, in nanoseconds since 1970.
pub(crate) const NOW: u64 = 1_790_000_000_123_456_789;

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
    Pool::new(name, net(cidr), Some(block_size)).unwrap()
}

/// Somebody else wrote first.
#[derive(Debug)]
pub(crate) struct Refused;

/// Objects by key, each with the revision of its last write.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<Key, (u64, Object)>,
    pub(crate) writes: u64,
}

impl Store {
    pub(crate) fn write(&mut self, write: &Write) -> Result<String, Refused> {
        let key = write.key();
        let there = self.objects.get(&key).map(|(revision, _)| revision.to_string());
        let based_on = match write {
            Write::Create { .. } => None,
            Write::Update { revision, .. } | Write::Delete { revision, .. } => Some(revision.clone()),
        };
        if there != based_on {
            return Err(Refused);
        }
        self.writes += 1;
        match write {
            Write::Create { object, .. } | Write::Update { object, .. } => {
                self.objects.insert(key, (self.writes, object.clone()));
            }
            Write::Delete { .. } => {
                self.objects.remove(&key);
            }
        }
        Ok(self.writes.to_string())
    }

    pub(crate) fn put(&mut self, name: &str, object: Object) {
        self.writes += 1;
        self.objects
            .insert(Key::new(object.kind(), name), (self.writes, object));
    }

    pub(crate) fn read(&self, read: &Read, view: &mut View) {
        match read {
            Read::List(kind) => {
                let all = self.objects.iter().filter(|(key, _)| key.kind == *kind);
                view.listed(
                    *kind,
                    all.map(|(k, (r, o))| (k.name.clone(), r.to_string(), o.clone())),
                );
            }
            Read::Get(key) => {
                let object = self.objects.get(key).map(|(r, o)| (r.to_string(), o.clone()));
                view.got(key.clone(), object);
            }
        }
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.objects.values().filter_map(|(_, object)| match object {
            Object::Block(block) => Some(block),
            _ => None,
        })
    }

    pub(crate) fn block(&self, cidr: &str) -> &Block {
        self.blocks().find(|b| b.cidr == net(cidr)).unwrap()
    }

    pub(crate) fn affinities(&self) -> impl Iterator<Item = &Affinity> {
        self.objects.values().filter_map(|(_, object)| match object {
            Object::Affinity(affinity) => Some(affinity),
            _ => None,
        })
    }

    pub(crate) fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.objects.values().filter_map(|(_, object)| match object {
            Object::Handle(handle) => Some(handle),
            _ => None,
        })
    }

    pub(crate) fn handle(&self, id: &str) -> Option<&Handle> {
        self.handles().find(|h| h.handle_id == id)
    }
}

/// A policy of these pools.
pub(crate) fn policy(pools: &[Pool], limits: Limits) -> Policy {
    Policy {
        pools: Pools::new(pools.iter().cloned().map(Ok)),
        limits,
        ..Policy::default()
    }
}

/// A process in the midst of a batch of requests.
#[derive(Clone, Debug)]
pub(crate) struct Driver {
    /// Those that have no outcome yet, with their place in the batch.
    waiting: Vec<(usize, Request)>,
    pub(crate) outcomes: Vec<Option<Result<Outcome, Error>>>,
    pub(crate) view: View,
    pub(crate) freed: Vec<IpAddr>,
    reads: VecDeque<Read>,
    writes: VecDeque<Change>,
    /// Seconds that the clock is ahead.
    pub(crate) ahead: u64,
    /// Steps since the last write that was refused.
    steps: u32,
}

/// What a step came to.
#[allow(clippy::large_enum_variant, reason = "made and dropped, never stored")]
pub(crate) enum Stepped {
    Read,
    Wrote(Write, Vec<Freed>),
    Conflict(Key),
    /// All requests have an outcome.
    Done,
}

impl Driver {
    pub(crate) fn new(pools: &[Pool], limits: Limits, request: Request) -> Self {
        Self::batch(policy(pools, limits), vec![request])
    }

    pub(crate) fn batch(policy: Policy, requests: Vec<Request>) -> Self {
        Self::on(View::new(policy), requests)
    }

    /// With what is known already.
    pub(crate) fn on(view: View, requests: Vec<Request>) -> Self {
        Self {
            outcomes: vec![None; requests.len()],
            waiting: requests.into_iter().enumerate().collect(),
            view,
            freed: Vec::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
            ahead: 0,
            steps: 0,
        }
    }

    /// Does one read or one write.
    pub(crate) fn step(&mut self, store: &mut Store) -> Stepped {
        loop {
            self.steps += 1;
            assert!(
                self.steps < 2000,
                "no end of steps for {:?} on {store:#?}",
                self.waiting
            );
            if let Some(read) = self.reads.pop_front() {
                store.read(&read, &mut self.view);
                return Stepped::Read;
            }
            if let Some(change) = self.writes.pop_front() {
                return self.write(store, change);
            }
            if self.plan(store) {
                return Stepped::Done;
            }
        }
    }

    fn write(&mut self, store: &mut Store, change: Change) -> Stepped {
        match store.write(&change.write) {
            Ok(revision) => {
                self.view.wrote(change.clone(), revision);
                self.freed.extend(change.frees.iter().map(|f| f.address));
                Stepped::Wrote(change.write, change.frees)
            }
            Err(Refused) => {
                self.steps = 0;
                self.view.forget(change.write.key());
                Stepped::Conflict(change.write.key())
            }
        }
    }

    /// Plans the next step; whether there is none.
    fn plan(&mut self, store: &Store) -> bool {
        let now = Timestamp::from_unix_nanos(NOW + store.writes + self.ahead * 1_000_000_000);
        let batch: Vec<Request> = self.waiting.iter().map(|(_, request)| request.clone()).collect();
        let planned = plan(&self.view, &batch, now);
        let is_news = planned.outcomes.iter().any(Option::is_some);
        let mut outcomes = planned.outcomes.into_iter();
        self.waiting.retain(|(index, _)| match outcomes.next().unwrap() {
            Some(outcome) => {
                self.outcomes[*index] = Some(outcome);
                false
            }
            None => true,
        });
        match planned.step {
            Step::Read(reads) => self.reads = reads.into(),
            Step::Write(changes) => {
                let keys: std::collections::BTreeSet<Key> = changes.iter().map(|c| c.write.key()).collect();
                assert_eq!(keys.len(), changes.len(), "each write is about another object");
                self.writes = changes.into();
            }
            Step::Done if self.waiting.is_empty() => return true,
            Step::Done => assert!(is_news, "nothing to do for {:?} on {store:#?}", self.waiting),
        }
        false
    }

    /// All steps, alone, and the writes among them.
    pub(crate) fn run_all(&mut self, store: &mut Store) -> Vec<Write> {
        let mut writes = Vec::new();
        loop {
            match self.step(store) {
                Stepped::Read => {}
                Stepped::Wrote(write, _) => writes.push(write),
                // A handle that nobody has read is taken to be new.
                Stepped::Conflict(key) if key.kind == culvert_ipam::allocator::Kind::Handle => {}
                Stepped::Conflict(key) => panic!("a conflict on {key}, but nobody else is there"),
                Stepped::Done => return writes,
            }
        }
    }

    /// All steps of one request, alone, and the writes among them.
    pub(crate) fn run(&mut self, store: &mut Store) -> (Result<Outcome, Error>, Vec<Write>) {
        let writes = self.run_all(store);
        (self.outcomes.remove(0).unwrap(), writes)
    }
}

pub(crate) fn assign(node: &str, handle: &str) -> Request {
    assign_wanted(node, handle, vec![Wanted::one(Family::V4)])
}

pub(crate) fn assign_wanted(node: &str, handle: &str, wanted: Vec<Wanted>) -> Request {
    Request::Assign(Assign {
        node: node.to_owned(),
        handle: handle.to_owned(),
        attributes: BTreeMap::from([("pod".to_owned(), handle.to_owned())]),
        usage: Use::Workload,
        wanted,
        excluded: BTreeMap::new(),
    })
}

pub(crate) fn release(node: &str, handle: &str) -> Request {
    Request::Release(Release {
        node: node.to_owned(),
        what: Held::Handle(handle.to_owned()),
    })
}

pub(crate) fn release_address(node: &str, address: &str, sequence_number: Option<u64>) -> Request {
    Request::Release(Release {
        node: node.to_owned(),
        what: Held::Addresses(vec![HeldAddress {
            address: address.parse().unwrap(),
            handle: None,
            sequence_number,
        }]),
    })
}

pub(crate) fn unclaim(node: &str, block: &str, must_be_empty: bool) -> Request {
    Request::Unclaim(Unclaim {
        node: node.to_owned(),
        block: net(block),
        must_be_empty,
        sequence_number: None,
    })
}

pub(crate) fn claim(node: &str) -> Request {
    Request::Claim(Claim {
        node: node.to_owned(),
        usage: Use::Workload,
        family: Family::V4,
    })
}

pub(crate) fn affinity(node: &str, cidr: &str, state: AffinityState) -> Object {
    let mut affinity = Affinity::pending(node, net(cidr));
    affinity.state = state;
    Object::Affinity(affinity)
}

/// One line for a write: what, which, and the state of it that matters.
pub(crate) fn line(write: &Write) -> String {
    let verb = match write {
        Write::Create { .. } => "create",
        Write::Update { .. } => "update",
        Write::Delete { key, .. } => return format!("delete {key}"),
    };
    let (Write::Create { object, .. } | Write::Update { object, .. }) = write else {
        return verb.to_owned();
    };
    let state = match object {
        Object::Affinity(affinity) => format!("{:?}", affinity.state),
        Object::Block(block) => format!("{} in use", block.allocations.iter().flatten().count()),
        Object::Handle(handle) => format!("{:?}", handle.block.values().collect::<Vec<_>>()),
    };
    format!("{verb} {} {state}", write.key())
}
