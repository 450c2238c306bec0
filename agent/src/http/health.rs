//! `/metrics`, `/healthz` and `/readyz`, and beside them the questions that change nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Limits, Questions, probes};
use crate::metrics::Metrics;
use crate::status::AgentStatus;
use crate::trace::run::Tracer;

/// Prometheus, two probes of the kubelet, and a few people, maybe by way of the API server.
const LIMITS: Limits = Limits {
    connections: 32,
    head: Duration::from_secs(10),
    life: Some(Duration::from_secs(60)),
};

#[derive(Clone)]
struct Health {
    metrics: Metrics,
    all_peers: bool,
    status: watch::Receiver<Arc<AgentStatus>>,
}

/// Serves metrics and health, and answers `questions`, and other nodes by `tracer`, on `listener` until `stop`; with series of
/// their own for `all_peers`, or for those alone that have no session.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    all_peers: bool,
    status: watch::Receiver<Arc<AgentStatus>>,
    questions: Questions,
    tracer: Option<Tracer>,
    stop: CancellationToken,
) -> io::Result<()> {
    let router = Router::new()
        .route("/metrics", get(encode_metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .with_state(Health {
            metrics,
            all_peers,
            status,
        })
        .merge(questions.router())
        .merge(super::page::router())
        .merge(tracer.map(probes::for_nodes).unwrap_or_default());
    super::serve_until(listener, router, LIMITS, |address| Some(address.ip()), stop).await
}

async fn encode_metrics(State(health): State<Health>) -> Response {
    let status = Arc::clone(&health.status.borrow());
    match health.metrics.scrape(&status, health.all_peers) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Alive is the agent whose control loop is: a restart mends nothing else.
async fn healthy(State(health): State<Health>) -> (StatusCode, String) {
    match health.status.has_changed() {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the control loop has ended\n".to_owned(),
        ),
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, String) {
    let status = Arc::clone(&health.status.borrow());
    match status.ready() {
        Ok(()) => (StatusCode::OK, format!("{}\n", status.routes.in_kernel())),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::inquiry::Inquiries;
    use crate::status::{DatastoreStatus, RouteStatus};

    struct Server {
        address: SocketAddr,
        metrics: Metrics,
        status: watch::Sender<Arc<AgentStatus>>,
        stop: CancellationToken,
        task: JoinHandle<io::Result<()>>,
    }

    async fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Metrics::register().unwrap();
        let (status, receiver) = watch::channel(Arc::new(AgentStatus::starting("a")));
        let stop = CancellationToken::new();
        let questions = Questions::new(receiver.clone(), Inquiries::channel().0);
        let task = tokio::spawn(serve(
            listener,
            metrics.clone(),
            false,
            receiver,
            questions,
            None,
            stop.clone(),
        ));
        Server {
            address,
            metrics,
            status,
            stop,
            task,
        }
    }

    /// Head and body of the answer.
    async fn get(server: &Server, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn readiness_is_told_in_words_and_follows_the_status() {
        let server = start().await;
        let (head, body) = get(&server, "/readyz").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(body, "datastore is not in sync yet\n");
        server.status.send_replace(Arc::new(AgentStatus {
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            routes: RouteStatus {
                desired: 4,
                programmed: 4,
                ..RouteStatus::default()
            },
            ..AgentStatus::default()
        }));
        let (head, body) = get(&server, "/readyz").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(body, "4 of 4 routes are in the kernel\n");
    }

    #[tokio::test]
    async fn the_agent_is_healthy_as_long_as_its_control_loop_runs() {
        let server = start().await;
        assert!(get(&server, "/healthz").await.0.starts_with("HTTP/1.1 200 "));
        let Server { status, .. } = server;
        let server = Server {
            status: watch::channel(Arc::default()).0,
            ..server
        };
        drop(status);
        let (head, body) = get(&server, "/healthz").await;
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(body, "the control loop has ended\n");
    }

    #[tokio::test]
    async fn a_scrape_sees_the_latest_snapshot() {
        let server = start().await;
        server.metrics.route_repairs.inc();
        server.status.send_replace(Arc::new(AgentStatus {
            addresses_in_use: 7,
            ..AgentStatus::default()
        }));
        let (head, body) = get(&server, "/metrics").await;
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("\nculvert_ipam_addresses_in_use 7\n"), "{body}");
        assert!(body.contains("\nculvert_route_repairs_total 1\n"), "{body}");
    }

    #[tokio::test]
    async fn whoever_says_nothing_is_sent_away_and_keeps_nobody_out_for_long() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits {
            connections: 2,
            head: Duration::from_millis(50),
            life: None,
        };
        let router = Router::new().route("/", axum::routing::get(async || "here"));
        let stop = CancellationToken::new();
        let task = tokio::spawn(super::super::serve_until(
            listener,
            router,
            limits,
            |address| Some(address.ip()),
            stop.clone(),
        ));
        let mut silent = Vec::new();
        for request in ["", "GET / HTTP/1.1\r\n", "", "x"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            silent.push(stream);
        }
        let mut asking = TcpStream::connect(address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        asking.write_all(request).await.unwrap();
        let mut answer = String::new();
        asking.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        for mut stream in silent {
            let mut rest = Vec::new();
            // An end of the stream, or a reset: it is closed in any case.
            let _ = stream.read_to_end(&mut rest).await;
        }
        stop.cancel();
        task.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_stop_ends_it_even_while_a_connection_idles() {
        let server = start().await;
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        idle.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        get(&server, "/healthz").await;
        server.stop.cancel();
        tokio::time::timeout(Duration::from_secs(10), server.task)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}
