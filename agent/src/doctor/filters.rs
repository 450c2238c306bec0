//! Packet filters of others that drop what goes between pods, and between nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{Check, Finding, Fix, Host};
use crate::desired::{IPIP, TUNNEL_DEVICE};
use crate::inquiry::Known;
use crate::ruleset::{Hook, Packet, Place, Program, Ruleset};

/// So many nodes are looked at: filters seldom tell one from another.
const MOST_NODES: usize = 64;

/// What a packet is for, and by which command it is let through.
struct Question {
    packet: Packet,
    hooks: &'static [Hook],
    /// `packets from pods to pods`.
    what: String,
    consequence: String,
    /// Conditions of the rules that accept it, as nft and as iptables write them.
    accepted: Vec<(String, String)>,
}

const IN: &[Hook] = &[Hook::Prerouting, Hook::Input];
const OUT: &[Hook] = &[Hook::Output, Hook::Postrouting];
const THROUGH: &[Hook] = &[Hook::Prerouting, Hook::Forward, Hook::Postrouting];

/// Rules and policies that drop for certain, and those that may and have dropped something just now.
pub(super) fn drops(known: &Known<'_>, host: &Host) -> Vec<Finding> {
    let questions = questions(known);
    let mut told: BTreeSet<Place> = BTreeSet::new();
    let mut found = Vec::new();
    for question in questions {
        let [before, after] =
            [&host.rules.0, &host.rules.1].map(|rules| rules.fate(&question.packet, question.hooks));
        if let Some(place) = after.dropped {
            if told.insert(counterless(&place)) {
                found.push(certain(&question, &place));
            }
            continue;
        }
        for place in after.perhaps {
            let former = before.perhaps.iter().find(|former| former.is_same_as(&place));
            let rise = place.packets.zip(former.and_then(|former| former.packets));
            if let Some(rise) = rise
                .and_then(|(now, then)| now.checked_sub(then))
                .filter(|rise| *rise > 0)
                && told.insert(counterless(&place))
            {
                found.push(perhaps(&question, &place, rise));
            }
        }
    }
    found.extend(bridged(known, host));
    found
}

fn counterless(place: &Place) -> Place {
    Place {
        packets: None,
        ..place.clone()
    }
}

fn certain(question: &Question, place: &Place) -> Finding {
    let verb = if place.rejects { "rejects" } else { "drops" };
    Finding {
        check: Check::Filters,
        fix: None,
        finding: format!("a packet filter on this host {verb} {}", question.what),
        evidence: match place.packets {
            Some(packets) => format!("{place}; its counter is at {packets}"),
            None => place.to_string(),
        },
        consequence: question.consequence.clone(),
        cure: cure(question, place),
    }
}

fn perhaps(question: &Question, place: &Place, rise: u64) -> Finding {
    Finding {
        check: Check::Filters,
        fix: None,
        finding: format!(
            "a packet filter on this host is dropping packets now, perhaps {}",
            question.what
        ),
        evidence: format!("{place}; its counter rose by {rise} while it was looked at"),
        consequence: question.consequence.clone(),
        cure: format!(
            "look whether these are meant to be dropped; if not: {}",
            cure(question, place)
        ),
    }
}

/// The command that lets it through, before the rule that drops it.
fn cure(question: &Question, place: &Place) -> String {
    let (family, table, _) = &place.chain;
    let base = &place.base;
    let command = |(nft, iptables): &(String, String)| match place.program {
        Program::Nftables => format!("nft insert rule {family} {table} {base} {nft} accept"),
        Program::Iptables => format!("iptables-legacy -t {table} -I {base} {iptables} -j ACCEPT"),
    };
    let commands: Vec<String> = question.accepted.iter().map(command).collect();
    commands.join(" && ")
}

fn questions(known: &Known<'_>) -> Vec<Question> {
    let own = known.settings.address;
    let mut all = forwarded(known);
    let nic = known.actual.link_with_address(IpAddr::V4(own));
    let nic = nic.map_or_else(String::new, |(link, _)| link.name.clone());
    let port = known.plan.peering.endpoint.port;
    let mesh: BTreeSet<Ipv4Addr> = known
        .status
        .peers
        .iter()
        .filter_map(|peer| match peer.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        })
        .collect();
    let tunnelled = &known.plan.tunnelled_to;
    for node in tunnelled.iter().take(MOST_NODES) {
        let accepted = vec![(format!("ip protocol {IPIP}"), format!("-p {IPIP}"))];
        let consequence = |which: &str| {
            format!("{which} pods of {node} through the tunnel are lost, while the BGP session may be up")
        };
        all.push(Question {
            packet: Packet::new(IPIP, *node, own).from_link(&nic),
            hooks: IN,
            what: format!("tunnelled packets (IP protocol {IPIP}) from {node}"),
            consequence: consequence("packets from"),
            accepted: accepted.clone(),
        });
        all.push(Question {
            packet: Packet::new(IPIP, own, *node).to_link(&nic),
            hooks: OUT,
            what: format!("tunnelled packets (IP protocol {IPIP}) to {node}"),
            consequence: consequence("packets to"),
            accepted,
        });
    }
    for peer in mesh.iter().take(MOST_NODES) {
        let accepted = vec![(format!("tcp dport {port}"), format!("-p tcp --dport {port}"))];
        let consequence =
            format!("no BGP session with {peer} comes about, unless the other side can connect");
        all.push(Question {
            packet: Packet::tcp(*peer, own, port).from_link(&nic),
            hooks: IN,
            what: format!("BGP connections (TCP port {port}) from {peer}"),
            consequence: consequence.clone(),
            accepted: accepted.clone(),
        });
        all.push(Question {
            packet: Packet::tcp(own, *peer, port).to_link(&nic),
            hooks: OUT,
            what: format!("BGP connections (TCP port {port}) to {peer}"),
            consequence,
            accepted,
        });
    }
    all
}

/// From a pod here to one of another node, and the other way.
fn forwarded(known: &Known<'_>) -> Vec<Question> {
    let node = &known.settings.node;
    let inside = |block: &IpNet| match block {
        IpNet::V4(net) => net.hosts().nth(1),
        IpNet::V6(_) => None,
    };
    let mut blocks = known.cluster.claimed_blocks();
    let Some(far) = blocks
        .find(|(block, owner)| owner != node && block.addr().is_ipv4())
        .and_then(|(block, _)| inside(&block))
    else {
        return Vec::new();
    };
    let Some(near) = known.cluster.blocks_of(node).find_map(|block| inside(&block)) else {
        return Vec::new();
    };
    let Some(pool) = known.cluster.pool_of(&IpNet::from(IpAddr::V4(near))) else {
        return Vec::new();
    };
    let pod = known
        .actual
        .links()
        .find(|link| link.name.starts_with("cali"))
        .map_or("cali0", |link| &link.name);
    let is_tunnelled = known.plan.tunnelled_to.iter().next().is_some();
    let own = IpAddr::V4(known.settings.address);
    let other = if is_tunnelled {
        TUNNEL_DEVICE.to_owned()
    } else {
        let nic = known.actual.link_with_address(own);
        nic.map_or_else(String::new, |(link, _)| link.name.clone())
    };
    let consequence = format!(
        "pods on this node reach none on other nodes, or are not reached, by new connections in {}",
        pool.cidr
    );
    let question = |packet, which: &str| Question {
        packet,
        hooks: THROUGH,
        what: format!("packets between pods that it forwards, {which} pods of this node"),
        consequence: consequence.clone(),
        accepted: ["s", "d"]
            .map(|which| {
                (
                    format!("ip {which}addr {}", pool.cidr),
                    format!("-{which} {}", pool.cidr),
                )
            })
            .to_vec(),
    };
    vec![
        question(
            Packet::tcp(near, far, 8080).from_link(pod).to_link(&other),
            "from",
        ),
        question(Packet::tcp(far, near, 8080).from_link(&other).to_link(pod), "to"),
    ]
}

/// Machines behind a bridge of this host are other nodes, perhaps: with this switch their packets pass the filter for
/// what is forwarded, though nobody forwards them.
fn bridged(known: &Known<'_>, host: &Host) -> Option<Finding> {
    let own = known.settings.address;
    let (link, _) = known.actual.link_with_address(IpAddr::V4(own))?;
    if !host.bridge_calls_iptables || link.kind.as_deref() != Some("bridge") {
        return None;
    }
    let node = known.plan.tunnelled_to.iter().next()?;
    let packet = Packet::new(IPIP, *node, Ipv4Addr::UNSPECIFIED)
        .from_link(&link.name)
        .to_link(&link.name);
    let place = ruleset(host).fate(&packet, &[Hook::Forward]).dropped?;
    let fix = Fix::sysctl(&["net", "bridge", "bridge-nf-call-iptables"], 0);
    Some(Finding {
        check: Check::Filters,
        finding: format!(
            "packets that only cross the bridge {} are dropped as if they were forwarded",
            link.name
        ),
        evidence: format!("net.bridge.bridge-nf-call-iptables is 1, and {place}"),
        consequence: "tunnelled packets of machines behind this bridge are lost".to_owned(),
        cure: fix.command(),
        fix: Some(fix),
    })
}

fn ruleset(host: &Host) -> &Ruleset {
    &host.rules.1
}
