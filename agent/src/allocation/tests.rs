//! The driver on a datastore in memory that refuses, delays and fails at will.

mod recalled;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::api::{
    EncapsulationMode, IpamConfig, IpamConfigSpec, Kind, Metadata, Node, Object, UnknownFields,
};
use crate::datastore::memory::{Memory, ip_pool};

fn memory(pools: &[IpPool]) -> Arc<Memory> {
    Memory::of(pools.iter().cloned().map(Object::IpPool))
}

fn allocator(store: &Arc<Memory>, node: &str) -> Allocator {
    Allocator::new(store.clone(), node.to_owned())
}

fn pod(handle: &str) -> Assignment {
    Assignment::one(
        handle,
        BTreeMap::from([("pod".to_owned(), handle.to_owned())]),
        Use::Workload,
    )
}

async fn one(node: &Allocator, handle: &str) -> IpAddr {
    let addresses = node.assign(pod(handle)).await.unwrap();
    assert_eq!(addresses.len(), 1);
    addresses[0]
}

#[tokio::test]
async fn a_first_address_costs_a_claim_and_the_next_only_its_own_writes() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    assert_eq!(one(&node, "a").await, IpAddr::from([10, 0, 0, 0]));
    let claim = [
        "create BlockAffinity n1-10-0-0-0-26",
        "create IPAMBlock 10-0-0-0-26",
        "update BlockAffinity n1-10-0-0-0-26",
        "create IPAMHandle a",
        "update IPAMBlock 10-0-0-0-26",
    ];
    assert_eq!(store.set(|s| std::mem::take(&mut s.writes)), claim);
    assert_eq!(one(&node, "b").await, IpAddr::from([10, 0, 0, 1]));
    assert_eq!(
        store.set(|s| std::mem::take(&mut s.writes)),
        ["create IPAMHandle b", "update IPAMBlock 10-0-0-0-26"]
    );
    assert_eq!(
        one(&node, "a").await,
        IpAddr::from([10, 0, 0, 0]),
        "the same again"
    );
    assert!(store.set(|s| s.writes.is_empty()));
}

#[tokio::test]
async fn released_addresses_are_told_and_releasing_nothing_is_fine() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    let address = one(&node, "a").await;
    assert_eq!(node.release("a").await.unwrap(), [address]);
    assert!(node.release("a").await.unwrap().is_empty());
    assert!(node.release("never-heard-of").await.unwrap().is_empty());
    assert_eq!(store.count(Kind::IpamHandle), 0);
    assert_ne!(
        one(&node, "b").await,
        address,
        "what was released last is given out last"
    );
}

#[tokio::test]
async fn a_first_block_is_claimed_once() {
    let store = memory(&[ip_pool("p", "10.0.0.0/24", 26)]);
    let node = allocator(&store, "n1");
    let blocks = node.ensure_block(Family::V4).await.unwrap();
    assert_eq!(blocks.len(), 1);
    assert_eq!(node.ensure_block(Family::V4).await.unwrap(), blocks);
    assert_eq!(
        (store.count(Kind::IpamBlock), store.count(Kind::BlockAffinity)),
        (1, 1)
    );
}

#[tokio::test]
async fn a_claim_that_died_at_any_write_is_finished_by_the_next_start() {
    for writes in 0..3 {
        let store = memory(&[ip_pool("p", "10.0.0.0/24", 26)]);
        store.set(|s| s.fails_at = Some(writes));
        let error = allocator(&store, "n1")
            .ensure_block(Family::V4)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, AllocationError::Datastore(e) if matches!(**e, DatastoreError::Io { .. })),
            "{error}"
        );
        store.set(|s| s.fails_at = None);
        assert_eq!(
            allocator(&store, "n1")
                .ensure_block(Family::V4)
                .await
                .unwrap()
                .len(),
            1,
            "after {writes} writes"
        );
        assert_eq!(
            (store.count(Kind::IpamBlock), store.count(Kind::BlockAffinity)),
            (1, 1),
            "after {writes} writes"
        );
    }
}

#[tokio::test]
async fn an_assignment_that_died_at_any_write_leaks_nothing() {
    for writes in 0..6 {
        let store = memory(&[ip_pool("p", "10.0.0.0/24", 26)]);
        store.set(|s| s.fails_at = Some(writes));
        let first = allocator(&store, "n1").assign(pod("a")).await;
        store.set(|s| s.fails_at = None);
        let node = allocator(&store, "n1");
        let again = one(&node, "a").await;
        assert!(first.is_err() || first.unwrap() == [again]);
        assert_eq!(node.release("a").await.unwrap(), [again], "after {writes} writes");
        assert!(store.blocks().iter().all(|b| !b.spec.is_in_use()));
        assert_eq!(store.count(Kind::IpamHandle), 0);
    }
}

#[tokio::test]
async fn a_refused_write_is_planned_again() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    node.ensure_block(Family::V4).await.unwrap();
    store.set(|s| s.contention.insert(Key::new(Kind::IpamBlock, "10-0-0-0-26"), 7));
    assert_eq!(one(&node, "a").await, IpAddr::from([10, 0, 0, 0]));
}

#[tokio::test]
async fn after_a_hundred_refused_writes_the_error_says_where() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    node.ensure_block(Family::V4).await.unwrap();
    let key = Key::new(Kind::IpamBlock, "10-0-0-0-26");
    store.set(|s| s.contention.insert(key.clone(), 1000));
    let error = node.assign(pod("a")).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("node n1: IPAMBlock 10-0-0-0-26 was changed by others"),
        "{error}"
    );
    assert_eq!(store.set(|s| s.contention[&key]), 900, "tries are bounded");
}

#[tokio::test]
async fn what_a_plan_does_not_see_survives_its_writes() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    node.ensure_block(Family::V4).await.unwrap();
    let mut object = store.object(Kind::IpamBlock, "10-0-0-0-26");
    object
        .metadata_mut()
        .labels
        .insert("team".to_owned(), "a".to_owned());
    object
        .metadata_mut()
        .unknown
        .insert("uid".to_owned(), "u-1".into());
    store.set(|s| s.store(object));
    node.assign(pod("a")).await.unwrap();
    let metadata = store.object(Kind::IpamBlock, "10-0-0-0-26").metadata().clone();
    assert_eq!(
        (metadata.labels["team"].as_str(), &metadata.unknown["uid"]),
        ("a", &"u-1".into())
    );
}

#[tokio::test]
async fn an_unreadable_block_is_passed_over() {
    let store = memory(&[ip_pool("p", "10.0.0.0/25", 26)]);
    let node = allocator(&store, "n1");
    let first = node.ensure_block(Family::V4).await.unwrap();
    let name = culvert_ipam::name::block(first[0]);
    store.set(|s| s.unreadable.insert(Key::new(Kind::IpamBlock, name)));
    let address = one(&node, "a").await;
    assert!(
        !first[0].contains(&address),
        "{address} comes from another block than {first:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_at_once_never_share_an_address_or_a_block() {
    let store = memory(&[ip_pool("p", "10.0.0.0/24", 28)]);
    let mut tasks = Vec::new();
    for n in 0..3 {
        let node = allocator(&store, &format!("n{n}"));
        for p in 0..40 {
            let node = node.clone();
            tasks.push(tokio::spawn(
                async move { one(&node, &format!("n{n}-p{p}")).await },
            ));
        }
    }
    let mut addresses = BTreeSet::new();
    for task in tasks {
        let address = task.await.unwrap();
        assert!(addresses.insert(address), "{address} twice");
    }
    assert_eq!(addresses.len(), 120);
    assert_eq!(
        store.count(Kind::IpamBlock),
        9,
        "three blocks of 16 hold the 40 addresses of a node"
    );
    for n in 0..3 {
        let node = allocator(&store, &format!("n{n}"));
        for p in 0..40 {
            assert_eq!(node.release(&format!("n{n}-p{p}")).await.unwrap().len(), 1);
        }
    }
    assert!(store.blocks().iter().all(|b| !b.spec.is_in_use()));
    assert_eq!(store.count(Kind::IpamHandle), 0);
}

#[tokio::test]
async fn the_tunnel_address_stays_until_its_pool_is_gone() {
    let store = memory(&[ip_pool("old", "10.0.0.0/24", 26)]);
    let node = allocator(&store, "n1");
    let first = node.tunnel_address().await.unwrap();
    assert_eq!(node.tunnel_address().await.unwrap(), first);
    let Object::IpamHandle(handle) = store.object(Kind::IpamHandle, "ipip-tunnel-addr-n1") else {
        unreachable!()
    };
    assert_eq!(handle.spec.handle_id, "ipip-tunnel-addr-n1");
    let attributes = store.blocks()[0].spec.attributes[0].secondary.clone().unwrap();
    assert_eq!(
        (attributes["type"].as_str(), attributes["node"].as_str()),
        ("ipipTunnelAddress", "n1")
    );

    store.set(|s| {
        s.objects.remove(&Key::new(Kind::IpPool, "old"));
        s.store(Object::IpPool(ip_pool("new", "10.1.0.0/24", 26)));
    });
    let second = node.tunnel_address().await.unwrap();
    assert!(second.octets().starts_with(&[10, 1]), "{second}");
    assert_eq!(
        node.release("ipip-tunnel-addr-n1").await.unwrap(),
        [IpAddr::V4(second)]
    );
}

#[tokio::test]
async fn a_tunnel_address_needs_a_pool_with_a_tunnel() {
    let mut direct = ip_pool("direct", "10.0.0.0/24", 26);
    direct.spec.ipip_mode = EncapsulationMode::Never;
    let error = allocator(&memory(&[direct]), "n1")
        .tunnel_address()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "node n1: no enabled IPv4 pool for Tunnel (pool direct: ipipMode is Never); create an IPPool, or change one of these"
    );
}

#[test]
fn an_ip_pool_that_is_not_for_this_node_is_excluded() {
    let refusal = |change: fn(&mut IpPool)| {
        let mut object = ip_pool("p", "10.0.0.0/24", 26);
        change(&mut object);
        pool(&object, &BTreeMap::new())
            .unwrap()
            .refusal(Use::Workload)
            .map(|r| r.to_string())
    };
    assert_eq!(refusal(|_| ()), None);
    assert_eq!(refusal(|p| p.spec.node_selector = Some("all()".to_owned())), None);
    assert_eq!(refusal(|p| p.spec.disabled = true).as_deref(), Some("disabled"));
    let selected = refusal(|p| p.spec.node_selector = Some("zone == 'a'".to_owned()));
    assert!(selected.unwrap().contains("zone == 'a'"));
    assert!(refusal(|p| p.spec.allowed_uses = vec!["LoadBalancer".to_owned()]).is_some());
    assert_eq!(
        refusal(|p| p.spec.allowed_uses = vec!["Workload".to_owned()]),
        None
    );
    let manual: fn(&mut IpPool) = |p| {
        p.spec
            .unknown
            .insert("assignmentMode".to_owned(), "Manual".into());
    };
    assert!(refusal(manual).is_some());
    let wrong = ip_pool("p", "10.0.0.0/24", 10);
    assert!(pool(&wrong, &BTreeMap::new()).is_err());
}

#[tokio::test]
async fn the_limits_of_the_configuration_hold() {
    let store = memory(&[ip_pool("p", "10.0.0.0/24", 32)]);
    let config: IpamConfig = IpamConfig {
        metadata: Metadata::named("default"),
        spec: IpamConfigSpec {
            max_blocks_per_host: 2,
            ..IpamConfigSpec::default()
        },
        unknown: UnknownFields::new(),
    };
    store.set(|s| s.store(Object::IpamConfig(config)));
    let node = allocator(&store, "n1");
    node.assign(pod("a")).await.unwrap();
    node.assign(pod("b")).await.unwrap();
    let error = node.assign(pod("c")).await.unwrap_err();
    assert!(
        error.to_string().contains("it has 2 IPv4 blocks, the limit is 2"),
        "{error}"
    );
}

#[test]
fn a_block_goes_through_yaml_without_losing_a_digit() {
    let yaml = "\
apiVersion: crd.projectcalico.org/v1
kind: IPAMBlock
metadata:
  name: 10-0-0-0-31
  resourceVersion: '7'
spec:
  affinity: host:n1
  allocations: [0, null]
  attributes:
  - handle_id: '0123'
    secondary: {node: n1, pod: '1e3'}
  cidr: 10.0.0.0/31
  deleted: false
  sequenceNumber: 1790000000123456789
  sequenceNumberForAllocation: {'0': 18446744073709551615}
  strictAffinity: false
  unallocated: [1]
";
    let mut value: serde_yaml::Value = serde_yaml::from_str(yaml).unwrap();
    let whole = value.clone();
    let body = value.as_mapping_mut().unwrap();
    body.remove("apiVersion");
    body.remove("kind");
    let object = Object::deserialize(Kind::IpamBlock, value).unwrap();
    let written = serde_yaml::to_string(&object).unwrap();
    assert_eq!(
        serde_yaml::from_str::<serde_yaml::Value>(&written).unwrap(),
        whole,
        "{written}"
    );
}

#[tokio::test]
async fn requests_that_wait_share_the_writes_of_a_block() {
    let store = memory(&[ip_pool("p", "10.0.0.0/24", 24)]);
    let node = allocator(&store, "n1");
    node.ensure_block(Family::V4).await.unwrap();
    store.set(|s| s.writes.clear());
    let names: Vec<String> = (0..250).map(|n| format!("p{n}")).collect();
    let all = names.iter().map(|name| one(&node, name));
    let addresses: BTreeSet<IpAddr> = futures_util::future::join_all(all).await.into_iter().collect();
    assert_eq!(addresses.len(), 250);
    // 32 at a time, and the first alone.
    let block_writes = |writes: &[String]| writes.iter().filter(|w| w.contains("IPAMBlock")).count();
    let writes = store.set(|s| std::mem::take(&mut s.writes));
    assert!(
        block_writes(&writes) <= 9,
        "{} writes of the block",
        block_writes(&writes)
    );
    let released = futures_util::future::join_all(names.iter().map(|name| node.release(name))).await;
    assert!(released.iter().all(|r| r.as_ref().is_ok_and(|a| a.len() == 1)));
    let writes = store.set(|s| std::mem::take(&mut s.writes));
    assert!(
        block_writes(&writes) <= 9,
        "{} writes of the block",
        block_writes(&writes)
    );
    assert_eq!(store.count(Kind::IpamHandle), 0);
}

#[tokio::test]
async fn who_asks_and_goes_away_leaves_nothing_that_a_release_does_not_find() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    let mut asked = Box::pin(node.assign(pod("a")));
    // Asked, and dropped before the answer.
    assert!(futures_util::poll!(&mut asked).is_pending());
    drop(asked);
    assert_eq!(one(&node, "b").await, IpAddr::from([10, 0, 0, 1]));
    assert_eq!(node.release("a").await.unwrap(), [IpAddr::from([10, 0, 0, 0])]);
}

#[tokio::test]
async fn a_write_that_is_refused_for_what_it_says_fails_its_own_request_alone() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    node.ensure_block(Family::V4).await.unwrap();
    store.set(|s| s.invalid.insert(Key::new(Kind::IpamHandle, "bad")));
    let (good, bad, other) = tokio::join!(
        node.assign(pod("good")),
        node.assign(pod("bad")),
        node.assign(pod("other"))
    );
    assert!(good.is_ok() && other.is_ok(), "{good:?} {other:?}");
    let error = bad.unwrap_err().to_string();
    assert!(error.contains("bad") && error.contains("refused"), "{error}");
}

#[tokio::test]
async fn a_pool_is_chosen_by_the_labels_of_the_node_and_of_the_namespace() {
    let mut east = ip_pool("east", "10.1.0.0/24", 26);
    east.spec.node_selector = Some("zone == 'east'".to_owned());
    let mut tenant = ip_pool("tenant", "10.2.0.0/24", 26);
    tenant
        .spec
        .unknown
        .insert("namespaceSelector".to_owned(), "tenant == 'a'".into());
    tenant.spec.node_selector = Some("zone == 'west'".to_owned());
    let store = memory(&[east, tenant]);
    for (name, zone) in [("n1", "east"), ("n2", "west")] {
        let mut node = Node::named(name);
        node.metadata.labels.insert("zone".to_owned(), zone.to_owned());
        store.set(|s| s.store(Object::Node(node)));
    }
    let address = one(&allocator(&store, "n1"), "a").await;
    assert_eq!(address, IpAddr::from([10, 1, 0, 0]));

    let node = allocator(&store, "n2");
    let namespace = |tenant: &str| Some(BTreeMap::from([("tenant".to_owned(), tenant.to_owned())]));
    for (labels, allowed) in [(namespace("a"), true), (namespace("b"), false), (None, false)] {
        let wanted = Assignment {
            namespace: labels,
            ..pod("b")
        };
        let assigned = node.assign(wanted).await;
        assert_eq!(assigned.is_ok(), allowed, "{assigned:?}");
        if let Err(error) = assigned {
            let error = error.to_string();
            assert!(
                error.contains("namespaceSelector") && error.contains("zone == 'east'"),
                "{error}"
            );
        }
        node.release("b").await.unwrap();
    }
}

#[test]
fn a_selector_that_is_not_understood_selects_no_node() {
    let mut object = ip_pool("p", "10.0.0.0/24", 26);
    object.spec.node_selector = Some("zone = 'a'".to_owned());
    let refusal = pool(&object, &BTreeMap::new()).unwrap().refusal(Use::Workload);
    assert!(refusal.is_some_and(|r| r.to_string().contains("zone = 'a'")));
}
