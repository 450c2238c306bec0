//! The ways to the other nodes, worked out once for all the blocks that lie there.
//!
//! A node may have thousands of blocks, and one of them may change a thousand times a second, while nodes, links and the
//! host's own routes change now and then. So what depends on those alone is kept, together with what they were asked for:
//! [`Ways::may_move`] tells an event that cannot matter from one that may.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use culvert_bgp::id::NextHop as BgpNextHop;
use ipnet::IpNet;

use super::path_mtu::PathMtus;
use super::underlay::{Underlay, Watched};
use super::{Known, Rejection, Settings, TUNNEL_DEVICE};
use crate::api::{EncapsulationMode, IpPoolSpec};
use crate::cluster::Cluster;
use crate::fib::{Link, MAIN_TABLE, NextHop};
use crate::reconcile::{Actual, Touched};

/// Where packets go, with which source those of this host leave, and how large they may be where that is less than the
/// link takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) next_hops: Vec<NextHop>,
    pub(super) source: Option<IpAddr>,
    pub(super) mtu: Option<u32>,
}

/// The ways to one node.
#[derive(Clone, Debug)]
struct NodeWays {
    is_own: bool,
    /// Whether it is in this node's own subnet, by the prefix length of this node's address on its NIC.
    in_own_subnet: Result<bool, Rejection>,
    tunnelled: Result<Way, Rejection>,
    direct: Result<Way, Rejection>,
}

/// The ways to all nodes, by their advertised addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Ways {
    nodes: BTreeMap<IpAddr, NodeWays>,
    watched: Watched,
    /// The tunnel device's index.
    tunnel: Option<u32>,
    own_addresses: Vec<IpAddr>,
    pin_table: Option<u32>,
}

impl Ways {
    pub(super) fn new(
        settings: &Settings,
        known: Known<'_>,
        tunnel_mtu: u32,
        underlay: &Underlay<'_>,
    ) -> Self {
        let nodes = known.cluster.nodes_by_address();
        let own_addresses: Vec<IpAddr> = settings.local().addresses().collect();
        let own: Vec<(&Link, IpNet)> = own_addresses
            .iter()
            .filter_map(|address| known.actual.link_with_address(*address))
            .collect();
        let tunnel = known.actual.link_named(TUNNEL_DEVICE);
        let mtus = PathMtus::new(settings, tunnel_mtu, &own, underlay, nodes.keys().copied());
        let finder = Finder {
            settings,
            own: &own,
            tunnel: tunnel.filter(|link| link.up).map(|link| link.index),
            underlay,
            mtus: &mtus,
        };
        let ways = nodes.iter().map(|(node, name)| {
            let ways = NodeWays {
                is_own: *name == settings.node,
                in_own_subnet: finder.own_subnet(*node).map(|(_, subnet)| subnet.contains(node)),
                tunnelled: finder.through_tunnel(*node),
                direct: finder.direct(*node),
            };
            (*node, ways)
        });
        let mut watched = underlay.watched(nodes.keys().copied());
        watched.links.extend(own.iter().map(|(link, _)| link.index));
        Self {
            nodes: ways.collect(),
            watched,
            tunnel: tunnel.map(|link| link.index),
            own_addresses,
            pin_table: settings.pin_table,
        }
    }

    /// The IPv4 addresses by which the other nodes are known.
    pub(super) fn other_nodes(&self) -> impl Iterator<Item = Ipv4Addr> {
        let others = self.nodes.iter().filter(|(_, ways)| !ways.is_own);
        let addresses = others.filter_map(|(address, _)| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        addresses.filter(|address| !self.own_addresses.contains(&IpAddr::V4(*address)))
    }

    /// Whether packets to a node may take a route of the main table to `prefix`.
    pub(super) fn are_asked_of(&self, prefix: &IpNet) -> bool {
        self.watched.is_asked_for(prefix)
    }

    /// The way to `prefix` through `hop`, which must be the advertised address of a node and never a pod's.
    pub(super) fn to(&self, cluster: &Cluster, prefix: IpNet, hop: BgpNextHop) -> Result<&Way, Rejection> {
        could_lead(cluster, prefix, hop)?;
        let (next_hop, peer) = (hop.address, hop.peer);
        let Some(node) = self.nodes.get(&next_hop) else {
            return Err(Rejection::NextHopUnknown { next_hop, peer });
        };
        let pool = cluster.pool_of(&prefix).ok_or(Rejection::NoPool { peer })?;
        if pool.vxlan_mode != EncapsulationMode::Never {
            return Err(Rejection::Vxlan {
                pool: pool.cidr,
                mode: pool.vxlan_mode,
            });
        }
        if prefix.addr().is_ipv6() && pool.ipip_mode != EncapsulationMode::Never {
            return Err(Rejection::TunnelledV6 {
                pool: pool.cidr,
                mode: pool.ipip_mode,
            });
        }
        let way = if node.is_tunnelled(pool)? {
            &node.tunnelled
        } else {
            &node.direct
        };
        way.as_ref().map_err(Clone::clone)
    }

    /// Whether a way may be another after what was touched in the kernel: only then are they to be worked out anew.
    pub(super) fn may_move(&self, touched: &Touched, actual: &Actual) -> bool {
        let carries_own = |link: u32| {
            actual
                .addresses_of(link)
                .any(|address| self.own_addresses.contains(&address.net.addr()))
        };
        let has_gone = self.watched.carriers.is_empty();
        let route = |table: u32, prefix: &IpNet| {
            if table == MAIN_TABLE {
                self.watched.is_asked_for(prefix)
            } else {
                // While the address is gone, the pins that are there stay.
                has_gone && Some(table) == self.pin_table
            }
        };
        let link = |index: &u32| {
            Some(*index) == self.tunnel
                || self.watched.links.contains(index)
                || actual
                    .link_at(*index)
                    .is_some_and(|link| link.name == TUNNEL_DEVICE)
                || carries_own(*index)
        };
        touched.routes.iter().any(|key| route(key.table, &key.prefix))
            || touched.links.iter().any(link)
            || touched
                .addresses
                .iter()
                .any(|address| self.own_addresses.contains(address))
    }
}

/// Whether `hop` is an address through which there may be a way to `prefix`, be it a node's or a router's.
pub(super) fn could_lead(cluster: &Cluster, prefix: IpNet, hop: BgpNextHop) -> Result<(), Rejection> {
    let (next_hop, peer) = (hop.address, hop.peer);
    if let Some(pool) = cluster.pool_of(&IpNet::from(next_hop)) {
        return Err(Rejection::NextHopInPool {
            next_hop,
            pool: pool.cidr,
            peer,
        });
    }
    if prefix.addr().is_ipv4() != next_hop.is_ipv4() {
        return Err(Rejection::OtherFamily { next_hop, peer });
    }
    if let IpAddr::V6(next_hop) = next_hop
        && next_hop.is_unicast_link_local()
    {
        return Err(Rejection::NextHopLinkLocal { next_hop, peer });
    }
    Ok(())
}

impl NodeWays {
    /// Whether packets to a block of `pool` at the node are encapsulated.
    fn is_tunnelled(&self, pool: &IpPoolSpec) -> Result<bool, Rejection> {
        match pool.ipip_mode {
            EncapsulationMode::Never => Ok(false),
            EncapsulationMode::Always => Ok(true),
            EncapsulationMode::CrossSubnet => self.in_own_subnet.clone().map(|in_subnet| !in_subnet),
        }
    }
}

/// What the ways are worked out from.
struct Finder<'a> {
    settings: &'a Settings,
    /// The links with the advertised addresses, and the subnets that these make there.
    own: &'a [(&'a Link, IpNet)],
    tunnel: Option<u32>,
    underlay: &'a Underlay<'a>,
    mtus: &'a PathMtus,
}

impl Finder<'_> {
    /// The address by which a node of the family of `node` knows this one.
    fn own_address(&self, node: IpAddr) -> Result<IpAddr, Rejection> {
        let own = self.settings.local().address_for(node);
        own.ok_or(Rejection::NoOwnAddress { next_hop: node })
    }

    /// The link with that address, and the subnet that it makes there.
    fn own_subnet(&self, node: IpAddr) -> Result<(&Link, IpNet), Rejection> {
        let address = self.own_address(node)?;
        let own = self.own.iter().find(|(_, subnet)| subnet.addr() == address);
        own.copied().ok_or(Rejection::AddressGone { address })
    }

    fn through_tunnel(&self, node: IpAddr) -> Result<Way, Rejection> {
        let hop = NextHop {
            gateway: Some(node),
            link: self.tunnel.ok_or(Rejection::NoTunnel)?,
            onlink: true,
            weight: 1,
        };
        Ok(Way {
            next_hops: vec![hop],
            source: None,
            mtu: self.mtus.tunnelled.get(&node).copied(),
        })
    }

    /// The way of an unencapsulated packet: straight to a node in this node's own subnet, else as the kernel's own
    /// routes have it. The source is the address this node is known by.
    fn direct(&self, node: IpAddr) -> Result<Way, Rejection> {
        let (link, subnet) = self.own_subnet(node)?;
        let source = Some(self.own_address(node)?);
        let mtu = self.mtus.direct.get(&node).copied();
        if subnet.contains(&node) {
            if !link.up {
                return Err(Rejection::LinkDown {
                    next_hop: node,
                    link: link.name.clone(),
                });
            }
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
