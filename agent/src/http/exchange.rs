//! One request on a connection of its own, and the whole answer.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// The largest answer that is read, in bytes: the status of some ten thousand peers.
pub(super) const MAX_ANSWER: usize = 16 << 20;

/// What went wrong below HTTP, or in it.
pub(super) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Sends a request, and reads the answer to its end.
///
/// # Errors
/// When the connection breaks, or the answer is none or too long.
pub(super) async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?;
        Ok(Response::from_parts(head, body.to_bytes()))
    };
    // The connection makes progress only while it is polled, and its own end tells no more than the exchange.
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    }
}
