//! A datastore in memory for tests: it refuses, fails and is written by somebody else at will.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Datastore, DatastoreError, Update};
use crate::api::{IpPool, IpPoolSpec, IpamBlock, Key, Kind, Object};

/// Objects with revisions, and what is to go wrong.
#[derive(Default)]
pub(crate) struct Memory(Mutex<State>);

/// What somebody else does.
type Meanwhile = Box<dyn FnOnce(&mut State) + Send>;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) objects: BTreeMap<Key, Object>,
    revision: u64,
    pub(crate) writes: Vec<String>,
    /// Before a write to such an object, somebody else rewrites it, this many times.
    pub(crate) contention: BTreeMap<Key, u32>,
    /// The write of this number, and all after it, fail (the process is dead to the store).
    pub(crate) fails_at: Option<usize>,
    pub(crate) unreadable: BTreeSet<Key>,
    /// Objects that may not be written, whatever they say.
    pub(crate) invalid: BTreeSet<Key>,
    /// Kinds of which no whole list is to be had.
    pub(crate) cut_off: BTreeSet<Kind>,
    /// Whether all pods are here.
    pub(crate) knows_pods: bool,
    /// How often a whole list of a kind was asked for.
    pub(crate) lists: BTreeMap<Kind, u32>,
    /// What happens right before the whole list of this number, from 1.
    pub(crate) before_list: BTreeMap<(Kind, u32), Meanwhile>,
    /// What happens right before the first write to an object.
    pub(crate) before_write: BTreeMap<Key, Meanwhile>,
}

impl State {
    pub(crate) fn store(&mut self, mut object: Object) -> Object {
        self.revision += 1;
        object.metadata_mut().resource_version = Some(self.revision.to_string());
        self.objects.insert(object.key(), object.clone());
        object
    }

    fn prepare_write(&mut self, verb: &str, key: &Key) -> Result<(), DatastoreError> {
        if let Some(meanwhile) = self.before_write.remove(key) {
            meanwhile(self);
        }
        if self.fails_at.is_some_and(|n| self.writes.len() >= n) {
            return Err(lost(format!("{verb} {key}")));
        }
        if self.invalid.contains(key) {
            return Err(DatastoreError::Invalid {
                place: key.to_string(),
                reason: "refused".to_owned(),
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

    fn readable(&self, kind: Kind) -> Vec<Object> {
        let of_kind = self
            .objects
            .iter()
            .filter(|(key, _)| key.kind == kind && !self.unreadable.contains(key));
        of_kind.map(|(_, object)| object.clone()).collect()
    }
}

fn lost(operation: String) -> DatastoreError {
    DatastoreError::Io {
        operation,
        source: std::io::Error::other("connection lost"),
    }
}

fn unreadable(key: &Key) -> DatastoreError {
    DatastoreError::Invalid {
        place: key.to_string(),
        reason: "no mapping".to_owned(),
    }
}

impl Memory {
    /// A store that holds these.
    pub(crate) fn of(objects: impl IntoIterator<Item = Object>) -> Arc<Self> {
        let memory = Self::default();
        memory.set(|state| {
            for object in objects {
                state.store(object);
            }
        });
        Arc::new(memory)
    }

    pub(crate) fn object(&self, kind: Kind, name: &str) -> Object {
        self.set(|state| state.objects[&Key::new(kind, name)].clone())
    }

    pub(crate) fn blocks(&self) -> Vec<IpamBlock> {
        self.set(|state| {
            let blocks = state.objects.values().filter_map(|o| match o {
                Object::IpamBlock(block) => Some(block.clone()),
                _ => None,
            });
            blocks.collect()
        })
    }

    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.set(|state| state.objects.keys().filter(|k| k.kind == kind).count())
    }

    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

#[async_trait]
impl Datastore for Memory {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        tokio::task::yield_now().await;
        self.set(|state| {
            if state.unreadable.contains(key) {
                return Err(unreadable(key));
            }
            Ok(state.objects.get(key).cloned())
        })
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        tokio::task::yield_now().await;
        Ok(self.set(|state| state.readable(kind)))
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        tokio::task::yield_now().await;
        self.set(|state| {
            let number = state.lists.entry(kind).or_default();
            *number += 1;
            let number = *number;
            if let Some(meanwhile) = state.before_list.remove(&(kind, number)) {
                meanwhile(state);
            }
            if state.cut_off.contains(&kind) {
                return Err(lost(format!("list {kind:?}, after its first page")));
            }
            let broken = state.unreadable.iter().find(|key| key.kind == kind);
            broken.map_or_else(|| Ok(state.readable(kind)), |key| Err(unreadable(key)))
        })
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        tokio::task::yield_now().await;
        self.set(|state| {
            let key = object.key();
            state.prepare_write("create", &key)?;
            if state.objects.contains_key(&key) {
                return Err(DatastoreError::AlreadyExists { key });
            }
            state.writes.push(format!("create {key}"));
            Ok(state.store(object))
        })
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        tokio::task::yield_now().await;
        self.set(|state| {
            let key = object.key();
            state.prepare_write("update", &key)?;
            state.at(&key, object.metadata().resource_version.as_ref())?;
            state.writes.push(format!("update {key}"));
            Ok(state.store(object))
        })
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        tokio::task::yield_now().await;
        self.set(|state| {
            state.prepare_write("delete", key)?;
            state.at(key, Some(&revision.to_owned()))?;
            state.writes.push(format!("delete {key}"));
            state.objects.remove(key);
            Ok(())
        })
    }

    fn knows_pods(&self) -> bool {
        self.set(|state| state.knows_pods)
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        Ok(mpsc::channel(1).1)
    }
}

/// A pool whose packets are always tunnelled.
pub(crate) fn ip_pool(name: &str, cidr: &str, block_size: u8) -> IpPool {
    let spec: IpPoolSpec = serde_json::from_value(
        serde_json::json!({"cidr": cidr, "blockSize": block_size, "ipipMode": "Always"}),
    )
    .unwrap();
    IpPool::new(name, spec)
}
