//! `culvert shadow`: what an agent would change on this node, without changing it.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::CliError;
use crate::config::Config;
use crate::control;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration that the agent would have; the environment (CULVERT_*) overrides it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The node's name, instead of the host's.
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// End with status 1 unless every packet would go where it goes now.
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// For people: a line for each difference.
    #[default]
    Text,
    /// For programs.
    Json,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let config = Config::load(arguments.config.as_deref(), arguments.node_name.as_deref())?;
    let runtime = super::runtime()?;
    let shadow = runtime.block_on(control::shadow::look(&config))?;
    super::print(&match arguments.output {
        Output::Text => shadow.to_string(),
        Output::Json => serde_json::to_string_pretty(&shadow)? + "\n",
    })?;
    if arguments.check && !shadow.agrees() {
        return Err(CliError::Differs);
    }
    Ok(())
}
