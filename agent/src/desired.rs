//! What the kernel and the speaker should hold, as a function of what is known.
//!
//! Pure, and without history: the same cluster, routes learned and underlay give the same answer, however they came
//! about. What cannot be right is left out and named in [`Plan::rejected`]; it never holds back the rest.

mod external;
mod multipath;
mod path_mtu;
mod planner;
mod underlay;
mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_bgp::id::{NextHop as BgpNextHop, Prefix};
use ipnet::IpNet;

use crate::api::EncapsulationMode;
use crate::cluster::Cluster;
use crate::fib::{Desired, protocol_name};
use crate::peering::{Local, Peering, Speaking};
use crate::reconcile::Actual;

pub use planner::{Changed, Planner, Updated};
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
    /// The IPv4 address this node is known by; that of IPv6 is among the terms of BGP.
    pub address: Ipv4Addr,
    /// How it takes part in BGP.
    pub speaking: Speaking,
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

impl Settings {
    /// This node, as it takes part in BGP.
    #[must_use]
    pub fn local(&self) -> Local<'_> {
        Local {
            node: &self.node,
            address: self.address,
            speaking: &self.speaking,
        }
    }
}

/// Destinations learned from the peers, with their best next hops.
pub type Learned = BTreeMap<Prefix, Vec<BgpNextHop>>;

/// All that should be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What the kernel should hold.
    pub desired: Desired,
    /// With whom the speaker speaks, and how.
    pub peering: Peering,
    /// The destinations this node originates.
    pub exports: BTreeSet<Prefix>,
    /// The largest packet a pod may send, in bytes.
    pub pod_mtu: u32,
    /// Destinations learned that are not installed, or not through every next hop, and why.
    pub rejected: BTreeMap<IpNet, Vec<Rejection>>,
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
    /// It is the address of a pod of this node, or of something else that a link of this host leads to.
    #[error(
        "a link of this host leads to that address, as to a pod's: it has just moved here, or two pods have it; \
         look at what {peer} advertises"
    )]
    OnThisHost {
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
    /// A router of the network tells of a way to everything.
    #[error(
        "a default route is not taken from a peer: the host has its own; set bgp.acceptDefaultRoute to on if that is meant"
    )]
    DefaultRoute,
    /// It is, or lies in, a subnet of this host, which is the host's to know about.
    #[error(
        "it lies in {subnet}, which a link of this host leads to: packets to its own subnet go nowhere else"
    )]
    OwnSubnet {
        /// The subnet.
        subnet: IpNet,
    },
    /// Another program has a route there.
    #[error(
        "another program (protocol {}) has a route there, which is not taken over; remove that one if this is to be used",
        protocol_name(*protocol)
    )]
    OthersRoute {
        /// Whose it is: its protocol number.
        protocol: u8,
    },
    /// The next hop is not on a link of this host.
    #[error(
        "next hop {next_hop} is on no subnet of this host, or on an ignored interface; let the peer name a next hop that is,          or name the gateway to the peer with reachableBy"
    )]
    NotConnected {
        /// The next hop.
        next_hop: IpAddr,
    },
    /// There is no way to the next hop.
    #[error("this host has no route to its next hop {next_hop}")]
    Unreachable {
        /// The next hop.
        next_hop: IpAddr,
    },
    /// The NIC that leads there is down.
    #[error("{link}, through which its next hop {next_hop} is reached, is down; set it up")]
    LinkDown {
        /// The next hop.
        next_hop: IpAddr,
        /// The link's name.
        link: String,
    },
    /// The tunnel device is not there, or down; the same turn sees to that.
    #[error("the tunnel device {TUNNEL_DEVICE} is not up yet")]
    NoTunnel,
    /// No link carries the advertised address.
    #[error("the advertised address {address} is on no link of this host; add it again")]
    AddressGone {
        /// The address.
        address: IpAddr,
    },
    /// The pool asks for IPIP, and is one of IPv6.
    #[error("its pool {pool} has ipipMode {mode:?}, but IPIP carries no IPv6; set its ipipMode to Never")]
    TunnelledV6 {
        /// The pool.
        pool: IpNet,
        /// Its ipipMode.
        mode: EncapsulationMode,
    },
    /// The next hop is of the other family than the destination.
    #[error(
        "its next hop {next_hop} is of the other address family, on which nobody has agreed with {peer} (RFC 8950); \
         let {peer} advertise one of the destination's"
    )]
    OtherFamily {
        /// The next hop.
        next_hop: IpAddr,
        /// Who said so.
        peer: IpAddr,
    },
    /// The next hop says nothing without a link, which a route between nodes does not have.
    #[error(
        "its next hop {next_hop} is link-local, which no node is known by; let {peer} advertise a global address"
    )]
    NextHopLinkLocal {
        /// The next hop.
        next_hop: Ipv6Addr,
        /// Who said so.
        peer: IpAddr,
    },
    /// This node has no IPv6 address.
    #[error(
        "this node is known by no IPv6 address from which to reach {next_hop}; give the host one, or set node.addressV6 \
         where it has several"
    )]
    NoOwnAddress {
        /// The next hop.
        next_hop: IpAddr,
    },
}

impl Rejection {
    /// Whether the fault is on this side, or of the moment: then a route that is in the kernel stays there meanwhile.
    /// A control plane that blinks never withdraws forwarding.
    fn may_pass(&self) -> bool {
        match self {
            Self::NoPool { .. }
            | Self::Unreachable { .. }
            | Self::LinkDown { .. }
            | Self::NotConnected { .. }
            | Self::NoTunnel
            | Self::AddressGone { .. }
            | Self::NoOwnAddress { .. } => true,
            Self::NextHopInPool { .. }
            | Self::NextHopUnknown { .. }
            | Self::NextHopLinkLocal { .. }
            | Self::OtherFamily { .. }
            | Self::OnThisHost { .. }
            | Self::TunnelledV6 { .. }
            | Self::DefaultRoute
            | Self::OwnSubnet { .. }
            | Self::OthersRoute { .. }
            | Self::Vxlan { .. } => false,
        }
    }
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
    /// The peers have told all they know, or had their time to. Before that what a former run has left in the kernel may yet
    /// be wanted.
    pub converged: bool,
}

/// Computes all that should be from all that is known.
#[must_use]
pub fn plan(settings: &Settings, known: Known<'_>) -> Plan {
    let mut planner = Planner::new(settings.clone());
    let everything = Changed {
        everything: true,
        ..Changed::default()
    };
    planner.update(known, &everything);
    planner.into_plan()
}

#[cfg(test)]
mod tests;
