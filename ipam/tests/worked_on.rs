//! Objects as Calico writes them, odd ones among them, made by hand from the fields of its CRDs: they are read, worked on, and
//! compared field by field with what they should have become. What a request has no business with is as it was.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

mod common;

use std::net::IpAddr;

use culvert_ipam::allocator::{Key, Kind, Object, Outcome, Request, Write};
use culvert_ipam::limits::Limits;
use culvert_ipam::pool::Pool;
use culvert_ipam::timestamp::Timestamp;
use serde_json::{Value, json};

use common::{
    Driver, NOW, Store, assign, assign_wanted, claim, policy, pool, release, release_address, unclaim,
};

/// 2^53 + 1: the first whole number that a floating point number cannot hold.
const BEYOND_FLOATS: u64 = 9_007_199_254_740_993;

fn object(kind: Kind, spec: Value) -> Object {
    match kind {
        Kind::Affinity => Object::Affinity(serde_json::from_value(spec).unwrap()),
        Kind::Block => Object::Block(serde_json::from_value(spec).unwrap()),
        Kind::Handle => Object::Handle(serde_json::from_value(spec).unwrap()),
    }
}

fn spec(object: &Object) -> Value {
    // Through text, as it goes to a store.
    let text = match object {
        Object::Affinity(spec) => serde_json::to_string(spec),
        Object::Block(spec) => serde_json::to_string(spec),
        Object::Handle(spec) => serde_json::to_string(spec),
    };
    serde_json::from_str(&text.unwrap()).unwrap()
}

/// Without the fields that are null, which says the same as their absence. In a list a null stands for something.
fn bare(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.into_iter().filter(|(_, value)| !value.is_null());
            there.map(|(name, value)| (name, bare(value))).collect()
        }
        Value::Array(items) => items.into_iter().map(bare).collect(),
        other => other,
    }
}

struct World {
    store: Store,
    pools: Vec<Pool>,
    limits: Limits,
}

impl World {
    fn new(objects: &[(Kind, &str, Value)]) -> Self {
        let mut store = Store::default();
        for (kind, name, spec) in objects {
            store.put(name, object(*kind, spec.clone()));
        }
        Self {
            store,
            pools: vec![pool("v4", "10.244.0.0/24", 29), pool("v6", "fd00:10::/120", 125)],
            limits: Limits::default(),
        }
    }

    /// What a request comes to, and its writes, some minutes after the objects were made.
    fn run(&mut self, request: Request) -> (Outcome, Vec<Write>) {
        let policy = policy(&self.pools, self.limits);
        let mut driver = Driver::batch(policy, vec![request]);
        driver.ahead = 300;
        let (outcome, writes) = driver.run(&mut self.store);
        (outcome.unwrap(), writes)
    }

    fn get(&self, kind: Kind, name: &str) -> Option<Value> {
        let found = self.store.objects.get(&Key::new(kind, name));
        found.map(|(_, object)| bare(spec(object)))
    }

    #[track_caller]
    fn holds(&self, kind: Kind, name: &str, expected: Value) {
        assert_eq!(self.get(kind, name), Some(bare(expected)));
    }
}

/// The value with some of it changed, by JSON pointers.
fn with(mut value: Value, changes: &[(&str, Value)]) -> Value {
    for (place, changed) in changes {
        let (parent, field) = place.rsplit_once('/').unwrap();
        match value.pointer_mut(parent).unwrap() {
            Value::Array(items) => items[field.parse::<usize>().unwrap()] = changed.clone(),
            parent => parent[field.replace("~1", "/")] = changed.clone(),
        }
    }
    value
}

const BLOCK: &str = "10-244-0-64-29";
const CLAIM: &str = "node-a-10-244-0-64-29";

/// Of an older version: it has no type; and of a newer one: it has a field that nobody here knows.
fn old_claim() -> Value {
    json!({"cidr": "10.244.0.64/29", "node": "node-a", "state": "confirmed", "deleted": "false", "newer": {"x": [1, null]}})
}

/// Windows has kept four addresses, somebody without a handle has one, and a pod; two are free.
fn odd_block() -> Value {
    json!({
        "cidr": "10.244.0.64/29", "affinity": "host:node-a", "affinityClaimTime": null,
        "allocations": [0, 0, 0, 1, null, 2, null, 0],
        "unallocated": [6, 4],
        "attributes": [
            {"handle_id": "windows-reserved-ipam-handle", "secondary": {"note": "windows host rsvd"}},
            {"handle_id": null, "secondary": null},
            {"handle_id": "k8s-pod-network.5e", "secondary": {"namespace": "default", "node": "node-a", "pod": "web-5",
                "timestamp": "2026-08-01 10:00:01 +0000 UTC"}, "alternateOwnerAttrs": {"pod": "web-6"}, "newer": [{"y": null}]},
        ],
        "sequenceNumber": BEYOND_FLOATS, "sequenceNumberForAllocation": {"5": BEYOND_FLOATS - 2, "3": 1, "newer": 7},
        "deleted": false, "strictAffinity": true, "newer": {"deep": [1, {"er": null}]},
    })
}

fn handle() -> Value {
    json!({"handleID": "k8s-pod-network.5E", "block": {"10.244.0.64/29": 1}, "newer": true})
}

fn assigned(address: &str) -> Outcome {
    Outcome::Assigned(vec![address.parse().unwrap()])
}

#[test]
fn an_assignment_changes_of_an_odd_block_what_it_takes_and_nothing_else() {
    let mut world = World::new(&[
        (Kind::Affinity, CLAIM, old_claim()),
        (Kind::Block, BLOCK, odd_block()),
    ]);
    let (outcome, _) = world.run(assign("node-a", "new"));
    assert_eq!(
        outcome,
        assigned("10.244.0.70"),
        "the one that has been free for longest"
    );
    world.holds(Kind::Affinity, CLAIM, old_claim());
    let mut expected = with(
        odd_block(),
        &[
            ("/allocations/6", json!(3)),
            ("/unallocated", json!([4])),
            ("/sequenceNumber", json!(BEYOND_FLOATS + 1)),
            ("/sequenceNumberForAllocation/6", json!(BEYOND_FLOATS)),
        ],
    );
    let attributes = expected["attributes"].as_array_mut().unwrap();
    attributes.push(json!({"handle_id": "new", "secondary": {"node": "node-a", "pod": "new"}}));
    world.holds(Kind::Block, BLOCK, expected);
}

#[test]
fn a_release_takes_an_owner_out_of_an_odd_block_and_leaves_the_others_as_they_were() {
    for request in [
        release("node-a", "k8s-pod-network.5e"),
        release_address("node-a", "10.244.0.69", Some(BEYOND_FLOATS - 2)),
    ] {
        let mut handle = handle();
        handle["handleID"] = json!("k8s-pod-network.5e");
        let mut world = World::new(&[
            (Kind::Affinity, CLAIM, old_claim()),
            (Kind::Block, BLOCK, odd_block()),
            (Kind::Handle, "k8s-pod-network.5e", handle),
        ]);
        assert_eq!(world.run(request).0, Outcome::Released);
        let mut expected = with(
            odd_block(),
            &[
                ("/allocations/5", Value::Null),
                ("/unallocated", json!([6, 4, 5])),
                ("/sequenceNumber", json!(BEYOND_FLOATS + 1)),
            ],
        );
        expected["attributes"].as_array_mut().unwrap().truncate(2);
        expected["sequenceNumberForAllocation"]
            .as_object_mut()
            .unwrap()
            .remove("5");
        world.holds(Kind::Block, BLOCK, expected);
        world.holds(Kind::Affinity, CLAIM, old_claim());
        assert_eq!(world.get(Kind::Handle, "k8s-pod-network.5e"), None);
    }
}

#[test]
fn a_handle_that_has_more_elsewhere_keeps_that_and_what_nobody_knows() {
    let other = json!({
        "cidr": "10.244.0.72/29", "affinity": null, "allocations": [0, null, null, null, null, null, null, null],
        "unallocated": [1, 2, 3, 4, 5, 6, 7], "attributes": [{"handle_id": "k8s-pod-network.5e", "secondary": null}],
        "strictAffinity": false,
    });
    let both = json!({"handleID": "k8s-pod-network.5e", "block": {"10.244.0.64/29": 1, "10.244.0.72/29": 1}, "deleted": null,
        "newer": true});
    let mut world = World::new(&[
        (Kind::Affinity, CLAIM, old_claim()),
        (Kind::Block, BLOCK, odd_block()),
        (Kind::Block, "10-244-0-72-29", other.clone()),
        (Kind::Handle, "k8s-pod-network.5e", both),
    ]);
    world.run(release_address("node-a", "10.244.0.69", None));
    let left = json!({"handleID": "k8s-pod-network.5e", "block": {"10.244.0.72/29": 1}, "deleted": false, "newer": true});
    world.holds(Kind::Handle, "k8s-pod-network.5e", left);
    // What was never written has the defaults that an API server gives it.
    let with_defaults = with(
        other,
        &[("/sequenceNumber", json!(0)), ("/deleted", json!(false))],
    );
    world.holds(Kind::Block, "10-244-0-72-29", with_defaults);
}

#[test]
fn a_claim_that_was_being_given_up_comes_back_with_all_that_it_said() {
    let given_up = with(
        old_claim(),
        &[("/state", json!("pendingDeletion")), ("/type", json!(""))],
    );
    let mut world = World::new(&[
        (Kind::Affinity, CLAIM, given_up.clone()),
        (Kind::Block, BLOCK, odd_block()),
    ]);
    assert_eq!(
        world.run(claim("node-a")).0,
        Outcome::Claimed(vec!["10.244.0.64/29".parse().unwrap()])
    );
    world.holds(
        Kind::Affinity,
        CLAIM,
        with(given_up, &[("/state", json!("confirmed"))]),
    );
    let found = world.get(Kind::Block, BLOCK).unwrap();
    let claimed = found["affinityClaimTime"].as_str().unwrap();
    assert!(
        Timestamp::parse(claimed).unwrap() > Timestamp::from_unix_nanos(NOW),
        "{claimed}"
    );
    let expected = with(
        odd_block(),
        &[
            ("/affinityClaimTime", json!(claimed)),
            ("/sequenceNumber", json!(BEYOND_FLOATS + 1)),
        ],
    );
    world.holds(Kind::Block, BLOCK, expected);
}

#[test]
fn a_block_is_given_up_with_all_that_it_says_of_those_who_live_in_it() {
    let mut world = World::new(&[
        (Kind::Affinity, CLAIM, old_claim()),
        (Kind::Block, BLOCK, odd_block()),
    ]);
    let (outcome, writes) = world.run(unclaim("node-a", "10.244.0.64/29", false));
    assert_eq!(outcome, Outcome::Unclaimed);
    let Some(Write::Update { object, .. }) = writes.first() else {
        panic!("{writes:?}")
    };
    assert_eq!(
        bare(spec(object)),
        bare(with(old_claim(), &[("/state", json!("pendingDeletion"))]))
    );
    assert_eq!(world.get(Kind::Affinity, CLAIM), None);
    let nobodys = with(
        odd_block(),
        &[
            ("/affinity", Value::Null),
            ("/sequenceNumber", json!(BEYOND_FLOATS + 1)),
        ],
    );
    world.holds(Kind::Block, BLOCK, nobodys);
}

#[test]
fn a_block_in_which_windows_alone_has_addresses_is_taken_from_its_node_and_one_of_a_virtual_owner_is_not() {
    let windows = with(
        odd_block(),
        &[
            ("/affinityClaimTime", json!("2026-08-01T10:00:00Z")),
            ("/allocations", json!([0, 0, 0, null, null, null, null, 0])),
            ("/unallocated", json!([6, 4, 3, 5])),
        ],
    );
    let windows = with(windows, &[("/attributes", json!([odd_block()["attributes"][0]]))]);
    let service = json!({
        "cidr": "10.244.0.72/29", "affinity": "virtual:load-balancer", "affinityClaimTime": "2026-08-01T10:00:00Z",
        "allocations": [null, null, null, null, null, null, null, null], "unallocated": [0, 1, 2, 3, 4, 5, 6, 7],
        "attributes": [], "sequenceNumber": BEYOND_FLOATS, "sequenceNumberForAllocation": {}, "deleted": false,
        "strictAffinity": false, "newer": 1,
    });
    let claim_of_service = json!({"cidr": "10.244.0.72/29", "node": "load-balancer", "type": "virtual", "state": "confirmed",
        "deleted": "false", "newer": 1});
    let mut world = World::new(&[
        (Kind::Affinity, CLAIM, old_claim()),
        (Kind::Block, BLOCK, windows),
        (
            Kind::Affinity,
            "load-balancer-10-244-0-72-29",
            claim_of_service.clone(),
        ),
        (Kind::Block, "10-244-0-72-29", service.clone()),
    ]);
    world.pools = vec![pool("v4", "10.244.0.64/28", 29)];
    world.limits.strict_affinity = true;
    // A node that is called as the virtual owner is, is not the owner.
    let (outcome, writes) = world.run(assign("load-balancer", "new"));
    let Outcome::Assigned(addresses) = outcome else {
        panic!()
    };
    assert!(world.pools[0].cidr().contains(&addresses[0]) && addresses[0] < IpAddr::from([10, 244, 0, 72]));
    let Some(Write::Update { object, .. }) = writes.first() else {
        panic!("{writes:?}")
    };
    assert_eq!(
        bare(spec(object)),
        bare(with(old_claim(), &[("/state", json!("pendingDeletion"))]))
    );
    assert_eq!(world.get(Kind::Affinity, CLAIM), None, "it was node-a's");
    world.holds(Kind::Block, "10-244-0-72-29", service);
    world.holds(Kind::Affinity, "load-balancer-10-244-0-72-29", claim_of_service);
}

#[test]
fn what_is_marked_as_deleted_owns_nothing_and_is_taken_away() {
    for deleted in ["true", "1", "T"] {
        let marked = with(old_claim(), &[("/deleted", json!(deleted))]);
        let mut block = odd_block();
        block["deleted"] = json!(true);
        let mut world = World::new(&[
            (Kind::Affinity, CLAIM, marked),
            (Kind::Block, BLOCK, block),
            (
                Kind::Handle,
                "new",
                json!({"handleID": "new", "block": null, "deleted": true}),
            ),
        ]);
        world.pools = vec![pool("v4", "10.244.0.64/29", 29)];
        let (outcome, _) = world.run(assign("node-a", "new"));
        assert_eq!(outcome, assigned("10.244.0.64"), "of a block that was made anew");
        let claim = world.get(Kind::Affinity, CLAIM).unwrap();
        assert_eq!(
            (&claim["deleted"], &claim["type"]),
            (&json!("false"), &json!("host"))
        );
        assert!(world.get(Kind::Block, BLOCK).unwrap().get("newer").is_none());
    }
}

#[test]
fn an_ipv6_block_is_worked_on_under_the_names_that_calico_gives() {
    let block = json!({
        "cidr": "fd00:10::40/125", "affinity": "host:node-a", "affinityClaimTime": "2026-08-01T10:00:00Z",
        "allocations": [0, null, null, null, null, null, null, null], "unallocated": [7, 6, 5, 4, 3, 2, 1],
        "attributes": [{"handle_id": "k8s-pod-network.6a", "secondary": {"node": "node-a"}}],
        "sequenceNumber": u64::MAX - 1, "sequenceNumberForAllocation": {"0": u64::MAX - 2}, "deleted": false,
        "strictAffinity": false,
    });
    let claim = json!({"cidr": "fd00:10::40/125", "node": "node-a", "state": "confirmed", "type": "host", "deleted": null});
    let handle = json!({"handleID": "k8s-pod-network.6a", "block": {"fd00:10::40/125": 1}, "deleted": false, "newer": 6});
    let mut world = World::new(&[
        (Kind::Affinity, "node-a-fd00-10--40-125", claim),
        (Kind::Block, "fd00-10--40-125", block.clone()),
        (Kind::Handle, "k8s-pod-network.6a", handle.clone()),
    ]);
    let v6 = culvert_ipam::pool::Family::V6;
    let wanted = vec![culvert_ipam::allocator::Wanted::Any {
        family: v6,
        count: 2,
        pools: Vec::new(),
    }];
    let (outcome, _) = world.run(assign_wanted("node-a", "k8s-pod-network.6a", wanted));
    let expected = ["fd00:10::40", "fd00:10::47"].map(|address| address.parse().unwrap());
    assert_eq!(
        outcome,
        Outcome::Assigned(expected.to_vec()),
        "the one that it has, and another"
    );
    let mut taken = with(
        block,
        &[
            ("/allocations/7", json!(1)),
            ("/unallocated", json!([6, 5, 4, 3, 2, 1])),
            ("/sequenceNumber", json!(u64::MAX)),
            ("/sequenceNumberForAllocation/7", json!(u64::MAX - 1)),
        ],
    );
    let attributes = taken["attributes"].as_array_mut().unwrap();
    attributes.push(json!({"handle_id": "k8s-pod-network.6a", "secondary": {"node": "node-a", "pod": "k8s-pod-network.6a"}}));
    world.holds(Kind::Block, "fd00-10--40-125", taken);
    world.holds(
        Kind::Handle,
        "k8s-pod-network.6a",
        with(handle, &[("/block/fd00:10::40~1125", json!(2))]),
    );
}

#[test]
fn the_claim_of_a_node_with_a_long_name_is_found_under_its_shortened_one() {
    // printf '%s+%s' "$(printf 'n%.0s' $(seq 238))" 10-244-0-64-26 | sha256sum | cut -c1-11
    let (node, hash) = ("n".repeat(238), "1a3b996f6e6");
    let name = format!("{}-10-244-0-64-26-{hash}", "n".repeat(252 - 14 - 13));
    let block = json!({
        "cidr": "10.244.0.64/26", "affinity": format!("host:{node}"), "allocations": vec![Value::Null; 64],
        "unallocated": (0..64).rev().collect::<Vec<_>>(), "attributes": [], "strictAffinity": false,
    });
    let claim = json!({"cidr": "10.244.0.64/26", "node": node, "state": "pending", "deleted": "false"});
    let mut world = World::new(&[
        (Kind::Affinity, &name, claim.clone()),
        (Kind::Block, "10-244-0-64-26", block),
    ]);
    world.pools = vec![pool("v4", "10.244.0.0/24", 26)];
    let (outcome, writes) = world.run(assign(&node, "new"));
    assert_eq!(outcome, assigned("10.244.0.127"));
    let creates = writes
        .iter()
        .filter(|write| matches!(write, Write::Create { .. }))
        .count();
    assert_eq!(creates, 1, "the handle, and no second claim");
    world.holds(
        Kind::Affinity,
        &name,
        with(claim, &[("/state", json!("confirmed"))]),
    );
}
