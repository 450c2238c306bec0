//! The API server of Kubernetes as the datastore: Calico's custom resources and the cluster's own Node objects.
//!
//! **Revisions** are the server's `metadata.resourceVersion`; every write names the one that it was made from, and the
//! server compares. A write that was not answered may have been made: who does it again finds a conflict, reads, and
//! decides anew. Nothing is tried again below this module.
//!
//! **The watch** is a list, page by page, and then a watch from its revision, for each kind that a node needs: nodes,
//! pools, the BGP and IPAM settings, the affinities of all blocks; but of the blocks themselves only this node's own and
//! those in which it has an address, each by its name ([`interest`]), likewise the Secrets with passwords; and no handles. A connection that breaks is taken up again where it was, by the last revision
//! or bookmark; when the server no longer knows that (410), all is listed again and the difference told. While the server
//! is away nothing is told but that it is. Of an object only what is read is kept, of those that were told only the name
//! and a hash of the revision.

mod agents;
mod body;
mod call;
mod connection;
mod interest;
mod pending;
mod rollout;
mod service_ranges;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use hyper::body::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{broadcast, mpsc};
use tracing::error;

pub use self::agents::{AgentPod, AgentPods};
use self::body::{Extent, Page};
use self::call::{Call, Content, Part, Verb};
pub use self::connection::Access;
use self::connection::{Connection, Refusal};
use self::interest::Borrowed;
pub use self::rollout::{Progress, Rollout};
pub use self::service_ranges::{ServiceRanges, ServiceSource, service_ranges};
use super::remembered::CurrentWatch;
use super::{Datastore, DatastoreError, NodeEvent, Recollection, Update};
use crate::api::{Key, Kind, Object};

/// The Node condition that keeps pods away.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// Why it does not.
const AVAILABLE: &str = "CulvertIsUp";

/// Addresses taken in blocks of others that the watch may be behind with.
const BORROWED: usize = 256;

/// Who our writes are by, in `metadata.managedFields`.
const FIELD_MANAGER: &str = "culvert";

/// The API server of a cluster, for the agent of one node.
#[derive(Clone)]
pub struct KubernetesStore {
    connection: Connection,
    node: Arc<str>,
    /// The namespace of the Secrets that are read; none where none are.
    secrets: Option<Arc<str>>,
    /// Tells the watch of addresses that are taken in blocks of others.
    borrowed: broadcast::Sender<Borrowed>,
    /// What the watch that is under way has told.
    current_watch: CurrentWatch,
}

impl KubernetesStore {
    /// Reads the credentials, for the agent of the node of this name. The server is first asked by the first request.
    ///
    /// # Errors
    /// When the credentials are missing or make no sense.
    pub async fn open(access: &Access, node: &str) -> Result<Self, DatastoreError> {
        Ok(Self {
            connection: Connection::open(access).await?,
            node: Arc::from(node),
            secrets: None,
            borrowed: broadcast::Sender::new(BORROWED),
            current_watch: CurrentWatch::default(),
        })
    }

    /// The same, whose watch also tells of the Secrets of this namespace that are named as passwords, each by its name.
    #[must_use]
    pub fn reading_secrets_of(mut self, namespace: &str) -> Self {
        self.secrets = Some(Arc::from(namespace));
        self
    }

    /// The URL of the API server.
    #[must_use]
    pub fn server(&self) -> &str {
        self.connection.server()
    }

    async fn ask(&self, call: &Call) -> Result<Bytes, DatastoreError> {
        match self.connection.ask(call).await {
            Ok(answer) => Ok(answer),
            Err(refusal) => Err(self.error(call, refusal)),
        }
    }

    fn error(&self, call: &Call, refusal: Refusal) -> DatastoreError {
        match refusal {
            Refusal::Error(error) | Refusal::Unknown(error) => error,
            Refusal::Gone => self.connection.away(call, "410 the revision is no longer known"),
        }
    }

    fn read(&self, call: &Call, answer: &[u8]) -> Result<Object, DatastoreError> {
        let text = std::str::from_utf8(answer).map_err(|error| {
            self.connection
                .away(call, &format!("the answer is no text: {error}"))
        })?;
        body::object(call.kind, text, Extent::Whole).map_err(|unreadable| unreadable.at(self.server()))
    }

    async fn write(&self, verb: Verb, object: &Object) -> Result<Object, DatastoreError> {
        let key = object.key();
        let invalid = |reason: String| DatastoreError::Invalid {
            place: key.to_string(),
            reason,
        };
        object.validate().map_err(|error| invalid(error.to_string()))?;
        let body = serde_json::to_vec(object)
            .map_err(|error| invalid(format!("cannot be written as JSON: {error}")))?;
        let call = Call::one(verb, &key)
            .with_body(Content::Json, body)
            .with("fieldManager", FIELD_MANAGER);
        let written = self.read(&call, &self.ask(&call).await?)?;
        if let Object::IpamBlock(block) = &written
            && let Some(borrowed) = Borrowed::of(&block.spec, &self.node)
        {
            // Without a watch nobody wants to know.
            let _ = self.borrowed.send(borrowed);
        }
        Ok(written)
    }

    /// All objects of a kind by name, and what is wrong with those that cannot be read.
    async fn list_all(&self, kind: Kind) -> Result<(Vec<Object>, Vec<DatastoreError>), DatastoreError> {
        let (mut objects, mut broken) = (BTreeMap::new(), Vec::new());
        // A list that takes longer than the server remembers is begun again, once.
        let mut again = true;
        loop {
            let listed = self.list_pages(kind, |object| match object {
                Ok(object) => drop(objects.insert(object.key(), object)),
                Err(unreadable) => broken.push(unreadable),
            });
            match listed.await {
                Ok(()) => return Ok((objects.into_values().collect(), broken)),
                Err(Refusal::Gone) if again => {
                    again = false;
                    objects.clear();
                    broken.clear();
                }
                Err(refusal) => return Err(self.error(&Call::all(Verb::List, kind), refusal)),
            }
        }
    }

    /// All objects of a kind, page by page: each object of a page is given to `take`.
    async fn list_pages(
        &self,
        kind: Kind,
        mut take: impl FnMut(Result<Object, DatastoreError>),
    ) -> Result<(), Refusal> {
        let mut after = String::new();
        loop {
            let mut call = Call::all(Verb::List, kind).with("limit", page_size(kind).to_string());
            if !after.is_empty() {
                call = call.with("continue", after);
            }
            let answer = self.connection.ask(&call).await?;
            let page: Page<'_> = serde_json::from_slice(&answer).map_err(|error| {
                self.connection
                    .away(&call, &format!("the answer is no list: {error}"))
            })?;
            for item in page.items {
                let object = body::object(kind, item.get(), extent(kind));
                take(object.map_err(|unreadable| unreadable.at(self.server())));
            }
            after = page.metadata.r#continue;
            if after.is_empty() {
                return Ok(());
            }
        }
    }
}

/// Says of an object that cannot be read.
fn tell(unreadable: &DatastoreError) {
    error!(error = %unreadable, "broken object, left out until it is mended");
}

/// How many objects are asked for at once: an answer is a few megabytes at most, and Nodes and Pods are large.
fn page_size(kind: Kind) -> u32 {
    match kind {
        Kind::Node | Kind::Pod => 100,
        _ => 500,
    }
}

/// How much of the objects of a list is kept: of pods, which are many and large and never written back, what is read.
fn extent(kind: Kind) -> Extent {
    match kind {
        Kind::Pod => Extent::Told,
        _ => Extent::Whole,
    }
}

#[async_trait]
impl Datastore for KubernetesStore {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        let call = Call::one(Verb::Get, key);
        match self.ask(&call).await {
            Ok(answer) => self.read(&call, &answer).map(Some),
            Err(DatastoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        let (objects, broken) = self.list_all(kind).await?;
        broken.iter().for_each(tell);
        Ok(objects)
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        let (objects, broken) = self.list_all(kind).await?;
        broken.into_iter().next().map_or(Ok(objects), Err)
    }

    fn knows_pods(&self) -> bool {
        true
    }

    async fn create(&self, mut object: Object) -> Result<Object, DatastoreError> {
        // The server gives the first revision.
        object.metadata_mut().resource_version = None;
        self.write(Verb::Create, &object).await
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        let Some(revision) = object.metadata().resource_version.clone() else {
            return Err(DatastoreError::Invalid {
                place: format!("{}: metadata.resourceVersion", object.key()),
                reason: "is missing: an update names the revision it was made from".to_owned(),
            });
        };
        self.write(Verb::Update, &object)
            .await
            .map_err(with_revision(&revision))
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        let options = json!({
            "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"resourceVersion": revision},
        });
        let call = Call::one(Verb::Delete, key).with_body(Content::Json, options.to_string().into_bytes());
        self.ask(&call).await.map(drop).map_err(with_revision(revision))
    }

    async fn annotate(
        &self,
        key: &Key,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<Object, DatastoreError> {
        let patch = json!({"metadata": {"annotations": annotations}});
        let call = Call::one(Verb::Patch, key)
            .with_body(Content::MergePatch, patch.to_string().into_bytes())
            .with("fieldManager", FIELD_MANAGER);
        self.read(&call, &self.ask(&call).await?)
    }

    async fn network_available(&self, node: &str) -> Result<(), DatastoreError> {
        let key = Key::new(Kind::Node, node);
        let name = || node.to_owned();
        let Some(Object::Node(found)) = self.get(&key).await? else {
            return Err(DatastoreError::NoNode { name: name() });
        };
        let conditions = found.status.unknown.get("conditions").and_then(Value::as_array);
        let mut conditions = conditions.into_iter().flatten();
        let said = conditions.find(|condition| condition["type"] == NETWORK_UNAVAILABLE);
        if said.is_some_and(|condition| condition["status"] == "False" && condition["reason"] == AVAILABLE) {
            return Ok(());
        }
        let now = format!("{:.0}", Timestamp::now());
        // A strategic merge knows conditions by their type: the others stay.
        let patch = json!({"status": {"conditions": [{
            "type": NETWORK_UNAVAILABLE, "status": "False", "reason": AVAILABLE,
            "message": "the routes are in the kernel", "lastHeartbeatTime": now, "lastTransitionTime": now,
        }]}});
        let call = Call::one(Verb::Patch, &key)
            .about(Part::Status)
            .with_body(Content::StrategicMergePatch, patch.to_string().into_bytes())
            .with("fieldManager", FIELD_MANAGER);
        self.ask(&call).await.map(drop)
    }

    async fn record(&self, node: &str, event: &NodeEvent) -> Result<(), DatastoreError> {
        let key = Key::new(Kind::Node, node);
        let name = event_name(node, event);
        let last = format!("{:.0}", event.last);
        // One that was written is counted on; the server forgets them after an hour.
        if event.count > 1 {
            let patch = json!({"count": event.count, "lastTimestamp": last});
            let call = Call::one(Verb::Patch, &key)
                .about(Part::Event(name.clone()))
                .with_body(Content::MergePatch, patch.to_string().into_bytes());
            match self.connection.ask(&call).await {
                Ok(_) => return Ok(()),
                Err(Refusal::Unknown(_) | Refusal::Error(DatastoreError::NotFound { .. })) => {}
                Err(refusal) => return Err(self.error(&call, refusal)),
            }
        }
        // As kubelets write them: of a node the name stands for the uid, and the namespace is default.
        let body = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": name, "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
            "reason": event.reason, "message": event.message, "type": "Warning",
            "source": {"component": FIELD_MANAGER, "host": node},
            "firstTimestamp": format!("{:.0}", event.first), "lastTimestamp": last, "count": event.count,
        });
        let call = Call::one(Verb::Create, &key)
            .about(Part::Event(name))
            .with_body(Content::Json, body.to_string().into_bytes());
        match self.ask(&call).await {
            // An agent of this node wrote the same before it was restarted: it is there to be read.
            Err(DatastoreError::AlreadyExists { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    fn recall(&self, node: &str) -> Option<Recollection> {
        self.current_watch.recall(node)
    }

    fn makes_nodes(&self) -> bool {
        // They are the cluster's own: a kubelet makes its Node, and who deletes it gives the node up.
        false
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        watch::start(self)
    }
}

/// The same words of the same node have the same name. The form is that of Kubernetes' own events.
fn event_name(node: &str, event: &NodeEvent) -> String {
    let hash = Sha256::digest(format!("{}\n{}", event.reason, event.message));
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{node}.{hash}")
}

/// The server does not say which revision a refused write was made from.
fn with_revision(revision: &str) -> impl FnOnce(DatastoreError) -> DatastoreError + use<> {
    let revision = revision.to_owned();
    |error| match error {
        DatastoreError::Conflict { key, .. } => DatastoreError::Conflict { key, revision },
        other => other,
    }
}
