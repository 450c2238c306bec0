//! What a watch has told of what allocation on this node goes by, so that a pod's address does not cost a list of all
//! affinities of the cluster, nor a look at all files of a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use culvert_ipam::affinity::AffinityState;

use super::Recollection;
use crate::api::{BlockAffinity, IpPool, IpReservation, IpamConfig, Key, Kind, Node, Object};

/// The kinds that it is made of.
const KINDS: [Kind; 5] = [
    Kind::Node,
    Kind::IpPool,
    Kind::IpReservation,
    Kind::IpamConfig,
    Kind::BlockAffinity,
];

/// The only IPAMConfig that counts.
const CONFIG: &str = "default";

/// What is remembered; the sources of one watch write it, and it ends with them.
#[derive(Debug)]
pub(super) struct Remembered {
    node: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The kinds of which all was told.
    whole: BTreeSet<Kind>,
    pools: BTreeMap<String, IpPool>,
    reservations: BTreeMap<String, IpReservation>,
    config: Option<IpamConfig>,
    own_node: Option<Node>,
    /// This node's own.
    affinities: BTreeMap<String, BlockAffinity>,
}

/// Where a store finds what its watch remembers, as long as that goes on.
#[derive(Clone, Debug, Default)]
pub(super) struct CurrentWatch(Arc<Mutex<Weak<Remembered>>>);

impl CurrentWatch {
    /// From now on it is this.
    pub(super) fn set(&self, remembered: &Arc<Remembered>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(remembered);
    }

    /// What is remembered, if there is a watch, and that is enough to go by for an allocation on `node`.
    pub(super) fn recall(&self, node: &str) -> Option<Recollection> {
        let remembered = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        remembered?.recall(node)
    }
}

impl Remembered {
    /// Of nothing yet.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All objects of a kind were told.
    pub(super) fn whole(&self, kind: Kind) {
        self.state().whole.insert(kind);
    }

    /// All objects of all kinds were told.
    pub(super) fn all_whole(&self) {
        self.state().whole.extend(KINDS);
    }

    /// An object appeared or changed.
    pub(super) fn upsert(&self, object: &Object) {
        let name = object.metadata().name.clone();
        match object {
            Object::IpPool(pool) => drop(self.state().pools.insert(name, pool.clone())),
            Object::IpReservation(reservation) => {
                drop(self.state().reservations.insert(name, reservation.clone()));
            }
            Object::IpamConfig(config) if name == CONFIG => self.state().config = Some(config.clone()),
            Object::Node(node) if name == self.node => self.state().own_node = Some(node.clone()),
            Object::BlockAffinity(affinity) if affinity.spec.is_of_node(&self.node) => {
                drop(self.state().affinities.insert(name, affinity.clone()));
            }
            Object::BlockAffinity(_) => drop(self.state().affinities.remove(&name)),
            _ => {}
        }
    }

    /// An object is gone.
    pub(super) fn remove(&self, key: &Key) {
        let name = &key.name;
        match key.kind {
            Kind::IpPool => drop(self.state().pools.remove(name)),
            Kind::IpReservation => drop(self.state().reservations.remove(name)),
            Kind::IpamConfig if name == CONFIG => self.state().config = None,
            Kind::Node if *name == self.node => self.state().own_node = None,
            Kind::BlockAffinity => drop(self.state().affinities.remove(name)),
            _ => {}
        }
    }

    /// What is remembered, if that is enough to go by for an allocation on `node`: a claim that is under way has to be read.
    fn recall(&self, node: &str) -> Option<Recollection> {
        let state = self.state();
        let stands = |affinity: &BlockAffinity| {
            affinity.spec.state == AffinityState::Confirmed && !affinity.spec.is_deleted()
        };
        let is_enough = node == self.node
            && KINDS.iter().all(|kind| state.whole.contains(kind))
            && !state.affinities.is_empty()
            && state.affinities.values().all(stands);
        is_enough.then(|| Recollection {
            pools: state.pools.values().cloned().collect(),
            reservations: state.reservations.values().cloned().collect(),
            config: state.config.clone(),
            node: state.own_node.clone(),
            affinities: state.affinities.values().cloned().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use culvert_ipam::affinity::Affinity;

    use super::*;

    fn affinity(node: &str, state: AffinityState) -> Object {
        let spec = Affinity {
            state,
            ..Affinity::pending(node, "10.0.0.0/26".parse().unwrap())
        };
        Object::BlockAffinity(BlockAffinity::new("one", spec))
    }

    #[test]
    fn it_is_enough_once_all_was_told_and_while_no_claim_of_the_node_is_under_way() {
        let remembered = Remembered::new("a");
        remembered.upsert(&affinity("a", AffinityState::Confirmed));
        for kind in KINDS {
            assert_eq!(remembered.recall("a"), None, "{kind:?} was not told yet");
            remembered.whole(kind);
        }
        assert_eq!(remembered.recall("a").map(|r| r.affinities.len()), Some(1));
        assert_eq!(remembered.recall("b"), None, "it is of another node");
        for under_way in [AffinityState::Pending, AffinityState::PendingDeletion] {
            remembered.upsert(&affinity("a", under_way));
            assert_eq!(remembered.recall("a"), None, "{under_way:?}");
        }
        remembered.upsert(&affinity("a", AffinityState::Confirmed));
        assert!(remembered.recall("a").is_some());
        // It is another's now.
        remembered.upsert(&affinity("b", AffinityState::Confirmed));
        assert_eq!(remembered.recall("a"), None);
        remembered.upsert(&affinity("a", AffinityState::Confirmed));
        remembered.remove(&Key::new(Kind::BlockAffinity, "one"));
        assert_eq!(remembered.recall("a"), None);
    }
}
