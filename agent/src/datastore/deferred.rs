//! A datastore that may not be there yet: it is opened when it can be, and until then everything fails with the reason. All
//! that the agent asks of a datastore passes here: so it is measured here.

mod lag;

use std::collections::BTreeMap;
use std::io;
use std::time::Instant;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use tokio::sync::{OnceCell, mpsc};

use self::lag::Lag;
use super::{Datastore, DatastoreError, NodeEvent, Recollection, Update};
use crate::api::{Key, Kind, Object};
use crate::metrics::Metrics;

type Open = dyn Fn() -> BoxFuture<'static, Result<Arc<dyn Datastore>, DatastoreError>> + Send + Sync;

/// A datastore that is opened by its first use that succeeds.
pub struct Deferred {
    open: Box<Open>,
    store: OnceCell<Arc<dyn Datastore>>,
    metrics: Option<Metrics>,
    lag: Lag,
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
            metrics: None,
            lag: Lag::default(),
        }
    }

    /// The same, which tells `metrics` how long it takes, and how often it fails.
    #[must_use]
    pub fn measured(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Measures what the watch told: how long after a write of ours, and that it broke.
    pub fn note_told(&self, update: &Update) {
        let Some(metrics) = &self.metrics else { return };
        match update {
            Update::Upsert(object) => {
                if let Some(lag) = self.lag.told(object) {
                    metrics.datastore_watch_lag_seconds.observe(lag.as_secs_f64());
                }
            }
            Update::Problem(Some(_)) => metrics.datastore_errors.with_label_values(&["watch"]).inc(),
            Update::Delete(_) | Update::InSync | Update::Problem(None) => {}
        }
    }

    /// Does `work`, and measures it.
    async fn timed<T>(
        &self,
        operation: &str,
        work: impl Future<Output = Result<T, DatastoreError>> + Send,
    ) -> Result<T, DatastoreError> {
        let Some(metrics) = &self.metrics else {
            return work.await;
        };
        let began = Instant::now();
        let result = work.await;
        let seconds = metrics.datastore_request_seconds.with_label_values(&[operation]);
        seconds.observe(began.elapsed().as_secs_f64());
        if result.as_ref().is_err_and(|error| !error.is_conflict()) {
            metrics.datastore_errors.with_label_values(&[operation]).inc();
        }
        result
    }

    /// Does a write, and measures it, and how long the watch takes to tell of it.
    async fn written(
        &self,
        operation: &str,
        key: Key,
        work: impl Future<Output = Result<Object, DatastoreError>> + Send,
    ) -> Result<Object, DatastoreError> {
        if self.metrics.is_some() {
            self.lag.writing(&key);
        }
        let written = self.timed(operation, work).await;
        if let (Some(lag), Some(metrics)) = (self.lag.written(&key, written.as_ref().ok()), &self.metrics) {
            metrics.datastore_watch_lag_seconds.observe(lag.as_secs_f64());
        }
        written
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
        self.timed("get", async { self.opened().await?.get(key).await })
            .await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.timed("list", async { self.opened().await?.list(kind).await })
            .await
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.timed("list", async { self.opened().await?.list_whole(kind).await })
            .await
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        let create = |object| async { self.opened().await?.create(object).await };
        self.written("create", object.key(), create(object)).await
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        let update = |object| async { self.opened().await?.update(object).await };
        self.written("update", object.key(), update(object)).await
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        self.timed("delete", async {
            self.opened().await?.delete(key, revision).await
        })
        .await
    }

    async fn annotate(
        &self,
        key: &Key,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<Object, DatastoreError> {
        let annotate = async { self.opened().await?.annotate(key, annotations).await };
        self.written("update", key.clone(), annotate).await
    }

    async fn network_available(&self, node: &str) -> Result<(), DatastoreError> {
        let update = async { self.opened().await?.network_available(node).await };
        self.timed("update", update).await
    }

    async fn record(&self, node: &str, event: &NodeEvent) -> Result<(), DatastoreError> {
        let create = async { self.opened().await?.record(node, event).await };
        self.timed("create", create).await
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
