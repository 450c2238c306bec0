//! The way of the datastore's updates to the loop: from the last good copy while the datastore is away at a start, and with
//! deletions held that would take away too much at once.
//!
//! What is told to the loop is always a whole state: the copy's, then the datastore's by difference. Whatever the loop
//! goes by, held objects included, is what the next copy holds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::api::{Key, Node, Object, Record};
use crate::datastore::deferred::Deferred;
use crate::datastore::last_good::{LastGood, LastGoodCopy, kept};
use crate::datastore::{DatastoreError, Update};
use crate::withdrawal::Withdrawals;

/// How long after an attempt in vain the datastore is opened again.
const REOPEN: Duration = Duration::from_secs(1);

/// The copy is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);

/// Updates that wait for the loop.
const CAPACITY: usize = 64;

/// Who this agent is, and how it treats what it is told.
pub(super) struct Terms {
    /// The node's name.
    pub(super) node: String,
    /// The address that it is known by.
    pub(super) address: Ipv4Addr,
    /// The configuration names the address, so that the Node object does not.
    pub(super) address_is_configured: bool,
    /// How many percent may vanish at once.
    pub(super) max_vanish_share: u32,
    /// When the datastore has had its time to be in sync, where there is a copy to go by.
    pub(super) patience: (Instant, Duration),
}

/// What is to be said of the datastore and of this node's object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Remarks {
    /// What is wrong with the datastore.
    pub(super) datastore: Option<String>,
    /// What contradicts this agent in its Node object.
    pub(super) node: Option<String>,
    /// How many deletions are held.
    pub(super) held: usize,
}

/// The ends of it that the loop and the socket's server hold.
pub(super) struct Outlets {
    pub(super) updates: mpsc::Receiver<Update>,
    pub(super) remarks: watch::Receiver<Remarks>,
}

/// How far the state of the datastore has come.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// Nothing whole was told yet.
    Nothing,
    /// The loop goes by the copy; why, in words.
    Copy(String),
    /// The loop goes by the datastore.
    Datastore,
}

pub(super) struct Intake {
    terms: Terms,
    store: Arc<Deferred>,
    file: LastGood,
    /// When the copy that there was at the start was written.
    copied: Option<Timestamp>,
    source: Source,
    /// Why the datastore cannot be opened or looked at now.
    problem: Option<String>,
    /// What the datastore has told before it is in sync.
    seen: BTreeSet<Key>,
    withdrawals: Withdrawals,
    confirmations: mpsc::Receiver<oneshot::Sender<usize>>,
    updates: mpsc::Sender<Update>,
    remarks: watch::Sender<Remarks>,
    /// When what has changed is written.
    save: Option<Instant>,
    saved: Option<Instant>,
}

impl Intake {
    pub(super) fn new(
        terms: Terms,
        store: Arc<Deferred>,
        file: LastGood,
        copy: Option<&LastGoodCopy>,
        confirmations: mpsc::Receiver<oneshot::Sender<usize>>,
    ) -> (Self, Outlets) {
        let (updates, told) = mpsc::channel(CAPACITY);
        let (remarks, remarked) = watch::channel(Remarks::default());
        let copied = copy.map(|copy| copy.saved);
        let objects = copy.into_iter().flat_map(LastGoodCopy::objects);
        let intake = Self {
            withdrawals: Withdrawals::new(terms.max_vanish_share, objects),
            terms,
            store,
            file,
            copied,
            source: Source::Nothing,
            problem: None,
            seen: BTreeSet::new(),
            confirmations,
            updates,
            remarks,
            save: None,
            saved: None,
        };
        let outlets = Outlets {
            updates: told,
            remarks: remarked,
        };
        (intake, outlets)
    }

    /// Runs until `stop`, until the datastore's watch ends, or until nobody listens; then writes what is not written yet, and
    /// gives back where the confirmations come from.
    pub(super) async fn run(mut self, stop: CancellationToken) -> mpsc::Receiver<oneshot::Sender<usize>> {
        let mut watch: Option<mpsc::Receiver<Update>> = None;
        let mut opening = Some(open(Arc::clone(&self.store), Duration::ZERO));
        loop {
            let patience = self.may_serve_copy().then_some(self.terms.patience.0);
            let judge = self.withdrawals.due().map(Instant::from_std);
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.updates.closed() => break,
                update = next(&mut watch) => match update {
                    Some(update) => self.take(update).await,
                    None => break,
                },
                opened = attempt(&mut opening) => {
                    opening = None;
                    match opened {
                        Ok(updates) => {
                            watch = Some(updates);
                            self.problem = None;
                        }
                        Err(error) => {
                            opening = Some(open(Arc::clone(&self.store), REOPEN));
                            self.problem = Some(error.to_string());
                            self.serve_copy(error.to_string()).await;
                        }
                    }
                }
                () = super::event_loop::at(patience) => {
                    let limit = self.terms.patience.1.as_secs();
                    self.serve_copy(format!("the datastore is not in sync after {limit} s")).await;
                }
                () = super::event_loop::at(judge) => self.judge().await,
                Some(answer) = self.confirmations.recv() => self.accept(answer).await,
                () = super::event_loop::at(self.save) => self.write().await,
            }
            self.remark();
        }
        if self.save.is_some() {
            self.write().await;
        }
        self.confirmations
    }

    fn may_serve_copy(&self) -> bool {
        self.source == Source::Nothing && self.copied.is_some()
    }

    /// Goes by the copy, where there is one and nothing better yet.
    async fn serve_copy(&mut self, why: String) {
        if let Source::Copy(reason) = &mut self.source {
            *reason = why;
            return;
        }
        let Some(copied) = self.copied.filter(|_| self.may_serve_copy()) else {
            return;
        };
        warn!(reason = %why, of = %copied, "the datastore is away: going by the last good copy");
        self.source = Source::Copy(why);
        self.tell_unseen().await;
        self.tell(Update::InSync).await;
    }

    /// Tells what only the copy holds.
    async fn tell_unseen(&self) {
        let records = self.withdrawals.records();
        for (_, record) in records.filter(|(key, _)| !self.seen.contains(*key)) {
            if let Ok(object) = record.object() {
                self.tell(Update::Upsert(Box::new(object))).await;
            }
        }
    }

    async fn take(&mut self, update: Update) {
        self.store.note_told(&update);
        match update {
            Update::Upsert(object) => self.take_object(*object).await,
            Update::Delete(key) => {
                if self.source != Source::Datastore {
                    self.seen.remove(&key);
                } else if self.withdrawals.contains(&key) {
                    self.withdrawals.delete(&key, Instant::now().into_std());
                } else {
                    self.tell(Update::Delete(key)).await;
                }
            }
            Update::InSync => self.in_sync().await,
            Update::Problem(problem) => {
                match &problem {
                    Some(why) => self.serve_copy(why.clone()).await,
                    None => info!("the datastore can be read again"),
                }
                self.problem = problem;
            }
        }
    }

    async fn take_object(&mut self, object: Object) {
        let key = object.key();
        if self.source != Source::Datastore {
            self.seen.insert(key.clone());
        }
        match kept(&object, &self.terms.node) {
            Some(short) => {
                if let Object::Node(node) = &short
                    && node.metadata.name == self.terms.node
                {
                    self.compare_with(node);
                }
                if self.withdrawals.upsert(&short, Instant::now().into_std()) {
                    self.save_soon();
                }
            }
            None => self.withdrawals.forget(&key),
        }
        self.tell(Update::Upsert(Box::new(object))).await;
    }

    /// All of the datastore was told: what it lacks of what the loop goes by is deleted, or held.
    async fn in_sync(&mut self) {
        match std::mem::replace(&mut self.source, Source::Datastore) {
            // It is said once; whatever came since was taken in as it came.
            Source::Datastore => return,
            Source::Copy(_) => info!("the datastore is back"),
            Source::Nothing => self.tell_unseen().await,
        }
        let now = Instant::now().into_std();
        let seen = std::mem::take(&mut self.seen);
        let known = self.withdrawals.records().map(|(key, _)| key);
        let lacking = known.filter(|key| !seen.contains(*key));
        for key in lacking.cloned().collect::<Vec<_>>() {
            self.withdrawals.delete(&key, now);
        }
        self.save_soon();
        self.judge().await;
        self.tell(Update::InSync).await;
    }

    async fn judge(&mut self) {
        let before = self.withdrawals.held();
        let passed = self.withdrawals.judge(Instant::now().into_std());
        self.withdraw(passed).await;
        let held = self.withdrawals.held();
        if let Some(held) = held.as_ref().filter(|held| before.as_ref() != Some(*held)) {
            error!("{held}");
        }
        if before.is_some() && held.is_none() {
            info!("nothing is held any more");
        }
    }

    async fn accept(&mut self, answer: oneshot::Sender<usize>) {
        let passed = if self.withdrawals.held().is_some() {
            self.withdrawals.accept()
        } else {
            Vec::new()
        };
        let count = passed.len();
        if count > 0 {
            warn!(
                objects = count,
                "confirmed: what has vanished from the datastore is withdrawn"
            );
        }
        self.withdraw(passed).await;
        // Who asked may be gone.
        let _ = answer.send(count);
    }

    async fn withdraw(&mut self, passed: Vec<Key>) {
        if !passed.is_empty() {
            self.save_soon();
        }
        for key in passed {
            self.tell(Update::Delete(key)).await;
        }
    }

    /// Should the loop be gone, that is noticed in [`Self::run`].
    async fn tell(&self, update: Update) {
        let _ = self.updates.send(update).await;
    }

    fn save_soon(&mut self) {
        let earliest = self
            .saved
            .map_or_else(Instant::now, |saved| saved + SAVE_INTERVAL);
        self.save.get_or_insert(earliest.max(Instant::now()));
    }

    /// Writes the copy, unless the datastore has never been in sync: then the former is as good.
    async fn write(&mut self) {
        self.save = None;
        self.saved = Some(Instant::now());
        if self.source != Source::Datastore {
            return;
        }
        let file = self.file.clone();
        let records: Vec<Record> = self
            .withdrawals
            .records()
            .map(|(_, record)| record.clone())
            .collect();
        let written = tokio::task::spawn_blocking(move || file.write(&records, Timestamp::now())).await;
        if let Ok(Err(error)) = written {
            warn!(%error, "the last good copy of the datastore cannot be kept: set state.directory to a folder that can be written");
        }
    }

    /// Notices that this node's object names another address than the one that this agent is known by.
    fn compare_with(&mut self, node: &Node) {
        let ours = self.terms.address;
        let internal = node.internal_addresses().find_map(|address| match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let internal = internal.filter(|theirs| *theirs != ours && !self.terms.address_is_configured);
        let published = node
            .advertised_address()
            .map(|net| net.addr())
            .filter(|theirs| *theirs != ours);
        let name = &node.metadata.name;
        let remark = match (internal, published) {
            (Some(theirs), _) => Some(format!(
                "Node {name} has the InternalIP {theirs} now, and this agent is known by {ours}: it takes the new one as soon as \
                 this host has it and no longer has {ours}; or restart the agent to take it now"
            )),
            (None, Some(theirs)) => Some(format!(
                "Node {name} publishes {theirs}, and this agent is known by {ours}: somebody else wrote it; \
                 set node.address to the right one and restart the agent"
            )),
            (None, None) => None,
        };
        if let Some(remark) = remark.as_ref().filter(|_| self.remarks.borrow().node != remark) {
            error!("{remark}");
        }
        self.remarks.send_if_modified(|remarks| {
            let changed = remarks.node != remark;
            remarks.node = remark;
            changed
        });
    }

    fn remark(&self) {
        let held = self.withdrawals.held();
        let mut problems = Vec::new();
        if let (Source::Copy(why), Some(copied)) = (&self.source, self.copied) {
            problems.push(format!("serving the last good copy of {copied:.0}: {why}"));
        } else if let Some(why) = &self.problem {
            problems.push(match self.source {
                Source::Datastore => format!("what was last read stands: {why}"),
                Source::Nothing | Source::Copy(_) => why.clone(),
            });
        }
        problems.extend(held.as_ref().map(ToString::to_string));
        let datastore = (!problems.is_empty()).then(|| problems.join("; "));
        let held = held.map_or(0, |held| held.count());
        self.remarks.send_if_modified(|remarks| {
            let changed = remarks.datastore != datastore || remarks.held != held;
            (remarks.datastore, remarks.held) = (datastore, held);
            changed
        });
    }
}

type Opening = BoxFuture<'static, Result<mpsc::Receiver<Update>, DatastoreError>>;

/// Opens the datastore after a while, and begins to watch it.
fn open(store: Arc<Deferred>, after: Duration) -> Opening {
    Box::pin(async move {
        tokio::time::sleep(after).await;
        store.opened().await?.watch()
    })
}

/// What came of the attempt that is under way; never anything while there is none.
async fn attempt(opening: &mut Option<Opening>) -> Result<mpsc::Receiver<Update>, DatastoreError> {
    match opening {
        Some(opening) => opening.await,
        None => std::future::pending().await,
    }
}

/// The next update; never one while there is no watch.
async fn next(watch: &mut Option<mpsc::Receiver<Update>>) -> Option<Update> {
    match watch {
        Some(updates) => updates.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
