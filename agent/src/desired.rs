//! What the kernel and the speaker should hold, as a function of what is known.
//!
//! Pure, and without history: the same cluster, routes learned and underlay give the same answer, however they came
//! about. What cannot be right is left out and named in [`Plan::rejected`]; it never holds back the rest.

mod path_mtu;
mod underlay;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use culvert_bgp::id::{NextHop as BgpNextHop, Prefix};
use culvert_bgp::speaker::PeerConfig;
use ipnet::IpNet;

use crate::api::{EncapsulationMode, IpPoolSpec};
use crate::cluster::Cluster;
use crate::fib::{Desired, Link, MAIN_TABLE, NextHop, Route, RouteKey, RouteKind, SCOPE_UNIVERSE, Tunnel};
use crate::reconcile::Actual;

use path_mtu::PathMtus;
use underlay::Underlay;
pub use underlay::{IPIP, PIN_PRIORITY, Unpinned};

/// The tunnel device of the kernel's ipip module, which Calico uses as well.
pub const TUNNEL_DEVICE: &str = "tunl0";

/// What IPIP adds to a packet: an IPv4 header (RFC 2003 §3), in bytes.
const IPIP_OVERHEAD: u32 = 20;

/// What this agent was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// The address this node is known by.
    pub address: Ipv4Addr,
    /// The protocol number of our routes.
    pub protocol: u8,
    /// MTU of the tunnel device in bytes; none for that of the link with the advertised address, less 20.
    pub tunnel_mtu: Option<u32>,
    /// Whether the tunnel device sets DF in every outer header; none to leave that as it is.
    pub path_mtu_discovery: Option<bool>,
    /// The table for the routes that give encapsulated packets the advertised address as their source; none to leave the
    /// source to the kernel.
    pub pin_table: Option<u32>,
}

/// Destinations learned from the peers, with their best next hops.
pub type Learned = BTreeMap<Prefix, Vec<BgpNextHop>>;

/// All that should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the kernel should hold.
    pub desired: Desired,
    /// The speaker's peers.
    pub peers: BTreeMap<IpAddr, PeerConfig>,
    /// The destinations this node originates.
    pub exports: BTreeSet<Prefix>,
    /// The largest packet a pod may send, in bytes.
    pub pod_mtu: u32,
    /// Destinations learned that are not installed, and why.
    pub rejected: Vec<Rejected>,
    /// The addresses of the nodes that encapsulated packets go to. Empty where no pool asks for a tunnel.
    pub tunnelled_to: BTreeSet<Ipv4Addr>,
    /// What keeps encapsulated packets from leaving with the advertised address.
    pub unpinned: Vec<Unpinned>,
}

/// A destination that is not installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The destination.
    pub prefix: IpNet,
    /// Why not.
    pub reason: Rejection,
}

/// Why a destination is not installed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The next hop is a pod's address: packets to it would come back here.
    #[error(
        "next hop {next_hop} lies inside the pool {pool}: no node can be there; look at what {peer} advertises"
    )]
    NextHopInPool {
        /// The next hop.
        next_hop: IpAddr,
        /// The pool.
        pool: IpNet,
        /// Who said so.
        peer: IpAddr,
    },
    /// The next hop is no node's advertised address.
    #[error("next hop {next_hop} is not the advertised address of any node; look at what {peer} advertises")]
    NextHopUnknown {
        /// The next hop.
        next_hop: IpAddr,
        /// Who said so.
        peer: IpAddr,
    },
    /// The destination is in no pool; the pool may have been deleted by accident.
    #[error("it lies in no IPPool; create one around it, or look at what {peer} advertises")]
    NoPool {
        /// Who said so.
        peer: IpAddr,
    },
    /// The pool asks for VXLAN.
    #[error("its pool {pool} has vxlanMode {mode:?}, which Culvert does not do; use ipipMode")]
    Vxlan {
        /// The pool.
        pool: IpNet,
        /// Its vxlanMode.
        mode: EncapsulationMode,
    },
    /// There is no way to the next hop.
    #[error("this host has no route to its next hop {next_hop}")]
    Unreachable {
        /// The next hop.
        next_hop: IpAddr,
    },
    /// The tunnel device is not there, or down; the same turn sees to that.
    #[error("the tunnel device {TUNNEL_DEVICE} is not up yet")]
    NoTunnel,
    /// No link carries the advertised address.
    #[error("the advertised address {address} is on no link of this host; add it again")]
    AddressGone {
        /// The address.
        address: Ipv4Addr,
    },
}

impl Rejection {
    /// Whether the fault is on this side, or of the moment: then a route that is in the kernel stays there meanwhile.
    /// A control plane that blinks never withdraws forwarding.
    fn may_pass(&self) -> bool {
        match self {
            Self::NoPool { .. } | Self::Unreachable { .. } | Self::NoTunnel | Self::AddressGone { .. } => {
                true
            }
            Self::NextHopInPool { .. } | Self::NextHopUnknown { .. } | Self::Vxlan { .. } => false,
        }
    }
}

/// Those of `now` that are not among `before`. A peer decides how many there are: each is looked up, not searched for.
#[must_use]
pub fn newly_rejected<'a>(before: &[Rejected], now: &'a [Rejected]) -> Vec<&'a Rejected> {
    let mut known: BTreeMap<IpNet, Vec<&Rejection>> = BTreeMap::new();
    for rejected in before {
        known.entry(rejected.prefix).or_default().push(&rejected.reason);
    }
    let is_known = |new: &&Rejected| {
        known
            .get(&new.prefix)
            .is_some_and(|reasons| reasons.contains(&&new.reason))
    };
    now.iter().filter(|new| !is_known(new)).collect()
}

/// What is, as the functions below see it.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The datastore.
    pub cluster: &'a Cluster,
    /// The peers.
    pub learned: &'a Learned,
    /// The kernel.
    pub actual: &'a Actual,
}

/// Computes all that should be from all that is known.
#[must_use]
pub fn plan(settings: &Settings, known: Known<'_>) -> Plan {
    let underlay = known.actual.link_with_address(IpAddr::V4(settings.address));
    let tunnel_mtu = tunnel_mtu(settings, underlay.map(|(link, _)| link));
    let tunnelled = known
        .cluster
        .pools()
        .any(|(_, pool)| pool.ipip_mode != EncapsulationMode::Never);
    let own = known.cluster.node(&settings.node);
    let tunnel = tunnelled.then(|| Tunnel {
        name: TUNNEL_DEVICE.to_owned(),
        mtu: tunnel_mtu,
        address: own.and_then(|node| node.tunnel_address),
        path_mtu_discovery: settings.path_mtu_discovery,
    });
    let pod_mtu = if tunnelled {
        tunnel_mtu
    } else {
        tunnel_mtu + IPIP_OVERHEAD
    };
    let mut plan = Plan {
        desired: Desired {
            routes: BTreeMap::new(),
            held: BTreeSet::new(),
            rules: BTreeSet::new(),
            tunnel,
            forwarding: true,
        },
        peers: peers(settings, known.cluster),
        exports: exports(settings, known.cluster),
        pod_mtu,
        rejected: Vec::new(),
        tunnelled_to: BTreeSet::new(),
        unpinned: Vec::new(),
    };
    for block in known
        .cluster
        .blocks_of(&settings.node)
        .filter(|block| !is_single_address(block))
    {
        // Packets to addresses of our blocks that no pod has end here, instead of following the default route.
        let key = RouteKey {
            table: MAIN_TABLE,
            prefix: block,
            metric: 0,
        };
        let route = Route::blackhole(key, settings.protocol);
        plan.desired.routes.insert(route.key, route);
    }
    let routes = Routes::new(settings, known, tunnel_mtu);
    for (prefix, best) in known.learned {
        routes.add(prefix.net(), best, &mut plan);
    }
    if tunnelled {
        plan.tunnelled_to = routes.other_nodes().collect();
        pin_sources(settings, &routes.underlay, &mut plan);
    }
    plan
}

/// Gives packets to the other nodes the advertised address as source, unless that is switched off.
fn pin_sources(settings: &Settings, underlay: &Underlay<'_>, plan: &mut Plan) {
    let Some(table) = settings.pin_table else {
        return;
    };
    let pins = underlay::pins(settings, table, plan.tunnelled_to.iter().copied(), underlay);
    plan.desired.routes.extend(pins.routes);
    plan.desired.held.extend(pins.held);
    plan.desired.rules.insert(underlay::rule(settings, table));
    plan.unpinned = pins.unpinned;
}

/// The tunnel's MTU: what is configured, else what fits into the link that carries the advertised address.
fn tunnel_mtu(settings: &Settings, underlay: Option<&Link>) -> u32 {
    // 1500 is Ethernet's; it stands in only while the address is on no link, when no packet leaves anyway.
    let link_mtu = underlay.map_or(1500, |link| link.mtu);
    settings
        .tunnel_mtu
        .unwrap_or_else(|| link_mtu.saturating_sub(IPIP_OVERHEAD))
}

/// A /32 gets no blackhole: it would have the key of the pod's own route and keep it out.
fn is_single_address(block: &IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

/// Every other node, in a full mesh.
fn peers(settings: &Settings, cluster: &Cluster) -> BTreeMap<IpAddr, PeerConfig> {
    if !cluster.is_full_mesh() {
        return BTreeMap::new();
    }
    let others = cluster
        .nodes_by_address()
        .into_iter()
        .filter(|(address, name)| *name != settings.node && *address != IpAddr::V4(settings.address));
    let with_config = others.filter_map(|(address, name)| {
        let asn = cluster.as_number(cluster.node(name)?);
        Some((address, PeerConfig::new(address, asn)))
    });
    with_config.collect()
}

/// This node's blocks, but those of pools that say otherwise. A block whose pool is gone is still advertised: its pods
/// are still there.
fn exports(settings: &Settings, cluster: &Cluster) -> BTreeSet<Prefix> {
    let exported = |block: &IpNet| cluster.pool_of(block).is_none_or(|pool| !pool.disable_bgp_export);
    cluster
        .blocks_of(&settings.node)
        .filter(exported)
        .map(Prefix::new)
        .collect()
}

/// The routes to other nodes' blocks.
struct Routes<'a> {
    settings: &'a Settings,
    known: Known<'a>,
    /// Every node's advertised address.
    nodes: BTreeMap<IpAddr, &'a str>,
    underlay: Underlay<'a>,
    path_mtus: PathMtus,
}

impl<'a> Routes<'a> {
    fn new(settings: &'a Settings, known: Known<'a>, tunnel_mtu: u32) -> Self {
        let nodes = known.cluster.nodes_by_address();
        let underlay = Underlay::new(settings, known.actual);
        let own = known.actual.link_with_address(IpAddr::V4(settings.address));
        // Once a node, and not once a route: a node may have thousands of blocks.
        let path_mtus = PathMtus::new(settings, tunnel_mtu, own, &underlay, nodes.keys().copied());
        Self {
            settings,
            known,
            nodes,
            underlay,
            path_mtus,
        }
    }

    /// The IPv4 addresses by which the other nodes are known.
    fn other_nodes(&self) -> impl Iterator<Item = Ipv4Addr> {
        let others = self.nodes.iter().filter(|(_, name)| **name != self.settings.node);
        let addresses = others.filter_map(|(address, _)| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        addresses.filter(|address| *address != self.settings.address)
    }

    /// Adds the route to `prefix`, or says why not.
    fn add(&self, prefix: IpNet, best: &[BgpNextHop], plan: &mut Plan) {
        let key = RouteKey {
            table: MAIN_TABLE,
            prefix,
            metric: 0,
        };
        let mut next_hops = Vec::new();
        let mut source = None;
        let mut mtu: Option<u32> = None;
        for hop in best {
            match self.way(prefix, *hop) {
                Ok(way) => {
                    next_hops.extend(way.next_hops);
                    source = way.source;
                    // The kernel has one for all next hops.
                    mtu = mtu.into_iter().chain(way.mtu).min();
                }
                Err(reason) => {
                    if reason.may_pass() {
                        plan.desired.held.insert(key);
                    }
                    plan.rejected.push(Rejected { prefix, reason });
                }
            }
        }
        next_hops.sort_unstable();
        next_hops.dedup();
        if !next_hops.is_empty() {
            let kind = RouteKind::Unicast;
            let protocol = self.settings.protocol;
            let route = Route {
                key,
                kind,
                next_hops,
                source,
                protocol,
                scope: SCOPE_UNIVERSE,
                mtu,
            };
            plan.desired.routes.insert(key, route);
        }
    }

    /// The way to `prefix` through `hop`, which must be the advertised address of a node and never a pod's.
    fn way(&self, prefix: IpNet, hop: BgpNextHop) -> Result<Way, Rejection> {
        let cluster = self.known.cluster;
        let (next_hop, peer) = (hop.address, hop.peer);
        if let Some(pool) = cluster.pool_of(&IpNet::from(next_hop)) {
            return Err(Rejection::NextHopInPool {
                next_hop,
                pool: pool.cidr,
                peer,
            });
        }
        if !self.nodes.contains_key(&next_hop) {
            return Err(Rejection::NextHopUnknown { next_hop, peer });
        }
        let pool = cluster.pool_of(&prefix).ok_or(Rejection::NoPool { peer })?;
        if pool.vxlan_mode != EncapsulationMode::Never {
            return Err(Rejection::Vxlan {
                pool: pool.cidr,
                mode: pool.vxlan_mode,
            });
        }
        if self.is_tunnelled(pool, next_hop)? {
            self.through_tunnel(next_hop)
        } else {
            self.direct(next_hop)
        }
    }

    /// Whether packets to a block of `pool` at `node` are encapsulated.
    fn is_tunnelled(&self, pool: &IpPoolSpec, node: IpAddr) -> Result<bool, Rejection> {
        match pool.ipip_mode {
            EncapsulationMode::Never => Ok(false),
            EncapsulationMode::Always => Ok(true),
            EncapsulationMode::CrossSubnet => Ok(!self.own_subnet()?.1.contains(&node)),
        }
    }

    /// The link with the advertised address, and the subnet that this address makes there.
    fn own_subnet(&self) -> Result<(&Link, IpNet), Rejection> {
        let address = self.settings.address;
        let found = self.known.actual.link_with_address(IpAddr::V4(address));
        found.ok_or(Rejection::AddressGone { address })
    }

    fn through_tunnel(&self, node: IpAddr) -> Result<Way, Rejection> {
        let tunnel = self.known.actual.link_named(TUNNEL_DEVICE).filter(|link| link.up);
        let link = tunnel.ok_or(Rejection::NoTunnel)?.index;
        let hop = NextHop {
            gateway: Some(node),
            link,
            onlink: true,
            weight: 1,
        };
        Ok(Way {
            next_hops: vec![hop],
            source: None,
            mtu: self.path_mtus.tunnelled.get(&node).copied(),
        })
    }

    /// The way of an unencapsulated packet: straight to a node in this node's own subnet, else as the kernel's own
    /// routes have it. The source is the address this node is known by.
    fn direct(&self, node: IpAddr) -> Result<Way, Rejection> {
        let (link, subnet) = self.own_subnet()?;
        let source = Some(IpAddr::V4(self.settings.address));
        let mtu = self.path_mtus.direct.get(&node).copied();
        if subnet.contains(&node) {
            let hop = NextHop {
                gateway: Some(node),
                link: link.index,
                onlink: true,
                weight: 1,
            };
            return Ok(Way {
                next_hops: vec![hop],
                source,
                mtu,
            });
        }
        let route = self
            .underlay
            .route_to(node)
            .ok_or(Rejection::Unreachable { next_hop: node })?;
        let through = |hop: &NextHop| NextHop {
            gateway: hop.gateway.or(Some(node)),
            onlink: true,
            ..*hop
        };
        Ok(Way {
            next_hops: route.next_hops.iter().map(through).collect(),
            source,
            mtu,
        })
    }
}

/// Where packets go, with which source those of this host leave, and how large they may be where that is less than the
/// link takes.
struct Way {
    next_hops: Vec<NextHop>,
    source: Option<IpAddr>,
    mtu: Option<u32>,
}

#[cfg(test)]
mod tests;
