//! What the speaker does, in numbers: messages, faults, and how long it takes until all peers know of a new block of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use culvert_bgp::id::{ConnectionId, Prefix};
use culvert_bgp::speaker::{PeerStatus, State};
use tokio::time::Instant;

use super::connection::Connection;
use crate::metrics::Metrics;

/// How long after traffic it is counted at the latest: to look at a thousand peers with each message would cost more than
/// the message.
const COUNT_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is looked whether a peer that reads slowly has got a new block.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// See the module.
#[derive(Debug)]
pub(super) struct Traffic {
    metrics: Metrics,
    /// What was counted of each peer.
    counted: BTreeMap<IpAddr, Counts>,
    /// New blocks of which not all peers may know.
    blocks: Vec<Prefix>,
    count_due: Option<Instant>,
    look_due: Option<Instant>,
}

/// Of one peer, since it is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    received: u64,
    sent: u64,
    faults: u64,
}

impl Traffic {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            counted: BTreeMap::new(),
            blocks: Vec::new(),
            count_due: None,
            look_due: None,
        }
    }

    /// Something was received or sent.
    pub(super) fn note(&mut self) {
        self.count_due
            .get_or_insert_with(|| Instant::now() + COUNT_INTERVAL);
    }

    /// When to [count](Self::count) and [look](Self::look).
    pub(super) fn due(&self) -> Option<Instant> {
        self.count_due.into_iter().chain(self.look_due).min()
    }

    /// Whether it is time to count.
    pub(super) fn must_count(&self) -> bool {
        self.count_due.is_some_and(|due| due <= Instant::now())
    }

    /// Adds what the peers have said and heard since it was counted last.
    pub(super) fn count(&mut self, peers: impl Iterator<Item = PeerStatus>) {
        self.count_due = None;
        let mut counted = BTreeMap::new();
        for peer in peers {
            let now = Counts {
                received: peer.messages_in,
                sent: peer.messages_out,
                faults: peer.faults,
            };
            let before = self.counted.get(&peer.peer).copied().unwrap_or_default();
            // A peer that was taken away and is back begins at zero.
            let more = |now: u64, before: u64| if now < before { now } else { now - before };
            let received = more(now.received, before.received);
            self.metrics.bgp_messages_received.inc_by(received);
            self.metrics.bgp_messages_sent.inc_by(more(now.sent, before.sent));
            self.metrics
                .bgp_update_faults
                .inc_by(more(now.faults, before.faults));
            counted.insert(peer.peer, now);
        }
        self.counted = counted;
    }

    /// Whether one of these destinations is a new block, and somebody waits for it to be told.
    pub(super) fn is_awaited(&self, exports: &BTreeSet<Prefix>) -> bool {
        let claims = &self.metrics.claims;
        !claims.is_idle() && exports.iter().any(|prefix| claims.runs(&prefix.net()))
    }

    /// These destinations were told to all peers; those of them that are new blocks are on their way. Where nobody has a
    /// session, nothing is measured: the time until there is one is another matter.
    pub(super) fn told(&mut self, exports: &BTreeSet<Prefix>, mut peers: impl Iterator<Item = PeerStatus>) {
        let has_session = peers.any(|peer| peer.state == State::Established);
        for prefix in exports {
            if !has_session {
                let _ = self.metrics.claims.stop(&prefix.net());
            } else if self.metrics.claims.runs(&prefix.net()) {
                self.blocks.push(*prefix);
            }
        }
    }

    /// Ends the time of new blocks once nothing waits for any peer to read it.
    pub(super) fn look(&mut self, connections: &BTreeMap<ConnectionId, Connection>) {
        self.look_due = None;
        if self.blocks.is_empty() {
            return;
        }
        if connections.values().any(|connection| connection.waiting() > 0) {
            self.look_due = Some(Instant::now() + LOOK_INTERVAL);
            return;
        }
        for block in self.blocks.drain(..) {
            if let Some(time) = self.metrics.claims.stop(&block.net()) {
                self.metrics
                    .block_advertisement_seconds
                    .observe(time.as_secs_f64());
            }
        }
    }
}
