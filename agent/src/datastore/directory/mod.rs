//! The embedded datastore: a folder of YAML manifests, spelled as `kubectl get -o yaml` prints them.
//!
//! **Layout.** Every `*.yaml` and `*.yml` at the top of the folder, and in the folders named after the kinds
//! (`nodes`, `ippools`, …), is read; a file may hold several documents. Objects are found by what the documents say,
//! not by file names. A new object is written to `<plural>/<name>.yaml`, but for handles that are created at one time: they
//! share the file of the first. An update rewrites the document where it
//! stands and leaves the bytes of the other documents alone. Documents of other kinds, files with other names, hidden
//! files and deeper folders are left alone. `.lock` and `.revision` at the top are the store's own.
//!
//! **Revisions.** The revision of an object is `COUNTER-HASH`: the counter that the file keeps in
//! `metadata.resourceVersion`, and a hash of all the document says. It is derived from the file alone, so that all
//! processes agree on it without memory. Each write of the store takes the next counter, one for the whole folder, kept
//! in `.revision` and healed from the files when that is lost. An edit by hand leaves the counter, and is seen in the
//! hash: a compare-and-swap made from the old content fails. (An edit that is undone gives the old revision back:
//! then the content is again what the writer has seen.) Layout, comments and the order of fields are not content.
//!
//! **Writes** hold `.lock` exclusively: look, compare, write a file beside, sync it, compare the old file's bytes once
//! more, rename, sync the folder. Those that come while others are under way are done together, each step for all of them
//! ([`queue`]). The file beside is in the folder `.unfinished`, which nobody watches. A process may die anywhere: each
//! file is the old or the new one, whole. What is left of it is removed at the next [`DirectoryStore::open`]. Who edits
//! by hand does not know the lock; between the last comparison and the rename are some microseconds in which such an
//! edit is lost.
//!
//! **Faults.** What cannot be read is named in the log once per change of its file, and left out. An object that was
//! known before stays in its last good state, and cannot be written, until its file is mended. A file that became empty
//! counts as broken (somebody may be writing it): to delete objects, delete the file or the document.
//! Of several documents with one object, the first path in byte order counts, and in it the first document. (A reader of
//! one object looks at its file alone while it is there; a copy that comes before it counts from the next full look.)

mod folder;
mod lock;
mod manifest;
mod queue;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use self::folder::{Folder, Reread};
use self::lock::{Access, StoreLock, io_error, remove_unfinished};
pub use self::manifest::Fault;
use self::queue::{Queue, Waiting, Written};
use self::write::Write;
use super::remembered::{CurrentWatch, Remembered};
use super::{Datastore, DatastoreError, Recollection, Update};
use crate::api::{Key, Kind, Object};

/// A datastore in a folder. Several of them, in several processes, may be open on one folder.
#[derive(Clone, Debug)]
pub struct DirectoryStore {
    shared: Arc<Shared>,
    /// The node for whose allocations its watch remembers what they go by.
    node: Option<Arc<str>>,
    current_watch: CurrentWatch,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    folder: Mutex<Folder>,
    queue: Mutex<Queue>,
}

impl DirectoryStore {
    /// Opens the store in a folder; makes the folder where there is none, and removes what writers that died have left.
    ///
    /// # Errors
    /// When the folder cannot be made, listed, or locked.
    pub fn open(path: &Path) -> Result<Self, DatastoreError> {
        fs::create_dir_all(path).map_err(io_error("cannot make the datastore", path))?;
        let root = fs::canonicalize(path).map_err(io_error("cannot resolve", path))?;
        for folder in Folder::folders(&root) {
            fs::create_dir_all(&folder).map_err(io_error("cannot make", &folder))?;
        }
        let mut folder = Folder::new(root.clone());
        let lock = StoreLock::acquire(&root, Access::Exclusive)?;
        report(&folder.refresh(&Reread::changed(), &BTreeSet::new())?);
        Folder::folders(&root).for_each(|f| remove_unfinished(&f));
        drop(lock);
        let shared = Arc::new(Shared {
            root,
            folder: Mutex::new(folder),
            queue: Mutex::default(),
        });
        Ok(Self {
            shared,
            node: None,
            current_watch: CurrentWatch::default(),
        })
    }

    /// The same, for the agent of `node`: its watch remembers what an allocation there goes by.
    #[must_use]
    pub fn of_node(self, node: &str) -> Self {
        Self {
            node: Some(node.into()),
            ..self
        }
    }

    /// What was wrong in the folder when it was last looked at.
    #[must_use]
    pub fn faults(&self) -> Vec<Fault> {
        self.shared.folder().faults.iter().cloned().collect()
    }

    /// Reads what is in the folder now.
    async fn read<T: Send + 'static>(
        &self,
        scope: Scope,
        work: impl FnOnce(&mut Folder) -> Result<T, DatastoreError> + Send + 'static,
    ) -> Result<T, DatastoreError> {
        let (answer, answered) = oneshot::channel();
        let reading = move |folder: Result<&mut Folder, DatastoreError>| {
            // Who asked may have gone away.
            drop(answer.send(folder.and_then(work)));
        };
        self.shared.wait(Waiting::Read(scope, Box::new(reading)));
        answered.await.unwrap_or_else(|error| Err(self.given_up(error)))
    }

    async fn write(&self, write: Write) -> Written {
        let (answer, answered) = oneshot::channel();
        self.shared.wait(Waiting::Write(Box::new(write), answer));
        answered.await.unwrap_or_else(|error| Err(self.given_up(error)))
    }

    fn given_up(&self, error: oneshot::error::RecvError) -> DatastoreError {
        DatastoreError::Io {
            operation: format!("work on {} was given up", self.shared.root.display()),
            source: io::Error::other(error),
        }
    }
}

/// How much of the folder has to be looked at.
#[derive(Clone, Debug)]
enum Scope {
    /// All of it.
    Everything,
    /// One object: where it was is where it is, in nearly all cases.
    Object(Key),
}

impl Scope {
    /// Whether a look at one file was enough.
    fn is_fresh(&self, folder: &mut Folder) -> bool {
        let Scope::Object(key) = self else {
            return false;
        };
        let Some(path) = folder.objects.get(key).map(|entry| entry.file.clone()) else {
            return false;
        };
        report(&folder.refresh_one(&path));
        folder
            .objects
            .get(key)
            .is_some_and(|entry| entry.file == path && entry.fault.is_none())
    }
}

impl Shared {
    fn folder(&self) -> MutexGuard<'_, Folder> {
        // A panic leaves at worst a look half taken in, which the next one completes.
        self.folder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn report(faults: &[Fault]) {
    for fault in faults {
        tracing::error!(place = %fault.place(), reason = %fault.reason, "broken manifest, left out until it is mended");
    }
}

#[async_trait]
impl Datastore for DirectoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        let key = key.clone();
        let scope = Scope::Object(key.clone());
        self.read(scope, move |folder| match folder.objects.get(&key) {
            Some(entry) => Ok(Some(entry.stored.object.clone())),
            None => folder
                .broken(&key)
                .map_or(Ok(None), |fault| Err(fault.clone().into())),
        })
        .await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.read(Scope::Everything, move |folder| {
            let of_kind = folder
                .objects
                .range(Key::new(kind, "")..)
                .take_while(|(key, _)| key.kind == kind);
            Ok(of_kind.map(|(_, entry)| entry.stored.object.clone()).collect())
        })
        .await
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        let objects = self.list(kind).await?;
        // What a broken document holds, nobody knows: it may be one of these.
        match self.faults().into_iter().next() {
            Some(fault) => Err(fault.into()),
            None => Ok(objects),
        }
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        let key = object.key();
        let written = self.write(Write::Create(object)).await?;
        written.ok_or(DatastoreError::NotFound { key })
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        let key = object.key();
        let written = self.write(Write::Update(object)).await?;
        written.ok_or(DatastoreError::NotFound { key })
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        let write = Write::Delete(key.clone(), revision.to_owned());
        self.write(write).await.map(drop)
    }

    fn recall(&self, node: &str) -> Option<Recollection> {
        self.current_watch.recall(node)
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        let remembered = self.node.as_deref().map(|node| Arc::new(Remembered::new(node)));
        if let Some(remembered) = &remembered {
            self.current_watch.set(remembered);
        }
        watch::start(&self.shared, remembered)
    }
}
