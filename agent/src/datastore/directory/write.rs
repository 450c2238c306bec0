//! Writes: compare, then swap the file, under the exclusive lock.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::folder::{Entry, Folder};
use super::lock::{Durability, io_error, next_counter, replace_file, sync_folder};
use super::manifest::{Fault, render};
use super::report;
use crate::api::{Key, Object, check_name};
use crate::datastore::DatastoreError;

/// Longest part of a name in a file name: with what may follow it stays below the file systems' 255 bytes.
const FILE_STEM_MAX: usize = 200;
/// How many files of one name are tried before a new object is refused.
const FILES_OF_A_NAME: u32 = 100;

impl Folder {
    /// Writes a new object into a file of its own, and returns it with its revision.
    ///
    /// # Errors
    /// When there is one, in a good or a broken document, or it is not valid, or the folder cannot be written.
    pub(super) fn create(&mut self, object: &Object) -> Result<Object, DatastoreError> {
        let key = checked_key(object)?;
        if let Some(entry) = self.objects.get(&key) {
            return Err(entry
                .fault
                .clone()
                .map_or(DatastoreError::AlreadyExists { key }, Into::into));
        }
        if let Some(fault) = self.broken(&key) {
            return Err(fault.clone().into());
        }
        let path = self.free_path(&key)?;
        let counter = next_counter(&self.root, self.highest_counter())?;
        let (text, stored) = render(&path, object, counter)?;
        let folder = path.parent().unwrap_or(&self.root);
        if !folder.exists() {
            fs::create_dir_all(folder).map_err(io_error("cannot make", folder))?;
            sync_folder(&self.root)?;
        }
        if !replace_file(&path, &text, Durability::Synced, || !path.exists())? {
            return Err(DatastoreError::AlreadyExists { key });
        }
        report(&self.refresh_one(&path, true));
        Ok(stored.object)
    }

    /// Writes an object over the revision that it carries, in the document where it stands.
    ///
    /// # Errors
    /// When that is not its revision, or it is gone, broken or not valid, or the folder cannot be written.
    pub(super) fn update(&mut self, object: &Object) -> Result<Object, DatastoreError> {
        let key = checked_key(object)?;
        let Some(revision) = object.metadata().resource_version.clone() else {
            return Err(DatastoreError::Invalid {
                place: format!("{key}: metadata.resourceVersion"),
                reason: "is missing: an update names the revision it was made from".to_owned(),
            });
        };
        let entry = self.at_revision(&key, &revision)?;
        if entry.stored.object == *object {
            return Ok(entry.stored.object.clone());
        }
        let counter = next_counter(&self.root, self.highest_counter())?;
        let (rendered, stored) = render(&entry.file, object, counter)?;
        let manifest = self.files.get(&entry.file).map(|file| &file.manifest);
        let conflict = || DatastoreError::Conflict { key, revision };
        let Some((old, new)) = manifest.and_then(|m| Some((&m.text, m.replaced(entry.document, &rendered)?)))
        else {
            return Err(conflict());
        };
        if !replace_file(&entry.file, &new, Durability::Synced, || {
            is_still(&entry.file, old)
        })? {
            return Err(conflict());
        }
        report(&self.refresh_one(&entry.file, true));
        Ok(stored.object)
    }

    /// Removes the document of an object, and its file when nothing else is in it.
    ///
    /// # Errors
    /// When the object is not at this revision, or is gone or broken, or the folder cannot be written.
    pub(super) fn delete(&mut self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        let Entry { file, document, .. } = self.at_revision(key, revision)?;
        let conflict = || DatastoreError::Conflict {
            key: key.clone(),
            revision: revision.to_owned(),
        };
        let manifest = self
            .files
            .get(&file)
            .map(|file| &file.manifest)
            .ok_or_else(conflict)?;
        // The counter moves on, so that an object of this name that is made again has a higher one.
        next_counter(&self.root, self.highest_counter())?;
        if let Some(rest) = manifest.without(document) {
            let still = || is_still(&file, &manifest.text);
            if !replace_file(&file, &rest, Durability::Synced, still)? {
                return Err(conflict());
            }
        } else {
            if !is_still(&file, &manifest.text) {
                return Err(conflict());
            }
            fs::remove_file(&file).map_err(io_error("cannot remove", &file))?;
            sync_folder(file.parent().unwrap_or(&self.root))?;
        }
        report(&self.refresh_one(&file, true));
        Ok(())
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
