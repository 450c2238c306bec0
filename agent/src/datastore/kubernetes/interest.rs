//! The single objects that are watched by their names, and why: this node's own blocks, the blocks of others in which it has
//! an address, and the Secrets with passwords.
//!
//! Of a large cluster's blocks nearly all are of no concern to a node, so that they are not watched as a kind; and a node
//! that borrows has to know the block that it borrows from, since it advertises the address by itself. It learns of such
//! blocks without looking through all of them, from what it knows anyway: its pods and its tunnel device have their
//! addresses written in their objects, whoever assigned them and before whatever restart, and a pool says in which block an
//! address lies. What this process takes itself is known from the write, before anybody has written down the pod's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_ipam::block::Block;
use culvert_ipam::name;
use culvert_ipam::pool::Pool;
use ipnet::IpNet;

use crate::api::{BgpPassword, Key, Kind, Node, Object, Pod};
use crate::datastore::Update;

/// An address was taken for this node in a block that is not its own.
#[derive(Clone, Debug)]
pub(super) struct Borrowed {
    pub(super) block: Key,
    /// The block's sequence number when it was written.
    pub(super) sequence_number: u64,
}

impl Borrowed {
    /// Of a block as it was written; none where `node` has nothing in it, or all of it.
    pub(super) fn of(block: &Block, node: &str) -> Option<Self> {
        let is_borrowed = !block.is_of_node(node) && !block.deleted && has_address_of(block, node);
        is_borrowed.then(|| Self {
            block: Key::new(Kind::IpamBlock, name::block(block.cidr)),
            sequence_number: block.sequence_number,
        })
    }
}

/// What makes single objects worth watching.
#[derive(Debug)]
pub(super) struct Interest {
    node: String,
    /// The namespace of the Secrets; none where none are read.
    secrets: Option<String>,
    /// The blocks of this node, by the claim.
    claims: BTreeMap<Key, Key>,
    /// The addresses of the pods on this node, by the pod.
    pods: BTreeMap<Key, Vec<IpAddr>>,
    /// That of its tunnel device.
    tunnel: Option<IpAddr>,
    pools: BTreeMap<String, Pool>,
    /// Blocks of others in which this node was last seen to have an address, or took one: with the sequence number of the
    /// block since which that is so.
    borrowed: BTreeMap<Key, u64>,
    /// Secrets, by what names them.
    passwords: BTreeMap<Key, Key>,
}

impl Interest {
    /// That of the agent of a node, which reads Secrets of this namespace only.
    pub(super) fn new(node: &str, secrets: Option<&str>) -> Self {
        Self {
            node: node.to_owned(),
            secrets: secrets.map(str::to_owned),
            claims: BTreeMap::new(),
            pods: BTreeMap::new(),
            tunnel: None,
            pools: BTreeMap::new(),
            borrowed: BTreeMap::new(),
            passwords: BTreeMap::new(),
        }
    }

    /// All objects that are to be watched.
    pub(super) fn objects(&self) -> BTreeSet<Key> {
        let addresses = self.pods.values().flatten().chain(&self.tunnel);
        let of_addresses = addresses.filter_map(|address| self.block_of(*address));
        let others = self.claims.values().chain(self.borrowed.keys());
        let others = others.chain(self.passwords.values()).cloned();
        others.chain(of_addresses).collect()
    }

    /// Takes in what was told; whether other objects may be of interest now.
    pub(super) fn follow(&mut self, update: &Update) -> bool {
        match update {
            Update::Upsert(object) => self.upsert(object),
            Update::Delete(key) => self.remove(key),
            Update::InSync | Update::Problem(_) => false,
        }
    }

    /// Takes in that an address was taken; whether its block is of interest only now.
    pub(super) fn borrow(&mut self, borrowed: Borrowed) -> bool {
        let since = self.borrowed.get(&borrowed.block).copied();
        let newest = since.map_or(borrowed.sequence_number, |since| {
            since.max(borrowed.sequence_number)
        });
        self.borrowed.insert(borrowed.block, newest);
        since.is_none()
    }

    fn upsert(&mut self, object: &Object) -> bool {
        let key = object.key();
        match object {
            Object::BlockAffinity(affinity) => {
                let spec = &affinity.spec;
                let is_ours = spec.is_of_node(&self.node) && !spec.is_deleted();
                let block = is_ours.then(|| Key::new(Kind::IpamBlock, name::block(spec.cidr)));
                set(&mut self.claims, key, block)
            }
            Object::Pod(pod) => set(&mut self.pods, key, addresses(pod)),
            Object::Node(node) if key.name == self.node => self.tunnel_is(node),
            Object::IpPool(pool) => {
                let spec = &pool.spec;
                let pool = Pool::new(&pool.metadata.name, spec.cidr, spec.block_size).ok();
                set(&mut self.pools, key.name, pool)
            }
            Object::IpamBlock(block) => self.block_told(&key, &block.spec),
            Object::BgpPeer(peer) => self.password(key, peer.spec.password.as_ref()),
            Object::BgpConfiguration(bgp) => self.password(key, bgp.spec.node_mesh_password.as_ref()),
            _ => false,
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        match key.kind {
            Kind::BlockAffinity => self.claims.remove(key).is_some(),
            Kind::Pod => self.pods.remove(key).is_some(),
            Kind::IpPool => self.pools.remove(&key.name).is_some(),
            Kind::IpamBlock => self.borrowed.remove(key).is_some(),
            Kind::BgpPeer | Kind::BgpConfiguration => self.passwords.remove(key).is_some(),
            Kind::Node if key.name == self.node => self.tunnel.take().is_some(),
            _ => false,
        }
    }

    fn tunnel_is(&mut self, node: &Node) -> bool {
        let tunnel = node.tunnel_address().map(IpAddr::V4);
        std::mem::replace(&mut self.tunnel, tunnel) != tunnel
    }

    fn block_told(&mut self, key: &Key, block: &Block) -> bool {
        if let Some(borrowed) = Borrowed::of(block, &self.node) {
            return self.borrow(borrowed);
        }
        // An older state than the one that was written may be told after it.
        let is_over = self
            .borrowed
            .get(key)
            .is_some_and(|since| block.sequence_number >= *since);
        is_over && self.borrowed.remove(key).is_some()
    }

    fn password(&mut self, owner: Key, password: Option<&BgpPassword>) -> bool {
        let reference = password.and_then(|password| password.secret_key_ref.as_ref());
        let secret = self
            .secrets
            .as_deref()
            .zip(reference)
            .map(|(namespace, reference)| {
                Key::namespaced(Kind::Secret, Some(namespace), reference.name.as_str())
            });
        set(&mut self.passwords, owner, secret)
    }

    /// The block of an address: of several pools around it the smallest counts, as for its route.
    fn block_of(&self, address: IpAddr) -> Option<Key> {
        let around = self.pools.values().filter(|pool| pool.cidr().contains(&address));
        let pool = around.max_by_key(|pool| pool.cidr().prefix_len())?;
        let block: IpNet = pool.block_of(address)?;
        Some(Key::new(Kind::IpamBlock, name::block(block)))
    }
}

/// Whether `node` has an address in the block that does not rest.
fn has_address_of(block: &Block, node: &str) -> bool {
    block
        .taken()
        .any(|taken| taken.attribute.value("node") == Some(node) && !taken.attribute.rests())
}

/// The addresses of a pod that has its own, until it has ended.
fn addresses(pod: &Pod) -> Option<Vec<IpAddr>> {
    if pod.spec.host_network == Some(true) || pod.has_ended() {
        return None;
    }
    let all = pod
        .status
        .pod_ips
        .iter()
        .map(|ip| &ip.ip)
        .chain(&pod.status.pod_ip);
    let addresses: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    (!addresses.is_empty()).then_some(addresses)
}

/// Sets or removes a value; whether it was another.
fn set<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    let changed = map.get(&key) != value.as_ref();
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
    changed
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(kind: Kind, body: Value) -> Update {
        Update::Upsert(Box::new(Object::deserialize(kind, body).unwrap()))
    }

    fn pool() -> Update {
        told(
            Kind::IpPool,
            json!({"metadata": {"name": "p"}, "spec": {"cidr": "10.65.0.0/16"}}),
        )
    }

    fn pod(address: &str, phase: &str) -> Update {
        told(
            Kind::Pod,
            json!({"metadata": {"name": "w", "namespace": "d"}, "spec": {"nodeName": "a"},
                "status": {"phase": phase, "podIP": address, "podIPs": [{"ip": address}]}}),
        )
    }

    fn block(owner: &str, holder: &str, number: u64) -> Update {
        told(
            Kind::IpamBlock,
            json!({"metadata": {"name": "10-65-3-0-26"}, "spec": {"cidr": "10.65.3.0/26", "affinity": format!("host:{owner}"),
                "allocations": [0], "unallocated": [], "attributes": [{"handle_id": "h", "secondary": {"node": holder}}],
                "sequenceNumber": number, "strictAffinity": false}}),
        )
    }

    fn names(interest: &Interest) -> Vec<String> {
        interest.objects().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_blocks_of_the_nodes_own_pods_and_tunnel_are_of_interest_in_whichever_order_they_are_told() {
        let node = told(
            Kind::Node,
            json!({"metadata": {"name": "a", "annotations": {"projectcalico.org/IPv4IPIPTunnelAddr": "10.65.9.1"}}}),
        );
        let mut interest = Interest::new("a", None);
        for update in [pod("10.65.3.7", "Running"), node] {
            assert!(interest.follow(&update));
            assert_eq!(names(&interest), [""; 0], "no pool says in which block they are");
        }
        assert!(interest.follow(&pool()));
        assert!(!interest.follow(&pool()), "it was told before");
        let both = ["IPAMBlock 10-65-3-0-26", "IPAMBlock 10-65-9-0-26"];
        assert_eq!(names(&interest), both);
        assert!(
            interest.follow(&pod("10.65.3.7", "Succeeded")),
            "its address is nobody's"
        );
        assert!(interest.follow(&Update::Delete(Key::new(Kind::Node, "a"))));
        assert_eq!(names(&interest), [""; 0]);
    }

    #[test]
    fn a_block_that_was_borrowed_from_is_of_interest_until_it_is_told_that_nothing_is_left() {
        let mut interest = Interest::new("a", None);
        let Update::Upsert(object) = block("b", "a", 7) else {
            unreachable!()
        };
        let Object::IpamBlock(written) = *object else {
            unreachable!()
        };
        let borrowed = Borrowed::of(&written.spec, "a").unwrap();
        assert!(interest.borrow(borrowed.clone()) && !interest.borrow(borrowed));
        assert!(Borrowed::of(&written.spec, "b").is_none() && Borrowed::of(&written.spec, "c").is_none());
        assert!(!interest.follow(&block("b", "b", 6)), "that was before");
        assert_eq!(names(&interest), ["IPAMBlock 10-65-3-0-26"]);
        assert!(!interest.follow(&block("b", "a", 8)));
        assert!(!interest.follow(&block("b", "b", 7)));
        assert!(interest.follow(&block("b", "b", 9)));
        assert_eq!(names(&interest), [""; 0]);
    }

    #[test]
    fn a_secret_is_of_interest_while_something_names_it_and_only_where_secrets_are_read() {
        let peer = |secret: &str| {
            told(
                Kind::BgpPeer,
                json!({"metadata": {"name": "tor"}, "spec": {"peerIP": "192.0.2.1", "asNumber": 64513,
                    "password": {"secretKeyRef": {"name": secret, "key": "k"}}}}),
            )
        };
        let mut interest = Interest::new("a", Some("kube-system"));
        assert!(
            interest.follow(&peer("one")) && !interest.follow(&peer("one")) && interest.follow(&peer("two"))
        );
        assert_eq!(names(&interest), ["Secret kube-system/two"]);
        assert!(interest.follow(&Update::Delete(Key::new(Kind::BgpPeer, "tor"))));
        assert_eq!(names(&interest), [""; 0]);
        let mut blind = Interest::new("a", None);
        assert!(!blind.follow(&peer("one")));
    }
}
