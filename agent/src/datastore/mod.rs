//! Where the resources live: read, written by compare-and-swap, and watched.

pub mod deferred;
pub mod directory;
pub mod last_good;

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::api::{Key, Kind, Object, Resource};

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

    /// All objects, then [`Update::InSync`], then every change, until the receiver is dropped. A receiver that lags
    /// gets the latest state of each object, not each step. A store that goes away does not end its watch: it says so
    /// ([`Update::Problem`]), and goes on when it is back.
    ///
    /// # Errors
    /// When the store cannot be watched.
    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError>;
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
