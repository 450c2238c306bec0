//! `culvert ui`: the agent's page, for a browser on this machine.

use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::CliError;
use super::asked::AgentArguments;
use crate::http;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The port of 127.0.0.1 at which the page is; 0 for any that is free.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, arguments.port));
    arguments.agent.ask(async |agent| agent.status().await)?;
    let client = arguments.agent.client();
    let cannot_listen = |source| CliError::Listen {
        address: wanted,
        source,
    };
    super::runtime()?.block_on(async {
        let listener = TcpListener::bind(wanted).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        super::print(&format!(
            "http://{address}/ is the page of the agent; Ctrl-C ends this.\n"
        ))?;
        let stop = CancellationToken::new();
        tokio::select! {
            served = http::forward(listener, client, stop.clone()) => served.map_err(cannot_listen),
            _ = tokio::signal::ctrl_c() => Ok(()),
        }
    })
}
