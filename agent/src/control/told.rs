//! What the speaker was told last, so that it is told what changed and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_bgp::id::Prefix;
use culvert_bgp::speaker::PeerConfig;

use crate::desired::Plan;
use crate::peering::Endpoint;
use crate::speaker::{Command, Running};

/// What the speaker was told last; nothing yet.
#[derive(Default)]
pub(super) struct Told {
    endpoint: Option<Endpoint>,
    peers: Option<BTreeMap<IpAddr, PeerConfig>>,
    exports: Option<BTreeSet<Prefix>>,
}

impl Told {
    /// Tells the speaker what changed for it. Should it be gone, the loop notices by itself.
    pub(super) async fn tell(&mut self, plan: &Plan, speaker: &Running) {
        let peering = &plan.peering;
        if let Some(endpoint) = new(&mut self.endpoint, &peering.endpoint) {
            let _ = speaker.commands.send(Command::Listen(endpoint)).await;
        }
        if let Some(peers) = new(&mut self.peers, &peering.peers) {
            let _ = speaker.commands.send(Command::Peers(peers)).await;
        }
        if let Some(exports) = new(&mut self.exports, &plan.exports) {
            let _ = speaker.commands.send(Command::Exports(exports)).await;
        }
    }
}

/// What is now, where it is not what was told; that is told from here on.
fn new<T: Clone + PartialEq>(told: &mut Option<T>, now: &T) -> Option<T> {
    let changed = told.as_ref() != Some(now);
    changed.then(|| told.insert(now.clone()).clone())
}
