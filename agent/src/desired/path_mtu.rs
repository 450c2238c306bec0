//! Paths to other nodes that take less than the device that packets to them leave through.
//!
//! A router on the way, or another tunnel, may take smaller packets than the NIC does. Where an operator has said so, by
//! `mtu` on the host's own route to a node, or where that route leaves through a smaller NIC than that of the advertised
//! address, the route to the node's blocks says it too: pods learn it before the first packet is lost (RFC 1191).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::underlay::Underlay;
use super::{IPIP_OVERHEAD, Settings};
use crate::fib::Link;

/// What every link must take of IPv4, in bytes (RFC 791 §3.2).
const LEAST_MTU: u32 = 68;

/// The same of IPv6 (RFC 8200 §5).
const LEAST_MTU_V6: u32 = 1280;

/// The `mtu` of routes to the blocks of those nodes whose paths need one, in bytes.
#[derive(Debug, Default)]
pub(super) struct PathMtus {
    /// Through the tunnel: the outer header taken off.
    pub(super) tunnelled: BTreeMap<IpAddr, u32>,
    /// Without a tunnel.
    pub(super) direct: BTreeMap<IpAddr, u32>,
}

impl PathMtus {
    /// Those of `nodes`. `own` are the links of the advertised addresses with their subnets, whose nodes are reached there.
    pub(super) fn new(
        settings: &Settings,
        tunnel_mtu: u32,
        own: &[(&Link, IpNet)],
        underlay: &Underlay<'_>,
        nodes: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut mtus = Self::default();
        for node in nodes {
            // A tunnel goes to no IPv6 address.
            let outer = node
                .is_ipv4()
                .then(|| underlay.tunnelled_mtu_to(node, settings.pin_table.is_some()));
            let inner = outer
                .flatten()
                .map(|mtu| mtu.saturating_sub(IPIP_OVERHEAD).max(LEAST_MTU));
            if let Some(mtu) = inner.filter(|mtu| *mtu < tunnel_mtu) {
                mtus.tunnelled.insert(node, mtu);
            }
            let own_link = own
                .iter()
                .find(|(_, subnet)| subnet.contains(&node))
                .map(|(link, _)| link.index);
            if let Some(mtu) = underlay.direct_mtu_to(node, own_link) {
                let least = if node.is_ipv4() { LEAST_MTU } else { LEAST_MTU_V6 };
                mtus.direct.insert(node, mtu.max(least));
            }
        }
        mtus
    }
}
