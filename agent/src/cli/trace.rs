//! `culvert trace`: the way of packets between two pods, hop by hop.

use std::time::Duration;

use clap::Args;

use super::CliError;
use super::asked::{AgentArguments, Output};
use crate::trace::Trace;
use crate::trace::run::Target;

/// Packets are waited for, and both doctors asked.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The pod that sends: its name as namespace/name, or its address.
    #[arg(value_name = "POD|ADDRESS")]
    from: Target,
    /// The pod that answers.
    #[arg(value_name = "POD|ADDRESS")]
    to: Target,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    agent: AgentArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let Arguments { from, to, .. } = arguments;
    let trace = arguments
        .agent
        .ask_within(PATIENCE, async |agent| agent.trace(from, to).await)?;
    super::print(&arguments.output.of(&trace, Trace::render)?)?;
    match (trace.loss, trace.silence) {
        (None, None) => Ok(()),
        (None, Some(_)) => Err(CliError::Silent),
        (Some(_), _) => Err(CliError::Lost),
    }
}
