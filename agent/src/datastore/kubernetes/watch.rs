//! The watch: for each kind a source that lists and then follows; one teller that passes on what they find.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use kube::client::Body;
use tokio::sync::{broadcast, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::body::{self, Extent, Page, WatchLine};
use super::call::{Call, Verb};
use super::connection::{Connection, REQUEST_TIMEOUT, Refusal, Status, in_full};
use super::interest::{Borrowed, Interest};
use super::pending::{Pending, Receiver};
use super::{KubernetesStore, page_size, tell};
use crate::api::{Key, Kind, Object};
use crate::datastore::remembered::Remembered;
use crate::datastore::{DatastoreError, Update};

/// Updates that wait for a receiver, beside those that wait to be sent.
const CAPACITY: usize = 64;
/// No further page is asked for while so many objects wait for the receiver.
const WAITING_MAX: usize = 1_000;
/// Seconds after which the server is asked to end a watch, the least and the most: each watch takes another, so that
/// those of many nodes do not end together.
const LIFE: std::ops::Range<u32> = 240..480;
/// A server sends bookmarks about every minute. A watch that is silent for longer may be of a connection that is dead.
const SILENCE_MAX: Duration = Duration::from_secs(100);
/// The first and the longest wait after a failure; it doubles in between.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(16));
/// A watch that ends sooner has failed, whatever the server says.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// The longest line of a watch, in bytes: one object.
const LINE_MAX: usize = 16 << 20;

/// Kinds of which every node needs all objects.
const KINDS: [Kind; 8] = [
    Kind::Node,
    Kind::IpPool,
    Kind::IpReservation,
    Kind::BgpConfiguration,
    Kind::BgpPeer,
    Kind::BgpFilter,
    Kind::IpamConfig,
    Kind::BlockAffinity,
];

/// Kinds that a cluster may not know, where it was made by an older Calico, or has an older Kubernetes: then it has none.
const OPTIONAL: [Kind; 5] = [
    Kind::IpReservation,
    Kind::BgpPeer,
    Kind::BgpFilter,
    Kind::IpamConfig,
    Kind::EndpointSlice,
];
/// The versions of the API in which a kind is asked for, the best first. What the server does not know it answers with 404,
/// which is as good as its list of versions, and needs no permission beyond those for the kind itself.
fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        // The first is from Kubernetes 1.21 on; the second was there until 1.24.
        Kind::EndpointSlice => &["discovery.k8s.io/v1", "discovery.k8s.io/v1beta1"],
        _ => &[],
    }
}

/// About how often a server is asked whether it knows such a kind by now.
const UNKNOWN: Duration = Duration::from_secs(60);

/// Begins to watch, and spawns the tasks that do it.
pub(super) fn start(store: &KubernetesStore) -> Result<mpsc::Receiver<Update>, DatastoreError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|error| DatastoreError::Io {
        operation: format!("cannot watch {} outside of a tokio runtime", store.server()),
        source: std::io::Error::other(error),
    })?;
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let teller = Teller {
        connection: store.connection.clone(),
        node: Arc::clone(&store.node),
        pending: Arc::default(),
        remembered: Arc::new(Remembered::new(&store.node)),
        sources: JoinSet::new(),
        interest: Interest::new(&store.node, store.secrets.as_deref()),
        borrowed: store.borrowed.subscribe(),
        single: BTreeMap::new(),
        dropped: BTreeSet::new(),
        asked_for: BTreeSet::new(),
    };
    store.current_watch.set(&teller.remembered);
    runtime.spawn(teller.run(sender));
    Ok(receiver)
}

struct Teller {
    connection: Connection,
    node: Arc<str>,
    pending: Arc<Pending>,
    remembered: Arc<Remembered>,
    /// They end with this.
    sources: JoinSet<()>,
    /// What makes single objects worth watching.
    interest: Interest,
    /// Blocks of others in which addresses are taken.
    borrowed: broadcast::Receiver<Borrowed>,
    /// The sources of single objects.
    single: BTreeMap<Key, AbortHandle>,
    /// Those that are told to be gone because nobody wants to know of them any more.
    dropped: BTreeSet<Key>,
    /// Kinds that are watched because something asks for them.
    asked_for: BTreeSet<Kind>,
}

impl Teller {
    async fn run(mut self, sender: mpsc::Sender<Update>) {
        for kind in KINDS {
            self.add(Scope::all(kind));
        }
        self.add(Scope {
            selector: Some(format!("spec.nodeName={}", self.node)),
            ..Scope::all(Kind::Pod)
        });
        loop {
            tokio::select! {
                () = self.pending.news() => {}
                borrowed = self.borrowed.recv() => {
                    // Should some have been missed, the pods' addresses tell the same a moment later.
                    if borrowed.is_ok_and(|borrowed| self.interest.borrow(borrowed)) {
                        self.watch_single();
                    }
                    continue;
                }
                () = sender.closed() => return,
            }
            let Ok(permit) = sender.reserve().await else {
                return;
            };
            // Taken only now: the receiver may have taken its time, and gets what is true now.
            if let Some(update) = self.pending.next() {
                self.follow(&update);
                permit.send(update);
            }
        }
    }

    fn add(&mut self, scope: Scope) -> AbortHandle {
        let (pending, remembered) = (Arc::clone(&self.pending), Arc::clone(&self.remembered));
        let source = Source::new(self.connection.clone(), pending, remembered, scope);
        self.pending.begin(&source.name);
        self.sources.spawn(source.run())
    }

    /// Watches what others ask for: single objects, as long as they do; services, once some of their addresses are to be
    /// advertised; namespaces, once a pool is for some of them.
    fn follow(&mut self, update: &Update) {
        let is_dropped = match update {
            Update::Upsert(object) => {
                self.dropped.remove(&object.key());
                false
            }
            Update::Delete(key) => self.dropped.remove(key),
            Update::InSync | Update::Problem(_) => false,
        };
        if !is_dropped && self.interest.follow(update) {
            self.watch_single();
        }
        match update {
            Update::Upsert(object) => match &**object {
                Object::BgpConfiguration(bgp) => {
                    let spec = &bgp.spec;
                    let ranges = [
                        &spec.service_cluster_ips,
                        &spec.service_external_ips,
                        &spec.service_load_balancer_ips,
                    ];
                    if ranges.iter().any(|ranges| !ranges.is_empty()) {
                        self.also([Kind::Service, Kind::EndpointSlice]);
                    }
                }
                Object::IpPool(pool) if pool.spec.unknown.contains_key("namespaceSelector") => {
                    self.also([Kind::Namespace]);
                }
                _ => {}
            },
            Update::Delete(_) | Update::InSync | Update::Problem(_) => {}
        }
    }

    /// Watches these kinds from now on, if it does not yet.
    fn also(&mut self, kinds: impl IntoIterator<Item = Kind>) {
        for kind in kinds {
            if self.asked_for.insert(kind) {
                self.add(Scope::all(kind));
            }
        }
    }

    /// Watches the single objects that are of interest, and no others.
    fn watch_single(&mut self) {
        let wanted = self.interest.objects();
        let former = self.single.keys().filter(|key| !wanted.contains(*key));
        for key in former.cloned().collect::<Vec<_>>() {
            if let Some(source) = self.single.remove(&key) {
                source.abort();
            }
            self.pending.forget(&Scope::one(&key).to_string());
            self.dropped.insert(key.clone());
            self.pending.delete(key);
        }
        for key in wanted {
            if !self.single.contains_key(&key) {
                let source = self.add(Scope::one(&key));
                self.single.insert(key, source);
            }
        }
    }
}

/// What a source watches: a kind, or of it what a field selector selects.
#[derive(Clone, Debug)]
struct Scope {
    kind: Kind,
    namespace: Option<String>,
    selector: Option<String>,
}

impl Scope {
    fn all(kind: Kind) -> Self {
        Self {
            kind,
            namespace: None,
            selector: None,
        }
    }

    /// A single object. RBAC lets in who may list and watch this name only.
    fn one(key: &Key) -> Self {
        Self {
            kind: key.kind,
            namespace: key.namespace.clone(),
            selector: Some(format!("metadata.name={}", key.name)),
        }
    }
}

/// `nodes`, `ipamblocks (metadata.name=10-65-0-0-26)`.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.plural())?;
        if let Some(namespace) = &self.namespace {
            write!(f, " of {namespace}")?;
        }
        self.selector
            .as_ref()
            .map_or(Ok(()), |selector| write!(f, " ({selector})"))
    }
}

/// One scope, listed and then watched.
struct Source {
    name: String,
    connection: Connection,
    pending: Arc<Pending>,
    remembered: Arc<Remembered>,
    scope: Scope,
    /// Which of the [`versions`] is asked for.
    version: usize,
    /// Where to go on; none to list anew.
    revision: Option<String>,
    /// The objects that were found, and a hash of the revision of each.
    known: BTreeMap<Key, u64>,
    wait: Duration,
}

impl Source {
    fn new(connection: Connection, pending: Arc<Pending>, remembered: Arc<Remembered>, scope: Scope) -> Self {
        Self {
            name: scope.to_string(),
            connection,
            pending,
            remembered,
            scope,
            version: 0,
            revision: None,
            known: BTreeMap::new(),
            wait: BACKOFF.0,
        }
    }

    async fn run(mut self) {
        loop {
            let began = Instant::now();
            match self.round().await {
                Ok(()) if began.elapsed() >= SHORT_LIFE => {
                    self.wait = BACKOFF.0;
                    continue;
                }
                // It goes on where it was; but not in a tight circle.
                Ok(()) => debug!(source = self.name, "the watch ended at once"),
                Err(Refusal::Gone) => {
                    info!(
                        source = self.name,
                        "the revision is no longer known: all is listed again"
                    );
                    self.revision = None;
                }
                Err(Refusal::Unknown(_)) if self.version + 1 < versions(self.scope.kind).len() => {
                    self.version += 1;
                    debug!(source = self.name, "the server has another version of these");
                    // What was told is there still: a list by the other version tells the difference.
                    self.revision = None;
                    continue;
                }
                Err(Refusal::Unknown(error))
                    if OPTIONAL.contains(&self.scope.kind) && self.known.is_empty() =>
                {
                    info!(source = self.name, %error, "nobody has any of these");
                    self.synced();
                    sleep(jittered(UNKNOWN)).await;
                    self.version = 0;
                    continue;
                }
                Err(Refusal::Error(error) | Refusal::Unknown(error)) => {
                    // A server that was upgraded meanwhile may have the first again, and the last no more.
                    self.version = 0;
                    warn!(source = self.name, %error, "the watch is interrupted: what was told stands");
                    self.pending.problem(&self.name, Some(error.to_string()));
                    // A password that may not be read costs its session, and holds back nothing else.
                    if self.scope.kind == Kind::Secret && matches!(error, DatastoreError::Refused { .. }) {
                        self.synced();
                    }
                }
            }
            sleep(jittered(self.wait)).await;
            self.wait = (self.wait * 2).min(BACKOFF.1);
        }
    }

    async fn round(&mut self) -> Result<(), Refusal> {
        let revision = match self.revision.clone() {
            Some(revision) => revision,
            None => {
                let revision = self.list().await?;
                self.synced();
                self.revision = Some(revision.clone());
                revision
            }
        };
        self.follow(revision).await
    }

    /// All that there was at the beginning was told.
    fn synced(&self) {
        if self.scope.selector.is_none() {
            self.remembered.whole(self.scope.kind);
        }
        self.pending.synced(&self.name);
    }

    fn call(&self, verb: Verb) -> Call {
        let mut call = Call::all(verb, self.scope.kind).of(self.scope.namespace.clone());
        if let Some(version) = versions(self.scope.kind).get(self.version) {
            call = call.by(version);
        }
        match &self.scope.selector {
            Some(selector) => call.with("fieldSelector", selector),
            None => call,
        }
    }

    /// Tells all that there is, and what is there no more; returns the revision to go on from.
    async fn list(&mut self) -> Result<String, Refusal> {
        let mut gone = self.known.clone();
        let mut after = String::new();
        loop {
            self.pending.room(WAITING_MAX).await;
            let mut call = self
                .call(Verb::List)
                .with("limit", page_size(self.scope.kind).to_string());
            if !after.is_empty() {
                call = call.with("continue", after);
            }
            let answer = self.connection.ask(&call).await?;
            let page: Page<'_> = serde_json::from_slice(&answer).map_err(|error| {
                self.connection
                    .away(&call, &format!("the answer is no list: {error}"))
            })?;
            self.pending.problem(&self.name, None);
            for item in page.items {
                gone.remove(&self.take(item.get()));
            }
            after = page.metadata.r#continue;
            if after.is_empty() {
                for key in gone.into_keys() {
                    self.remove(key);
                }
                return Ok(page.metadata.resource_version);
            }
        }
    }

    /// Takes in an object as it is now, and returns its key.
    fn take(&mut self, text: &str) -> Key {
        let object = match body::object(self.scope.kind, text, Extent::Told) {
            Ok(object) => object,
            Err(unreadable) => {
                // What was told of it stands: it is broken, not gone.
                let key = unreadable.key.clone();
                tell(&unreadable.at(self.connection.server()));
                return key;
            }
        };
        let key = object.key();
        let mut hasher = DefaultHasher::new();
        object.metadata().resource_version.hash(&mut hasher);
        let hash = hasher.finish();
        let receiver = match self.known.insert(key.clone(), hash) {
            Some(before) if before == hash => return key,
            Some(_) => Receiver::Knows,
            None => Receiver::IsNew,
        };
        self.remembered.upsert(&object);
        self.pending.upsert(object, receiver);
        key
    }

    fn remove(&mut self, key: Key) {
        if self.known.remove(&key).is_some() {
            self.remembered.remove(&key);
            self.pending.delete(key);
        }
    }

    /// Follows from a revision until the server ends the watch.
    async fn follow(&mut self, revision: String) -> Result<(), Refusal> {
        let call = self
            .call(Verb::Watch)
            .with("watch", "1")
            .with("allowWatchBookmarks", "true")
            .with("timeoutSeconds", fastrand::u32(LIFE).to_string())
            .with("resourceVersion", revision);
        let answer = self
            .connection
            .begin(&call, Instant::now() + REQUEST_TIMEOUT)
            .await?;
        self.pending.problem(&self.name, None);
        let mut lines = Lines::of(answer.into_body());
        loop {
            match timeout(SILENCE_MAX, lines.read()).await {
                Err(_) => {
                    debug!(
                        source = self.name,
                        "the watch is silent: it is begun again where it was"
                    );
                    return Ok(());
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(line))) => self.take_line(&call, &line)?,
                Ok(Err(why)) => {
                    // The next attempt tells whether the server is away, or has only ended this connection.
                    debug!(source = self.name, why, "the connection of the watch broke");
                    return Ok(());
                }
            }
        }
    }

    fn take_line(&mut self, call: &Call, line: &[u8]) -> Result<(), Refusal> {
        let garbled = |why: &dyn std::error::Error| {
            self.connection
                .away(call, &format!("the answer is no event: {why}"))
        };
        let line: WatchLine<'_> = serde_json::from_slice(line).map_err(|error| garbled(&error))?;
        let text = line.object.get();
        if line.r#type == "ERROR" {
            let status: Status = serde_json::from_str(text).map_err(|error| garbled(&error))?;
            let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            return Err(self.connection.refused(call, code, &status));
        }
        // Whatever can be said of the object, from here it goes on.
        if let Some(revision) = body::revision(text) {
            self.revision = Some(revision);
        }
        // All went well for a while: what fails next is another failure.
        self.wait = BACKOFF.0;
        match line.r#type {
            "ADDED" | "MODIFIED" => drop(self.take(text)),
            "DELETED" => {
                if let Some(key) = body::key(self.scope.kind, text) {
                    self.remove(key);
                }
            }
            // A bookmark is a revision and nothing else.
            _ => {}
        }
        Ok(())
    }
}

/// Between half of `wait` and all of it.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The lines of a body that comes bit by bit.
struct Lines {
    body: Body,
    buffer: Vec<u8>,
    /// How far the buffer was searched already.
    searched: usize,
}

impl Lines {
    fn of(body: Body) -> Self {
        Self {
            body,
            buffer: Vec::new(),
            searched: 0,
        }
    }

    /// The next line without its end; none when the body has ended. Nothing is lost when this is dropped half-way.
    async fn read(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            let unsearched = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(end) = unsearched.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.searched + end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_MAX {
                return Err(format!("a line is longer than {LINE_MAX} bytes"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(in_full(&error)),
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.buffer.extend_from_slice(bytes);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_whole_however_they_come() {
        let mut lines = Lines::of(Body::from(b"one\ntwo\n\nrest".to_vec()));
        for expected in ["one", "two", ""] {
            let line = lines.read().await.unwrap().unwrap();
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        }
        assert_eq!(lines.read().await.unwrap(), None);
    }

    #[test]
    fn waits_differ_and_stay_within_half_and_whole() {
        let waits: Vec<_> = (0..100).map(|_| jittered(BACKOFF.1)).collect();
        assert!(
            waits
                .iter()
                .all(|wait| (BACKOFF.1 / 2..=BACKOFF.1).contains(wait))
        );
        assert!(waits.iter().any(|wait| *wait != waits[0]));
    }
}
