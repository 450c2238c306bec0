//! The host's links, addresses, routes and switches.

use std::cmp::Reverse;
use std::net::IpAddr;

use super::{Check, Finding, Fix, Host};
use crate::api::EncapsulationMode;
use crate::desired::TUNNEL_DEVICE;
use crate::fib::{Link, MAIN_TABLE, PROTOCOL_BIRD, Route, protocol_name};
use crate::inquiry::Known;

/// What IPIP adds to a packet, in bytes (RFC 2003 §3).
const IPIP_OVERHEAD: u32 = 20;

/// The number that Felix uses.
const PROTOCOL_FELIX: u8 = 80;

/// From here on numbers are those of routing daemons, or nobody's (linux/rtnetlink.h: `RTPROT_*`)...
const FIRST_DAEMON: u8 = 8;

/// ... but for these, which are the kernel's answers to router advertisements, and DHCP.
const NO_DAEMONS: [u8; 2] = [9, 16];

/// So often within an hour is no accident.
const OFTEN: usize = 3;

/// The advertised address is on a link that is up, and on one node.
pub(super) fn address(known: &Known<'_>) -> Vec<Finding> {
    let own = IpAddr::V4(known.settings.address);
    let mut found = Vec::new();
    match known.actual.link_with_address(own) {
        None => found.push(Finding {
            check: Check::Address,
            fix: None,
            finding: format!("the advertised address {own} is on no link of this host"),
            evidence: "`ip address` does not have it".to_owned(),
            consequence: "the other nodes send packets to an address that nobody answers for".to_owned(),
            cure: format!(
                "add it again (ip address add {own}/… dev …), or set node.address to one that is there"
            ),
        }),
        Some((link, _)) if !link.up || !link.running => found.push(Finding {
            check: Check::Address,
            fix: None,
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
                fix: None,
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
    let consequence = "no packet gets to or from a pod on this node while it is off";
    let search = "look for who sets it to 0: grep -r ip_forward /etc/sysctl.conf /etc/sysctl.d";
    if known.actual.forwarding() {
        let times = known.undone.forwarding;
        let is_undone = times >= OFTEN;
        return is_undone
            .then(|| Finding {
                check: Check::Forwarding,
                fix: None,
                finding: "something keeps switching forwarding off on this host".to_owned(),
                evidence: format!(
                    "net.ipv4.ip_forward was 0 and switched on again {times} times within the hour"
                ),
                consequence: consequence.to_owned(),
                cure: search.to_owned(),
            })
            .into_iter()
            .collect();
    }
    let fix = Fix::sysctl(&["net", "ipv4", "ip_forward"], 1);
    vec![Finding {
        check: Check::Forwarding,
        finding: "this host does not forward packets".to_owned(),
        evidence: "net.ipv4.ip_forward is 0, though the agent switches it on".to_owned(),
        consequence: consequence.to_owned(),
        cure: format!("{}; {search}", fix.command()),
        fix: Some(fix),
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
    let fix = Fix::loose_reverse_path(&nic.name);
    back_elsewhere
        .map(|(peer, way)| Finding {
            check: Check::ReversePath,
            fix: Some(fix.clone()),
            finding: format!("a strict reverse-path filter on {} drops packets of node {peer}", nic.name),
            evidence: format!(
                "net.ipv4.conf.{}.rp_filter (or that of all) is 1, the way back to {peer} is `{way}`, and the filter has \
                 dropped {} packets on this host (IPReversePathFilter)",
                nic.name, host.reverse_path_drops
            ),
            consequence: format!("what {peer} sends to {own} by that NIC is dropped without a word"),
            cure: fix.command(),
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
pub(super) fn tunnel(known: &Known<'_>, host: &Host) -> Vec<Finding> {
    let mut pools = known.cluster.pools();
    if !pools.any(|(_, pool)| pool.ipip_mode != EncapsulationMode::Never) {
        return Vec::new();
    }
    let device = known.actual.link_named(TUNNEL_DEVICE);
    let Some(device) = device.filter(|link| link.up) else {
        let (state, cure) = match device {
            Some(_) => ("is down", format!("ip link set {TUNNEL_DEVICE} up")),
            None if host.has_ipip => ("is not there", format!("ip link add {TUNNEL_DEVICE} type ipip")),
            None => (
                "is not there: the kernel has not loaded the module ipip",
                "modprobe ipip, and echo ipip > /etc/modules-load.d/ipip.conf for the next start".to_owned(),
            ),
        };
        return vec![Finding {
            check: Check::Tunnel,
            fix: None,
            finding: format!("the tunnel device {TUNNEL_DEVICE} {state}"),
            evidence: known
                .status
                .tunnel_problem
                .clone()
                .unwrap_or_else(|| format!("`ip link show {TUNNEL_DEVICE}`")),
            consequence: "no packet gets to a pod of another node through a tunnel".to_owned(),
            cure,
        }];
    };
    let own = IpAddr::V4(known.settings.address);
    let nic = known.actual.link_with_address(own).map(|(link, _)| link);
    let too_large = nic.and_then(|nic| too_large(device, nic));
    let is_too_large = too_large.is_some();
    let mut found: Vec<Finding> = too_large.into_iter().chain(keeps_down(known)).collect();
    if !is_too_large {
        found.extend(narrow(known, host, device));
    }
    found
}

/// What the agent sets up again at once takes packets with it each time.
fn keeps_down(known: &Known<'_>) -> Option<Finding> {
    let times = known.undone.tunnel;
    (times >= OFTEN).then(|| Finding {
        check: Check::Tunnel,
        fix: None,
        finding: format!("something keeps setting {TUNNEL_DEVICE} down on this host"),
        evidence: format!("it was down, and set up again, {times} times within the hour"),
        consequence: "each time its routes are gone for a moment, and packets with them".to_owned(),
        cure: "find out who does it: ip monitor link; systemd-networkd and NetworkManager may be told to leave it alone"
            .to_owned(),
    })
}

/// Ways that take less than the tunnel sends, and whose routes do not say so: the kernel knows it from a router.
fn narrow(known: &Known<'_>, host: &Host, device: &Link) -> Vec<Finding> {
    let narrow = known.plan.tunnelled_to.iter().filter_map(|node| {
        let most = host.path_mtu.get(node)?.saturating_sub(IPIP_OVERHEAD);
        let said = known.plan.desired.routes.values().filter(|route| {
            let gateways = &mut route.next_hops.iter().filter_map(|hop| hop.gateway);
            route.next_hops.iter().all(|hop| hop.link == device.index)
                && gateways.any(|gateway| gateway == IpAddr::V4(*node))
        });
        let sent = said.map(|route| route.mtu.unwrap_or(device.mtu)).max()?;
        (most > 0 && sent > most).then_some((node, most, sent))
    });
    narrow
        .map(|(node, most, sent)| Finding {
            check: Check::Tunnel,
            fix: None,
            finding: format!("the way to {node} takes smaller packets than pods send"),
            evidence: format!(
                "the kernel has learned that it takes {} bytes, of which {IPIP_OVERHEAD} are the outer header, and the \
                 route there lets {sent} through",
                most.saturating_add(IPIP_OVERHEAD)
            ),
            consequence: "large packets to its pods are lost, or resent smaller: connections hang once they carry data"
                .to_owned(),
            cure: format!(
                "say it by the host's own route (ip route replace {node} … mtu {}), or for all nodes by tunnel.mtu: {most}",
                most.saturating_add(IPIP_OVERHEAD)
            ),
        })
        .collect()
}

fn too_large(device: &Link, nic: &Link) -> Option<Finding> {
    let most = nic.mtu.saturating_sub(IPIP_OVERHEAD);
    (nic.mtu > IPIP_OVERHEAD && device.mtu > most).then(|| Finding {
        check: Check::Tunnel,
        fix: None,
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
        fix: None,
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
        fix: None,
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
            fix: None,
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
        fix: None,
        finding: format!("the kernel does not hold, or not for long: {}", problem.route),
        evidence: problem.reason.clone(),
        consequence: "packets to these pods follow another route, or are refused".to_owned(),
        cure: "as it says; the agent tries again by itself".to_owned(),
    });
    let rejected = known.status.routes.rejected.iter().map(|problem| Finding {
        check: Check::Routes,
        fix: None,
        finding: format!("{} is announced and not installed", problem.route),
        evidence: problem.reason.clone(),
        consequence: "pods there cannot be reached from this node".to_owned(),
        cure: "as it says".to_owned(),
    });
    failed
        .chain(rejected)
        .chain(foreign(known))
        .chain(stale(known))
        .collect()
}

/// Routes into a pool that another routing daemon keeps.
fn foreign(known: &Known<'_>) -> Vec<Finding> {
    let is_daemon = |protocol: u8| {
        protocol != known.settings.protocol && protocol >= FIRST_DAEMON && !NO_DAEMONS.contains(&protocol)
    };
    let in_pool = known.actual.routes().filter(|route| {
        route.key.table == MAIN_TABLE
            && is_daemon(route.protocol)
            && known.cluster.pool_of(&route.key.prefix).is_some()
    });
    in_pool
        .map(|route| {
            let who = match route.protocol {
                PROTOCOL_BIRD => "BIRD (calico-node runs one)".to_owned(),
                PROTOCOL_FELIX => "Felix, of calico-node,".to_owned(),
                other => format!("the daemon that writes `proto {}`", protocol_name(other)),
            };
            Finding {
                check: Check::Routes,
                fix: None,
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
                    "stop {who} on this host; a route of no use: ip route del {}",
                    known.named(route)
                ),
            }
        })
        .collect()
}

/// Routes of ours that nothing asks for any more, and that the kernel did not give up.
fn stale(known: &Known<'_>) -> Vec<Finding> {
    let desired = &known.plan.desired;
    // Before that, routes of a former run wait for what the peers will tell.
    if !known.status.converged || !known.status.datastore.in_sync {
        return Vec::new();
    }
    let left = known.actual.routes().filter(|route| {
        route.protocol == known.settings.protocol
            && !desired.routes.contains_key(&route.key)
            && !desired.held.contains(&route.key)
    });
    left.map(|route| Finding {
        check: Check::Routes,
        fix: None,
        finding: format!("a stale route of ours is left in the kernel: {}", route.key),
        evidence: format!("`{}`, for which there is no reason any more", known.named(route)),
        consequence: "packets to it go where the block once was".to_owned(),
        cure: format!(
            "ip route del {}; the agent's log says why it could not",
            known.named(route)
        ),
    })
    .collect()
}
