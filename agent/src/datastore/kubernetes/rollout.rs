//! How far the pods of a DaemonSet have come.

use std::fmt;

use hyper::Request;
use serde::Deserialize;
use tokio::time::timeout;

use super::Access;
use super::connection::{Connection, REQUEST_TIMEOUT, unsent};
use crate::datastore::DatastoreError;

/// A DaemonSet whose pods somebody waits for.
pub struct Rollout {
    connection: Connection,
    namespace: String,
    name: String,
}

/// How far they have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many nodes should have one.
    desired: u64,
    /// How many have one that is ready, of the present template.
    ready: u64,
    /// What is told is of the present DaemonSet, and not of the time before its last change.
    is_current: bool,
}

impl Progress {
    /// Whether there is nothing left to wait for.
    #[must_use]
    pub fn is_complete(self) -> bool {
        self.is_current && self.ready >= self.desired
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_current {
            write!(f, "{} of {} nodes", self.ready, self.desired)
        } else {
            f.write_str("its controller has not seen it yet")
        }
    }
}

/// Of a DaemonSet (apps/v1), what tells how far it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DaemonSet {
    metadata: Metadata,
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    generation: u64,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    observed_generation: u64,
    desired_number_scheduled: u64,
    updated_number_scheduled: u64,
    number_ready: u64,
}

impl From<DaemonSet> for Progress {
    fn from(set: DaemonSet) -> Self {
        Self {
            desired: set.status.desired_number_scheduled,
            ready: set.status.number_ready.min(set.status.updated_number_scheduled),
            is_current: set.status.observed_generation >= set.metadata.generation
                && set.status.observed_generation > 0,
        }
    }
}

impl Rollout {
    /// The server is not asked for anything yet.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub async fn open(access: &Access, namespace: &str, name: &str) -> Result<Self, DatastoreError> {
        Ok(Self {
            connection: Connection::open(access).await?,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    /// How far the pods are now.
    ///
    /// # Errors
    /// When the server is away, refuses, or knows no such DaemonSet.
    pub async fn progress(&self) -> Result<Progress, DatastoreError> {
        let (namespace, name) = (&self.namespace, &self.name);
        let away = |reason: String| DatastoreError::Away {
            operation: format!("get the DaemonSet {namespace}/{name}"),
            server: self.connection.server().to_owned(),
            reason,
        };
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let request = Request::get(path)
            .body(Vec::new())
            .map_err(|error| away(error.to_string()))?;
        let asked = self.connection.client().request::<DaemonSet>(request);
        match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(answer) => answer.map(Progress::from).map_err(|error| away(unsent(&error))),
            Err(_) => Err(away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_complete_when_its_present_pods_are_ready_on_every_node() {
        for (json, complete, words) in [
            ("{}", false, "its controller has not seen it yet"),
            (
                r#"{"metadata":{"generation":2},"status":{"observedGeneration":1,"desiredNumberScheduled":2,"numberReady":2,"updatedNumberScheduled":2}}"#,
                false,
                "its controller has not seen it yet",
            ),
            (
                r#"{"metadata":{"generation":2},"status":{"observedGeneration":2,"desiredNumberScheduled":2,"numberReady":2,"updatedNumberScheduled":1}}"#,
                false,
                "1 of 2 nodes",
            ),
            (
                r#"{"metadata":{"generation":2},"status":{"observedGeneration":2,"desiredNumberScheduled":2,"numberReady":2,"updatedNumberScheduled":2}}"#,
                true,
                "2 of 2 nodes",
            ),
            (
                r#"{"metadata":{"generation":1},"status":{"observedGeneration":1,"desiredNumberScheduled":0}}"#,
                true,
                "0 of 0 nodes",
            ),
        ] {
            let progress = Progress::from(serde_json::from_str::<DaemonSet>(json).unwrap());
            assert_eq!(
                (progress.is_complete(), &*progress.to_string()),
                (complete, words),
                "{json}"
            );
        }
    }
}
