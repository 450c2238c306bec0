//! `culvert node`: what the agent of this node says, and asks.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use jiff::Zoned;
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use super::asked::{self, AgentArguments};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show the BGP peers, the routes and the blocks of this node.
    Status(StatusArguments),
    /// Confirm that what has vanished from the datastore is to be withdrawn, where the agent holds it.
    AcceptWithdrawal(AgentArguments),
    /// Have the host's own modprobe load modules of the kernel: for a container that has the host's files.
    LoadModules(ModuleArguments),
    /// Do nothing until told to end: what keeps a pod in place whose work its init containers have done.
    Pause,
}

#[derive(Debug, Args)]
pub(super) struct ModuleArguments {
    /// Where the host's files are.
    #[arg(long, value_name = "FOLDER", default_value = "/")]
    root: PathBuf,
    /// The modules.
    #[arg(required = true, value_name = "MODULE")]
    modules: Vec<String>,
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

/// Loads what is not loaded yet. The host's modprobe knows where its modules are, how they are packed, what they need, and
/// what its operator does not want.
fn load_modules(arguments: &ModuleArguments) -> Result<String, CliError> {
    let loaded = |module: &&String| Path::new("/sys/module").join(module.replace('-', "_")).is_dir();
    let missing: Vec<_> = arguments
        .modules
        .iter()
        .filter(|module| !loaded(module))
        .collect();
    if missing.is_empty() {
        return Ok("Nothing to load: the modules are there.\n".to_owned());
    }
    let failed = |reason: String| CliError::Modules {
        modules: arguments.modules.join(" "),
        root: arguments.root.clone(),
        reason,
    };
    std::os::unix::fs::chroot(&arguments.root)
        .and_then(|()| std::env::set_current_dir("/"))
        .map_err(|error| failed(error.to_string()))?;
    let output = std::process::Command::new("modprobe")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-a", "--"])
        .args(&missing)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(format!("Loaded: {}.\n", arguments.modules.join(", ")))
}

/// Waits for SIGTERM or SIGINT.
async fn pause() -> io::Result<String> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(String::new())
}

fn status(arguments: &StatusArguments) -> Result<(), CliError> {
    let status = arguments.agent.ask(async |agent| agent.status().await)?;
    super::print(&match arguments.output {
        Output::Table => status.render(&Zoned::now()),
        Output::Wide => status.render_wide(&Zoned::now()),
        Output::Json => asked::json(&status)?,
        Output::Yaml => asked::yaml(&status)?,
    })?;
    match status.faults().len() {
        0 => Ok(()),
        count => Err(CliError::Findings(count)),
    }
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let text = match command {
        Command::Status(arguments) => return status(arguments),
        Command::AcceptWithdrawal(agent) => {
            let accepted = agent.ask(async |agent| agent.accept_withdrawal().await)?;
            format!(
                "Confirmed: {} vanished objects are withdrawn.\n",
                accepted.objects
            )
        }
        Command::LoadModules(arguments) => load_modules(arguments)?,
        Command::Pause => {
            let runtime = super::runtime()?;
            runtime.block_on(pause()).map_err(CliError::Runtime)?
        }
    };
    super::print(&text)
}
