//! `culvert node`: what the agent of this node says, and asks.

use clap::{Args, Subcommand, ValueEnum};
use jiff::Zoned;

use super::CliError;
use super::asked::{self, AgentArguments};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the BGP peers, the routes and the blocks of this node.
    Status(StatusArguments),
    /// Confirm that what has vanished from the datastore is to be withdrawn, where the agent holds it.
    AcceptWithdrawal(AgentArguments),
}

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
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
    /// The same as YAML.
    Yaml,
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let text = match command {
        Command::Status(arguments) => {
            let status = arguments.agent.ask(async |agent| agent.status().await)?;
            match arguments.output {
                Output::Table => status.render(&Zoned::now()),
                Output::Wide => status.render_wide(&Zoned::now()),
                Output::Json => asked::json(&status)?,
                Output::Yaml => asked::yaml(&status)?,
            }
        }
        Command::AcceptWithdrawal(agent) => {
            let accepted = agent.ask(async |agent| agent.accept_withdrawal().await)?;
            format!(
                "Confirmed: {} vanished objects are withdrawn.\n",
                accepted.objects
            )
        }
    };
    super::print(&text)
}
