//! The pods of the agents, and the way to them through the API server (`pods/proxy`): for an operator who reaches no node.

use std::collections::BTreeMap;

use hyper::body::Bytes;
use hyper::header::ACCEPT;
use hyper::{Request, StatusCode};
use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::Access;
use super::call::Encoded;
use super::connection::{Connection, REQUEST_TIMEOUT, in_full, read, unsent};
use crate::datastore::DatastoreError;

/// The labels that the chart gives to the pods of the agents.
const SELECTOR: &str = "app.kubernetes.io/name=culvert,app.kubernetes.io/component=agent";
/// The port of the agents' container that answers.
const PORT_NAME: &str = "metrics";
/// So many pods are asked for at once.
const PAGE: usize = 250;
/// The largest answer of an agent that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// The agents of a cluster, asked by way of its API server.
#[derive(Clone)]
pub struct AgentPods {
    connection: Connection,
    namespace: String,
}

/// The pod of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its name.
    pub name: String,
    /// Where it answers; none where its DaemonSet does not say.
    pub port: Option<u16>,
    /// `Running`, or what it is instead, and why.
    pub state: String,
}

impl AgentPod {
    /// Whether it can be asked.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state == RUNNING
    }
}

const RUNNING: &str = "Running";

/// Of a list of pods (core/v1), what tells where the agents are.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PodList {
    metadata: ListMetadata,
    items: Vec<Pod>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ListMetadata {
    r#continue: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pod {
    metadata: PodMetadata,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodMetadata {
    name: String,
    deletion_timestamp: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: String,
    containers: Vec<Container>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Container {
    ports: Vec<Port>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: String,
    container_port: u16,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: String,
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    state: ContainerState,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<Waiting>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Waiting {
    reason: String,
}

impl Pod {
    fn state(&self) -> String {
        if self.metadata.deletion_timestamp.is_some() {
            return "being deleted".to_owned();
        }
        let status = &self.status;
        let containers = status
            .init_container_statuses
            .iter()
            .chain(&status.container_statuses);
        let waiting = containers
            .filter_map(|container| container.state.waiting.as_ref())
            .find(|waiting| !waiting.reason.is_empty());
        match waiting {
            // A container that crashes again and again waits within a pod that counts as running.
            Some(waiting) => format!("{}: {}", status.phase, waiting.reason),
            None => status.phase.clone(),
        }
    }

    fn into_agent(self) -> AgentPod {
        let ports = self.spec.containers.iter().flat_map(|container| &container.ports);
        let named = ports.clone().find(|port| port.name == PORT_NAME);
        AgentPod {
            port: named.map(|port| port.container_port),
            state: self.state(),
            name: self.metadata.name,
        }
    }
}

impl AgentPods {
    /// The agents whose DaemonSet is in this namespace. The server is not asked for anything yet.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub async fn open(access: &Access, namespace: &str) -> Result<Self, DatastoreError> {
        Ok(Self {
            connection: Connection::open(access).await?,
            namespace: namespace.to_owned(),
        })
    }

    /// The pods of the agents, by node; of several on one node that which runs.
    ///
    /// # Errors
    /// When the server is away, or refuses.
    pub async fn by_node(&self) -> Result<BTreeMap<String, AgentPod>, DatastoreError> {
        let mut found: BTreeMap<String, AgentPod> = BTreeMap::new();
        let mut after = String::new();
        loop {
            let target = format!(
                "/api/v1/namespaces/{}/pods?labelSelector={}&limit={PAGE}&continue={}",
                Encoded(&self.namespace),
                Encoded(SELECTOR),
                Encoded(&after)
            );
            let page: PodList = self.list(&target).await?;
            for pod in page.items {
                let node = pod.spec.node_name.clone();
                let pod = pod.into_agent();
                // While one takes the place of another there are two.
                let is_better = found.get(&node).is_none_or(|known| !known.is_running());
                if !node.is_empty() && is_better {
                    found.insert(node, pod);
                }
            }
            after = page.metadata.r#continue;
            if after.is_empty() {
                return Ok(found);
            }
        }
    }

    async fn list<T: DeserializeOwned>(&self, target: &str) -> Result<T, DatastoreError> {
        let away = |reason: String| DatastoreError::Away {
            operation: format!("list the pods of the agents in the namespace {}", self.namespace),
            server: self.connection.server().to_owned(),
            reason,
        };
        let request = Request::get(target)
            .body(Vec::new())
            .map_err(|error| away(error.to_string()))?;
        let asked = self.connection.client().request::<T>(request);
        match timeout(REQUEST_TIMEOUT, asked).await {
            Ok(Ok(list)) => Ok(list),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(DatastoreError::Refused {
                operation: format!("list pods in the namespace {}", self.namespace),
                server: self.connection.server().to_owned(),
                said: format!("403 {}", status.message),
                remedy: "the chart's roles culvert-operator allow it (operator.subjects)".to_owned(),
            }),
            Ok(Err(error)) => Err(away(unsent(&error))),
            Err(_) => Err(away(format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()))),
        }
    }

    /// The last lines of a pod's log.
    ///
    /// # Errors
    /// When the server cannot be reached, or has no log, in words.
    pub async fn log(&self, pod: &str, lines: usize) -> Result<String, String> {
        let (namespace, pod) = (Encoded(&self.namespace), Encoded(pod));
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log?tailLines={lines}");
        let (code, body) = self.send(path).await?;
        let text = String::from_utf8_lossy(&body).into_owned();
        if code.is_success() {
            Ok(text)
        } else {
            Err(format!("{code}: {}", text.trim()))
        }
    }

    /// What the agent in a pod answers to a GET: status code and body, of the agent or of the server where that did not reach it.
    ///
    /// # Errors
    /// When the server cannot be reached, in words.
    pub async fn get(&self, pod: &str, port: u16, target: &str) -> Result<(StatusCode, Bytes), String> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}:{port}/proxy{target}",
            Encoded(&self.namespace),
            Encoded(pod)
        );
        self.send(path).await
    }

    async fn send(&self, path: String) -> Result<(StatusCode, Bytes), String> {
        let request = Request::get(path)
            .header(ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| in_full(&error))?;
        let answer = self
            .connection
            .client()
            .send(request)
            .await
            .map_err(|error| unsent(&error))?;
        let (head, body) = answer.into_parts();
        let body = read(body, MAX_ANSWER).await.map_err(|broken| broken.0)?;
        Ok((head.status, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_tells_whether_it_runs_and_where_it_answers() {
        for (json, port, state) in [
            (r#"{"metadata":{"name":"a"}}"#, None, ""),
            (
                r#"{"metadata":{"name":"a"},"spec":{"containers":[{"ports":[{"containerPort":1},{"name":"metrics","containerPort":9180}]}]},
                    "status":{"phase":"Running","containerStatuses":[{"state":{"running":{}}}]}}"#,
                Some(9180),
                "Running",
            ),
            (
                r#"{"metadata":{"name":"a"},"status":{"phase":"Running","containerStatuses":[{"state":{"waiting":{"reason":"CrashLoopBackOff"}}}]}}"#,
                None,
                "Running: CrashLoopBackOff",
            ),
            (
                r#"{"metadata":{"name":"a"},"status":{"phase":"Pending","initContainerStatuses":[{"state":{"waiting":{"reason":"ImagePullBackOff"}}}]}}"#,
                None,
                "Pending: ImagePullBackOff",
            ),
            (
                r#"{"metadata":{"name":"a","deletionTimestamp":"2026-11-21T10:00:00Z"},"status":{"phase":"Running"}}"#,
                None,
                "being deleted",
            ),
        ] {
            let pod = serde_json::from_str::<Pod>(json).unwrap().into_agent();
            assert_eq!((pod.port, pod.state.as_str()), (port, state), "{json}");
            assert_eq!(pod.is_running(), state == "Running");
        }
    }
}
