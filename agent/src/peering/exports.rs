//! What this node originates: its blocks, and the addresses of services.

use std::collections::BTreeSet;
use std::net::IpAddr;

use culvert_bgp::id::Prefix;
use ipnet::IpNet;

use super::Local;
use crate::api::{Aggregation, ServiceCidr};
use crate::cluster::{Cluster, ServiceAddresses};

/// The label of nodes that take no packets for services from outside.
pub const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What this node originates: its blocks, each address that its pods have in a block that is not its own, and services. None of it is a route of the kernel's for that: a blackhole for the addresses of services
/// would take packets away from the proxy that answers for them.
#[must_use]
pub fn exports(local: Local<'_>, cluster: &Cluster) -> BTreeSet<Prefix> {
    let blocks: Vec<IpNet> = cluster.blocks_of(local.node).collect();
    // Packets to a single address go to its node, whoever has the block: the most specific route counts. Within a block of
    // our own that is the block's route, as Calico has it.
    let is_elsewhere = |address: &IpAddr| !blocks.iter().any(|block| block.contains(address));
    let borrowed = cluster.borrowed_by(local.node).filter(is_elsewhere);
    // A block whose pool is gone is still advertised: its pods are still there.
    let exported = |net: &IpNet| cluster.pool_of(net).is_none_or(|pool| !pool.disable_bgp_export);
    let all = blocks.iter().copied().chain(borrowed.map(IpNet::from));
    let mut exports: BTreeSet<Prefix> = all.filter(exported).map(Prefix::new).collect();
    let own = cluster.node(local.node);
    if own.is_none_or(|node| node.labels.get(EXCLUDE_LABEL).is_none()) {
        exports.extend(services(local, cluster).map(Prefix::new));
    }
    exports
}

/// Whether a destination lies in a range of service addresses. The nodes answer for those themselves, so that what others
/// say of them is no way to go.
#[must_use]
pub fn is_service_range(cluster: &Cluster, prefix: &IpNet) -> bool {
    let bgp = cluster.bgp().configuration();
    let mut ranges = bgp
        .service_cluster_ips
        .iter()
        .chain(&bgp.service_external_ips)
        .chain(&bgp.service_load_balancer_ips);
    ranges.any(|range| range.cidr.contains(prefix))
}

fn services(local: Local<'_>, cluster: &Cluster) -> impl Iterator<Item = IpNet> {
    let bgp = cluster.bgp().configuration();
    let aggregate = bgp.service_load_balancer_aggregation.unwrap_or_default() == Aggregation::Enabled;
    let mut out: Vec<IpNet> = Vec::new();
    let whole = bgp.service_cluster_ips.iter().chain(&bgp.service_external_ips);
    out.extend(whole.map(|range| range.cidr));
    let of_balancers = bgp.service_load_balancer_ips.iter().map(|range| range.cidr);
    // A range of one address is that address.
    out.extend(of_balancers.filter(|range| aggregate || range.prefix_len() == range.max_prefix_len()));
    for (place, service) in cluster.bgp().services().iter() {
        let here = |address: &IpAddr| cluster.bgp().services().is_on(place, local.node, *address);
        if service.local {
            out.extend(
                allowed(service, bgp)
                    .filter(|address| here(address))
                    .map(IpNet::from),
            );
        } else if !aggregate {
            let of_balancers = service.load_balancer.iter().copied();
            let ranges = &bgp.service_load_balancer_ips;
            out.extend(of_balancers.filter(|a| is_in(ranges, *a)).map(IpNet::from));
        }
    }
    out.into_iter()
}

/// The addresses of a service that lie in the ranges for their kind.
fn allowed<'a>(
    service: &'a ServiceAddresses,
    bgp: &'a crate::api::BgpConfigurationSpec,
) -> impl Iterator<Item = IpAddr> + 'a {
    let of = |addresses: &'a [IpAddr], ranges: &'a [ServiceCidr]| {
        addresses
            .iter()
            .copied()
            .filter(move |address| is_in(ranges, *address))
    };
    of(&service.cluster, &bgp.service_cluster_ips)
        .chain(of(&service.external, &bgp.service_external_ips))
        .chain(of(&service.load_balancer, &bgp.service_load_balancer_ips))
}

fn is_in(ranges: &[ServiceCidr], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.cidr.contains(&address))
}
