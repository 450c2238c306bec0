//! A daemon in another AS.

use libtest_mimic::Failed;

use super::routes;
use super::session::Session;
use crate::daemon::{OUTSIDE, Terms};

pub(super) fn two_octets() -> Terms {
    Terms {
        their_asn: 64513,
        ..Terms::default()
    }
}

/// Neither has a number that fits into the two octets of an OPEN (RFC 6793).
pub(super) fn four_octets() -> Terms {
    Terms {
        our_asn: 4_200_000_002,
        their_asn: 4_200_000_001,
        ..Terms::default()
    }
}

/// Our AS is what it sees of the way to our block, and the next hop is ours (RFC 4271 §5.1.2, §5.1.3).
pub(super) fn exchanged(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    let learned = session.wait_until_learned()?;
    crate::ensure(learned.as_path == [session.terms.our_asn], || {
        format!("the daemon has our block with {learned:?}")
    })?;
    routes::exchanged(session)
}

/// A router of the network, in an AS of its own.
pub(super) fn router() -> Terms {
    Terms {
        their_asn: 65001,
        is_router: true,
        ..Terms::default()
    }
}

/// What it tells of the world outside every pool is installed as it tells it; a block of a pool is not a router's to tell of.
pub(super) fn installed(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    session.wait_until_has(OUTSIDE, true)?;
    session.wait_until_installed(false)?;
    session.peer.announce(false)?;
    session.wait_until_has(OUTSIDE, false)?;
    session.peer.announce(true)?;
    Ok(session.wait_until_has(OUTSIDE, true)?)
}
