//! The way to the API server: who it is, how we prove who we are, and what its refusals mean.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::call::{Call, Verb};
use crate::api::{DEFAULT_NAMESPACE, Kind};
use crate::datastore::DatastoreError;

/// How long one request may take, from its first byte to the last of the answer. A list is one request a page.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes: a page of the largest objects that etcd takes (1.5 MiB each) is less.
const MAX_ANSWER: usize = 256 << 20;
/// The largest explanation of a refusal that is read, in bytes.
const MAX_REFUSAL: usize = 64 << 10;
/// Where a pod finds its token.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// The ClusterRole of the chart.
const CLUSTER_ROLE: &str = "culvert";

/// How the API server is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// By the service account of the pod that this runs in.
    InCluster,
    /// By a kubeconfig file and its current context.
    Kubeconfig(PathBuf),
    /// As kubectl finds it: by the files that `KUBECONFIG` names, or `~/.kube/config`; and else as in a pod.
    AsKubectl,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InCluster => f.write_str("the service account of the pod"),
            Self::Kubeconfig(path) => write!(f, "kubeconfig {}", path.display()),
            Self::AsKubectl => f.write_str("KUBECONFIG or ~/.kube/config"),
        }
    }
}

/// A connection to one API server; clones are the same.
#[derive(Clone)]
pub(super) struct Connection {
    client: Client,
    server: String,
    /// In words, where what proves our identity comes from.
    credentials: String,
}

/// What came of a request that the server refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The revision to go on from is no longer known (410).
    Gone,
    /// The server does not know the resource at all: nobody has installed its CRD.
    Unknown(DatastoreError),
    /// Anything else.
    Error(DatastoreError),
}

impl From<DatastoreError> for Refusal {
    fn from(error: DatastoreError) -> Self {
        Self::Error(error)
    }
}

/// What the server says of a refusal (meta/v1 Status).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StatusDetails {
    name: String,
    kind: String,
}

impl Status {
    /// Whether it is about the very object of a request.
    fn is_of_object(&self, call: &Call) -> bool {
        let details = self.details.as_ref();
        details.is_some_and(|details| call.name.as_ref() == Some(&details.name))
    }

    /// Whether it is about the namespace that a write went into, and that is not there.
    fn is_of_namespace(&self, call: &Call) -> bool {
        let details = self.details.as_ref();
        call.namespace.is_some() && details.is_some_and(|details| details.kind == "namespaces")
    }
}

impl Connection {
    /// Reads the credentials. The server is not asked for anything yet.
    ///
    /// # Errors
    /// When they are missing or make no sense.
    pub(super) async fn open(access: &Access) -> Result<Self, DatastoreError> {
        let unusable = |error: &dyn std::error::Error, remedy: &str| DatastoreError::Credentials {
            place: access.to_string(),
            reason: in_full(error),
            remedy: remedy.to_owned(),
        };
        let (mut config, credentials) = match access {
            Access::InCluster => {
                let remedy = "outside of a pod, set datastore.kubernetes.kubeconfig to a kubeconfig file";
                let config = Config::incluster().map_err(|error| unusable(&error, remedy))?;
                (config, format!("the token in {SERVICE_ACCOUNT_TOKEN}"))
            }
            Access::Kubeconfig(path) => {
                let remedy = "mend the file, or set datastore.kubernetes.kubeconfig to another";
                let file = Kubeconfig::read_from(path).map_err(|error| unusable(&error, remedy))?;
                let credentials = credentials_of(&file, path);
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                (config.map_err(|error| unusable(&error, remedy))?, credentials)
            }
            Access::AsKubectl => {
                let remedy = "name a kubeconfig with --kubeconfig, or with --config an agent's configuration";
                let config = Config::infer().await.map_err(|error| unusable(&error, remedy))?;
                (config, "what the kubeconfig says of the user".to_owned())
            }
        };
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // What is to be tried again is decided here, and not below: a write must not be made twice.
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let remedy = "check the certificates and keys that it names";
        let client = Client::try_from(config).map_err(|error| unusable(&error, remedy))?;
        Ok(Self {
            client,
            server,
            credentials,
        })
    }

    /// The client itself, for what is no kind of the datastore's.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The server's URL.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// A request, and the whole answer to it.
    pub(super) async fn ask(&self, call: &Call) -> Result<Bytes, Refusal> {
        let deadline = Instant::now() + REQUEST_TIMEOUT;
        let answer = self.begin(call, deadline).await?;
        let body = self
            .within(call, deadline, read(answer.into_body(), MAX_ANSWER))
            .await?;
        Ok(body)
    }

    /// A request, and the beginning of the answer to it; until `deadline`, which the rest is not bound by.
    pub(super) async fn begin(&self, call: &Call, deadline: Instant) -> Result<Response<Body>, Refusal> {
        let mut request = Request::builder()
            .method(call.verb.method())
            .uri(call.target())
            .header(ACCEPT, "application/json");
        let mut body = Vec::new();
        if let Some((content, bytes)) = &call.body {
            request = request.header(CONTENT_TYPE, content.as_str());
            body.clone_from(bytes);
        }
        let request = request
            .body(Body::from(body))
            .map_err(|error| self.away(call, &in_full(&error)))?;
        let sent = async {
            self.client
                .send(request)
                .await
                .map_err(|error| Broken(unsent(&error)))
        };
        let answer = self.within(call, deadline, sent).await?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (head, body) = answer.into_parts();
        let body = self.within(call, deadline, read(body, MAX_REFUSAL)).await?;
        let status: Option<Status> = serde_json::from_slice(&body).ok();
        let mut status = status.unwrap_or_default();
        if status.message.is_empty() {
            String::from_utf8_lossy(&body)
                .trim()
                .clone_into(&mut status.message);
        }
        if let Some(after) = head
            .headers
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
        {
            status.message.push_str(&format!(" (retry after {after} s)"));
        }
        Err(self.refused(call, head.status, &status))
    }

    async fn within<T>(
        &self,
        call: &Call,
        deadline: Instant,
        work: impl Future<Output = Result<T, Broken>>,
    ) -> Result<T, DatastoreError> {
        match timeout_at(deadline, work).await {
            Ok(result) => result.map_err(|Broken(why)| self.away(call, &why)),
            Err(_) => {
                let limit = REQUEST_TIMEOUT.as_secs();
                Err(self.away(call, &format!("no answer within {limit} s")))
            }
        }
    }

    /// The server cannot be reached, or cannot serve now.
    pub(super) fn away(&self, call: &Call, why: &str) -> DatastoreError {
        DatastoreError::Away {
            operation: call.to_string(),
            server: self.server.clone(),
            reason: why.to_owned(),
        }
    }

    /// What a refusal means. `status` is what the server says beside the code.
    pub(super) fn refused(&self, call: &Call, code: StatusCode, status: &Status) -> Refusal {
        let key = call.key();
        let said = if status.message.is_empty() {
            "nothing more"
        } else {
            &status.message
        };
        let refused = |remedy: String| DatastoreError::Refused {
            operation: call.to_string(),
            server: self.server.clone(),
            said: format!("{} {said}", code.as_u16()),
            remedy,
        };
        match code {
            StatusCode::GONE => Refusal::Gone,
            StatusCode::NOT_FOUND if status.is_of_namespace(call) => {
                refused("create the namespace".to_owned()).into()
            }
            StatusCode::NOT_FOUND if status.is_of_object(call) => DatastoreError::NotFound { key }.into(),
            StatusCode::NOT_FOUND => {
                let plural = call.kind.plural();
                Refusal::Unknown(refused(format!(
                    "the server has no {plural}: install the CRDs (kubectl apply -f charts/culvert/crds)"
                )))
            }
            StatusCode::CONFLICT if call.verb == Verb::Create => DatastoreError::AlreadyExists { key }.into(),
            StatusCode::CONFLICT => DatastoreError::Conflict {
                key,
                revision: "that was written over".to_owned(),
            }
            .into(),
            StatusCode::UNAUTHORIZED => refused(format!(
                "{} is not accepted: renew it, or look whether it is of this cluster",
                self.credentials
            ))
            .into(),
            StatusCode::FORBIDDEN if call.kind == Kind::Secret => refused(format!(
                "add its name to bgp.passwordSecrets of the chart: its Role in the namespace {} must allow to get, list and watch \
                 this Secret by its name",
                call.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
            ))
            .into(),
            StatusCode::FORBIDDEN => {
                let (group, resource) = call.resource();
                let verb = call.verb.as_str();
                refused(format!(
                    "the ClusterRole {CLUSTER_ROLE} must allow the verb {verb} on the resource {resource} of the API group \
                     \"{group}\", and be bound to this user"
                ))
                .into()
            }
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => DatastoreError::Invalid {
                place: format!("{key} at {}", self.server),
                reason: said.to_owned(),
            }
            .into(),
            _ if code.is_server_error() || code == StatusCode::TOO_MANY_REQUESTS => {
                self.away(call, &format!("{} {said}", code.as_u16())).into()
            }
            _ => refused("see the log of the API server".to_owned()).into(),
        }
    }
}

/// What went wrong below HTTP, in words.
pub(super) struct Broken(pub(super) String);

/// All of a body, up to a limit.
pub(super) async fn read(mut body: Body, limit: usize) -> Result<Bytes, Broken> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Broken(in_full(&error)))?;
        if let Ok(bytes) = frame.into_data() {
            if bytes.len() > limit - all.len() {
                return Err(Broken(format!("the answer is longer than {limit} bytes")));
            }
            all.extend_from_slice(&bytes);
        }
    }
    Ok(Bytes::from(all))
}

/// Why a request found no answer.
pub(super) fn unsent(error: &kube::Error) -> String {
    let said = in_full(error);
    // What a connection that is not made in time comes to.
    if said.contains("deadline has elapsed") {
        return format!(
            "no answer to the connection within {} s",
            CONNECT_TIMEOUT.as_secs()
        );
    }
    said.trim_start_matches("ServiceError: ").to_owned()
}

/// An error with its causes: those of the client say what happened only in the last of them.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

/// Where a kubeconfig takes the proof of identity from, in words.
fn credentials_of(file: &Kubeconfig, path: &Path) -> String {
    let context = file
        .current_context
        .as_ref()
        .and_then(|current| file.contexts.iter().find(|named| named.name == *current))
        .and_then(|named| named.context.as_ref());
    let user = context.and_then(|context| context.user.clone());
    let identity = user
        .and_then(|user| file.auth_infos.iter().find(|named| named.name == user))
        .and_then(|named| named.auth_info.as_ref());
    match identity {
        Some(identity) if identity.token_file.is_some() => format!(
            "the token in {}",
            identity.token_file.as_deref().unwrap_or_default()
        ),
        Some(identity) if identity.token.is_some() => format!("the token in {}", path.display()),
        Some(identity) if identity.client_certificate.is_some() => format!(
            "the certificate {}",
            identity.client_certificate.as_deref().unwrap_or_default()
        ),
        _ => format!("what {} says of the user", path.display()),
    }
}
