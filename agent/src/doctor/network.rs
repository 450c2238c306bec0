//! The host's links, addresses, routes and switches.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::{Check, Finding, Host};
use crate::api::EncapsulationMode;
use crate::desired::TUNNEL_DEVICE;
use crate::fib::{Link, MAIN_TABLE, PROTOCOLS_OF_CALICO, Route, protocol_name};
use crate::inquiry::Known;

/// What IPIP adds to a packet, in bytes (RFC 2003 §3).
const IPIP_OVERHEAD: u32 = 20;

/// The advertised address is on a link that is up, and on one node.
pub(super) fn address(known: &Known<'_>) -> Vec<Finding> {
    let own = IpAddr::V4(known.settings.address);
    let mut found = Vec::new();
    match known.actual.link_with_address(own) {
        None => found.push(Finding {
            check: Check::Address,
            finding: format!("the advertised address {own} is on no link of this host"),
            evidence: "`ip address` does not have it".to_owned(),
            consequence: "the other nodes send packets to an address that nobody answers for".to_owned(),
            cure: format!(
                "add it again (ip address add {own}/… dev …), or set node.address to one that is there"
            ),
        }),
        Some((link, _)) if !link.up || !link.running => found.push(Finding {
            check: Check::Address,
            finding: format!(
                "the advertised address {own} is on {}, which carries no packets",
                link.name
            ),
            evidence: format!(
                "{} is {}",
                link.name,
                if link.up { "up, without a carrier" } else { "down" }
            ),
            consequence: "no other node can reach this one".to_owned(),
            cure: if link.up {
                format!("look at the cable or the switch of {}", link.name)
            } else {
                format!("ip link set {} up", link.name)
            },
        }),
        Some(_) => {}
    }
    found.extend(
        known
            .cluster
            .shared_addresses()
            .into_iter()
            .map(|shared| Finding {
                check: Check::Address,
                finding: format!(
                    "nodes {} and {} advertise one address",
                    shared.kept, shared.left_out
                ),
                evidence: shared.address.to_string(),
                consequence: format!("packets to the pods of {} go to {}", shared.left_out, shared.kept),
                cure: format!(
                    "give {} another address: node.address in its configuration",
                    shared.left_out
                ),
            }),
    );
    found
}

pub(super) fn forwarding(known: &Known<'_>) -> Vec<Finding> {
    if known.actual.forwarding() {
        return Vec::new();
    }
    vec![Finding {
        check: Check::Forwarding,
        finding: "this host does not forward packets".to_owned(),
        evidence: "net.ipv4.ip_forward is 0".to_owned(),
        consequence:
            "no packet gets to or from a pod on this node; something keeps switching it off, since the agent \
                      switches it on"
                .to_owned(),
        cure: "sysctl -w net.ipv4.ip_forward=1, and look for who sets it to 0 in /etc/sysctl.d".to_owned(),
    }]
}

/// Packets for the advertised address mostly come in on its NIC; where the way back to their source is another NIC, a
/// strict filter there drops them (RFC 3704 §2.2). That it has dropped some is what makes it a fault: on which NIC packets
/// come in is the senders' choice.
pub(super) fn reverse_path(known: &Known<'_>, host: &Host) -> Vec<Finding> {
    let own = IpAddr::V4(known.settings.address);
    let nic = known.actual.link_with_address(own).map(|(link, _)| link);
    let Some(nic) = nic.filter(|nic| known.actual.is_strict(nic.index) && host.reverse_path_drops > 0) else {
        return Vec::new();
    };
    let back_elsewhere = known.plan.tunnelled_to.iter().filter_map(|peer| {
        let way = way_to(known, IpAddr::V4(*peer))?;
        let is_elsewhere = way.next_hops.iter().all(|hop| hop.link != nic.index);
        is_elsewhere.then(|| (peer, known.named(way)))
    });
    back_elsewhere
        .map(|(peer, way)| Finding {
            check: Check::ReversePath,
            finding: format!("a strict reverse-path filter on {} drops packets of node {peer}", nic.name),
            evidence: format!(
                "net.ipv4.conf.{}.rp_filter (or that of all) is 1, the way back to {peer} is `{way}`, and the filter has \
                 dropped {} packets on this host (IPReversePathFilter)",
                nic.name, host.reverse_path_drops
            ),
            consequence: format!("what {peer} sends to {own} by that NIC is dropped without a word"),
            cure: format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", nic.name),
        })
        .collect()
}

/// The kernel's own way to an address, by the main table.
fn way_to<'a>(known: &Known<'a>, address: IpAddr) -> Option<&'a Route> {
    let around = known
        .actual
        .routes()
        .filter(|route| route.key.table == MAIN_TABLE && route.key.prefix.contains(&address));
    around.min_by_key(|route| (Reverse(route.key.prefix.prefix_len()), route.key.metric))
}

/// The tunnel device is there and up where a pool asks for it, and what it sends fits the NIC.
pub(super) fn tunnel(known: &Known<'_>) -> Vec<Finding> {
    let mut pools = known.cluster.pools();
    if !pools.any(|(_, pool)| pool.ipip_mode != EncapsulationMode::Never) {
        return Vec::new();
    }
    let device = known.actual.link_named(TUNNEL_DEVICE);
    let Some(device) = device.filter(|link| link.up) else {
        let there = device.map_or("is not there", |_| "is down");
        return vec![Finding {
            check: Check::Tunnel,
            finding: format!("the tunnel device {TUNNEL_DEVICE} {there}"),
            evidence: known
                .status
                .tunnel_problem
                .clone()
                .unwrap_or_else(|| format!("`ip link show {TUNNEL_DEVICE}`")),
            consequence: "no packet gets to a pod of another node through a tunnel".to_owned(),
            cure: format!("modprobe ipip && ip link set {TUNNEL_DEVICE} up"),
        }];
    };
    let own = IpAddr::V4(known.settings.address);
    let nic = known.actual.link_with_address(own).map(|(link, _)| link);
    nic.into_iter().filter_map(|nic| too_large(device, nic)).collect()
}

fn too_large(device: &Link, nic: &Link) -> Option<Finding> {
    let most = nic.mtu.saturating_sub(IPIP_OVERHEAD);
    (nic.mtu > IPIP_OVERHEAD && device.mtu > most).then(|| Finding {
        check: Check::Tunnel,
        finding: format!("packets through {} do not fit {}", device.name, nic.name),
        evidence: format!(
            "MTU {} on {} and {} on {}, of which the outer header takes {IPIP_OVERHEAD}",
            device.mtu, device.name, nic.mtu, nic.name
        ),
        consequence: "large packets are cut in pieces, or vanish: connections hang once they carry data"
            .to_owned(),
        cure: format!("set tunnel.mtu to {most} or less, or leave it out: the agent then takes what fits"),
    })
}

pub(super) fn outer_source(known: &Known<'_>) -> Vec<Finding> {
    let sources = &known.status.sources;
    let wrong = sources.mismatches.iter().map(|mismatch| Finding {
        check: Check::OuterSource,
        finding: format!("packets to {} leave with the wrong outer source", mismatch.peer),
        evidence: mismatch.problem.clone(),
        consequence: format!(
            "{} knows no node at {}, and may drop them",
            mismatch.peer, mismatch.source
        ),
        cure: "as it says; `culvert route explain` for an address there shows both addresses".to_owned(),
    });
    let problems = sources.problems.iter().map(|problem| Finding {
        check: Check::OuterSource,
        finding: "the outer source of packets is not pinned".to_owned(),
        evidence: problem.clone(),
        consequence: "they may leave with an address that the other nodes do not know".to_owned(),
        cure: "as it says".to_owned(),
    });
    wrong.chain(problems).collect()
}

/// Field case: the kernel sends a block to an address of the pod network.
pub(super) fn next_hops(known: &Known<'_>) -> Vec<Finding> {
    let in_main = known
        .actual
        .routes()
        .filter(|route| route.key.table == MAIN_TABLE);
    let wrong = in_main.filter_map(|route| {
        let (gateway, pool) = known.next_hop_in_pool(route)?;
        Some((route, gateway, pool.cidr))
    });
    wrong
        .map(|(route, gateway, pool)| Finding {
            check: Check::NextHop,
            finding: format!(
                "wrong next hop: {} is sent to {gateway}, an address inside the pool {pool}",
                route.key.prefix
            ),
            evidence: format!("`{}`", known.named(route)),
            consequence: "no node is there: packets to these pods are lost".to_owned(),
            cure: match known.plan.desired.routes.get(&route.key) {
                Some(right) => format!("ip route replace {}", known.named(right)),
                None => format!("ip route del {}", known.named(route)),
            },
        })
        .collect()
}

/// What the kernel refuses, what peers announce in vain, and what other programs do inside the pools.
pub(super) fn routes(known: &Known<'_>) -> Vec<Finding> {
    let failed = known.status.routes.failed.iter().map(|problem| Finding {
        check: Check::Routes,
        finding: format!("the kernel does not hold, or not for long: {}", problem.route),
        evidence: problem.reason.clone(),
        consequence: "packets to these pods follow another route, or are refused".to_owned(),
        cure: "as it says; the agent tries again by itself".to_owned(),
    });
    let rejected = known.status.routes.rejected.iter().map(|problem| Finding {
        check: Check::Routes,
        finding: format!("{} is announced and not installed", problem.route),
        evidence: problem.reason.clone(),
        consequence: "pods there cannot be reached from this node".to_owned(),
        cure: "as it says".to_owned(),
    });
    failed.chain(rejected).chain(foreign(known)).collect()
}

/// Routes into a pool that another routing daemon keeps.
fn foreign(known: &Known<'_>) -> Vec<Finding> {
    let in_pool = known.actual.routes().filter(|route| {
        route.key.table == MAIN_TABLE
            && PROTOCOLS_OF_CALICO.contains(&route.protocol)
            && known.cluster.pool_of(&route.key.prefix).is_some()
    });
    in_pool
        .map(|route| Finding {
            check: Check::Routes,
            finding: format!(
                "another routing daemon has put a route into the pod network: {}",
                route.key.prefix
            ),
            evidence: format!(
                "`{}`, protocol {}",
                known.named(route),
                protocol_name(route.protocol)
            ),
            consequence:
                "if that daemon still runs, the two fight; if not, nobody removes it when the block moves"
                    .to_owned(),
            cure: format!(
                "stop BIRD or Felix on this host; a route of no use: ip route del {}",
                known.named(route)
            ),
        })
        .collect()
}
