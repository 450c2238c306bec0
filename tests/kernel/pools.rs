//! An IPPool's manifest that is edited while packets pass.

use std::time::Duration;

use harness::ping::{PingTrain, ping};
use harness::{Lab, Mode, Node, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// For what takes an agent a moment; a guest on a busy machine gets more.
const GENEROUS: Duration = Duration::from_secs(30);
/// Between two packets of a train.
const INTERVAL: Duration = Duration::from_millis(10);
/// What `rp_filter` says for: any source that there is a route to.
const LOOSE: &str = "2";
/// Packets of a train after each step.
const WAGONS: usize = 50;

/// Always, CrossSubnet, Never, Always: every node changes when it hears of it, and no packet is lost in either direction
/// while they disagree and packets come in by another way than the answers go out.
pub(crate) fn modes(lab: &mut Lab) -> Result<(), Failed> {
    check_sources(lab, LOOSE)?;
    through(lab, &[Mode::CrossSubnet, Mode::Direct, Mode::Ipip])?;
    check_sources(lab, "0")
}

/// With a router between the subnets, Always and CrossSubnet: what crosses it stays in the tunnel, and no packet is lost.
pub(crate) fn modes_across_subnets(lab: &mut Lab) -> Result<(), Failed> {
    check_sources(lab, LOOSE)?;
    through(lab, &[Mode::Ipip, Mode::CrossSubnet])?;
    check_sources(lab, "0")
}

/// Gives the pool these modes one after the other, while packets pass between the first node and both others.
fn through(lab: &mut Lab, modes: &[Mode]) -> Result<(), Failed> {
    let pairs = [
        ("n1p1", "n2p1"),
        ("n2p1", "n1p1"),
        ("n1p1", "n3p1"),
        ("n3p1", "n1p1"),
    ];
    let trains =
        pairs.map(|(from, to)| PingTrain::start(&lab.pod(from).namespace, lab.pod(to).address, INTERVAL));
    let trains = trains.into_iter().collect::<Result<Vec<_>, _>>()?;
    for mode in modes {
        lab.set_in_pool(&[("ipipMode", mode.ipip_mode())])?;
        routed(lab, *mode)?;
        trains.iter().try_for_each(|train| train.wait_for_more(WAGONS))?;
    }
    lab.wait_for_sessions()?;
    trains.into_iter().try_for_each(lossless)
}

/// How strictly the nodes check that the answer to a packet would go out where it came in.
fn check_sources(lab: &Lab, rp_filter: &str) -> Result<(), Failed> {
    let setting = format!("net.ipv4.conf.all.rp_filter={rp_filter}");
    for node in lab.nodes() {
        node.namespace.run("sysctl", &["-qw", &setting])?;
    }
    Ok(())
}

/// A pool that is disabled gives no more blocks; what it gave stays, and what else its manifest says is followed.
pub(crate) fn disabled(lab: &mut Lab) -> Result<(), Failed> {
    let train = PingTrain::start(&lab.pod("n1p1").namespace, lab.pod("n3p1").address, INTERVAL)?;
    // The other form of the routes shows that every agent has read the manifest.
    lab.set_in_pool(&[("disabled", "true"), ("ipipMode", "CrossSubnet")])?;
    routed(lab, Mode::CrossSubnet)?;
    train.wait_for_more(WAGONS)?;
    lab.set_in_pool(&[("disabled", "false"), ("ipipMode", "Always")])?;
    routed(lab, Mode::Ipip)?;
    train.wait_for_more(WAGONS)?;
    lossless(train)
}

/// disableBGPExport takes the pool's blocks away from the peers, and leaves each node its own; false brings them back.
pub(crate) fn not_exported(lab: &mut Lab) -> Result<(), Failed> {
    // Within a node no peer has a part.
    let train = PingTrain::start(&lab.pod("n1p1").namespace, lab.pod("n1p2").address, INTERVAL)?;
    lab.set_in_pool(&[("disableBGPExport", "true")])?;
    for node in lab.nodes() {
        let own = node.blocks()?;
        wait_for("the blocks of others to be withdrawn", GENEROUS, || {
            let routes = node.namespace.routes().map_err(|e| e.to_string())?;
            let ours: Vec<_> = routes.iter().filter(|r| r.contains("proto culvert")).collect();
            if ours.iter().all(|r| r.starts_with("blackhole ")) {
                Ok(())
            } else {
                Err(routes.join("; "))
            }
        })?;
        ensure(node.blocks()? == own && own.len() == 1, || format!("{own:?}"))?;
    }
    train.wait_for_more(WAGONS)?;
    lab.set_in_pool(&[("disableBGPExport", "false")])?;
    routed(lab, Mode::Ipip)?;
    ping(&lab.pod("n1p1").namespace, lab.pod("n2p1").address)?;
    ping(&lab.pod("n3p1").namespace, lab.pod("n1p1").address)?;
    lossless(train)
}

/// Waits until every node has exactly one route to every block of the others, of the form of this mode.
fn routed(lab: &Lab, mode: Mode) -> Result<(), Failed> {
    for node in lab.nodes() {
        for other in lab.nodes().filter(|other| other.number != node.number) {
            // All subnets of the laboratory are /24.
            let subnet = |node: &Node| node.address.to_bits() >> 8;
            let tunnelled = match mode {
                Mode::Ipip => true,
                Mode::CrossSubnet => subnet(node) != subnet(other),
                Mode::Direct => false,
            };
            let form = if tunnelled {
                "dev tunl0 proto culvert onlink".to_owned()
            } else {
                format!("dev eth0 proto culvert src {} onlink", node.address)
            };
            for block in other.blocks()? {
                let wanted = format!("{block} via {} {form}", other.address);
                wait_for(&format!("node{}: {wanted}", node.number), GENEROUS, || {
                    let routes = node.namespace.routes().map_err(|e| e.to_string())?;
                    let to_block: Vec<_> = routes.iter().filter(|r| r.contains(&block)).collect();
                    if to_block == [&wanted] {
                        Ok(())
                    } else {
                        Err(routes.join("; "))
                    }
                })?;
            }
        }
    }
    Ok(())
}

fn lossless(train: PingTrain) -> Result<(), Failed> {
    let outcome = train.stop();
    println!(
        "  {} packets answered, {} lost",
        outcome.answered,
        outcome.lost.len()
    );
    ensure(outcome.lost.is_empty(), || format!("lost: {outcome:?}"))
}
