//! Addresses of pods and nodes that are gone (Calico's `checkAllocations`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::name;
use crate::snapshot::{HeldAddress, Pod, Snapshot};
use crate::timestamp::Timestamp;

use super::{Collection, Evidence, Leak, Leftover, Memory, Reclaim, Settings, Sighting};

/// The addresses of a snapshot that look leaked, and all addresses of each handle.
pub(super) struct Leaks {
    leaks: BTreeMap<(IpAddr, u64), Leak>,
    of_handle: BTreeMap<String, BTreeSet<(IpAddr, u64)>>,
}

impl Leaks {
    /// Where nobody tells of pods, what is known of nodes must do.
    pub(super) fn of(snapshot: &Snapshot, pods_are_told: bool) -> Self {
        let pods = snapshot.pods_by_name();
        let mut found = Self {
            leaks: BTreeMap::new(),
            of_handle: BTreeMap::new(),
        };
        for held in snapshot.held() {
            let key = (held.address, held.sequence_number);
            let handle = held.attribute.handle().map(str::to_owned);
            if let Some(handle) = &handle {
                found
                    .of_handle
                    .entry(name::handle(handle))
                    .or_default()
                    .insert(key);
            }
            let evidence = if held.is_of_tunnel() || !pods_are_told {
                no_node(snapshot, &held)
            } else {
                evidence(&pods, &held)
            };
            if let Some(evidence) = evidence {
                let leak = Leak {
                    address: held.address,
                    handle,
                    node: held.node().map(str::to_owned),
                    sequence_number: held.sequence_number,
                    leftover: if held.is_of_tunnel() {
                        Leftover::TunnelAddress
                    } else {
                        Leftover::PodAddress
                    },
                    evidence,
                };
                found.leaks.insert(key, leak);
            }
        }
        found
    }

    /// All of them.
    pub(super) fn into_all(self) -> Vec<Leak> {
        self.leaks.into_values().collect()
    }

    /// Whether it looks leaked here too, in the same life.
    pub(super) fn has(&self, leak: &Leak) -> bool {
        let found = self.leaks.get(&(leak.address, leak.sequence_number));
        found.is_some_and(|found| found.handle == leak.handle)
    }

    /// Whether their handle has no address besides them.
    pub(super) fn are_all_of_their_handle(&self, leaks: &[Leak]) -> bool {
        let keys: BTreeSet<_> = leaks.iter().map(|l| (l.address, l.sequence_number)).collect();
        let handles = leaks.iter().filter_map(|l| l.handle.as_deref());
        handles
            .filter_map(|handle| self.of_handle.get(&name::handle(handle)))
            .all(|all| all.is_subset(&keys))
    }
}

/// Whether the node is gone that an address was taken for. Those of tunnels live and die with the Node object only.
fn no_node(snapshot: &Snapshot, held: &HeldAddress<'_>) -> Option<Evidence> {
    if !held.is_of_tunnel() {
        held.pod()?;
    }
    let node = held.node()?;
    (!snapshot.nodes.contains_key(node)).then_some(Evidence::NoNode)
}

/// What speaks for the address of a pod being leaked; `None` for one that is valid for all that is known: one without a
/// pod's name, or whose pod is about to get an address.
fn evidence(pods: &BTreeMap<(&str, &str), Vec<&Pod>>, held: &HeldAddress<'_>) -> Option<Evidence> {
    let (namespace, name) = held.pod()?;
    let (pod, in_namespace) = (name.to_owned(), namespace.to_owned());
    let Some(pods) = pods.get(&(namespace, name)) else {
        return Some(Evidence::NoPod {
            namespace: in_namespace,
            pod,
        });
    };
    // A pod and one of the same name that replaces it may both be there.
    let mut against = None;
    for candidate in pods {
        against = match (held.node(), &candidate.node) {
            (Some(node), Some(is_on)) if node != is_on => Some(Evidence::OtherNode {
                namespace: in_namespace.clone(),
                pod: pod.clone(),
                is_on: is_on.clone(),
            }),
            _ if candidate.addresses.is_empty() || candidate.addresses.contains(&held.address) => {
                return None;
            }
            _ => Some(Evidence::OtherAddresses {
                namespace: in_namespace.clone(),
                pod: pod.clone(),
                has: candidate.addresses.clone(),
            }),
        };
    }
    against
}

pub(super) fn collect(
    snapshot: &Snapshot,
    settings: Settings,
    memory: &Memory,
    now: Timestamp,
    collection: &mut Collection,
) {
    let found = Leaks::of(snapshot, settings.pods_are_told);
    let mut by_handle: BTreeMap<String, Vec<&Leak>> = BTreeMap::new();
    let mut unproven = BTreeSet::new();
    for (key, leak) in &found.leaks {
        let sighting = Sighting::again(memory.addresses.get(key), now);
        collection.memory.addresses.insert(*key, sighting);
        let is_node_gone = leak
            .node
            .as_ref()
            .is_some_and(|n| !snapshot.nodes.contains_key(n));
        let proven = match (is_node_gone && settings.pods_are_told, settings.grace_seconds) {
            (true, _) => sighting.is_proven(now, 0),
            (false, 0) => false,
            (false, grace) => sighting.is_proven(now, grace),
        };
        if !proven {
            unproven.insert(*key);
        }
        // An address without a handle goes alone.
        let group = leak.handle.as_deref().map(name::handle);
        by_handle
            .entry(group.unwrap_or_else(|| format!("address {}", leak.address)))
            .or_default()
            .push(leak);
    }
    for leaks in by_handle.into_values() {
        let leaks: Vec<Leak> = leaks.into_iter().cloned().collect();
        let is_proven = |l: &Leak| !unproven.contains(&(l.address, l.sequence_number));
        // All or none of a handle, so that its counts and what it has stay in step.
        if leaks.iter().all(is_proven) && found.are_all_of_their_handle(&leaks) {
            collection.reclaims.push(Reclaim::Addresses(leaks));
        } else {
            leaks.iter().for_each(|leak| collection.wait(leak.leftover));
            collection.candidates.extend(leaks);
        }
    }
}
