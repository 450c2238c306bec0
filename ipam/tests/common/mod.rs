//! A store with compare-and-swap in memory, and a driver that does one step at a time.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::allocator::{
    Assign, Claim, Key, Kind, Limits, Object, Outcome, Read, Release, Request, Step, View, Write, plan,
};
use culvert_ipam::block::Block;
use culvert_ipam::error::Error;
use culvert_ipam::handle::Handle;
use culvert_ipam::pool::{Family, Pool, Use};
use culvert_ipam::timestamp::Timestamp;
use ipnet::IpNet;

/// A moment of 2026, in nanoseconds since 1970.
pub const NOW: u64 = 1_790_000_000_123_456_789;

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn pool(name: &str, cidr: &str, block_size: u8) -> Pool {
    Pool::new(name, net(cidr), Some(block_size)).unwrap()
}

/// Somebody else wrote first.
#[derive(Debug)]
pub struct Refused;

/// Objects by key, each with the revision of its last write.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub objects: BTreeMap<Key, (u64, Object)>,
    pub writes: u64,
}

impl Store {
    pub fn write(&mut self, write: &Write) -> Result<String, Refused> {
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

    pub fn put(&mut self, name: &str, object: Object) {
        self.writes += 1;
        self.objects
            .insert(Key::new(object.kind(), name), (self.writes, object));
    }

    pub fn read(&self, read: &Read, view: &mut View) {
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

    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.objects.values().filter_map(|(_, object)| match object {
            Object::Block(block) => Some(block),
            _ => None,
        })
    }

    pub fn block(&self, cidr: &str) -> &Block {
        self.blocks().find(|b| b.cidr == net(cidr)).unwrap()
    }

    pub fn affinities(&self) -> impl Iterator<Item = &Affinity> {
        self.objects.values().filter_map(|(_, object)| match object {
            Object::Affinity(affinity) => Some(affinity),
            _ => None,
        })
    }

    pub fn handles(&self) -> impl Iterator<Item = &Handle> {
        self.objects.values().filter_map(|(_, object)| match object {
            Object::Handle(handle) => Some(handle),
            _ => None,
        })
    }

    pub fn handle(&self, id: &str) -> Option<&Handle> {
        self.handles().find(|h| h.handle_id == id)
    }
}

/// A process on a node in the midst of a request.
#[derive(Clone, Debug)]
pub struct Driver {
    pub request: Request,
    pub view: View,
    pub freed: Vec<IpAddr>,
    /// Steps since the last write that was refused.
    steps: u32,
}

/// What a step came to.
pub enum Stepped {
    Read,
    Wrote(Write),
    Conflict(Key),
    Done(Outcome),
    Failed(Error),
}

impl Driver {
    pub fn new(pools: &[Pool], limits: Limits, request: Request) -> Self {
        let view = View::new(pools.iter().cloned().map(Ok), limits);
        Self {
            request,
            view,
            freed: Vec::new(),
            steps: 0,
        }
    }

    /// Does one read or one write.
    pub fn step(&mut self, store: &mut Store) -> Stepped {
        self.steps += 1;
        assert!(
            self.steps < 500,
            "no end of steps for {:?} on {store:#?}",
            self.request
        );
        let now = Timestamp::from_unix_nanos(NOW + store.writes);
        match plan(&self.view, &self.request, now) {
            Err(error) => Stepped::Failed(error),
            Ok(Step::Done(outcome)) => Stepped::Done(outcome),
            Ok(Step::Read(read)) => {
                store.read(&read, &mut self.view);
                Stepped::Read
            }
            Ok(Step::Write { write, frees }) => match store.write(&write) {
                Ok(revision) => {
                    self.view.wrote(write.clone(), revision);
                    self.freed.extend(frees);
                    Stepped::Wrote(write)
                }
                Err(Refused) => {
                    self.steps = 0;
                    self.view.forget(write.key());
                    Stepped::Conflict(write.key())
                }
            },
        }
    }

    /// All steps, alone, and the writes among them.
    pub fn run(&mut self, store: &mut Store) -> (Result<Outcome, Error>, Vec<Write>) {
        let mut writes = Vec::new();
        loop {
            match self.step(store) {
                Stepped::Read => {}
                Stepped::Wrote(write) => writes.push(write),
                Stepped::Conflict(key) => panic!("a conflict on {key}, but nobody else is there"),
                Stepped::Done(outcome) => return (Ok(outcome), writes),
                Stepped::Failed(error) => return (Err(error), writes),
            }
        }
    }
}

pub fn assign(node: &str, handle: &str) -> Request {
    Request::Assign(Assign {
        node: node.to_owned(),
        handle: handle.to_owned(),
        attributes: BTreeMap::from([("pod".to_owned(), handle.to_owned())]),
        usage: Use::Workload,
        family: Family::V4,
        count: 1,
    })
}

pub fn release(node: &str, handle: &str) -> Request {
    Request::Release(Release {
        node: node.to_owned(),
        handle: handle.to_owned(),
    })
}

pub fn claim(node: &str) -> Request {
    Request::Claim(Claim {
        node: node.to_owned(),
        usage: Use::Workload,
        family: Family::V4,
    })
}

pub fn affinity(node: &str, cidr: &str, state: AffinityState) -> Object {
    let mut affinity = Affinity::pending(node, net(cidr));
    affinity.state = state;
    Object::Affinity(affinity)
}

/// One line for a write: what, which, and the state of it that matters.
pub fn line(write: &Write) -> String {
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

pub fn kind_of(key: &Key) -> Kind {
    key.kind
}
