//! Sessions that nobody else may have: passwords (RFC 2385) and the distance of the peer (RFC 5082).

use harness::wait_for;
use libtest_mimic::Failed;

use super::session::{PATIENCE, Session};
use crate::daemon::Terms;

pub(super) fn password() -> Terms {
    Terms {
        password: Some("from-the-same-secret"),
        ..Terms::default()
    }
}

pub(super) fn wrong_password() -> Terms {
    Terms {
        our_password: Some("of-another-secret"),
        ..password()
    }
}

pub(super) fn ttl_security() -> Terms {
    Terms {
        ttl_security: true,
        ..Terms::default()
    }
}

/// The agent dies and comes back: so does the session, though neither end hears a word of the other in between.
pub(super) fn comes_back(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    session.pair.agent.kill()?;
    wait_for("the daemon to notice", PATIENCE, || match session.peer.state() {
        Ok(Err(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    session.pair.start_agent()?;
    session.wait_until_up()?;
    session.wait_until_learned()?;
    Ok(session.wait_until_installed(true)?)
}

/// There is no session, and the agent says what is likely the cause.
pub(super) fn refused(session: &mut Session) -> Result<(), Failed> {
    let words = "the passwords likely differ";
    wait_for("the agent to name the password", PATIENCE, || {
        let status = session.pair.agent.status_text(&["-o", "json"]);
        let status = status.map_err(|e| e.to_string())?;
        status.contains(words).then_some(()).ok_or(status)
    })?;
    let state = session.peer.state()?;
    crate::ensure(state.is_err(), || "the daemon has a session".to_owned())
}
