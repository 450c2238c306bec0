//! What the agent sends, taken apart by a program that knows every message of BGP.

use harness::pair::OUR_ADDRESS;
use harness::wait_for;
use libtest_mimic::Failed;

use super::routes;
use super::session::{PATIENCE, Session};
use crate::daemon::Terms;

/// As much in one session as it can have.
pub(super) fn rich() -> Terms {
    Terms {
        our_asn: 4_200_000_002,
        their_asn: 4_200_000_001,
        password: Some("from-the-same-secret"),
        ttl_security: true,
        community: true,
        ..Terms::default()
    }
}

/// `tshark` finds no fault in anything that the agent says from its OPEN on.
pub(super) fn nothing_wrong(session: &mut Session) -> Result<(), Failed> {
    routes::exchanged(session)?;
    routes::refreshed(session)?;
    let capture = &session.capture;
    let ours = format!("ip.src == {OUR_ADDRESS} && bgp");
    // OPEN, UPDATE and KEEPALIVE: what is looked at is all there.
    for kind in [1, 2, 4] {
        wait_for("every kind of message to be captured", PATIENCE, || {
            let sent = capture.dissect(&format!("{ours} && bgp.type == {kind}"));
            let sent = sent.map_err(|e| e.to_string())?;
            (!sent.is_empty())
                .then_some(())
                .ok_or_else(|| format!("none of type {kind}"))
        })?;
    }
    let wrong = capture.dissect(&format!(
        "{ours} && (_ws.malformed || _ws.expert.severity >= 0x600000)"
    ))?;
    crate::ensure(wrong.is_empty(), || format!("tshark: {wrong:#?}"))?;
    // RFC 5082 §3 (test).
    let near = capture.dissect(&format!("ip.src == {OUR_ADDRESS} && ip.ttl != 255"))?;
    crate::ensure(near.is_empty(), || format!("with a lower TTL: {near:#?}"))
}
