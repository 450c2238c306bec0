//! What is put back since somebody else undid it: counted and told, and slowed where it does not end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{error, info, warn};

use super::fights::Fights;
use super::report;
use crate::dataplane::DataplaneError;
use crate::fib::{Change, Route, RouteKey, Rule, protocol_name};
use crate::inquiry::Undone;
use crate::metrics::Metrics;
use crate::reconcile::{Actual, Ours, taken_over_from};

/// For so long it is remembered that something of the host's was made right.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Of more than so many times the last are remembered.
const MOST_REMEMBERED: usize = 1000;

/// What was there before, and the routes that are fought over.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    fights: Fights,
    /// The rules of the plan before.
    planned_rules: BTreeSet<Rule>,
    /// When forwarding of IPv4 was switched on.
    forwarding: Times,
    /// When the tunnel device was set up that was there, and down.
    tunnel: Times,
}

/// When something happened, as long as that is remembered.
#[derive(Debug, Default)]
struct Times(VecDeque<Instant>);

impl Times {
    fn note(&mut self) {
        if self.0.len() >= MOST_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(Instant::now());
    }

    fn count(&self) -> usize {
        let recent = self.0.iter().filter(|then| then.elapsed() < REMEMBERED);
        recent.count()
    }
}

/// What tells a repair from a change of plan.
pub(super) struct Circumstances<'a> {
    /// The keys whose plan is new.
    pub(super) new: &'a BTreeSet<RouteKey>,
    /// The changes that the kernel refused, and why.
    pub(super) failures: &'a [(Change, DataplaneError)],
    /// What is there instead.
    pub(super) actual: &'a Actual,
    pub(super) ours: Ours,
    pub(super) metrics: &'a Metrics,
}

impl Repairs {
    /// The routes that are fought over.
    pub(super) fn fights(&self) -> &Fights {
        &self.fights
    }

    /// These rules are planned from now on: of them only what was there is a repair.
    pub(super) fn plan_rules(&mut self, rules: &BTreeSet<Rule>) {
        self.planned_rules.clone_from(rules);
    }

    /// A change was made to what is `actual`: says what a switch means for the host, and remembers what was undone.
    pub(super) fn note_switch(&mut self, change: &Change, actual: &Actual) {
        report::say_switched(change);
        match change {
            Change::EnableForwarding => self.forwarding.note(),
            Change::SetLink { link, .. } if actual.link_at(*link).is_some_and(|link| !link.up) => {
                self.tunnel.note();
            }
            _ => {}
        }
    }

    /// What others have undone during the last hour.
    pub(super) fn undone(&self) -> Undone {
        Undone {
            forwarding: self.forwarding.count(),
            tunnel: self.tunnel.count(),
        }
    }

    /// Takes those repairs out of `changes` that wait, and counts and tells the others, and what is taken over.
    pub(super) fn judge(&mut self, changes: &mut Vec<Change>, circumstances: &Circumstances<'_>) {
        let repairs = circumstances.repairs(changes);
        self.slow_fights(&repairs, changes, circumstances.metrics);
        self.note(&repairs, changes, circumstances);
    }

    /// Takes out of `changes` the repairs that wait, since another program undoes them again and again.
    fn slow_fights(
        &mut self,
        repairs: &BTreeMap<RouteKey, Option<u8>>,
        changes: &mut Vec<Change>,
        metrics: &Metrics,
    ) {
        let verdict = self.fights.judge(repairs, Instant::now());
        for (key, what) in self.fights.words().filter(|(key, _)| verdict.begun.contains(key)) {
            error!(route = %key, "{what}");
        }
        for key in &verdict.ended {
            info!(route = %key, "nobody has undone this route for a minute: repaired at once again");
        }
        if !verdict.waiting.is_empty() {
            changes.retain(|change| !matches!(change, Change::ReplaceRoute(route) | Change::DeleteRoute(route) if verdict.waiting.contains(&route.key)));
        }
        metrics
            .route_fights
            .set(i64::try_from(self.fights.count()).unwrap_or(i64::MAX));
    }

    /// Counts and tells what is put back and what is taken over.
    fn note(
        &self,
        repairs: &BTreeMap<RouteKey, Option<u8>>,
        changes: &[Change],
        circumstances: &Circumstances<'_>,
    ) {
        let Circumstances { actual, metrics, .. } = circumstances;
        let named = |route: &Route| report::named(route, actual);
        for change in changes {
            if let Change::AddRule(rule) = change
                && self.planned_rules.contains(rule)
            {
                metrics.route_repairs.inc();
                warn!(%rule, "rule repaired");
            }
            let Change::ReplaceRoute(route) = change else {
                continue;
            };
            let foreign = taken_over_from(change, actual, &circumstances.ours);
            if repairs.contains_key(&route.key) {
                metrics.route_repairs.inc();
                let found = actual.route(&route.key).map(named);
                let by = foreign.map(protocol_name);
                warn!(route = named(route), found, by = by.as_deref(), "route repaired");
            } else if let Some(foreign) = foreign {
                info!(route = named(route), from = %protocol_name(foreign), "route taken over");
            }
        }
    }
}

impl Circumstances<'_> {
    /// What `changes` put back since somebody else changed it: routes that should be as they were before, whose plan is
    /// not new, and that the kernel did not refuse, each with the protocol number of what is there instead.
    fn repairs(&self, changes: &[Change]) -> BTreeMap<RouteKey, Option<u8>> {
        let refused: BTreeSet<&RouteKey> = self
            .failures
            .iter()
            .filter_map(|(change, _)| match change {
                Change::ReplaceRoute(route) => Some(&route.key),
                _ => None,
            })
            .collect();
        let repaired = changes.iter().filter_map(|change| match change {
            Change::ReplaceRoute(route)
                if !self.new.contains(&route.key) && !refused.contains(&route.key) =>
            {
                Some((route.key, taken_over_from(change, self.actual, &self.ours)))
            }
            _ => None,
        });
        repaired.collect()
    }
}
