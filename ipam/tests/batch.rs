//! Several requests at once, addresses by name, borrowing, reclaim, and what is given back by address.

#![allow(
    clippy::unwrap_used,
    clippy::result_large_err,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

mod common;

use std::net::IpAddr;

use culvert_ipam::affinity::AffinityState::Confirmed;
use culvert_ipam::allocator::{Kind, Object, Outcome, Policy, Request, Wanted};
use culvert_ipam::block::Block;
use culvert_ipam::error::Error;
use culvert_ipam::limits::Limits;
use culvert_ipam::pool::{Family, Pool};
use culvert_ipam::ranges::Ranges;
use culvert_ipam::timestamp::Timestamp;

use common::{
    Driver, NOW, Store, affinity, assign, assign_wanted, line, net, policy, pool, release, release_address,
    unclaim,
};

fn pools() -> Vec<Pool> {
    vec![pool("p", "10.0.0.0/29", 30)]
}

fn default_policy() -> Policy {
    policy(&pools(), Limits::default())
}

/// n1 and n2 have a block each; there is no third.
fn settled() -> Store {
    let mut store = Store::default();
    for (node, cidr, name) in [
        ("n1", "10.0.0.0/30", "10-0-0-0-30"),
        ("n2", "10.0.0.4/30", "10-0-0-4-30"),
    ] {
        store.put(&format!("{node}-{name}"), affinity(node, cidr, Confirmed));
        let block = Block::new(net(cidr), node, Timestamp::from_unix_nanos(NOW));
        store.put(name, Object::Block(block));
    }
    store
}

fn one(store: &mut Store, policy: Policy, request: Request) -> Result<Outcome, Error> {
    Driver::batch(policy, vec![request]).run(store).0
}

fn assigned(address: &str) -> Result<Outcome, Error> {
    Ok(Outcome::Assigned(vec![address.parse().unwrap()]))
}

fn by_name(node: &str, handle: &str, address: &str) -> Request {
    assign_wanted(node, handle, vec![Wanted::Address(address.parse().unwrap())])
}

#[test]
fn many_requests_share_one_write_of_the_block_and_one_that_fails_holds_back_none() {
    let mut store = settled();
    one(&mut store, default_policy(), assign("n1", "old")).unwrap();
    let requests = vec![
        assign("n1", "a"),
        by_name("n1", "b", "192.0.2.1"),
        release("n1", "old"),
        assign("n1", "c"),
    ];
    let mut driver = Driver::batch(default_policy(), requests);
    let writes = driver.run_all(&mut store);
    let blocks = writes.iter().filter(|w| w.key().kind == Kind::Block).count();
    assert_eq!(blocks, 1, "{:?}", writes.iter().map(line).collect::<Vec<_>>());
    let outcomes: Vec<_> = driver.outcomes.into_iter().map(Option::unwrap).collect();
    assert_eq!(
        (&outcomes[0], &outcomes[3]),
        (&assigned("10.0.0.1"), &assigned("10.0.0.2"))
    );
    assert_eq!(outcomes[2], Ok(Outcome::Released));
    assert!(
        matches!(outcomes[1], Err(Error::NotInPool { .. })),
        "{:?}",
        outcomes[1]
    );
    assert_eq!(store.handles().count(), 2);
}

#[test]
fn a_dual_stack_is_one_request() {
    let pools = [pool("p", "10.0.0.0/29", 30), pool("q", "fd00::/124", 126)];
    let both = vec![Wanted::one(Family::V4), Wanted::one(Family::V6)];
    let mut store = Store::default();
    let outcome = one(
        &mut store,
        policy(&pools, Limits::default()),
        assign_wanted("n1", "h", both),
    );
    let Ok(Outcome::Assigned(addresses)) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6(), "{addresses:?}");
    assert_eq!(store.handle("h").unwrap().block.len(), 2);
}

#[test]
fn an_address_by_name_is_had_once_and_reserved_ones_only_so() {
    let mut store = settled();
    let mut policy = default_policy();
    policy.reserved = Ranges::from_iter([net("10.0.0.0/32"), net("10.0.0.2/32")]);
    assert_eq!(
        one(&mut store, policy.clone(), assign("n1", "a")),
        assigned("10.0.0.1")
    );
    assert_eq!(
        one(&mut store, policy.clone(), by_name("n1", "b", "10.0.0.2")),
        assigned("10.0.0.2")
    );
    assert_eq!(
        one(&mut store, policy.clone(), by_name("n1", "b", "10.0.0.2")),
        assigned("10.0.0.2")
    );
    let error = one(&mut store, policy, by_name("n1", "c", "10.0.0.2")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "node n1: 10.0.0.2 cannot be had: handle b on node n1 has it; ask for another, or release it"
    );
    assert!(store.handle("c").is_none(), "what it counted is taken back");
}

#[test]
fn a_pool_by_name_is_used_whatever_its_selector_says() {
    use culvert_ipam::pool::{Excluded, Pools};
    let elsewhere =
        pool("q", "10.1.0.0/29", 30).excluding(Some(Excluded::NodeSelector("zone == 'a'".to_owned())));
    let mut policy = default_policy();
    policy.pools = Pools::new([Ok(pool("p", "10.0.0.0/29", 30)), Ok(elsewhere)]);
    let wanted = |cidr: &str| Wanted::Any {
        family: Family::V4,
        count: 1,
        pools: vec![net(cidr)],
    };
    let request = assign_wanted("n1", "h", vec![wanted("10.1.0.0/29")]);
    let Ok(Outcome::Assigned(addresses)) = one(&mut Store::default(), policy.clone(), request) else {
        panic!()
    };
    assert!(net("10.1.0.0/29").contains(&addresses[0]));
    let request = assign_wanted("n1", "h", vec![wanted("10.2.0.0/29")]);
    let error = one(&mut Store::default(), policy, request).unwrap_err();
    assert!(
        error.to_string().contains("there is no pool 10.2.0.0/29"),
        "{error}"
    );
}

#[test]
fn a_node_borrows_when_no_block_is_left_unless_affinity_is_strict() {
    let mut store = settled();
    let outcome = one(&mut store, default_policy(), assign("n3", "h"));
    let Ok(Outcome::Assigned(addresses)) = outcome else {
        panic!("{outcome:?}")
    };
    let lender = store.blocks().find(|b| b.cidr.contains(&addresses[0])).unwrap();
    assert!(!lender.is_of_node("n3"));
    assert_eq!(lender.attributes[0].value("node"), Some("n3"));

    let strict = Limits {
        strict_affinity: true,
        ..Limits::default()
    };
    let error = one(&mut store, policy(&pools(), strict), assign("n4", "i")).unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    let error = one(
        &mut store,
        policy(&pools(), strict),
        by_name("n4", "i", "10.0.0.3"),
    )
    .unwrap_err();
    assert!(matches!(error, Error::StrictAffinity { .. }), "{error}");
}

#[test]
fn an_empty_block_of_another_is_taken_after_a_minute_and_not_before() {
    for (ahead, taken) in [(30, false), (61, true)] {
        let mut store = settled();
        let strict = Limits {
            strict_affinity: true,
            ..Limits::default()
        };
        let mut driver = Driver::batch(policy(&pools(), strict), vec![assign("n3", "h")]);
        driver.ahead = ahead;
        let (outcome, writes) = driver.run(&mut store);
        assert_eq!(outcome.is_ok(), taken, "{ahead} s: {outcome:?}");
        let lines: Vec<String> = writes.iter().map(line).collect();
        if taken {
            assert!(lines[0].ends_with("PendingDeletion"), "{lines:?}");
            assert!(lines[1].starts_with("delete IPAMBlock"), "{lines:?}");
            assert!(lines[2].starts_with("delete BlockAffinity"), "{lines:?}");
        }
    }
}

#[test]
fn an_address_is_given_back_only_in_the_life_that_was_meant() {
    let mut store = settled();
    one(&mut store, default_policy(), assign("n1", "a")).unwrap();
    let block = store.block("10.0.0.0/30").clone();
    let number = block.sequence_number_of(0);
    let error = one(
        &mut store,
        default_policy(),
        release_address("n9", "10.0.0.0", Some(number + 1)),
    )
    .unwrap_err();
    let expected = Error::BadSequenceNumber {
        address: IpAddr::from([10, 0, 0, 0]),
        requested: number + 1,
        found: number,
    };
    assert_eq!(error, expected);
    assert_eq!(store.block("10.0.0.0/30"), &block, "nothing was written");
    let released = one(
        &mut store,
        default_policy(),
        release_address("n9", "10.0.0.0", Some(number)),
    );
    assert_eq!(released, Ok(Outcome::Released));
    assert!(store.handle("a").is_none() && !store.block("10.0.0.0/30").is_in_use());
}

#[test]
fn a_block_that_is_given_up_goes_when_empty_and_else_stays_without_an_owner() {
    let mut store = settled();
    one(&mut store, default_policy(), assign("n1", "a")).unwrap();
    let error = one(&mut store, default_policy(), unclaim("n1", "10.0.0.0/30", true)).unwrap_err();
    assert!(matches!(error, Error::BlockInUse { in_use: 1, .. }), "{error}");
    for (node, cidr) in [("n1", "10.0.0.0/30"), ("n2", "10.0.0.4/30")] {
        assert_eq!(
            one(&mut store, default_policy(), unclaim(node, cidr, false)),
            Ok(Outcome::Unclaimed)
        );
    }
    assert_eq!((store.affinities().count(), store.blocks().count()), (0, 1));
    assert_eq!(store.block("10.0.0.0/30").affinity, None);
}

#[test]
fn an_empty_block_of_a_pool_that_is_gone_is_given_up() {
    let mut store = settled();
    let request = common::claim("n1");
    let elsewhere = policy(&[pool("q", "10.9.0.0/29", 30)], Limits::default());
    let mut driver = Driver::batch(elsewhere, vec![request]);
    driver.ahead = 61;
    let outcome = driver.run(&mut store).0.unwrap();
    let Outcome::Claimed(blocks) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(
        net("10.9.0.0/29").contains(&blocks[0]) && blocks.len() == 1,
        "{blocks:?}"
    );
    assert!(store.blocks().all(|b| b.cidr != net("10.0.0.0/30")));
}
