//! The page to look at: on the port of the agent, and for a browser on this machine where only the agent's socket, or the proxy
//! of the API server, leads there.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Client, ClientError, Limits, Question};
use crate::cni::Problem;
use crate::page::{PAGE, POLICY};

/// A person with a browser, and what that opens and does not use.
const LIMITS: Limits = Limits {
    connections: 16,
    head: Duration::from_secs(10),
    life: Some(Duration::from_secs(60)),
};

/// The page, for a server that answers its question as well.
pub(super) fn router() -> Router {
    Router::new().route("/", get(page))
}

async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, &POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, PAGE).into_response()
}

/// Who can ask an agent what the page draws.
pub trait ViewSource: Clone + Send + Sync + 'static {
    /// The answer to [`Question::View`], as it came.
    fn view(&self) -> impl Future<Output = Result<Value, NoView>> + Send;
}

/// Why there is nothing to draw.
#[derive(Clone, Debug, PartialEq)]
pub enum NoView {
    /// The agent says no.
    Refused(Problem),
    /// It could not be asked, or its answer is none.
    Unheard(Problem),
}

impl ViewSource for Client {
    async fn view(&self) -> Result<Value, NoView> {
        self.question(Question::View).await.map_err(|error| match error {
            ClientError::Refused(problem) => NoView::Refused(problem),
            error => NoView::Unheard(Problem {
                reason: error.to_string(),
                retry: error.is_temporary(),
            }),
        })
    }
}

/// Who is asked, and the names by which a browser may have come here.
#[derive(Clone, Debug)]
struct Forwarding<S> {
    source: S,
    hosts: Arc<[String; 2]>,
}

/// Serves the page, and forwards the question that it asks to the agent of `source`, until `stop`. The page is this program's
/// own: what runs in the browser comes from nowhere else. Nothing but that question is forwarded, and nothing to whoever
/// names this machine otherwise than `127.0.0.1` or `localhost`: a page from elsewhere may have given its own name this
/// address.
///
/// # Errors
/// When the listener fails.
pub async fn forward<S: ViewSource>(
    listener: TcpListener,
    source: S,
    stop: CancellationToken,
) -> io::Result<()> {
    let address: SocketAddr = listener.local_addr()?;
    let hosts = ["127.0.0.1", "localhost"].map(|host| format!("{host}:{}", address.port()));
    let forwarding = Forwarding {
        source,
        hosts: Arc::new(hosts),
    };
    let router = Router::new()
        .route("/", get(own_page::<S>))
        .route(super::questions::VIEW, get(view::<S>))
        .with_state(forwarding);
    super::serve_until(listener, router, LIMITS, |address| Some(address.ip()), stop).await
}

async fn own_page<S: ViewSource>(State(forwarding): State<Forwarding<S>>, headers: HeaderMap) -> Response {
    match forwarding.refusal(&headers) {
        None => page().await,
        Some(refusal) => refusal,
    }
}

async fn view<S: ViewSource>(State(forwarding): State<Forwarding<S>>, headers: HeaderMap) -> Response {
    if let Some(refusal) = forwarding.refusal(&headers) {
        return refusal;
    }
    match forwarding.source.view().await {
        Ok(view) => Json(view).into_response(),
        Err(NoView::Refused(problem)) => (StatusCode::SERVICE_UNAVAILABLE, Json(problem)).into_response(),
        Err(NoView::Unheard(problem)) => (StatusCode::BAD_GATEWAY, Json(problem)).into_response(),
    }
}

impl<S> Forwarding<S> {
    /// What a browser gets that came by another name.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        if host.is_some_and(|host| self.hosts.iter().any(|known| known == host)) {
            return None;
        }
        let words = format!("this is http://{}/ and nothing else\n", self.hosts[0]);
        Some((StatusCode::MISDIRECTED_REQUEST, words).into_response())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_util::sync::DropGuard;

    use super::*;

    /// A forwarding to an agent that is not there.
    async fn start() -> (SocketAddr, DropGuard) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let client = Client::new(&folder.path().join("s"), Duration::from_secs(30));
        let stop = CancellationToken::new();
        tokio::spawn(forward(listener, client, stop.clone()));
        (address, stop.drop_guard())
    }

    async fn asked(address: SocketAddr, line: &str, host: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_page_comes_with_its_policy() {
        let (address, _stop) = start().await;
        let answer = asked(address, "GET /", &address.to_string()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let policy = format!("content-security-policy: {}\r\n", *POLICY);
        assert!(answer.contains(&policy), "{answer}");
        assert!(answer.ends_with(PAGE));
    }

    #[tokio::test]
    async fn who_came_by_another_name_gets_nothing() {
        let (address, _stop) = start().await;
        for host in ["evil.example", "evil.example:80", "127.0.0.1", ""] {
            for path in ["/", "/v1/view"] {
                let answer = asked(address, &format!("GET {path}"), host).await;
                assert!(answer.starts_with("HTTP/1.1 421 "), "{host} {path}: {answer}");
                assert!(!answer.contains("<html"), "{answer}");
            }
        }
        let localhost = format!("localhost:{}", address.port());
        assert!(
            asked(address, "GET /", &localhost)
                .await
                .starts_with("HTTP/1.1 200 ")
        );
    }

    #[tokio::test]
    async fn nothing_but_the_page_and_its_question_is_forwarded() {
        let (address, _stop) = start().await;
        let host = address.to_string();
        for line in [
            "GET /v1/status",
            "GET /v1/doctor",
            "POST /v1/bgp/clear",
            "POST /v1/cni/add",
        ] {
            let answer = asked(address, line, &host).await;
            assert!(answer.starts_with("HTTP/1.1 404 "), "{line}: {answer}");
        }
        let answer = asked(address, "POST /v1/view", &host).await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
    }

    #[tokio::test]
    async fn an_agent_that_is_not_there_is_told_in_words() {
        let (address, _stop) = start().await;
        let answer = asked(address, "GET /v1/view", &address.to_string()).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        assert!(answer.contains("no agent answers on "), "{answer}");
    }
}
