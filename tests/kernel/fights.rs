//! Another program that undoes what the agent does, again and again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use harness::ping::ping;
use harness::{Lab, Namespace, wait_for};
use libtest_mimic::Failed;

use crate::continuity::{GENEROUS, INTERVAL};
use crate::ensure;

/// How often the other program undoes the route at most.
const BLOWS: usize = 100;

/// In a fight a route is put back after ten seconds, then ever more slowly, up to a minute.
const SLOWEST: Duration = Duration::from_secs(120);

/// Undoes a route by `ip` whenever it is as the agent wants it, until told to stop.
fn undo(
    node: &Namespace,
    ours: &str,
    by_hand: &str,
    stop: &AtomicBool,
    blows: &AtomicUsize,
) -> Result<(), String> {
    while !stop.load(Ordering::Relaxed) && blows.load(Ordering::Relaxed) < BLOWS {
        let routes = node.routes().map_err(|e| e.to_string())?;
        if routes.iter().any(|line| line == ours) {
            node.ip(by_hand).map_err(|e| e.to_string())?;
            blows.fetch_add(1, Ordering::Relaxed);
        }
        thread::sleep(INTERVAL);
    }
    Ok(())
}

/// The agent puts its route back at once, ten times; then it says who undoes it, and is slow from then on. When the other
/// stops, the route comes back.
pub(crate) fn over_a_route(lab: &mut Lab) -> Result<(), Failed> {
    const WORDS: &str = "another program (route protocol bird) keeps undoing this route: stop it";
    let block = lab.node(2).blocks()?.swap_remove(0);
    let by_hand = format!(
        "route replace {block} via {} dev tunl0 proto bird onlink",
        lab.node(3).address
    );
    fight(lab, &block, &by_hand, WORDS)?;
    let log = lab.node(1).agent.log_text()?;
    ensure(
        log.contains("route repaired") && log.contains("by=\"bird\""),
        || "the log does not tell who undid the route".to_owned(),
    )
}

/// The same where the other leaves nothing in the place of what it deletes.
pub(crate) fn over_a_deletion(lab: &mut Lab) -> Result<(), Failed> {
    const WORDS: &str =
        "another program keeps deleting this route: `ip monitor route` shows when; look for a routing daemon";
    let block = lab.node(2).blocks()?.swap_remove(0);
    fight(lab, &block, &format!("route del {block}"), WORDS)
}

/// Another program undoes by `by_hand` the route to a block of the second node, on the first, until that has told it in
/// `words`, and some more.
fn fight(lab: &mut Lab, block: &str, by_hand: &str, words: &str) -> Result<(), Failed> {
    // What was repaired before on this cluster does not count.
    begin_anew(lab)?;
    let ours = lab.route(1, 2, block);
    let (stop, blows) = (AtomicBool::new(false), AtomicUsize::new(0));
    let node = lab.node(1).namespace.clone();
    let told = thread::scope(|scope| {
        let other = scope.spawn(|| undo(&node, &ours, by_hand, &stop, &blows));
        let told = is_told_and_slowed(lab, words, &blows);
        stop.store(true, Ordering::Relaxed);
        let undone = other
            .join()
            .unwrap_or_else(|_| Err("the other program died".to_owned()));
        told.and(undone.map_err(Failed::from))
    });
    told?;
    wait_for(
        "the route to be put back when the other has stopped",
        SLOWEST,
        || {
            let routes = node.routes().map_err(|e| e.to_string())?;
            if routes.contains(&ours) {
                Ok(())
            } else {
                Err(routes.join("; "))
            }
        },
    )?;
    println!("  {} times undone", blows.load(Ordering::Relaxed));
    ping(&lab.pod("n1p1").namespace, lab.pod("n2p1").address)?;
    // What follows on this cluster is repaired at once.
    begin_anew(lab)
}

/// A new run of the agent knows of no fight and no repairs.
fn begin_anew(lab: &mut Lab) -> Result<(), Failed> {
    lab.agent(1).terminate()?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    Ok(())
}

fn is_told_and_slowed(lab: &Lab, words: &str, blows: &AtomicUsize) -> Result<(), Failed> {
    const REPAIRS: &str = "culvert_route_repairs_total";
    let agent = &lab.node(1).agent;

    wait_for("the status to tell of the fight", GENEROUS, || {
        let status = agent.status_text(&[]).map_err(|e| e.to_string())?;
        if status.contains(words) {
            Ok(())
        } else {
            Err(status)
        }
    })?;
    crate::doctor::found(agent, &["the kernel does not hold, or not for long: ", words])?;
    let fights = agent.metric("culvert_route_fights")?;
    ensure(fights == 1, || format!("the metric counts {fights} fights"))?;
    let log = agent.log_text()?;
    ensure(log.contains(words), || {
        "the log does not tell of the fight".to_owned()
    })?;
    let (repairs, undone) = (agent.metric(REPAIRS)?, blows.load(Ordering::Relaxed));
    ensure(repairs >= 10 && undone >= 10, || {
        format!("{undone} times undone, {repairs} repairs")
    })?;
    // The other has undone it once more by now, and for ten seconds from the last repair nothing is put back: within them
    // a hundred packets pass.
    let beside = crate::continuity::train(lab, "n1p1", "n3p1")?;
    beside.wait_for_more(100)?;
    let more = agent.metric(REPAIRS)? - repairs;
    ensure(more <= 1, || {
        format!("{more} more repairs, although there is a fight")
    })?;
    crate::continuity::arrived(beside, 0)
}
