//! Routes, and what becomes of them while one of the two restarts.

use harness::pair::THEIR_ADDRESS_6;
use harness::wait_for;
use libtest_mimic::Failed;

use super::manifests::OUR_BLOCK_6;
use super::session::{PATIENCE, Session};
use crate::daemon::{Kind, THEIR_BLOCK, THEIR_BLOCK_6, Terms};

/// Both have each other's block, and the daemon's goes and comes when it says so.
pub(super) fn exchanged(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    let learned = session.wait_until_learned()?;
    crate::ensure(
        learned.next_hop == session.terms.our_address().to_string(),
        || format!("the daemon has our block with {learned:?}"),
    )?;
    session.wait_until_installed(true)?;
    session.peer.announce(false)?;
    session.wait_until_installed(false)?;
    session.peer.announce(true)?;
    Ok(session.wait_until_installed(true)?)
}

pub(super) fn ipv6() -> Terms {
    Terms {
        over_ipv6: true,
        ipv6: true,
        ..Terms::default()
    }
}

/// The same for IPv6, over IPv6.
pub(super) fn exchanged_ipv6(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    let learned = session.wait_until_it_has(OUR_BLOCK_6)?;
    crate::ensure(
        learned.next_hop == session.terms.our_address().to_string(),
        || format!("the daemon has our block with {learned:?}"),
    )?;
    for announced in [true, false, true] {
        session.peer.announce(announced)?;
        session.wait_until_received(u64::from(announced))?;
        let wanted = format!("{THEIR_BLOCK_6} via {THEIR_ADDRESS_6} dev eth0 proto culvert");
        let (what, source) = (
            if announced { "installed" } else { "removed" },
            format!("src {}", session.terms.our_address()),
        );
        session.wait_until_kernel_has("-6", THEIR_BLOCK_6, what, |shown| {
            if announced {
                shown.contains(&wanted) && shown.contains(&source)
            } else {
                shown.trim().is_empty()
            }
        })?;
    }
    // Its own block answers for addresses that no pod has.
    Ok(
        session.wait_until_kernel_has("-6", OUR_BLOCK_6, "a blackhole", |shown| {
            shown.contains("blackhole") && shown.contains("proto culvert")
        })?,
    )
}

/// The daemon asks for all routes once more, and has the same afterwards.
pub(super) fn refreshed(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    let before = session.wait_until_learned()?;
    session.peer.refresh()?;
    // The session stands, and what is sent again is the same.
    session.wait_until_up()?;
    let after = session.wait_until_learned()?;
    crate::ensure(before == after, || format!("{before:?} became {after:?}"))
}

/// The daemon dies and comes back: the route to its block is never gone from the agent's kernel.
pub(super) fn it_restarts(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    session.wait_until_installed(true)?;
    let watch = session.pair.watch_routes()?;
    session.peer.crash(&session.pair)?;
    session.wait_until_up()?;
    session.wait_until_learned()?;
    let events = watch.end()?;
    let deleted = events
        .iter()
        .find(|line| line.starts_with("Deleted") && line.contains(THEIR_BLOCK));
    crate::ensure(deleted.is_none(), || {
        format!("the route was withdrawn: {deleted:?}")
    })?;
    Ok(session.wait_until_installed(true)?)
}

/// The daemons that keep routes for long (RFC 9494), and ask others to.
pub(super) fn keeps_routes_for_long(kind: &Kind) -> bool {
    ["bird_2", "frr"].contains(&kind.name)
}

pub(super) fn long_lived() -> Terms {
    Terms {
        long_lived: true,
        configured: "longLivedStaleTime: 7200",
        ..Terms::default()
    }
}

/// The daemon dies and does not come back for long: when its restart time is over its route is the last choice (LLGR_STALE), and has
/// not left the agent's kernel.
pub(super) fn it_stays_away(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    session.wait_until_installed(true)?;
    let watch = session.pair.watch_routes()?;
    session.peer.die()?;
    wait_for("the route to be stale for long", PATIENCE, || {
        let routes = session
            .pair
            .agent
            .ask(&["bgp", "routes", "received", "-o", "json"]);
        let routes = routes.map_err(|e| e.to_string())?;
        // RFC 9494 §4.6.
        routes.contains("65535:6").then_some(()).ok_or(routes)
    })?;
    let events = watch.end()?;
    let touched = events.iter().find(|line| line.contains(THEIR_BLOCK));
    crate::ensure(touched.is_none(), || {
        format!("the route did not stay as it was: {touched:?}")
    })?;
    // It does at last.
    session.peer.crash(&session.pair)?;
    session.wait_until_up()?;
    Ok(session.wait_until_installed(true)?)
}

/// The agent dies and comes back: the daemon has its block all the time.
pub(super) fn agent_restarts(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    session.wait_until_learned()?;
    let block = session.our_block()?;
    session.pair.agent.kill()?;
    wait_for("the daemon to notice", PATIENCE, || match session.peer.state() {
        Ok(Err(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let kept = session.peer.learned()?;
    crate::ensure(kept.contains_key(&block), || {
        format!("the daemon is left with {kept:?}")
    })?;
    session.pair.start_agent()?;
    session.wait_until_up()?;
    session.wait_until_learned()?;
    Ok(())
}
