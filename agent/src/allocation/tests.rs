//! The driver on a datastore in memory that refuses, delays and fails at will.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex as SyncMutex;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::*;
use crate::api::{IpPoolSpec, Metadata, UnknownFields};
use crate::datastore::Update;

/// Objects with revisions, and what is to go wrong.
#[derive(Default)]
struct Memory(SyncMutex<State>);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Object>,
    revision: u64,
    writes: Vec<String>,
    /// Before a write to such an object, somebody else rewrites it, this many times.
    contention: BTreeMap<Key, u32>,
    /// The write of this number, and all after it, fail (the process is dead to the store).
    fails_at: Option<usize>,
    unreadable: BTreeSet<Key>,
}

impl State {
    fn store(&mut self, mut object: Object) -> Object {
        self.revision += 1;
        object.metadata_mut().resource_version = Some(self.revision.to_string());
        self.objects.insert(object.key(), object.clone());
        object
    }

    fn before_write(&mut self, verb: &str, key: &Key) -> Result<(), DatastoreError> {
        if self.fails_at.is_some_and(|n| self.writes.len() >= n) {
            let source = std::io::Error::other("connection lost");
            return Err(DatastoreError::Io {
                operation: format!("{verb} {key}"),
                source,
            });
        }
        if let Some(left) = self.contention.get_mut(key).filter(|left| **left > 0) {
            *left -= 1;
            if let Some(object) = self.objects.get(key).cloned() {
                self.store(object);
            }
        }
        Ok(())
    }

    fn at(&self, key: &Key, revision: Option<&String>) -> Result<(), DatastoreError> {
        let Some(there) = self.objects.get(key) else {
            return Err(DatastoreError::NotFound { key: key.clone() });
        };
        if there.metadata().resource_version.as_ref() == revision {
            return Ok(());
        }
        Err(DatastoreError::Conflict {
            key: key.clone(),
            revision: revision.cloned().unwrap_or_default(),
        })
    }
}

#[async_trait]
impl Datastore for Memory {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        tokio::task::yield_now().await;
        let state = self.0.lock().unwrap();
        if state.unreadable.contains(key) {
            return Err(DatastoreError::Invalid {
                place: key.to_string(),
                reason: "no mapping".to_owned(),
            });
        }
        Ok(state.objects.get(key).cloned())
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        tokio::task::yield_now().await;
        let state = self.0.lock().unwrap();
        let readable = state
            .objects
            .iter()
            .filter(|(key, _)| key.kind == kind && !state.unreadable.contains(key));
        Ok(readable.map(|(_, object)| object.clone()).collect())
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        let key = object.key();
        state.before_write("create", &key)?;
        if state.objects.contains_key(&key) {
            return Err(DatastoreError::AlreadyExists { key });
        }
        state.writes.push(format!("create {key}"));
        Ok(state.store(object))
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        let key = object.key();
        state.before_write("update", &key)?;
        state.at(&key, object.metadata().resource_version.as_ref())?;
        state.writes.push(format!("update {key}"));
        Ok(state.store(object))
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        tokio::task::yield_now().await;
        let mut state = self.0.lock().unwrap();
        state.before_write("delete", key)?;
        state.at(key, Some(&revision.to_owned()))?;
        state.writes.push(format!("delete {key}"));
        state.objects.remove(key);
        Ok(())
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        Ok(mpsc::channel(1).1)
    }
}

fn ip_pool(name: &str, cidr: &str, block_size: u8) -> IpPool {
    let spec: IpPoolSpec = serde_json::from_value(
        serde_json::json!({"cidr": cidr, "blockSize": block_size, "ipipMode": "Always"}),
    )
    .unwrap();
    IpPool::new(name, spec)
}

fn memory(pools: &[IpPool]) -> Arc<Memory> {
    let memory = Memory::default();
    for pool in pools {
        memory.0.lock().unwrap().store(Object::IpPool(pool.clone()));
    }
    Arc::new(memory)
}

fn allocator(store: &Arc<Memory>, node: &str) -> Allocator {
    Allocator::new(store.clone(), node.to_owned())
}

fn pod(handle: &str) -> Assignment {
    Assignment {
        handle: handle.to_owned(),
        attributes: BTreeMap::from([("pod".to_owned(), handle.to_owned())]),
        usage: Use::Workload,
    }
}

impl Memory {
    fn object(&self, kind: Kind, name: &str) -> Object {
        self.0.lock().unwrap().objects[&Key::new(kind, name)].clone()
    }

    fn blocks(&self) -> Vec<IpamBlock> {
        let state = self.0.lock().unwrap();
        let blocks = state.objects.values().filter_map(|o| match o {
            Object::IpamBlock(block) => Some(block.clone()),
            _ => None,
        });
        blocks.collect()
    }

    fn count(&self, kind: Kind) -> usize {
        self.0
            .lock()
            .unwrap()
            .objects
            .keys()
            .filter(|k| k.kind == kind)
            .count()
    }

    fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

#[tokio::test]
async fn a_first_address_costs_a_claim_and_the_next_only_its_own_writes() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    assert_eq!(node.assign(pod("a")).await.unwrap(), IpAddr::from([10, 0, 0, 0]));
    let claim = [
        "create BlockAffinity n1-10-0-0-0-26",
        "create IPAMBlock 10-0-0-0-26",
        "update BlockAffinity n1-10-0-0-0-26",
        "create IPAMHandle a",
        "update IPAMBlock 10-0-0-0-26",
    ];
    assert_eq!(store.set(|s| std::mem::take(&mut s.writes)), claim);
    assert_eq!(node.assign(pod("b")).await.unwrap(), IpAddr::from([10, 0, 0, 1]));
    assert_eq!(
        store.set(|s| std::mem::take(&mut s.writes)),
        ["create IPAMHandle b", "update IPAMBlock 10-0-0-0-26"]
    );
    assert_eq!(
        node.assign(pod("a")).await.unwrap(),
        IpAddr::from([10, 0, 0, 0]),
        "the same again"
    );
    assert!(store.set(|s| s.writes.is_empty()));
}

#[tokio::test]
async fn released_addresses_are_told_and_releasing_nothing_is_fine() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    let address = node.assign(pod("a")).await.unwrap();
    assert_eq!(node.release("a").await.unwrap(), [address]);
    assert!(node.release("a").await.unwrap().is_empty());
    assert!(node.release("never-heard-of").await.unwrap().is_empty());
    assert_eq!(store.count(Kind::IpamHandle), 0);
    assert_ne!(
        node.assign(pod("b")).await.unwrap(),
        address,
        "what was released last is given out last"
    );
}

#[tokio::test]
async fn a_first_block_is_claimed_once() {
    let store = memory(&[ip_pool("p", "10.0.0.0/24", 26)]);
    let node = allocator(&store, "n1");
    let blocks = node.ensure_block().await.unwrap();
    assert_eq!(blocks.len(), 1);
    assert_eq!(node.ensure_block().await.unwrap(), blocks);
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
        let error = allocator(&store, "n1").ensure_block().await.unwrap_err();
        assert!(
            matches!(error, AllocationError::Datastore(DatastoreError::Io { .. })),
            "{error}"
        );
        store.set(|s| s.fails_at = None);
        assert_eq!(
            allocator(&store, "n1").ensure_block().await.unwrap().len(),
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
        let again = node.assign(pod("a")).await.unwrap();
        assert!(first.is_err() || first.unwrap() == again);
        assert_eq!(node.release("a").await.unwrap(), [again], "after {writes} writes");
        assert!(store.blocks().iter().all(|b| !b.spec.is_in_use()));
        assert_eq!(store.count(Kind::IpamHandle), 0);
    }
}

#[tokio::test]
async fn a_refused_write_is_planned_again() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    node.ensure_block().await.unwrap();
    store.set(|s| s.contention.insert(Key::new(Kind::IpamBlock, "10-0-0-0-26"), 7));
    assert_eq!(node.assign(pod("a")).await.unwrap(), IpAddr::from([10, 0, 0, 0]));
}

#[tokio::test]
async fn after_a_hundred_refused_writes_the_error_says_where() {
    let store = memory(&[ip_pool("p", "10.0.0.0/26", 26)]);
    let node = allocator(&store, "n1");
    node.ensure_block().await.unwrap();
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
    node.ensure_block().await.unwrap();
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
    let first = node.ensure_block().await.unwrap();
    let name = culvert_ipam::name::block(first[0]);
    store.set(|s| s.unreadable.insert(Key::new(Kind::IpamBlock, name)));
    let address = node.assign(pod("a")).await.unwrap();
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
            tasks.push(tokio::spawn(async move {
                node.assign(pod(&format!("n{n}-p{p}"))).await.unwrap()
            }));
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
        pool(&object)
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
    assert!(pool(&wrong).is_err());
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
