//! Single requests on a store in a known state: which writes, in which order, and which errors.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

mod common;

use culvert_ipam::affinity::AffinityState::{Confirmed, Pending, PendingDeletion};
use culvert_ipam::allocator::{Key, Kind, Object, Outcome, Policy, Request, Wanted, Write};
use culvert_ipam::block::Block;
use culvert_ipam::handle::Handle;
use culvert_ipam::limits::Limits;
use culvert_ipam::pool::{Excluded, Family, Pool, Pools, Use};
use culvert_ipam::timestamp::Timestamp;

use common::{Driver, NOW, Store, affinity, assign, assign_wanted, claim, line, net, pool, release};

fn pools() -> Vec<Pool> {
    vec![pool("p", "10.0.0.0/30", 30)]
}

fn run(store: &mut Store, pools: &[Pool], request: Request) -> (Result<Outcome, String>, Vec<String>) {
    let (outcome, writes) = Driver::new(pools, Limits::default(), request).run(store);
    (
        outcome.map_err(|e| e.to_string()),
        writes.iter().map(line).collect(),
    )
}

fn assigned(address: &str) -> Result<Outcome, String> {
    Ok(Outcome::Assigned(vec![address.parse().unwrap()]))
}

fn block(cidr: &str, node: &str) -> Object {
    Object::Block(Block::new(net(cidr), node, Timestamp::from_unix_nanos(NOW)))
}

/// A node with one confirmed empty block.
fn settled() -> Store {
    let mut store = Store::default();
    store.put("n1-10-0-0-0-30", affinity("n1", "10.0.0.0/30", Confirmed));
    store.put("10-0-0-0-30", block("10.0.0.0/30", "n1"));
    store
}

#[test]
fn a_first_assignment_claims_in_two_phases_and_counts_before_it_takes() {
    let (outcome, writes) = run(&mut Store::default(), &pools(), assign("n1", "h"));
    assert_eq!(outcome, assigned("10.0.0.0"));
    assert_eq!(
        writes,
        [
            "create BlockAffinity n1-10-0-0-0-30 Pending",
            "create IPAMBlock 10-0-0-0-30 0 in use",
            "update BlockAffinity n1-10-0-0-0-30 Confirmed",
            "create IPAMHandle h [1]",
            "update IPAMBlock 10-0-0-0-30 1 in use",
        ]
    );
}

#[test]
fn a_release_takes_back_before_it_counts_down() {
    let mut store = settled();
    run(&mut store, &pools(), assign("n1", "h")).0.unwrap();
    let mut driver = Driver::new(&pools(), Limits::default(), release("n1", "h"));
    let (outcome, writes) = driver.run(&mut store);
    assert_eq!(outcome, Ok(Outcome::Released));
    assert_eq!(
        writes.iter().map(line).collect::<Vec<_>>(),
        ["update IPAMBlock 10-0-0-0-30 0 in use", "delete IPAMHandle h"]
    );
    assert_eq!(driver.freed, ["10.0.0.0".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn sequence_numbers_tell_two_lives_of_an_address_apart() {
    let mut store = settled();
    run(&mut store, &pools(), assign("n1", "h")).0.unwrap();
    let first = store.block("10.0.0.0/30").clone();
    assert_eq!(first.sequence_number, NOW + 1);
    assert_eq!(first.sequence_number_of(0), NOW);
    run(&mut store, &pools(), release("n1", "h")).0.unwrap();
    for n in 0..4 {
        run(&mut store, &pools(), assign("n1", &format!("h{n}")))
            .0
            .unwrap();
    }
    let second = store.block("10.0.0.0/30");
    assert!(second.sequence_number_of(0) > NOW);
}

#[test]
fn a_pending_claim_whose_block_is_anothers_is_taken_back_and_the_walk_goes_on() {
    let pools = [pool("p", "10.0.0.0/29", 30)];
    let mut store = Store::default();
    store.put("n1-10-0-0-0-30", affinity("n1", "10.0.0.0/30", Pending));
    store.put("10-0-0-0-30", block("10.0.0.0/30", "n2"));
    let (outcome, writes) = run(&mut store, &pools, claim("n1"));
    assert_eq!(outcome, Ok(Outcome::Claimed(vec![net("10.0.0.4/30")])));
    assert_eq!(writes[0], "delete BlockAffinity n1-10-0-0-0-30");
    assert!(store.block("10.0.0.0/30").is_of_node("n2"));
}

#[test]
fn a_pending_claim_whose_block_is_ours_is_confirmed_once_the_block_was_written_again() {
    let mut store = settled();
    store.put("n1-10-0-0-0-30", affinity("n1", "10.0.0.0/30", Pending));
    let (_, writes) = run(&mut store, &pools(), claim("n1"));
    assert_eq!(
        writes,
        [
            "update IPAMBlock 10-0-0-0-30 0 in use",
            "update BlockAffinity n1-10-0-0-0-30 Confirmed"
        ]
    );
}

#[test]
fn a_claim_that_is_given_up_ends_when_empty_and_comes_back_when_in_use() {
    let mut store = settled();
    store.put("n1-10-0-0-0-30", affinity("n1", "10.0.0.0/30", PendingDeletion));
    let (_, writes) = run(&mut store, &pools(), claim("n1"));
    assert_eq!(
        writes[..2],
        [
            "delete IPAMBlock 10-0-0-0-30",
            "delete BlockAffinity n1-10-0-0-0-30"
        ]
    );

    let mut store = settled();
    run(&mut store, &pools(), assign("n1", "h")).0.unwrap();
    store.put("n1-10-0-0-0-30", affinity("n1", "10.0.0.0/30", PendingDeletion));
    let (outcome, writes) = run(&mut store, &pools(), assign("n1", "i"));
    assert_eq!(outcome, assigned("10.0.0.1"));
    assert_eq!(writes[0], "update BlockAffinity n1-10-0-0-0-30 Pending");
}

#[test]
fn a_confirmed_claim_without_a_block_is_made_anew() {
    let mut store = settled();
    store.objects.remove(&Key::new(Kind::Block, "10-0-0-0-30"));
    let (outcome, writes) = run(&mut store, &pools(), assign("n1", "h"));
    assert_eq!(outcome, assigned("10.0.0.0"));
    assert_eq!(
        writes[..2],
        [
            "update BlockAffinity n1-10-0-0-0-30 Pending",
            "create IPAMBlock 10-0-0-0-30 0 in use"
        ]
    );
}

#[test]
fn a_block_of_the_node_without_a_claim_is_adopted() {
    let mut store = Store::default();
    store.put("10-0-0-0-30", block("10.0.0.0/30", "n1"));
    let (outcome, _) = run(&mut store, &pools(), claim("n1"));
    assert_eq!(outcome, Ok(Outcome::Claimed(vec![net("10.0.0.0/30")])));
}

#[test]
fn marks_of_deletion_that_were_left_behind_are_finished() {
    let mut store = Store::default();
    let Object::Block(mut dead) = block("10.0.0.0/30", "n2") else {
        unreachable!()
    };
    dead.deleted = true;
    store.put("10-0-0-0-30", Object::Block(dead));
    let Object::Affinity(mut gone) = affinity("n1", "10.0.0.0/30", Confirmed) else {
        unreachable!()
    };
    gone.deleted = "true".to_owned();
    store.put("n1-10-0-0-0-30", Object::Affinity(gone));
    let mut handle = Handle::new("h");
    handle.deleted = true;
    store.put("h", Object::Handle(handle));
    let (outcome, writes) = run(&mut store, &pools(), assign("n1", "h"));
    assert_eq!(outcome, assigned("10.0.0.0"));
    let deletions: Vec<_> = writes.iter().filter(|w| w.starts_with("delete")).collect();
    assert_eq!(
        deletions,
        [
            "delete BlockAffinity n1-10-0-0-0-30",
            "delete IPAMBlock 10-0-0-0-30",
            "delete IPAMHandle h"
        ]
    );
}

#[test]
fn a_count_that_a_crash_left_too_high_is_set_right_by_the_next_request() {
    let mut store = settled();
    let mut handle = Handle::new("h");
    handle.set(net("10.0.0.0/30"), 3);
    handle.set(net("10.9.0.0/30"), 1);
    store.put("h", Object::Handle(handle));
    run(&mut store, &pools(), assign("n1", "h")).0.unwrap();
    assert_eq!(store.handle("h").unwrap().count(net("10.0.0.0/30")), 1);
    run(&mut store, &pools(), release("n1", "h")).0.unwrap();
    assert!(store.handle("h").is_none());
}

#[test]
fn a_release_finds_what_the_handle_lost_count_of() {
    let mut store = settled();
    run(&mut store, &pools(), assign("n1", "h")).0.unwrap();
    store.objects.remove(&Key::new(Kind::Handle, "h"));
    run(&mut store, &pools(), release("n1", "h")).0.unwrap();
    assert!(!store.block("10.0.0.0/30").is_in_use());
}

#[test]
fn an_empty_block_that_is_nobodys_is_deleted() {
    let mut store = settled();
    run(&mut store, &pools(), assign("n1", "h")).0.unwrap();
    let mut nobodys = store.block("10.0.0.0/30").clone();
    nobodys.affinity = None;
    store.objects.remove(&Key::new(Kind::Affinity, "n1-10-0-0-0-30"));
    store.put("10-0-0-0-30", Object::Block(nobodys));
    let (_, writes) = run(&mut store, &pools(), release("n1", "h"));
    assert_eq!(writes, ["delete IPAMBlock 10-0-0-0-30", "delete IPAMHandle h"]);
}

#[test]
fn a_broken_block_is_passed_over_by_assignments_and_named_by_releases() {
    let pools = [pool("p", "10.0.0.0/29", 30)];
    let mut store = settled();
    run(&mut store, &pools, assign("n1", "h")).0.unwrap();
    let mut broken = store.block("10.0.0.0/30").clone();
    broken.unallocated.push(0);
    store.put("10-0-0-0-30", Object::Block(broken.clone()));
    assert_eq!(run(&mut store, &pools, assign("n1", "i")).0, assigned("10.0.0.4"));
    let error = run(&mut store, &pools, release("n1", "h")).0.unwrap_err();
    assert!(
        error.starts_with("block 10.0.0.0/30: ordinal 0 (10.0.0.0) is in unallocated"),
        "{error}"
    );
    assert_eq!(store.block("10.0.0.0/30"), &broken, "it is left as it is");
    assert!(store.handle("h").is_some());
}

#[test]
fn blocks_of_another_size_are_in_the_way() {
    // The pool was once cut into /29; one such block lives on in the half where n1 would begin.
    let mut store = Store::default();
    store.put("10-0-0-0-29", block("10.0.0.0/29", "n2"));
    let (outcome, _) = run(&mut store, &[pool("p", "10.0.0.0/28", 30)], claim("n1"));
    let Ok(Outcome::Claimed(blocks)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(!net("10.0.0.0/29").contains(&blocks[0]), "{blocks:?}");
    let error = run(&mut store, &[pool("p", "10.0.0.0/29", 30)], claim("n3"))
        .0
        .unwrap_err();
    assert!(error.contains("no block is left"), "{error}");
}

#[test]
fn announced_claims_of_others_are_left_to_them_while_there_is_another_block() {
    let pools = [pool("p", "10.0.0.0/29", 30)];
    let mut store = Store::default();
    store.put("n2-10-0-0-0-30", affinity("n2", "10.0.0.0/30", Pending));
    assert_eq!(
        run(&mut store, &pools, claim("n1")).0,
        Ok(Outcome::Claimed(vec![net("10.0.0.4/30")]))
    );
    // n2 never came back: its block goes to the next who finds nothing else.
    assert_eq!(
        run(&mut store, &pools, claim("n3")).0,
        Ok(Outcome::Claimed(vec![net("10.0.0.0/30")]))
    );
}

#[test]
fn several_addresses_may_come_from_several_blocks() {
    let pools = [pool("p", "10.0.0.0/29", 30)];
    let mut store = Store::default();
    let any = |count| {
        let wanted = Wanted::Any {
            family: Family::V4,
            count,
            pools: Vec::new(),
        };
        assign_wanted("n1", "h", vec![wanted])
    };
    let (outcome, _) = run(&mut store, &pools, any(6));
    let Ok(Outcome::Assigned(addresses)) = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(addresses.len(), 6);
    assert_eq!(store.handle("h").unwrap().block.values().sum::<u32>(), 6);
    let (again, writes) = run(&mut store, &pools, any(2));
    assert_eq!(
        (again, writes.len()),
        (Ok(Outcome::Assigned(addresses[..2].to_vec())), 0)
    );
}

#[test]
fn errors_name_the_node_the_pools_and_what_to_do() {
    let full = [pool("p", "10.0.0.0/30", 30)];
    let mut store = settled();
    let strict = Limits {
        strict_affinity: true,
        ..Limits::default()
    };
    let (outcome, _) = Driver::new(&full, strict, assign("n2", "h")).run(&mut store);
    assert_eq!(
        outcome.unwrap_err().to_string(),
        "node n2: no block is left for Workload in pool p (10.0.0.0/30, 1 blocks of 4 addresses); \
         add an IPPool, or free blocks of nodes that are gone"
    );
    assert_eq!(
        run(&mut store, &[], assign("n1", "h")).0.unwrap_err(),
        "node n1: no enabled IPv4 pool for Workload (there is no IPPool); create an IPPool, or change one of these"
    );
    let refusing = [
        pool("a", "10.1.0.0/30", 30).excluding(Some(Excluded::Disabled)),
        pool("b", "10.2.0.0/30", 30).allowing([Use::Tunnel]),
        pool("c", "fd00::/122", 122),
    ];
    let error = run(&mut store, &refusing, assign("n1", "h")).0.unwrap_err();
    assert!(
        error.contains("(pool a: disabled; pool b: allowedUses does not have Workload; pool c: is IPv6)"),
        "{error}"
    );

    let limits = Limits {
        auto_allocate_blocks: false,
        ..Limits::default()
    };
    let (outcome, _) = Driver::new(&pools(), limits, assign("n2", "h")).run(&mut store);
    assert!(
        outcome.unwrap_err().to_string().contains("autoAllocateBlocks"),
        "names the setting"
    );
    assert!(
        run(&mut store, &pools(), assign("n1", ""))
            .0
            .unwrap_err()
            .contains("the handle is empty")
    );
}

#[test]
fn a_wrong_pool_is_named_when_there_is_no_other() {
    let wrong = Pool::new("blue", net("10.0.0.0/8"), Some(8));
    let policy = Policy {
        pools: Pools::new([wrong]),
        ..Policy::default()
    };
    let mut driver = Driver::batch(policy, vec![assign("n1", "h")]);
    let error = driver.run(&mut Store::default()).0.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("pool blue: blockSize is 8, for IPv4 it must be 20 to 32"),
        "{error}"
    );
}

#[test]
fn twenty_blocks_are_the_limit_where_none_is_given() {
    let pools = [pool("p", "10.0.0.0/24", 32)];
    let mut store = Store::default();
    for n in 0..20 {
        run(&mut store, &pools, assign("n1", &format!("h{n}"))).0.unwrap();
    }
    let error = run(&mut store, &pools, assign("n1", "one-more")).0.unwrap_err();
    assert!(
        error.contains("it has 20 IPv4 blocks, the limit is 20"),
        "{error}"
    );
}

#[test]
fn ipv6_goes_the_same_way() {
    let pools = [pool("p", "fd00::/64", 122)];
    let request = assign_wanted("n1", "h", vec![Wanted::one(Family::V6)]);
    let (outcome, _) = run(&mut Store::default(), &pools, request);
    let Ok(Outcome::Assigned(addresses)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(pools[0].cidr().contains(&addresses[0]));
}

#[test]
fn a_write_names_the_object_it_is_about() {
    let write = Write::Delete {
        key: Key::new(Kind::Handle, "h"),
        revision: "1".to_owned(),
    };
    assert_eq!(write.key().to_string(), "IPAMHandle h");
}
