//! What the agent's resources say of the routes to and from a daemon.

use libtest_mimic::Failed;

use super::manifests::OUR_COMMUNITY;
use super::session::Session;
use crate::daemon::Terms;

pub(super) fn communities() -> Terms {
    Terms {
        community: true,
        ..Terms::default()
    }
}

/// The daemon sees the community of our block. A BGPFilter that rejects the community of its route takes that away, and
/// gives it back when it is gone, while the session stands.
pub(super) fn carried_and_matched(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    let learned = session.wait_until_learned()?;
    crate::ensure(learned.communities == [OUR_COMMUNITY], || {
        format!("the daemon has our block with {learned:?}")
    })?;
    session.wait_until_installed(true)?;
    for rejects in [true, false] {
        session.terms.rejects_community = rejects;
        session.configure()?;
        session.wait_until_installed(!rejects)?;
    }
    let count = session.established_count()?;
    crate::ensure(count == 1, || format!("the session came up {count} times"))
}
