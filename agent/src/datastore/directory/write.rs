//! Writes: compare, then swap the file, under the exclusive lock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use sha2::{Digest, Sha256};

use super::folder::{Entry, Folder};
use super::lock::{Unfinished, io_error, next_counters, sync_folder};
use super::manifest::{Fault, Manifest, render};
use super::queue::Written;
use super::{Scope, report};
use crate::api::{Key, Object, check_name};
use crate::datastore::DatastoreError;

/// Longest part of a name in a file name: with what may follow it stays below the file systems' 255 bytes.
const FILE_STEM_MAX: usize = 200;
/// How many files of one name are tried before a new object is refused.
const FILES_OF_A_NAME: u32 = 100;

/// A write of one object.
#[derive(Debug)]
pub(super) enum Write {
    /// Of a new object, into a file of its own.
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

/// A change of one file that is ready but for its last step.
#[derive(Debug)]
struct Prepared {
    /// The place of its write in the batch.
    place: usize,
    file: PathBuf,
    key: Key,
    /// The revision that it was made from.
    revision: String,
    /// The file's text until now; none where there must be no file.
    old: Option<String>,
    /// The new one, beside it, and what is in that; none where the file goes.
    new: Option<(Unfinished, Manifest)>,
    /// What is answered.
    object: Option<Object>,
}

impl Folder {
    /// Does writes as if one came after the other: what came of each, in their order. Those of different files wait for the
    /// disk together.
    pub(super) fn write(&mut self, writes: Vec<Write>) -> Vec<Written> {
        let mut written: Vec<Option<Written>> = Vec::new();
        written.resize_with(writes.len(), || None);
        let mut left: Vec<_> = writes.into_iter().enumerate().collect();
        while !left.is_empty() {
            left = self.write_files(left, &mut written);
        }
        // Each has been answered by now.
        written.into_iter().map(|one| one.unwrap_or(Ok(None))).collect()
    }

    /// Does those of the writes that have a file of their own, and gives back the others, which need to be looked at anew.
    fn write_files(
        &mut self,
        writes: Vec<(usize, Write)>,
        written: &mut [Option<Written>],
    ) -> Vec<(usize, Write)> {
        let mut answer = |place: usize, one: Written| {
            if let Some(answer) = written.get_mut(place) {
                *answer = Some(one);
            }
        };
        let (mut left, mut ready) = (Vec::new(), Vec::new());
        let mut files = BTreeSet::new();
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
        for ((place, write), counter) in writes.into_iter().zip(counters) {
            match self.file_of(&write) {
                Ok(file) if files.contains(&file) => left.push((place, write)),
                Ok(file) => match self.prepare(place, write, &file, counter) {
                    Ok(Step::Ready(prepared)) => {
                        files.insert(file);
                        ready.push(prepared);
                    }
                    Ok(Step::Nothing(object)) => answer(place, Ok(Some(object))),
                    Err(error) => answer(place, Err(error)),
                },
                Err(error) => answer(place, Err(error)),
            }
        }
        for (place, one) in self.finish(ready) {
            answer(place, one);
        }
        left
    }

    /// The file that a write changes.
    fn file_of(&self, write: &Write) -> Result<PathBuf, DatastoreError> {
        match write {
            Write::Create(object) => {
                let key = checked_key(object)?;
                if let Some(entry) = self.objects.get(&key) {
                    return Err(entry
                        .fault
                        .clone()
                        .map_or(DatastoreError::AlreadyExists { key }, Into::into));
                }
                match self.broken(&key) {
                    Some(fault) => Err(fault.clone().into()),
                    None => self.free_path(&key),
                }
            }
            Write::Update(object) => {
                let key = checked_key(object)?;
                let Some(revision) = &object.metadata().resource_version else {
                    return Err(DatastoreError::Invalid {
                        place: format!("{key}: metadata.resourceVersion"),
                        reason: "is missing: an update names the revision it was made from".to_owned(),
                    });
                };
                self.at_revision(&key, revision).map(|entry| entry.file)
            }
            Write::Delete(key, revision) => self.at_revision(key, revision).map(|entry| entry.file),
        }
    }

    /// Writes the new text of `file` beside it, and has it begin its way to the disk.
    fn prepare(&self, place: usize, write: Write, file: &Path, counter: u64) -> Result<Step, DatastoreError> {
        let (key, revision, old, new, object) = match write {
            Write::Create(object) => {
                let (text, stored) = render(file, &object, counter)?;
                let created = stored.object.clone();
                let folder = file.parent().unwrap_or(&self.root);
                if !folder.exists() {
                    fs::create_dir_all(folder).map_err(io_error("cannot make", folder))?;
                    sync_folder(&self.root)?;
                }
                let new = Manifest::of_one(text, stored);
                (object.key(), String::new(), None, Some(new), Some(created))
            }
            Write::Update(object) => {
                let key = object.key();
                let revision = object.metadata().resource_version.clone().unwrap_or_default();
                let entry = self.at_revision(&key, &revision)?;
                if entry.stored.object == object {
                    return Ok(Step::Nothing(object));
                }
                let (rendered, stored) = render(file, &object, counter)?;
                let updated = stored.object.clone();
                let old = self.files.get(file).map(|file| &file.manifest);
                let replaced = old.and_then(|old| {
                    Some((&old.text, old.replaced(file, entry.document, &rendered, stored)?))
                });
                let Some((old, new)) = replaced else {
                    return Err(DatastoreError::Conflict { key, revision });
                };
                (key, revision, Some(old.clone()), Some(new), Some(updated))
            }
            Write::Delete(key, revision) => {
                let entry = self.at_revision(&key, &revision)?;
                let Some(manifest) = self.files.get(file).map(|file| &file.manifest) else {
                    return Err(DatastoreError::Conflict { key, revision });
                };
                let rest = manifest.without(file, entry.document);
                (key, revision, Some(manifest.text.clone()), rest, None)
            }
        };
        let new = new
            .map(|manifest| Ok::<_, DatastoreError>((Unfinished::write(file, &manifest.text)?, manifest)))
            .transpose()?;
        if let Some((new, _)) = &new {
            new.begin_sync();
        }
        Ok(Step::Ready(Prepared {
            place,
            file: file.to_owned(),
            key,
            revision,
            old,
            new,
            object,
        }))
    }

    /// Puts the new texts on the disk, then each in its place, and then the folders on the disk.
    fn finish(&mut self, ready: Vec<Prepared>) -> Vec<(usize, Written)> {
        let folders: BTreeSet<PathBuf> = ready
            .iter()
            .map(|prepared| prepared.file.parent().unwrap_or(&self.root).to_owned())
            .collect();
        let synced = |mut prepared: Prepared| {
            let done = prepared.new.as_mut().map_or(Ok(()), |(new, _)| new.sync());
            (prepared, done)
        };
        // All of them before the first rename: one trip to the disk takes along what waits behind it.
        let ready: Vec<_> = ready.into_iter().map(synced).collect();
        let (mut written, mut refused, mut any_put) = (Vec::new(), BTreeSet::new(), false);
        for (prepared, synced) in ready {
            let (place, file) = (prepared.place, prepared.file.clone());
            let one = match synced.and_then(|()| prepared.put()) {
                Ok((manifest, object)) => {
                    self.wrote(&file, manifest);
                    any_put = true;
                    Ok(object)
                }
                Err(error) => {
                    refused.insert(file);
                    Err(error)
                }
            };
            written.push((place, one));
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
            let reason = error.to_string();
            for (_, one) in written.iter_mut().filter(|(_, one)| one.is_ok()) {
                *one = Err(DatastoreError::Io {
                    operation: "what was written may be lost".to_owned(),
                    source: io::Error::other(reason.clone()),
                });
            }
        }
        written
    }

    /// The entry of an object if it is good and at this revision.
    fn at_revision(&self, key: &Key, revision: &str) -> Result<Entry, DatastoreError> {
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

/// What a write comes to.
#[derive(Debug)]
enum Step {
    Ready(Prepared),
    /// It is as it is to be.
    Nothing(Object),
}

impl Prepared {
    /// The last step: puts the new text in the place of the old, unless somebody who does not know the lock was faster. What
    /// is in the file then, and what is answered.
    fn put(self) -> Result<(Option<Manifest>, Option<Object>), DatastoreError> {
        let is_as_it_was = match &self.old {
            Some(old) => is_still(&self.file, old),
            None => !self.file.exists(),
        };
        if !is_as_it_was {
            let key = self.key;
            return Err(match self.old {
                Some(_) => DatastoreError::Conflict {
                    key,
                    revision: self.revision,
                },
                None => DatastoreError::AlreadyExists { key },
            });
        }
        let manifest = match self.new {
            Some((new, manifest)) => {
                new.put(&self.file)?;
                Some(manifest)
            }
            None => {
                fs::remove_file(&self.file).map_err(io_error("cannot remove", &self.file))?;
                None
            }
        };
        Ok((manifest, self.object))
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
