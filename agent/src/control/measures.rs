//! What the loop measures of itself: how long it takes until the kernel has what the peers say.

use std::collections::BTreeSet;

use culvert_bgp::id::Prefix;
use culvert_bgp::speaker::State;
use tokio::time::Instant;

use crate::fib::{Change, MAIN_TABLE};
use crate::metrics::Metrics;
use crate::speaker::News;

/// See the module.
pub(super) struct Measures {
    pub(super) metrics: Metrics,
    /// When the first of what is not in the kernel yet was learned.
    learned: Option<Instant>,
    /// The destinations of this turn that were learned or withdrawn.
    destinations: BTreeSet<Prefix>,
}

impl Measures {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self {
            metrics,
            learned: None,
            destinations: BTreeSet::new(),
        }
    }

    /// What the speaker told.
    pub(super) fn heard(&mut self, news: &News) {
        let changes = news.sessions.len() as u64;
        self.metrics.bgp_session_transitions.inc_by(changes);
        let lost = news
            .sessions
            .iter()
            .filter(|change| change.from == State::Established);
        self.metrics.bgp_session_flaps.inc_by(lost.count() as u64);
        self.learned = self.learned.into_iter().chain(news.since).min();
    }

    /// These destinations are looked at in this turn, since peers say something of them.
    pub(super) fn planned(&mut self, destinations: BTreeSet<Prefix>) {
        self.destinations = destinations;
    }

    /// The kernel took a change.
    pub(super) fn applied(&self, change: &Change) {
        let (Change::ReplaceRoute(route) | Change::DeleteRoute(route)) = change else {
            return;
        };
        if let Some(since) = self.learned
            && route.key.table == MAIN_TABLE
            && self.destinations.contains(&Prefix::new(route.key.prefix))
        {
            let seconds = since.elapsed().as_secs_f64();
            self.metrics.route_programming_seconds.observe(seconds);
        }
    }

    /// The turn is over, and so is what was learned for it; what failed is told otherwise.
    pub(super) fn turned(&mut self, failures: usize) {
        self.learned = None;
        self.destinations.clear();
        let failures = i64::try_from(failures).unwrap_or(i64::MAX);
        self.metrics.routes_failed.set(failures);
    }

    /// Something that was asked of the kernel since `began` is done.
    pub(super) fn netlink(&self, operation: &str, began: Instant) {
        let seconds = self.metrics.netlink_seconds.with_label_values(&[operation]);
        seconds.observe(began.elapsed().as_secs_f64());
    }
}
