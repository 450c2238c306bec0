//! Keeps what this node needs of the pools: a block of its own in each family, and the address of its tunnel device; and keeps its
//! Node object saying so. A Node object that is missing at the start is made; one that is deleted later stays so, and
//! nothing is claimed for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use culvert_ipam::pool::Family;

use crate::allocation::{AllocationError, Allocator};
use crate::api::Node;
use crate::datastore::{self, Datastore, DatastoreError};
use crate::node::{self, Announcement, Missing};

/// The first and the longest wait before a claim that failed is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What the pools ask of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Pods may need IPv4 addresses: there is an enabled pool.
    pub block: bool,
    /// Pods may need IPv6 addresses, and this node is known by one.
    pub block_v6: bool,
    /// Packets may need the tunnel: there is an enabled pool with an ipipMode other than Never.
    pub tunnel_address: bool,
    /// The advertised address is on no link, and is not said again: somebody may be naming another.
    pub address_is_gone: bool,
    /// The same of the IPv6 address.
    pub address_v6_is_gone: bool,
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
    let mut missing = Missing::Create;
    loop {
        let wanted = *needs.borrow_and_update();
        let failed = match claim(&store, &allocator, &node, (&announcement, missing), wanted).await {
            Ok(()) => {
                missing = Missing::Leave;
                false
            }
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
    (announcement, missing): (&Announcement, Missing),
    needs: Needs,
) -> Result<(), ClaimError> {
    if missing == Missing::Leave && datastore::get::<Node>(store.as_ref(), node).await?.is_none() {
        warn!(
            node,
            "the Node object is gone: nothing is claimed or published until it is back"
        );
        return Ok(());
    }
    // What one family lacks keeps nothing from the other, and the node from nobody.
    let v4 = ensure_block(allocator, Family::V4, needs.block).await;
    let v6 = ensure_block(allocator, Family::V6, needs.block_v6).await;
    let mut announcement = announcement.clone();
    if needs.tunnel_address {
        announcement.tunnel_address = Some(allocator.tunnel_address().await?);
    }
    if needs.address_is_gone {
        announcement.address = None;
    }
    if needs.address_v6_is_gone {
        announcement.address_v6 = None;
    }
    // All of it, each time: somebody may have changed what the Node object says, or put back an older one.
    node::publish(store, node, &announcement, missing).await?;
    v4.and(v6)
}

async fn ensure_block(allocator: &Allocator, family: Family, is_wanted: bool) -> Result<(), ClaimError> {
    if is_wanted {
        let blocks = allocator.ensure_block(family).await?;
        debug!(?blocks, "this node's blocks");
    }
    Ok(())
}
