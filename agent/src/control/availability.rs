//! Tells the cluster that pods may be sent to this node, once its routes are in the kernel. It is never taken back: an agent
//! that restarts, or has lost sight of the datastore, leaves the routes where they are.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::datastore::Datastore;
use crate::status::AgentStatus;

/// The first and the longest wait before it is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Waits until the agent is ready, and says so in the Node object of `node`.
pub(super) async fn keep(
    store: Arc<dyn Datastore>,
    node: String,
    mut status: watch::Receiver<Arc<AgentStatus>>,
) {
    if status.wait_for(|status| status.ready().is_ok()).await.is_err() {
        return;
    }
    let mut wait = RETRY.0;
    while let Err(error) = store.network_available(&node).await {
        warn!(%error, retry = ?wait, "cannot say that this node's network is there");
        sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
    info!(node, "the network of this node is there");
}
