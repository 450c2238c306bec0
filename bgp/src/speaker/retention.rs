//! How long the routes of a peer that is gone stay: graceful restart (RFC 4724 §4.2), and after it the long-lived one
//! (RFC 9494 §4).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Speaker;
use super::peer::{Loss, Peer};
use super::ribs::Ribs;
use super::routes::{FAMILIES, decide};
use crate::rib::community::{self, LLGR_STALE, NO_LLGR};
use crate::transport::Transport;
use crate::wire::message::{Family, Nlri, PathAttributes};

/// RFC 4724 §4.2: how long after a session is back its End-of-RIB is waited for, before what is still stale goes.
const STALE_AFTER_RETURN: Duration = Duration::from_secs(120);

/// Stale routes of one family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    /// When the session was lost whose routes are the oldest of them.
    since: Instant,
    /// When what is still stale goes, or becomes stale for long.
    pub(super) until: Instant,
    /// How long it stays after that (RFC 9494 §4.2).
    long_lived: Duration,
}

/// Takes routes that a peer no longer has out of Loc-RIB.
fn forget(address: IpAddr, gone: Vec<Nlri>, ribs: &mut Ribs, transport: &mut Transport) {
    for nlri in gone {
        ribs.remove(nlri, address, transport);
    }
}

/// RFC 9494 §4.3: a path with the mark of one that is stale for long.
fn long_lived(attributes: &PathAttributes) -> PathAttributes {
    let mut attributes = attributes.clone();
    let at = attributes
        .communities
        .partition_point(|&other| other < LLGR_STALE);
    attributes.communities.insert(at, LLGR_STALE);
    attributes
}

impl Speaker {
    /// The peer has sent all it has of a family: what it has not announced again, it no longer has (RFC 4724 §4.2).
    pub(super) fn end_of_rib(&mut self, address: IpAddr, family: Family) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.end_of_rib_received.insert(family);
        if peer.has_sent_all() {
            self.waiting.remove(&address);
            self.no_longer_awaited(address);
        }
        self.sweep_stale(address, family);
    }

    /// Removes the stale routes of a family.
    fn sweep_stale(&mut self, address: IpAddr, family: Family) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.retention.remove(&family);
        let gone = peer.routes_in.sweep_stale(family);
        if !gone.is_empty() {
            tracing::info!(peer = %address, %family, routes = gone.len(), "stale routes removed");
        }
        forget(address, gone, &mut self.ribs, &mut self.transport);
    }

    /// Removes all the routes of a family.
    fn drop_family(&mut self, address: IpAddr, family: Family) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.retention.remove(&family);
        let gone = peer.routes_in.clear(family);
        forget(address, gone, &mut self.ribs, &mut self.transport);
    }

    /// Removes all the routes of a peer.
    pub(super) fn drop_routes(&mut self, address: IpAddr) {
        for family in FAMILIES {
            self.drop_family(address, family);
        }
    }

    /// The time of some stale routes is over.
    pub(super) fn expire_stale(&mut self, address: IpAddr) {
        let now = self.transport.now;
        for family in FAMILIES {
            let due = |peer: &Peer| {
                peer.retention
                    .get(&family)
                    .is_some_and(|stale| stale.until <= now)
            };
            if self.peers.get(&address).is_some_and(due) {
                self.no_longer_patient(address, family);
            }
        }
    }

    /// The restart time of a family is over, or its long-lived stale time.
    fn no_longer_patient(&mut self, address: IpAddr, family: Family) {
        let now = self.transport.now;
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let Some(stale) = peer
            .retention
            .get_mut(&family)
            .filter(|stale| !stale.long_lived.is_zero())
        else {
            self.sweep_stale(address, family);
            return;
        };
        stale.until = now + stale.long_lived;
        stale.long_lived = Duration::ZERO;
        let routes: Vec<(Nlri, Arc<PathAttributes>)> = peer
            .routes_in
            .iter_stale(family)
            .map(|(nlri, attributes)| (nlri, Arc::clone(attributes)))
            .collect();
        tracing::info!(peer = %address, %family, routes = routes.len(), "routes are stale for long");
        let (ribs, transport) = (&mut self.ribs, &mut self.transport);
        for (nlri, attributes) in routes {
            // RFC 9494 §4.2: a route that is not to be kept for long goes now.
            if community::has(&attributes, NO_LLGR) {
                peer.routes_in.withdraw(nlri);
                ribs.remove(nlri, address, transport);
            } else if !community::has(&attributes, LLGR_STALE) {
                let attributes = ribs.attributes.intern(&Arc::new(long_lived(&attributes)));
                peer.routes_in.change(nlri, &attributes);
                let verdict = peer.import.check(&attributes, &self.clusters);
                let path = verdict.as_ref().map(|()| &attributes);
                decide(peer, nlri, path, ribs, transport);
            }
        }
    }

    /// A session was Established and is no longer.
    pub(super) fn lost(&mut self, address: IpAddr, loss: &Loss) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        if let Some(group) = peer.group.take() {
            self.ribs.groups.leave(address, group);
        }
        peer.session_is_gone();
        for family in FAMILIES {
            match loss {
                Loss::Keep => {}
                Loss::Drop => self.drop_family(address, family),
                Loss::Stale(patience) => match patience.get(&family) {
                    Some(patience) => {
                        self.keep_stale(address, family, patience.restart, patience.long_lived);
                    }
                    // RFC 4724 §4.2: only those of the families in the capability.
                    None => self.drop_family(address, family),
                },
            }
        }
    }

    fn keep_stale(&mut self, address: IpAddr, family: Family, restart: Duration, long_lived: Duration) {
        let now = self.transport.now;
        // RFC 4724 §4.2 has what was stale already go now. Here it goes once it has been stale for a restart time, so
        // that two losses in a row do not cut traffic, and a route cannot stay stale for ever.
        let before = |peer: &Peer| peer.retention.get(&family).copied();
        let before = self.peers.get(&address).and_then(before);
        if before.is_some_and(|stale| stale.since + restart + long_lived <= now) {
            self.sweep_stale(address, family);
        }
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.routes_in.mark_stale(family);
        let since = peer.retention.get(&family).map_or(now, |stale| stale.since);
        let stale = Retention {
            since,
            until: now + restart,
            long_lived,
        };
        peer.retention.insert(family, stale);
        if restart.is_zero() {
            self.no_longer_patient(address, family);
        }
    }

    /// A session is Established again: what is kept of the one before it.
    pub(super) fn keep_or_sweep(&mut self, address: IpAddr) {
        let now = self.transport.now;
        for family in FAMILIES {
            let Some(peer) = self.peers.get_mut(&address) else {
                return;
            };
            let kept = peer
                .established()
                .is_some_and(|session| session.kept_forwarding(family));
            // RFC 4724 §4.2: the capability is missing, or the F bit is clear: the forwarding state is gone.
            if !kept {
                self.sweep_stale(address, family);
            } else if let Some(stale) = peer.retention.get_mut(&family) {
                stale.until = now + STALE_AFTER_RETURN;
                stale.long_lived = Duration::ZERO;
            }
        }
    }
}
