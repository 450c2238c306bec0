//! Writes: compare, then swap the file, under the exclusive lock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

use super::folder::{self, Folder};
use super::lock::{Unfinished, io_error, next_counters, sync_folder};
use super::manifest::{Fault, Manifest, Stored, render};
use super::queue::Written;
use super::{Scope, report};
use crate::api::{Key, Kind, Object, check_name};
use crate::datastore::DatastoreError;

/// Longest part of a name in a file name: with what may follow it stays below the file systems' 255 bytes.
const FILE_STEM_MAX: usize = 200;
/// Handles that are created together in one file: what a change of one of them writes again stays small.
const HANDLES_OF_A_FILE: usize = 32;
/// How many files of one name are tried before a new object is refused.
const FILES_OF_A_NAME: u32 = 100;

/// A write of one object.
#[derive(Debug)]
pub(super) enum Write {
    /// Of a new object, into a new file.
    Create(Object),
    /// Over the revision that it carries, in the document where it stands.
    Update(Object),
    /// Of nothing, over the document of an object at this revision; its file goes when nothing else is in it.
    Delete(Key, String),
}

impl Write {
    /// What has to be looked at before: that an object is nowhere yet, only the whole folder tells.
    pub(super) fn scope(&self) -> Scope {
        match self {
            Self::Create(_) => Scope::Everything,
            Self::Update(object) => Scope::Object(object.key()),
            Self::Delete(key, _) => Scope::Object(key.clone()),
        }
    }
}

/// What one write comes to.
#[derive(Debug)]
struct Done {
    /// The place of the write in its batch.
    place: usize,
    key: Key,
    /// The revision that it was made from.
    revision: String,
    /// What is answered.
    object: Option<Object>,
}

/// The change of one file, by one or more writes.
#[derive(Debug)]
struct Change {
    file: PathBuf,
    /// The file's text until now; none where there must be no file.
    old: Option<String>,
    /// What is to be in it; it goes when that is nothing.
    new: Manifest,
    done: Vec<Done>,
}

/// A change that is ready but for its last step: the new text is beside the file, unless that goes.
type Prepared = (Change, Option<Unfinished>);

/// The changes of a batch, by file.
#[derive(Default)]
struct Changes {
    by_file: BTreeMap<PathBuf, Change>,
    /// The objects that are written. A second write of one has to see what came of the first.
    keys: BTreeSet<Key>,
    /// The file of the handles that are created: each is small, each pod has one, and each file of its own would be a trip to
    /// the disk.
    of_handles: Option<PathBuf>,
}

impl Changes {
    /// Adds a rendered object to the change that makes its file.
    fn create(&mut self, file: PathBuf, done: Done, rendered: &str, stored: Stored) {
        let is_handle = done.key.kind == Kind::IpamHandle;
        let change = self.add(file, None, done);
        change.new.push(rendered, stored);
        if is_handle {
            let has_room = change.done.len() < HANDLES_OF_A_FILE;
            let file = has_room.then(|| change.file.clone());
            self.of_handles = file;
        }
    }

    /// Adds a write to the change of its file, in which `present` is now; the caller says what is to be in it.
    fn add(&mut self, file: PathBuf, present: Option<&Manifest>, done: Done) -> &mut Change {
        self.keys.insert(done.key.clone());
        let change = self.by_file.entry(file).or_insert_with_key(|file| Change {
            file: file.clone(),
            old: present.map(|present| present.text.clone()),
            new: Manifest::empty(),
            done: Vec::new(),
        });
        change.done.push(done);
        change
    }
}

impl Folder {
    /// Does writes as if one came after the other: what came of each, in their order. All wait for the disk together.
    pub(super) fn write(&mut self, writes: Vec<Write>) -> Vec<Written> {
        let mut written: Vec<Option<Written>> = Vec::new();
        written.resize_with(writes.len(), || None);
        let mut left: Vec<_> = writes.into_iter().enumerate().collect();
        while !left.is_empty() {
            left = self.write_once(left, &mut written);
        }
        // Each has been answered by now.
        written.into_iter().map(|one| one.unwrap_or(Ok(None))).collect()
    }

    /// Does those of the writes that are of different objects, and gives back the others, which need to be looked at anew.
    fn write_once(
        &mut self,
        writes: Vec<(usize, Write)>,
        written: &mut [Option<Written>],
    ) -> Vec<(usize, Write)> {
        let mut answer = |place: usize, one: Written| {
            if let Some(answer) = written.get_mut(place) {
                *answer = Some(one);
            }
        };
        let counters = match next_counters(&self.root, self.highest_counter(), writes.len()) {
            Ok(counters) => counters,
            Err(error) => {
                // It can be told once; the others find out by themselves.
                let mut writes = writes.into_iter();
                if let Some((place, _)) = writes.next() {
                    answer(place, Err(error));
                }
                return writes.collect();
            }
        };
        let (mut left, mut changes) = (Vec::new(), Changes::default());
        for ((place, write), counter) in writes.into_iter().zip(counters) {
            match self.file_of(&write, &changes) {
                Ok(None) => left.push((place, write)),
                Ok(Some(file)) => match self.change(&mut changes, place, write, file, counter) {
                    Ok(None) => {}
                    Ok(Some(object)) => answer(place, Ok(Some(object))),
                    Err(error) => answer(place, Err(error)),
                },
                Err(error) => answer(place, Err(error)),
            }
        }
        let mut prepared = Vec::new();
        for change in changes.by_file.into_values() {
            match self.prepare(&change) {
                Ok(new) => prepared.push((change, new)),
                Err(error) => fail(change.done, &error)
                    .into_iter()
                    .for_each(|(place, one)| answer(place, one)),
            }
        }
        for (place, one) in self.finish(prepared) {
            answer(place, one);
        }
        left
    }

    /// The file that a write changes; none where one before it in the batch has to be done first.
    fn file_of(&self, write: &Write, changes: &Changes) -> Result<Option<PathBuf>, DatastoreError> {
        let key = match write {
            Write::Create(object) | Write::Update(object) => checked_key(object)?,
            Write::Delete(key, _) => key.clone(),
        };
        if changes.keys.contains(&key) {
            return Ok(None);
        }
        match write {
            Write::Create(_) => {
                if let Some(entry) = self.objects.get(&key) {
                    return Err(entry
                        .fault
                        .clone()
                        .map_or(DatastoreError::AlreadyExists { key }, Into::into));
                }
                if let Some(fault) = self.broken(&key) {
                    return Err(fault.clone().into());
                }
                if let Some(file) = changes
                    .of_handles
                    .as_ref()
                    .filter(|_| key.kind == Kind::IpamHandle)
                {
                    return Ok(Some(file.clone()));
                }
                let file = self.free_path(&key)?;
                Ok(Some(file).filter(|file| !changes.by_file.contains_key(file)))
            }
            Write::Update(object) => {
                let Some(revision) = &object.metadata().resource_version else {
                    return Err(DatastoreError::Invalid {
                        place: format!("{key}: metadata.resourceVersion"),
                        reason: "is missing: an update names the revision it was made from".to_owned(),
                    });
                };
                self.at_revision(&key, revision).map(|entry| Some(entry.file))
            }
            Write::Delete(key, revision) => self.at_revision(key, revision).map(|entry| Some(entry.file)),
        }
    }

    /// Adds a write to the change of its file; gives the object where nothing is to be done, since it is as it is to be.
    fn change(
        &self,
        changes: &mut Changes,
        place: usize,
        write: Write,
        file: PathBuf,
        counter: u64,
    ) -> Result<Option<Object>, DatastoreError> {
        let present = self.files.get(&file).map(|file| &file.manifest);
        let change = changes.by_file.get(&file);
        let before = change.map(|change| &change.new).or(present);
        let (done, new) = match write {
            Write::Create(object) => {
                let (rendered, stored) = render(&file, &object, counter)?;
                let done = Done::new(place, object.key(), String::new(), Some(stored.object.clone()));
                changes.create(file, done, &rendered, stored);
                return Ok(None);
            }
            Write::Update(object) => {
                let key = object.key();
                let revision = object.metadata().resource_version.clone().unwrap_or_default();
                if self.at_revision(&key, &revision)?.stored.object == object {
                    return Ok(Some(object));
                }
                let (rendered, stored) = render(&file, &object, counter)?;
                let done = Done::new(place, key, revision, Some(stored.object.clone()));
                let new =
                    before.and_then(|b| b.replaced(&file, b.document_of(&done.key)?, &rendered, stored));
                (done, new)
            }
            Write::Delete(key, revision) => {
                let new = before.and_then(|b| b.without(&file, b.document_of(&key)?));
                (Done::new(place, key, revision, None), new)
            }
        };
        let Some(new) = new else {
            return Err(DatastoreError::Conflict {
                key: done.key,
                revision: done.revision,
            });
        };
        changes.add(file, present, done).new = new;
        Ok(None)
    }

    /// Writes the new text of a file beside it, and has it begin its way to the disk.
    fn prepare(&self, change: &Change) -> Result<Option<Unfinished>, DatastoreError> {
        if change.new.holds_nothing() {
            return Ok(None);
        }
        let folder = change.file.parent().unwrap_or(&self.root);
        if change.old.is_none() && !folder.exists() {
            fs::create_dir_all(folder).map_err(io_error("cannot make", folder))?;
            sync_folder(&self.root)?;
        }
        let new = Unfinished::write(&change.file, &change.new.text)?;
        new.begin_sync();
        Ok(Some(new))
    }

    /// Puts the new texts on the disk, then each in its place, and then the folders on the disk.
    fn finish(&mut self, prepared: Vec<Prepared>) -> Vec<(usize, Written)> {
        let folders: BTreeSet<PathBuf> = prepared
            .iter()
            .map(|(change, _)| change.file.parent().unwrap_or(&self.root).to_owned())
            .collect();
        let synced = |(change, mut new): Prepared| {
            let done = new.as_mut().map_or(Ok(()), Unfinished::sync);
            (change, new, done)
        };
        // All of them before the first rename: one trip to the disk takes along what waits behind it.
        let prepared: Vec<_> = prepared.into_iter().map(synced).collect();
        let (mut written, mut refused, mut any_put) = (Vec::new(), BTreeSet::new(), false);
        for (change, new, synced) in prepared {
            let put = synced.and_then(|()| change.put(new));
            let Change { file, new, done, .. } = change;
            match put {
                Ok(true) => {
                    let is_there = !new.holds_nothing();
                    self.wrote(&file, is_there.then_some(new));
                    any_put = true;
                    written.extend(done.into_iter().map(|done| (done.place, Ok(done.object))));
                }
                Ok(false) => {
                    written.extend(done.into_iter().map(Done::outrun));
                    refused.insert(file);
                }
                Err(error) => {
                    written.extend(fail(done, &error));
                    refused.insert(file);
                }
            }
        }
        if any_put {
            report(&self.reindex());
        }
        report(&self.refresh_these(&refused, &BTreeSet::new()));
        for folder in folders {
            let Err(error) = sync_folder(&folder) else {
                continue;
            };
            // Whether they are on the disk nobody knows.
            for (_, one) in written.iter_mut().filter(|(_, one)| one.is_ok()) {
                *one = Err(retold("what was written may be lost", &error));
            }
        }
        written
    }

    /// The entry of an object if it is good and at this revision.
    fn at_revision(&self, key: &Key, revision: &str) -> Result<folder::Entry, DatastoreError> {
        let Some(entry) = self.objects.get(key) else {
            let gone = DatastoreError::NotFound { key: key.clone() };
            return Err(self.broken(key).cloned().map_or(gone, Into::into));
        };
        if let Some(fault) = &entry.fault {
            return Err(fault.clone().into());
        }
        if entry.stored.revision() != revision {
            return Err(DatastoreError::Conflict {
                key: key.clone(),
                revision: revision.to_owned(),
            });
        }
        Ok(entry.clone())
    }

    /// A path for a new object: named after it, and nobody's yet.
    fn free_path(&self, key: &Key) -> Result<PathBuf, DatastoreError> {
        let folder = self.root.join(key.kind.plural());
        let stem = match &key.namespace {
            Some(namespace) => file_stem(&format!("{namespace}.{}", key.name)),
            None => file_stem(&key.name),
        };
        let paths = (1..=FILES_OF_A_NAME).map(|n| match n {
            1 => folder.join(format!("{stem}.yaml")),
            n => folder.join(format!("{stem}.{n}.yaml")),
        });
        for path in paths {
            if let Some(file) = self.files.get(&path) {
                // What cannot be read here may well be this object.
                if let Some(fault) = file.manifest.fault_over(key) {
                    return Err(fault.clone().into());
                }
            } else if fs::symlink_metadata(&path).is_err() {
                return Ok(path);
            }
        }
        let reason = format!("no file of this name is free for {key}: remove some of its {FILES_OF_A_NAME}");
        Err(Fault::of_file(&folder.join(format!("{stem}.yaml")), reason).into())
    }
}

impl Change {
    /// The last step: puts the new text in the place of the old. False when somebody who does not know the lock was faster.
    fn put(&self, new: Option<Unfinished>) -> Result<bool, DatastoreError> {
        let is_as_it_was = match &self.old {
            Some(old) => is_still(&self.file, old),
            None => !self.file.exists(),
        };
        if !is_as_it_was {
            return Ok(false);
        }
        match new {
            Some(new) => new.put(&self.file)?,
            None => fs::remove_file(&self.file).map_err(io_error("cannot remove", &self.file))?,
        }
        Ok(true)
    }
}

impl Done {
    fn new(place: usize, key: Key, revision: String, object: Option<Object>) -> Self {
        Self {
            place,
            key,
            revision,
            object,
        }
    }

    /// The answer to who was not the first to write.
    fn outrun(self) -> (usize, Written) {
        let Self {
            place, key, revision, ..
        } = self;
        let error = if revision.is_empty() {
            DatastoreError::AlreadyExists { key }
        } else {
            DatastoreError::Conflict { key, revision }
        };
        (place, Err(error))
    }
}

/// The answers where a file could not be written.
fn fail(done: Vec<Done>, error: &DatastoreError) -> Vec<(usize, Written)> {
    let failed = done.into_iter().map(|done| {
        (
            done.place,
            Err(retold(&format!("cannot write {}", done.key), error)),
        )
    });
    failed.collect()
}

/// An error that several are told.
fn retold(operation: &str, error: &DatastoreError) -> DatastoreError {
    DatastoreError::Io {
        operation: operation.to_owned(),
        source: io::Error::other(error.to_string()),
    }
}

fn checked_key(object: &Object) -> Result<Key, DatastoreError> {
    let key = object.key();
    let mut names = std::iter::once(&key.name).chain(&key.namespace);
    names
        .try_for_each(|name| check_name(name))
        .map_err(|e| DatastoreError::Invalid {
            place: format!("{} {:?}: {}", key.kind.as_str(), key.name, e.field),
            reason: format!("is {}: {}", e.value, e.allowed),
        })?;
    Ok(key)
}

/// The name as part of a file name: a long one is cut, and told from others like it by its hash.
fn file_stem(name: &str) -> String {
    if name.len() <= FILE_STEM_MAX {
        return name.to_owned();
    }
    let hash = Sha256::digest(name);
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let cut: String = name.chars().take(FILE_STEM_MAX - 17).collect();
    format!("{cut}-{hash}")
}

/// Whether a file still holds the text that was compared: somebody who does not know the lock may have written it.
fn is_still(path: &Path, text: &str) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes == text.as_bytes())
}
