//! Adj-RIB-In: what one peer has announced, as it announced it (RFC 4271 §3.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::Prefix;
use crate::wire::message::PathAttributes;

/// One route of the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    attributes: Arc<PathAttributes>,
    /// Of a session that is gone, and not announced again yet (RFC 4724 §4.2).
    stale: bool,
}

/// The routes of one peer, whether import accepted them or not.
#[derive(Clone, Debug, Default)]
pub struct AdjRibIn {
    routes: BTreeMap<Prefix, Route>,
    stale: usize,
}

impl AdjRibIn {
    /// Takes an announcement in place of an earlier one (RFC 4271 §9: implicit withdrawal). Says whether the path
    /// differs from what was there.
    pub fn announce(&mut self, prefix: Prefix, attributes: &Arc<PathAttributes>) -> bool {
        let route = Route { attributes: Arc::clone(attributes), stale: false };
        match self.routes.insert(prefix, route) {
            None => true,
            Some(old) => {
                self.stale -= usize::from(old.stale);
                old.attributes != *attributes
            }
        }
    }

    /// Takes a withdrawal. Says whether there was a route.
    pub fn withdraw(&mut self, prefix: Prefix) -> bool {
        let Some(old) = self.routes.remove(&prefix) else { return false };
        self.stale -= usize::from(old.stale);
        true
    }

    /// RFC 4724 §4.2: the session is lost, its routes stay for a while.
    pub fn mark_stale(&mut self) {
        for route in self.routes.values_mut() {
            route.stale = true;
        }
        self.stale = self.routes.len();
    }

    /// RFC 4724 §4.2: removes what is still stale, and says what that was.
    pub fn sweep_stale(&mut self) -> Vec<Prefix> {
        if self.stale == 0 {
            return Vec::new();
        }
        self.stale = 0;
        let gone = self.routes.iter().filter(|(_, route)| route.stale).map(|(&prefix, _)| prefix).collect();
        self.routes.retain(|_, route| !route.stale);
        gone
    }

    /// Removes everything, and says what that was.
    pub fn clear(&mut self) -> Vec<Prefix> {
        self.stale = 0;
        std::mem::take(&mut self.routes).into_keys().collect()
    }

    /// How many routes there are, stale ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.routes.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// How many of them are stale.
    #[must_use]
    pub fn stale(&self) -> usize {
        self.stale
    }

    /// The routes, in order of their prefix.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &Arc<PathAttributes>)> {
        self.routes.iter().map(|(&prefix, route)| (prefix, &route.attributes))
    }
}
