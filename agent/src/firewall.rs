//! Keeps the packet filter as it should be, and tells of what it refuses.
//!
//! A task of its own: the routes wait for nothing here, and a kernel without nf_tables costs them nothing. What was
//! last wanted stands while the datastore is away, and stays in the kernel when the agent ends.

use std::future::pending;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::cluster::Cluster;
use crate::dataplane::{DataplaneError, Nftables, TableChange, TableChanges, Written};
use crate::filter::{self, Refused, UnknownTunnelPeers, Wanted};
use crate::metrics::Metrics;
use crate::status::FirewallStatus;

/// How often the counter of what was refused is read.
const READING: Duration = Duration::from_secs(5);

/// The first and the longest wait before what failed is tried again, and between two repairs in a fight.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Another program that keeps out of the table for so long does not fight.
const PEACE: Duration = Duration::from_secs(60);

/// So many sources are told apart at once; whoever forges sources shall not fill the log.
const SOURCES_TOLD: usize = 8;

/// The task, as others see it.
#[derive(Debug)]
pub struct Running {
    unknown_tunnel_peers: UnknownTunnelPeers,
    wanted: watch::Sender<Option<Wanted>>,
    /// How it goes.
    pub status: watch::Receiver<FirewallStatus>,
}

/// Starts the task in the calling thread's network namespace; it ends when the answer is dropped.
#[must_use]
pub fn start(unknown_tunnel_peers: UnknownTunnelPeers, metrics: Metrics) -> Running {
    let (wanted, wanted_reader) = watch::channel(None);
    let (status, status_reader) = watch::channel(FirewallStatus::default());
    tokio::spawn(keep(wanted_reader, status, metrics));
    Running {
        unknown_tunnel_peers,
        wanted,
        status: status_reader,
    }
}

impl Running {
    /// Wants what follows from the cluster for the node `name`, known by `address`. While the cluster does not even
    /// hold that node, what was wanted before stands.
    pub fn want(&self, name: &str, address: Ipv4Addr, cluster: &Cluster) {
        if let Some(now) = filter::wanted(name, address, self.unknown_tunnel_peers, cluster) {
            self.wanted.send_if_modified(|wanted| {
                let changed = wanted.as_ref() != Some(&now);
                *wanted = Some(now);
                changed
            });
        }
    }
}

/// Makes the kernel hold what is wanted, whenever that changes or somebody else changed the table, until the sender of
/// `wanted` is dropped.
pub async fn keep(
    mut wanted: watch::Receiver<Option<Wanted>>,
    status: watch::Sender<FirewallStatus>,
    metrics: Metrics,
) {
    let mut keeper = Keeper {
        kernel: None,
        status,
        metrics,
        total: None,
        started: Instant::now(),
        refused: Refused::default(),
        foreign: None,
        apply_at: None,
        wait: RETRY.0,
        applied: None,
    };
    let mut read_at = Instant::now() + READING;
    loop {
        let changed = async {
            match &mut keeper.kernel {
                Some(kernel) => kernel.changes.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                keeper.apply_at = Some(Instant::now());
            }
            change = changed => keeper.note(change),
            () = at(keeper.apply_at) => {
                let wanted = wanted.borrow_and_update().clone();
                if let Some(wanted) = wanted {
                    keeper.apply(&wanted).await;
                    keeper.read(&wanted).await;
                } else {
                    keeper.apply_at = None;
                }
            }
            () = sleep_until(read_at) => {
                read_at = Instant::now() + READING;
                let wanted = wanted.borrow().clone();
                if let Some(wanted) = wanted {
                    keeper.read(&wanted).await;
                }
            }
        }
    }
}

struct Kernel {
    nftables: Nftables,
    changes: TableChanges,
}

impl Kernel {
    fn open() -> Result<Self, DataplaneError> {
        let nftables = Nftables::open()?;
        // Subscribed before the first reading: what happens in between is told.
        let changes = nftables.changes()?;
        Ok(Self { nftables, changes })
    }
}

struct Keeper {
    kernel: Option<Kernel>,
    status: watch::Sender<FirewallStatus>,
    metrics: Metrics,
    /// Packets refused as last read; none while a reading has nothing to be compared with.
    total: Option<u64>,
    started: Instant,
    refused: Refused,
    /// Somebody else touched the table, and it has not been compared yet.
    foreign: Option<TableChange>,
    apply_at: Option<Instant>,
    wait: Duration,
    /// When it was last applied without a fault.
    applied: Option<Instant>,
}

impl Keeper {
    fn note(&mut self, change: io::Result<TableChange>) {
        match change {
            // Its first repair is at once; in a fight they become rare.
            Ok(change) => {
                let quiet = self.applied.is_none_or(|applied| applied.elapsed() >= PEACE);
                self.wait = if quiet { RETRY.0 } else { self.wait };
                let due = self
                    .applied
                    .filter(|_| self.wait > RETRY.0)
                    .map(|applied| applied + self.wait);
                let due = due.unwrap_or_else(Instant::now).max(Instant::now());
                self.apply_at.get_or_insert(due);
                self.foreign = Some(change);
            }
            Err(error) => {
                warn!(%error, "the socket for changes of nf_tables failed; opening another");
                self.kernel = None;
                self.apply_at.get_or_insert(Instant::now() + self.wait);
            }
        }
    }

    /// Makes the kernel hold it, or says once why it does not, and tries again later.
    async fn apply(&mut self, wanted: &Wanted) {
        self.apply_at = None;
        let foreign = self.foreign.take();
        let kernel = match self.kernel.take() {
            Some(kernel) => Ok(kernel),
            None => Kernel::open(),
        };
        let written = match kernel {
            Ok(kernel) => self.kernel.insert(kernel).nftables.apply(&wanted.filter).await,
            Err(error) => Err(error),
        };
        match written {
            Ok(written) => {
                self.tell_written(written, foreign.as_ref());
                self.applied = Some(Instant::now());
                self.set_problem(None);
            }
            Err(error) => {
                self.set_problem(Some(error.to_string()));
                self.apply_at = Some(Instant::now() + self.wait);
                self.wait = (self.wait * 2).min(RETRY.1);
            }
        }
    }

    fn tell_written(&mut self, written: Written, foreign: Option<&TableChange>) {
        if written == Written::Table {
            // A new counter begins at zero.
            self.total = Some(0);
        }
        match (written, foreign) {
            (Written::Nothing, _) => debug!("the packet filter is as it should be"),
            (_, Some(change)) => {
                self.metrics.firewall_repairs.inc();
                self.wait = (self.wait * 2).min(RETRY.1);
                warn!(
                    by = change.by.as_deref(),
                    "packet filter repaired: the nftables table ip culvert was changed"
                );
            }
            (_, None) => info!(?written, "packet filter written to the nftables table ip culvert"),
        }
        if foreign.is_none() || written == Written::Nothing {
            self.wait = RETRY.0;
        }
    }

    /// A problem is logged once, and stays in the status until it is over.
    fn set_problem(&mut self, problem: Option<String>) {
        self.status.send_if_modified(|status| {
            if status.problem == problem {
                return false;
            }
            match &problem {
                Some(problem) => error!(
                    %problem,
                    "the packet filter cannot be written: what the kernel held before stands, if anything; routes go on"
                ),
                None => info!("the packet filter is as it should be again"),
            }
            status.problem = problem;
            true
        });
    }

    /// Reads the counters, and tells whose packets were refused.
    async fn read(&mut self, wanted: &Wanted) {
        let Some(kernel) = &mut self.kernel else { return };
        let total = match kernel.nftables.refused().await {
            // Not refusing at all is a choice of the configuration.
            Ok(total) => total.unwrap_or(0),
            Err(error) => return debug!(%error, "the packet filter's counters cannot be read"),
        };
        // Of a former run's packets the metric knows nothing; by source they are told all the same.
        let former = self.total.replace(total).unwrap_or(total);
        let more = if total < former { total } else { total - former };
        self.metrics.tunnel_packets_refused.inc_by(more);
        if total > 0 || self.refused.by_source().next().is_some() {
            match kernel.nftables.refused_by_source().await {
                Ok(by_source) => {
                    let bursts = self.refused.take(self.started.elapsed(), &by_source);
                    self.tell_bursts(wanted, &bursts);
                }
                Err(error) => debug!(%error, "the packet filter's counters cannot be read"),
            }
        }
        let sentences = self.refused.by_source();
        let refused: Vec<_> = sentences
            .filter_map(|(source, packets)| wanted.sentence(source, packets))
            .collect();
        self.status.send_if_modified(|status| {
            let changed = status.refused != refused;
            status.refused = refused;
            changed
        });
    }

    fn tell_bursts(&self, wanted: &Wanted, bursts: &[Ipv4Addr]) {
        let sentences = self
            .refused
            .by_source()
            .filter(|(source, _)| bursts.contains(source))
            .filter_map(|(source, packets)| wanted.sentence(source, packets));
        let sentences: Vec<_> = sentences.collect();
        for sentence in sentences.iter().take(SOURCES_TOLD) {
            warn!("refused {sentence}");
        }
        if let Some(more) = sentences.len().checked_sub(SOURCES_TOLD).filter(|more| *more > 0) {
            warn!(more, "refused tunnelled packets from other sources as well");
        }
    }
}

/// Waits until `due`; for ever without one.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
