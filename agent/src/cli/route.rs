//! `culvert route`: why packets go where they go.

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::CliError;
use super::asked::{AgentArguments, Output};
use crate::explanation::{self, Explanation};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Explain the way to an address: pool, block, owner, BGP path, encapsulation, outer source, kernel route, and what
    /// is wrong with it.
    Explain(ExplainArguments),
}

#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// The address of a pod, or a range such as a block.
    #[arg(value_name = "ADDRESS|CIDR", value_parser = explanation::parse_destination)]
    destination: IpNet,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let Command::Explain(arguments) = command;
    let destination = arguments.destination;
    let explanation = arguments
        .agent
        .ask(async |agent| agent.explain(destination).await)?;
    super::print(&arguments.output.of(&explanation, Explanation::render)?)?;
    match explanation.findings.len() {
        0 => Ok(()),
        count => Err(CliError::Findings(count)),
    }
}
