//! HTTP: metrics, health and questions over TCP for whoever watches the node; questions, attachments and what changes
//! anything over the agent's own socket.

mod answer;
mod blocking;
mod client;
mod exchange;
mod health;
mod page;
mod probes;
mod questions;
mod remote;
mod socket;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use probes::Caller;

pub use blocking::BlockingClient;
pub use client::{Client, ClientError};
pub use health::serve;
pub use page::{NoView, ViewSource, forward};
pub use questions::{Peers, Question, Questions, WrongRoutes};
pub use remote::{Unanswered, ask, get, read};
pub use socket::{Confirmations, SocketApi, SocketError, bind_socket, serve_socket, somebody_listens};

/// How long requests under way may take after the stop: the agent ends within a second.
const GRACE: Duration = Duration::from_millis(500);

/// What whoever connects may take. The port for metrics is open to the network: nobody may hold the agent's memory or
/// descriptors by connecting and saying nothing.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// So many connections at once; further ones wait in the kernel's backlog.
    connections: usize,
    /// A connection on which no whole request head comes for so long is closed.
    head: Duration,
    /// A connection is closed when it is so old, whatever is under way: who asks for much must also read it.
    life: Option<Duration>,
}

/// Serves until the stop, telling the routes by `caller` who has connected, and then lets the requests under way end, for a while.
async fn serve_until<L>(
    mut listener: L,
    router: Router,
    limits: Limits,
    caller: fn(&L::Addr) -> Option<IpAddr>,
    stop: CancellationToken,
) -> io::Result<()>
where
    L: Listener,
{
    let open = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = async {
            let place = Arc::clone(&open).acquire_owned().await;
            // An error of accept, such as too few descriptors, is waited out by the listener itself.
            (place, listener.accept().await)
        };
        let (place, (stream, address)) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let router = router.clone().layer(Extension(Caller(caller(&address))));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            let ended = match limits.life {
                Some(life) => tokio::time::timeout(life, connection).await,
                None => Ok(connection.await),
            };
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!(%error, "a connection ended early"),
                Err(_) => debug!("a connection was closed for its age"),
            }
            drop(place);
        });
    }
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
    Ok(())
}
