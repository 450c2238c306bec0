//! `culvert rollout`: waits until the pods of a DaemonSet are ready on every node.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::CliError;
use crate::datastore::Access;
use crate::datastore::kubernetes::Rollout;

/// How often the API server is asked.
const INTERVAL: Duration = Duration::from_secs(2);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The DaemonSet.
    name: String,
    /// Its namespace.
    #[arg(long, value_name = "NAME", default_value = "kube-system")]
    namespace: String,
    /// Seconds for which it may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
    /// How to reach the API server; else the service account of the pod that this runs in.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let access = match &arguments.kubeconfig {
        Some(path) => Access::Kubeconfig(path.clone()),
        None => Access::InCluster,
    };
    let runtime = super::runtime()?;
    runtime.block_on(wait(arguments, &access))
}

async fn wait(arguments: &Arguments, access: &Access) -> Result<(), CliError> {
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    let rollout = Rollout::open(access, &arguments.namespace, &arguments.name).await?;
    let name = format!("{}/{}", arguments.namespace, arguments.name);
    loop {
        let progress = rollout.progress().await;
        match &progress {
            Ok(progress) if progress.is_complete() => {
                return super::print(&format!("{name} is ready: {progress}.\n"));
            }
            Ok(progress) => super::print(&format!("waiting for {name}: {progress}\n"))?,
            Err(error) => super::print(&format!("waiting for {name}: {error}\n"))?,
        }
        if Instant::now() >= deadline {
            let state = progress.map_or_else(|error| error.to_string(), |progress| progress.to_string());
            return Err(CliError::Unfinished {
                name,
                seconds: arguments.timeout,
                state,
            });
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
