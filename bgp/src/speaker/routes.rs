//! The routes between the peers: Adj-RIB-In, import, Loc-RIB, export, Adj-RIB-Out (RFC 4271 §9).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Speaker;
use super::group::Encoded;
use super::peer::Peer;
use super::ribs::Ribs;
use crate::config::PrefixLimit;
use crate::fsm::Event;
use crate::id::{ConnectionId, Prefix};
use crate::policy::import::Rejection;
use crate::reason::Reason;
use crate::rib::decision::{Candidate, Neighbour};
use crate::session::{Cause, Fate, Session};
use crate::transport::Transport;
use crate::wire;
use crate::wire::message::{Family, Nlri, Notification, PathAttributes, Update};
use crate::wire::notification::cease;

/// The families whose routes there are.
pub(super) const FAMILIES: [Family; 2] = [Family::IPV4_UNICAST, Family::IPV6_UNICAST];

/// Octets of attributes beyond the usual that are taken from one peer.
const MAX_EXCESS: usize = 256 << 20;

/// RFC 4271 §9.1.1, §9.1.2: what import makes of a route of `peer`, put into Loc-RIB or taken out of it. A path that is
/// excluded replaces the one before all the same.
pub(super) fn decide(
    peer: &Peer,
    nlri: Nlri,
    path: Result<&Arc<PathAttributes>, &Rejection>,
    ribs: &mut Ribs,
    transport: &mut Transport,
) {
    let accepted = path
        .ok()
        .and_then(|path| peer.import.filter(nlri.prefix, path).ok());
    match (accepted, &peer.neighbour) {
        (Some(attributes), Some(from)) => {
            let path = Candidate {
                from: Arc::clone(from),
                received_id: nlri.path_id,
                path_id: 0,
                attributes: if peer.import.has_policy() {
                    ribs.attributes.intern(&attributes)
                } else {
                    attributes
                },
            };
            ribs.insert(nlri.prefix, path, transport);
        }
        _ => ribs.remove(nlri, peer.config.address, transport),
    }
}

impl Speaker {
    /// Takes an UPDATE of a peer.
    pub(super) fn learn(&mut self, address: IpAddr, key: ConnectionId, update: &Update) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let (ribs, transport) = (&mut self.ribs, &mut self.transport);
        for &nlri in &update.withdrawn {
            if peer.routes_in.withdraw(nlri) {
                ribs.remove(nlri, address, transport);
            }
        }
        for (routes, attributes) in update.announcements() {
            let attributes = ribs.attributes.intern(attributes);
            let verdict = peer.import.check(&attributes, &self.clusters);
            if let Err(reason) = &verdict {
                peer.rejected = peer.rejected.saturating_add(1);
                // A peer can send any number of them.
                if peer.rejected.is_power_of_two() {
                    let (routes, count) = (routes.len(), peer.rejected);
                    tracing::warn!(peer = %address, routes, count, %reason, "paths not used");
                }
            }
            let path = verdict.as_ref().map(|()| &attributes);
            for &nlri in routes {
                if !peer.routes_in.has_room_for(nlri) {
                    peer.rejected = peer.rejected.saturating_add(1);
                    if peer.rejected.is_power_of_two() {
                        let count = peer.rejected;
                        tracing::warn!(peer = %address, route = %nlri, count, "too many paths to one destination");
                    }
                    continue;
                }
                peer.routes_in.announce(nlri, &attributes);
                decide(peer, nlri, path, ribs, transport);
            }
        }
        if let Some(family) = update.end_of_rib {
            self.end_of_rib(address, family);
        }
        self.limit_prefixes(address, key);
    }

    /// RFC 4271 §6.7: a peer that announces more than it may.
    pub(super) fn limit_prefixes(&mut self, address: IpAddr, key: ConnectionId) {
        let now = self.transport.now;
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        // RFC 4486 §4: out of resources.
        let got = peer.routes_in.excess();
        if got > MAX_EXCESS {
            peer.refuse_until(now + PrefixLimit::default().pause);
            let limit = MAX_EXCESS;
            let notification = Notification::cease(cease::OUT_OF_RESOURCES);
            let cause = Cause::notify(
                notification,
                Reason::TooLargeAttributes { got, limit },
                Fate::Drop,
            );
            self.apply(address, key, Event::AutomaticStop, cause);
            return;
        }
        for family in FAMILIES {
            let got = peer.routes_in.count(family);
            let Some(limit) = peer.config.families.get(&family).map(|of| of.limit) else {
                continue;
            };
            if got <= limit.most {
                let much = got > limit.warn;
                if much && peer.warned.insert(family) {
                    let most = limit.most;
                    tracing::warn!(peer = %address, %family, got, most, "peer nears its limit of routes");
                } else if !much {
                    peer.warned.remove(&family);
                }
                continue;
            }
            // RFC 4486 §4: AFI, SAFI and the limit.
            let [high, low] = family.afi.to_be_bytes();
            let most = u32::try_from(limit.most).unwrap_or(u32::MAX).to_be_bytes();
            let mut notification = Notification::cease(cease::MAXIMUM_PREFIXES_REACHED);
            notification.data = [high, low, family.safi].into_iter().chain(most).collect();
            let reason = Reason::TooManyPrefixes {
                got,
                limit: limit.most,
            };
            peer.refuse_until(now + limit.pause);
            let cause = Cause::notify(notification, reason, Fate::Drop);
            self.apply(address, key, Event::AutomaticStop, cause);
            return;
        }
    }

    /// Looks at all routes of a peer anew: what is let in has changed.
    pub(super) fn import_again(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get(&address) else {
            return;
        };
        for (nlri, attributes) in peer.routes_in.iter() {
            let verdict = peer.import.check(attributes, &self.clusters);
            let path = verdict.as_ref().map(|()| attributes);
            decide(peer, nlri, path, &mut self.ribs, &mut self.transport);
        }
    }

    /// A session has become Established: the peer is told what there is.
    pub(super) fn established(&mut self, address: IpAddr) {
        self.keep_or_sweep(address);
        self.flush();
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.established_count = peer.established_count.saturating_add(1);
        let open = peer.established().and_then(|session| session.open.as_ref());
        let router_id = open.map(|open| open.router_id);
        let (Some(router_id), Some(export)) = (router_id, peer.export(&self.config)) else {
            return;
        };
        peer.neighbour = Some(Arc::new(Neighbour {
            peer: address,
            router_id,
            internal: peer.internal,
            reflector_client: peer.config.reflector_client,
        }));
        let negotiated = export.negotiated;
        let ribs = &mut self.ribs;
        let number = ribs.groups.join(address, export, &ribs.loc, &mut ribs.attributes);
        peer.group = Some(number);
        if let Some(group) = ribs.groups.get(number) {
            let encoded = Encoded::new(&group.all(address, None), negotiated);
            peer.send(&encoded, &mut self.transport);
        }
        if peer.established().is_some_and(Session::has_restarted) {
            self.no_longer_awaited(address);
        }
    }

    /// What the peer is told, or how, may have changed: it is told the difference.
    pub(super) fn export_again(&mut self, address: IpAddr) {
        self.flush();
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let (Some(export), Some(before)) = (peer.export(&self.config), peer.group) else {
            return;
        };
        let negotiated = export.negotiated;
        let ribs = &mut self.ribs;
        let after = ribs.groups.join(address, export, &ribs.loc, &mut ribs.attributes);
        if after == before {
            return;
        }
        if let (Some(before), Some(after)) = (ribs.groups.get(before), ribs.groups.get(after)) {
            let encoded = Encoded::new(&after.difference_to(before, address), negotiated);
            peer.send(&encoded, &mut self.transport);
        }
        peer.group = Some(after);
        ribs.groups.leave(address, before);
    }

    /// Takes the whole set of prefixes that this node originates.
    pub(super) fn set_exports(&mut self, exports: BTreeSet<Prefix>) {
        let first = self.exports.is_none();
        let before = self.exports.replace(exports).unwrap_or_default();
        let (ribs, transport) = (&mut self.ribs, &mut self.transport);
        let Some(after) = &self.exports else { return };
        for &prefix in before.difference(after) {
            ribs.set_local(prefix, false, transport);
        }
        for &prefix in after.difference(&before) {
            ribs.set_local(prefix, true, transport);
        }
        if first {
            // An End-of-RIB that waited for this can go out.
            self.touched.extend(self.peers.keys());
        }
    }

    /// Tells the peers what has changed.
    pub(super) fn flush(&mut self) {
        for message in self.ribs.groups.flush() {
            if let Some(peer) = self.peers.get_mut(&message.to) {
                peer.send(&message.encoded, &mut self.transport);
            }
        }
    }

    /// RFC 4724 §4.1: whether what is to be told depends on what peers have not told yet, after a restart. In a mesh it
    /// does not: each node tells its own routes.
    fn defers(&self) -> bool {
        let passed_on = |peer: &Peer| !peer.internal || peer.config.reflector_client.is_some();
        !self.awaited.is_empty() && self.peers.values().any(passed_on)
    }

    /// A peer has told all, or has restarted itself, so that it waits for us (RFC 4724 §4.1), or is gone.
    pub(super) fn no_longer_awaited(&mut self, address: IpAddr) {
        if self.awaited.remove(&address) && self.awaited.is_empty() {
            self.tell_all_end_of_rib();
        }
    }

    /// Tells every peer that has not been told yet.
    pub(super) fn tell_all_end_of_rib(&mut self) {
        for address in self.peers.keys().copied().collect::<Vec<_>>() {
            self.tell_end_of_rib(address);
        }
    }

    /// RFC 4724 §2, §4.1: End-of-RIB, after the initial routes. Not before it is known what those are: an early one
    /// would let the peers remove the routes that they kept for us.
    pub(super) fn tell_end_of_rib(&mut self, address: IpAddr) {
        let due = |peer: &Peer| !peer.end_of_rib_sent && peer.group.is_some();
        if self.exports.is_none() || self.defers() || !self.peers.get(&address).is_some_and(due) {
            return;
        }
        self.flush();
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        peer.end_of_rib_sent = true;
        let Some(session) = peer.established_mut() else {
            return;
        };
        for family in session.negotiated.families().collect::<Vec<_>>() {
            session.send_bytes(wire::encode_end_of_rib(family), &mut self.transport);
        }
    }
}
