//! The nodes, the pods, the store, and the rules.

mod rest;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::allocator::{Assign, Held, Object, Outcome, Policy, Release, Request, View, Wanted, Write};
use culvert_ipam::check;
use culvert_ipam::collect::{Collection, Memory, Reclaim, Settings, collect};
use culvert_ipam::limits::Limits;
use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::pool::{Family, Pool, Pools, Use};
use culvert_ipam::snapshot::{Action, Pod, Snapshot, Source, Stored};
use culvert_ipam::timestamp::Timestamp;
use ipnet::IpNet;

use crate::calico::{Ask, Calico, Came, secondary};
use crate::common::{Driver, NOW, Stepped, Store, claim, policy, pool};
use crate::dice::{Dice, Statistics};

/// What a process is at.
#[derive(Clone)]
enum Work {
    Idle,
    Ours(Vec<Request>, Box<Driver>),
    Foreign(Calico),
}

struct Process {
    node: String,
    is_foreign: bool,
    work: Work,
    /// Of ours: what it knows from its earlier requests, where it keeps that.
    kept: Option<View>,
}

/// A pod, by its handle.
#[derive(Clone, Debug)]
struct Living {
    node: String,
    addresses: Vec<IpAddr>,
}

pub(crate) struct World {
    dice: Dice,
    pools: Vec<Pool>,
    families: Vec<Family>,
    limits: Limits,
    store: Store,
    processes: Vec<Process>,
    nodes: BTreeSet<String>,
    /// Pods that the API knows, by handle; the handle is the pod's name.
    pods: BTreeMap<String, Living>,
    /// Who was told that an address is his, and has not begun to release it since.
    told: BTreeMap<IpAddr, String>,
    memory: Memory,
    /// All affinities as they were some time ago: name, revision, and what they said.
    memory_of_affinities: Vec<(String, String, Affinity)>,
    /// What the collector decided on some time ago, and its driver.
    due: Vec<Reclaim>,
    collector: Option<Box<Driver>>,
    ahead: u64,
    pods_made: u64,
    statistics: Statistics,
}

impl World {
    pub(crate) fn run(seed: u64) -> Statistics {
        let mut world = Self::new(seed);
        let moves = 40 + world.dice.below(160);
        for _ in 0..moves {
            world.play();
        }
        world.rest();
        world.statistics
    }

    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        // Few blocks of four: scarce, so that nodes collide and run out.
        let v4 = [pool("a", "10.0.0.0/28", 30), pool("b", "10.0.1.0/29", 30)];
        let v6 = [pool("c", "fd00::/124", 126), pool("d", "fd00:1::/125", 126)];
        let (pools, families) = match dice.below(4) {
            0 | 1 => (v4.to_vec(), vec![Family::V4]),
            2 => (v6.to_vec(), vec![Family::V6]),
            _ => (v4.into_iter().chain(v6).collect(), vec![Family::V4, Family::V6]),
        };
        let strict = dice.one_in(2);
        let limits = Limits {
            strict_affinity: strict,
            auto_allocate_blocks: true,
            max_blocks_per_host: if strict {
                u32::try_from(dice.below(4)).unwrap()
            } else {
                0
            },
            cooldown_seconds: if dice.one_in(3) { 20 } else { 0 },
        };
        let count = 2 + dice.below(4);
        let has_calico = families == [Family::V4] || families == [Family::V6];
        let mut processes = Vec::new();
        for n in 0..count {
            let is_foreign = has_calico && dice.one_in(3);
            processes.push((format!("n{n}"), is_foreign));
        }
        // Two processes on the last node, as while an agent is replaced, or takes over from Calico.
        if dice.one_in(2) {
            processes.push((format!("n{}", count - 1), has_calico && dice.one_in(2)));
        }
        let process = |(node, is_foreign)| Process {
            node,
            is_foreign,
            work: Work::Idle,
            kept: None,
        };
        let processes: Vec<Process> = processes.into_iter().map(process).collect();
        Self {
            dice,
            pools,
            families,
            limits,
            store: Store::default(),
            nodes: processes.iter().map(|p| p.node.clone()).collect(),
            processes,
            pods: BTreeMap::new(),
            told: BTreeMap::new(),
            memory: Memory::default(),
            memory_of_affinities: Vec::new(),
            due: Vec::new(),
            collector: None,
            ahead: 0,
            pods_made: 0,
            statistics: Statistics::default(),
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_unix_nanos(NOW + self.store.writes + self.ahead * 1_000_000_000)
    }

    fn policy(&self) -> Policy {
        policy(&self.pools, self.limits)
    }

    fn play(&mut self) {
        match self.dice.below(40) {
            0 => self.crash(),
            1 => self.ahead += 10 + self.dice.next() % 60,
            2 => self.look(true),
            7 => self.remember_affinities(),
            3..6 => self.take_back(),
            // The API forgets a pod whose process died, or that is at work still.
            6 if self.dice.one_in(2) => self.lose_a_pod(),
            _ => {
                let index = self.dice.below(self.processes.len());
                self.step(index);
            }
        }
    }

    fn crash(&mut self) {
        let index = self.dice.below(self.processes.len());
        let process = &mut self.processes[index];
        self.statistics.crashes += u64::from(!matches!(process.work, Work::Idle));
        process.work = Work::Idle;
        process.kept = None;
        if self.dice.one_in(3) {
            self.collector = None;
            self.due.clear();
        }
    }

    fn lose_a_pod(&mut self) {
        let at_work = self.processes.iter().filter_map(|p| match &p.work {
            Work::Foreign(calico) => Some(vec![handle_asked(&calico.ask).to_owned()]),
            Work::Ours(requests, _) => {
                Some(requests.iter().filter_map(handle_of).map(str::to_owned).collect())
            }
            Work::Idle => None,
        });
        let busy: BTreeSet<String> = at_work.flatten().collect();
        let idle: Vec<String> = self.pods.keys().filter(|h| !busy.contains(*h)).cloned().collect();
        if let Some(handle) = idle.get(self.dice.below(idle.len())) {
            self.pods.remove(handle);
            self.told.retain(|_, h| h != handle);
        }
    }

    /// One access of a process; an idle one begins something.
    fn step(&mut self, index: usize) {
        if matches!(self.processes[index].work, Work::Idle) {
            self.begin(index);
        }
        match std::mem::replace(&mut self.processes[index].work, Work::Idle) {
            Work::Idle => {}
            Work::Foreign(mut calico) => {
                let writes = self.store.writes;
                let came = calico.step(&mut self.store);
                match came {
                    None => self.processes[index].work = Work::Foreign(calico),
                    Some(came) => self.foreign_done(&calico, came),
                }
                if self.store.writes != writes {
                    self.check();
                }
            }
            Work::Ours(requests, mut driver) => {
                driver.ahead = self.ahead;
                let stepped = driver.step(&mut self.store);
                let told: Vec<_> = driver.outcomes.iter_mut().map(Option::take).collect();
                for (request, outcome) in requests.iter().zip(told) {
                    if let Some(outcome) = outcome {
                        self.done(request, outcome);
                    }
                }
                match stepped {
                    Stepped::Done => {
                        let keeps = self.dice.one_in(2);
                        self.processes[index].kept = keeps.then_some(driver.view);
                        return;
                    }
                    Stepped::Wrote(write, _) => {
                        self.statistics.borrowed += u64::from(is_borrowing(&write));
                        self.check();
                    }
                    Stepped::Conflict(_) => self.statistics.conflicts += 1,
                    Stepped::Read => {}
                }
                self.processes[index].work = Work::Ours(requests, driver);
            }
        }
    }

    fn begin(&mut self, index: usize) {
        let (node, is_foreign) = (
            self.processes[index].node.clone(),
            self.processes[index].is_foreign,
        );
        let wants_release = self.dice.one_in(3);
        let own: Vec<String> = self
            .pods
            .iter()
            .filter(|(_, p)| p.node == node)
            .map(|(h, _)| h.clone())
            .collect();
        let leaves = own
            .get(self.dice.below(own.len()))
            .filter(|h| wants_release && !self.is_busy(h))
            .cloned();
        if is_foreign {
            let ask = match leaves {
                Some(handle) => {
                    self.leave(&handle);
                    Ask::Release { handle }
                }
                None => {
                    let handle = self.new_pod(&node);
                    Ask::Assign {
                        pod: handle.clone(),
                        handle,
                    }
                }
            };
            let calico = Calico::new(&node, ask, &self.pools, self.limits.strict_affinity, self.now());
            self.processes[index].work = Work::Foreign(calico);
            return;
        }
        let mut requests = Vec::new();
        if let Some(handle) = leaves {
            requests.push(self.our_release(&node, &handle));
        }
        for _ in 0..=self.dice.below(3) {
            if requests.is_empty() || self.dice.one_in(2) {
                requests.push(self.our_assign(&node));
            }
        }
        if self.dice.one_in(6) {
            requests.push(claim_of(&node, self.families[0]));
        }
        let kept = self.processes[index].kept.take();
        let view = kept.unwrap_or_else(|| self.new_view(&node));
        let driver = Box::new(Driver::on(view, requests.clone()));
        self.processes[index].work = Work::Ours(requests, driver);
    }

    /// A view of which nothing was read yet; perhaps with the node's affinities from a memory of some time ago.
    fn new_view(&mut self, node: &str) -> View {
        let mut view = View::new(self.policy());
        if self.dice.one_in(2) {
            let of_node = self
                .memory_of_affinities
                .iter()
                .filter(|(_, _, a)| a.node == node);
            view.recalled(node, of_node.cloned());
        }
        view
    }

    /// What a watch has told by now.
    fn remember_affinities(&mut self) {
        let objects = self.store.objects.iter();
        let affinities = objects.filter_map(|(key, (revision, object))| match object {
            Object::Affinity(affinity) => Some((key.name.clone(), revision.to_string(), affinity.clone())),
            Object::Block(_) | Object::Handle(_) => None,
        });
        self.memory_of_affinities = affinities.collect();
    }

    fn is_busy(&self, handle: &str) -> bool {
        self.processes.iter().any(|p| match &p.work {
            Work::Foreign(calico) => handle_asked(&calico.ask) == handle,
            Work::Ours(requests, _) => requests.iter().any(|r| handle_of(r) == Some(handle)),
            Work::Idle => false,
        })
    }

    fn new_pod(&mut self, node: &str) -> String {
        self.pods_made += 1;
        let handle = format!("{node}-c{}", self.pods_made);
        let pod = Living {
            node: node.to_owned(),
            addresses: Vec::new(),
        };
        self.pods.insert(handle.clone(), pod);
        handle
    }

    /// The pod is about to go: what it has may be another's from now on.
    fn leave(&mut self, handle: &str) {
        self.pods.remove(handle);
        self.told.retain(|_, h| h != handle);
    }

    fn our_assign(&mut self, node: &str) -> Request {
        let handle = self.new_pod(node);
        let wanted = self.families.iter().map(|f| Wanted::one(*f)).collect();
        Request::Assign(Assign {
            node: node.to_owned(),
            attributes: secondary(node, &handle),
            handle,
            usage: Use::Workload,
            wanted,
            excluded: BTreeMap::new(),
        })
    }

    fn our_release(&mut self, node: &str, handle: &str) -> Request {
        self.leave(handle);
        let (node, handle) = (node.to_owned(), handle.to_owned());
        let what = Held::Handle(handle);
        Request::Release(Release { node, what })
    }

    fn foreign_done(&mut self, calico: &Calico, came: Came) {
        match (&calico.ask, came) {
            (Ask::Assign { handle, .. }, Came::Assigned(address)) => {
                self.statistics.foreign += 1;
                self.tell(handle, vec![address]);
            }
            (Ask::Assign { handle, .. }, _) => self.leave(handle),
            (Ask::Release { .. }, _) => self.statistics.released += 1,
        }
    }

    fn done(&mut self, request: &Request, outcome: Result<Outcome, culvert_ipam::error::Error>) {
        use culvert_ipam::error::Error;
        match (request, outcome) {
            (Request::Assign(request), Ok(Outcome::Assigned(addresses))) => {
                let families: Vec<Family> = addresses.iter().map(|a| Family::of_address(*a)).collect();
                assert_eq!(families, self.families);
                self.statistics.assigned += 1;
                self.tell(&request.handle, addresses);
            }
            (Request::Assign(request), Err(Error::Exhausted { .. } | Error::BlockLimit { .. })) => {
                self.statistics.refused += 1;
                self.leave(&request.handle);
            }
            (Request::Claim(_), Ok(_) | Err(Error::Exhausted { .. } | Error::BlockLimit { .. })) => {}
            (Request::Release(_), Ok(_)) => self.statistics.released += 1,
            (request, outcome) => panic!("{request:?} came to {outcome:?}"),
        }
    }

    fn tell(&mut self, handle: &str, addresses: Vec<IpAddr>) {
        let Some(pod) = self.pods.get_mut(handle) else {
            return;
        };
        pod.addresses.clone_from(&addresses);
        for address in addresses {
            assert!(
                self.pools.iter().any(|p| p.block_of(address).is_some()),
                "{address}"
            );
            let before = self.told.insert(address, handle.to_owned());
            assert_eq!(before, None, "{address} was given to {handle} too");
        }
    }

    /// The collector looks, perhaps while something is not in sync.
    fn look(&mut self, may_be_stale: bool) {
        let mut snapshot = self.snapshot();
        if may_be_stale && self.dice.one_in(4) {
            snapshot.in_sync.remove(&Source::ALL[self.dice.below(6)]);
        }
        let settings = Settings {
            grace_seconds: 30,
            limit: 100,
            ..Settings::default()
        };
        let Collection {
            memory,
            reclaims,
            missing,
            ..
        } = collect(&snapshot, settings, &self.memory, self.now());
        assert!(
            missing.is_empty() || reclaims.is_empty(),
            "nothing is taken on half a view"
        );
        self.memory = memory;
        self.due.extend(reclaims);
    }

    /// The collector does one access of what it decided on.
    fn take_back(&mut self) {
        if let Some(mut driver) = self.collector.take() {
            driver.ahead = self.ahead;
            match driver.step(&mut self.store) {
                Stepped::Done => return,
                Stepped::Wrote(..) => self.check(),
                Stepped::Conflict(_) => self.statistics.conflicts += 1,
                Stepped::Read => {}
            }
            self.collector = Some(driver);
            return;
        }
        let Some(reclaim) = self.due.pop() else { return };
        if !reclaim.is_still_due(&self.snapshot(), Settings::default()) {
            return;
        }
        self.statistics.reclaimed += 1;
        match reclaim.action() {
            Action::Request(request) => {
                self.collector = Some(Box::new(Driver::batch(self.policy(), vec![request])));
            }
            Action::Write(write) => {
                if self.store.write(&write).is_ok() {
                    self.check();
                }
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            pools: Pools::new(self.pools.iter().cloned().map(Ok)),
            limits: self.limits,
            nodes: self.nodes.iter().map(|n| (n.clone(), Vec::new())).collect(),
            in_sync: Source::ALL.into_iter().collect(),
            ..Snapshot::default()
        };
        let pods = self.pods.iter().map(|(handle, pod)| Pod {
            namespace: "default".to_owned(),
            name: handle.clone(),
            node: Some(pod.node.clone()),
            addresses: pod.addresses.clone(),
        });
        snapshot.pods = pods.collect();
        for (key, (revision, object)) in &self.store.objects {
            let (name, revision) = (key.name.clone(), revision.to_string());
            match object.clone() {
                Object::Affinity(spec) => snapshot.affinities.push(Stored { name, revision, spec }),
                Object::Block(spec) => snapshot.blocks.push(Stored { name, revision, spec }),
                Object::Handle(spec) => snapshot.handles.push(Stored { name, revision, spec }),
            }
        }
        snapshot
    }

    /// The rules that hold after every write.
    fn check(&self) {
        let mut holders: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for block in self.store.blocks().filter(|b| !b.deleted) {
            check::block(block).unwrap_or_else(|fault| panic!("{fault}"));
            let lost = Ordinals::of(block).unwrap().free() != block.unallocated.len();
            assert!(!lost, "an ordinal was lost: {block:?}");
            for taken in block.taken() {
                if let Some(handle) = taken.attribute.handle() {
                    holders.insert(taken.address, handle);
                }
            }
        }
        for (address, handle) in &self.told {
            assert_eq!(
                holders.get(address),
                Some(&handle.as_str()),
                "{address} was given to {handle}"
            );
        }
        let mut confirmed: BTreeMap<IpNet, &str> = BTreeMap::new();
        let affinities = self.store.affinities().filter(|a| !a.is_deleted());
        for claim in affinities.filter(|a| a.state == AffinityState::Confirmed) {
            let other = confirmed.insert(claim.cidr, &claim.node);
            assert_eq!(other, None, "{} has two owners", claim.cidr);
        }
    }
}

fn claim_of(node: &str, family: Family) -> Request {
    let Request::Claim(mut request) = claim(node) else {
        unreachable!()
    };
    request.family = family;
    Request::Claim(request)
}

fn handle_asked(ask: &Ask) -> &str {
    match ask {
        Ask::Assign { handle, .. } | Ask::Release { handle } => handle,
    }
}

fn handle_of(request: &Request) -> Option<&str> {
    match request {
        Request::Assign(assign) => Some(&assign.handle),
        Request::Release(release) => match &release.what {
            Held::Handle(handle) => Some(handle),
            Held::Addresses(_) => None,
        },
        Request::Claim(_) | Request::Unclaim(_) => None,
    }
}

/// Whether the write leaves an address in a block that is not its node's.
fn is_borrowing(write: &Write) -> bool {
    let Write::Update {
        object: Object::Block(block),
        ..
    } = write
    else {
        return false;
    };
    block.taken().any(|t| {
        t.attribute
            .value("node")
            .is_some_and(|node| !block.is_of_node(node))
    })
}
