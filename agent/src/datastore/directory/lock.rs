//! The lock that all processes of one store share, and the one way in which files are changed under it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use tempfile::NamedTempFile;

use crate::datastore::DatastoreError;

/// The lock file, in the store's folder.
pub(super) const LOCK_FILE: &str = ".lock";
/// The file that keeps the highest counter given out, in the store's folder.
pub(super) const COUNTER_FILE: &str = ".revision";
/// The folder of unfinished files, in each folder of manifests: on the same file system, and watched by nobody, to whom each
/// step of a write would be an event.
const UNFINISHED_FOLDER: &str = ".unfinished";
/// The mode of a new manifest.
const NEW_FILE_MODE: u32 = 0o644;

/// Names the operation in an I/O error.
pub(super) fn io_error(operation: &str, path: &Path) -> impl FnOnce(io::Error) -> DatastoreError + use<> {
    let operation = format!("{operation} {}", path.display());
    move |source| DatastoreError::Io { operation, source }
}

/// Who else may work in the folder meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Other readers.
    Shared,
    /// Nobody.
    Exclusive,
}

/// The store's lock, held until this is dropped. The kernel releases it when the process dies.
#[derive(Debug)]
pub(super) struct StoreLock(#[allow(dead_code, reason = "held open: closing it releases the lock")] File);

impl StoreLock {
    /// Waits for the lock of the store in `root`.
    ///
    /// # Errors
    /// When the lock file cannot be opened or locked.
    pub(super) fn acquire(root: &Path, access: Access) -> Result<Self, DatastoreError> {
        let path = root.join(LOCK_FILE);
        loop {
            let mut options = OpenOptions::new();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path);
            let file = file.map_err(io_error("cannot open", &path))?;
            match access {
                Access::Shared => file.lock_shared(),
                Access::Exclusive => file.lock(),
            }
            .map_err(io_error("cannot lock", &path))?;
            // Somebody may have deleted the lock file while we waited: then others lock a new one.
            let ours = file.metadata().map_err(io_error("cannot stat", &path))?;
            match fs::metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => return Ok(Self(file)),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(io_error("cannot stat", &path)(e)),
            }
        }
    }
}

/// The new text of a file, beside it. It is removed when this is dropped before it is in its place.
///
/// Who makes one holds the exclusive lock.
#[derive(Debug)]
pub(super) struct Unfinished(NamedTempFile);

impl Unfinished {
    /// Writes the new text of the file `path`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn write(path: &Path, text: &str) -> Result<Self, DatastoreError> {
        let failed = |operation: &str| io_error(operation, path);
        let folder = path.parent().unwrap_or(Path::new(".")).join(UNFINISHED_FOLDER);
        let unfinished = NamedTempFile::new_in(&folder).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            fs::create_dir(&folder)?;
            NamedTempFile::new_in(&folder)
        });
        let mut unfinished = unfinished.map_err(failed("cannot make a file beside"))?;
        let file = unfinished.as_file_mut();
        file.write_all(text.as_bytes())
            .map_err(failed("cannot write the new text of"))?;
        let old = fs::metadata(path).ok();
        let mode = old.as_ref().map_or(NEW_FILE_MODE, |old| old.mode() & 0o7777);
        file.set_permissions(fs::Permissions::from_mode(mode))
            .map_err(failed("cannot set the mode of"))?;
        if let Some(old) = old {
            // Only root may give files away; to whom it belongs does not matter to us.
            let _ = std::os::unix::fs::fchown(&*file, Some(old.uid()), Some(old.gid()));
        }
        Ok(Self(unfinished))
    }

    /// Has it begin its way to the disk, so that a sync waits for less.
    pub(super) fn begin_sync(&self) {
        // The kernel begins to write what is not needed soon (mm/fadvise.c); where it does not, the sync does.
        let _ = posix_fadvise(self.0.as_file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }

    /// Waits until it is on the disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn sync(&mut self) -> Result<(), DatastoreError> {
        let synced = self.0.as_file_mut().sync_all();
        synced.map_err(io_error("cannot sync", self.0.path()))
    }

    /// Puts it in the place of `path`, whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub(super) fn put(self, path: &Path) -> Result<(), DatastoreError> {
        let put = self.0.persist(path);
        put.map(drop)
            .map_err(|e| io_error("cannot rename to", path)(e.error))
    }
}

/// Puts the entries of a folder on the disk.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub(super) fn sync_folder(folder: &Path) -> Result<(), DatastoreError> {
    let opened = File::open(folder).map_err(io_error("cannot open", folder))?;
    opened.sync_all().map_err(io_error("cannot sync", folder))
}

/// Removes what a writer that died has left of the files of a folder.
///
/// The caller holds the exclusive lock: no writer is at work, so that whatever is unfinished stays so.
pub(super) fn remove_unfinished(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder.join(UNFINISHED_FOLDER)) else {
        return;
    };
    for entry in entries.flatten() {
        match fs::remove_file(entry.path()) {
            Ok(()) => {
                tracing::info!(file = %entry.path().display(), "removed what a writer that died had left");
            }
            Err(error) => {
                tracing::warn!(file = %entry.path().display(), %error, "cannot remove a leftover");
            }
        }
    }
}

/// The next counters of the store, as many as `count`: above the last one given out, and above `highest`, the highest in any
/// file, so that a counter file that was lost or spoilt heals.
///
/// The caller holds the exclusive lock.
///
/// # Errors
/// When the counter file cannot be written.
pub(super) fn next_counters(
    root: &Path,
    highest: u64,
    count: usize,
) -> Result<RangeInclusive<u64>, DatastoreError> {
    let path = root.join(COUNTER_FILE);
    let last = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let last = last
        .filter(|n: &u64| *n <= super::manifest::COUNTER_MAX)
        .unwrap_or(0)
        .max(highest);
    let next = last.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
    // Neither synced nor replaced as a whole: what a crash spoils heals from the files, and the revisions carry the content's
    // hash besides. Of one length, so that the file's blocks stay.
    let text = format!("{next:020}\n");
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.write_all(text.as_bytes())?;
        let is_longer = file.metadata()?.len() > text.len() as u64;
        if is_longer {
            file.set_len(text.len() as u64)
        } else {
            Ok(())
        }
    };
    write().map_err(io_error("cannot write", &path))?;
    Ok(last.saturating_add(1)..=next)
}
