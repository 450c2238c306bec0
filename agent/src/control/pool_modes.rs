//! Pools whose packets go another way than before, and NICs that drop packets meanwhile.
//!
//! When a pool's `ipipMode` changes, no two nodes follow at the same moment. For as long as they disagree, packets come in by
//! another way than the answers go out: a reverse-path filter that is strict (RFC 3704 §2.2) drops those that come in by
//! the NIC and would be answered through the tunnel. The tunnel device's own filter is loosened; the NIC's is the host's,
//! so that is only told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::api::EncapsulationMode;
use crate::cluster::Cluster;
use crate::reconcile::Actual;

/// The mode of each pool, as it was last seen.
#[derive(Debug, Default)]
pub(super) struct PoolModes(BTreeMap<String, EncapsulationMode>);

impl PoolModes {
    /// Takes note of the modes of all pools, and says what may be lost because one has changed: a sentence for each.
    pub(super) fn note(&mut self, cluster: &Cluster, address: IpAddr, actual: &Actual) -> Vec<String> {
        let now = cluster
            .pools()
            .map(|(name, pool)| (name.to_owned(), pool.ipip_mode));
        let before = std::mem::replace(&mut self.0, now.collect());
        let strict: Vec<&str> = actual
            .links_with_address(address)
            .filter(|link| actual.is_strict(link.index))
            .map(|link| link.name.as_str())
            .collect();
        let changed = self.0.iter().filter_map(|(name, mode)| {
            let former = before.get(name).filter(|former| *former != mode)?;
            Some((name, *former, *mode))
        });
        let sentences = changed.flat_map(|(name, former, mode)| {
            strict.iter().map(move |nic| {
                format!(
                    "ipipMode of the pool {name} changes from {former:?} to {mode:?}, and the reverse-path filter of {nic} is \
                     strict (the greater of net.ipv4.conf.{nic}.rp_filter and net.ipv4.conf.all.rp_filter is 1): until all \
                     nodes have followed it may drop packets; set net.ipv4.conf.{nic}.rp_filter=2 before such a change"
                )
            })
        });
        sentences.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::{IpPool, Object};
    use crate::fib::Snapshot;
    use crate::fixtures::{address, link};

    fn pool(mode: &str) -> Object {
        let yaml = format!("metadata: {{name: pods}}\nspec: {{cidr: 10.65.0.0/16, ipipMode: {mode}}}");
        let pool: IpPool = serde_yaml::from_str(&yaml).unwrap();
        Object::IpPool(pool)
    }

    fn kernel(strict: &[u32]) -> Actual {
        Actual::new(Snapshot {
            links: vec![link(2, "eth0"), link(3, "eth1")],
            addresses: vec![address(2, "172.18.0.11/24")],
            strict: BTreeSet::from_iter(strict.iter().copied()),
            ..Snapshot::default()
        })
    }

    #[test]
    fn a_strict_filter_on_the_nic_of_the_advertised_address_is_told_when_a_pool_changes_its_mode() {
        let address = "172.18.0.11".parse().unwrap();
        for (strict, told) in [(&[2][..], 1), (&[3], 0), (&[], 0)] {
            let mut modes = PoolModes::default();
            let mut cluster = Cluster::default();
            cluster.upsert(&pool("Always"));
            let mut note = |cluster: &Cluster| modes.note(cluster, address, &kernel(strict));
            assert!(note(&cluster).is_empty(), "a pool that is new changes nothing");
            assert!(note(&cluster).is_empty());
            cluster.upsert(&pool("CrossSubnet"));
            let sentences = note(&cluster);
            assert_eq!(sentences.len(), told, "{sentences:?}");
            assert!(
                sentences
                    .iter()
                    .all(|s| s.contains("pods") && s.contains("net.ipv4.conf.eth0.rp_filter=2")),
                "{sentences:?}"
            );
            assert!(note(&cluster).is_empty(), "it is told once");
        }
    }
}
