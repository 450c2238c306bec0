//! All that can have or use addresses, read from the datastore at one time: for the check and for garbage collection.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_ipam::snapshot::{Snapshot, Source, Stored};

use crate::allocation;
use crate::api::{BlockAffinity, Custom, IpamBlock, IpamHandle, Node};
use crate::datastore::{self, Datastore, DatastoreError};

/// Reads everything, the blocks first: a pod is there before it has an address, so that one whose address is among those
/// read is among the pods, unless it is gone.
///
/// # Errors
/// When something cannot be read: a part would be worse than nothing.
pub async fn read(store: &dyn Datastore) -> Result<Snapshot, DatastoreError> {
    let blocks = stored(datastore::list_whole::<IpamBlock>(store).await?);
    let (policy, affinities, handles, nodes) = futures_util::try_join!(
        allocation::policy_of_cluster(store),
        datastore::list_whole::<BlockAffinity>(store),
        datastore::list_whole::<IpamHandle>(store),
        datastore::list_whole::<Node>(store),
    )?;
    let mut in_sync = BTreeSet::from(Source::ALL);
    in_sync.remove(&Source::Pods);
    Ok(Snapshot {
        pools: policy.pools,
        reserved: policy.reserved,
        limits: policy.limits,
        blocks,
        affinities: stored(affinities),
        handles: stored(handles),
        nodes: nodes
            .into_iter()
            .map(|node| {
                let tunnel = node.tunnel_address().map(IpAddr::V4);
                (node.metadata.name, tunnel.into_iter().collect())
            })
            .collect(),
        pods: Vec::new(),
        in_sync,
    })
}

fn stored<S>(objects: Vec<Custom<S>>) -> Vec<Stored<S>> {
    let stored = objects.into_iter().map(|object| Stored {
        name: object.metadata.name,
        revision: object.metadata.resource_version.unwrap_or_default(),
        spec: object.spec,
    });
    stored.collect()
}
