//! What the speaker knows of routes, for people: why is this path the best, what has a peer said, what is it told.

use std::net::IpAddr;
use std::sync::Arc;

use super::Speaker;
use crate::id::{NextHop, Prefix};
use crate::policy::import::Rejection;
use crate::rib::decision::{self, Verdict};
use crate::rib::loc::Best;
use crate::wire::message::{Nlri, PathAttributes};

/// All that is known of one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteView {
    /// The destination.
    pub prefix: Prefix,
    /// This node originates it: no path of a peer is used.
    pub local: bool,
    /// Where packets go.
    pub next_hops: Vec<NextHop>,
    /// The paths that import let in, the best first, then by what told them apart last.
    pub paths: Vec<PathView>,
    /// The paths that import kept out, with the reason.
    pub rejected: Vec<(IpAddr, Rejection)>,
}

/// A path of a peer, and what the decision made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathView {
    /// The address of the peer.
    pub peer: IpAddr,
    /// The Path Identifier that the peer gave it; 0 without ADD-PATH (RFC 7911 §3).
    pub path_id: u32,
    /// The path, as import left it.
    pub attributes: Arc<PathAttributes>,
    /// Why it is used, or not.
    pub verdict: Verdict,
}

impl Speaker {
    /// Why packets for `prefix` go where they go; `None` if nobody has said anything of it.
    #[must_use]
    pub fn explain(&self, prefix: Prefix) -> Option<RouteView> {
        let candidates = self.ribs.loc.candidates(prefix);
        let verdicts = decision::explain(candidates);
        let mut paths: Vec<PathView> = candidates
            .iter()
            .zip(verdicts)
            .map(|(path, verdict)| PathView {
                peer: path.from.peer,
                path_id: path.received_id,
                attributes: Arc::clone(&path.attributes),
                verdict,
            })
            .collect();
        paths.sort_by_key(|path| (path.verdict.rank(), path.peer, path.path_id));
        let mut rejected = Vec::new();
        for (&address, peer) in &self.peers {
            for (nlri, attributes) in peer.routes_in.paths(prefix) {
                rejected.extend(
                    self.rejection(address, nlri, attributes)
                        .map(|why| (address, why)),
                );
            }
        }
        let local = self.ribs.loc.get(prefix) == Some(Best::Local);
        let known = local || !paths.is_empty() || !rejected.is_empty();
        known.then(|| RouteView {
            prefix,
            local,
            next_hops: self.ribs.loc.next_hops(prefix),
            paths,
            rejected,
        })
    }

    /// Why import keeps a path out.
    fn rejection(&self, peer: IpAddr, nlri: Nlri, path: &Arc<PathAttributes>) -> Option<Rejection> {
        let import = &self.peers.get(&peer)?.import;
        let checked = import.check(path, &self.clusters);
        checked.and_then(|()| import.filter(nlri.prefix, path)).err()
    }

    /// What a peer has announced, in order of prefixes, and why a route of it is not let in.
    pub fn adj_rib_in(
        &self,
        peer: IpAddr,
    ) -> impl Iterator<Item = (Nlri, &Arc<PathAttributes>, Option<Rejection>)> {
        let routes = self.peers.get(&peer).map(|peer| peer.routes_in.iter());
        routes
            .into_iter()
            .flatten()
            .map(move |(nlri, path)| (nlri, path, self.rejection(peer, nlri, path)))
    }

    /// The destinations in use, in order, and where packets go; nowhere for those of this node.
    pub fn loc_rib(&self) -> impl Iterator<Item = (Prefix, Vec<NextHop>)> {
        let routes = self.ribs.loc.iter();
        routes.map(|(prefix, _)| (prefix, self.ribs.loc.next_hops(prefix)))
    }

    /// Where packets for `prefix` go; nowhere if it is this node's own, or unknown.
    #[must_use]
    pub fn next_hops(&self, prefix: Prefix) -> Vec<NextHop> {
        self.ribs.loc.next_hops(prefix)
    }

    /// What a peer is told, in order of prefixes.
    pub fn adj_rib_out(&self, peer: IpAddr) -> impl Iterator<Item = (Nlri, &Arc<PathAttributes>)> {
        let group = self.peers.get(&peer).and_then(|of| of.group);
        let routes = group.and_then(|group| self.ribs.groups.get(group));
        routes
            .into_iter()
            .flat_map(|group| group.routes.iter())
            .filter(move |(_, route)| route.is_for(peer))
            .map(|(nlri, route)| (nlri, &route.attributes))
    }
}
