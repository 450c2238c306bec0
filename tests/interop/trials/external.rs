//! A daemon in another AS.

use harness::pair::THEIR_ADDRESS;
use libtest_mimic::Failed;

use super::manifests::SECOND_CLIENT;
use super::routes;
use super::session::Session;
use crate::daemon::{OUTSIDE, Terms};
use crate::exabgp::Exabgp;

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

/// Two routers tell of the same destination: the kernel has both as next hops, what is left when one withdraws it, and one
/// alone where the agent is told so (`bgp.multipath`).
pub(super) fn shared(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_up()?;
    session
        .pair
        .theirs
        .ip(&format!("addr add {SECOND_CLIENT}/24 dev eth0"))?;
    let second = (SECOND_CLIENT, session.terms.their_asn);
    let _second = Exabgp::start(&session.pair, second, SECOND_CLIENT, &[(OUTSIDE, String::new())])?;
    let hop = |address| format!("via {address} dev eth0");
    let (first, second) = (hop(THEIR_ADDRESS), hop(SECOND_CLIENT));
    for announced in [true, false, true] {
        session.peer.announce(announced)?;
        let what = if announced {
            "through both routers"
        } else {
            "through the second"
        };
        session.wait_until_kernel_has("-4", OUTSIDE, what, |shown| {
            let is_ours = shown.contains("proto culvert");
            is_ours && shown.contains(&second) && shown.contains(&first) == announced
        })?;
    }
    session.restart_agent_with("multipath: 1")?;
    Ok(
        session.wait_until_kernel_has("-4", OUTSIDE, "through one router", |shown| {
            shown.contains("proto culvert") && shown.matches(" via ").count() == 1
        })?,
    )
}
