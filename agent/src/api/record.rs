//! An object as it is kept for long, in as few octets as it can be.

use std::sync::Arc;

use serde_json::Value;

use super::{Kind, Object, UnknownFields};

/// An object as the text of its manifest. As a value an object of a large cluster takes several times as much, for the maps
/// and texts that it is made of; and what is kept is looked at only when it is written down. Clones share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record(Arc<str>);

/// A text that is the manifest of no object.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is no JSON, or the object lacks something.
    #[error(transparent)]
    Syntax(#[from] serde_json::Error),
    /// It holds something that this version does not know.
    #[error("holds a {kind} of {api_version}, which is not known here")]
    UnknownKind {
        /// The `kind`.
        kind: String,
        /// The `apiVersion`.
        api_version: String,
    },
}

impl Record {
    /// The record of an object.
    ///
    /// # Errors
    /// When it cannot be written as JSON; no object that was read is so.
    pub fn of(object: &Object) -> Result<Self, serde_json::Error> {
        Ok(Self(serde_json::to_string(object)?.into()))
    }

    /// The manifest, as JSON.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The object.
    ///
    /// # Errors
    /// Those of [`Record::read`], which no record of [`Record::of`] makes.
    pub fn object(&self) -> Result<Object, RecordError> {
        Self::read(&self.0)
    }

    /// The object of a manifest in JSON.
    ///
    /// # Errors
    /// When the text is no manifest of a kind that is known.
    pub fn read(manifest: &str) -> Result<Object, RecordError> {
        let mut manifest: UnknownFields = serde_json::from_str(manifest)?;
        let mut text = |field: &str| match manifest.remove(field) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let Some(kind) = Kind::of_manifest(&api_version, &kind) else {
            return Err(RecordError::UnknownKind { kind, api_version });
        };
        let body = Value::Object(manifest.into_iter().collect());
        Ok(Object::deserialize(kind, body)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_comes_back_as_it_was() {
        let manifest = r#"{"apiVersion":"crd.projectcalico.org/v1","kind":"BlockAffinity","metadata":{"name":"n-10-0-0-0-26"},
            "spec":{"cidr":"10.0.0.0/26","node":"n","state":"confirmed","deleted":"false","later":[9007199254740993]}}"#;
        let object = Record::read(manifest).unwrap();
        let record = Record::of(&object).unwrap();
        assert_eq!(record.object().unwrap(), object);
        assert!(record.text().contains("9007199254740993"), "{record:?}");
    }

    #[test]
    fn a_kind_that_is_not_known_is_named() {
        let error = Record::read(r#"{"apiVersion":"v2","kind":"Node"}"#).unwrap_err();
        assert_eq!(error.to_string(), "holds a Node of v2, which is not known here");
    }
}
