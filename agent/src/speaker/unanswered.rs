//! Why peers do not answer, where the kernel knows more than that they do not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_bgp::fsm::State;
use culvert_bgp::reason::Reason;
use culvert_bgp::speaker::{PeerConfig, PeerStatus, TransportError};

use super::md5::Refused;

/// What the kernel had refused when the attempts at each peer began that got no answer yet. What it counts is not by peer:
/// so it says what is likely, and only of peers that the count can be about.
#[derive(Debug, Default)]
pub(super) struct Unanswered {
    since: BTreeMap<IpAddr, Refused>,
}

impl Unanswered {
    /// An attempt begins.
    pub(super) fn dialling(&mut self, peer: IpAddr) {
        self.since.entry(peer).or_insert_with(Refused::now);
    }

    /// Attempts on other terms have nothing to do with those before.
    pub(super) fn forget_changed(
        &mut self,
        before: &BTreeMap<IpAddr, PeerConfig>,
        after: &BTreeMap<IpAddr, PeerConfig>,
    ) {
        self.since.retain(|peer, _| before.get(peer) == after.get(peer));
    }

    /// Puts the likely reason in place of the one that there was no answer. Who has answered is forgotten.
    pub(super) fn explain(&mut self, statuses: &mut [PeerStatus], known: &BTreeMap<IpAddr, PeerConfig>) {
        let mut now = None;
        for status in statuses {
            if status.state >= State::OpenSent {
                self.since.remove(&status.peer);
            }
            let timed_out = Reason::Transport(TransportError::TimedOut);
            if status.reason.as_ref() == Some(&timed_out)
                && let Some(before) = self.since.get(&status.peer)
            {
                let now = *now.get_or_insert_with(Refused::now);
                let password = known.get(&status.peer).and_then(|peer| peer.password.as_ref());
                status.reason = Some(before.explain(now, password.is_some()).into());
            }
        }
    }
}
