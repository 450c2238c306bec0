//! The routes between the peers: Adj-RIB-In, import, Loc-RIB, export, Adj-RIB-Out (RFC 4271 §9), and how long those of
//! a peer that is gone stay (RFC 4724 §4.2).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::peer::{Loss, Peer, Retention};
use super::reason::Reason;
use super::{Output, RibChange, Speaker};
use crate::fsm::{Event, State};
use crate::id::{ConnectionId, Prefix};
use crate::policy;
use crate::rib::decision::Candidate;
use crate::rib::loc::{Best, BestChange};
use crate::session::{Cause, Fate};
use crate::wire;
use crate::wire::message::{Family, Nlri, Notification, Update};
use crate::wire::notification::cease;

/// More routes than this from one peer are a fault of the peer: a node announces its blocks, and a pool that would
/// need as many /26 blocks as this holds 12 million addresses. It bounds memory to some tens of MiB a peer.
pub const MAX_PREFIXES: usize = 200_000;

/// RFC 4724 §4.2: how long after a session is back its End-of-RIB is waited for, before what is still stale goes.
const STALE_AFTER_RETURN: Duration = Duration::from_secs(120);

impl Speaker {
    /// Takes an UPDATE of a peer.
    pub(super) fn learn(&mut self, address: IpAddr, key: ConnectionId, update: &Update) {
        for &Nlri { prefix, .. } in &update.withdrawn {
            let Some(peer) = self.peers.get_mut(&address) else {
                return;
            };
            if peer.routes_in.withdraw(prefix) {
                let change = self.loc.remove(prefix, address);
                self.best_changed(change);
            }
        }
        if let Some(attributes) = &update.attributes
            && !update.announced.is_empty()
        {
            let Some(peer) = self.peers.get_mut(&address) else {
                return;
            };
            let router_id = peer
                .session(key)
                .and_then(|session| Some(session.open.as_ref()?.router_id));
            let verdict = policy::import(attributes, self.config.asn, self.config.local_address);
            if let Err(reason) = &verdict {
                tracing::warn!(peer = %address, prefixes = update.announced.len(), %reason, "paths not used");
            }
            let path = router_id.filter(|_| verdict.is_ok()).map(|router_id| Candidate {
                peer: address,
                router_id,
                internal: peer.internal,
                attributes: Arc::clone(attributes),
            });
            for &Nlri { prefix, .. } in &update.announced {
                let Some(peer) = self.peers.get_mut(&address) else {
                    return;
                };
                peer.routes_in.announce(prefix, attributes);
                let change = match &path {
                    Some(path) => self.loc.insert(prefix, path.clone()),
                    // RFC 4271 §9.1.2: a path that is excluded replaces the one before all the same.
                    None => self.loc.remove(prefix, address),
                };
                self.best_changed(change);
            }
        }
        if update.end_of_rib == Some(Family::IPV4_UNICAST) {
            self.end_of_rib(address);
        }
        self.limit_prefixes(address, key);
    }

    fn limit_prefixes(&mut self, address: IpAddr, key: ConnectionId) {
        let got = self.peers.get(&address).map_or(0, |peer| peer.routes_in.len());
        if got > MAX_PREFIXES {
            // RFC 4486 §4: AFI, SAFI and the limit.
            let limit = u32::try_from(MAX_PREFIXES).unwrap_or(u32::MAX).to_be_bytes();
            let data = [0, 1, 1].into_iter().chain(limit).collect();
            let mut notification = Notification::cease(cease::MAXIMUM_PREFIXES_REACHED);
            notification.data = data;
            let reason = Reason::TooManyPrefixes {
                got,
                limit: MAX_PREFIXES,
            };
            self.apply(
                address,
                key,
                Event::AutomaticStop,
                Cause::notify(notification, reason, Fate::Drop),
            );
        }
    }

    /// The peer has sent all it has: what it has not announced again, it no longer has (RFC 4724 §4.2).
    pub(super) fn end_of_rib(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.end_of_rib_received = true;
        self.waiting.remove(&address);
        self.sweep_stale(address);
    }

    /// Removes the stale routes of a peer.
    pub(super) fn sweep_stale(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.retention = Retention::default();
        let gone = peer.routes_in.sweep_stale();
        if !gone.is_empty() {
            tracing::info!(peer = %address, routes = gone.len(), "stale routes removed");
        }
        self.forget_paths(address, gone);
    }

    /// Removes all the routes of a peer.
    pub(super) fn drop_routes(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.retention = Retention::default();
        let gone = peer.routes_in.clear();
        self.forget_paths(address, gone);
    }

    fn forget_paths(&mut self, address: IpAddr, gone: Vec<Prefix>) {
        for prefix in gone {
            let change = self.loc.remove(prefix, address);
            self.best_changed(change);
        }
    }

    /// A session was Established and is no longer.
    pub(super) fn lost(&mut self, address: IpAddr, loss: Loss) {
        self.external.remove(&address);
        let now = self.transport.now;
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.routes_out.clear();
        peer.end_of_rib_received = false;
        peer.end_of_rib_sent = false;
        match loss {
            Loss::Keep => {}
            Loss::Drop => self.drop_routes(address),
            Loss::Stale(restart_time) => {
                // RFC 4724 §4.2 has what was stale already go now. Here it goes once it has been stale for a restart
                // time, so that two losses in a row do not cut traffic, and a route cannot stay stale for ever.
                let too_old = peer
                    .retention
                    .since
                    .is_some_and(|since| since + restart_time <= now);
                if too_old {
                    self.sweep_stale(address);
                }
                let Some(peer) = self.peers.get_mut(&address) else {
                    return;
                };
                peer.routes_in.mark_stale();
                let since = peer.retention.since.unwrap_or(now);
                peer.retention = Retention {
                    since: Some(since),
                    until: Some(now + restart_time),
                };
            }
        }
    }

    /// A session has become Established.
    pub(super) fn established(&mut self, address: IpAddr) {
        let now = self.transport.now;
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.established_count = peer.established_count.saturating_add(1);
        let kept = peer
            .established()
            .and_then(|session| session.graceful_restart().map(|(_, kept)| kept));
        if !peer.internal {
            self.external.insert(address);
        }
        // RFC 4724 §4.2: the capability is missing, or the F bit is clear: the forwarding state is gone.
        if kept != Some(true) {
            self.sweep_stale(address);
        } else if peer.routes_in.stale() > 0 {
            peer.retention.until = Some(now + STALE_AFTER_RETURN);
        }
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        // RFC 4271 §9.2: an internal peer is told no more than what did not come from one.
        let told: &mut dyn Iterator<Item = _> = if peer.internal {
            &mut self.loc.outward()
        } else {
            &mut self.loc.iter()
        };
        for (prefix, best) in told {
            peer.routes_out
                .set(prefix, self.export.route(best, address, peer.internal));
        }
    }

    /// Takes the whole set of prefixes that this node originates.
    pub(super) fn set_exports(&mut self, exports: BTreeSet<Prefix>) {
        let before = self.exports.replace(exports).unwrap_or_default();
        let after = self.exports.clone().unwrap_or_default();
        for &prefix in before.difference(&after) {
            let change = self.loc.set_local(prefix, false);
            self.best_changed(change);
        }
        for &prefix in after.difference(&before) {
            let change = self.loc.set_local(prefix, true);
            self.best_changed(change);
        }
        // An End-of-RIB that waited for this can go out.
        self.touched.extend(self.peers.keys());
    }

    /// Tells the driver and the peers of a change of the route in use.
    fn best_changed(&mut self, change: Option<BestChange>) {
        let Some(BestChange {
            prefix,
            before,
            after,
        }) = change
        else {
            return;
        };
        let next_hop = after.as_ref().and_then(Best::next_hop);
        if before.as_ref().and_then(Best::next_hop) != next_hop {
            let best = next_hop.into_iter().collect();
            self.transport.push(Output::RibChange(RibChange { prefix, best }));
        }
        let outward = before.iter().chain(&after).any(Best::is_outward);
        if outward {
            for (&address, peer) in self
                .peers
                .iter_mut()
                .filter(|(_, peer)| peer.state == State::Established)
            {
                let route = after
                    .as_ref()
                    .and_then(|best| self.export.route(best, address, peer.internal));
                peer.routes_out.set(prefix, route);
                self.touched.insert(address);
            }
            return;
        }
        for &address in &self.external {
            if let Some(peer) = self.peers.get_mut(&address) {
                let route = after
                    .as_ref()
                    .and_then(|best| self.export.route(best, address, false));
                peer.routes_out.set(prefix, route);
                self.touched.insert(address);
            }
        }
    }

    /// RFC 2918 §4: the peer wants to be told everything again.
    pub(super) fn refresh(&mut self, address: IpAddr, family: Family) {
        if family == Family::IPV4_UNICAST
            && let Some(peer) = self.peers.get_mut(&address)
        {
            peer.routes_out.send_again();
        }
    }

    /// Sends what a peer is to be told.
    pub(super) fn advertise(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let Peer {
            routes_out,
            end_of_rib_sent,
            ..
        } = peer;
        let pending = routes_out.take_pending();
        let end_of_rib = !*end_of_rib_sent && self.exports.is_some();
        let Some(session) = peer.established() else { return };
        let negotiated = session.negotiated;
        let withdrawn: Vec<_> = pending.withdrawn.iter().copied().map(Nlri::from).collect();
        for message in wire::encode_withdrawals(&withdrawn, negotiated) {
            session.send_bytes(message, &mut self.transport);
        }
        for (attributes, prefixes) in &pending.announced {
            let announced: Vec<_> = prefixes.iter().copied().map(Nlri::from).collect();
            for message in wire::encode_announcements(attributes, &announced, negotiated) {
                session.send_bytes(message, &mut self.transport);
            }
        }
        // RFC 4724 §2, §4.1: after the initial routes. Not before it is known what those are: an early End-of-RIB
        // would let the peers remove the routes that they kept for us.
        if end_of_rib {
            session.send_bytes(wire::encode_end_of_rib(Family::IPV4_UNICAST), &mut self.transport);
            peer.end_of_rib_sent = true;
        }
    }
}
