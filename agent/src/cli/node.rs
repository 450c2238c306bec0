//! `culvert node`: what the agent of this node says, and asks.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Zoned;

use super::CliError;
use crate::http::Client;

/// How long the agent may take for its status.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the BGP peers, the routes and the blocks of this node.
    Status(StatusArguments),
    /// Confirm that what has vanished from the datastore is to be withdrawn, where the agent holds it.
    AcceptWithdrawal(AcceptArguments),
}

#[derive(Debug, Args)]
pub(super) struct AcceptArguments {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/agent.sock")]
    socket: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/culvert/agent.sock")]
    socket: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people, as calicoctl prints it.
    #[default]
    Table,
    /// The same with further columns: node, source of tunnelled packets, prefixes received and sent.
    Wide,
    /// For programs: everything, times in UTC.
    Json,
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let text = match command {
        Command::Status(arguments) => {
            let status = runtime.block_on(Client::new(&arguments.socket, PATIENCE).status())?;
            match arguments.output {
                Output::Table => status.render(&Zoned::now()),
                Output::Wide => status.render_wide(&Zoned::now()),
                Output::Json => serde_json::to_string_pretty(&status)? + "\n",
            }
        }
        Command::AcceptWithdrawal(arguments) => {
            let accepted = runtime.block_on(Client::new(&arguments.socket, PATIENCE).accept_withdrawal())?;
            format!(
                "Confirmed: {} vanished objects are withdrawn.\n",
                accepted.objects
            )
        }
    };
    super::print(&text)
}
