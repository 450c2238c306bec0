//! `culvert route`: why packets go where they go.

use std::net::IpAddr;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::CliError;
use super::asked::{AgentArguments, Output};
use crate::explanation::Explanation;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Explain the way to an address: pool, block, owner, BGP path, encapsulation, outer source, kernel route, and what
    /// is wrong with it. The exit status is 1 where something is.
    Explain(ExplainArguments),
}

#[derive(Debug, Args)]
pub(super) struct ExplainArguments {
    /// The address of a pod, or a range such as a block.
    #[arg(value_name = "ADDRESS|CIDR", value_parser = parse_destination)]
    destination: IpNet,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

/// It is neither an address nor a range.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither an address such as 10.65.17.70 nor a range such as 10.65.17.64/26")]
struct NoDestination(String);

fn parse_destination(text: &str) -> Result<IpNet, NoDestination> {
    let range = text
        .parse()
        .or_else(|_| text.parse().map(|address: IpAddr| IpNet::from(address)));
    range
        .map_err(|_| NoDestination(text.to_owned()))
        .map(|range: IpNet| range.trunc())
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
