//! Pools that lie where something else is.

use ipnet::IpNet;

use super::{Check, Finding, Host};
use crate::desired::TUNNEL_DEVICE;
use crate::fib::MAIN_TABLE;
use crate::inquiry::Known;

/// Pools that overlap each other, a network of this host, or the range of services.
pub(super) fn overlaps(known: &Known<'_>, host: &Host) -> Vec<Finding> {
    let pools: Vec<(&str, IpNet)> = known
        .cluster
        .pools()
        .map(|(name, pool)| (name, pool.cidr))
        .collect();
    let mut found = Vec::new();
    for (at, (name, cidr)) in pools.iter().enumerate() {
        let others = pools
            .iter()
            .skip(at + 1)
            .filter(|(_, other)| overlap(cidr, other));
        found.extend(others.map(|(other, range)| Finding {
            check: Check::Pools,
            fix: None,
            finding: format!("pools {name} and {other} overlap"),
            evidence: format!("{cidr} and {range}"),
            consequence: "one address may be given to two pods".to_owned(),
            cure: format!(
                "disable one of them, move its pods, and delete it: culvert ipam check --pool {other}"
            ),
        }));
        found.extend(host_networks(known, name, cidr));
        found.extend(services(known, name, cidr));
        found.extend(
            host.service
                .filter(|service| cidr.contains(service))
                .map(|service| Finding {
                    check: Check::Pools,
                    fix: None,
                    finding: format!("pool {name} overlaps the range of services"),
                    evidence: format!(
                        "{cidr}, and the API server's own service is at {service} (KUBERNETES_SERVICE_HOST)"
                    ),
                    consequence:
                        "an address may be a pod's and a service's at once: packets to one go to the other"
                            .to_owned(),
                    cure: "create a pool elsewhere, disable this one, and move its pods".to_owned(),
                }),
        );
    }
    found
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Networks that the host's own NICs are in.
fn host_networks(known: &Known<'_>, name: &str, cidr: &IpNet) -> Vec<Finding> {
    // The tunnel device has an address of a pool, and pods' links lead to addresses of pools.
    let is_of_pods = |link: u32| {
        let link = known.actual.link_at(link);
        link.is_some_and(|link| link.name == TUNNEL_DEVICE || link.name.starts_with("cali"))
    };
    let links = known.actual.links().filter(|link| !is_of_pods(link.index));
    let mut found = Vec::new();
    for link in links {
        let networks = known
            .actual
            .addresses_of(link.index)
            .map(|address| address.net.trunc());
        let inside = networks.filter(|network| overlap(cidr, network));
        found.extend(
            inside.map(|network| Finding {
                check: Check::Pools,
                fix: None,
                finding: format!("pool {name} overlaps the network of {}", link.name),
                evidence: format!("{cidr}, and {network} on {}", link.name),
                consequence:
                    "hosts of that network cannot be told from pods: packets to some of them go astray"
                        .to_owned(),
                cure: "create a pool elsewhere, disable this one, and move its pods".to_owned(),
            }),
        );
    }
    found.extend(foreign_networks(known, name, cidr));
    found
}

/// Routes of others that lead into the pool or around a part of it, through a gateway.
fn foreign_networks(known: &Known<'_>, name: &str, cidr: &IpNet) -> Vec<Finding> {
    let is_wider = |prefix: &IpNet| prefix.prefix_len() > 0 && prefix.contains(cidr) && prefix != cidr;
    let routes = known.actual.routes().filter(|route| {
        route.key.table == MAIN_TABLE
            && route.protocol != known.settings.protocol
            && route.next_hops.iter().any(|hop| hop.gateway.is_some())
            && is_wider(&route.key.prefix)
    });
    let found = routes.map(|route| Finding {
        check: Check::Pools,
        fix: None,
        finding: format!("pool {name} lies inside a network that this host has a route to"),
        evidence: format!("{cidr}, and `{}`", known.named(route)),
        consequence: "packets to addresses that no block has yet leave the cluster by that route".to_owned(),
        cure: "if that network is in use, create a pool elsewhere and move the pods".to_owned(),
    });
    found.collect()
}

/// The ranges of services that are advertised.
fn services(known: &Known<'_>, name: &str, cidr: &IpNet) -> Vec<Finding> {
    let settings = known.cluster.bgp().configuration();
    let ranges = [
        ("serviceClusterIPs", &settings.service_cluster_ips),
        ("serviceExternalIPs", &settings.service_external_ips),
        ("serviceLoadBalancerIPs", &settings.service_load_balancer_ips),
    ];
    let mut found = Vec::new();
    for (field, ranges) in ranges {
        let inside = ranges.iter().filter(|range| overlap(cidr, &range.cidr));
        found.extend(inside.map(|range| Finding {
            check: Check::Pools,
            fix: None,
            finding: format!("pool {name} overlaps a range of services"),
            evidence: format!("{cidr}, and {field} {} of the BGPConfiguration", range.cidr),
            consequence: "an address may be a pod's and a service's at once".to_owned(),
            cure: "create a pool elsewhere, disable this one, and move its pods".to_owned(),
        }));
    }
    found
}
