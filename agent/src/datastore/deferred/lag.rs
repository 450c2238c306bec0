//! How far the watch is behind: from a write of this agent's until it tells of that revision.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{Key, Kind, Object};

/// Most writes that are waited for at once; those beyond are not measured.
const WAITING_MAX: usize = 64;

/// The writes that the watch has not told of.
#[derive(Debug, Default)]
pub(super) struct Lag(Mutex<BTreeMap<Key, Write>>);

#[derive(Debug)]
enum Write {
    /// It is under way; the revisions of the object that were told meanwhile: one of them may be what comes of it.
    UnderWay(Vec<String>),
    /// It is done.
    Done { revision: String, at: Instant },
}

impl Lag {
    /// A write of this object begins. Only what every agent watches of its own is measured.
    pub(super) fn writing(&self, key: &Key) {
        if !matches!(key.kind, Kind::Node | Kind::BlockAffinity | Kind::IpamBlock) {
            return;
        }
        let mut writes = self.writes();
        if writes.len() < WAITING_MAX || writes.contains_key(key) {
            writes.insert(key.clone(), Write::UnderWay(Vec::new()));
        }
    }

    /// What came of the write. How late the watch was, when it has told of it already.
    pub(super) fn written(&self, key: &Key, written: Option<&Object>) -> Option<Duration> {
        let mut writes = self.writes();
        let Write::UnderWay(told) = writes.remove(key)? else {
            return None;
        };
        let revision = written?.metadata().resource_version.clone()?;
        if told.contains(&revision) {
            return Some(Duration::ZERO);
        }
        let at = Instant::now();
        writes.insert(key.clone(), Write::Done { revision, at });
        None
    }

    /// The watch has told of an object. How late that was, when it is a write that was waited for.
    pub(super) fn told(&self, object: &Object) -> Option<Duration> {
        let mut writes = self.writes();
        if writes.is_empty() {
            return None;
        }
        let key = object.key();
        let seen = object.metadata().resource_version.as_ref()?;
        match writes.get_mut(&key)? {
            Write::UnderWay(told) => {
                told.push(seen.clone());
                None
            }
            Write::Done { revision, at } if revision == seen => {
                let lag = at.elapsed();
                writes.remove(&key);
                Some(lag)
            }
            Write::Done { .. } => None,
        }
    }

    fn writes(&self) -> MutexGuard<'_, BTreeMap<Key, Write>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(revision: &str) -> Object {
        let metadata = serde_json::json!({ "metadata": { "name": "a", "resourceVersion": revision } });
        Object::Node(serde_json::from_value(metadata).unwrap())
    }

    #[test]
    fn a_write_is_measured_once_by_its_own_revision() {
        let lag = Lag::default();
        let key = node("1").key();
        lag.writing(&key);
        assert_eq!(lag.written(&key, Some(&node("2"))), None);
        assert_eq!(lag.told(&node("1")), None);
        assert!(lag.told(&node("2")).is_some());
        assert_eq!(lag.told(&node("2")), None);
    }

    #[test]
    fn a_watch_that_is_faster_than_the_answer_has_no_lag() {
        let lag = Lag::default();
        let key = node("1").key();
        lag.writing(&key);
        assert_eq!(lag.told(&node("2")), None);
        assert_eq!(lag.written(&key, Some(&node("2"))), Some(Duration::ZERO));
    }

    #[test]
    fn a_write_that_failed_is_not_waited_for() {
        let lag = Lag::default();
        let key = node("1").key();
        lag.writing(&key);
        assert_eq!(lag.written(&key, None), None);
        assert_eq!(lag.told(&node("2")), None);
        assert!(lag.writes().is_empty());
    }
}
