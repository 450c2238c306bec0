//! The command line, one file a subcommand.

mod agent;
mod asked;
mod bgp;
mod cni;
mod diags;
mod doctor;
mod exit;
mod generated;
mod get;
mod ipam;
mod members;
mod node;
mod rollout;
mod route;
mod shadow;
mod status;
mod store;
mod trace;
mod ui;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};
use culvert_ipam::limits::LimitsError;
use tracing_subscriber::util::TryInitError;

pub use self::exit::Exit;
use self::ipam::SplitError;
use crate::allocation::AllocationError;
use crate::api::Key;
use crate::cni::InstallError;
use crate::config::ConfigError;
use crate::control::AgentError;
use crate::datastore::DatastoreError;
use crate::doctor::FixError;
use crate::http::{ClientError, Unanswered};
use crate::survey::NoSuchNode;

/// The routing brain of a Kubernetes node.
#[derive(Debug, Parser)]
#[command(name = "culvert", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this node.
    Agent(agent::Arguments),
    /// Look at all nodes of the cluster: which agents answer, which sessions are up.
    Status(status::Arguments),
    /// Look at the agent of this node.
    #[command(subcommand)]
    Node(node::Command),
    /// Look at the BGP speaker of this node: its peers and their routes.
    #[command(subcommand)]
    Bgp(bgp::Command),
    /// Look for what is wrong with this node, or with all of them.
    Doctor(doctor::Arguments),
    /// Write a bundle of all that tells how this node, or the whole cluster, is; without secrets.
    Diags(diags::Arguments),
    /// Serve the page of an agent to a browser on this machine: mesh, blocks, routes, events.
    Ui(ui::Arguments),
    /// Find out why packets go where they go.
    #[command(subcommand)]
    Route(route::Command),
    /// Follow packets from one pod to another and back, hop by hop: a few are sent, and counted on both nodes.
    Trace(trace::Arguments),
    /// Look at the addresses of the cluster, and mend what is wrong with them.
    #[command(subcommand)]
    Ipam(ipam::Command),
    /// Print resources: pools, nodes, blocks and the others.
    Get(get::Arguments),
    /// Print the completions of a shell: `source <(culvert completions bash)`.
    Completions(generated::CompletionArguments),
    /// Write the manual pages into a folder, a page a command.
    Manual(generated::ManualArguments),
    /// Show what an agent would change in the kernel of this node, and write nothing.
    Shadow(shadow::Arguments),
    /// Put the CNI plugin on a host, or take it off.
    #[command(subcommand)]
    Cni(cni::Command),
    /// Wait until the pods of a DaemonSet are ready on every node.
    Rollout(rollout::Arguments),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The agent was asked in vain.
    #[error("{0}; or name another socket with --socket")]
    NoAgent(ClientError),
    /// The agent did not answer as it should.
    #[error(transparent)]
    Client(ClientError),
    /// The agent of a node that was asked for did not answer.
    #[error("node {node}: {reason}")]
    Unanswered {
        /// The node.
        node: String,
        /// Why not.
        reason: Unanswered,
    },
    /// There is no such node.
    #[error(transparent)]
    NoNode(#[from] NoSuchNode),
    /// A cluster was named, and none of its nodes.
    #[error("of which node? name it with --node; `culvert status` lists them")]
    WithoutNode,
    /// Standard output could not be written.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// The asynchronous runtime cannot be had.
    #[error("the process cannot start its threads: {0}")]
    Runtime(io::Error),
    /// The log cannot be had.
    #[error("the log cannot be started: {0}")]
    Log(#[from] TryInitError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The agent cannot run.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// What is to be printed cannot be written as JSON.
    #[error("cannot write it as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// What is to be printed cannot be written as YAML.
    #[error("cannot write it as YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
    /// The datastore failed.
    #[error("datastore: {0}")]
    Datastore(#[from] DatastoreError),
    /// Allocation refused.
    #[error(transparent)]
    Allocation(Box<AllocationError>),
    /// Something is wrong with the addresses of the cluster.
    #[error("{count} problems{advice}")]
    Problems {
        /// How many.
        count: usize,
        /// What to do, after a semicolon.
        advice: &'static str,
    },
    /// Something is wrong with a node, or with the way to a destination; what, is printed before.
    #[error("{}, as said above", if *.0 == 1 { "1 thing is wrong".to_owned() } else { format!("{} things are wrong", .0) })]
    Findings(usize),
    /// Nothing is wrong as far as was seen, and that is not all; what is missing is printed before.
    #[error("not all could be looked at, as said above: {0} left out")]
    Unseen(usize),
    /// Packets were lost; where is printed before.
    #[error("packets are lost on the way, as said above")]
    Lost,
    /// Nothing is lost as far as was seen; of the way back nothing was.
    #[error("of the way back nothing is known: the pod has not answered")]
    Silent,
    /// Nobody has said yes.
    #[error("nothing was changed: answer y on a terminal, or say --yes")]
    Unconfirmed,
    /// Something could not be mended.
    #[error(transparent)]
    Fix(#[from] FixError),
    /// The settings of allocation would contradict each other.
    #[error("nothing was changed: {0}")]
    Limits(LimitsError),
    /// A pool cannot be split.
    #[error(transparent)]
    Split(Box<SplitError>),
    /// The page cannot be served.
    #[error("cannot listen on {address}: {source}; name another port with --port")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is no report of a check.
    #[error("{} is no report of `culvert ipam check --output`: {source}", path.display())]
    NoReport {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The plugin cannot be installed, or not be removed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// A shadow that was to agree does not.
    #[error("packets would go other ways than they go now, as said above")]
    Differs,
    /// A rollout took too long.
    #[error("{name} was not ready within {seconds} s: {state}; look at its pods (kubectl describe)")]
    Unfinished {
        /// The DaemonSet.
        name: String,
        /// How long was waited, in seconds.
        seconds: u64,
        /// How far it was.
        state: String,
    },
    /// The kernel's modules were not loaded.
    #[error("modprobe -a {modules} under {} failed: {reason}; load them on the host, or switch modules.enabled off", root.display())]
    Modules {
        /// Which.
        modules: String,
        /// Where the host's files are.
        root: PathBuf,
        /// What was said.
        reason: String,
    },
    /// There is no such object.
    #[error("there is no {key} in the datastore; `culvert get {}` lists what there is", key.kind.plural())]
    NoObject {
        /// What was asked for.
        key: Key,
    },
}

impl From<AllocationError> for CliError {
    fn from(error: AllocationError) -> Self {
        Self::Allocation(Box::new(error))
    }
}

impl From<SplitError> for CliError {
    fn from(error: SplitError) -> Self {
        Self::Split(Box::new(error))
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NoAgent { .. } => Self::NoAgent(error),
            other => Self::Client(other),
        }
    }
}

/// Runs the command that the process was called with.
///
/// # Errors
/// Those of the command, in words for the one who typed it.
pub fn run() -> Result<(), CliError> {
    let matches = exit::explained(Arguments::command()).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match arguments.command {
        Command::Agent(arguments) => agent::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Node(command) => node::run(&command),
        Command::Bgp(command) => bgp::run(&command),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Diags(arguments) => diags::run(&arguments),
        Command::Ui(arguments) => ui::run(&arguments),
        Command::Route(command) => route::run(&command),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Ipam(command) => ipam::run(&command),
        Command::Get(arguments) => get::run(&arguments),
        Command::Completions(arguments) => generated::completions(&arguments, Arguments::command()),
        Command::Manual(arguments) => generated::manual(&arguments, Arguments::command()),
        Command::Shadow(arguments) => shadow::run(&arguments),
        Command::Cni(command) => cni::run(&command),
        Command::Rollout(arguments) => rollout::run(&arguments),
    }
}

/// A runtime for a command that waits for one thing after the other.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(CliError::Runtime)
}

/// Prints; a reader that has gone away, as `head` does, has all it wanted.
fn print(text: &str) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Output(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_agent_needs_a_configuration_or_takes_the_default() {
        let parsed =
            Arguments::try_parse_from(["culvert", "agent", "--node-name", "a", "--cleanup"]).unwrap();
        let Command::Agent(arguments) = parsed.command else {
            panic!("{parsed:?}")
        };
        assert_eq!(arguments.node_name.as_deref(), Some("a"));
        assert!(arguments.cleanup && arguments.config.is_none());
    }

    #[test]
    fn an_unknown_output_is_refused_with_the_known_ones() {
        let error = Arguments::try_parse_from(["culvert", "node", "status", "-o", "xml"])
            .unwrap_err()
            .to_string();
        assert!(error.contains("table") && error.contains("json"), "{error}");
    }
}
