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

/// What every link must take, in bytes (RFC 791 §3.2).
const LEAST_MTU: u32 = 68;

/// The `mtu` of routes to the blocks of those nodes whose paths need one, in bytes.
#[derive(Debug, Default)]
pub(super) struct PathMtus {
    /// Through the tunnel: the outer header taken off.
    pub(super) tunnelled: BTreeMap<IpAddr, u32>,
    /// Without a tunnel.
    pub(super) direct: BTreeMap<IpAddr, u32>,
}

impl PathMtus {
    /// Those of `nodes`. `own` is the link of the advertised address with its subnet, whose nodes are reached there.
    pub(super) fn new(
        settings: &Settings,
        tunnel_mtu: u32,
        own: Option<(&Link, IpNet)>,
        underlay: &Underlay<'_>,
        nodes: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let mut mtus = Self::default();
        for node in nodes {
            let outer = underlay.tunnelled_mtu_to(node, settings.pin_table.is_some());
            let inner = outer.map(|mtu| mtu.saturating_sub(IPIP_OVERHEAD).max(LEAST_MTU));
            if let Some(mtu) = inner.filter(|mtu| *mtu < tunnel_mtu) {
                mtus.tunnelled.insert(node, mtu);
            }
            let own_link = own
                .filter(|(_, subnet)| subnet.contains(&node))
                .map(|(link, _)| link.index);
            if let Some(mtu) = underlay.direct_mtu_to(node, own_link) {
                mtus.direct.insert(node, mtu.max(LEAST_MTU));
            }
        }
        mtus
    }
}
