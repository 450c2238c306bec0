//! Between the plan and the datastore: what was read and written, as the one and as the other has it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_ipam::allocator::{
    Change, Freed, Key as PlanKey, Kind as PlanKind, Object as Spec, Policy, Read, View, Write,
};
use culvert_ipam::check;
use culvert_ipam::timestamp::Timestamp;
use futures_util::{StreamExt as _, stream};
use tracing::warn;

use crate::api::{BlockAffinity, IpamBlock, IpamHandle, Key, Kind, Object};
use crate::datastore::{Datastore, DatastoreError};

/// Reads and writes that are under way at once: enough to hide the way to the API server, too few to be a burden to it.
pub(super) const AT_ONCE: usize = 32;

/// What is known: the plan's view, and the whole objects, of which the plan sees the specs.
pub(super) struct Known {
    store: Arc<dyn Datastore>,
    view: View,
    objects: BTreeMap<Key, Object>,
}

/// A write that failed, other than because somebody else wrote first.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) key: PlanKey,
    pub(super) error: DatastoreError,
}

impl Known {
    /// Nothing but the policy.
    pub(super) fn new(store: Arc<dyn Datastore>, policy: Policy) -> Self {
        Self {
            store,
            view: View::new(policy),
            objects: BTreeMap::new(),
        }
    }

    /// The node's affinities, from a memory. Their whole objects are not known: who writes one reads it first.
    pub(super) fn recall(&mut self, node: &str, affinities: Vec<BlockAffinity>) {
        let specs = affinities.into_iter().map(|affinity| {
            let revision = affinity.metadata.resource_version.unwrap_or_default();
            (affinity.metadata.name, revision, affinity.spec)
        });
        self.view.recalled(node, specs);
    }

    /// Goes by what is read from now on, and by this policy.
    pub(super) fn recall_no_more(&mut self, policy: Policy) {
        self.view.recalled_no_more();
        self.view.set_policy(policy);
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// Reads, and tells the view.
    pub(super) async fn read(&mut self, reads: Vec<Read>) -> Result<(), DatastoreError> {
        let store = Arc::clone(&self.store);
        let mut results = stream::iter(reads)
            .map(|read| look(&*store, read))
            .buffer_unordered(AT_ONCE);
        while let Some(found) = results.next().await {
            self.take_in(found?);
        }
        Ok(())
    }

    fn take_in(&mut self, found: Found) {
        match found {
            Found::All(kind, objects) => {
                let specs: Vec<_> = objects.iter().filter_map(described).collect();
                self.view.listed(kind, specs);
                self.objects.extend(objects.into_iter().map(|o| (o.key(), o)));
            }
            Found::One(key, object) => {
                let described = object.as_deref().and_then(described);
                self.view
                    .got(key, described.map(|(_, revision, spec)| (revision, spec)));
                self.objects.extend(object.map(|o| (o.key(), *o)));
            }
            Found::Unreadable(key, reason) => self.view.unreadable(key, reason),
        }
    }

    /// Writes, and tells the view: the addresses that were given back, and the objects that somebody else wrote first.
    pub(super) async fn write(&mut self, changes: Vec<Change>) -> Result<(Vec<Freed>, Vec<Key>), Refused> {
        let store = Arc::clone(&self.store);
        let (mut freed, mut refused, mut failed) = (Vec::new(), Vec::new(), None);
        let mut writes = Vec::new();
        for change in changes {
            let key = change.write.key();
            let read = self.objects.get(&api_key(&key)).cloned();
            // What a plan does not see would be lost with an object that is only remembered.
            if read.is_none() && matches!(change.write, Write::Update { .. }) {
                self.view.forget(key);
                continue;
            }
            writes.push((to_do(&change.write, read), change));
        }
        let mut results = stream::iter(writes)
            .map(async |(to_do, change)| (do_write(&*store, to_do).await, change))
            .buffer_unordered(AT_ONCE);
        while let Some((result, change)) = results.next().await {
            let key = change.write.key();
            match result {
                Ok(written) => {
                    freed.extend(change.frees.iter().cloned());
                    self.wrote(change, written);
                }
                Err(error) => {
                    // Whether a write that broke off was done is not known either.
                    self.view.forget(key.clone());
                    if error.is_conflict() {
                        refused.push(api_key(&key));
                    } else {
                        failed = Some(Refused { key, error });
                    }
                }
            }
        }
        failed.map_or(Ok((freed, refused)), Err)
    }

    fn wrote(&mut self, change: Change, written: Option<Object>) {
        let key = api_key(&change.write.key());
        let Some(object) = written else {
            self.objects.remove(&key);
            self.view.wrote(change, String::new());
            return;
        };
        let revision = object.metadata().resource_version.clone().unwrap_or_default();
        self.view.wrote(change, revision);
        self.objects.insert(key, object);
    }
}

/// Does one write by itself, on the object as it is now.
///
/// # Errors
/// When it no longer has the revision that the write names, or the store fails.
pub(super) async fn write_once(store: &dyn Datastore, write: &Write) -> Result<(), DatastoreError> {
    let found = store.get(&api_key(&write.key())).await?;
    do_write(store, to_do(write, found)).await.map(drop)
}

/// A write as the datastore does it. What a plan does not see (labels, annotations, finalizers) is written back as it was
/// `read`.
fn to_do(write: &Write, read: Option<Object>) -> ToDo {
    match write {
        Write::Create { name, object } => ToDo::Create(new_object(name, object.clone())),
        Write::Update {
            object,
            revision,
            name,
        } => {
            let mut whole = match read {
                Some(read) => with_spec(read, object.clone()),
                None => new_object(name, object.clone()),
            };
            whole.metadata_mut().resource_version = Some(revision.clone());
            ToDo::Update(whole)
        }
        Write::Delete { revision, key } => ToDo::Delete(api_key(key), revision.clone()),
    }
}

/// What a read found.
enum Found {
    All(PlanKind, Vec<Object>),
    One(PlanKey, Option<Box<Object>>),
    Unreadable(PlanKey, String),
}

async fn look(store: &dyn Datastore, read: Read) -> Result<Found, DatastoreError> {
    match read {
        Read::List(kind) => Ok(Found::All(kind, store.list(api_kind(kind)).await?)),
        Read::Get(key) => match store.get(&api_key(&key)).await {
            Ok(object) => Ok(Found::One(key, object.map(Box::new))),
            Err(error @ DatastoreError::Invalid { .. }) => Ok(Found::Unreadable(key, error.to_string())),
            Err(error) => Err(error),
        },
    }
}

enum ToDo {
    Create(Object),
    Update(Object),
    Delete(Key, String),
}

async fn do_write(store: &dyn Datastore, to_do: ToDo) -> Result<Option<Object>, DatastoreError> {
    match to_do {
        ToDo::Create(object) => store.create(object).await.map(Some),
        ToDo::Update(object) => store.update(object).await.map(Some),
        ToDo::Delete(key, revision) => store.delete(&key, &revision).await.map(|()| None),
    }
}

/// An object as the plan sees it: name, revision, spec. `None` for kinds that no plan asks for.
fn described(object: &Object) -> Option<(String, String, Spec)> {
    let spec = match object {
        Object::BlockAffinity(o) => Spec::Affinity(o.spec.clone()),
        Object::IpamHandle(o) => Spec::Handle(o.spec.clone()),
        Object::IpamBlock(o) => {
            if let Err(fault) = check::named_block(&o.metadata.name, &o.spec) {
                warn!(%fault, "block is not used");
            }
            Spec::Block(o.spec.clone())
        }
        _ => return None,
    };
    let metadata = object.metadata();
    let revision = metadata.resource_version.clone().unwrap_or_default();
    Some((metadata.name.clone(), revision, spec))
}

fn new_object(name: &str, spec: Spec) -> Object {
    let labels = spec.labels();
    let mut object = match spec {
        Spec::Affinity(spec) => Object::BlockAffinity(BlockAffinity::new(name, spec)),
        Spec::Block(spec) => Object::IpamBlock(IpamBlock::new(name, spec)),
        Spec::Handle(spec) => Object::IpamHandle(IpamHandle::new(name, spec)),
    };
    object.metadata_mut().labels.extend(labels);
    object
}

/// The object with another spec; objects are looked up by kind, so that the two are of one kind.
fn with_spec(mut object: Object, spec: Spec) -> Object {
    object.metadata_mut().labels.extend(spec.labels());
    match (&mut object, spec) {
        (Object::BlockAffinity(o), Spec::Affinity(spec)) => o.spec = spec,
        (Object::IpamBlock(o), Spec::Block(spec)) => o.spec = spec,
        (Object::IpamHandle(o), Spec::Handle(spec)) => o.spec = spec,
        (_, spec) => return new_object(&object.metadata().name.clone(), spec),
    }
    object
}

fn api_kind(kind: PlanKind) -> Kind {
    match kind {
        PlanKind::Affinity => Kind::BlockAffinity,
        PlanKind::Block => Kind::IpamBlock,
        PlanKind::Handle => Kind::IpamHandle,
    }
}

pub(super) fn api_key(key: &PlanKey) -> Key {
    Key::new(api_kind(key.kind), key.name.clone())
}

/// The clock's time; 1970 where the clock is before that.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
