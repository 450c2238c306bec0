//! Who of the agents does what only one may do: a Lease in the datastore, as Kubernetes' own controllers have it.
//!
//! Clocks of nodes are not compared. A lease has run out when its revision has not changed for as long as it says it is
//! held, by the watch of whoever looks; its holder stops believing in it earlier, counted from before it sent the renewal.
//! So no two lead at once as long as their clocks run at about the same speed. A holder that ends gives it back.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::api::{Key, Kind, Lease, LeaseSpec, Resource as _};
use crate::datastore::{Datastore, DatastoreError};

/// The namespace of the leases.
pub const NAMESPACE: &str = "kube-system";

/// For how long a lease is held after a renewal. What is led for is not urgent; what costs is the writing.
pub const HELD: Duration = Duration::from_secs(60);
/// For how long after it asked for a renewal the holder believes in it.
const BELIEVED: Duration = Duration::from_secs(40);
/// About how often it is renewed.
const INTERVAL: Duration = Duration::from_secs(10);
/// About how often the others look at it, at most: they are as many as the cluster has nodes.
pub const LOOK: Duration = Duration::from_secs(60);
/// How long a holder that ends may take to give it back.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// What one candidate has seen of a lease. Time is an argument.
#[derive(Clone, Debug)]
struct Candidate {
    identity: String,
    /// The revision that was seen last, and when first.
    seen: Option<(String, Instant)>,
}

/// What to do about a lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Write it, whether it is there or not: to get it, or to keep it.
    Write(LeaseSpec),
    /// Leave it to whoever holds it.
    Follow,
}

impl Candidate {
    /// What to do about the lease as it is. `wall` is what is written into it, for people to read.
    fn judge(&mut self, lease: Option<&Lease>, now: Instant, wall: Timestamp) -> Step {
        let Some(lease) = lease else {
            self.seen = None;
            return Step::Write(self.held(&LeaseSpec::default(), wall));
        };
        let revision = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == revision => *since,
            _ => now,
        };
        self.seen = Some((revision, since));
        let spec = &lease.spec;
        let held = spec
            .lease_duration_seconds
            .map_or(HELD, |seconds| Duration::from_secs(seconds.into()));
        match spec.holder() {
            Some(holder) if holder != self.identity && now < since + held => Step::Follow,
            _ => Step::Write(self.held(spec, wall)),
        }
    }

    fn held(&self, before: &LeaseSpec, wall: Timestamp) -> LeaseSpec {
        let ours = before.holder() == Some(self.identity.as_str());
        let time = micro_time(wall);
        let transitions = before.lease_transitions.unwrap_or(0);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: u32::try_from(HELD.as_secs()).ok(),
            acquire_time: before
                .acquire_time
                .clone()
                .filter(|_| ours)
                .or_else(|| Some(time.clone())),
            renew_time: Some(time),
            lease_transitions: Some(if ours || before.holder_identity.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            }),
            unknown: before.unknown.clone(),
        }
    }
}

/// Kubernetes' MicroTime: RFC 3339 with exactly six digits of a second.
fn micro_time(time: Timestamp) -> String {
    format!("{time:.6}")
}

/// A candidacy that goes on until its token is cancelled.
#[derive(Debug)]
pub struct Candidacy {
    leads: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Candidacy {
    /// Whether this candidate leads, and every change of that. Work that only the leader may do ends when it turns false.
    #[must_use]
    pub fn is_leader(&self) -> watch::Receiver<bool> {
        self.leads.clone()
    }

    /// Waits until the lease is given back, after the token was cancelled.
    pub async fn ended(self) {
        // A panic of the task has been told where it happened.
        let _ = self.task.await;
    }
}

/// Stands for the lease of this name in [`NAMESPACE`] as `identity` (the node's name), until `stop`. While another has it,
/// it is looked at about every `look`; [`LOOK`] is meant for a large cluster.
#[must_use]
pub fn stand(
    store: Arc<dyn Datastore>,
    name: &str,
    identity: &str,
    look: Duration,
    stop: CancellationToken,
) -> Candidacy {
    let (leads, reader) = watch::channel(false);
    let campaign = Campaign {
        store,
        key: Key::namespaced(Kind::Lease, Some(NAMESPACE), name),
        candidate: Candidate {
            identity: identity.to_owned(),
            seen: None,
        },
        leads,
        look,
        until: None,
    };
    Candidacy {
        leads: reader,
        task: tokio::spawn(campaign.run(stop)),
    }
}

struct Campaign {
    store: Arc<dyn Datastore>,
    key: Key,
    candidate: Candidate,
    leads: watch::Sender<bool>,
    /// How often it is looked at while another has it.
    look: Duration,
    /// For how long we believe that we lead.
    until: Option<Instant>,
}

impl Campaign {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.turn() => {}
            }
            // Candidates must not all look at once, and a renewal may fail twice before belief ends.
            let interval = if self.until.is_some() { INTERVAL } else { self.look };
            let rest = interval.mul_f64(0.75 + fastrand::f64() / 2.0);
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(rest) => {}
                () = at(self.until) => self.doubt(),
            }
        }
        self.leads.send_replace(false);
        self.give_back().await;
    }

    /// Looks at the lease and writes it if it is ours to write; for no longer than we believe in it.
    async fn turn(&mut self) {
        let began = Instant::now();
        let limit = self.until.unwrap_or(began + HELD);
        let attempt = timeout_at(limit, self.attempt(began)).await;
        match attempt {
            Ok(Ok(Some(until))) => {
                self.until = Some(until);
                if !self.leads.send_replace(true) {
                    info!(lease = %self.key, "this node leads");
                }
            }
            Ok(Ok(None)) => self.doubt_now("somebody else holds it"),
            Ok(Err(error)) if error.is_conflict() => {
                debug!(lease = %self.key, %error, "somebody else was first");
            }
            Ok(Err(error)) => warn!(lease = %self.key, %error, "cannot look after the lease"),
            Err(_) => self.doubt(),
        }
    }

    async fn attempt(&mut self, began: Instant) -> Result<Option<Instant>, DatastoreError> {
        let found = self.store.get(&self.key).await?.and_then(Lease::from_object);
        let spec = match self
            .candidate
            .judge(found.as_ref(), Instant::now(), Timestamp::now())
        {
            Step::Follow => return Ok(None),
            Step::Write(spec) => spec,
        };
        match found {
            Some(mut lease) => {
                lease.spec = spec;
                self.store.update(lease.into_object()).await?;
            }
            None => {
                let mut lease = Lease::new(self.key.name.clone(), spec);
                lease.metadata.namespace.clone_from(&self.key.namespace);
                self.store.create(lease.into_object()).await?;
            }
        }
        Ok(Some(began + BELIEVED))
    }

    /// Stops leading when the last renewal is too long ago.
    fn doubt(&mut self) {
        if self.until.is_some_and(|until| until <= Instant::now()) {
            self.doubt_now("it could not be renewed in time");
        }
    }

    fn doubt_now(&mut self, why: &str) {
        self.until = None;
        if self.leads.send_replace(false) {
            warn!(lease = %self.key, why, "this node leads no longer");
        }
    }

    /// Lets somebody else have it at once. If that fails it runs out.
    async fn give_back(&self) {
        let gave = async {
            let found = self.store.get(&self.key).await?.and_then(Lease::from_object);
            let ours = found.filter(|lease| lease.spec.holder() == Some(self.candidate.identity.as_str()));
            if let Some(mut lease) = ours {
                lease.spec.holder_identity = Some(String::new());
                lease.spec.renew_time = Some(micro_time(Timestamp::now()));
                self.store.update(lease.into_object()).await?;
            }
            Ok::<(), DatastoreError>(())
        };
        if let Ok(Err(error)) = timeout_at(Instant::now() + GIVE_BACK, gave).await {
            debug!(lease = %self.key, %error, "the lease was not given back");
        }
    }
}

/// That time; never, where there is none.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
