//! What the datastore says, as the rest of the agent uses it.
//!
//! Pure: the same objects in any order give the same [`Cluster`]. What is not needed of an object is not kept, so that
//! the memory of a node grows with the number of others, not with the number of their pods.

mod bgp;
mod labels;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use culvert_bgp::id::Asn;
use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::block::Block;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::api::{IpPoolSpec, Key, Kind, Node, Object};

pub use bgp::BgpResources;
pub use labels::Labels;
pub use services::{ServiceAddresses, Services};

/// The AS number of a cluster that names none, as Calico has it.
pub(crate) const DEFAULT_AS_NUMBER: Asn = match Asn::new(64_512) {
    Some(asn) => asn,
    None => unreachable!(),
};

/// The cluster, as far as this node needs to know it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    nodes: BTreeMap<String, ClusterNode>,
    pools: BTreeMap<String, IpPoolSpec>,
    claims: Claims,
    /// Addresses in use in each block.
    blocks: BTreeMap<String, usize>,
    /// The addresses in each block that another node has than the block's own, with that node's name; there are few.
    lent: BTreeMap<String, BTreeSet<(String, IpAddr)>>,
    bgp: BgpResources,
}

/// What a change of an object changes; each includes those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterChange {
    /// Nothing.
    #[default]
    Nothing,
    /// How many addresses are in use.
    Usage,
    /// What a node advertises: whose a block is, or is about to be; which addresses in it another node has; services.
    Blocks,
    /// Anything: nodes, pools, how they speak BGP.
    Everything,
}

impl ClusterChange {
    fn or_nothing(self, changed: bool) -> Self {
        if changed { self } else { Self::Nothing }
    }
}

/// How a node is known to the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNode {
    /// The address it advertises, with its prefix length; none until it has published one.
    pub address: Option<Ipv4Net>,
    /// Its own AS number; none for the cluster's.
    pub as_number: Option<Asn>,
    /// The address of its tunnel device.
    pub tunnel_address: Option<Ipv4Addr>,
    /// The IPv4 addresses that its status names, advertised or not.
    pub addresses: Vec<Ipv4Addr>,
    /// Its labels.
    pub labels: Labels,
    /// The IPv6 address it advertises; none until it has published one.
    pub address_v6: Option<Ipv6Net>,
    /// The cluster that it is a route reflector of (RFC 4456 §7).
    pub reflector_cluster: Option<Ipv4Addr>,
}

impl From<&Node> for ClusterNode {
    fn from(node: &Node) -> Self {
        Self {
            address: node.advertised_address(),
            as_number: node.as_number(),
            tunnel_address: node.tunnel_address(),
            addresses: node.ipv4_addresses().collect(),
            labels: Labels::from(&node.metadata.labels),
            address_v6: node.advertised_address_v6(),
            reflector_cluster: node.reflector_cluster(),
        }
    }
}

impl ClusterNode {
    /// The addresses that it advertises: none, one, or one of each family.
    pub fn advertised(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.address.map(|net| IpAddr::V4(net.addr()));
        let v6 = self.address_v6.map(|net| IpAddr::V6(net.addr()));
        v4.into_iter().chain(v6)
    }
}

/// Two nodes that advertise one address: packets for both reach only one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedAddress {
    /// The address.
    pub address: IpAddr,
    /// The node that is taken at its word: the first by name.
    pub kept: String,
    /// The node that is left out.
    pub left_out: String,
}

impl Cluster {
    /// Takes in an object that appeared or changed, and says what that changed.
    pub fn upsert(&mut self, object: &Object) -> ClusterChange {
        let name = object.metadata().name.clone();
        match object {
            Object::Node(node) => {
                let changed = replace(&mut self.nodes, name, ClusterNode::from(node));
                ClusterChange::Everything.or_nothing(changed)
            }
            Object::IpPool(pool) => {
                let changed = replace(&mut self.pools, name, pool.spec.clone());
                ClusterChange::Everything.or_nothing(changed)
            }
            Object::BlockAffinity(affinity) => {
                ClusterChange::Blocks.or_nothing(self.claims.insert(name, &affinity.spec))
            }
            Object::IpamBlock(block) => {
                let lent = self.replace_lent(&name, lent(&block.spec));
                let used = replace(&mut self.blocks, name, block.spec.in_use());
                let usage = ClusterChange::Usage.or_nothing(used);
                usage.max(ClusterChange::Blocks.or_nothing(lent))
            }
            Object::BgpConfiguration(_) | Object::BgpPeer(_) | Object::BgpFilter(_) | Object::Secret(_) => {
                ClusterChange::Everything.or_nothing(self.bgp.upsert(object))
            }
            Object::Service(_) | Object::EndpointSlice(_) => {
                ClusterChange::Blocks.or_nothing(self.bgp.upsert(object))
            }
            Object::IpReservation(_)
            | Object::IpamHandle(_)
            | Object::IpamConfig(_)
            | Object::Pod(_)
            | Object::Namespace(_)
            | Object::Lease(_) => ClusterChange::Nothing,
        }
    }

    /// Takes in that an object is gone, and says what that changed.
    pub fn remove(&mut self, key: &Key) -> ClusterChange {
        let name = &key.name;
        match key.kind {
            Kind::Node => ClusterChange::Everything.or_nothing(self.nodes.remove(name).is_some()),
            Kind::IpPool => ClusterChange::Everything.or_nothing(self.pools.remove(name).is_some()),
            Kind::BlockAffinity => ClusterChange::Blocks.or_nothing(self.claims.remove(name)),
            Kind::IpamBlock => {
                let usage = ClusterChange::Usage.or_nothing(self.blocks.remove(name).is_some());
                usage.max(ClusterChange::Blocks.or_nothing(self.lent.remove(name).is_some()))
            }
            Kind::BgpConfiguration | Kind::BgpPeer | Kind::BgpFilter | Kind::Secret => {
                ClusterChange::Everything.or_nothing(self.bgp.remove(key))
            }
            Kind::Service | Kind::EndpointSlice => ClusterChange::Blocks.or_nothing(self.bgp.remove(key)),
            Kind::IpReservation
            | Kind::IpamHandle
            | Kind::IpamConfig
            | Kind::Pod
            | Kind::Namespace
            | Kind::Lease => ClusterChange::Nothing,
        }
    }

    /// The node of this name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&ClusterNode> {
        self.nodes.get(name)
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &ClusterNode)> {
        self.nodes.iter().map(|(name, node)| (name.as_str(), node))
    }

    /// The nodes that have an address, by it: by both where they have two. Of two with the same address the first by name counts.
    #[must_use]
    pub fn nodes_by_address(&self) -> BTreeMap<IpAddr, &str> {
        let mut by_address = BTreeMap::new();
        for (name, node) in &self.nodes {
            for address in node.advertised() {
                by_address.entry(address).or_insert(name.as_str());
            }
        }
        by_address
    }

    /// The nodes that are left out under an address because another advertises it too.
    #[must_use]
    pub fn shared_addresses(&self) -> Vec<SharedAddress> {
        let by_address = self.nodes_by_address();
        let advertised = self
            .nodes
            .iter()
            .flat_map(|(name, node)| node.advertised().map(move |address| (name, address)));
        let shared = advertised.filter_map(|(name, address)| {
            let kept = *by_address.get(&address)?;
            let clash = SharedAddress {
                address,
                kept: kept.to_owned(),
                left_out: name.clone(),
            };
            (kept != name).then_some(clash)
        });
        shared.collect()
    }

    /// The AS number of a node: its own, else the cluster's, else 64512.
    #[must_use]
    pub fn as_number(&self, node: &ClusterNode) -> Asn {
        node.as_number.unwrap_or_else(|| self.default_as_number())
    }

    /// The AS number of nodes that have none of their own.
    #[must_use]
    pub fn default_as_number(&self) -> Asn {
        let number = self.bgp.configuration().as_number;
        number
            .and_then(|number| Asn::new(number.0))
            .unwrap_or(DEFAULT_AS_NUMBER)
    }

    /// The settings of the speakers, their peers and filters.
    #[must_use]
    pub fn bgp(&self) -> &BgpResources {
        &self.bgp
    }

    /// Whether every node peers with every other.
    #[must_use]
    pub fn is_full_mesh(&self) -> bool {
        self.bgp.configuration().node_to_node_mesh_enabled.unwrap_or(true)
    }

    /// All pools, by name.
    pub fn pools(&self) -> impl Iterator<Item = (&str, &IpPoolSpec)> {
        self.pools.iter().map(|(name, pool)| (name.as_str(), pool))
    }

    /// Whether pods may get IPv6 addresses at all.
    #[must_use]
    pub fn gives_ipv6(&self) -> bool {
        self.pools().any(|(_, pool)| pool.gives_ipv6())
    }

    /// The pool that all of `net` lies in; of several the smallest.
    #[must_use]
    pub fn pool_of(&self, net: &IpNet) -> Option<&IpPoolSpec> {
        let around = self.pools.values().filter(|pool| pool.cidr.contains(net));
        around.max_by_key(|pool| pool.cidr.prefix_len())
    }

    /// The blocks that are `node`'s. Only a confirmed claim counts: a pending one may yet be another node's, and one that
    /// is being given up may be so already.
    pub fn blocks_of(&self, node: &str) -> impl Iterator<Item = IpNet> {
        self.claims.confirmed_of(node)
    }

    /// The block that `net` lies in, and the node whose it is. Only a confirmed claim counts.
    #[must_use]
    pub fn block_around(&self, net: &IpNet) -> Option<(IpNet, &str)> {
        self.claims.confirmed().find(|(block, _)| block.contains(net))
    }

    /// All blocks that somebody has, with the node that has it. Only confirmed claims count.
    pub fn claimed_blocks(&self) -> impl Iterator<Item = (IpNet, &str)> {
        self.claims.confirmed()
    }

    /// How many addresses of a block are in use, where that is known here.
    #[must_use]
    pub fn in_use(&self, block: &IpNet) -> Option<usize> {
        self.blocks.get(&culvert_ipam::name::block(*block)).copied()
    }

    /// The addresses that `node` has in blocks that are not marked as its own: those of another node, or of none.
    pub fn borrowed_by(&self, node: &str) -> impl Iterator<Item = IpAddr> {
        let lent = self.lent.values().flatten();
        lent.filter(move |(borrower, _)| borrower == node)
            .map(|(_, address)| *address)
    }

    fn replace_lent(&mut self, block: &str, lent: BTreeSet<(String, IpAddr)>) -> bool {
        let changed = self
            .lent
            .get(block)
            .map_or(!lent.is_empty(), |known| *known != lent);
        if lent.is_empty() {
            self.lent.remove(block);
        } else if changed {
            self.lent.insert(block.to_owned(), lent);
        }
        changed
    }

    /// How many addresses of `node`'s blocks are in use.
    #[must_use]
    pub fn addresses_in_use(&self, node: &str) -> usize {
        let count = |block: IpNet| {
            self.blocks
                .get(&culvert_ipam::name::block(block))
                .copied()
                .unwrap_or(0)
        };
        self.blocks_of(node).map(count).sum()
    }
}

/// The claims of blocks, by the node that makes them: a node asks for its own all the time, and there may be a hundred
/// thousand of others.
#[derive(Clone, Debug, Default, PartialEq)]
struct Claims {
    /// By the claiming node, and the name of the object.
    by_node: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Claim>>,
    /// The claiming node by the name of the object.
    nodes: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
struct Claim {
    block: IpNet,
    state: AffinityState,
    is_confirmed: bool,
}

impl Claims {
    /// Whether that changed anything.
    fn insert(&mut self, name: String, affinity: &Affinity) -> bool {
        let claim = Claim {
            block: affinity.cidr,
            state: affinity.state,
            is_confirmed: affinity.is_confirmed_for(&affinity.node),
        };
        let known = self.nodes.get(name.as_str());
        if known.is_some_and(|node| **node == *affinity.node)
            && self
                .by_node
                .get(affinity.node.as_str())
                .and_then(|claims| claims.get(name.as_str()))
                == Some(&claim)
        {
            return false;
        }
        self.remove(&name);
        let name: Arc<str> = name.into();
        let node = self
            .by_node
            .get_key_value(affinity.node.as_str())
            .map_or_else(|| Arc::from(affinity.node.as_str()), |(node, _)| Arc::clone(node));
        let claims = self.by_node.entry(Arc::clone(&node)).or_default();
        claims.insert(Arc::clone(&name), claim);
        self.nodes.insert(name, node);
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(node) = self.nodes.remove(name) else {
            return false;
        };
        if let Some(claims) = self.by_node.get_mut(&node) {
            claims.remove(name);
            if claims.is_empty() {
                self.by_node.remove(&node);
            }
        }
        true
    }

    fn confirmed(&self) -> impl Iterator<Item = (IpNet, &str)> {
        self.by_node.iter().flat_map(|(node, claims)| {
            let of_node = claims.values().filter(|claim| claim.is_confirmed);
            of_node.map(|claim| (claim.block, &**node))
        })
    }

    fn confirmed_of(&self, node: &str) -> impl Iterator<Item = IpNet> {
        let claims = self.by_node.get(node).into_iter().flat_map(BTreeMap::values);
        claims.filter(|claim| claim.is_confirmed).map(|claim| claim.block)
    }
}

/// The addresses of a block that a node has whose block it is not. One that was released and rests is nobody's.
fn lent(block: &Block) -> BTreeSet<(String, IpAddr)> {
    if block.deleted {
        return BTreeSet::new();
    }
    let borrowed = block.taken().filter_map(|taken| {
        let node = taken.attribute.value("node")?;
        (!taken.attribute.rests() && !block.is_of_node(node)).then(|| (node.to_owned(), taken.address))
    });
    borrowed.collect()
}

fn replace<K: Ord, T: PartialEq>(map: &mut BTreeMap<K, T>, name: K, value: T) -> bool {
    let changed = map.get(&name) != Some(&value);
    map.insert(name, value);
    changed
}
