//! The ordered difference between what should be and what is.
//!
//! Two things make this more than a set difference. The kernel keeps a list of routes per key, of which the first
//! counts (`ip route append` and `prepend` make more than one), and it removes routes in silence: when a link goes
//! down or its last address goes, when the address named as a source goes. [`Actual`] knows both, and says when only a
//! new dump can tell.
//!
//! What is ours is what carries our protocol number, a route or a rule, and on the tunnel device its addresses. Nothing
//! else is removed.

mod actual;
mod difference;

pub use actual::{Actual, Observed, Touched};
pub use difference::Difference;

use crate::fib::{Change, Desired, Route, RouteKey, Rule};

/// How to tell what is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ours {
    /// The protocol number that our routes carry, and nobody else's. Not zero, which the kernel takes to mean any.
    pub protocol: u8,
}

impl Ours {
    fn owns(self, route: &Route) -> bool {
        self.protocol != 0 && route.protocol == self.protocol
    }

    fn owns_rule(self, rule: &Rule) -> bool {
        self.protocol != 0 && rule.protocol == self.protocol
    }
}

/// What becomes of routes of ours that are not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// They are deleted.
    Now,
    /// Unicast ones stay: before the speaker has converged, a route that is not wanted yet may be wanted soon.
    Later,
}

/// The steps that lead from `actual` to `desired`, in the order in which they work: see [`Difference::steps`].
#[must_use]
pub fn diff(desired: &Desired, actual: &Actual, ours: &Ours, removal: Removal) -> Vec<Change> {
    Difference::whole(desired, actual, *ours).steps(desired, actual, removal)
}

/// The protocol number that a route carries before `change` takes it over from somebody else.
#[must_use]
pub fn taken_over_from(change: &Change, actual: &Actual, ours: &Ours) -> Option<u8> {
    let Change::ReplaceRoute(route) = change else {
        return None;
    };
    let former = actual.route(&route.key)?;
    (!ours.owns(former)).then_some(former.protocol)
}

/// The route that gets the packets of the route of `key`, since it has the same prefix and a better metric. It is not ours
/// to remove, and replacing ours does not help.
#[must_use]
pub fn overshadowing<'a>(key: &RouteKey, actual: &'a Actual) -> Option<&'a Route> {
    let (best, _) = actual.best_and_routes_of(key);
    best.filter(|best| best.key.metric < key.metric)
}

#[cfg(test)]
mod tests;
