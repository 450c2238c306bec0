//! Route refresh (RFC 2918) with its markers (RFC 7313), in both roles.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Speaker;
use super::group::Encoded;
use crate::wire::message::{Family, Message, RefreshKind};

/// A request costs its sender 23 octets and us all routes: one that comes sooner than this after the last is answered
/// then.
const PAUSE: Duration = Duration::from_secs(1);

/// RFC 7313 §4: how long the end of a refresh is waited for, before what was not told again goes.
const PATIENCE: Duration = Duration::from_secs(360);

/// The refreshes of one family of a peer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Refresh {
    /// When the next request may be answered.
    not_before: Option<Instant>,
    /// The peer waits for an answer.
    asked: bool,
    /// The peer tells all its routes once more; by then it should have.
    until: Option<Instant>,
    /// When it may begin to do so again.
    not_again_before: Option<Instant>,
}

impl Refresh {
    /// When it is to be looked at next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let answer = self.not_before.filter(|_| self.asked);
        answer.into_iter().chain(self.until).min()
    }
}

impl Speaker {
    /// A ROUTE-REFRESH has come.
    pub(super) fn refresh(&mut self, address: IpAddr, family: Family, kind: RefreshKind) {
        let now = self.transport.now;
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let Some(session) = peer.established() else { return };
        // RFC 2918 §4: a family that was not agreed on is ignored.
        if !session.negotiated.families().any(|agreed| agreed == family) {
            return;
        }
        // RFC 7313 §4: a peer with graceful restart has all its first routes marked by End-of-RIB.
        let early = session.has_graceful_restart() && !peer.end_of_rib_received.contains(&family);
        match kind {
            RefreshKind::Request => {
                peer.refresh.entry(family).or_default().asked = true;
                self.answer_refresh(address, family);
            }
            RefreshKind::BeginOfRr if !early => {
                let refresh = peer.refresh.entry(family).or_default();
                // Each marker costs a look at all routes. One that comes too soon is ignored, and nothing is swept.
                if refresh.not_again_before.is_none_or(|at| at <= now) {
                    refresh.until = Some(now + PATIENCE);
                    refresh.not_again_before = Some(now + PAUSE);
                    peer.routes_in.mark_unrefreshed(family);
                }
            }
            RefreshKind::EndOfRr => self.end_refresh(address, family),
            // RFC 7313 §5: other subtypes are ignored.
            RefreshKind::BeginOfRr | RefreshKind::Unknown(_) => {
                tracing::debug!(peer = %address, %family, ?kind, "ROUTE-REFRESH ignored");
            }
        }
    }

    /// Takes up what was put off.
    pub(super) fn expire_refresh(&mut self, address: IpAddr) {
        let now = self.transport.now;
        let Some(peer) = self.peers.get(&address) else {
            return;
        };
        let due: Vec<(Family, bool)> = peer
            .refresh
            .iter()
            .filter(|(_, refresh)| refresh.deadline().is_some_and(|at| at <= now))
            .map(|(&family, refresh)| (family, refresh.until.is_some_and(|at| at <= now)))
            .collect();
        for (family, over) in due {
            if over {
                self.end_refresh(address, family);
            }
            self.answer_refresh(address, family);
        }
    }

    /// RFC 7313 §4: the peer has told all its routes once more, or had its time to.
    fn end_refresh(&mut self, address: IpAddr, family: Family) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let begun = peer
            .refresh
            .get_mut(&family)
            .and_then(|refresh| refresh.until.take());
        if begun.is_none() {
            return;
        }
        for nlri in peer.routes_in.sweep_unrefreshed(family) {
            self.ribs.remove(nlri, address, &mut self.transport);
        }
    }

    /// RFC 2918 §4: all routes of the family, once more. RFC 7313 §4: between two markers.
    fn answer_refresh(&mut self, address: IpAddr, family: Family) {
        let now = self.transport.now;
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let Some(refresh) = peer.refresh.get_mut(&family).filter(|refresh| refresh.asked) else {
            return;
        };
        if refresh.not_before.is_some_and(|at| at > now) {
            return;
        }
        refresh.asked = false;
        refresh.not_before = Some(now + PAUSE);
        self.flush();
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let Some(group) = peer.group.and_then(|group| self.ribs.groups.get(group)) else {
            return;
        };
        let negotiated = group.export.negotiated;
        // RFC 7313 §4: no marker before our End-of-RIB.
        let marked = negotiated.enhanced_route_refresh && peer.end_of_rib_sent;
        let encoded = Encoded::new(&group.all(address, Some(family)), negotiated);
        let mark = |kind| Message::RouteRefresh { family, kind };
        if marked {
            peer.tell(&mark(RefreshKind::BeginOfRr), &mut self.transport);
        }
        peer.send(&encoded, &mut self.transport);
        if marked {
            peer.tell(&mark(RefreshKind::EndOfRr), &mut self.transport);
        }
    }

    /// Asks a peer for all its routes.
    pub(super) fn ask_refresh(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else {
            return;
        };
        let Some(session) = peer.established().filter(|session| session.can_refresh()) else {
            return;
        };
        for family in session.negotiated.families().collect::<Vec<_>>() {
            let kind = RefreshKind::Request;
            peer.tell(&Message::RouteRefresh { family, kind }, &mut self.transport);
        }
    }
}
