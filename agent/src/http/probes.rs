//! What the agents of other nodes ask of this one for their traces: to count marked packets, to connect to their speaker, to
//! trace the way from a pod of this node. Only nodes of the cluster and this host may ask, and a few at once.

use std::net::{IpAddr, Ipv4Addr};

use axum::Router;
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};

use super::answer::{Refusal, finish};
use crate::cni::Problem;
use crate::dataplane::probe::Token;
use crate::trace::run::{Target, Tracer};

/// Who has connected; none on the agent's own socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller(pub(super) Option<IpAddr>);

/// For the agents of other nodes.
pub(super) fn for_nodes(tracer: Tracer) -> Router {
    Router::new()
        .route("/v1/probe/begin/{token}", get(begin))
        .route("/v1/probe/end/{token}/{to}", get(end))
        .route("/v1/probe/connect", get(connect))
        .route("/v1/probe/trace/{from}/{to}", get(trace_for_node))
        .with_state(tracer)
}

/// For whoever may open the agent's socket.
pub(super) fn for_this_host(tracer: Tracer) -> Router {
    Router::new()
        .route("/v1/trace", post(trace))
        .route("/v1/ways", post(ways))
        .with_state(tracer)
}

/// The caller, if it is one of those that may ask.
async fn admitted(tracer: &Tracer, caller: Caller) -> Result<IpAddr, Refusal> {
    let refusal = |reason: String| Refusal {
        status: StatusCode::FORBIDDEN,
        problem: Problem { reason, retry: false },
    };
    let Some(address) = caller.0 else {
        return Err(refusal("this is asked over TCP alone".to_owned()));
    };
    if tracer.knows(address).await {
        Ok(address)
    } else {
        Err(refusal(format!(
            "{address} is the address of no node: probes are for nodes alone"
        )))
    }
}

async fn begin(
    State(tracer): State<Tracer>,
    Extension(caller): Extension<Caller>,
    Path(token): Path<Token>,
) -> Result<Response, Refusal> {
    admitted(&tracer, caller).await?;
    finish(async move { tracer.begin(token).await }).await
}

async fn end(
    State(tracer): State<Tracer>,
    Extension(caller): Extension<Caller>,
    Path((token, to)): Path<(Token, Ipv4Addr)>,
) -> Result<Response, Refusal> {
    admitted(&tracer, caller).await?;
    finish(async move { tracer.end(token, to).await }).await
}

async fn connect(
    State(tracer): State<Tracer>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Refusal> {
    let caller = admitted(&tracer, caller).await?;
    finish(async move { tracer.connect_back(caller).await }).await
}

async fn trace_for_node(
    State(tracer): State<Tracer>,
    Extension(caller): Extension<Caller>,
    Path((from, to)): Path<(Ipv4Addr, Ipv4Addr)>,
) -> Result<Response, Refusal> {
    admitted(&tracer, caller).await?;
    let (from, to) = (Target::Address(from), Target::Address(to));
    finish(async move { tracer.trace(&from, &to, true).await }).await
}

async fn trace(
    State(tracer): State<Tracer>,
    axum::Json((from, to)): axum::Json<(String, String)>,
) -> Result<Response, Refusal> {
    let parsed = |text: String| {
        text.parse::<Target>().map_err(|error| Problem {
            reason: error.to_string(),
            retry: false,
        })
    };
    finish(async move { tracer.trace(&parsed(from)?, &parsed(to)?, false).await }).await
}

async fn ways(State(tracer): State<Tracer>) -> Result<Response, Refusal> {
    finish(async move { tracer.ways().await }).await
}
