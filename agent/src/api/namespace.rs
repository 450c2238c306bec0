//! core/v1 Namespace: by whose labels pools are chosen.

use serde::{Deserialize, Serialize};

use super::{Metadata, UnknownFields};

/// A namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Namespace {
    /// Name, labels, annotations.
    pub metadata: Metadata,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}
