//! `culvert ui`: the page of an agent, for a browser on this machine.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::CliError;
use super::asked::AgentArguments;
use super::members::ClusterArguments;
use crate::http::{self, Peers, Question, ViewSource};
use crate::survey::OneAgent;

/// How long the agent of another node may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The port of 127.0.0.1 at which the page is; 0 for any that is free.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// The page of this node's agent, by way of the API server; without it, of the agent on this host.
    #[arg(long, value_name = "NODE", conflicts_with = "socket")]
    node: Option<String>,
    #[command(flatten)]
    agent: AgentArguments,
    #[command(flatten)]
    cluster: ClusterArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let runtime = super::runtime()?;
    match &arguments.node {
        None if arguments.cluster.is_named() => Err(CliError::WithoutNode),
        None => {
            arguments.agent.ask(async |agent| agent.status().await)?;
            runtime.block_on(serve(arguments.port, arguments.agent.client(), "the agent"))
        }
        Some(node) => runtime.block_on(async {
            let agents = arguments.cluster.find().await?.agents;
            let agent = OneAgent::of(agents, node, PATIENCE)?;
            // What keeps it from answering is told here, and not only by an empty page.
            let answered = agent.ask::<Value>(Question::Status(Peers::Exceptional)).await;
            answered.map_err(|reason| CliError::Unanswered {
                node: node.clone(),
                reason,
            })?;
            serve(arguments.port, agent, &format!("the agent of {node}")).await
        }),
    }
}

async fn serve(port: u16, source: impl ViewSource, whose: &str) -> Result<(), CliError> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let cannot_listen = |source| CliError::Listen {
        address: wanted,
        source,
    };
    let listener = TcpListener::bind(wanted).await.map_err(cannot_listen)?;
    let address = listener.local_addr().map_err(cannot_listen)?;
    super::print(&format!(
        "http://{address}/ is the page of {whose}; Ctrl-C ends this.\n"
    ))?;
    let stop = CancellationToken::new();
    tokio::select! {
        served = http::forward(listener, source, stop.clone()) => served.map_err(cannot_listen),
        _ = tokio::signal::ctrl_c() => Ok(()),
    }
}
