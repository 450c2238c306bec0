//! Route reflectors: the daemon is the agent's, and the other way round (RFC 4456).

use crate::daemon::Terms;

/// The agent is a client of the daemon.
pub(super) fn client() -> Terms {
    Terms {
        reflects: true,
        ..Terms::default()
    }
}

/// The daemon is a client of the agent.
pub(super) fn reflector() -> Terms {
    Terms {
        agent_reflects: true,
        ..Terms::default()
    }
}
