//! All that can have or use addresses, read from the datastore at one time: for the check and for garbage collection.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_ipam::snapshot::{Pod as PodSeen, Snapshot, Source, Stored};

use crate::allocation;
use crate::api::{BlockAffinity, Custom, IpamBlock, IpamHandle, Node, Pod};
use crate::datastore::{self, Datastore, DatastoreError};

/// The annotations in which Calico's plugin notes the addresses of a pod, before its status has them.
const ADDRESS_ANNOTATIONS: [&str; 2] = ["cni.projectcalico.org/podIPs", "cni.projectcalico.org/podIP"];

/// Reads everything, the blocks first: a pod is there before it has an address, so that one whose address is among those
/// read is among the pods, unless it is gone.
///
/// # Errors
/// When something cannot be read: a part would be worse than nothing.
pub async fn read(store: &dyn Datastore) -> Result<Snapshot, DatastoreError> {
    let blocks = stored(datastore::list_whole::<IpamBlock>(store).await?);
    let (policy, affinities, handles, nodes, pods) = futures_util::try_join!(
        allocation::policy_of_cluster(store),
        datastore::list_whole::<BlockAffinity>(store),
        datastore::list_whole::<IpamHandle>(store),
        datastore::list_whole::<Node>(store),
        datastore::list_whole::<Pod>(store),
    )?;
    let mut in_sync = BTreeSet::from(Source::ALL);
    if !store.knows_pods() {
        in_sync.remove(&Source::Pods);
    }
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
        pods: pods.into_iter().filter_map(user).collect(),
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

/// A pod as one who uses addresses of a pool; none for one that has the node's network, or has ended.
fn user(pod: Pod) -> Option<PodSeen> {
    if pod.spec.host_network == Some(true) || pod.has_ended() {
        return None;
    }
    let noted = ADDRESS_ANNOTATIONS
        .iter()
        .filter_map(|name| pod.metadata.annotations.get(*name))
        .flat_map(|text| text.split(','))
        // Calico notes them with a prefix length.
        .filter_map(|entry| entry.trim().split('/').next()?.parse().ok());
    let told = pod
        .status
        .pod_ips
        .iter()
        .map(|ip| &ip.ip)
        .chain(&pod.status.pod_ip);
    let addresses: BTreeSet<IpAddr> = told.filter_map(|ip| ip.parse().ok()).chain(noted).collect();
    Some(PodSeen {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone(),
        node: pod.spec.node_name,
        addresses: addresses.into_iter().collect(),
    })
}
