//! coordination.k8s.io/v1 Lease: who of several does what only one may do.

use serde::{Deserialize, Serialize};

use super::{Custom, UnknownFields};

/// A right that one holds at a time.
pub type Lease = Custom<LeaseSpec>;

/// What a Lease says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseSpec {
    /// Who holds it; nobody when absent or empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder_identity: Option<String>,
    /// Seconds after a renewal for which it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_duration_seconds: Option<u32>,
    /// When the holder got it, RFC 3339 with microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquire_time: Option<String>,
    /// When the holder renewed it last, RFC 3339 with microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<String>,
    /// How often it has gone from one holder to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_transitions: Option<u32>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl LeaseSpec {
    /// Who holds it, if anybody.
    #[must_use]
    pub fn holder(&self) -> Option<&str> {
        self.holder_identity
            .as_deref()
            .filter(|holder| !holder.is_empty())
    }
}
