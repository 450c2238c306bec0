//! How many paths and routes a session carries.

use harness::pair::{OUR_ADDRESS, THEIR_ADDRESS};
use harness::wait_for;
use libtest_mimic::Failed;

use super::routes;
use super::session::{PATIENCE, Session};
use crate::daemon::Terms;

pub(super) fn add_path() -> Terms {
    Terms {
        add_path: true,
        ..Terms::default()
    }
}

/// Both put a Path Identifier before each prefix (RFC 7911 §3), and have each other's routes all the same.
pub(super) fn identified(session: &mut Session) -> Result<(), Failed> {
    routes::exchanged(session)?;
    for from in [OUR_ADDRESS, THEIR_ADDRESS] {
        wait_for(&format!("{from} to send a Path Identifier"), PATIENCE, || {
            let filter = format!("ip.src == {from} && bgp.type == 2 && bgp.nlri_path_id");
            let sent = session.capture.dissect(&filter).map_err(|e| e.to_string())?;
            (!sent.is_empty())
                .then_some(())
                .ok_or_else(|| "none yet".to_owned())
        })?;
    }
    Ok(())
}

/// One route less than the daemon announces.
pub(super) fn limited() -> Terms {
    Terms {
        their_asn: 65001,
        is_router: true,
        max_prefixes: Some(1),
        ..Terms::default()
    }
}

/// The session ends, with the reason in words at the agent (RFC 4486 §4), and nothing of the daemon's is left.
pub(super) fn cut_off(session: &mut Session) -> Result<(), Failed> {
    let words = "we take 1";
    wait_for("the agent to name the limit", PATIENCE, || {
        let status = session.pair.agent.status_text(&["-o", "json"]);
        let status = status.map_err(|e| e.to_string())?;
        status.contains(words).then_some(()).ok_or(status)
    })?;
    session.wait_until_received(0)?;
    Ok(session.wait_until_has(crate::daemon::OUTSIDE, false)?)
}
