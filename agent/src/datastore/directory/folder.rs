//! What the folder holds, as it was last read: files, objects, faults.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::lock::io_error;
use super::manifest::{Content, Fault, Manifest, Stored};
use crate::api::{Key, Kind};
use crate::datastore::DatastoreError;

/// Largest manifest that is read, in bytes.
const FILE_MAX: u64 = 16 << 20;

/// How old the last change of a file must be before its stamp proves that there was no other since: the kernel stamps
/// with the granularity of its tick (10 ms at most), and two writes within one look alike.
const SETTLED: Duration = Duration::from_millis(100);
/// The same on file systems that keep whole seconds.
const SETTLED_WHOLE_SECONDS: Duration = Duration::from_secs(2);

/// Which files are read again although their stamps have not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reread {
    /// These (none for an ordinary look).
    Named(BTreeSet<PathBuf>),
    /// All.
    All,
}

impl Reread {
    /// Only what looks changed.
    pub(super) fn changed() -> Self {
        Self::Named(BTreeSet::new())
    }

    fn includes(&self, path: &Path) -> bool {
        match self {
            Reread::Named(paths) => paths.contains(path),
            Reread::All => true,
        }
    }
}

/// By what a file is recognized as the one that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds of the last change of content, as anybody may set it.
    modified: (i64, i64),
    /// Seconds and nanoseconds of the last change of anything, as only the kernel sets it.
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a write after `now` would show in the stamp. A time to come (a clock that was set back) proves nothing.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (seconds, nanos) = self.changed;
        let window = if nanos == 0 {
            SETTLED_WHOLE_SECONDS
        } else {
            SETTLED
        };
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(seconds), u32::try_from(nanos)) else {
            return false;
        };
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(window) > Duration::new(seconds, nanos)
    }
}

/// A file, as it was last read.
#[derive(Debug)]
pub(super) struct ReadFile {
    /// `None` when nothing can be said by its stamp.
    stamp: Option<Stamp>,
    /// Whether its text could be read, well-formed or not.
    readable: bool,
    /// What it holds.
    pub(super) manifest: Manifest,
}

/// An object, and where it is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The object; its last good state where there is a fault.
    pub(super) stored: Arc<Stored>,
    /// Its file.
    pub(super) file: PathBuf,
    /// Why it cannot be read now.
    pub(super) fault: Option<Fault>,
}

/// The folder of a store, as it was last read.
#[derive(Debug)]
pub(super) struct Folder {
    /// The folder.
    pub(super) root: PathBuf,
    /// Its manifests, by path.
    pub(super) files: BTreeMap<PathBuf, ReadFile>,
    /// Its objects.
    pub(super) objects: BTreeMap<Key, Entry>,
    /// What is wrong in it now.
    pub(super) faults: BTreeSet<Fault>,
    /// The folders that cannot be listed now.
    unlisted: BTreeSet<Fault>,
    /// What was in each folder when it was last listed.
    listed: BTreeMap<PathBuf, Listed>,
}

/// A folder, as it was last listed.
#[derive(Debug)]
struct Listed {
    /// `None` when nothing can be said by its stamp.
    stamp: Option<Stamp>,
    /// The manifests in it.
    paths: Vec<PathBuf>,
}

impl Folder {
    /// A folder of which nothing is known yet.
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            files: BTreeMap::new(),
            objects: BTreeMap::new(),
            faults: BTreeSet::new(),
            unlisted: BTreeSet::new(),
            listed: BTreeMap::new(),
        }
    }

    /// The folders in which manifests may be: the root, and one a kind.
    pub(super) fn folders(root: &Path) -> impl Iterator<Item = PathBuf> {
        let of_kinds = Kind::ALL.into_iter().map(|kind| root.join(kind.plural()));
        std::iter::once(root.to_owned()).chain(of_kinds)
    }

    /// Whether a file of this name is read.
    pub(super) fn is_manifest(path: &Path) -> bool {
        let hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(|e| e.to_str());
        !hidden && matches!(extension, Some("yaml" | "yml"))
    }

    /// Looks again, and returns the faults that are new, or are in a file that has changed.
    ///
    /// Files in `unsettled` that are known keep their last state: somebody is writing them.
    ///
    /// # Errors
    /// When the folder cannot be listed; the last state stays.
    pub(super) fn refresh(
        &mut self,
        reread: &Reread,
        unsettled: &BTreeSet<PathBuf>,
    ) -> Result<Vec<Fault>, DatastoreError> {
        let (paths, unlisted) = self.list_files(*reread == Reread::All)?;
        let mut changed = unlisted != self.unlisted || self.files.keys().any(|known| !paths.contains(known));
        self.unlisted = unlisted;
        self.files.retain(|known, _| paths.contains(known));
        for path in &paths {
            if !self.is_kept(path, unsettled) && self.refresh_file(path, reread.includes(path)) {
                self.faults.retain(|fault| fault.file != *path);
                changed = true;
            }
        }
        Ok(if changed { self.reindex() } else { Vec::new() })
    }

    /// Looks again at one file only, and returns the faults that are new.
    pub(super) fn refresh_one(&mut self, path: &Path) -> Vec<Fault> {
        if !self.refresh_file(path, false) {
            return Vec::new();
        }
        self.faults.retain(|fault| fault.file != path);
        self.reindex()
    }

    /// The same at several files, of which each is read, but for those in `unsettled` that are known.
    pub(super) fn refresh_these(
        &mut self,
        paths: &BTreeSet<PathBuf>,
        unsettled: &BTreeSet<PathBuf>,
    ) -> Vec<Fault> {
        let mut any = false;
        for path in paths {
            if !self.is_kept(path, unsettled) && self.refresh_file(path, true) {
                self.faults.retain(|fault| fault.file != *path);
                any = true;
            }
        }
        if any { self.reindex() } else { Vec::new() }
    }

    /// Takes in what was just written to a file, or that it was removed, without reading it again; the caller has the objects
    /// found anew. Its stamp proves nothing yet, so that the next look reads it, should somebody have changed it since.
    pub(super) fn wrote(&mut self, path: &Path, manifest: Option<Manifest>) {
        self.faults.retain(|fault| fault.file != path);
        match manifest {
            Some(manifest) => {
                let file = ReadFile {
                    stamp: None,
                    readable: true,
                    manifest,
                };
                self.files.insert(path.to_owned(), file);
            }
            None => drop(self.files.remove(path)),
        }
    }

    /// Whether a file keeps its last state: somebody is writing it.
    fn is_kept(&self, path: &Path, unsettled: &BTreeSet<PathBuf>) -> bool {
        unsettled.contains(path) && self.files.contains_key(path)
    }

    /// Finds objects and faults again, and returns the faults that are new.
    pub(super) fn reindex(&mut self) -> Vec<Fault> {
        let mut faults = self.index();
        faults.extend(self.unlisted.iter().cloned());
        let fresh = faults.difference(&self.faults).cloned().collect();
        self.faults = faults;
        fresh
    }

    /// The paths of all manifests, and the folders that cannot be listed. Those that look as they did when they were last
    /// listed are listed again only if `all` are.
    fn list_files(&mut self, all: bool) -> Result<(BTreeSet<PathBuf>, BTreeSet<Fault>), DatastoreError> {
        let mut paths = BTreeSet::new();
        let mut unlisted = BTreeSet::new();
        let root = self.root.clone();
        for folder in Self::folders(&root) {
            match self.list_changed(&folder, all) {
                Ok(listed) => paths.extend(listed),
                Err(error) if folder == root => return Err(io_error("cannot list", &folder)(error)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let known = self.files.keys().filter(|path| path.parent() == Some(&folder));
                    paths.extend(known.cloned());
                    unlisted.insert(Fault::of_file(&folder, format!("cannot be listed: {error}")));
                }
            }
        }
        // A name that is replaced while a folder is listed may be passed over: look for it by name.
        let missed = self.files.keys().filter(|path| !paths.contains(*path));
        let missed: Vec<_> = missed
            .filter(|path| fs::symlink_metadata(path).is_ok())
            .cloned()
            .collect();
        paths.extend(missed);
        Ok((paths, unlisted))
    }

    /// The manifests in a folder, which is listed if it may have changed: whatever comes, goes or is renamed in a folder
    /// changes its stamp (POSIX.1-2017, XBD §4.9 "File Times Update", and the pages of open, rename and unlink).
    fn list_changed(&mut self, folder: &Path, all: bool) -> io::Result<Vec<PathBuf>> {
        let now = SystemTime::now();
        let stamp = fs::metadata(folder).map(|metadata| Stamp::of(&metadata));
        let is_known =
            |listed: &Listed| listed.stamp.is_some() && listed.stamp.as_ref() == stamp.as_ref().ok();
        if all || !self.listed.get(folder).is_some_and(is_known) {
            self.listed.remove(folder);
            // The stamp is from before: what happens meanwhile shows in the next.
            let paths = list_folder(folder)?;
            let stamp = stamp.ok().filter(|stamp| stamp.is_settled(now));
            self.listed.insert(folder.to_owned(), Listed { stamp, paths });
        }
        let listed = self.listed.get(folder).map(|listed| listed.paths.clone());
        Ok(listed.unwrap_or_default())
    }

    /// Reads a file if it may have changed. Returns whether it has.
    fn refresh_file(&mut self, path: &Path, force: bool) -> bool {
        let now = SystemTime::now();
        let known = self.files.get(path);
        let read = match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(None),
            Ok(metadata) if metadata.is_symlink() => Err(Some(
                "is a symbolic link, and what is behind it cannot be watched: put the file itself here"
                    .to_owned(),
            )),
            Ok(metadata) if !metadata.is_file() => Err(Some("is no regular file".to_owned())),
            Ok(metadata) => {
                let stamp = Stamp::of(&metadata);
                if !force && known.is_some_and(|k| k.stamp.as_ref() == Some(&stamp)) {
                    return false;
                }
                read_text(path, &metadata).map(|text| (stamp, text))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(None),
            Err(e) => Err(Some(format!("cannot be read: {e}"))),
        };
        let file = match read {
            Ok((stamp, text)) => {
                let stamp = Some(stamp).filter(|stamp| stamp.is_settled(now));
                if let Some(known) = self
                    .files
                    .get_mut(path)
                    .filter(|k| k.readable && k.manifest.text == text)
                {
                    known.stamp = stamp;
                    return false;
                }
                let had_objects = self.objects.values().any(|entry| entry.file == path);
                ReadFile {
                    stamp,
                    readable: true,
                    manifest: Manifest::parse(path, text, had_objects),
                }
            }
            Err(Some(reason)) => {
                let manifest = Manifest::broken(String::new(), Fault::of_file(path, reason));
                if known.is_some_and(|k| !k.readable && k.manifest.first_fault() == manifest.first_fault()) {
                    return false;
                }
                ReadFile {
                    stamp: None,
                    readable: false,
                    manifest,
                }
            }
            Err(None) => return self.files.remove(path).is_some(),
        };
        self.files.insert(path.to_owned(), file);
        true
    }

    /// Finds the objects in the files again, and returns all that is wrong.
    fn index(&mut self) -> BTreeSet<Fault> {
        let before = std::mem::take(&mut self.objects);
        let mut faults = BTreeSet::new();
        for (path, file) in &self.files {
            for (document, found) in file.manifest.documents.iter().enumerate() {
                match &found.content {
                    Content::Object(stored) => {
                        let key = stored.object.key();
                        // Of several, the first path in byte order counts, and in it the first document.
                        if let Some(first) = self.objects.get(&key) {
                            let first = first.file.display();
                            let reason = format!(
                                "{key} is also in {first}, which is the one used: remove one of them"
                            );
                            faults.insert(Fault::of_file(path, reason));
                            continue;
                        }
                        let entry = Entry {
                            stored: Arc::clone(stored),
                            file: path.clone(),
                            fault: None,
                        };
                        self.objects.insert(key, entry);
                    }
                    Content::Broken { fault, .. } => {
                        faults.insert(fault.clone());
                    }
                    Content::Foreign => {
                        tracing::debug!(file = %path.display(), document, "not ours, left alone");
                    }
                    Content::Nothing => {}
                }
            }
        }
        // A control plane that blinks never withdraws forwarding: what was known and cannot be read stays.
        for (key, mut entry) in before {
            let file = self.files.get(&entry.file);
            if let Some(fault) = file.and_then(|file| file.manifest.fault_over(&key)) {
                entry.fault = Some(fault.clone());
                self.objects.entry(key).or_insert(entry);
            }
        }
        faults
    }

    /// The fault of a document that should be this object, wherever it is.
    pub(super) fn broken(&self, key: &Key) -> Option<&Fault> {
        let documents = self.files.values().flat_map(|file| &file.manifest.documents);
        documents
            .into_iter()
            .find_map(|document| match &document.content {
                Content::Broken { key: Some(k), fault } if k == key => Some(fault),
                _ => None,
            })
    }

    /// The highest counter in any file.
    pub(super) fn highest_counter(&self) -> u64 {
        self.objects
            .values()
            .map(|entry| entry.stored.counter)
            .max()
            .unwrap_or(0)
    }
}

fn list_folder(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if Folder::is_manifest(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The text of a file; `Err(None)` when it is gone.
fn read_text(path: &Path, metadata: &Metadata) -> Result<String, Option<String>> {
    if metadata.len() > FILE_MAX {
        return Err(Some(format!(
            "is {} bytes long: at most {FILE_MAX} are read",
            metadata.len()
        )));
    }
    let gone = |e: io::Error| (e.kind() != io::ErrorKind::NotFound).then(|| format!("cannot be read: {e}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(gone)?;
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(gone)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Some(format!("is no UTF-8 text: see byte {at}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_proves_something_only_when_the_clock_has_moved_on() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let changed = |nanos| Stamp {
            changed: (1_000_000_000, nanos),
            ..Stamp::of(&file.as_file().metadata().unwrap())
        };
        let at = |millis: u64| SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_000_000_000 + millis);
        for (nanos, millis, settled) in [
            (500_000_000, 500, false),
            (500_000_000, 600, false),
            (500_000_000, 601, true),
            // The clock was set back.
            (500_000_000, 0, false),
            // Whole seconds.
            (0, 601, false),
            (0, 1999, false),
            (0, 2001, true),
        ] {
            assert_eq!(changed(nanos).is_settled(at(millis)), settled, "{nanos} {millis}");
        }
    }

    #[test]
    fn a_time_of_content_that_somebody_set_does_not_make_a_file_an_old_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let now = file.as_file().metadata().unwrap().modified().unwrap();
        file.as_file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(!Stamp::of(&file.as_file().metadata().unwrap()).is_settled(now));
    }

    #[test]
    fn a_folder_that_looked_the_same_for_a_while_is_listed_again_when_a_name_in_it_changes() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let mut folder = Folder::new(root.path().to_owned());
        let mut look = |is_settled: bool| {
            let began = std::time::Instant::now();
            loop {
                folder.refresh(&Reread::changed(), &BTreeSet::new()).unwrap();
                if !is_settled || folder.listed[root.path()].stamp.is_some() {
                    return folder.files.keys().cloned().collect::<Vec<_>>();
                }
                assert!(began.elapsed().as_secs() < 60, "its stamp never settles");
                std::thread::yield_now();
            }
        };
        assert_eq!(look(true), <[PathBuf; 0]>::default());
        fs::write(path("a.yaml"), "").unwrap();
        assert_eq!(look(false), [path("a.yaml")]);
        assert_eq!(look(true), [path("a.yaml")]);
        fs::rename(path("a.yaml"), path("b.yaml")).unwrap();
        assert_eq!(look(false), [path("b.yaml")]);
        assert_eq!(look(true), [path("b.yaml")]);
        fs::remove_file(path("b.yaml")).unwrap();
        assert_eq!(look(false), <[PathBuf; 0]>::default());
    }
}
