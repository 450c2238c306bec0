//! One turn after another: take in what happened, compute what should be, make it so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use culvert_bgp::id::{Asn, Prefix};
use culvert_ipam::pool::Family;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::AgentError;
use super::answers::{self, Answering};
use super::intake::{Outlets, Remarks};
use super::measures::Measures;
use super::pool_modes::PoolModes;
use super::renumbering::Renumbering;
use super::repairs::{Circumstances, Repairs};
use super::report::{self, Observation};
use super::said::Said;
use super::sources::{SourceCheck, touches_sources};
use super::told::Told;
use crate::api::{IpPoolSpec, Key, Kind, Object};
use crate::claims::Needs;
use crate::cluster::{Cluster, ClusterChange};
use crate::dataplane::{Dataplane, DataplaneError, Netlink};
use crate::datastore::Update;
use crate::desired::{Changed, Known, Learned, Planner, Settings, Updated};
use crate::events;
use crate::fib::{Change, KernelEvent, RouteKey};
use crate::firewall;
use crate::inquiry::Inquiry;
use crate::metrics::Metrics;
use crate::page::Recent;
use crate::reconcile::{Actual, Difference, Observed, Ours, Removal};
use crate::speaker::{Command, News, Running};
use crate::status::AgentStatus;

/// The first and the longest wait before a change that the kernel refused is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// The status is told at most this often: putting it together looks at every peer.
const STATUS_INTERVAL: Duration = Duration::from_millis(100);

/// How long the connections may take to close when the agent stops.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// What an event calls for; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wake {
    /// The status is to be told anew.
    Tell,
    /// What should be is to be computed anew, and made so.
    Plan,
    /// The kernel is to be read anew before that.
    Dump,
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was told to.
    Stopped,
    /// This node is known by another address from now on.
    Renumbered(IpNet),
}

/// What is known, what should be, and whom to tell.
pub(super) struct EventLoop {
    settings: Settings,
    asn: Asn,
    ours: Ours,

    cluster: Cluster,
    in_sync: bool,
    /// What is wrong with what the datastore says.
    remarks: Remarks,
    learned: Learned,
    /// The peers have told all they know, or had their time to.
    converged: bool,
    /// What was learned and withdrawn again before that.
    withdrawn: BTreeSet<Prefix>,
    actual: Actual,
    /// `actual` is known to be out of date.
    must_dump: bool,

    planner: Planner,
    /// What the planner was not told yet.
    changed: Changed,
    /// Where the kernel is not as planned.
    difference: Difference,
    said: Said,
    sources: SourceCheck,
    pool_modes: PoolModes,
    /// The changes that the kernel refused, and why.
    failures: Vec<(Change, DataplaneError)>,
    repairs: Repairs,
    renumbering: Renumbering,
    retry: Option<Instant>,
    retry_wait: Duration,

    dataplane: Netlink,
    speaker: Running,
    told: Told,
    needs: watch::Sender<Needs>,
    firewall: firewall::Running,
    status: watch::Sender<Arc<AgentStatus>>,
    /// When the status, which has changed, is told.
    status_due: Option<Instant>,
    measures: Measures,
    recent: Recent,
}

impl EventLoop {
    #[expect(clippy::too_many_arguments, reason = "the one place where everything meets")]
    pub(super) fn new(
        settings: Settings,
        asn: Asn,
        renumbering: Renumbering,
        actual: Actual,
        dataplane: Netlink,
        speaker: Running,
        needs: watch::Sender<Needs>,
        firewall: firewall::Running,
        status: watch::Sender<Arc<AgentStatus>>,
        metrics: Metrics,
    ) -> Self {
        let ours = Ours {
            protocol: settings.protocol,
        };
        Self {
            ours,
            planner: Planner::new(settings.clone()),
            changed: Changed {
                everything: true,
                ..Changed::default()
            },
            difference: Difference::none(ours),
            settings,
            asn,
            cluster: Cluster::default(),
            in_sync: false,
            remarks: Remarks::default(),
            learned: Learned::new(),
            converged: false,
            withdrawn: BTreeSet::new(),
            actual,
            must_dump: false,
            said: Said::default(),
            sources: SourceCheck::default(),
            pool_modes: PoolModes::default(),
            failures: Vec::new(),
            repairs: Repairs::default(),
            renumbering,
            retry: None,
            retry_wait: RETRY.0,
            dataplane,
            speaker,
            told: Told::default(),
            needs,
            firewall,
            status,
            status_due: None,
            measures: Measures::new(metrics),
            recent: Recent::default(),
        }
    }

    /// Runs until `stop`, until this node has another address, or until something that the agent cannot run without is gone.
    pub(super) async fn run(
        mut self,
        intake: Outlets,
        mut kernel_events: mpsc::Receiver<KernelEvent>,
        asked: &mut mpsc::Receiver<Inquiry>,
        stop: &CancellationToken,
    ) -> Result<Ended, AgentError> {
        let Outlets {
            mut updates,
            mut remarks,
        } = intake;
        let gone = |task| AgentError::TaskEnded { task };
        let ended = loop {
            let (retry_due, status_due) = (at(self.retry), at(self.status_due));
            let renumbering_due = at(self.renumbering.due());
            let (sources_due, fight_due) = (at(self.sources.due()), at(self.repairs.fights().deadline()));
            let wake = tokio::select! {
                () = stop.cancelled() => break Ended::Stopped,
                update = updates.recv() => {
                    self.take_updates(update.ok_or(gone("watch of the datastore"))?, &mut updates)
                }
                event = kernel_events.recv() => {
                    self.take_kernel_events(&event.ok_or(gone("watch of the kernel"))?, &mut kernel_events)
                }
                news = self.speaker.news.recv() => self.take_news(news.ok_or(gone("BGP speaker"))?),
                changed = self.speaker.peers.changed() => {
                    changed.map(|()| Wake::Tell).map_err(|_| gone("BGP speaker"))?
                }
                changed = remarks.changed() => {
                    changed.map_err(|_| gone("watch of the datastore"))?;
                    self.remarks = remarks.borrow_and_update().clone();
                    Wake::Tell
                }
                changed = self.firewall.status.changed() => {
                    changed.map(|()| Wake::Tell).map_err(|_| gone("packet filter"))?
                }
                Some(inquiry) = asked.recv() => {
                    self.answer(inquiry).await;
                    continue;
                }
                () = retry_due => Wake::Dump,
                () = fight_due => Wake::Plan,
                () = sources_due => {
                    let ask = |peers| self.dataplane.outer_sources(peers);
                    self.sources.ask(&self.settings, &self.actual, ask);
                    Wake::Tell
                }
                () = status_due => {
                    self.publish_status();
                    continue;
                }
                () = renumbering_due => match self.renumbering.settled(Instant::now()) {
                    Some(address) => break Ended::Renumbered(address),
                    None => continue,
                },
            };
            self.follow(wake).await;
        };
        self.stop_speaker().await;
        Ok(ended)
    }

    /// Does what an event calls for.
    async fn follow(&mut self, wake: Wake) {
        self.must_dump |= wake == Wake::Dump;
        if self.must_dump && wake >= Wake::Plan {
            self.dump().await;
        }
        // On an old picture the difference would be wrong, and the retry that is due would be forgotten.
        if wake >= Wake::Plan && !self.must_dump {
            self.turn().await;
        }
        self.status_due
            .get_or_insert_with(|| Instant::now() + STATUS_INTERVAL);
    }

    /// Takes in an update and all that wait behind it.
    fn take_updates(&mut self, first: Update, waiting: &mut mpsc::Receiver<Update>) -> Wake {
        let mut changed = self.take_update(first);
        while let Ok(update) = waiting.try_recv() {
            changed |= self.take_update(update);
        }
        if changed { Wake::Plan } else { Wake::Tell }
    }

    /// Takes in an event and all that wait behind it.
    fn take_kernel_events(&mut self, first: &KernelEvent, waiting: &mut mpsc::Receiver<KernelEvent>) -> Wake {
        let mut observed = self.actual.observe(first);
        while let Ok(event) = waiting.try_recv() {
            observed = observed.max(self.actual.observe(&event));
        }
        if observed != Observed::Unchanged {
            self.sources.ask_soon();
        }
        match observed {
            Observed::Unchanged => Wake::Tell,
            Observed::Changed => Wake::Plan,
            Observed::MustDump => Wake::Dump,
        }
    }

    /// Whether the update changes what should be.
    fn take_update(&mut self, update: Update) -> bool {
        if let Update::Upsert(object) = &update
            && let Object::Node(node) = object.as_ref()
            && node.metadata.name == self.settings.node
        {
            self.renumbering.take(node);
        }
        let (change, key) = match update {
            Update::Upsert(object) => (self.cluster.upsert(&object), object.key()),
            Update::Delete(key) => (self.cluster.remove(&key), key),
            Update::InSync => {
                info!("the datastore has told all it has");
                self.in_sync = true;
                return true;
            }
            // The intake makes a remark of it.
            Update::Problem(_) => return false,
        };
        if change != ClusterChange::Nothing {
            self.note_claims(&key);
        }
        self.changed.cluster = self.changed.cluster.max(change);
        change > ClusterChange::Usage
    }

    /// Wakes the claims when something they rest on changed.
    fn note_claims(&mut self, key: &Key) {
        let own_node = key.kind == Kind::Node && key.name == self.settings.node;
        if own_node || matches!(key.kind, Kind::IpPool | Kind::BlockAffinity) {
            self.needs.send_modify(|needs| needs.generation += 1);
        }
    }

    fn take_news(&mut self, news: News) -> Wake {
        self.measures.heard(&news);
        let wake = if news.routes.is_empty() && (self.converged || !news.converged) {
            Wake::Tell
        } else {
            Wake::Plan
        };
        for (prefix, best) in news.routes {
            self.changed.learned.insert(prefix);
            if best.is_empty() {
                if self.learned.remove(&prefix).is_some() && !self.converged {
                    self.withdrawn.insert(prefix);
                }
            } else {
                self.withdrawn.remove(&prefix);
                self.learned.insert(prefix, best);
            }
        }
        if news.converged && !self.converged {
            // What a former run left counts no longer as a way.
            self.changed.everything |= self.planner.rests_on_former_run(&self.actual);
            self.converged = true;
        }
        wake
    }

    /// Reads the kernel anew. When that fails the last picture stands, and it is tried again.
    async fn dump(&mut self) {
        let began = Instant::now();
        let dumped = self.dataplane.dump().await;
        self.measures.netlink("dump", began);
        match dumped {
            Ok(snapshot) => {
                self.actual = Actual::new(snapshot);
                self.changed.everything = true;
                self.must_dump = false;
            }
            Err(error) => {
                error!(%error, "cannot read the kernel's state");
                self.retry_later();
            }
        }
    }

    /// Computes what should be, tells the speaker, and makes the kernel hold it.
    async fn turn(&mut self) {
        // On a part of what there is, everything else would look unwanted.
        if !self.in_sync {
            return;
        }
        let local = self.settings.local();
        if self
            .renumbering
            .observe(local, &self.actual, &self.cluster, Instant::now())
        {
            self.state_needs();
        }
        let updated = self.plan();
        report::say_rejected(&updated.rejected);
        if updated.beyond_routes {
            // The peers first: they wait for it, and there may be a thousand.
            self.told.tell(self.planner.plan(), &self.speaker).await;
            let plan = self.planner.plan();
            self.said.say_new(plan, &self.cluster, &self.actual);
            self.sources.ask_about(&plan.tunnelled_to);
            let address = IpAddr::V4(self.settings.address);
            for words in self.pool_modes.note(&self.cluster, address, &self.actual) {
                warn!("{words}");
            }
            self.state_needs();
            self.firewall
                .want(&self.settings.node, self.settings.address, &self.cluster);
        }
        let removal = if self.converged {
            Removal::Now
        } else {
            Removal::Later
        };
        let desired = &self.planner.plan().desired;
        let mut changes = self.difference.steps(desired, &self.actual, removal);
        if removal == Removal::Later {
            // What a peer has told and taken back in this run is no route of a former one that may yet come.
            let keys = self.withdrawn.iter().map(|prefix| RouteKey::main(prefix.net()));
            changes.extend(self.difference.deletions_of(keys, &self.actual));
        } else {
            self.withdrawn.clear();
        }
        let circumstances = Circumstances {
            new: &updated.keys,
            failures: &self.failures,
            actual: &self.actual,
            ours: self.ours,
            metrics: &self.measures.metrics,
        };
        self.repairs.judge(&mut changes, &circumstances);
        if updated.beyond_routes {
            self.repairs.plan_rules(&self.planner.plan().desired.rules);
        }
        self.apply(changes).await;
        self.measures.turned(self.failures.len());
    }

    /// Brings the plan and the difference up to date with all that has happened.
    fn plan(&mut self) -> Updated {
        let mut changed = std::mem::take(&mut self.changed);
        changed.kernel = self.actual.take_touched();
        let known = Known {
            cluster: &self.cluster,
            learned: &self.learned,
            actual: &self.actual,
            converged: self.converged,
        };
        let updated = self.planner.update(known, &changed);
        let desired = &self.planner.plan().desired;
        if changed.everything {
            self.difference = Difference::whole(desired, &self.actual, self.ours);
        } else {
            for key in updated.keys.union(&changed.kernel.routes) {
                self.difference.look_at(key, desired, &self.actual);
            }
        }
        self.measures.planned(changed.learned);
        updated
    }

    fn state_needs(&self) {
        let pools = || self.cluster.pools().map(|(_, pool)| pool);
        let enabled = || pools().filter(|pool| !pool.disabled);
        // A block of IPv6 is of no use to a node that cannot be reached by it.
        let is_known_by_v6 = self.settings.speaking.address_v6.is_some();
        let now = Needs {
            block: enabled().any(|pool| pool.cidr.addr().is_ipv4()),
            block_v6: is_known_by_v6 && self.cluster.gives_ipv6(),
            tunnel_address: enabled().any(IpPoolSpec::may_tunnel),
            address_is_gone: self.renumbering.is_gone(Family::V4),
            address_v6_is_gone: self.renumbering.is_gone(Family::V6),
            generation: 0,
        };
        self.needs.send_if_modified(|needs| {
            let now = Needs {
                generation: needs.generation,
                ..now
            };
            let changed = *needs != now;
            *needs = now;
            changed
        });
    }

    async fn apply(&mut self, changes: Vec<Change>) {
        let told: BTreeSet<String> = self
            .failures
            .drain(..)
            .map(|(_, error)| error.to_string())
            .collect();
        self.retry = None;
        if changes.is_empty() {
            self.retry_wait = RETRY.0;
            return;
        }
        let began = Instant::now();
        let results = self.dataplane.apply(&changes).await;
        self.measures.netlink("apply", began);
        let total = changes.len();
        if changes.iter().any(touches_sources) {
            self.sources.ask_soon();
        }
        for (change, result) in changes.into_iter().zip(results) {
            match result {
                Ok(()) => {
                    debug!(?change, "applied");
                    self.repairs.note_switch(&change, &self.actual);
                    self.measures.applied(&change);
                    self.actual.applied(&change);
                    self.look_at_route_of(&change);
                }
                Err(error) => {
                    // The same answer to the same change is told once, however often it is tried.
                    if told.contains(&error.to_string()) {
                        debug!(%error, "the kernel refused a change again");
                    } else {
                        error!(%error, "the kernel refused a change");
                    }
                    self.measures.metrics.route_errors.inc();
                    self.failures.push((change, error));
                }
            }
        }
        if total > self.failures.len() {
            debug!(changes = total, failed = self.failures.len(), "kernel updated");
        }
        if self.failures.is_empty() {
            self.retry_wait = RETRY.0;
        } else {
            self.retry_later();
        }
    }

    fn look_at_route_of(&mut self, change: &Change) {
        if let Change::ReplaceRoute(route) | Change::DeleteRoute(route) = change {
            let desired = &self.planner.plan().desired;
            self.difference.look_at(&route.key, desired, &self.actual);
        }
    }

    /// Tries again, from a new dump, after a wait that doubles.
    fn retry_later(&mut self) {
        self.retry = Some(Instant::now() + self.retry_wait);
        self.retry_wait = (self.retry_wait * 2).min(RETRY.1);
    }

    fn publish_status(&mut self) {
        self.status_due = None;
        let former = Arc::clone(&self.status.borrow());
        let mut status = report::status(&Observation {
            former: &former,
            settings: &self.settings,
            asn: self.asn,
            cluster: &self.cluster,
            in_sync: self.in_sync,
            remarks: &self.remarks,
            converged: self.converged,
            actual: &self.actual,
            plan: self.planner.plan(),
            difference: &self.difference,
            failures: &self.failures,
            fights: self.repairs.fights(),
            renumbering: &self.renumbering,
            peers: &self.speaker.peers.borrow(),
            listening: self.speaker.listening.borrow().as_ref(),
            sources: &self.sources,
            firewall: self.firewall.status.borrow().clone(),
        });
        let rejected = self.planner.plan().rejected.len();
        let rejected = i64::try_from(rejected).unwrap_or(i64::MAX);
        self.measures.metrics.routes_rejected.set(rejected);
        let now = Timestamp::now();
        status.last_error = events::last_error(&former, &status, now);
        self.recent.note(&former, &status, now);
        self.status.send_replace(Arc::new(status));
    }

    async fn answer(&self, inquiry: Inquiry) {
        let known = Answering {
            settings: &self.settings,
            cluster: &self.cluster,
            plan: self.planner.plan(),
            actual: &self.actual,
            learned: &self.learned,
            difference: &self.difference,
            failures: &self.failures,
            fights: self.repairs.fights(),
            undone: self.repairs.undone(),
            status: &self.status.borrow().clone(),
            recent: &self.recent,
        };
        answers::give(known, &self.speaker, inquiry).await;
    }

    async fn stop_speaker(&mut self) {
        let (done, stopped) = oneshot::channel();
        if self.speaker.commands.send(Command::Stop { done }).await.is_ok() {
            let _ = timeout(STOP_TIMEOUT, stopped).await;
        }
    }
}

/// Waits until `due`; for ever without one.
pub(super) async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
