use culvert_ipam::affinity::{Affinity, AffinityState};
use proptest::prelude::*;

use super::*;
use crate::api::{BlockAffinity, IpPool, Node, annotation};

fn node(number: u8) -> Object {
    let mut node = Node::named(format!("node{number}"));
    let address = format!("172.18.0.{number}/24");
    node.metadata
        .annotations
        .insert(annotation::IPV4_ADDRESS.to_owned(), address);
    Object::Node(node)
}

fn affinity(node: &str, number: u8, state: AffinityState) -> Object {
    let cidr = format!("10.65.{number}.0/26").parse().unwrap();
    let spec = Affinity {
        state,
        ..Affinity::pending(node, cidr)
    };
    Object::BlockAffinity(BlockAffinity::new(format!("{node}-10-65-{number}-0-26"), spec))
}

fn block(number: u8) -> Object {
    affinity(&format!("node{number}"), number, AffinityState::Confirmed)
}

fn pool() -> Object {
    let spec = serde_json::from_value(serde_json::json!({"cidr": "10.65.0.0/16"})).unwrap();
    Object::IpPool(IpPool::new("default", spec))
}

fn holding(share: u32, objects: impl IntoIterator<Item = Object>) -> Withdrawals {
    Withdrawals::new(share, objects)
}

/// What the agent goes by.
fn state(withdrawals: &Withdrawals) -> BTreeMap<Key, Object> {
    let records = withdrawals.records();
    records
        .map(|(key, record)| (key.clone(), record.object().unwrap()))
        .collect()
}

fn delete_all(withdrawals: &mut Withdrawals, objects: &[Object], now: Instant) {
    for object in objects {
        withdrawals.delete(&object.key(), now);
    }
}

/// Nodes there are, how many of them vanish at once, the share that may, and whether that is held.
const SHARES: [(u8, u8, u32, bool); 11] = [
    (2, 2, 50, false),
    (3, 2, 1, false),
    (3, 3, 50, true),
    (4, 3, 50, true),
    (6, 3, 50, false),
    (7, 4, 50, true),
    (100, 50, 50, false),
    (100, 51, 50, true),
    (3, 3, 99, true),
    (200, 199, 99, true),
    (10, 10, 100, false),
];

#[test]
fn more_than_the_share_is_held_and_no_less() {
    for (there, vanish, share, held) in SHARES {
        let nodes: Vec<Object> = (1..=there).map(node).collect();
        let mut withdrawals = holding(share, nodes.clone());
        let now = Instant::now();
        delete_all(&mut withdrawals, &nodes[..usize::from(vanish)], now);
        assert_eq!(withdrawals.due(), Some(now + SETTLE));
        let passed = withdrawals.judge(now + SETTLE);
        let expected = if held { 0 } else { usize::from(vanish) };
        assert_eq!(passed.len(), expected, "{vanish} of {there} at {share} %");
        assert_eq!(
            withdrawals.held().map_or(0, |held| held.count()),
            usize::from(vanish) - expected
        );
        assert_eq!(withdrawals.records().count(), usize::from(there) - expected);
    }
}

#[test]
fn only_confirmed_affinities_count() {
    let states = |state| (1..=4).map(move |n| affinity("a", n, state));
    for (state, held) in [
        (AffinityState::Confirmed, true),
        (AffinityState::Pending, false),
        (AffinityState::PendingDeletion, false),
    ] {
        let affinities: Vec<Object> = states(state).collect();
        let mut withdrawals = holding(50, affinities.clone());
        let now = Instant::now();
        delete_all(&mut withdrawals, &affinities, now);
        withdrawals.judge(now + SETTLE);
        assert_eq!(withdrawals.held().is_some(), held, "{state:?}");
    }
}

#[test]
fn a_pool_with_blocks_is_held_and_an_empty_one_is_not() {
    let now = Instant::now();
    let mut withdrawals = holding(50, [pool(), block(1)]);
    delete_all(&mut withdrawals, &[pool()], now);
    assert_eq!(withdrawals.judge(now + SETTLE), []);
    let words = withdrawals.held().unwrap().to_string();
    assert!(words.contains("pool default has blocks in use"), "{words}");

    let mut withdrawals = holding(50, [pool(), affinity("a", 1, AffinityState::Pending)]);
    delete_all(&mut withdrawals, &[pool()], now);
    assert_eq!(withdrawals.judge(now + SETTLE), [pool().key()]);
}

#[test]
fn objects_that_vanish_one_after_another_count_together_within_the_window_only() {
    let nodes: Vec<Object> = (1..=5).map(node).collect();
    for (pause, held) in [(WINDOW / 5, true), (WINDOW, false)] {
        let mut withdrawals = holding(50, nodes.clone());
        let mut now = Instant::now();
        for nth in nodes.iter().take(3) {
            withdrawals.delete(&nth.key(), now);
            withdrawals.judge(now + SETTLE);
            now += SETTLE + pause;
        }
        assert_eq!(withdrawals.held().is_some(), held, "{pause:?}");
    }
}

#[test]
fn the_sentence_counts_names_and_says_how_to_confirm() {
    let nodes: Vec<Object> = (1..=4).map(node).collect();
    let mut withdrawals = holding(50, nodes.clone().into_iter().chain([pool(), block(1)]));
    let now = Instant::now();
    delete_all(&mut withdrawals, &nodes, now);
    delete_all(&mut withdrawals, &[pool()], now);
    withdrawals.judge(now + SETTLE);
    assert_eq!(
        withdrawals.held().unwrap().to_string(),
        "5 objects have vanished from the datastore at once (4 Node: node1, node2, node3, …; 1 IPPool: default): \
         4 of 4 Node are more than the 50 % of safety.maxVanishShare, so nothing is withdrawn; put the objects back, \
         or confirm with: culvert node accept-withdrawal"
    );
}

#[test]
fn what_is_held_stays_while_it_is_put_back_one_by_one() {
    let nodes: Vec<Object> = (1..=4).map(node).collect();
    let mut withdrawals = holding(50, nodes.clone());
    let mut now = Instant::now();
    delete_all(&mut withdrawals, &nodes, now);
    withdrawals.judge(now + SETTLE);
    for (nth, back) in nodes.iter().enumerate() {
        now += WINDOW / 2;
        assert_eq!(withdrawals.held().map(|held| held.count()), Some(4 - nth));
        withdrawals.upsert(back, now);
        assert!(withdrawals.due().is_none_or(|due| due >= now + WINDOW));
    }
    assert_eq!(withdrawals.held(), None);
    assert_eq!(withdrawals.records().count(), 4);
}

#[test]
fn a_few_that_never_come_back_pass_in_the_end() {
    let nodes: Vec<Object> = (1..=4).map(node).collect();
    let mut withdrawals = holding(50, nodes.clone());
    let now = Instant::now();
    delete_all(&mut withdrawals, &nodes, now);
    withdrawals.judge(now + SETTLE);
    assert_eq!(withdrawals.due(), None, "time alone decides nothing");
    for back in &nodes[..2] {
        withdrawals.upsert(back, now);
    }
    assert_eq!(withdrawals.judge(now + WINDOW), [nodes[2].key(), nodes[3].key()]);
    assert_eq!(withdrawals.held(), None);
}

#[test]
fn what_is_held_gives_way_to_what_contradicts_it() {
    let nodes: Vec<Object> = (1..=4).map(node).collect();
    let mut withdrawals = holding(50, nodes.clone().into_iter().chain([block(1), pool()]));
    let now = Instant::now();
    delete_all(&mut withdrawals, &nodes, now);
    delete_all(&mut withdrawals, &[block(1), pool()], now);
    assert_eq!(withdrawals.judge(now + SETTLE), []);

    // Another node has taken the address of node1, and the block that was its.
    let Object::Node(mut heir) = node(1) else {
        unreachable!()
    };
    heir.metadata.name = "heir".to_owned();
    withdrawals.upsert(&Object::Node(heir), now);
    assert_eq!(withdrawals.due(), Some(now));
    assert_eq!(withdrawals.judge(now), [nodes[0].key()]);
    withdrawals.upsert(&affinity("heir", 1, AffinityState::Confirmed), now);
    assert_eq!(withdrawals.judge(now), [block(1).key()]);
    assert_eq!(withdrawals.held().map(|held| held.count()), Some(4));
}

/// A step of somebody's work on the datastore.
#[derive(Clone, Debug)]
enum Step {
    Write(Box<Object>),
    Delete(Key),
    Wait(u64),
}

fn objects() -> impl Strategy<Value = Object> {
    prop_oneof![
        (1..8u8).prop_map(node),
        (1..8u8).prop_map(block),
        (1..8u8).prop_map(|n| affinity("other", n, AffinityState::Confirmed)),
        Just(pool()),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => objects().prop_map(|object| Step::Write(Box::new(object))),
        4 => objects().prop_map(|object| Step::Delete(object.key())),
        2 => (0..15_000u64).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 0..60)
}

/// The agent's picture, driven as the intake drives it, beside what the datastore really holds.
struct Driven {
    withdrawals: Withdrawals,
    real: BTreeMap<Key, Object>,
    told: BTreeMap<Key, Object>,
    now: Instant,
}

impl Driven {
    fn new() -> Self {
        Self {
            withdrawals: holding(50, []),
            real: BTreeMap::new(),
            told: BTreeMap::new(),
            now: Instant::now(),
        }
    }

    fn write(&mut self, object: &Object) {
        self.real.insert(object.key(), object.clone());
        self.told.insert(object.key(), object.clone());
        self.withdrawals.upsert(object, self.now);
    }

    fn pass(&mut self, passed: Vec<Key>) {
        for key in passed {
            assert!(self.told.remove(&key).is_some(), "{key} is withdrawn twice");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(object) => self.write(&object),
            Step::Delete(key) => {
                self.real.remove(&key);
                self.withdrawals.delete(&key, self.now);
            }
            Step::Wait(milliseconds) => {
                let end = self.now + Duration::from_millis(milliseconds);
                while let Some(due) = self.withdrawals.due().filter(|due| *due <= end) {
                    self.now = self.now.max(due);
                    let passed = self.withdrawals.judge(self.now);
                    self.pass(passed);
                }
                self.now = end;
            }
        }
        assert_eq!(self.told, state(&self.withdrawals), "told and believed are one");
        for (key, object) in &self.real {
            assert_eq!(
                self.told.get(key),
                Some(object),
                "what is there is never held back"
            );
        }
    }
}

proptest! {
    #[test]
    fn when_the_objects_return_the_end_is_the_real_state(steps in steps()) {
        let mut driven = Driven::new();
        for step in steps {
            driven.step(step);
        }
        let missing: Vec<Object> = driven.told.iter().filter(|(key, _)| !driven.real.contains_key(*key))
            .map(|(_, object)| object.clone()).collect();
        for object in missing {
            driven.step(Step::Write(Box::new(object)));
        }
        driven.step(Step::Wait(60_000));
        prop_assert_eq!(&driven.told, &driven.real);
        prop_assert_eq!(driven.withdrawals.held(), None);
        prop_assert_eq!(driven.withdrawals.due(), None);
    }

    #[test]
    fn when_it_is_accepted_the_end_is_the_real_state(steps in steps()) {
        let mut driven = Driven::new();
        for step in steps {
            driven.step(step);
        }
        let accepted = driven.withdrawals.accept();
        driven.pass(accepted);
        prop_assert_eq!(&driven.told, &driven.real);
        prop_assert_eq!(state(&driven.withdrawals), driven.real.clone());
        prop_assert_eq!(driven.withdrawals.held(), None);
    }

    #[test]
    fn without_a_share_all_deletions_pass(steps in steps()) {
        let mut driven = Driven::new();
        driven.withdrawals.share = 100;
        for step in steps {
            driven.step(step);
        }
        driven.step(Step::Wait(60_000));
        prop_assert_eq!(&driven.told, &driven.real);
    }
}
