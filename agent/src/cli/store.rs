//! The datastore, for commands that look at it or change it without an agent.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::CliError;
use crate::config::Config;
use crate::datastore::{self, Datastore, DatastoreError, MissingFolder};

/// Where the datastore is: as the agent is told it.
#[derive(Debug, Args)]
pub(super) struct StoreArguments {
    /// The agent's configuration, which says where the datastore is; the environment (CULVERT_*) overrides it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl StoreArguments {
    /// Opens the datastore and does `work` on it.
    ///
    /// # Errors
    /// When the configuration is wrong, when there is no datastore (none is made), or those of `work`.
    pub(super) fn run<T, F: Future<Output = Result<T, CliError>>>(
        &self,
        work: impl FnOnce(Arc<dyn Datastore>) -> F,
    ) -> Result<T, CliError> {
        let config = Config::load(self.config.as_deref(), None)?;
        let runtime = super::runtime()?;
        runtime.block_on(async {
            let location = config.datastore.location();
            let (node, secrets) = (config.node_name.as_str(), &config.bgp.secret_namespace);
            let opened = datastore::open(&location, node, secrets, MissingFolder::Refuse).await;
            let store = opened.map_err(|error| match error {
                DatastoreError::Io { operation, source } => DatastoreError::Io {
                    operation: format!(
                        "{operation}; name the agent's configuration with --config, or its folder with \
                         CULVERT_DATASTORE_DIRECTORY"
                    ),
                    source,
                },
                other => other,
            })?;
            work(store).await
        })
    }
}
