//! The agent's own unix socket: status for the command line, attachments for the CNI plugin. Who may open it may do
//! everything, so it belongs to the agent's user alone.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::answer::{Refusal, finish};
use super::questions::Questions;
use super::{Limits, probes};
use crate::cni::{AddRequest, Attachments, CheckRequest, Container, NetworkRequest, Problem};
use crate::config::Config;
use crate::inquiry::Inquiries;
use crate::metrics::Metrics;
use crate::speaker::Clear;
use crate::status::AgentStatus;
use crate::trace::run::Tracer;
use crate::withdrawal::Accepted;

/// The runtime may start all pods of a node at once, each with a connection of its own.
const LIMITS: Limits = Limits {
    connections: 512,
    head: Duration::from_secs(10),
    // Whoever may connect may do everything, and an allocation waits for the datastore.
    life: None,
};

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another agent listens there.
    #[error("another agent listens on {0}: stop it, or give this one another socket")]
    InUse(PathBuf),
    /// Something that is no socket has the name.
    #[error("{0} is there and is no socket: remove it, or give the agent another socket")]
    NotASocket(PathBuf),
    /// The file system refuses.
    #[error("cannot listen on {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Listens on a unix socket of mode 0600, in place of one that nobody listens on any more.
///
/// # Errors
/// When somebody listens there, when something else has the name, or when the file system refuses.
pub fn bind_socket(path: &Path) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => match BlockingStream::connect(path) {
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(failed(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(failed)?;
    // A socket is open to others between bind and chmod: so it is born in a folder of mode 0700, and moved when it is
    // safe, which also puts it in the place of the old one at once.
    let nursery = tempfile::Builder::new()
        .prefix(".")
        .tempdir_in(folder)
        .map_err(failed)?;
    let newborn = nursery.path().join("s");
    let listener = UnixListener::bind(&newborn).map_err(failed)?;
    fs::set_permissions(&newborn, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&newborn, path).map_err(failed)?;
    Ok(listener)
}

/// Whether an agent answers on the socket of this name.
#[must_use]
pub fn somebody_listens(path: &Path) -> bool {
    BlockingStream::connect(path).is_ok()
}

/// The way of a confirmation to whoever holds the deletions; none is held where nobody listens.
#[derive(Clone, Debug)]
pub struct Confirmations(mpsc::Sender<oneshot::Sender<usize>>);

impl Confirmations {
    /// A way, and its end: who listens answers with the number of deletions that passed.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<oneshot::Sender<usize>>) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), receiver)
    }

    /// Confirms the deletions that are held.
    ///
    /// # Errors
    /// When none is.
    async fn confirm(&self) -> Result<Accepted, Problem> {
        let (answer, accepted) = oneshot::channel();
        let objects = match self.0.send(answer).await {
            Ok(()) => accepted.await.unwrap_or(0),
            Err(_) => 0,
        };
        if objects == 0 {
            return Err(Problem {
                reason: "no withdrawal is held: there is nothing to confirm".to_owned(),
                retry: false,
            });
        }
        Ok(Accepted { objects })
    }
}

/// What the socket serves.
#[derive(Clone)]
pub struct SocketApi {
    /// The agent's latest status.
    pub status: watch::Receiver<Arc<AgentStatus>>,
    /// The answers to the CNI plugin.
    pub attachments: Arc<Attachments>,
    /// Takes confirmations of held deletions.
    pub confirmations: Confirmations,
    /// Takes what only the control loop can answer.
    pub inquiries: Inquiries,
    /// What the agent goes by.
    pub configuration: Arc<Config>,
    /// Follows packets; none where nobody may have any sent.
    pub tracer: Option<Tracer>,
    /// Counts the requests of the CNI plugin.
    pub metrics: Metrics,
}

/// Serves `api` on `listener` until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_socket(listener: UnixListener, api: SocketApi, stop: CancellationToken) -> io::Result<()> {
    let questions = Questions::new(api.status.clone(), api.inquiries.clone());
    let questions = questions.going_by(Arc::clone(&api.configuration));
    let tracer = api.tracer.clone();
    let router = Router::new()
        .route("/v1/withdrawal/accept", post(accept_withdrawal))
        .route("/v1/bgp/clear", post(bgp_clear))
        .route("/v1/cni/add", post(add))
        .route("/v1/cni/del", post(del))
        .route("/v1/cni/check", post(check))
        .route("/v1/cni/addresses", post(addresses))
        .route("/v1/cni/containers", post(containers))
        .with_state(api)
        .merge(questions.router())
        .merge(tracer.map(probes::for_this_host).unwrap_or_default());
    super::serve_until(listener, router, LIMITS, |_| None, stop).await
}

async fn accept_withdrawal(State(api): State<SocketApi>) -> Result<Response, Refusal> {
    finish(async move { api.confirmations.confirm().await }).await
}

async fn bgp_clear(
    State(api): State<SocketApi>,
    request: Result<Json<Clear>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(clear) = request?;
    finish(async move { api.inquiries.clear(clear).await }).await
}

async fn add(
    State(api): State<SocketApi>,
    request: Result<Json<AddRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    finish(async move { counted(&api.metrics, "add", api.attachments.add(request)).await }).await
}

async fn del(
    State(api): State<SocketApi>,
    request: Result<Json<Container>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    finish(async move { counted(&api.metrics, "del", api.attachments.del(request)).await }).await
}

async fn check(
    State(api): State<SocketApi>,
    request: Result<Json<CheckRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    finish(async move { counted(&api.metrics, "check", api.attachments.check(request)).await }).await
}

async fn addresses(
    State(api): State<SocketApi>,
    request: Result<Json<Container>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    finish(async move { api.attachments.addresses(request).await }).await
}

async fn containers(
    State(api): State<SocketApi>,
    request: Result<Json<NetworkRequest>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(request) = request?;
    finish(async move { api.attachments.containers(request).await }).await
}

/// Does what the plugin asks for, and measures that.
async fn counted<T>(
    metrics: &Metrics,
    command: &str,
    work: impl Future<Output = Result<T, Problem>>,
) -> Result<T, Problem> {
    let began = Instant::now();
    let result = work.await;
    let seconds = metrics.cni_request_seconds.with_label_values(&[command]);
    seconds.observe(began.elapsed().as_secs_f64());
    if result.is_err() {
        metrics.cni_failures.with_label_values(&[command]).inc();
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_open_to_its_owner_alone_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/agent.sock");
        let _listener = bind_socket(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_socket_is_replaced_only_when_nobody_listens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let first = bind_socket(&path).unwrap();
        let error = bind_socket(&path).unwrap_err().to_string();
        assert!(error.starts_with("another agent listens on "), "{error}");
        drop(first);
        let second = bind_socket(&path).unwrap();
        let (client, server) = tokio::join!(tokio::net::UnixStream::connect(&path), second.accept());
        assert!(client.is_ok() && server.is_ok());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        fs::write(&path, "precious").unwrap();
        let error = bind_socket(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("is there and is no socket: remove it, or give the agent another socket"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_made_is_named() {
        let error = bind_socket(Path::new("/proc/none/agent.sock"))
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("cannot listen on /proc/none/agent.sock: "),
            "{error}"
        );
    }
}
