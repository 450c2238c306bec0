//! What every object carries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Key, Kind, UnknownFields};

/// Kubernetes' object metadata, as far as the agent uses it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique within the kind, and the namespace where there is one.
    pub name: String,
    /// The namespace, for a kind that lives in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The revision this was read at; a write names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
    /// Labels.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// `uid`, `creationTimestamp` and anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Metadata {
    /// The metadata of a new object.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// The key of an object of this kind with this metadata.
    #[must_use]
    pub fn key(&self, kind: Kind) -> Key {
        Key::namespaced(kind, self.namespace.as_deref(), self.name.clone())
    }
}
