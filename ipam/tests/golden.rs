//! Objects as Calico writes them, by hand from the fields of its CRDs: what is read is written back whole, and what is
//! broken is told and not used.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

mod common;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use culvert_ipam::block::{Attribute, Block, Owner};
use culvert_ipam::check::{self, BlockFault};
use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::timestamp::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use common::{NOW, net};

/// A block of four of Calico's: two pods share a handle, one address rests, one is free.
fn calico() -> Value {
    json!({
        "cidr": "10.244.0.64/30",
        "affinity": "host:node-a",
        "affinityClaimTime": "2026-08-01T10:00:00Z",
        "allocations": [1, null, 0, 2],
        "unallocated": [1],
        "attributes": [
            {"handle_id": "k8s-pod-network.0a", "secondary": {"namespace": "default", "node": "node-a", "pod": "web-0", "timestamp": "2026-08-01 10:00:01 +0000 UTC"}},
            {"handle_id": "ipip-tunnel-addr-node-a", "secondary": {"node": "node-a", "type": "ipipTunnelAddress"}},
            {"secondary": {"node": "node-a"}, "releasedAt": "2026-08-01T10:05:00Z", "alternateOwnerAttrs": {"pod": "web-1"}},
        ],
        "sequenceNumber": 1_790_000_000_123_456_789_u64,
        "sequenceNumberForAllocation": {"0": 1_790_000_000_123_456_001_u64, "2": 9_007_199_254_740_993_u64, "3": u64::MAX},
        "deleted": false,
        "strictAffinity": true,
        "ofAYearToCome": {"deep": [1, {"er": null}]},
    })
}

fn read(value: &Value) -> Block {
    serde_json::from_value(value.clone()).unwrap()
}

/// Whether all of `old` but nulls, which mean the same as absence, is in `new`, unchanged.
fn keeps(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old
            .iter()
            .all(|(k, v)| v.is_null() || new.get(k).is_some_and(|n| keeps(v, n))),
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(o, n)| keeps(o, n))
        }
        (old, new) => old == new,
    }
}

#[test]
fn a_block_of_calico_is_read_and_written_as_it_was() {
    let block = read(&calico());
    assert_eq!(block.owner(), Owner::Host("node-a"));
    assert_eq!(serde_json::to_value(&block).unwrap(), calico());
    // Once through text, where a number could turn into a float.
    let text = serde_json::to_string(&block).unwrap();
    assert!(
        text.contains("9007199254740993") && text.contains("18446744073709551615"),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<Block>(&text).unwrap(), block);
}

#[test]
fn nulls_and_missing_fields_lose_nothing_that_is_there() {
    let bare = json!({"cidr": "10.0.0.0/30", "allocations": [null, null, null, null], "unallocated": [3, 0, 1, 2], "attributes": []});
    let nulls = json!({
        "cidr": "10.0.0.0/30", "affinity": null, "affinityClaimTime": null, "allocations": null, "unallocated": null,
        "attributes": null, "sequenceNumber": null, "sequenceNumberForAllocation": null, "deleted": null, "strictAffinity": null,
        "later": null,
    });
    let old_attribute = json!({
        "cidr": "10.0.0.0/31", "affinity": "virtual:load-balancer", "allocations": [0, 1], "unallocated": [],
        "attributes": [{"handle_id": null, "secondary": null}, {}], "sequenceNumber": 0, "sequenceNumberForAllocation": {},
    });
    for object in [bare, nulls, old_attribute] {
        let block = read(&object);
        let written = serde_json::to_value(&block).unwrap();
        assert!(keeps(&object, &written), "{object} became {written}");
        assert_eq!(written["strictAffinity"], json!(false), "the CRD requires it");
        for required in ["allocations", "unallocated", "attributes"] {
            assert!(written[required].is_array(), "the CRD requires {required}");
        }
        assert_eq!(read(&written), block);
    }
}

#[test]
fn a_new_block_is_what_calico_would_make() {
    let block = Block::new(net("10.0.0.4/30"), "n1", Timestamp::from_unix_nanos(NOW));
    let expected = json!({
        "cidr": "10.0.0.4/30", "affinity": "host:n1", "affinityClaimTime": "2026-09-21T14:13:20Z",
        "allocations": [null, null, null, null], "unallocated": [0, 1, 2, 3], "attributes": [],
        "sequenceNumber": NOW, "sequenceNumberForAllocation": {}, "deleted": false, "strictAffinity": false,
    });
    assert_eq!(serde_json::to_value(&block).unwrap(), expected);
    assert_eq!(check::block(&block), Ok(()));
}

fn with(field: &str, value: Value) -> Block {
    let mut object = calico();
    object[field] = value;
    read(&object)
}

#[test]
fn a_broken_block_is_told_about_with_its_values_and_not_used() {
    for (block, told) in [
        (
            with("allocations", json!([1, null, 0])),
            "block 10.244.0.64/30: allocations has 3 entries, the block has 4 addresses",
        ),
        (
            with("allocations", json!([1, null, 7, 2])),
            "ordinal 2 (10.244.0.66) refers to attributes[7], but attributes has 3 entries",
        ),
        (
            with("allocations", json!([-1, null, 0, 2])),
            "ordinal 0 (10.244.0.64) refers to attributes[-1]",
        ),
        (
            with("unallocated", json!([1, 4])),
            "unallocated has ordinal 4, the block's are 0 to 3",
        ),
        (with("unallocated", json!([-2, 1])), "unallocated has ordinal -2"),
        (
            with("unallocated", json!([1, 0])),
            "ordinal 0 (10.244.0.64) is in unallocated, but allocations says attributes[1]",
        ),
        (
            with("unallocated", json!([1, 1])),
            "ordinal 1 (10.244.0.65) is in unallocated twice",
        ),
        (
            with("cidr", json!("10.244.0.65/30")),
            "no host bits, this is 10.244.0.65/30; its network is 10.244.0.64",
        ),
        (with("cidr", json!("10.0.0.0/8")), "at most 4096 addresses"),
    ] {
        let fault = Ordinals::of(&block).unwrap_err();
        assert!(fault.to_string().contains(told), "{fault}");
        // It is not lost either: written back as it was.
        assert_eq!(read(&serde_json::to_value(&block).unwrap()), block);
    }
}

#[test]
fn a_block_under_another_blocks_name_is_told_about() {
    let fault = check::named_block("10-0-0-0-26", &read(&calico())).unwrap_err();
    assert!(
        matches!(&fault, BlockFault::Name { expected, .. } if expected == "10-244-0-64-30"),
        "{fault}"
    );
}

#[test]
fn an_ordinal_that_was_lost_is_free_again() {
    let block = Ordinals::of(&with("unallocated", json!([]))).unwrap();
    assert_eq!(block.block().unallocated, [1]);
}

#[test]
fn attributes_without_an_ordinal_go_and_the_others_move_up() {
    let mut ordinals = Ordinals::of(&read(&calico())).unwrap();
    let freed = ordinals.release("k8s-pod-network.0a", None);
    assert_eq!(freed, [IpAddr::from([10, 244, 0, 66])]);
    let block = ordinals.into_written();
    assert_eq!(block.allocations, [Some(0), None, None, Some(1)]);
    assert_eq!(block.unallocated, [1, 2], "what was freed comes last");
    assert_eq!(block.attributes.len(), 2);
    assert_eq!(
        block.attributes[0].handle_id.as_deref(),
        Some("ipip-tunnel-addr-node-a")
    );
    assert_eq!(block.sequence_number, 1_790_000_000_123_456_790);
    assert_eq!(
        block
            .sequence_number_for_allocation
            .unwrap()
            .iter()
            .map(|(ordinal, _)| ordinal)
            .collect::<Vec<_>>(),
        [0, 3]
    );
}

#[test]
fn what_was_released_rests_and_is_free_in_time() {
    let mut ordinals = Ordinals::of(&read(&calico())).unwrap();
    let now = Timestamp::parse("2026-08-01T10:05:59Z").unwrap();
    ordinals.collect(now, 60);
    assert_eq!(ordinals.free(), 1, "59 seconds are not 60");
    ordinals.collect(now.plus_seconds(1), 60);
    assert_eq!(ordinals.block().unallocated, [1, 3]);

    let freed = ordinals.release("k8s-pod-network.0a", Some(now));
    assert_eq!(
        (freed.len(), ordinals.free()),
        (1, 2),
        "it is released, and not free"
    );
    assert_eq!(ordinals.of_handle("k8s-pod-network.0a").count(), 0);
    let resting: &Attribute = &ordinals.block().attributes[0];
    assert_eq!(
        (resting.handle_id.as_deref(), resting.released_at.as_deref()),
        (None, Some("2026-08-01T10:05:59Z"))
    );
}

#[test]
fn a_handle_with_a_stray_line_end_is_that_handle() {
    let mut block = read(&calico());
    Arc::make_mut(&mut block.attributes[0]).handle_id = Some("k8s-pod-network.0a\r\neth0".to_owned());
    assert_eq!(
        Ordinals::of(&block)
            .unwrap()
            .of_handle("k8s-pod-network.0a")
            .count(),
        1
    );
}

proptest! {
    #[test]
    fn addresses_are_given_in_the_order_they_became_free_and_the_block_stays_sound(
        moves in prop::collection::vec((any::<bool>(), 0_u8..4, 0_usize..4), 0..60),
    ) {
        let block = Block::new(net("10.0.0.0/29"), "n1", Timestamp::from_unix_nanos(NOW));
        let mut ordinals = Ordinals::of(&block).unwrap();
        let mut free: Vec<IpAddr> = (0..8).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        let mut held: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for (assign, handle, count) in moves {
            let handle = format!("h{handle}");
            if assign {
                let secondary = BTreeMap::from([("node".to_owned(), "n1".to_owned())]);
                let given = ordinals.assign(count, &handle, &secondary);
                let expected: Vec<IpAddr> = free.drain(..count.min(free.len())).collect();
                prop_assert_eq!(&given, &expected);
                held.entry(handle).or_default().extend(given);
            } else {
                let mut expected = held.remove(&handle).unwrap_or_default();
                expected.sort();
                prop_assert_eq!(&ordinals.release(&handle, None), &expected);
                free.extend(expected);
            }
            let written = ordinals.clone().into_written();
            prop_assert_eq!(check::block(&written), Ok(()));
            let users = held.values().filter(|addresses| !addresses.is_empty()).count();
            prop_assert_eq!(written.attributes.len(), users, "one set of attributes for each user");
            ordinals = Ordinals::of(&written).unwrap();
        }
    }

    #[test]
    fn no_block_that_can_be_read_makes_the_check_panic(
        allocations in prop::collection::vec(prop::option::of(-2_i64..6), 0..10),
        unallocated in prop::collection::vec(-2_i64..10, 0..10),
        attributes in 0_usize..4,
        length in 0_u8..=32,
    ) {
        let mut block = read(&calico());
        block.cidr = net(&format!("10.0.0.0/{length}"));
        block.allocations = allocations;
        block.unallocated = unallocated;
        block.attributes = vec![Arc::default(); attributes];
        if let Ok(mut ordinals) = Ordinals::of(&block) {
            let given = ordinals.assign(3, "h", &BTreeMap::new());
            prop_assert_eq!(ordinals.release("h", None).len(), given.len());
            prop_assert_eq!(check::block(ordinals.block()), Ok(()));
        }
    }
}
