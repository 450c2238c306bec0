//! Which tunnelled packets this node admits, and which packets it masquerades, as a function of the datastore.
//!
//! Pure. The tunnel device takes packets from whoever sends them, so that a node whose packets leave with the wrong
//! source is answered into the void, and nobody sees why. Here such packets are refused, counted by their source, and
//! told with the name of the node that owns it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};

use crate::cluster::Cluster;

/// A source that sent nothing for so long and begins anew is told again.
const BURST_ENDS: Duration = Duration::from_secs(60);

/// What happens to tunnelled packets from an address that no node advertises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownTunnelPeers {
    /// They are dropped, and counted by source.
    #[default]
    Drop,
    /// They are let in, whoever sends them.
    Off,
}

/// What the packet filter of this node should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// What happens to packets of protocol 4 from elsewhere than `nodes`.
    pub unknown_tunnel_peers: UnknownTunnelPeers,
    /// The advertised address of every node, this one included.
    pub nodes: BTreeSet<Ipv4Addr>,
    /// Every pool: what is in one is inside of the cluster.
    pub pools: BTreeSet<Ipv4Net>,
    /// The pools with `natOutgoing`: what leaves the cluster from there gets this node's address.
    pub masqueraded: BTreeSet<Ipv4Net>,
}

/// A filter, and what is needed to tell of what it refuses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The filter.
    pub filter: Filter,
    /// Whose an address is, for all that the Node objects name.
    pub owners: BTreeMap<Ipv4Addr, Owner>,
}

/// The node that has an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub node: String,
    /// The address it advertises; none until it has published one.
    pub advertised: Option<Ipv4Addr>,
}

/// What the filter of the node `name`, known by `address`, should be. `None` while the cluster does not hold this node
/// itself: such a list is not whole, and to act on it would cut the node off.
#[must_use]
pub fn wanted(
    name: &str,
    address: Ipv4Addr,
    unknown_tunnel_peers: UnknownTunnelPeers,
    cluster: &Cluster,
) -> Option<Wanted> {
    cluster.node(name)?.address?;
    let mut filter = Filter::default();
    // Where nobody tunnels, packets of protocol 4 are not the cluster's, and none of its business.
    let mut pools = cluster.pools();
    if !pools.any(|(_, pool)| pool.may_tunnel()) {
        filter.unknown_tunnel_peers = UnknownTunnelPeers::Off;
    } else {
        filter.unknown_tunnel_peers = unknown_tunnel_peers;
    }
    filter.nodes.insert(address);
    for known in cluster.nodes_by_address().into_keys() {
        if let IpAddr::V4(known) = known {
            filter.nodes.insert(known);
        }
    }
    for (_, pool) in cluster.pools() {
        // A pool that is disabled gives no new addresses; its pods are still there.
        if let IpNet::V4(net) = pool.cidr {
            filter.pools.insert(net.trunc());
            if pool.nat_outgoing {
                filter.masqueraded.insert(net.trunc());
            }
        }
    }
    let mut owners = BTreeMap::new();
    for (node, known) in cluster.nodes() {
        let advertised = known.address.map(|net| net.addr());
        for address in &known.addresses {
            let node = node.to_owned();
            owners.entry(*address).or_insert(Owner { node, advertised });
        }
    }
    Some(Wanted { filter, owners })
}

impl Wanted {
    /// What is to be said of `packets` packets that came from `source` and were refused. `None` if by now they would be
    /// admitted: the node has joined meanwhile, or has published its address.
    #[must_use]
    pub fn sentence(&self, source: Ipv4Addr, packets: u64) -> Option<String> {
        if self.filter.nodes.contains(&source) {
            return None;
        }
        let plural = if packets == 1 { "" } else { "s" };
        let cause = match self.owners.get(&source) {
            Some(Owner {
                node,
                advertised: Some(advertised),
            }) => {
                format!("{node} advertises {advertised} and owns that address: its source pin is missing")
            }
            Some(Owner {
                node,
                advertised: None,
            }) => {
                format!(
                    "{node} owns that address and advertises none: look whether its agent runs and has found its address"
                )
            }
            None => match self.filter.pools.iter().find(|pool| pool.contains(&source)) {
                Some(pool) => format!("it is a pod's, of the pool {pool}: a pod sends packets of protocol 4 by itself"),
                None => "no Node object names it either: a node that has left the cluster, another cluster, or forged"
                    .to_owned(),
            },
        };
        Some(format!(
            "{packets} packet{plural} from {source}, which no node advertises; {cause}"
        ))
    }
}

/// Packets refused, by source, as they were last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    sources: BTreeMap<Ipv4Addr, Tally>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tally {
    packets: u64,
    /// When it was last seen to have grown.
    grew: Duration,
}

impl Refused {
    /// Takes in what was read at `now`, counted from any one moment, and gives the sources of which a burst begins: those that are new, and those
    /// whose count grew after a minute of silence. A count that fell was begun anew, with its packets.
    pub fn take(&mut self, now: Duration, read: &BTreeMap<Ipv4Addr, u64>) -> Vec<Ipv4Addr> {
        let mut bursts = Vec::new();
        self.sources.retain(|source, _| read.contains_key(source));
        for (&source, &packets) in read {
            let former = self.sources.get(&source).copied();
            if former.is_some_and(|tally| tally.packets == packets) {
                continue;
            }
            if former.is_none_or(|tally| now.saturating_sub(tally.grew) >= BURST_ENDS) {
                bursts.push(source);
            }
            self.sources.insert(source, Tally { packets, grew: now });
        }
        bursts
    }

    /// How many packets came from each source.
    pub fn by_source(&self) -> impl Iterator<Item = (Ipv4Addr, u64)> {
        self.sources
            .iter()
            .map(|(source, tally)| (*source, tally.packets))
    }
}

#[cfg(test)]
mod tests;
