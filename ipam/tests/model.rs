//! Any number of allocators on one store, interleaved read by read and write by write, with conflicts, crashes between any
//! two steps, and restarts.
//!
//! Each case is a sequence of moves that proptest makes from a fixed seed and shrinks when a rule is broken. The rules are
//! checked after every write:
//!
//! - no address is given to a second handle before the first has begun to release it, and none leaves the pool;
//! - every block is sound, and at most one node has a confirmed claim to it;
//! - no handle counts less than it has;
//!
//! and once all requests have come to rest and all handles are released by those who had them, everything is free again.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use culvert_ipam::affinity::AffinityState;
use culvert_ipam::allocator::{Held, Object, Outcome, Request};
use culvert_ipam::block::{Block, Owner};
use culvert_ipam::error::Error;
use culvert_ipam::limits::Limits;
use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::pool::Pool;
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use common::{Driver, Stepped, Store, assign, claim, pool, release};

/// So many interleavings are tried; `PROPTEST_CASES` does not change it.
const INTERLEAVINGS: u32 = 2000;
/// Handles of each process: more than there are addresses, all in all.
const HANDLES: u8 = 7;
const SEED: u64 = 0x0cc1_0e57;

/// What the world does next.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// A process does one read or write; an idle one begins a request for one of its handles.
    Step { process: u8, what: What, handle: u8 },
    /// A process dies and comes back without memory; what it has written stays.
    Crash { process: u8 },
    /// Somebody begins to take a confirmed claim away, as Calico's garbage collector does, and gets no further.
    Collect { which: u8 },
}

#[derive(Clone, Copy, Debug)]
enum What {
    Assign,
    Release,
    Claim,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let what = prop_oneof![6 => Just(What::Assign), 3 => Just(What::Release), 1 => Just(What::Claim)];
    let one = prop_oneof![
        60 => (any::<u8>(), what, any::<u8>()).prop_map(|(process, what, handle)| Move::Step { process, what, handle }),
        2 => any::<u8>().prop_map(|process| Move::Crash { process }),
        3 => any::<u8>().prop_map(|which| Move::Collect { which }),
    ];
    prop::collection::vec(one, 20..200)
}

#[derive(Clone, Debug)]
struct Setting {
    nodes: u8,
    /// Two processes on the last node, as while an agent is replaced; they have handles of their own.
    twins: bool,
    /// A handle that all nodes use.
    shared: bool,
    limits: Limits,
}

fn setting() -> impl Strategy<Value = Setting> {
    (2_u8..=5, any::<bool>(), any::<bool>(), 1_u32..4).prop_map(|(nodes, twins, shared, blocks)| Setting {
        nodes,
        twins,
        shared,
        limits: Limits {
            strict_affinity: true,
            max_blocks_per_host: blocks,
            ..Limits::default()
        },
    })
}

struct Process {
    node: String,
    name: String,
    driver: Option<Driver>,
    request: Option<Request>,
}

struct World {
    pools: Vec<Pool>,
    setting: Setting,
    store: Store,
    processes: Vec<Process>,
    /// Who was told that an address is his, and has not asked to release it since.
    told: BTreeMap<IpAddr, String>,
    statistics: Statistics,
}

#[derive(Default)]
struct Statistics {
    assigned: u64,
    released: u64,
    conflicts: u64,
    crashes: u64,
    refused: u64,
}

impl World {
    fn new(setting: Setting) -> Self {
        let mut processes: Vec<Process> = (0..setting.nodes)
            .map(|n| Process {
                node: format!("n{n}"),
                name: format!("n{n}"),
                driver: None,
                request: None,
            })
            .collect();
        if setting.twins {
            let node = format!("n{}", setting.nodes - 1);
            processes.push(Process {
                name: format!("{node}-twin"),
                node,
                driver: None,
                request: None,
            });
        }
        Self {
            // Four blocks of four and two of four: scarce, so that nodes collide and run out.
            pools: vec![pool("a", "10.0.0.0/28", 30), pool("b", "10.0.1.0/29", 30)],
            setting,
            store: Store::default(),
            processes,
            told: BTreeMap::new(),
            statistics: Statistics::default(),
        }
    }

    fn is_shared(handle: &str) -> bool {
        handle == "shared"
    }

    fn play(&mut self, next: Move) {
        match next {
            Move::Step {
                process,
                what,
                handle,
            } => {
                let index = usize::from(process) % self.processes.len();
                if self.processes[index].driver.is_none() {
                    self.begin(index, what, handle);
                }
                self.step(index);
            }
            Move::Crash { process } => {
                let index = usize::from(process) % self.processes.len();
                self.statistics.crashes += u64::from(self.processes[index].driver.take().is_some());
            }
            Move::Collect { which } => self.collect(usize::from(which)),
        }
    }

    fn begin(&mut self, index: usize, what: What, handle: u8) {
        let process = &self.processes[index];
        let handle = match handle % HANDLES {
            0 if self.setting.shared => "shared".to_owned(),
            n => format!("{}-pod{n}", process.name),
        };
        let request = match what {
            What::Assign => assign(&process.node, &handle),
            What::Release => release(&process.node, &handle),
            What::Claim => claim(&process.node),
        };
        self.start(index, request);
    }

    fn start(&mut self, index: usize, request: Request) {
        if let Request::Release(release) = &request
            && let Held::Handle(released) = &release.what
        {
            self.told.retain(|_, handle| handle != released);
        }
        self.processes[index].request = Some(request.clone());
        self.processes[index].driver = Some(Driver::new(&self.pools, self.setting.limits, request));
    }

    fn step(&mut self, index: usize) {
        let Some(driver) = &mut self.processes[index].driver else {
            return;
        };
        match driver.step(&mut self.store) {
            Stepped::Read => return,
            Stepped::Wrote(..) => return self.check(),
            Stepped::Conflict(_) => {
                self.statistics.conflicts += 1;
                return;
            }
            Stepped::Done => {}
        }
        let outcome = driver.outcomes.remove(0).unwrap();
        let request = self.processes[index].request.clone().unwrap();
        self.processes[index].driver = None;
        match outcome {
            Ok(outcome) => self.done(&request, outcome),
            Err(Error::Exhausted { .. } | Error::BlockLimit { .. }) => self.statistics.refused += 1,
            Err(error) => panic!("{error}"),
        }
    }

    fn done(&mut self, request: &Request, outcome: Outcome) {
        match (request, outcome) {
            (Request::Assign(request), Outcome::Assigned(addresses)) => {
                assert_eq!(addresses.len(), 1);
                self.statistics.assigned += 1;
                // A shared handle may be released by another node before this one was told.
                if !Self::is_shared(&request.handle) {
                    let address = addresses[0];
                    assert!(
                        self.pools.iter().any(|p| p.block_of(address).is_some()),
                        "{address}"
                    );
                    let before = self.told.insert(address, request.handle.clone());
                    assert!(
                        before.as_ref().is_none_or(|h| *h == request.handle),
                        "{address} is {before:?}'s and was given to {} too",
                        request.handle
                    );
                }
            }
            (Request::Release(_), Outcome::Released) => self.statistics.released += 1,
            (Request::Claim(_), Outcome::Claimed(blocks)) => assert!(!blocks.is_empty()),
            (request, outcome) => panic!("{request:?} came to {outcome:?}"),
        }
    }

    /// Marks a confirmed claim as being given up.
    fn collect(&mut self, which: usize) {
        let claims = self
            .store
            .objects
            .iter()
            .filter_map(|(key, (_, object))| match object {
                Object::Affinity(affinity) if affinity.state == AffinityState::Confirmed => {
                    Some((key.name.clone(), affinity))
                }
                _ => None,
            });
        let claims: Vec<_> = claims.collect();
        if claims.is_empty() {
            return;
        }
        let (name, affinity) = claims[which % claims.len()].clone();
        let mut affinity = affinity.clone();
        affinity.state = AffinityState::PendingDeletion;
        self.store.put(&name, Object::Affinity(affinity));
    }

    /// The rules that hold after every write.
    fn check(&self) {
        let mut holders: BTreeMap<IpAddr, String> = BTreeMap::new();
        let mut counts: BTreeMap<(String, IpNet), u32> = BTreeMap::new();
        for block in self.store.blocks() {
            for (address, handle) in taken_in(block) {
                *counts.entry((handle.clone(), block.cidr)).or_default() += 1;
                holders.insert(address, handle);
            }
        }
        for (address, handle) in &self.told {
            assert_eq!(
                holders.get(address),
                Some(handle),
                "{address} was given to {handle}"
            );
        }
        for ((handle, cidr), has) in counts.iter().filter(|((handle, _), _)| !Self::is_shared(handle)) {
            let counted = self.store.handle(handle).map_or(0, |h| h.count(*cidr));
            assert!(
                counted >= *has,
                "{handle} has {has} in {cidr} but counts {counted}"
            );
        }
        let mut confirmed = BTreeSet::new();
        for claim in self
            .store
            .affinities()
            .filter(|a| a.state == AffinityState::Confirmed)
        {
            assert!(confirmed.insert(claim.cidr), "{} has two owners", claim.cidr);
            let block = self.store.blocks().find(|b| b.cidr == claim.cidr);
            let is_of_node = block.is_some_and(|b| b.is_of_node(&claim.node));
            assert!(is_of_node, "{claim:?} is confirmed, but the block is {block:?}");
        }
    }

    /// Everybody finishes, releases all he may have, and sets his claims right; then nothing may be left over.
    fn rest(&mut self) {
        for index in 0..self.processes.len() {
            self.finish(index);
        }
        for index in 0..self.processes.len() {
            let (node, name) = (
                self.processes[index].node.clone(),
                self.processes[index].name.clone(),
            );
            for handle in self.left_by(&name) {
                self.start(index, release(&node, &handle));
                self.finish(index);
            }
            self.start(index, claim(&node));
            self.finish(index);
        }
        for block in self.store.blocks() {
            assert!(
                !block.is_in_use() && block.attributes.is_empty(),
                "leaked: {block:#?}"
            );
            let free: BTreeSet<i64> = block.unallocated.iter().copied().collect();
            assert_eq!(free, (0..4).collect());
            let owner = self.store.affinities().find(|a| a.cidr == block.cidr).unwrap();
            assert!(owner.is_confirmed_for(&owner.node) && block.is_of_node(&owner.node));
        }
        assert_eq!(
            self.store.handles().count(),
            0,
            "{:#?}",
            self.store.handles().collect::<Vec<_>>()
        );
        assert!(
            self.store
                .affinities()
                .all(|a| a.state == AffinityState::Confirmed)
        );
        assert_eq!(self.store.affinities().count(), self.store.blocks().count());
    }

    /// The handles of a process, and the shared one, of which anything is left anywhere.
    fn left_by(&self, process: &str) -> BTreeSet<String> {
        let in_blocks = self
            .store
            .blocks()
            .flat_map(|b| &b.attributes)
            .filter_map(|a| a.handle_id.clone());
        let counted = self.store.handles().map(|h| h.handle_id.clone());
        let own = format!("{process}-pod");
        in_blocks
            .chain(counted)
            .filter(|h| h.starts_with(&own) || Self::is_shared(h))
            .collect()
    }

    fn finish(&mut self, index: usize) {
        while self.processes[index].driver.is_some() {
            self.step(index);
        }
    }
}

/// Who has which address of a block, which must be sound.
fn taken_in(block: &Block) -> Vec<(IpAddr, String)> {
    let ordinals = Ordinals::of(block).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(
        ordinals.free(),
        block.unallocated.len(),
        "an ordinal was lost: {block:?}"
    );
    let IpAddr::V4(first) = block.cidr.network() else {
        unreachable!()
    };
    let mut taken = Vec::new();
    for (ordinal, allocation) in (0_u32..).zip(&block.allocations) {
        let Some(index) = allocation else { continue };
        let attribute = &block.attributes[usize::try_from(*index).unwrap()];
        let node = &attribute.secondary.as_ref().unwrap()["node"];
        assert_eq!(
            block.owner(),
            Owner::Host(node),
            "an address in the block of another"
        );
        let numbers = block.sequence_number_for_allocation.as_ref().unwrap();
        assert!(numbers[&ordinal.to_string()] < block.sequence_number);
        let address = IpAddr::from(Ipv4Addr::from(u32::from(first) + ordinal));
        taken.push((address, attribute.handle_id.clone().unwrap()));
    }
    taken
}

#[test]
fn no_interleaving_of_allocators_gives_an_address_twice_a_block_two_owners_or_leaks() {
    println!("seed {SEED:#x}, {INTERLEAVINGS} interleavings");
    let config = Config {
        cases: INTERLEAVINGS,
        rng_seed: RngSeed::Fixed(SEED),
        failure_persistence: None,
        max_shrink_iters: 4000,
        ..Config::default()
    };
    let total = std::cell::RefCell::new(Statistics::default());
    let result = TestRunner::new(config).run(&(setting(), moves()), |(setting, moves)| {
        let mut world = World::new(setting);
        for next in moves {
            world.play(next);
        }
        world.rest();
        let (mut total, one) = (total.borrow_mut(), world.statistics);
        total.assigned += one.assigned;
        total.released += one.released;
        total.conflicts += one.conflicts;
        total.crashes += one.crashes;
        total.refused += one.refused;
        Ok(())
    });
    if let Err(error) = result {
        panic!("seed {SEED:#x}: {error}");
    }
    // A model in which nobody ever collides proves nothing.
    let total = total.into_inner();
    println!(
        "{} assigned, {} released, {} conflicts, {} crashes, {} refused",
        total.assigned, total.released, total.conflicts, total.crashes, total.refused
    );
    let floor = u64::from(INTERLEAVINGS);
    assert!(
        total.assigned > floor
            && total.conflicts > floor
            && total.crashes > floor
            && total.refused > floor / 10
    );
}
