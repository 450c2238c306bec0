//! `culvert agent`: runs until it is told to end, or removes what it left in the kernel.

use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::config::{Config, Mode};
use crate::{control, logging};

/// For the speaker and all that waits for something. The control loop, which writes to the kernel, has the main thread besides.
/// With more, tasks are handed from one to another at every message of a peer, and to wake up costs more than the message.
const WORKERS: usize = 1;

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
    let config = Config::load(arguments.config.as_deref(), arguments.node_name.as_deref())?;
    logging::start(config.log.format, &config.log.level)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(CliError::Runtime)?;
    let ended = match config.mode {
        _ if arguments.cleanup => runtime.block_on(control::cleanup(&config)),
        Mode::Active => runtime.block_on(control::run(&config, arguments.config.as_deref())),
        Mode::Shadow => runtime.block_on(control::shadow::run(&config)),
    };
    // Nothing that still runs is worth waiting for: the loop has closed what must be closed.
    runtime.shutdown_background();
    Ok(ended?)
}
