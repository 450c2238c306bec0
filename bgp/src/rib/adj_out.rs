//! Adj-RIB-Out: what peers are told (RFC 4271 §3.2), and what is still to be told.
//!
//! Peers that are told the same share one, so that a thousand of them cost no more than one. They differ in one thing
//! only: nobody is told what it said itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::wire::message::{Nlri, PathAttributes};

/// A route as it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// Its attributes.
    pub attributes: Arc<PathAttributes>,
    /// The peer it came from, which is not told.
    pub source: Option<IpAddr>,
}

impl Advertised {
    /// Whether `peer` is told of it.
    #[must_use]
    pub fn is_for(&self, peer: IpAddr) -> bool {
        self.source != Some(peer)
    }
}

/// A route that is told otherwise from now on, or no longer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub nlri: Nlri,
    /// What was told.
    pub before: Option<Advertised>,
    /// What is to be told.
    pub after: Option<Advertised>,
}

/// What is to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Routes to withdraw.
    pub withdrawn: Vec<Nlri>,
    /// Routes to announce, by the attributes they share: one UPDATE carries many.
    pub announced: BTreeMap<Arc<PathAttributes>, Vec<Nlri>>,
}

impl Pending {
    /// Adds what `peer` is to be told of a difference; `None` stands for all that it did not come from.
    pub fn add(&mut self, difference: &Difference, peer: Option<IpAddr>) {
        let tells = |route: &&Advertised| peer.is_none_or(|peer| route.is_for(peer));
        let before = difference.before.as_ref().filter(tells);
        match (before, difference.after.as_ref().filter(tells)) {
            (None, None) => {}
            (Some(_), None) => self.withdrawn.push(difference.nlri),
            (Some(before), Some(after)) if before.attributes == after.attributes => {}
            (_, Some(after)) => self.announce(difference.nlri, &after.attributes),
        }
    }

    /// Adds an announcement.
    pub fn announce(&mut self, nlri: Nlri, attributes: &Arc<PathAttributes>) {
        match self.announced.get_mut(attributes) {
            Some(routes) => routes.push(nlri),
            None => {
                self.announced.insert(Arc::clone(attributes), vec![nlri]);
            }
        }
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.withdrawn.is_empty() && self.announced.is_empty()
    }
}

/// The routes that some peers are told.
#[derive(Clone, Debug, Default)]
pub struct AdjRibOut {
    routes: BTreeMap<Nlri, Advertised>,
    /// What was told, where that is no longer what `routes` says.
    told: BTreeMap<Nlri, Option<Advertised>>,
    /// How many of the routes came from each peer.
    from: BTreeMap<IpAddr, usize>,
}

impl AdjRibOut {
    /// What is to be told of a route from now on; `None` for nothing. Several changes between two calls of
    /// [`AdjRibOut::take_differences`] cost one message.
    pub fn set(&mut self, nlri: Nlri, route: Option<Advertised>) {
        let source = route.as_ref().and_then(|route| route.source);
        let before = match route {
            Some(route) => match self.routes.get_mut(&nlri) {
                Some(known) if *known == route => return,
                Some(known) => Some(std::mem::replace(known, route)),
                None => {
                    self.routes.insert(nlri, route);
                    None
                }
            },
            None => match self.routes.remove(&nlri) {
                None => return,
                before => before,
            },
        };
        if let Some(source) = source {
            *self.from.entry(source).or_default() += 1;
        }
        if let Some(source) = before.as_ref().and_then(|route| route.source)
            && let Some(count) = self.from.get_mut(&source)
        {
            *count -= 1;
            if *count == 0 {
                self.from.remove(&source);
            }
        }
        self.told.entry(nlri).or_insert(before);
    }

    /// What has changed since the last call; it counts as told.
    pub fn take_differences(&mut self) -> Vec<Difference> {
        let told = std::mem::take(&mut self.told);
        let differences = told.into_iter().map(|(nlri, before)| Difference {
            nlri,
            before,
            after: self.routes.get(&nlri).cloned(),
        });
        differences.filter(|one| one.before != one.after).collect()
    }

    /// Whether something has changed since.
    #[must_use]
    pub fn has_differences(&self) -> bool {
        !self.told.is_empty()
    }

    /// The routes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Nlri, &Advertised)> {
        self.routes.iter().map(|(&nlri, route)| (nlri, route))
    }

    /// The path identifiers under which a destination is told.
    pub fn path_ids(&self, prefix: crate::id::Prefix) -> Vec<u32> {
        let of = |path_id| Nlri { prefix, path_id };
        let routes = self.routes.range(of(0)..=of(u32::MAX));
        routes.map(|(nlri, _)| nlri.path_id).collect()
    }

    /// How many routes `peer` is told.
    #[must_use]
    pub fn count(&self, peer: IpAddr) -> usize {
        let own = self.from.get(&peer).copied().unwrap_or(0);
        self.routes.len().saturating_sub(own)
    }
}
