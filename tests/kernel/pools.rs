//! An IPPool's manifest that is edited while packets pass.

use std::time::Duration;

use harness::ping::{PingTrain, ping};
use harness::{Lab, Mode, wait_for};
use libtest_mimic::Failed;

use crate::ensure;

/// For what takes an agent a moment; a guest on a busy machine gets more.
const GENEROUS: Duration = Duration::from_secs(30);
/// Between two packets of a train.
const INTERVAL: Duration = Duration::from_millis(10);
/// Packets of a train after each step.
const WAGONS: usize = 50;

/// Always, CrossSubnet, Never, Always: every node changes when it hears of it, and no packet is lost in either direction
/// while they disagree.
pub(crate) fn modes(lab: &mut Lab) -> Result<(), Failed> {
    let trains = [
        ("n1p1", "n2p1"),
        ("n2p1", "n1p1"),
        ("n1p1", "n3p1"),
        ("n3p1", "n1p1"),
    ]
    .map(|(from, to)| PingTrain::start(&lab.pod(from).namespace, lab.pod(to).address, INTERVAL));
    let trains = trains.into_iter().collect::<Result<Vec<_>, _>>()?;
    for mode in [Mode::CrossSubnet, Mode::Direct, Mode::Ipip] {
        lab.set_in_pool(&[("ipipMode", mode.ipip_mode())])?;
        // All nodes are on one subnet.
        routed(lab, mode == Mode::Ipip)?;
        trains.iter().try_for_each(|train| train.wait_for_more(WAGONS))?;
    }
    lab.wait_for_sessions()?;
    for train in trains {
        lossless(train)?;
    }
    Ok(())
}

/// A pool that is disabled gives no more blocks; what it gave stays, and what else its manifest says is followed.
pub(crate) fn disabled(lab: &mut Lab) -> Result<(), Failed> {
    let train = PingTrain::start(&lab.pod("n1p1").namespace, lab.pod("n3p1").address, INTERVAL)?;
    // The other form of the routes shows that every agent has read the manifest.
    lab.set_in_pool(&[("disabled", "true"), ("ipipMode", "CrossSubnet")])?;
    routed(lab, false)?;
    train.wait_for_more(WAGONS)?;
    lab.set_in_pool(&[("ipipMode", "Always")])?;
    routed(lab, true)?;
    train.wait_for_more(WAGONS)?;
    lab.set_in_pool(&[("disabled", "false"), ("ipipMode", "CrossSubnet")])?;
    routed(lab, false)?;
    lab.set_in_pool(&[("ipipMode", "Always")])?;
    routed(lab, true)?;
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
    routed(lab, true)?;
    ping(&lab.pod("n1p1").namespace, lab.pod("n2p1").address)?;
    ping(&lab.pod("n3p1").namespace, lab.pod("n1p1").address)?;
    lossless(train)
}

/// Waits until every node has exactly one route to every block of the others, of this form.
fn routed(lab: &Lab, tunnelled: bool) -> Result<(), Failed> {
    for node in lab.nodes() {
        for other in lab.nodes().filter(|other| other.number != node.number) {
            for block in other.blocks()? {
                let form = if tunnelled {
                    "dev tunl0 proto culvert onlink".to_owned()
                } else {
                    format!("dev eth0 proto culvert src {} onlink", node.address)
                };
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
