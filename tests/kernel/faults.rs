//! Faults as operators meet them, each made on purpose, and the sentence that names its cause.

use std::net::Ipv4Addr;
use std::time::Duration;

use harness::{Lab, LabError, Node, wait_for};
use libtest_mimic::Failed;

use crate::doctor::{found, report};
use crate::ensure;

/// Far more than anything here takes.
const GENEROUS: Duration = Duration::from_secs(90);

/// Nothing is wrong with any node. Where their kernel has no packet filter, that is all that is.
fn is_well(lab: &Lab) -> Result<(), LabError> {
    wait_for("nothing to be wrong", GENEROUS, || {
        let mut wrong = Vec::new();
        for node in lab.nodes() {
            let text = report(&node.agent).map_err(|error| error.to_string())?;
            if text.contains("deletions are held") {
                // A pool that was in use is given up only when somebody says so; or the objects are just back.
                let _ = node.agent.accept_withdrawal();
            }
            let without_filter =
                text.contains("the packet filter is not written") && text.contains("\n1 finding.");
            if !without_filter && !text.contains("Nothing is wrong.") {
                wrong.push(text);
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(wrong.join("\n"))
        }
    })
}

fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata:\n  name: {name}\nspec:\n  cidr: {cidr}\n  \
         ipipMode: Always\n  vxlanMode: Never\n{more}"
    )
}

fn claim(node: &str, block: &str) -> String {
    format!(
        "apiVersion: crd.projectcalico.org/v1\nkind: BlockAffinity\nmetadata:\n  name: {}\nspec:\n  cidr: {block}\n  \
         node: {node}\n  state: confirmed\n  deleted: \"false\"\n",
        claim_name(node, block)
    )
}

fn claim_name(node: &str, block: &str) -> String {
    format!("{node}-{}", block.replace(['.', '/'], "-"))
}

/// Two pools overlap, two nodes advertise one address, and a block belongs to a node that there is none of.
pub(crate) fn in_the_datastore(lab: &mut Lab) -> Result<(), Failed> {
    const BLOCK: &str = "10.65.99.0/26";
    is_well(lab)?;
    let twin = lab.node(2).address;
    lab.add_object(pool("more", "10.65.128.0/17", "  disabled: true\n"))?;
    lab.add_object(claim("node8", BLOCK))?;
    lab.add_object(format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: node9\n  annotations:\n    projectcalico.org/IPv4Address: \
         {twin}/24\n"
    ))?;
    let told = found(
        &lab.node(1).agent,
        &[
            "pools default-ipv4-ippool and more overlap",
            "nodes node2 and node9 advertise one address",
            &format!("block {BLOCK} belongs to the node node8, which does not exist"),
        ],
    );
    lab.delete_object("Node", "node9")?;
    lab.delete_object("BlockAffinity", &claim_name("node8", BLOCK))?;
    lab.delete_object("IPPool", "more")?;
    told?;
    Ok(is_well(lab)?)
}

/// The one pool that is not disabled has eight addresses, and pods have them all: who asks for one more is told, and so is who
/// looks at any node, or at all of them. With the other pool enabled again nothing is wrong.
pub(crate) fn pool_exhausted(lab: &mut Lab) -> Result<(), Failed> {
    is_well(lab)?;
    lab.set_in_pool(&[("disabled", "true")])?;
    lab.add_object(pool("tiny", "10.66.0.0/29", "  blockSize: 29\n"))?;
    wait_for("the new pool to be known", GENEROUS, || {
        let known = lab.node(1).agent.by_configuration(&["get", "ippools"]);
        match known {
            Ok(text) if text.contains("tiny") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })?;
    // The agent may hear of the pool a moment later than the command.
    let mut given = 0_u8;
    let refused = loop {
        ensure(given < 100, || "a hundred pods have an address".to_owned())?;
        match lab.attach(1, &format!("more{given}")) {
            Ok(_) => given += 1,
            Err(LabError::Command { output, .. }) => break output,
            Err(other) => return Err(other.into()),
        }
    };
    println!("  after {given} pods: {refused}");
    ensure(
        refused.contains("no block is left")
            && refused.contains("in pool tiny (10.66.0.0/29, 1 blocks of 8 addresses)"),
        || refused.clone(),
    )?;
    for node in lab.nodes() {
        found(
            &node.agent,
            &[
                "pool tiny is exhausted: this node has no address left of it, and can get no other block",
                "1 of 1 blocks of 10.66.0.0/29 are claimed",
                "create another pool",
            ],
        )?;
    }
    let text = printed(lab.node(1).agent.by_configuration(&["doctor", "--all-nodes"]))?;
    ensure(
        text.contains("the pool tiny is exhausted")
            && text.contains("0 of 8 addresses of 10.66.0.0/29 are free"),
        || text.clone(),
    )?;
    lab.set_in_pool(&[("disabled", "false")])?;
    Ok(is_well(lab)?)
}

/// The datastore is away for a while.
pub(crate) fn datastore_away(lab: &mut Lab) -> Result<(), Failed> {
    lab.set_datastore_away(true)?;
    let told = found(
        &lab.node(1).agent,
        &["the datastore does not answer as it should"],
    );
    lab.set_datastore_away(false)?;
    told?;
    Ok(is_well(lab)?)
}

/// Forwarding is switched off, and the tunnel set down, again and again: each time it is mended at once, and the doctor
/// tells that somebody does it.
pub(crate) fn undone(lab: &mut Lab) -> Result<(), Failed> {
    // What was undone before on this cluster does not count.
    begin_anew(lab)?;
    let node = lab.node(1);
    for _ in 0..4 {
        node.namespace.run("sysctl", &["-qw", "net.ipv4.ip_forward=0"])?;
        node.namespace.ip("link set tunl0 down")?;
        wait_for("both to be mended", GENEROUS, || {
            let forwards = node.namespace.run("sysctl", &["-n", "net.ipv4.ip_forward"]);
            let link = node.namespace.ip("-oneline link show tunl0");
            match (forwards, link) {
                (Ok(forwards), Ok(link)) if forwards.trim() == "1" && link.contains(",UP") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })?;
    }
    found(
        &node.agent,
        &[
            "something keeps switching forwarding off on this host",
            "something keeps setting tunl0 down on this host",
        ],
    )?;
    begin_anew(lab)?;
    Ok(is_well(lab)?)
}

/// A new run of the agent knows of nothing that was undone.
fn begin_anew(lab: &mut Lab) -> Result<(), Failed> {
    lab.agent(1).terminate()?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(())
}

/// A wrong AS, passwords that differ or that only one side has, TCP port 179 shut by a filter, a speaker that is gone, and an
/// address that is: each time both ends name it.
pub(crate) fn sessions(lab: &mut Lab) -> Result<(), Failed> {
    wrong_as(lab)?;
    passwords(lab)?;
    filtered(lab)?;
    rejected(lab)?;
    gone(lab)?;
    Ok(is_well(lab)?)
}

/// What node `number` is told of its peer at `address`.
fn peer(name: &str, number: u8, address: Ipv4Addr, more: &str) -> String {
    format!(
        "apiVersion: crd.projectcalico.org/v1\nkind: BGPPeer\nmetadata:\n  name: {name}\nspec:\n  node: node{number}\n  \
         peerIP: {address}\n{more}"
    )
}

fn wrong_as(lab: &mut Lab) -> Result<(), Failed> {
    let (first, third) = (lab.node(1).address, lab.node(3).address);
    lab.add_object(peer("wrong-as", 1, third, "  asNumber: 65001\n"))?;
    let told = found(
        &lab.node(1).agent,
        &[
            &format!("the BGP session with node node3 ({third}) is"),
            "peer says it is AS 64512, we expect AS 65001",
        ],
    )
    .and_then(|()| {
        found(
            &lab.node(3).agent,
            &[
                &format!("the BGP session with node node1 ({first}) is"),
                "bad peer AS (2/2): the peer is configured with another AS for this node",
            ],
        )
    });
    lab.delete_object("BGPPeer", "wrong-as")?;
    told?;
    Ok(lab.wait_for_sessions().map(drop)?)
}

/// First the peer has none, then another one.
fn passwords(lab: &mut Lab) -> Result<(), Failed> {
    let (first, third) = (lab.node(1).address, lab.node(3).address);
    let password = |key: &str| {
        format!("  asNumber: 64512\n  password:\n    secretKeyRef:\n      name: bgp\n      key: {key}\n")
    };
    lab.add_object(
        "apiVersion: v1\nkind: Secret\nmetadata:\n  name: bgp\n  namespace: default\nstringData:\n  one: swordfish\n  \
         other: sailfish\n"
            .to_owned(),
    )?;
    lab.add_object(peer("one-side", 1, third, &password("one")))?;
    let one_sided = found(
        &lab.node(3).agent,
        &["the peer likely has a password, this node none; give this node the same"],
    )
    .and_then(|()| {
        found(
            &lab.node(1).agent,
            &["the peer likely has no password; give it the one of this node"],
        )
    });
    lab.add_object(peer("other-side", 3, first, &password("other")))?;
    let both = [(1, "node3", third), (3, "node1", first)];
    let mut differing = both.into_iter().map(|(number, name, address)| {
        found(
            &lab.node(number).agent,
            &[
                &format!("the BGP session with node {name} ({address}) is down"),
                "refuses segments with a wrong MD5 signature: the passwords likely differ; give both ends the same",
            ],
        )
    });
    let differing = differing.try_for_each(|told| told);
    for name in ["one-side", "other-side"] {
        lab.delete_object("BGPPeer", name)?;
    }
    lab.delete_object("Secret", "bgp")?;
    one_sided?;
    differing?;
    Ok(lab.wait_for_sessions().map(drop)?)
}

fn iptables(node: &Node, arguments: &str) -> Result<String, LabError> {
    let all: Vec<&str> = arguments.split_whitespace().collect();
    node.namespace.run("iptables-legacy", &all)
}

/// Shuts TCP port 179 on the first node, for the second, both ways; their session goes.
fn shut(lab: &Lab, target: &str) -> Result<(), LabError> {
    let (node, other) = (lab.node(1), lab.node(2));
    let (from, to) = (other.address, node.address);
    iptables(
        node,
        &format!("-A INPUT -s {from} -p tcp --dport 179 -j {target}"),
    )?;
    iptables(
        node,
        &format!("-A OUTPUT -d {from} -p tcp --dport 179 -j {target}"),
    )?;
    // What either says of the end of the session may not come through.
    node.agent.ask(&["bgp", "clear", &from.to_string()])?;
    other.agent.ask(&["bgp", "clear", &to.to_string()])?;
    Ok(())
}

/// iptables as they were before nf_tables: the node with the filter names the rule, the other what is likely.
fn filtered(lab: &mut Lab) -> Result<(), Failed> {
    let (node, other) = (lab.node(1), lab.node(2));
    let (from, to) = (other.address, node.address);
    shut(lab, "DROP")?;
    let told = found(
        &other.agent,
        &[
            &format!("the BGP session with node node1 ({to}) is"),
            "connection timed out: the host is down, or something filters TCP port 179",
        ],
    )
    .and_then(|()| {
        found(
            &node.agent,
            &[
                &format!("a packet filter on this host drops BGP connections (TCP port 179) from {from}"),
                &format!("a packet filter on this host drops BGP connections (TCP port 179) to {from}"),
                "iptables (legacy), table filter, chain INPUT, rule 1: drop",
                "iptables-legacy -t filter -I OUTPUT -p tcp --dport 179 -j ACCEPT",
            ],
        )
    });
    let status = other.agent.status_text(&[])?;
    let probed = doctor_with_probes(other);
    iptables(node, "-F")?;
    told?;
    let (probed, dropped) = (
        probed?,
        format!("something drops TCP port 179 from {from} to {to}"),
    );
    ensure(probed.contains(&dropped), || probed)?;
    ensure(status.contains("something filters TCP port 179"), || status)?;
    lab.wait_for_sessions()?;
    Ok(())
}

/// The same with a filter that refuses: to the other node it looks as if nobody listened, and that is said.
fn rejected(lab: &mut Lab) -> Result<(), Failed> {
    let (node, other) = (lab.node(1), lab.node(2));
    let (from, to) = (other.address, node.address);
    shut(lab, "REJECT --reject-with tcp-reset")?;
    let told = found(
        &other.agent,
        &[
            &format!("the BGP session with node node1 ({to}) is"),
            "connection refused: no speaker listens there yet, or a filter there rejects TCP port 179",
        ],
    )
    .and_then(|()| {
        found(
            &node.agent,
            &[
                &format!("a packet filter on this host rejects BGP connections (TCP port 179) from {from}"),
                "iptables (legacy), table filter, chain INPUT, rule 1: reject",
            ],
        )
    });
    iptables(node, "-F")?;
    told?;
    lab.wait_for_sessions()?;
    Ok(())
}

/// The speaker of a node is gone; then its address is another, without a word to anybody.
fn gone(lab: &mut Lab) -> Result<(), Failed> {
    let address = lab.node(3).address;
    lab.agent(3).kill()?;
    let told = found(
        &lab.node(1).agent,
        &[
            &format!("the BGP session with node node3 ({address}) is"),
            "connection refused: no speaker listens there yet",
        ],
    );
    lab.start_agent(3)?;
    lab.wait_for_sessions()?;
    told?;

    let node = lab.node(3);
    node.namespace.ip(&format!("addr del {address}/24 dev eth0"))?;
    node.namespace.ip("addr add 172.18.0.33/24 dev eth0")?;
    let told = found(
        &node.agent,
        &[&format!(
            "the advertised address {address} is on no link of this host"
        )],
    );
    // Else it would find out by its hold timer.
    let other = &lab.node(1).agent;
    other.ask(&["bgp", "clear", &address.to_string()])?;
    let told = told.and_then(|()| {
        found(
            other,
            &[
                &format!("the BGP session with node node3 ({address}) is"),
                "peer address is unreachable: its host is down or has another address now",
            ],
        )
    });
    node.namespace.ip("addr del 172.18.0.33/24 dev eth0")?;
    node.namespace.ip(&format!("addr add {address}/24 dev eth0"))?;
    let router = lab.layout().router(3);
    node.namespace
        .ip(&format!("route replace default via {router}"))?;
    told?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(())
}

fn doctor_with_probes(node: &Node) -> Result<String, LabError> {
    printed(node.agent.ask(&["doctor", "--probe"]))
}

fn trace(lab: &Lab, from: &str, to: &str) -> Result<String, LabError> {
    let (from, to) = (format!("default/{from}"), lab.pod(to).address.to_string());
    printed(lab.node(1).agent.ask(&["trace", &from, &to]))
}

/// What a command prints, whatever it finds.
fn printed(asked: Result<String, LabError>) -> Result<String, LabError> {
    match asked {
        Err(LabError::Command { output, .. }) => Ok(output),
        other => other,
    }
}

/// Packets are followed from pod to pod: all arrive; then a NIC on the way takes less than the tunnel sends, the other host
/// drops protocol 4, or what it forwards, and a pod does not answer. Each time the sentence names it; to the pod that is
/// silent the way is well.
pub(crate) fn on_the_way(lab: &mut Lab) -> Result<(), Failed> {
    const WELL: &str = "All packets arrived, and all answers came back.";
    for (from, to, there, back) in [
        ("n1p1", "n3p1", 6, 6),
        ("n1p1", "n1p2", 2, 2),
        ("n3p1", "n2p1", 6, 6),
    ] {
        let text = trace(lab, from, to)?;
        println!("{text}");
        ensure(text.contains(WELL), || text.clone())?;
        // From the one pod to the other, and all of it again on the way back.
        for (way, hops) in [("there ", there), ("back ", back)] {
            let seen = |line: &&str| line.starts_with(way) && line.trim_end().ends_with(" ok");
            ensure(text.lines().filter(seen).count() == hops, || text.clone())?;
        }
    }
    let text = doctor_with_probes(lab.node(1))?;
    ensure(text.contains("ok       ways to other nodes"), || text.clone())?;

    let third = lab.node(3);
    let both = |words: &str| -> Result<(), Failed> {
        let (traced, probed) = (trace(lab, "n1p1", "n3p1")?, doctor_with_probes(lab.node(1))?);
        println!("{traced}");
        ensure(traced.contains(words) && !traced.contains(WELL), || {
            traced.clone()
        })?;
        ensure(probed.contains(words), || probed.clone())
    };
    lab.fabric().ip("link set node3 mtu 1400")?;
    let told = both("the MTU is too large for the way: packets of 1480 bytes do not pass");
    lab.fabric().ip("link set node3 mtu 1500")?;
    told?;

    iptables(third, "-A INPUT -p 4 -j DROP")?;
    let told = both(
        "on node3: a packet filter on this host drops tunnelled packets (IP protocol 4) from every other node",
    );
    iptables(third, "-F")?;
    told?;

    iptables(third, "-P FORWARD DROP")?;
    let forwarded = trace(lab, "n1p1", "n3p1");
    iptables(third, "-P FORWARD ACCEPT")?;
    let forwarded = forwarded?;
    println!("{forwarded}");
    ensure(
        forwarded
            .contains("on node3: a packet filter on this host drops packets between pods that it forwards"),
        || forwarded.clone(),
    )?;
    silence(lab)?;
    let text = trace(lab, "n1p1", "n3p1")?;
    ensure(text.contains(WELL), || text.clone())
}

/// To a pod that does not answer pings the way is well, and of the way back nothing is said.
fn silence(lab: &Lab) -> Result<(), Failed> {
    let pod = lab.pod("n3p1");
    let ignore = |value: &str| {
        let setting = format!("net.ipv4.icmp_echo_ignore_all={value}");
        pod.namespace.run("sysctl", &["-qw", &setting])
    };
    ignore("1")?;
    let traced = trace(lab, "n1p1", "n3p1");
    ignore("0")?;
    let text = traced?;
    println!("{text}");
    let silent = format!("the link to the pod {}; it did not answer", pod.address);
    for words in [
        "The way there is well, of the way back nothing is known",
        silent.as_str(),
        "no answer",
    ] {
        ensure(text.contains(words), || text.clone())?;
    }
    ensure(!text.contains("MISSING") && !text.contains("cause"), || {
        text.clone()
    })
}
