//! Route reflectors: the daemon is the agent's, and the other way round (RFC 4456).

use std::net::Ipv4Addr;

use libtest_mimic::Failed;

use super::manifests::SECOND_CLIENT;
use super::routes;
use super::session::Session;
use crate::daemon::Terms;
use crate::exabgp::Exabgp;

/// Where the second client says that its block is: on nobody's link, as the client itself shares the daemon's host, and no
/// router takes its own address for a next hop.
const SECOND_NEXT_HOP: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 4);

/// The block of the second client.
const SECOND_BLOCK: &str = "10.65.210.0/26";

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

/// What another client tells the agent reaches the daemon, with the next hop as that client told it (RFC 4456 §6, §10).
pub(super) fn reflected(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    let theirs = &session.pair.theirs;
    theirs.ip(&format!("addr add {SECOND_CLIENT}/24 dev eth0"))?;
    let routes = [(SECOND_BLOCK, String::new())];
    let _second = Exabgp::start(
        &session.pair,
        (SECOND_CLIENT, session.terms.our_asn),
        SECOND_NEXT_HOP,
        &routes,
    )?;
    let learned = session.wait_until_it_has(SECOND_BLOCK)?;
    crate::ensure(learned.next_hop == SECOND_NEXT_HOP.to_string(), || {
        format!("the daemon has the other client's block with {learned:?}")
    })?;
    routes::exchanged(session)
}
