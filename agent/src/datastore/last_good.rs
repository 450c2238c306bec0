//! The last good state of the datastore, on disk, for a start while the datastore is away.
//!
//! One file: a line that says whose it is and what the rest must hash to, and the objects that forwarding needs, as JSON.
//! It is written whole beside the old one, synced, and renamed. It holds no secrets: of a Node only the addresses, the
//! labels, and the annotations of the network are kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use tracing::warn;

use crate::api::{ExternalTrafficPolicy, Key, Node, Object, Record, RecordError, annotation};

/// What the first line begins with, so that nobody takes another file for this one.
const FORMAT: &str = "culvert-last-good";

/// The version of the format.
const VERSION: u32 = 1;

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 256 << 20;

/// The file of one node's agent.
#[derive(Clone, Debug)]
pub struct LastGood {
    path: PathBuf,
    node: String,
    datastore: String,
}

/// What the file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct LastGoodCopy {
    /// When it was written.
    pub saved: Timestamp,
    /// The objects.
    pub records: BTreeMap<Key, Record>,
}

impl LastGoodCopy {
    /// The objects, one at a time.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        // Each was read when the copy was.
        self.records.values().filter_map(|record| record.object().ok())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    node: String,
    datastore: String,
    saved: Timestamp,
    sha256: String,
}

/// Why the file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LastGoodError {
    /// It cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// It is longer than any that was written.
    #[error("has {size} bytes, more than {MAX_SIZE}")]
    TooLong {
        /// Its size in bytes.
        size: u64,
    },
    /// It is no such file, or a part of it is missing.
    #[error("is not readable as format {FORMAT} version {VERSION}: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It is of another format or version.
    #[error("is of format {format} version {version}, not {FORMAT} version {VERSION}")]
    Version {
        /// The format that it names.
        format: String,
        /// The version that it names.
        version: u32,
    },
    /// It is of another node, or of another datastore.
    #[error("is the copy of {theirs}, not of {ours}")]
    Foreign {
        /// Whose it is.
        theirs: String,
        /// Whose it should be.
        ours: String,
    },
    /// Its content is not what was written.
    #[error("is damaged: its objects hash to {found}, not to {expected}")]
    Damaged {
        /// What the objects hash to.
        found: String,
        /// What they should hash to.
        expected: String,
    },
    /// It holds something that is no object.
    #[error(transparent)]
    Object(#[from] RecordError),
}

impl LastGood {
    /// The file in `directory` for the agent of `node` that reads `datastore` (in words: another one's copy is not used).
    #[must_use]
    pub fn new(directory: &Path, node: &str, datastore: &str) -> Self {
        Self {
            path: directory.join(format!("{node}.last-good")),
            node: node.to_owned(),
            datastore: datastore.to_owned(),
        }
    }

    /// The copy, where there is a good one with something in it. Any other is named in a warning.
    #[must_use]
    pub fn read(&self) -> Option<LastGoodCopy> {
        match self.try_read() {
            Ok(copy) => Some(copy).filter(|copy| !copy.records.is_empty()),
            Err(LastGoodError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(file = %self.path.display(), %error, "the last good copy of the datastore is not used");
                None
            }
        }
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> LastGoodError + use<> {
        let path = self.path.clone();
        move |source| LastGoodError::Io {
            operation,
            path,
            source,
        }
    }

    fn try_read(&self) -> Result<LastGoodCopy, LastGoodError> {
        let size = fs::metadata(&self.path)
            .map_err(self.failed("cannot look at"))?
            .len();
        if size > MAX_SIZE {
            return Err(LastGoodError::TooLong { size });
        }
        let text = fs::read(&self.path).map_err(self.failed("cannot read"))?;
        self.parse(&text)
    }

    fn parse(&self, text: &[u8]) -> Result<LastGoodCopy, LastGoodError> {
        let mut lines = text.splitn(2, |byte| *byte == b'\n');
        let (head, body) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let header: Header = serde_json::from_slice(head)?;
        if header.format != FORMAT || header.version != VERSION {
            return Err(LastGoodError::Version {
                format: header.format,
                version: header.version,
            });
        }
        let whose = |node: &str, datastore: &str| format!("node {node} and {datastore}");
        let theirs = whose(&header.node, &header.datastore);
        let ours = whose(&self.node, &self.datastore);
        if theirs != ours {
            return Err(LastGoodError::Foreign { theirs, ours });
        }
        let found = sha256(body);
        if found != header.sha256 {
            return Err(LastGoodError::Damaged {
                found,
                expected: header.sha256,
            });
        }
        // One after the other: as values all of them would take many times what they do as text.
        let manifests: Vec<&RawValue> = serde_json::from_slice(body)?;
        let mut records = BTreeMap::new();
        for manifest in manifests {
            let object = Record::read(manifest.get())?;
            records.insert(object.key(), Record::of(&object)?);
        }
        Ok(LastGoodCopy {
            saved: header.saved,
            records,
        })
    }

    /// Writes `records` in the place of the former copy; the file is the old or the new one, whole, at any moment.
    ///
    /// # Errors
    /// When the folder cannot be made or written.
    pub fn write(&self, records: &[Record], now: Timestamp) -> Result<(), LastGoodError> {
        let separators = std::iter::once("[").chain(std::iter::repeat(","));
        let parts = records.iter().zip(separators);
        let parts = parts.flat_map(|(record, separator)| [separator, record.text()]);
        let parts = parts.chain([if records.is_empty() { "[]" } else { "]" }]);
        let mut digest = Sha256::new();
        parts.clone().for_each(|part| digest.update(part));
        let header = serde_json::to_vec(&Header {
            format: FORMAT.to_owned(),
            version: VERSION,
            node: self.node.clone(),
            datastore: self.datastore.clone(),
            saved: now,
            sha256: hexadecimal(&digest.finalize()),
        })?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(self.failed("cannot make the folder of"))?;
        let mut unfinished = tempfile::Builder::new()
            .prefix(".last-good-")
            .tempfile_in(folder)
            .map_err(self.failed("cannot make a file beside"))?;
        let mut file = io::BufWriter::new(unfinished.as_file_mut());
        let parts = parts.map(str::as_bytes);
        for part in [header.as_slice(), b"\n"].into_iter().chain(parts) {
            file.write_all(part).map_err(self.failed("cannot write"))?;
        }
        file.flush().map_err(self.failed("cannot write"))?;
        drop(file);
        unfinished
            .as_file()
            .sync_all()
            .map_err(self.failed("cannot sync"))?;
        unfinished
            .persist(&self.path)
            .map_err(|error| self.failed("cannot replace")(error.error))?;
        let folder = File::open(folder).and_then(|folder| folder.sync_all());
        folder.map_err(self.failed("cannot sync the folder of"))
    }
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What of an object is needed to forward for `node`, and so is kept: none of it for objects of no use there.
#[must_use]
pub fn kept(object: &Object, node: &str) -> Option<Object> {
    let mut kept = match object {
        Object::Node(full) => {
            let mut short = Node::named(full.metadata.name.as_str());
            short.metadata.labels.clone_from(&full.metadata.labels);
            short.metadata.annotations.clone_from(&full.metadata.annotations);
            short.status.addresses.clone_from(&full.status.addresses);
            Object::Node(short)
        }
        // Those of the node, and those in which it has an address.
        Object::IpamBlock(block)
            if !block.spec.is_of_node(node)
                && !block
                    .spec
                    .taken()
                    .any(|taken| taken.attribute.value("node") == Some(node)) =>
        {
            return None;
        }
        // What is advertised for a service, beside the ranges of the BGPConfiguration, is for its endpoints here alone.
        Object::Service(full) if full.spec.external_traffic_policy == Some(ExternalTrafficPolicy::Local) => {
            let mut short = full.clone();
            short.unknown.clear();
            short.spec.unknown.clear();
            Object::Service(short)
        }
        Object::EndpointSlice(full) => {
            let mut short = full.clone();
            short.unknown.clear();
            short
                .endpoints
                .retain(|endpoint| endpoint.node_name.as_deref() == Some(node));
            if short.endpoints.is_empty() {
                return None;
            }
            Object::EndpointSlice(short)
        }
        Object::IpPool(_)
        | Object::BgpConfiguration(_)
        | Object::BgpPeer(_)
        | Object::BgpFilter(_)
        | Object::BlockAffinity(_)
        | Object::IpamBlock(_) => object.clone(),
        // A password is written nowhere: a session that needs one waits for the datastore.
        Object::Service(_)
        | Object::Secret(_)
        | Object::IpReservation(_)
        | Object::IpamHandle(_)
        | Object::IpamConfig(_)
        | Object::Pod(_)
        | Object::Namespace(_)
        | Object::Lease(_) => {
            return None;
        }
    };
    let metadata = kept.metadata_mut();
    // Revisions and times change without a meaning here, and would be written each time.
    metadata.resource_version = None;
    metadata.unknown.clear();
    metadata
        .annotations
        .retain(|name, _| name.starts_with(annotation::PREFIX));
    Some(kept)
}

#[cfg(test)]
mod tests;
