//! HTTP: metrics and health over TCP for whoever watches the node, status and attachments over the agent's own socket.

mod client;
mod health;
mod socket;

use std::io;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio_util::sync::CancellationToken;

pub use client::{Client, ClientError};
pub use health::serve;
pub use socket::{Confirmations, SocketApi, SocketError, bind_socket, serve_socket, somebody_listens};

/// How long requests under way may take after the stop: the agent ends within a second.
const GRACE: Duration = Duration::from_millis(500);

/// Serves until the stop, and then lets the requests under way end, for a while.
async fn serve_until<L>(listener: L, router: Router, stop: CancellationToken) -> io::Result<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let serving = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        result = serving.into_future() => result,
        () = async { stop.cancelled().await; tokio::time::sleep(GRACE).await } => Ok(()),
    }
}
