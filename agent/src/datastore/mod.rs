//! Where the resources live: read, written by compare-and-swap, and watched.

pub mod deferred;
pub mod directory;
pub mod kubernetes;
pub mod last_good;
#[cfg(test)]
pub(crate) mod memory;
mod remembered;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::api::{BlockAffinity, IpPool, IpReservation, IpamConfig, Key, Kind, Node, Object, Resource};

use self::directory::DirectoryStore;
pub use self::kubernetes::Access;
use self::kubernetes::KubernetesStore;

/// Where a datastore is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A folder of YAML manifests.
    Directory(PathBuf),
    /// The API server of Kubernetes.
    Kubernetes(Access),
}

/// `directory /var/lib/culvert/datastore`, `kubernetes by kubeconfig /etc/culvert/kubeconfig`.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(folder) => write!(f, "directory {}", folder.display()),
            Self::Kubernetes(access) => write!(f, "kubernetes by {access}"),
        }
    }
}

/// What becomes of a folder that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingFolder {
    /// It is made.
    Make,
    /// It stays away, and there is no datastore: it may yet come back.
    Refuse,
}

/// Opens the datastore at `location`, for the agent of `node`, which reads passwords from Secrets of the namespace `secrets`.
///
/// # Errors
/// When the folder cannot be used, or the credentials for the API server cannot. The server itself is not asked yet.
pub async fn open(
    location: &Location,
    node: &str,
    secrets: &str,
    missing: MissingFolder,
) -> Result<Arc<dyn Datastore>, DatastoreError> {
    let directory = match location {
        Location::Kubernetes(access) => {
            let store = KubernetesStore::open(access, node).await?;
            return Ok(Arc::new(store.reading_secrets_of(secrets)));
        }
        Location::Directory(directory) => directory.clone(),
    };
    let open = move || {
        if missing == MissingFolder::Refuse {
            std::fs::metadata(&directory).map_err(|source| DatastoreError::Io {
                operation: format!("cannot open the datastore {}", directory.display()),
                source,
            })?;
        }
        DirectoryStore::open(&directory)
    };
    let opened = tokio::task::spawn_blocking(open).await;
    let opened = opened.unwrap_or_else(|error| {
        Err(DatastoreError::Io {
            operation: "opening the datastore was given up".to_owned(),
            source: std::io::Error::other(error),
        })
    });
    Ok(Arc::new(opened?.of_node(node)))
}

/// Refused writes of annotations, one after the other, after which they are given up.
const ANNOTATE_TRIES: u32 = 100;

/// A store of resources. Every write names the revision that it was made from, in `metadata.resourceVersion`.
#[async_trait]
pub trait Datastore: Send + Sync {
    /// The object, or `None` when there is none of this name.
    ///
    /// # Errors
    /// When the store cannot be read, or holds under this key what is no such object.
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError>;

    /// All valid objects of a kind, by name. One that cannot be read is named in the log and left out.
    ///
    /// # Errors
    /// When the store as a whole cannot be read.
    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError>;

    /// All objects of a kind, by name.
    ///
    /// # Errors
    /// When the store cannot be read, or one of them cannot: for what must not mistake a broken object for one that is gone.
    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError>;

    /// Writes a new object and returns it with its revision.
    ///
    /// # Errors
    /// [`DatastoreError::AlreadyExists`], or when the store cannot be written.
    async fn create(&self, object: Object) -> Result<Object, DatastoreError>;

    /// Writes an object over the revision it carries and returns it with its new one.
    ///
    /// # Errors
    /// [`DatastoreError::Conflict`] when somebody else wrote since, [`DatastoreError::NotFound`] when it is gone.
    async fn update(&self, object: Object) -> Result<Object, DatastoreError>;

    /// Deletes an object if it is still at `revision`.
    ///
    /// # Errors
    /// [`DatastoreError::Conflict`] when somebody else wrote since, [`DatastoreError::NotFound`] when it is gone.
    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError>;

    /// Sets annotations of an object, and removes those without a value; whatever else it says stays as it is.
    ///
    /// # Errors
    /// [`DatastoreError::NotFound`], a conflict after many in a row, or when the store cannot be written.
    async fn annotate(
        &self,
        key: &Key,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<Object, DatastoreError> {
        let mut tries = 0;
        loop {
            let found = self.get(key).await?;
            let mut object = found.ok_or_else(|| DatastoreError::NotFound { key: key.clone() })?;
            for (name, value) in annotations {
                let there = &mut object.metadata_mut().annotations;
                match value {
                    Some(value) => drop(there.insert(name.clone(), value.clone())),
                    None => drop(there.remove(name)),
                }
            }
            tries += 1;
            match self.update(object).await {
                Err(DatastoreError::Conflict { .. }) if tries < ANNOTATE_TRIES => {}
                other => return other,
            }
        }
    }

    /// Says in a Node object that pods may be sent to the node: its network is there. Where nobody sends pods by it, nothing
    /// is said.
    ///
    /// # Errors
    /// When the store cannot be written.
    async fn network_available(&self, _node: &str) -> Result<(), DatastoreError> {
        Ok(())
    }

    /// Says what happened to a node where people look for it; nothing where nobody looks.
    ///
    /// # Errors
    /// When the store cannot be written.
    async fn record(&self, _node: &str, _event: &NodeEvent) -> Result<(), DatastoreError> {
        Ok(())
    }

    /// Whether the Node objects are for the agents to make, where they are missing.
    fn makes_nodes(&self) -> bool {
        true
    }

    /// Whether all pods of the cluster are here: without them nobody can say which address is unused.
    fn knows_pods(&self) -> bool {
        false
    }

    /// What the watch last told of what allocation on this node goes by; none while it has not told all of it.
    fn recall(&self, _node: &str) -> Option<Recollection> {
        None
    }

    /// All objects that a node needs, then [`Update::InSync`], then every change, until the receiver is dropped. A
    /// receiver that lags gets the latest state of each object, not each step. A store that goes away does not end its watch: it says so
    /// ([`Update::Problem`]), and goes on when it is back.
    ///
    /// # Errors
    /// When the store cannot be watched.
    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError>;
}

/// What allocation on a node goes by, as it was when the watch last told it: a moment ago, or longer where the store is away.
/// It is enough to try a write, which the store refuses where it is too old; what is refused for good, and what is claimed,
/// has to be read. Of the affinities only what they say is there, not their whole metadata.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recollection {
    /// All pools, by name.
    pub pools: Vec<IpPool>,
    /// All reservations, by name.
    pub reservations: Vec<IpReservation>,
    /// The settings of allocation.
    pub config: Option<IpamConfig>,
    /// The node's own object.
    pub node: Option<Node>,
    /// The node's own affinities, by name; all of them confirmed.
    pub affinities: Vec<BlockAffinity>,
}

/// What happened to a node, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// A word in CamelCase, by which people look for events of one kind.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// How often it happened.
    pub count: u32,
    /// When first.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// An object appeared or changed.
    Upsert(Box<Object>),
    /// An object is gone.
    Delete(Key),
    /// All that was there when the watch began has been told.
    InSync,
    /// Why the store cannot be looked at now, in words: what was told stands until it can. `None` once that is over.
    Problem(Option<String>),
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    /// Somebody else wrote first: read again and decide again.
    #[error("{key} was changed by somebody else: it is no longer at revision {revision}")]
    Conflict {
        /// The object.
        key: Key,
        /// The revision the write was made from.
        revision: String,
    },
    /// There is one already.
    #[error("{key} exists already")]
    AlreadyExists {
        /// The object.
        key: Key,
    },
    /// There is none.
    #[error("{key} does not exist")]
    NotFound {
        /// The object.
        key: Key,
    },
    /// The object is not what its kind says.
    #[error("{place}: {reason}")]
    Invalid {
        /// The file or the object, and the field in it.
        place: String,
        /// What is wrong, and what is allowed.
        reason: String,
    },
    /// There is no Node object, and it is not for us to make.
    #[error(
        "there is no Node {name}: its kubelet has not made it yet, or nodeName is not the name of this host's Node object"
    )]
    NoNode {
        /// Its name.
        name: String,
    },
    /// The store cannot be reached, or cannot serve now. A write may have been made all the same.
    #[error("cannot {operation}: the API server at {server} is away: {reason}")]
    Away {
        /// What was tried, and on which object.
        operation: String,
        /// The server's URL.
        server: String,
        /// What it said, or why it could not be reached.
        reason: String,
    },
    /// The store refuses it, and will until somebody changes something.
    #[error("cannot {operation}: the API server at {server} says {said}; {remedy}")]
    Refused {
        /// What was tried, and on which object.
        operation: String,
        /// The server's URL.
        server: String,
        /// Its words.
        said: String,
        /// What to do.
        remedy: String,
    },
    /// What is to prove who we are is missing, or makes no sense.
    #[error("{place} cannot be used: {reason}; {remedy}")]
    Credentials {
        /// Where it was looked for.
        place: String,
        /// What is wrong.
        reason: String,
        /// What to do.
        remedy: String,
    },
    /// The store itself failed.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried, and on which file or address.
        operation: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl DatastoreError {
    /// Whether somebody else's write is the cause: reading and deciding again may succeed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. } | Self::AlreadyExists { .. } | Self::NotFound { .. }
        )
    }
}

/// [`Datastore::get`] for a type known beforehand.
///
/// # Errors
/// Those of [`Datastore::get`].
pub async fn get<R: Resource>(store: &dyn Datastore, name: &str) -> Result<Option<R>, DatastoreError> {
    let object = store.get(&Key::new(R::KIND, name)).await?;
    Ok(object.and_then(R::from_object))
}

/// [`Datastore::list`] for a type known beforehand.
///
/// # Errors
/// Those of [`Datastore::list`].
pub async fn list<R: Resource>(store: &dyn Datastore) -> Result<Vec<R>, DatastoreError> {
    let objects = store.list(R::KIND).await?;
    Ok(objects.into_iter().filter_map(R::from_object).collect())
}

/// [`Datastore::list_whole`] for a type known beforehand.
///
/// # Errors
/// Those of [`Datastore::list_whole`].
pub async fn list_whole<R: Resource>(store: &dyn Datastore) -> Result<Vec<R>, DatastoreError> {
    let objects = store.list_whole(R::KIND).await?;
    Ok(objects.into_iter().filter_map(R::from_object).collect())
}
