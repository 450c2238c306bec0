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

/// So many nodes of a finding are named, and the others counted.
const NODES_NAMED: usize = 3;

/// What a packet is for, and by which command it is let through.
struct Question {
    packet: Packet,
    hooks: &'static [Hook],
    /// `tunnelled packets from`, and then the other ends: questions with the same words differ in nothing else.
    what: String,
    /// The node, or the peer, at the other end; none where that does not matter.
    other: Option<Ipv4Addr>,
    /// How all of them are called together: `every other node`.
    all_others: &'static str,
    /// What follows, before and after the other ends.
    consequence: (String, &'static str),
    /// Conditions of the rules that accept it, as nft and as iptables write them.
    accepted: Vec<(String, String)>,
}

/// A place where packets are dropped, and what is known of it.
struct Loss<'a> {
    /// Without its counter.
    place: Place,
    /// The first question that found it.
    question: &'a Question,
    /// The other ends of all questions with the same words that did.
    others: BTreeSet<Ipv4Addr>,
    evidence: String,
    /// They are dropped for certain; else perhaps.
    is_certain: bool,
}

const IN: &[Hook] = &[Hook::Prerouting, Hook::Input];
const OUT: &[Hook] = &[Hook::Output, Hook::Postrouting];
const THROUGH: &[Hook] = &[Hook::Prerouting, Hook::Forward, Hook::Postrouting];

/// Rules and policies that drop for certain, and those that may and have dropped something just now. Each is told once, with
/// all nodes that it keeps apart.
pub(super) fn drops(known: &Known<'_>, host: &Host) -> Vec<Finding> {
    let questions = questions(known);
    let mut losses: Vec<Loss<'_>> = Vec::new();
    for question in &questions {
        let [before, after] =
            [&host.rules.0, &host.rules.1].map(|rules| rules.fate(&question.packet, question.hooks));
        if let Some(place) = after.dropped {
            let evidence = match place.packets {
                Some(packets) => format!("{place}; its counter is at {packets}"),
                None => place.to_string(),
            };
            note(&mut losses, question, &place, evidence, true);
            continue;
        }
        for place in after.perhaps {
            let former = before.perhaps.iter().find(|former| former.is_same_as(&place));
            let rise = place.packets.zip(former.and_then(|former| former.packets));
            if let Some(rise) = rise
                .and_then(|(now, then)| now.checked_sub(then))
                .filter(|rise| *rise > 0)
            {
                let evidence = format!("{place}; its counter rose by {rise} while it was looked at");
                note(&mut losses, question, &place, evidence, false);
            }
        }
    }
    let mut found: Vec<Finding> = losses.iter().map(|loss| told(loss, &questions)).collect();
    found.extend(bridged(known, host));
    found
}

/// Adds to what is known of a place; what else is dropped there is not told.
fn note<'a>(
    losses: &mut Vec<Loss<'a>>,
    question: &'a Question,
    place: &Place,
    evidence: String,
    is_certain: bool,
) {
    let place = Place {
        packets: None,
        ..place.clone()
    };
    match losses.iter_mut().find(|loss| loss.place == place) {
        Some(loss) if loss.question.what == question.what => loss.others.extend(question.other),
        Some(_) => {}
        None => losses.push(Loss {
            place,
            question,
            others: question.other.into_iter().collect(),
            evidence,
            is_certain,
        }),
    }
}

fn told(loss: &Loss<'_>, questions: &[Question]) -> Finding {
    let question = loss.question;
    let asked = questions
        .iter()
        .filter(|other| other.what == question.what)
        .count();
    let others = if asked > 1 && loss.others.len() == asked {
        question.all_others.to_owned()
    } else {
        named(&loss.others)
    };
    let what = format!("{}{others}", question.what);
    let cure = cure(question, &loss.place);
    let (finding, cure) = if loss.is_certain {
        let verb = if loss.place.rejects { "rejects" } else { "drops" };
        (format!("a packet filter on this host {verb} {what}"), cure)
    } else {
        (
            format!("a packet filter on this host is dropping packets now, perhaps {what}"),
            format!("look whether these are meant to be dropped; if not: {cure}"),
        )
    };
    let (before, after) = &question.consequence;
    let looked_at = if asked == MOST_NODES {
        format!("; the first {MOST_NODES} nodes were looked at")
    } else {
        String::new()
    };
    Finding {
        check: Check::Filters,
        fix: None,
        finding,
        evidence: format!("{}{looked_at}", loss.evidence),
        consequence: if loss.others.is_empty() {
            before.clone()
        } else {
            format!("{before}{others}{after}")
        },
        cure,
    }
}

/// The first of many addresses, and how many more there are.
fn named(addresses: &BTreeSet<Ipv4Addr>) -> String {
    let first: Vec<String> = addresses
        .iter()
        .take(NODES_NAMED)
        .map(ToString::to_string)
        .collect();
    match addresses.len().saturating_sub(NODES_NAMED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
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
        let question = |packet, hooks, way: &str| Question {
            packet,
            hooks,
            what: format!("tunnelled packets (IP protocol {IPIP}) {way} "),
            other: Some(*node),
            all_others: "every other node",
            consequence: (
                format!("packets {way} pods of "),
                " through the tunnel are lost, while the BGP session may be up",
            ),
            accepted: vec![(format!("ip protocol {IPIP}"), format!("-p {IPIP}"))],
        };
        let (there, back) = (Packet::new(IPIP, own, *node), Packet::new(IPIP, *node, own));
        all.push(question(back.from_link(&nic), IN, "from"));
        all.push(question(there.to_link(&nic), OUT, "to"));
    }
    for peer in mesh.iter().take(MOST_NODES) {
        let question = |packet, hooks, way: &str| Question {
            packet,
            hooks,
            what: format!("BGP connections (TCP port {port}) {way} "),
            other: Some(*peer),
            all_others: "every peer",
            consequence: (
                "BGP sessions with ".to_owned(),
                " do not come about, unless the other side can connect",
            ),
            accepted: vec![(format!("tcp dport {port}"), format!("-p tcp --dport {port}"))],
        };
        let (there, back) = (Packet::tcp(own, *peer, port), Packet::tcp(*peer, own, port));
        all.push(question(back.from_link(&nic), IN, "from"));
        all.push(question(there.to_link(&nic), OUT, "to"));
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
        other: None,
        all_others: "",
        consequence: (consequence.clone(), ""),
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
