//! `culvert doctor`: what is wrong with this node, and what mends it.

use clap::Args;

use super::CliError;
use super::asked::{AgentArguments, Output};
use crate::doctor::Report;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let report = arguments.agent.ask(async |agent| agent.doctor().await)?;
    super::print(&arguments.output.of(&report, Report::render)?)?;
    match report.findings.len() {
        0 => Ok(()),
        count => Err(CliError::Findings(count)),
    }
}
