//! Nodes that are known by an address on a VLAN, on a bond and on a bridge.

use harness::{Lab, Nic, Node, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{AFTER_MENDING, GENEROUS, WAGONS, arrived, programmed, recovers, train};
use crate::ensure;

/// The MTU of a link, as `ip link` prints it.
fn mtu(node: &Node, link: &str) -> Result<u32, String> {
    let text = node
        .namespace
        .ip(&format!("-oneline link show {link}"))
        .map_err(|e| e.to_string())?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1).and_then(|mtu| mtu.parse().ok()).ok_or(text)
}

fn tunnel_fits(node: &Node, device: &str) -> Result<(), Failed> {
    let what = format!(
        "the tunnel of node{} to be as large as {device} allows",
        node.number
    );
    Ok(wait_for(&what, GENEROUS, || {
        let (nic, tunnel) = (mtu(node, device)?, mtu(node, "tunl0")?);
        if tunnel == nic - 20 {
            Ok(())
        } else {
            Err(format!("{tunnel} and {nic}"))
        }
    })?)
}

/// The pins go out through the NIC that carries the address, and the tunnel device has its MTU less 20, also when that is
/// changed.
pub(crate) fn pins_and_mtu(lab: &mut Lab) -> Result<(), Failed> {
    for node in lab.nodes() {
        let device = lab.layout().device(node.number);
        let held = programmed(node)?;
        let pins = held.lines().filter(|line| line.contains(" table 886 "));
        let expected = format!(
            " dev {device} table 886 proto culvert scope link src {}",
            node.address
        );
        let (right, wrong): (Vec<_>, Vec<_>) = pins.partition(|line| line.contains(&expected));
        ensure(right.len() == 2 && wrong.is_empty(), || {
            format!(
                "node{}: wanted{expected}; there are {right:?} and {wrong:?}",
                node.number
            )
        })?;
        tunnel_fits(node, device)?;
        let former = mtu(node, device)?;
        node.namespace.ip(&format!("link set {device} mtu 1300"))?;
        tunnel_fits(node, device)?;
        node.namespace.ip(&format!("link set {device} mtu {former}"))?;
        tunnel_fits(node, device)?;
    }
    Ok(())
}

/// The lower device of each goes down and up: nothing is lost between the others, and all is as it was afterwards. A bond
/// has another.
pub(crate) fn lower_device_down(lab: &mut Lab) -> Result<(), Failed> {
    for number in lab.layout().numbers() {
        if lab.layout().nic(number) == Nic::Bond {
            failover(lab, number)?;
            continue;
        }
        let default = format!("route replace default via {}", lab.layout().router(number));
        let mend = ["link set eth0 up".to_owned(), default];
        recovers(lab, number, "link set eth0 down", &mend, AFTER_MENDING)?;
    }
    Ok(())
}

/// One half of a bond goes down, and later up: the other carries on, with what is under way lost at most.
fn failover(lab: &Lab, number: u8) -> Result<(), Failed> {
    // The bond looks at its halves every 50 ms, the busy guest's bond later.
    const SMALL: usize = 200;

    let node = lab.node(number);
    let before = programmed(node)?;
    let through = train(lab, &format!("n{number}p1"), "n1p1")?;
    node.namespace.ip("link set eth0 down")?;
    through.wait_for_more(4 * WAGONS)?;
    node.namespace.ip("link set eth0 up")?;
    through.wait_for_more(WAGONS)?;
    let after = programmed(node)?;
    ensure(after == before, || format!("before: {before}\nafter: {after}"))?;
    arrived(through, SMALL)
}
