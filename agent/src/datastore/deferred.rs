//! A datastore that may not be there yet: it is opened when it can be, and until then everything fails with the reason.

use std::collections::BTreeMap;
use std::io;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{OnceCell, mpsc};

use super::{Datastore, DatastoreError, NodeEvent, Recollection, Update};
use crate::api::{Key, Kind, Object};

type Open = dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Datastore>, DatastoreError>> + Send + Sync;

/// A datastore that is opened by its first use that succeeds.
pub struct Deferred {
    open: Box<Open>,
    store: OnceCell<Arc<dyn Datastore>>,
}

impl Deferred {
    /// A datastore that `open` opens.
    pub fn new<F>(open: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, Result<Arc<dyn Datastore>, DatastoreError>> + Send + Sync + 'static,
    {
        Self {
            open: Box::new(open),
            store: OnceCell::new(),
        }
    }

    /// The datastore itself, opened if it is not yet.
    ///
    /// # Errors
    /// When it cannot be opened; the next call tries again.
    pub async fn opened(&self) -> Result<&Arc<dyn Datastore>, DatastoreError> {
        self.store.get_or_try_init(|| (self.open)()).await
    }
}

#[async_trait]
impl Datastore for Deferred {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        self.opened().await?.get(key).await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.opened().await?.list(kind).await
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.opened().await?.list_whole(kind).await
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        self.opened().await?.create(object).await
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        self.opened().await?.update(object).await
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        self.opened().await?.delete(key, revision).await
    }

    async fn annotate(
        &self,
        key: &Key,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<Object, DatastoreError> {
        self.opened().await?.annotate(key, annotations).await
    }

    async fn network_available(&self, node: &str) -> Result<(), DatastoreError> {
        self.opened().await?.network_available(node).await
    }

    async fn record(&self, node: &str, event: &NodeEvent) -> Result<(), DatastoreError> {
        self.opened().await?.record(node, event).await
    }

    fn makes_nodes(&self) -> bool {
        // Before it is opened nothing can be made anyway.
        self.store.get().is_some_and(|store| store.makes_nodes())
    }

    fn knows_pods(&self) -> bool {
        self.store.get().is_some_and(|store| store.knows_pods())
    }

    fn recall(&self, node: &str) -> Option<Recollection> {
        self.store.get()?.recall(node)
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        match self.store.get() {
            Some(store) => store.watch(),
            None => Err(DatastoreError::Io {
                operation: "cannot watch the datastore before it is opened".to_owned(),
                source: io::Error::from(io::ErrorKind::NotConnected),
            }),
        }
    }
}
