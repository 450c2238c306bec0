//! Those who wait for the folder share one lock, one look at it, and one trip to the disk.
//!
//! A node that starts fifty pods writes fifty objects at once. One after the other each would wait for the disk twice; together
//! they are written, put on the disk, and then renamed, as one. Nobody waits for company: who comes first is served at once,
//! and who comes meanwhile is served next.

use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::folder::{Folder, Reread};
use super::lock::{Access, StoreLock};
use super::write::Write;
use super::{Scope, Shared, report};
use crate::api::Object;
use crate::datastore::DatastoreError;

/// What came of a write: the object with its revision, unless it was deleted.
pub(super) type Written = Result<Option<Object>, DatastoreError>;

/// Reads from a folder that was just looked at, and tells whoever asked.
pub(super) type Reading = Box<dyn FnOnce(Result<&mut Folder, DatastoreError>) + Send>;

/// Somebody who waits.
pub(super) enum Waiting {
    /// To read.
    Read(Scope, Reading),
    /// To write.
    Write(Box<Write>, oneshot::Sender<Written>),
}

impl Waiting {
    fn scope(&self) -> Scope {
        match self {
            Self::Read(scope, _) => scope.clone(),
            Self::Write(write, _) => write.scope(),
        }
    }

    fn fail(self, error: DatastoreError) {
        match self {
            Self::Read(_, reading) => reading(Err(error)),
            // Who asked may have gone away.
            Self::Write(_, answered) => drop(answered.send(Err(error))),
        }
    }
}

/// Who waits, and whether somebody serves them.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Vec<Waiting>,
    is_served: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("waiting", &self.waiting.len())
            .field("is_served", &self.is_served)
            .finish()
    }
}

/// Serves the queue. However it ends, even in a panic or before it began, the next who comes finds it free; those who still
/// wait then learn by what they wait at that they were given up.
struct Service {
    shared: Arc<Shared>,
    is_over: bool,
}

impl Drop for Service {
    fn drop(&mut self) {
        if !self.is_over {
            *self.shared.queue() = Queue::default();
        }
    }
}

impl Service {
    fn run(mut self) {
        loop {
            let mut queue = self.shared.queue();
            if queue.waiting.is_empty() {
                // Whoever comes from here on begins a service of their own.
                (queue.is_served, self.is_over) = (false, true);
                return;
            }
            let waiting = std::mem::take(&mut queue.waiting);
            drop(queue);
            self.shared.serve(waiting);
        }
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has somebody served, with those who wait already or else at once. Needs a Tokio runtime.
    pub(super) fn wait(self: &Arc<Self>, waiting: Waiting) {
        let mut queue = self.queue();
        queue.waiting.push(waiting);
        if !std::mem::replace(&mut queue.is_served, true) {
            let service = Service {
                shared: Arc::clone(self),
                is_over: false,
            };
            tokio::task::spawn_blocking(move || service.run());
        }
    }

    /// Takes the lock, looks at what has changed, and does what is waited for.
    fn serve(&self, waiting: Vec<Waiting>) {
        let mut folder = self.folder();
        match self.look(&mut folder, &waiting) {
            Ok(_lock) => do_all(&mut folder, waiting),
            Err(error) => {
                drop(folder);
                self.fail(waiting, error);
            }
        }
    }

    /// An error can be told once: of several who wait the first is told, and each other looks for itself.
    fn fail(&self, waiting: Vec<Waiting>, error: DatastoreError) {
        let mut waiting = waiting.into_iter();
        if let Some(first) = waiting.next() {
            first.fail(error);
        }
        waiting.for_each(|one| self.serve(vec![one]));
    }

    fn look(&self, folder: &mut Folder, waiting: &[Waiting]) -> Result<StoreLock, DatastoreError> {
        let any_write = waiting
            .iter()
            .any(|waiting| matches!(waiting, Waiting::Write(..)));
        let access = if any_write {
            Access::Exclusive
        } else {
            Access::Shared
        };
        let lock = StoreLock::acquire(&self.root, access)?;
        if !waiting.iter().all(|waiting| waiting.scope().is_fresh(folder)) {
            report(&folder.refresh(&Reread::changed(), &BTreeSet::new())?);
        }
        Ok(lock)
    }
}

/// Reads first: what is written now was not there when they asked.
fn do_all(folder: &mut Folder, waiting: Vec<Waiting>) {
    let (mut writes, mut answers) = (Vec::new(), Vec::new());
    for waiting in waiting {
        match waiting {
            Waiting::Read(_, reading) => reading(Ok(folder)),
            Waiting::Write(write, answered) => {
                writes.push(*write);
                answers.push(answered);
            }
        }
    }
    for (written, answered) in folder.write(writes).into_iter().zip(answers) {
        // Who asked may have gone away.
        drop(answered.send(written));
    }
}
