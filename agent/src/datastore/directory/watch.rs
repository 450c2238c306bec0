//! The watch: inotify says that, and where, something happened; a look at the folder says what.
//!
//! Nothing is told from an event alone. An event marks its file, and the next look reads it; marks are a set, so that a
//! burst costs one look and a receiver that lags costs no memory beyond one copy of the state. What a receiver was
//! told is compared with what there is, and the difference is the next update: latest state wins.
//!
//! Handles are not watched, as on an API server: no agent needs those of others, and it reads its own when it allocates.
//!
//! Two things are not taken at their word at once. A file that somebody has begun to write and not closed keeps its last
//! state for [`WRITING`] after the last write. And an object that vanishes is told as deleted only after [`GRACE`]:
//! editors and `git` replace a file by removing it first.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::folder::{Folder, Reread};
use super::lock::{Access, StoreLock};
use super::manifest::Stored;
use super::{Shared, report};
use crate::api::{Key, Kind};
use crate::datastore::remembered::Remembered;
use crate::datastore::{DatastoreError, Update};

/// How long after the last write a file that was not closed is taken to be complete.
const WRITING: Duration = Duration::from_secs(1);
/// How long an object is missed before it is told as deleted.
const GRACE: Duration = Duration::from_millis(200);
/// How long after a look that failed the next is taken.
const RETRY: Duration = Duration::from_secs(1);
/// Updates that wait for a receiver.
const CAPACITY: usize = 64;
/// Above this many marked files all are read again.
const MARKED_MAX: usize = 1024;

/// Begins to watch, and spawns the task that tells.
pub(super) fn start(
    shared: &Arc<Shared>,
    remembered: Option<Arc<Remembered>>,
) -> Result<mpsc::Receiver<Update>, DatastoreError> {
    let runtime = tokio::runtime::Handle::try_current().map_err(|e| DatastoreError::Io {
        operation: format!(
            "cannot watch {} outside of a tokio runtime",
            shared.root.display()
        ),
        source: io::Error::other(e),
    })?;
    let marks = Arc::new(Marks::new(shared.root.clone()));
    let watcher = arm(&marks)?;
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let watch = Watch {
        shared: Arc::clone(shared),
        marks,
        watcher,
        told: BTreeMap::new(),
        changed: BTreeMap::new(),
        missed: BTreeMap::new(),
        retry: None,
        problem: None,
        told_problem: None,
        in_sync: InSync::No,
        remembered,
    };
    runtime.spawn(watch.run(sender));
    Ok(receiver)
}

/// Whether objects of a kind are told, and their folder is watched. Handles are not: an allocation reads the one that it needs,
/// and nothing else goes by them; but each pod that comes or goes has one.
fn is_watched(kind: Kind) -> bool {
    kind != Kind::IpamHandle
}

/// Watches the folder, the folders of the kinds, and the folder's own parent (where it may be replaced as a whole).
fn arm(marks: &Arc<Marks>) -> Result<RecommendedWatcher, DatastoreError> {
    let root = marks.root.clone();
    let marked = Arc::clone(marks);
    let watcher = notify::recommended_watcher(move |event| marked.note(event));
    let mut watcher = watcher.map_err(|e| unwatchable(&root, e))?;
    let mut watch = |path: &Path, required: bool| match watcher.watch(path, RecursiveMode::NonRecursive) {
        Ok(()) => Ok(()),
        Err(e) if required || matches!(e.kind, notify::ErrorKind::MaxFilesWatch) => Err(unwatchable(path, e)),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "not watched");
            Ok(())
        }
    };
    if let Some(parent) = root.parent() {
        watch(parent, false)?;
    }
    watch(&root, true)?;
    for folder in &marks.kinds {
        watch(folder, false)?;
    }
    Ok(watcher)
}

fn unwatchable(path: &Path, error: notify::Error) -> DatastoreError {
    let path = path.display();
    let (hint, source) = match error.kind {
        notify::ErrorKind::MaxFilesWatch => (
            ": raise the sysctl fs.inotify.max_user_watches",
            io::Error::from(Errno::ENOSPC),
        ),
        notify::ErrorKind::Io(e) if e.raw_os_error() == Some(Errno::EMFILE as i32) => (
            ": raise the sysctl fs.inotify.max_user_instances, or the limit of open files (ulimit -n)",
            e,
        ),
        notify::ErrorKind::Io(e) => ("", e),
        kind => ("", io::Error::other(notify::Error::new(kind))),
    };
    DatastoreError::Io {
        operation: format!("cannot watch {path}{hint}"),
        source,
    }
}

/// What inotify has said since the last look.
#[derive(Debug)]
pub(super) struct Marks {
    root: PathBuf,
    kinds: BTreeSet<PathBuf>,
    marked: Mutex<Marked>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Marked {
    /// A watched folder came or went: watch anew.
    rearm: bool,
    /// Events were lost, or too many: read all.
    all: bool,
    /// Files to read.
    files: BTreeSet<PathBuf>,
    /// Files that are being written, and when they are taken to be complete.
    writing: BTreeMap<PathBuf, Instant>,
}

impl Marked {
    fn is_empty(&self) -> bool {
        !self.rearm && !self.all && self.files.is_empty()
    }
}

/// What a look is to do.
#[derive(Debug)]
pub(super) struct Look {
    rearm: bool,
    reread: Reread,
    pub(super) unsettled: BTreeSet<PathBuf>,
}

impl Marks {
    pub(super) fn new(root: PathBuf) -> Self {
        let kinds = Kind::ALL.into_iter().filter(|kind| is_watched(*kind));
        let kinds = kinds.map(|kind| root.join(kind.plural())).collect();
        // The first look finds everything.
        let marked = Marked {
            all: true,
            ..Marked::default()
        };
        Self {
            root,
            kinds,
            marked: Mutex::new(marked),
            wake: Notify::new(),
        }
    }

    fn marked(&self) -> MutexGuard<'_, Marked> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, event: notify::Result<Event>) {
        let mut marked = self.marked();
        match event {
            Ok(event) if event.need_rescan() => marked.all = true,
            Ok(event) => event
                .paths
                .iter()
                .for_each(|path| self.mark(&mut marked, event.kind, path)),
            Err(error) => {
                tracing::warn!(folder = %self.root.display(), %error, "events were lost, reading all again");
                marked.all = true;
            }
        }
        if marked.files.len() + marked.writing.len() > MARKED_MAX {
            marked.files.clear();
            marked.writing.clear();
            marked.all = true;
        }
        if !marked.is_empty() || !marked.writing.is_empty() {
            self.wake.notify_one();
        }
    }

    fn mark(&self, marked: &mut Marked, kind: EventKind, path: &Path) {
        let is_folder = path == self.root || self.kinds.contains(path);
        match kind {
            // Reading, also our own, changes nothing.
            EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write) => {}
            EventKind::Modify(ModifyKind::Metadata(_)) if is_folder => marked.all = true,
            _ if is_folder => (marked.rearm, marked.all) = (true, true),
            _ if !self.is_watched_manifest(path) => {}
            EventKind::Modify(ModifyKind::Data(_)) => {
                marked.writing.insert(path.to_owned(), Instant::now() + WRITING);
            }
            _ => {
                marked.writing.remove(path);
                marked.files.insert(path.to_owned());
            }
        }
    }

    fn is_watched_manifest(&self, path: &Path) -> bool {
        let watched = path
            .parent()
            .is_some_and(|folder| folder == self.root || self.kinds.contains(folder));
        watched && Folder::is_manifest(path)
    }

    /// Takes the marks for a look, or `None` when there is nothing to look at.
    pub(super) fn take(&self, now: Instant) -> Option<Look> {
        let mut marked = self.marked();
        let complete = marked.writing.iter().filter(|(_, at)| **at <= now);
        let complete: Vec<_> = complete.map(|(path, _)| path.clone()).collect();
        marked.writing.retain(|_, at| *at > now);
        marked.files.extend(complete);
        if marked.is_empty() {
            return None;
        }
        let unsettled = marked.writing.keys().cloned().collect();
        let files = std::mem::take(&mut marked.files);
        Some(Look {
            rearm: std::mem::take(&mut marked.rearm),
            reread: if std::mem::take(&mut marked.all) {
                Reread::All
            } else {
                Reread::Named(files)
            },
            unsettled,
        })
    }

    /// When the next file that is being written is taken to be complete.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.marked().writing.values().min().copied()
    }
}

/// How far the first telling has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InSync {
    /// No look has succeeded yet.
    No,
    /// What the looks found is being told.
    Telling,
    /// Told.
    Told,
}

struct Watch {
    shared: Arc<Shared>,
    marks: Arc<Marks>,
    watcher: RecommendedWatcher,
    /// The revision of each object that the receiver knows.
    told: BTreeMap<Key, String>,
    /// What the receiver does not know yet.
    changed: BTreeMap<Key, Arc<Stored>>,
    /// What it knows and is gone, and when it will be told.
    missed: BTreeMap<Key, Instant>,
    /// When to look again after a look that failed.
    retry: Option<Instant>,
    /// Why the last look failed, if it did.
    problem: Option<String>,
    /// What the receiver knows of that.
    told_problem: Option<String>,
    in_sync: InSync,
    /// What was told, for who remembers it.
    remembered: Option<Arc<Remembered>>,
}

impl Watch {
    async fn run(mut self, sender: mpsc::Sender<Update>) {
        loop {
            self.look().await;
            if self.has_news() {
                let Ok(permit) = sender.reserve().await else {
                    return;
                };
                // The receiver may have taken its time: tell it what is true now.
                self.look().await;
                if let Some(update) = self.next_update() {
                    self.remember(&update);
                    permit.send(update);
                }
                continue;
            }
            let deadlines = [
                self.retry,
                self.missed.values().min().copied(),
                self.marks.deadline(),
            ];
            let deadline = deadlines.into_iter().flatten().min();
            tokio::select! {
                () = self.marks.wake.notified() => {}
                () = sender.closed() => return,
                () = sleep_until(deadline) => {}
            }
        }
    }

    /// Looks at the folder if something is marked, and notes what the receiver does not know.
    async fn look(&mut self) {
        let now = Instant::now();
        if self.retry.is_some_and(|at| at <= now) {
            self.retry = None;
            let mut marked = self.marks.marked();
            (marked.rearm, marked.all) = (true, true);
        }
        let Some(look) = self.marks.take(now) else {
            return;
        };
        if look.rearm {
            match arm(&self.marks) {
                Ok(watcher) => self.watcher = watcher,
                Err(error) => self.failed(&error),
            }
        }
        let shared = Arc::clone(&self.shared);
        let looked = tokio::task::spawn_blocking(move || shared.objects(&look));
        match looked.await {
            Ok(Ok(objects)) => {
                if self.retry.is_none() {
                    self.problem = None;
                }
                self.compare(&objects);
            }
            Ok(Err(error)) => self.failed(&error),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &dyn std::error::Error) {
        let folder = self.shared.root.display();
        if self.problem.replace(error.to_string()).is_none() {
            tracing::error!(%folder, %error, "cannot look at the datastore: its last state stays");
        }
        self.retry = Some(Instant::now() + RETRY);
    }

    fn compare(&mut self, objects: &BTreeMap<Key, Arc<Stored>>) {
        let told = &self.told;
        let unknown = objects
            .iter()
            .filter(|(key, stored)| told.get(*key).is_none_or(|r| r != stored.revision()));
        self.changed = unknown
            .map(|(key, stored)| (key.clone(), Arc::clone(stored)))
            .collect();
        self.missed.retain(|key, _| !objects.contains_key(key));
        for key in self.told.keys().filter(|key| !objects.contains_key(key)) {
            let deadline = self.missed.entry(key.clone());
            deadline.or_insert_with(|| Instant::now() + GRACE);
        }
        if self.in_sync == InSync::No {
            self.in_sync = InSync::Telling;
        }
    }

    fn remember(&self, update: &Update) {
        let Some(remembered) = &self.remembered else {
            return;
        };
        match update {
            Update::Upsert(object) => remembered.upsert(object),
            Update::Delete(key) => remembered.remove(key),
            Update::InSync => remembered.all_whole(),
            Update::Problem(_) => {}
        }
    }

    fn has_news(&self) -> bool {
        let now = Instant::now();
        self.problem != self.told_problem
            || !self.changed.is_empty()
            || self.in_sync == InSync::Telling
            || self.missed.values().any(|at| *at <= now)
    }

    fn next_update(&mut self) -> Option<Update> {
        if self.problem != self.told_problem {
            self.told_problem.clone_from(&self.problem);
            return Some(Update::Problem(self.problem.clone()));
        }
        if let Some((key, stored)) = self.changed.pop_first() {
            self.told.insert(key, stored.revision().to_owned());
            return Some(Update::Upsert(Box::new(stored.object.clone())));
        }
        if self.in_sync == InSync::Telling {
            self.in_sync = InSync::Told;
            return Some(Update::InSync);
        }
        let now = Instant::now();
        let key = self
            .missed
            .iter()
            .find(|(_, at)| **at <= now)
            .map(|(key, _)| key.clone())?;
        self.missed.remove(&key);
        self.told.remove(&key);
        Some(Update::Delete(key))
    }
}

impl Shared {
    /// Looks at the folder, and returns the objects in it.
    fn objects(&self, look: &Look) -> Result<BTreeMap<Key, Arc<Stored>>, DatastoreError> {
        let mut folder = self.folder();
        let lock = StoreLock::acquire(&self.root, Access::Shared)?;
        let faults = match &look.reread {
            // Each event names its file: that it came, went or changed.
            Reread::Named(files) if !look.rearm => folder.refresh_these(files, &look.unsettled),
            reread => folder.refresh(reread, &look.unsettled)?,
        };
        report(&faults);
        drop(lock);
        let objects = folder.objects.iter().filter(|(key, _)| is_watched(key.kind));
        Ok(objects
            .map(|(key, entry)| (key.clone(), Arc::clone(&entry.stored)))
            .collect())
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
