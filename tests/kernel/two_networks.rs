//! Nodes on two networks, known by their addresses on the second; one lacks it, and is known by that on the first. A
//! packet to that one leaves through the first NIC: left to itself, the kernel gives it that NIC's address as source,
//! which nobody advertises, and which the receiver may drop.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use harness::capture::{Capture, Packet};
use harness::ping::ping;
use harness::{Lab, Layout, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// For what takes an agent a moment; a guest on a busy machine gets more.
const GENEROUS: Duration = Duration::from_secs(30);

/// The node of the field report: 192.168.0.113 on its first NIC, and known by 192.168.3.113.
pub(crate) const REPORTED: u8 = 4;

/// Everything that passes between the nodes in tunnelled packets.
pub(crate) struct Wire {
    captures: [Capture; 2],
    advertised: BTreeMap<Ipv4Addr, Ipv4Addr>,
}

impl Wire {
    pub(crate) fn tap(lab: &Lab) -> Result<Self, Failed> {
        let tap = |bridge| Capture::start(&lab.fabric(), bridge, "ip proto 4");
        let advertised = lab.pods().map(|pod| (pod.address, lab.node(pod.node).address));
        Ok(Self {
            captures: [tap("near")?, tap("second")?],
            advertised: advertised.collect(),
        })
    }

    fn packets(&self) -> Vec<Packet> {
        self.captures.iter().flat_map(Capture::packets).collect()
    }

    /// The outer addresses that a packet between these pods should have.
    fn wanted(&self, inner: (Ipv4Addr, Ipv4Addr)) -> Option<(Ipv4Addr, Ipv4Addr)> {
        Some((*self.advertised.get(&inner.0)?, *self.advertised.get(&inner.1)?))
    }

    /// Waits for a packet between these pods, in whatever outer packet.
    pub(crate) fn wait_for(&self, inner: (Ipv4Addr, Ipv4Addr)) -> Result<Packet, Failed> {
        let what = format!("a packet from {} to {}", inner.0, inner.1);
        Ok(wait_for(&what, GENEROUS, || {
            let packets = self.packets();
            let found = packets
                .iter()
                .find(|packet| packet.inner() == Some(inner))
                .cloned();
            found.ok_or_else(|| format!("{} packets", packets.len()))
        })?)
    }
}

/// Every pod reaches every pod on another node, whether the nodes check sources loosely, strictly or not at all, and every
/// outer source is the advertised address of its sender.
pub(crate) fn sources(lab: &mut Lab) -> Result<(), Failed> {
    for rp_filter in ["2", "1", "0"] {
        for node in lab.nodes() {
            let setting = format!("net.ipv4.conf.all.rp_filter={rp_filter}");
            node.namespace.run("sysctl", &["-qw", &setting])?;
        }
        let wire = Wire::tap(lab)?;
        let mut pairs = 0;
        for from in lab.pods() {
            for to in lab.pods().filter(|to| to.node > from.node) {
                ping(&from.namespace, to.address)
                    .map_err(|e| format!("rp_filter {rp_filter}, from {} to {}: {e}", from.name, to.name))?;
                wire.wait_for((from.address, to.address))?;
                wire.wait_for((to.address, from.address))?;
                pairs += 1;
            }
        }
        let packets = wire.packets();
        ensure(packets.len() >= 2 * pairs, || {
            format!("{} packets of {pairs} pings", packets.len())
        })?;
        for packet in &packets {
            let wanted = packet.inner().and_then(|inner| wire.wanted(inner));
            ensure(wanted.is_some() && packet.outer() == wanted, || {
                format!("rp_filter {rp_filter}: {wanted:?} wanted, seen: {}", packet.text)
            })?;
        }
        println!(
            "  rp_filter {rp_filter}: {pairs} pairs of pods, {} packets",
            packets.len()
        );
    }
    for node in lab.nodes() {
        let status = node.agent.status_text(&[])?;
        ensure(!status.contains("ource:"), || status.clone())?;
        // Nothing of the host's own was touched for that.
        let routes = node.namespace.routes()?;
        let default = format!("default via {}", lab.layout().router(node.number));
        ensure(routes.iter().any(|line| line.starts_with(&default)), || {
            routes.join("; ")
        })?;
        ensure(
            routes
                .iter()
                .any(|line| line.starts_with("192.168.0.0/24 dev eth0 proto kernel")),
            || routes.join("; "),
        )?;
    }
    Ok(())
}

/// With the pins switched off the fault is there, and is told; switched on again it is gone.
pub(crate) fn switched_off(lab: &mut Lab) -> Result<(), Failed> {
    let config = lab.node(REPORTED).agent.config();
    let before = fs::read_to_string(&config)?;
    fs::write(&config, format!("{before}routes:\n  sourcePin: off\n"))?;
    restart(lab)?;
    let (from, to) = (lab.pod("n4p1").clone(), lab.pod("n2p1").clone());
    let lone = lab.node(Layout::lone_number()).address;
    let first = lab.layout().first_address(REPORTED);
    let told = format!(
        "node4: packets to {lone} would leave with source {first} (eth0) instead of the advertised {}: set routes.sourcePin to on",
        lab.node(REPORTED).address
    );
    wait_for("the status to tell of the wrong source", GENEROUS, || {
        let status = lab
            .node(REPORTED)
            .agent
            .status_text(&[])
            .map_err(|e| e.to_string())?;
        if status.contains(&told) {
            Ok(())
        } else {
            Err(status)
        }
    })?;
    crate::doctor::found(
        &lab.node(REPORTED).agent,
        &[
            &format!("packets to {lone} leave with the wrong outer source"),
            "set routes.sourcePin to on",
        ],
    )?;
    metric(lab, 1)?;
    let log = lab.node(REPORTED).agent.log_text()?;
    let line = log.lines().find(|line| line.contains("wrong source"));
    ensure(line.is_some_and(|line| line.contains(&told)), || {
        format!("the log does not tell of it: {line:?}")
    })?;
    ensure(rules(lab)?.is_empty(), || "the rule is still there".to_owned())?;
    {
        let wire = Wire::tap(lab)?;
        ping(&from.namespace, to.address)?;
        let packet = wire.wait_for((from.address, to.address))?;
        ensure(packet.outer() == Some((first, lone)), || {
            format!("the fault does not show: {}", packet.text)
        })?;
        println!("  without pins: {}", packet.text);
    }
    fs::write(&config, before)?;
    restart(lab)?;
    metric(lab, 0)?;
    right_again(lab)
}

/// What hands do to the rule, to the table and to the advertised address is put right.
pub(crate) fn undone_by_hand(lab: &mut Lab) -> Result<(), Failed> {
    let node = lab.node(REPORTED).namespace.clone();
    let pins = table(lab)?;
    let rule = rules(lab)?;
    ensure(pins.len() == 4 && rule.len() == 1, || {
        format!("{pins:#?} {rule:#?}")
    })?;
    let as_before = |what: &str| {
        wait_for(what, GENEROUS, || {
            let now = (
                table(lab).map_err(|_| "no table")?,
                rules(lab).map_err(|_| "no rules")?,
            );
            if now == (pins.clone(), rule.clone()) {
                Ok(())
            } else {
                Err(format!("{now:#?}"))
            }
        })
    };
    node.ip("rule del pref 110")?;
    as_before("the rule to come back")?;
    node.ip("route flush table 886")?;
    as_before("the table to come back")?;
    right_again(lab)?;

    let address = lab.node(REPORTED).address;
    node.ip(&format!("addr del {address}/24 dev eth1"))?;
    wait_for("the status to tell of the address", GENEROUS, || {
        let status = lab
            .node(REPORTED)
            .agent
            .status_text(&[])
            .map_err(|e| e.to_string())?;
        let told = format!("the advertised address {address} is on no link");
        if status.contains(&told) {
            Ok(())
        } else {
            Err(status)
        }
    })?;
    node.ip(&format!("addr add {address}/24 dev eth1"))?;
    node.ip(&format!(
        "route replace default via {}",
        lab.layout().router(REPORTED)
    ))?;
    as_before("the pins to come back with the address")?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    right_again(lab)
}

/// `--cleanup` takes the rule and the table away.
pub(crate) fn clean_up(lab: &mut Lab) -> Result<(), Failed> {
    lab.agent(REPORTED).terminate()?;
    ensure(table(lab)?.len() == 4, || {
        "the pins went with the agent".to_owned()
    })?;
    lab.node(REPORTED).agent.clean_up()?;
    let (left, rules) = (table(lab)?, rules(lab)?);
    ensure(left.is_empty() && rules.is_empty(), || {
        format!("left over: {left:#?} {rules:#?}")
    })?;
    lab.start_agent(REPORTED)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    right_again(lab)
}

pub(crate) fn restart(lab: &mut Lab) -> Result<(), Failed> {
    lab.agent(REPORTED).terminate()?;
    lab.start_agent(REPORTED)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(())
}

/// The routes of the table of pins.
fn table(lab: &Lab) -> Result<Vec<String>, Failed> {
    let all = lab.node(REPORTED).namespace.ip("route show table all")?;
    let pins = all.lines().filter(|line| line.contains(" table 886 "));
    Ok(pins.map(|line| line.trim_end().to_owned()).collect())
}

/// The rules that lead to the table of pins.
fn rules(lab: &Lab) -> Result<Vec<String>, Failed> {
    let all = lab.node(REPORTED).namespace.ip("rule show")?;
    let ours = all.lines().filter(|line| line.contains("lookup 886"));
    Ok(ours.map(|line| line.trim_end().to_owned()).collect())
}

/// The next packets to the lone node have the advertised source.
fn right_again(lab: &Lab) -> Result<(), Failed> {
    let (from, to) = (lab.pod("n4p1"), lab.pod("n2p1"));
    let wire = Wire::tap(lab)?;
    ping(&from.namespace, to.address)?;
    let inner = (from.address, to.address);
    let packet = wire.wait_for(inner)?;
    ensure(packet.outer() == wire.wanted(inner), || {
        format!("still wrong: {}", packet.text)
    })
}

/// Waits for the metric to count this many nodes.
fn metric(lab: &Lab, count: usize) -> Result<(), Failed> {
    let wanted = format!("\nculvert_source_mismatches {count}\n");
    Ok(wait_for(&format!("the metric to be {count}"), GENEROUS, || {
        let (_, page) = lab
            .node(REPORTED)
            .agent
            .page("/metrics")
            .map_err(|e| e.to_string())?;
        if page.contains(&wanted) { Ok(()) } else { Err(page) }
    })?)
}
