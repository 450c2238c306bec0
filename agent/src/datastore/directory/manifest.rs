//! The text of one file, as documents: which objects it holds, where each stands, and what is wrong with the others.
//!
//! A file is cut into documents before YAML is parsed. YAML allows `---` at the start of a line nowhere but between
//! documents, so the cut is exact; a broken document then does not hide its neighbours, and a rewrite of one leaves
//! the bytes of the others (and their comments) alone.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::api::{Key, Kind, Object};
use crate::datastore::DatastoreError;

/// Counters above this are no counters of ours: nobody makes so many writes, and there must be room to count on.
pub(super) const COUNTER_MAX: u64 = 1 << 62;

/// What is wrong in a file, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// The file.
    pub file: PathBuf,
    /// Line and column, from 1, where they are known.
    pub position: Option<(usize, usize)>,
    /// The path of the field, where the document could be read as far.
    pub field: Option<String>,
    /// What is wrong, and what is allowed.
    pub reason: String,
}

impl Fault {
    pub(super) fn of_file(file: &Path, reason: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            position: None,
            field: None,
            reason: reason.into(),
        }
    }

    /// File, line, column and field, as far as they are known.
    #[must_use]
    pub fn place(&self) -> String {
        let mut place = self.file.display().to_string();
        if let Some((line, column)) = self.position {
            place.push_str(&format!(":{line}:{column}"));
        }
        if let Some(field) = &self.field {
            place.push_str(": ");
            place.push_str(field);
        }
        place
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.reason)
    }
}

impl From<Fault> for DatastoreError {
    fn from(fault: Fault) -> Self {
        Self::Invalid {
            place: fault.place(),
            reason: fault.reason,
        }
    }
}

/// An object as it stands in a file.
#[derive(Debug)]
pub(super) struct Stored {
    /// The object; its `resourceVersion` is the derived revision, not the counter in the file.
    pub(super) object: Object,
    /// The counter in the file's `resourceVersion`; 0 where there is none.
    pub(super) counter: u64,
}

impl Stored {
    /// The revision that a compare-and-swap has to name.
    pub(super) fn revision(&self) -> &str {
        self.object
            .metadata()
            .resource_version
            .as_deref()
            .unwrap_or_default()
    }
}

/// What a document holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Blank lines and comments.
    Nothing,
    /// Something that is not ours.
    Foreign,
    /// One of our objects.
    Object(Arc<Stored>),
    /// What should be one of our objects and is not; `key` where kind and name can be read all the same.
    Broken {
        /// Which object it should be.
        key: Option<Key>,
        /// What is wrong.
        fault: Fault,
    },
}

/// One document of a file.
#[derive(Clone, Debug)]
pub(super) struct Document {
    /// Its bytes in the file, with the `---` before it.
    range: Range<usize>,
    /// What it holds.
    pub(super) content: Content,
}

/// A file, read.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    /// The file's text.
    pub(super) text: String,
    /// Its documents, in order.
    pub(super) documents: Vec<Document>,
}

impl Manifest {
    /// Reads a text. `known` says that the file held objects before: then nothing, or something without a kind, is
    /// not taken for their deletion but for a file that somebody is still writing.
    pub(super) fn parse(file: &Path, text: String, known: bool) -> Self {
        let documents: Vec<_> = cut(&text)
            .into_iter()
            .map(|(range, line)| {
                let content = Reader { file, line, known }.read(&text[range.clone()]);
                Document { range, content }
            })
            .collect();
        let manifest = Self { text, documents };
        if known && manifest.holds_nothing() {
            return Self::broken(
                manifest.text,
                Fault::of_file(file, "is empty: to delete what was in it, delete the file"),
            );
        }
        manifest
    }

    /// A file with nothing in it yet.
    pub(super) fn empty() -> Self {
        Self {
            text: String::new(),
            documents: Vec::new(),
        }
    }

    /// Adds a rendered document at the end, which a reader sees as `stored`.
    pub(super) fn push(&mut self, rendered: &str, stored: Stored) {
        let start = self.text.len();
        if start > 0 {
            self.text.push_str("---\n");
        }
        self.text.push_str(rendered);
        self.documents.push(Document {
            range: start..self.text.len(),
            content: Content::Object(Arc::new(stored)),
        });
    }

    /// Which document is the object `key`: of several, the first.
    pub(super) fn document_of(&self, key: &Key) -> Option<usize> {
        let is_it =
            |d: &Document| matches!(&d.content, Content::Object(stored) if stored.object.key() == *key);
        self.documents.iter().position(is_it)
    }

    /// A file that cannot be read at all.
    pub(super) fn broken(text: String, fault: Fault) -> Self {
        let content = Content::Broken { key: None, fault };
        let documents = vec![Document {
            range: 0..text.len(),
            content,
        }];
        Self { text, documents }
    }

    /// What keeps the object `key`, which was here before, from being read now.
    pub(super) fn fault_over(&self, key: &Key) -> Option<&Fault> {
        let broken = |exactly: bool| {
            self.documents.iter().find_map(move |d| match &d.content {
                Content::Broken { key: Some(k), fault } if exactly && k == key => Some(fault),
                Content::Broken { key: None, fault } if !exactly => Some(fault),
                _ => None,
            })
        };
        broken(true).or_else(|| broken(false))
    }

    /// What is wrong with the first document.
    pub(super) fn first_fault(&self) -> Option<&Fault> {
        match self.documents.first().map(|d| &d.content) {
            Some(Content::Broken { fault, .. }) => Some(fault),
            _ => None,
        }
    }

    /// The file with a rendered document, which a reader sees as `stored`, in place of one; the comments before its first field
    /// stay.
    pub(super) fn replaced(
        &self,
        file: &Path,
        document: usize,
        rendered: &str,
        stored: Stored,
    ) -> Option<Self> {
        let old = self.text.get(self.documents.get(document)?.range.clone())?;
        let new = format!("{}{rendered}", &old[..head_of(old)]);
        self.spliced(file, document, &new, Some(Content::Object(Arc::new(stored))))
    }

    /// The file without one document; nothing is left in it that would need a file when it [holds nothing](Self::holds_nothing).
    pub(super) fn without(&self, file: &Path, document: usize) -> Option<Self> {
        self.spliced(file, document, "", None)
    }

    /// Whether there are only blank lines and comments.
    pub(super) fn holds_nothing(&self) -> bool {
        self.documents
            .iter()
            .all(|d| matches!(d.content, Content::Nothing))
    }

    /// The file with other bytes in place of one document's, and what those are, unless they are none.
    fn spliced(&self, file: &Path, document: usize, new: &str, content: Option<Content>) -> Option<Self> {
        let Range { start, end } = self.documents.get(document)?.range;
        let text = format!("{}{new}{}", self.text.get(..start)?, self.text.get(end..)?);
        let (before, rest) = self.documents.split_at_checked(document)?;
        let (_, after) = rest.split_first()?;
        if after.iter().any(|d| matches!(d.content, Content::Broken { .. })) {
            // What is wrong with them stands in other lines now.
            return Some(Self::parse(file, text, true));
        }
        let mut documents = before.to_vec();
        documents.extend(content.map(|content| Document {
            range: start..start + new.len(),
            content,
        }));
        documents.extend(after.iter().map(|d| Document {
            range: d.range.start - end + start + new.len()..d.range.end - end + start + new.len(),
            content: d.content.clone(),
        }));
        Some(Self { text, documents })
    }
}

/// Whether a line stands between two documents.
fn is_separator(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Whether a line says nothing: blank, a comment, a directive, or the bare mark of a document's start or end.
fn is_silent(line: &str) -> bool {
    let mark = ["---", "..."].iter().find_map(|m| line.strip_prefix(m));
    let rest = mark.unwrap_or(line).trim_start_matches('\u{feff}').trim();
    rest.is_empty() || rest.starts_with('#') || line.starts_with('%')
}

/// The ranges of the documents of a text, and the line (from 0) at which each starts.
fn cut(text: &str) -> Vec<(Range<usize>, usize)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if is_separator(line) && offset > start {
            documents.push((start..offset, start_line));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    if offset > start {
        documents.push((start..offset, start_line));
    }
    documents
}

/// How many bytes of a document come before its first field.
fn head_of(document: &str) -> usize {
    let lines = document.split_inclusive('\n');
    lines
        .take_while(|line| is_silent(line) && line.ends_with('\n'))
        .map(str::len)
        .sum()
}

/// Reads one document of a file.
struct Reader<'a> {
    file: &'a Path,
    /// Lines of the file before the document.
    line: usize,
    known: bool,
}

impl Reader<'_> {
    fn read(&self, text: &str) -> Content {
        if text.lines().all(is_silent) {
            return Content::Nothing;
        }
        let raw = match self.read_value(text) {
            Ok(raw) => raw,
            Err(fault) => return Content::Broken { key: None, fault },
        };
        let kind = match self.kind_of(&raw) {
            Ok(Some(kind)) => kind,
            Ok(None) => return Content::Foreign,
            Err(fault) => return Content::Broken { key: None, fault },
        };
        let metadata = |field| raw.pointer(field).and_then(Value::as_str);
        let name = metadata("/metadata/name");
        match self.read_object(kind, &raw, text) {
            Ok(stored) => Content::Object(Arc::new(stored)),
            Err(fault) => Content::Broken {
                key: name.map(|name| Key::namespaced(kind, metadata("/metadata/namespace"), name)),
                fault,
            },
        }
    }

    fn fault(
        &self,
        position: Option<(usize, usize)>,
        field: Option<String>,
        reason: impl Into<String>,
    ) -> Fault {
        Fault {
            file: self.file.to_owned(),
            position: position.map(|(line, column)| (line + self.line, column)),
            field: field.filter(|f| !f.is_empty() && f != "."),
            reason: reason.into(),
        }
    }

    fn read_value(&self, text: &str) -> Result<Value, Fault> {
        let of_yaml = |error: &serde_yaml::Error| self.fault(position_of(error), None, error.to_string());
        let mut yaml: serde_yaml::Value = serde_yaml::from_str(text).map_err(|e| of_yaml(&e))?;
        yaml.apply_merge().map_err(|e| of_yaml(&e))?;
        json_of(yaml).map_err(|Unjson { path, reason }| self.fault(None, Some(path.join(".")), reason))
    }

    /// The kind of a document, or `None` when it is none of ours.
    fn kind_of(&self, raw: &Value) -> Result<Option<Kind>, Fault> {
        let text_of = |field| raw.get(field).and_then(Value::as_str);
        let (Some(api_version), Some(name)) = (text_of("apiVersion"), text_of("kind")) else {
            if self.known {
                return Err(self.fault(
                    None,
                    None,
                    "has no apiVersion and kind: is it still being written?",
                ));
            }
            return Ok(None);
        };
        if let Some(kind) = Kind::of_manifest(api_version, name) {
            return Ok(Some(kind));
        }
        // What is one of ours but for its spelling would otherwise be overlooked in silence.
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let like = Kind::ALL
            .into_iter()
            .find(|k| k.as_str().eq_ignore_ascii_case(name));
        match like.filter(|_| group.is_empty() || group.ends_with("projectcalico.org")) {
            Some(kind) => {
                let (version, kind) = (kind.api_version(), kind.as_str());
                let reason = format!(
                    "kind {name} of {api_version} is not read: write kind {kind}, apiVersion {version}"
                );
                Err(self.fault(None, Some("apiVersion, kind".to_owned()), reason))
            }
            None => Ok(None),
        }
    }

    fn read_object(&self, kind: Kind, raw: &Value, text: &str) -> Result<Stored, Fault> {
        let (counter, revision) = revision_of(raw);
        let mut body = raw.clone();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("apiVersion");
            fields.remove("kind");
        }
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(body, &mut track);
        let mut object = Object::deserialize(kind, tracked).map_err(|error| {
            let path = track.path();
            let position = serde_yaml::Deserializer::from_str(text);
            let position = Object::deserialize(kind, position).err();
            // YAML takes a bare number for a text where one is wanted, and then has no error to show the place of.
            let position = position.and_then(|e| position_of(&e)).or_else(|| {
                let keys = path.iter().map(|segment| match segment {
                    serde_path_to_error::Segment::Map { key } => Some(key.as_str()),
                    _ => None,
                });
                position_of_field(text, keys.collect::<Option<Vec<_>>>()?)
            });
            let reason = explain(raw, &path, &error.to_string());
            self.fault(position, Some(path.to_string()), reason)
        })?;
        object.validate().map_err(|error| {
            let reason = format!("is {}: {}", error.value, error.allowed);
            // Of a field in a list, the place of the list is told.
            let list = error.field.split('[').next().unwrap_or_default();
            let position = position_of_field(text, list.split('.'));
            self.fault(position, Some(error.field.into_owned()), reason)
        })?;
        object.metadata_mut().resource_version = Some(revision);
        Ok(Stored { object, counter })
    }
}

fn position_of(error: &serde_yaml::Error) -> Option<(usize, usize)> {
    error.location().map(|at| (at.line(), at.column()))
}

/// Line and column (from 1) of a field in the block style of YAML; `None` where it is written otherwise.
fn position_of_field<'a>(text: &str, path: impl IntoIterator<Item = &'a str>) -> Option<(usize, usize)> {
    let mut path = path.into_iter();
    let mut key = path.next()?;
    // The columns of the field that holds the one sought, and of the fields beside that.
    let (mut holder, mut beside) = (None, None);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !is_silent(line)) {
        let field = line.trim_start_matches(' ');
        let column = line.len() - field.len() + 1;
        if holder.is_some_and(|holder| column <= holder) {
            return None;
        }
        let field = field
            .strip_prefix(key)
            .or_else(|| field.strip_prefix(&format!("\"{key}\"")));
        let is_it =
            *beside.get_or_insert(column) == column && field.is_some_and(|rest| rest.starts_with(':'));
        if is_it {
            let Some(next) = path.next() else {
                return Some((number + 1, column));
            };
            key = next;
            (holder, beside) = (Some(column), None);
        }
    }
    None
}

/// An error of a deserializer with the value it is about, and what helps where the error itself does not say it.
fn explain(raw: &Value, path: &serde_path_to_error::Path, error: &str) -> String {
    let value = value_at(raw, path).filter(|v| !v.is_object() && !v.is_array());
    let mut reason = match value {
        Some(value) if !error.contains(value.to_string().trim_matches('"')) => format!("is {value}: {error}"),
        _ => error.to_owned(),
    };
    if path.to_string().ends_with("cidr") && value.is_some_and(Value::is_string) {
        reason.push_str("; allowed is a range such as 10.65.0.0/16");
    } else if error.ends_with("expected a string") && value.is_some() {
        reason.push_str("; put the value in quotes");
    }
    reason
}

fn value_at<'a>(raw: &'a Value, path: &serde_path_to_error::Path) -> Option<&'a Value> {
    use serde_path_to_error::Segment;
    path.iter().try_fold(raw, |value, segment| match segment {
        Segment::Seq { index } => value.get(*index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    })
}

/// The counter in a document, and the revision that is derived from it: counter and content.
///
/// The hash covers all that the document says, so that a change by hand, which leaves the counter, is another revision.
fn revision_of(raw: &Value) -> (u64, String) {
    let version = raw
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let digits = version.len() - version.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let counter = version[..digits]
        .parse()
        .ok()
        .filter(|n| *n <= COUNTER_MAX)
        .unwrap_or(0);
    // The fields of a JSON value are sorted: layout, order and comments of the file make no difference.
    let hash = Sha256::digest(raw.to_string());
    let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    (counter, format!("{counter}-{hash}"))
}

/// An object as the text of a document, with `counter` as its `resourceVersion`, and what a reader will see in it.
///
/// # Errors
/// When the object is not valid, or holds what would not come back from YAML as it is.
pub(super) fn render(file: &Path, object: &Object, counter: u64) -> Result<(String, Stored), DatastoreError> {
    let invalid = |reason: String| DatastoreError::Invalid {
        place: object.key().to_string(),
        reason,
    };
    object.validate().map_err(|e| invalid(e.to_string()))?;
    let mut written = object.clone();
    written.metadata_mut().resource_version = Some(counter.to_string());
    let text =
        serde_yaml::to_string(&written).map_err(|e| invalid(format!("cannot be written as YAML: {e}")))?;
    let reader = Reader {
        file,
        line: 0,
        known: false,
    };
    let content = reader.read(&text);
    let stored = match content {
        Content::Object(stored) => Arc::into_inner(stored),
        Content::Broken { fault, .. } => {
            return Err(invalid(format!("would not be read back: {}", fault.reason)));
        }
        Content::Nothing | Content::Foreign => None,
    };
    let stored = stored.ok_or_else(|| invalid("would not be read back as an object".to_owned()))?;
    written
        .metadata_mut()
        .resource_version
        .clone_from(&stored.object.metadata().resource_version);
    if stored.object != written {
        return Err(invalid(
            "would read back as something else: a value has no form in YAML".to_owned(),
        ));
    }
    Ok((text, stored))
}

/// A YAML value that has no form in JSON, which is what the API knows.
struct Unjson {
    path: Vec<String>,
    reason: &'static str,
}

fn json_of(yaml: serde_yaml::Value) -> Result<Value, Unjson> {
    use serde_yaml::Value as Yaml;
    let refuse = |reason| Unjson {
        path: Vec::new(),
        reason,
    };
    let within = |step: &str, mut e: Unjson| {
        e.path.insert(0, step.to_owned());
        e
    };
    match yaml {
        Yaml::Null => Ok(Value::Null),
        Yaml::Bool(b) => Ok(Value::Bool(b)),
        Yaml::String(s) => Ok(Value::String(s)),
        Yaml::Number(n) => {
            let whole = n
                .as_u64()
                .map(Value::from)
                .or_else(|| n.as_i64().map(Value::from));
            let any = whole.or_else(|| {
                n.as_f64()
                    .and_then(serde_json::Number::from_f64)
                    .map(Value::Number)
            });
            any.ok_or_else(|| refuse("is no finite number"))
        }
        Yaml::Sequence(items) => {
            let items = items.into_iter().enumerate();
            let items = items.map(|(i, item)| json_of(item).map_err(|e| within(&i.to_string(), e)));
            items.collect::<Result<_, _>>().map(Value::Array)
        }
        Yaml::Mapping(fields) => {
            let mut object = serde_json::Map::new();
            for (key, value) in fields {
                let key = match key {
                    Yaml::String(s) => s,
                    Yaml::Number(n) => n.to_string(),
                    Yaml::Bool(b) => b.to_string(),
                    _ => return Err(refuse("has a key that is no text")),
                };
                let value = json_of(value).map_err(|e| within(&key, e))?;
                if object.insert(key.clone(), value).is_some() {
                    return Err(within(&key, refuse("is there twice")));
                }
            }
            Ok(Value::Object(object))
        }
        Yaml::Tagged(_) => Err(refuse("has a YAML tag (`!…`), which is not allowed")),
    }
}
