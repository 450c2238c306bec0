//! All agents of a cluster, for the commands that ask them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::CliError;
use crate::config::Config;
use crate::datastore::{self, Access, Datastore, Location, MissingFolder};
use crate::survey::{Agents, Terms};

/// Where agents answer that do not say where.
const DEFAULT_PORT: u16 = 9179;

/// Which cluster.
#[derive(Debug, Args)]
pub(super) struct ClusterArguments {
    /// How to reach the API server, by which the agents are asked; else what kubectl takes, or a pod's service account.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    kubeconfig: Option<PathBuf>,
    /// The namespace of the agents.
    #[arg(short, long, value_name = "NAME", default_value = "kube-system")]
    namespace: String,
    /// An agent's configuration, which says where the datastore is: the agents are then asked directly, at their addresses and
    /// the port in it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Which cluster, and how long it is waited for.
#[derive(Debug, Args)]
pub(super) struct MemberArguments {
    #[command(flatten)]
    cluster: ClusterArguments,
    /// Seconds that all nodes together may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Seconds that one node may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    node_timeout: u64,
    /// So many nodes are asked at once.
    #[arg(long, value_name = "NUMBER", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
}

/// The agents, and the datastore that they go by.
pub(super) struct Members {
    pub(super) agents: Agents,
    pub(super) store: Arc<dyn Datastore>,
    /// The API server, where that is the datastore.
    pub(super) access: Option<Access>,
    /// How long the datastore took to tell of them.
    pub(super) listed_within: Duration,
}

impl MemberArguments {
    pub(super) fn terms(&self) -> Terms {
        Terms {
            each: Duration::from_secs(self.node_timeout),
            all: Duration::from_secs(self.timeout),
            at_once: usize::from(self.parallel),
        }
    }

    /// The agent's configuration, where it was named.
    pub(super) fn config(&self) -> Option<&Path> {
        self.cluster.config.as_deref()
    }

    /// Finds them.
    ///
    /// # Errors
    /// When the datastore cannot be used.
    pub(super) async fn find(&self) -> Result<Members, CliError> {
        self.cluster.find().await
    }
}

impl ClusterArguments {
    /// Whether a cluster was named.
    pub(super) fn is_named(&self) -> bool {
        self.kubeconfig.is_some() || self.config.is_some()
    }

    /// Finds its agents.
    ///
    /// # Errors
    /// When the datastore cannot be used.
    pub(super) async fn find(&self) -> Result<Members, CliError> {
        let config = match &self.config {
            Some(file) => Some(Config::load(Some(file), None)?),
            None => None,
        };
        let location = match (&config, &self.kubeconfig) {
            (Some(config), _) => config.datastore.location(),
            (None, Some(file)) => Location::Kubernetes(Access::Kubeconfig(file.clone())),
            (None, None) => Location::Kubernetes(Access::AsKubectl),
        };
        let store = datastore::open(&location, "", "", MissingFolder::Refuse).await?;
        let port = config
            .as_ref()
            .map_or(DEFAULT_PORT, |config| config.http.listen.port());
        let begun = std::time::Instant::now();
        let agents = match &location {
            Location::Kubernetes(access) if config.is_none() => {
                Agents::by_proxy(&store, access, &self.namespace, port).await?
            }
            _ => Agents::direct(&store, port).await?,
        };
        let access = match location {
            Location::Kubernetes(access) => Some(access),
            Location::Directory(_) => None,
        };
        Ok(Members {
            agents,
            store,
            access,
            listed_within: begun.elapsed(),
        })
    }
}
