//! What a watch remembers is enough to try a write, and never to refuse anybody.

use std::sync::Mutex as SyncMutex;

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::*;
use crate::api::{BlockAffinity, Resource as _};
use crate::datastore::{Recollection, Update};

/// A store that remembers something, true or not, and notes which kinds are listed.
struct Remembering {
    store: Arc<Memory>,
    memory: SyncMutex<Option<Recollection>>,
    listed: SyncMutex<Vec<Kind>>,
}

#[async_trait]
impl Datastore for Remembering {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        self.store.get(key).await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.listed.lock().unwrap().push(kind);
        self.store.list(kind).await
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.list(kind).await
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        self.store.create(object).await
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        self.store.update(object).await
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        self.store.delete(key, revision).await
    }

    fn recall(&self, _: &str) -> Option<Recollection> {
        self.memory.lock().unwrap().clone()
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        self.store.watch()
    }
}

impl Remembering {
    /// Remembers what is there now.
    async fn remember(&self) {
        let objects = self.store.list(Kind::BlockAffinity).await.unwrap();
        let mut affinities: Vec<BlockAffinity> = objects
            .into_iter()
            .filter_map(BlockAffinity::from_object)
            .collect();
        // Of the metadata a watch keeps what is needed to know the object.
        for affinity in &mut affinities {
            affinity.metadata.labels.clear();
        }
        let pools = self.store.list(Kind::IpPool).await.unwrap();
        *self.memory.lock().unwrap() = Some(Recollection {
            pools: pools.into_iter().filter_map(IpPool::from_object).collect(),
            affinities,
            ..Recollection::default()
        });
    }

    fn listed(&self) -> Vec<Kind> {
        std::mem::take(&mut self.listed.lock().unwrap())
    }
}

/// A node with one block of four addresses, which is remembered.
async fn settled() -> (Arc<Remembering>, Allocator) {
    let store = Arc::new(Remembering {
        store: memory(&[ip_pool("p", "10.0.0.0/29", 30)]),
        memory: SyncMutex::default(),
        listed: SyncMutex::default(),
    });
    let node = Allocator::new(store.clone(), "n1".to_owned());
    node.ensure_block(Family::V4).await.unwrap();
    store.remember().await;
    store.listed();
    (store, node)
}

#[tokio::test]
async fn an_address_of_a_remembered_block_costs_no_list() {
    let (store, node) = settled().await;
    for handle in ["a", "b", "c", "d"] {
        one(&node, handle).await;
    }
    node.release("a").await.unwrap();
    one(&node, "e").await;
    assert_eq!(store.listed(), []);
}

#[tokio::test]
async fn a_claim_is_made_by_what_is_read() {
    let (store, node) = settled().await;
    for handle in ["a", "b", "c", "d", "e"] {
        one(&node, handle).await;
    }
    let listed = store.listed();
    assert!(
        listed.contains(&Kind::BlockAffinity) && listed.contains(&Kind::IpPool),
        "{listed:?}"
    );
    assert_eq!(store.store.count(Kind::IpamBlock), 2);
}

#[tokio::test]
async fn nobody_is_refused_by_a_memory() {
    let (store, node) = settled().await;
    // By the memory there is no pool at all; in truth there is one.
    store.memory.lock().unwrap().as_mut().unwrap().pools.clear();
    one(&node, "a").await;
    assert!(store.listed().contains(&Kind::IpPool));
    // And who is refused, is so by what was read: everything is taken by now.
    store.remember().await;
    for handle in ["b", "c", "d", "e", "f", "g", "h"] {
        one(&node, handle).await;
    }
    store.remember().await;
    store.listed();
    let error = node.assign(pod("i")).await.unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/29"), "{error}");
    assert!(store.listed().contains(&Kind::BlockAffinity));
}

#[tokio::test]
async fn an_old_memory_of_a_claim_costs_a_write_in_vain_and_loses_nothing_of_the_object() {
    let (store, node) = settled().await;
    let affinity = store.store.list(Kind::BlockAffinity).await.unwrap().remove(0);
    // The block is gone since, and its claim is there still, with a label that the memory has not.
    let block = store.store.list(Kind::IpamBlock).await.unwrap().remove(0);
    store.store.set(|state| {
        state.objects.remove(&block.key());
        let Object::BlockAffinity(mut claim) = affinity.clone() else {
            unreachable!()
        };
        claim
            .metadata
            .labels
            .insert("somebodys".to_owned(), "1".to_owned());
        state.store(Object::BlockAffinity(claim));
    });
    one(&node, "a").await;
    let claims = store.store.list(Kind::BlockAffinity).await.unwrap();
    let confirmed = claims.iter().filter(|claim| match claim {
        Object::BlockAffinity(claim) => claim.spec.is_confirmed_for("n1"),
        _ => false,
    });
    assert_eq!(confirmed.count(), 1, "{claims:?}");
    let same = claims.iter().find(|claim| claim.key() == affinity.key());
    let label = |object: &Object| object.metadata().labels.contains_key("somebodys");
    assert!(same.is_some_and(label), "{claims:?}");
}
