//! The lock that all processes of one store share, and the one way in which files are changed under it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::datastore::DatastoreError;

/// The lock file, in the store's folder.
pub(super) const LOCK_FILE: &str = ".lock";
/// The file that keeps the highest counter given out, in the store's folder.
pub(super) const COUNTER_FILE: &str = ".revision";
/// How the names of unfinished files begin and end; a name that begins with a dot is never read as a manifest.
const UNFINISHED: (&str, &str) = (".culvert-", ".tmp");
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

/// Whether what was written must be on the disk before the function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// On the disk.
    Synced,
    /// In the kernel; a loss of power may lose it.
    Buffered,
}

/// Puts `text` in the place of the file `path`, whole or not at all, whatever happens meanwhile. `still` is asked
/// last, when only the rename is missing; `false` leaves the old file, and is returned.
///
/// The caller holds the exclusive lock.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn replace_file(
    path: &Path,
    text: &str,
    durability: Durability,
    still: impl FnOnce() -> bool,
) -> Result<bool, DatastoreError> {
    let failed = |operation: &str| io_error(operation, path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let builder = &mut tempfile::Builder::new();
    let builder = builder.prefix(UNFINISHED.0).suffix(UNFINISHED.1);
    let mut unfinished = builder
        .tempfile_in(folder)
        .map_err(failed("cannot make a file beside"))?;
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
    if durability == Durability::Synced {
        file.sync_all().map_err(failed("cannot sync the new text of"))?;
    }
    if !still() {
        return Ok(false);
    }
    unfinished
        .persist(path)
        .map_err(|e| failed("cannot rename to")(e.error))?;
    if durability == Durability::Synced {
        sync_folder(folder)?;
    }
    Ok(true)
}

/// Puts the entries of a folder on the disk.
///
/// # Errors
/// When the folder cannot be opened or synced.
pub(super) fn sync_folder(folder: &Path) -> Result<(), DatastoreError> {
    let opened = File::open(folder).map_err(io_error("cannot open", folder))?;
    opened.sync_all().map_err(io_error("cannot sync", folder))
}

/// Removes what a writer that died has left in a folder.
///
/// The caller holds the exclusive lock: no writer is at work, so that whatever is unfinished stays so.
pub(super) fn remove_unfinished(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(UNFINISHED.0) && name.ends_with(UNFINISHED.1) {
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
}

/// The next counter of the store: above the last one given out, and above `highest`, the highest in any file, so that
/// a counter file that was lost or spoilt heals.
///
/// The caller holds the exclusive lock.
///
/// # Errors
/// When the counter file cannot be written.
pub(super) fn next_counter(root: &Path, highest: u64) -> Result<u64, DatastoreError> {
    let path = root.join(COUNTER_FILE);
    let last = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let last = last
        .filter(|n: &u64| *n <= super::manifest::COUNTER_MAX)
        .unwrap_or(0);
    let next = last.max(highest).saturating_add(1);
    // Not synced: after a loss of power it heals from the files, and the revisions carry the content's hash besides.
    replace_file(&path, &format!("{next}\n"), Durability::Buffered, || true)?;
    Ok(next)
}
