//! `culvert agent`: runs until it is told to end, or removes what it left in the kernel.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::logging;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration, a YAML file; the environment (CULVERT_*) overrides it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The node's name, instead of the host's.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Remove everything that the agent put into the kernel of this node, and end.
    #[arg(long)]
    pub cleanup: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    logging::start(logging::Format::default(), "info")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    runtime.block_on(join_control(arguments))
}

/// Where the command line meets the configuration and the control loop.
async fn join_control(arguments: &Arguments) -> Result<(), CliError> {
    Err(CliError::NoControlLoop(format!("{arguments:?}")))
}
