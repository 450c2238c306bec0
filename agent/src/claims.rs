//! Keeps what this node needs of the pools: a block of its own, and the address of its tunnel device; and keeps its
//! Node object saying so.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, error};

use crate::allocation::{AllocationError, Allocator};
use crate::datastore::{Datastore, DatastoreError};
use crate::node::{self, Announcement};

/// The first and the longest wait before a claim that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the pools ask of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Pods may need addresses: there is an enabled pool.
    pub block: bool,
    /// Packets may need the tunnel: there is an enabled pool with an ipipMode other than Never.
    pub tunnel_address: bool,
    /// Counts what may have taken away a claim: changes of pools, of this node's claims and of its Node object.
    pub generation: u64,
}

/// Why a claim could not be made.
#[derive(Debug, thiserror::Error)]
enum ClaimError {
    #[error(transparent)]
    Allocation(#[from] AllocationError),
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
}

/// Makes the claims whenever `needs` changes, until it is dropped, and publishes `announcement` with the tunnel address.
pub async fn keep(
    store: Arc<dyn Datastore>,
    allocator: Allocator,
    node: String,
    announcement: Announcement,
    mut needs: watch::Receiver<Needs>,
) {
    let mut wait = RETRY.0;
    loop {
        let wanted = *needs.borrow_and_update();
        let failed = match claim(&store, &allocator, &node, &announcement, wanted).await {
            Ok(()) => false,
            Err(error) => {
                error!(%error, retry = ?wait, "cannot claim what this node needs");
                true
            }
        };
        // After a failure a retry is due even if nothing changes: others may have given something back.
        let limit = if failed { wait } else { Duration::MAX };
        wait = if failed { (wait * 2).min(RETRY.1) } else { RETRY.0 };
        if let Ok(Err(_)) = timeout(limit, needs.changed()).await {
            return;
        }
    }
}

async fn claim(
    store: &Arc<dyn Datastore>,
    allocator: &Allocator,
    node: &str,
    announcement: &Announcement,
    needs: Needs,
) -> Result<(), ClaimError> {
    if needs.block {
        let blocks = allocator.ensure_block().await?;
        debug!(?blocks, "this node's blocks");
    }
    let mut announcement = announcement.clone();
    if needs.tunnel_address {
        announcement.tunnel_address = Some(allocator.tunnel_address().await?);
    }
    // All of it, each time: somebody may have deleted the Node object, or changed what it says.
    node::publish(store, node, &announcement).await?;
    Ok(())
}
