//! What the receiver of a watch does not know yet: of each object the latest state, however many steps led to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::api::{Key, Object};
use crate::datastore::Update;

/// Whether an object that waits is one that the receiver knows in an older state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Receiver {
    /// It has never heard of it, or only that it is gone.
    IsNew,
    /// It knows it.
    Knows,
}

#[derive(Debug)]
enum Change {
    Upsert(Box<Object>, Receiver),
    Delete,
}

/// What waits for the receiver; the sources write, the teller reads.
#[derive(Debug, Default)]
pub(super) struct Pending {
    state: Mutex<State>,
    /// There is something to tell.
    news: Notify,
    /// Something was told.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    changed: BTreeMap<Key, Change>,
    /// Sources that have not told all they had at the beginning.
    beginning: BTreeSet<String>,
    told_in_sync: bool,
    /// Why a source cannot go on, by source.
    problems: BTreeMap<String, String>,
    told_problem: Option<String>,
}

impl State {
    fn problem(&self) -> Option<&String> {
        self.problems.values().next()
    }
}

impl Pending {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A source that must have told all it has before the watch is in sync.
    pub(super) fn begin(&self, source: &str) {
        self.state().beginning.insert(source.to_owned());
    }

    /// A source has told all that it had at the beginning.
    pub(super) fn synced(&self, source: &str) {
        self.state().beginning.remove(source);
        self.news.notify_one();
    }

    /// A source that is there no more: what was waited for from it, and what was wrong with it.
    pub(super) fn forget(&self, source: &str) {
        self.problem(source, None);
        self.synced(source);
    }

    /// Why a source cannot go on; `None` when it can.
    pub(super) fn problem(&self, source: &str, problem: Option<String>) {
        let mut state = self.state();
        match problem {
            Some(problem) => drop(state.problems.insert(source.to_owned(), problem)),
            None if state.problems.remove(source).is_none() => return,
            None => {}
        }
        self.news.notify_one();
    }

    pub(super) fn upsert(&self, object: Object, receiver: Receiver) {
        let key = object.key();
        let mut state = self.state();
        let receiver = match state.changed.get(&key) {
            Some(Change::Upsert(_, before)) => *before,
            // It was not told yet that the former one is gone.
            Some(Change::Delete) => Receiver::Knows,
            None => receiver,
        };
        state
            .changed
            .insert(key, Change::Upsert(Box::new(object), receiver));
        self.news.notify_one();
    }

    pub(super) fn delete(&self, key: Key) {
        let mut state = self.state();
        if let Some(Change::Upsert(_, Receiver::IsNew)) = state.changed.get(&key) {
            state.changed.remove(&key);
        } else {
            state.changed.insert(key, Change::Delete);
        }
        self.news.notify_one();
    }

    /// Waits until fewer than `most` objects wait.
    pub(super) async fn room(&self, most: usize) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            // Registered before the look: what is told in between is not missed.
            room.as_mut().enable();
            if self.state().changed.len() < most {
                return;
            }
            room.await;
        }
    }

    /// Waits until there is something to tell.
    pub(super) async fn news(&self) {
        loop {
            let news = self.news.notified();
            if self.has_news() {
                return;
            }
            news.await;
        }
    }

    fn has_news(&self) -> bool {
        let state = self.state();
        state.problem() != state.told_problem.as_ref()
            || !state.changed.is_empty()
            || (!state.told_in_sync && state.beginning.is_empty())
    }

    /// What is told next, if there is anything.
    pub(super) fn next(&self) -> Option<Update> {
        let mut state = self.state();
        if state.problem() != state.told_problem.as_ref() {
            state.told_problem = state.problem().cloned();
            return Some(Update::Problem(state.told_problem.clone()));
        }
        if let Some((key, change)) = state.changed.pop_first() {
            self.room.notify_waiters();
            return Some(match change {
                Change::Upsert(object, _) => Update::Upsert(object),
                Change::Delete => Update::Delete(key),
            });
        }
        if !state.told_in_sync && state.beginning.is_empty() {
            state.told_in_sync = true;
            return Some(Update::InSync);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Kind, Node, Resource};

    fn node(name: &str, revision: &str) -> Object {
        let mut node = Node::named(name);
        node.metadata.resource_version = Some(revision.to_owned());
        node.into_object()
    }

    fn all(pending: &Pending) -> Vec<Update> {
        std::iter::from_fn(|| pending.next()).collect()
    }

    #[test]
    fn of_an_object_only_the_latest_state_is_told() {
        let pending = Pending::default();
        pending.begin("nodes");
        pending.upsert(node("a", "1"), Receiver::IsNew);
        pending.upsert(node("a", "2"), Receiver::Knows);
        pending.synced("nodes");
        assert_eq!(
            all(&pending),
            [Update::Upsert(Box::new(node("a", "2"))), Update::InSync]
        );
    }

    #[test]
    fn what_came_and_went_unheard_of_is_not_told() {
        let pending = Pending::default();
        pending.begin("nodes");
        let key = Key::new(Kind::Node, "a");
        pending.upsert(node("a", "1"), Receiver::IsNew);
        pending.delete(key.clone());
        assert_eq!(all(&pending), []);
        // The receiver knows it, hears nothing of its end, and that it is back as another.
        pending.delete(key.clone());
        pending.upsert(node("a", "2"), Receiver::IsNew);
        pending.delete(key.clone());
        assert_eq!(all(&pending), [Update::Delete(key)]);
    }

    #[test]
    fn a_problem_is_told_once_and_its_end_once() {
        let pending = Pending::default();
        pending.begin("nodes");
        for source in ["nodes", "pools"] {
            pending.problem(source, Some("away".to_owned()));
        }
        assert_eq!(all(&pending), [Update::Problem(Some("away".to_owned()))]);
        pending.problem("nodes", None);
        assert_eq!(all(&pending), []);
        pending.problem("pools", None);
        assert_eq!(all(&pending), [Update::Problem(None)]);
    }
}
