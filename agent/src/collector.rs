//! Garbage collection: takes back what pods and nodes that are gone have left, by whichever agent holds the lease.
//!
//! What is left over is for [`culvert_ipam::collect`] to judge, on all of the cluster read at one time. Here that is read,
//! and what is due is done: after all of it was read once more and it is still due, by compare-and-swap, on the sequence
//! numbers and revisions that it was judged by. What cannot be read whole, or is not believed (a datastore that lost too
//! much at once), takes nothing from anybody. A new leader trusts its own eyes alone, and begins with no memory.
//!
//! The same look measures the pools ([`pools`]).

mod pools;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use culvert_ipam::collect::{Collection, Leftover, Memory, Reclaim, Settings, collect};
use culvert_ipam::snapshot::{Snapshot, Source};
use culvert_ipam::timestamp::Timestamp;
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::allocation::{self, AllocationError, Allocator};
use crate::datastore::{Datastore, DatastoreError};
use crate::metrics::Metrics;
use crate::status::AgentStatus;
use crate::{inventory, leader};

use pools::Outlook;

/// The lease of the one who collects.
pub const LEASE: &str = "culvert-ipam-gc";

/// How soon after a look that came to nothing the next is taken, at the latest.
const RETRY: Duration = Duration::from_secs(30);

/// So many reclaims are done on one reading of the cluster, at once: those that wait for the same block share its write.
const AT_ONCE: usize = 64;

/// What is done about what is left over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CollectionMode {
    /// It is taken back.
    #[default]
    Enabled,
    /// It is told.
    DryRun,
    /// Nothing: only the pools are measured.
    Disabled,
}

/// How it is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Whether anything is taken back.
    pub mode: CollectionMode,
    /// The time between two looks.
    pub interval: Duration,
    /// Seconds for which an address must look leaked, and a block be empty; 0 for never.
    pub grace_seconds: u64,
}

/// Stands for the lease as `node`, and collects while it has it, until `stop`. The task ends when the lease is given back.
pub fn start(
    store: Arc<dyn Datastore>,
    node: String,
    terms: Terms,
    status: watch::Receiver<Arc<AgentStatus>>,
    metrics: Metrics,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let look = terms.interval.min(leader::LOOK);
        let candidacy = leader::stand(Arc::clone(&store), LEASE, &node, look, stop.clone());
        let collector = Collector::new(store, node, terms, status, metrics);
        collector.run(candidacy.is_leader(), &stop).await;
        candidacy.ended().await;
    })
}

/// Who collects.
struct Collector {
    store: Arc<dyn Datastore>,
    terms: Terms,
    status: watch::Receiver<Arc<AgentStatus>>,
    metrics: Metrics,
    /// One of its own, so that pods do not wait for what is collected.
    allocator: Allocator,
    memory: Memory,
    outlook: Outlook,
    /// What a dry run has told already and is still due.
    told: BTreeSet<String>,
    /// It was said that nobody tells of pods here.
    said_that_pods_are_not_told: bool,
    /// The time of day at an instant: grace periods go by a clock that nobody sets.
    clock: (Timestamp, Instant),
}

/// Why a look has come to nothing.
#[derive(Debug, thiserror::Error)]
enum LookError {
    /// Something could not be read.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// The agent itself does not go by what the datastore says now.
    #[error("{0}")]
    Doubt(String),
    /// Something was not told whole.
    #[error("the datastore has not told all {0}")]
    Missing(Source),
}

impl Collector {
    fn new(
        store: Arc<dyn Datastore>,
        node: String,
        terms: Terms,
        status: watch::Receiver<Arc<AgentStatus>>,
        metrics: Metrics,
    ) -> Self {
        let allocator = Allocator::new(Arc::clone(&store), node);
        Self {
            store,
            terms,
            status,
            metrics,
            allocator,
            memory: Memory::default(),
            outlook: Outlook::default(),
            told: BTreeSet::new(),
            said_that_pods_are_not_told: false,
            clock: (allocation::now(), Instant::now()),
        }
    }

    /// Looks and collects while it leads, until `stop`.
    async fn run(mut self, mut leads: watch::Receiver<bool>, stop: &CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                led = leads.wait_for(|leads| *leads) => if led.is_err() {
                    return;
                },
            }
            self.begin();
            while *leads.borrow() && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.look_and_rest(leads.clone()) => {}
                }
            }
            self.end();
        }
    }

    fn begin(&mut self) {
        let Terms {
            mode,
            interval,
            grace_seconds,
        } = self.terms;
        info!(
            ?mode,
            ?interval,
            grace_seconds,
            "this node collects what is left over in the cluster"
        );
        self.memory = Memory::default();
        self.outlook = Outlook::default();
        self.told.clear();
        self.clock = (allocation::now(), Instant::now());
        self.metrics.ipam_gc_leader.set(1);
    }

    /// What another tells from now on is not told here.
    fn end(&self) {
        self.metrics.ipam_gc_leader.set(0);
        for leftover in Leftover::ALL {
            self.metrics
                .ipam_gc_candidates
                .with_label_values(&[leftover.as_str()])
                .set(0);
        }
        pools::forget(&self.metrics);
    }

    fn now(&self) -> Timestamp {
        let (then, since) = self.clock;
        let passed = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Timestamp::from_unix_nanos(then.unix_nanos().saturating_add(passed))
    }

    /// Looks as soon as the agent itself has read all of the datastore, and waits for the time of the next look; not for
    /// longer than it leads.
    async fn look_and_rest(&mut self, mut leads: watch::Receiver<bool>) {
        tokio::select! {
            // Where nobody tells the status any more, the agent is about to end.
            _ = self.status.wait_for(|status| status.datastore.in_sync) => {}
            _ = leads.wait_for(|leads| !*leads) => return,
        }
        let rest = match self.look(self.now(), &leads).await {
            Ok(()) => {
                self.metrics.ipam_gc_looks.inc();
                self.terms.interval
            }
            Err(error) => {
                self.metrics.ipam_gc_failures.inc();
                warn!(%error, "nothing is collected this time: what is left over was not to be seen for sure");
                self.terms.interval.min(RETRY)
            }
        };
        tokio::select! {
            () = sleep(rest) => {}
            _ = leads.wait_for(|leads| !*leads) => {}
        }
    }

    /// One look at everything, and what comes of it.
    async fn look(&mut self, now: Timestamp, leads: &watch::Receiver<bool>) -> Result<(), LookError> {
        let snapshot = inventory::read(&*self.store).await?;
        self.outlook.take_in(&snapshot, now, &self.metrics);
        if self.terms.mode == CollectionMode::Disabled {
            return Ok(());
        }
        self.doubt()?;
        let settings = self.settings();
        let Collection {
            memory,
            mut waiting,
            reclaims,
            missing,
            ..
        } = collect(&snapshot, settings, &self.memory, now);
        self.memory = memory;
        if let Some(missing) = missing.first() {
            return Err(LookError::Missing(*missing));
        }
        let left = match self.terms.mode {
            CollectionMode::Enabled => self.take_back(reclaims, settings, leads).await?,
            CollectionMode::DryRun | CollectionMode::Disabled => {
                self.tell(&reclaims);
                reclaims
            }
        };
        for (leftover, count) in left.iter().map(Reclaim::leftover) {
            *waiting.entry(leftover).or_default() += count;
        }
        for leftover in Leftover::ALL {
            let count = waiting.get(&leftover).copied().unwrap_or(0);
            let gauge = self
                .metrics
                .ipam_gc_candidates
                .with_label_values(&[leftover.as_str()]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        Ok(())
    }

    /// Whatever makes the agent itself hold on to what it has keeps it from taking from others.
    fn doubt(&self) -> Result<(), LookError> {
        let datastore = &self.status.borrow().datastore;
        if !datastore.in_sync {
            let doubt = "the agent has not read all of the datastore yet".to_owned();
            return Err(LookError::Doubt(doubt));
        }
        // Among them a datastore that has lost too much at once, and the last good copy that stands in for it.
        datastore
            .problem
            .clone()
            .map_or(Ok(()), |problem| Err(LookError::Doubt(problem)))
    }

    /// Asked after something was read: only then it is known what the datastore tells of.
    fn settings(&mut self) -> Settings {
        let pods_are_told = self.store.knows_pods();
        if !pods_are_told && !std::mem::replace(&mut self.said_that_pods_are_not_told, true) {
            info!(
                "this datastore does not tell of pods: no address is collected for want of one, only what nodes that are gone have \
                 left, and handles, claims and blocks that nobody uses"
            );
        }
        Settings {
            grace_seconds: self.terms.grace_seconds,
            pods_are_told,
            ..Settings::default()
        }
    }

    /// Says what a dry run would do, once.
    fn tell(&mut self, reclaims: &[Reclaim]) {
        let due: BTreeSet<String> = reclaims.iter().map(ToString::to_string).collect();
        for what in due.difference(&self.told) {
            info!(what, "dry run: this would be done");
        }
        self.told = due;
    }

    /// Takes back what is still due right before; what was not taken back.
    async fn take_back(
        &self,
        mut due: Vec<Reclaim>,
        settings: Settings,
        leads: &watch::Receiver<bool>,
    ) -> Result<Vec<Reclaim>, LookError> {
        let mut left = Vec::new();
        while !due.is_empty() && *leads.borrow() {
            let some: Vec<Reclaim> = due.drain(..due.len().min(AT_ONCE)).collect();
            let fresh = inventory::read(&*self.store).await?;
            self.doubt()?;
            let results: Vec<_> = stream::iter(some)
                .map(|reclaim| self.take_back_one(reclaim, &fresh, settings, leads))
                .buffer_unordered(AT_ONCE)
                .collect()
                .await;
            left.extend(results.into_iter().flatten());
        }
        if !due.is_empty() {
            info!(
                left = due.len(),
                "this node leads no longer: whoever does looks anew"
            );
            left.extend(due);
        }
        Ok(left)
    }

    /// Takes one thing back; gives it back itself where that was not to be.
    async fn take_back_one(
        &self,
        reclaim: Reclaim,
        fresh: &Snapshot,
        settings: Settings,
        leads: &watch::Receiver<bool>,
    ) -> Option<Reclaim> {
        if !reclaim.is_still_due(fresh, settings) {
            info!(what = %reclaim, "not done: it is in use again");
            return None;
        }
        if !*leads.borrow() {
            return Some(reclaim);
        }
        match self.allocator.act(reclaim.action()).await {
            Ok(freed) => {
                let (leftover, count) = reclaim.leftover();
                // Of addresses those count that were not free already.
                let count = match reclaim {
                    Reclaim::Addresses(_) => freed.len(),
                    _ => count,
                };
                let counter = self
                    .metrics
                    .ipam_gc_reclaims
                    .with_label_values(&[leftover.as_str()]);
                counter.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
                info!(what = %reclaim, "collected");
                None
            }
            Err(AllocationError::Plan(error)) => {
                info!(what = %reclaim, %error, "not done: it has changed since");
                None
            }
            Err(AllocationError::Datastore(error)) if error.is_conflict() => {
                debug!(what = %reclaim, %error, "not done: somebody else wrote first");
                None
            }
            Err(error) => {
                error!(what = %reclaim, %error, "cannot be collected, tried again next time");
                Some(reclaim)
            }
        }
    }
}

#[cfg(test)]
mod tests;
