//! Group commit: the requests of a node, in one task. Those that wait while a write is under way share the next one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_ipam::allocator::{Change, Object as Spec, Outcome, Plan, Read, Request, Step, Write, plan};
use culvert_ipam::error::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use super::AllocationError;
use super::known::{Known, Refused, api_key, now};
use super::policy::PoolChoice;
use crate::api::Key;
use crate::datastore::{Datastore, DatastoreError};
use crate::metrics::Metrics;

/// Refused writes of one object after which the requests are given up, as in Calico.
const MAX_CONFLICTS: u32 = 100;

/// Requests that are planned together: as many as have their handles written at once. Those of a larger batch would wait for
/// each other; so the first are answered, and their pods wired, while the next are written.
const MAX_BATCH: usize = super::known::AT_ONCE;

/// How long what was read is gone by while requests never stop coming. Between two bursts nothing is remembered.
const MAX_AGE: Duration = Duration::from_secs(5);

/// What somebody asks for.
#[derive(Debug)]
pub(super) struct Ask {
    /// The request, without what depends on the pools.
    pub(super) request: Request,
    /// From pools only whose packets are tunnelled.
    pub(super) tunnelled: bool,
    /// The labels of the namespace that it is for.
    pub(super) namespace: Option<BTreeMap<String, String>>,
}

impl Ask {
    /// What it asks for, in a word.
    pub(super) fn kind(&self) -> &'static str {
        match self.request {
            Request::Assign(_) => "assign",
            Request::Release(_) => "release",
            Request::Claim(_) => "claim",
            Request::Unclaim(_) => "unclaim",
        }
    }

    /// One that does not depend on the pools.
    pub(super) fn of(request: Request) -> Self {
        Self {
            request,
            tunnelled: false,
            namespace: None,
        }
    }
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    /// The addresses that were given back by it.
    pub(super) freed: Vec<IpAddr>,
}

type Answered = oneshot::Sender<Result<Answer, AllocationError>>;

/// Somebody who asked, until they are answered.
#[derive(Debug)]
pub(super) struct Waiting {
    ask: Ask,
    answered: Option<Answered>,
    freed: Vec<IpAddr>,
}

impl Waiting {
    pub(super) fn new(ask: Ask, answered: Answered) -> Self {
        Self {
            ask,
            answered: Some(answered),
            freed: Vec::new(),
        }
    }

    fn answer(&mut self, outcome: Result<Outcome, AllocationError>) {
        let freed = std::mem::take(&mut self.freed);
        if let Some(answered) = self.answered.take() {
            // Who asked may have gone away meanwhile; what was done for them stands, and a release of theirs finds it.
            let _ = answered.send(outcome.map(|outcome| Answer { outcome, freed }));
        }
    }
}

/// The requests of a node.
pub(super) struct Queue {
    store: Arc<dyn Datastore>,
    node: String,
    metrics: Option<Metrics>,
    requests: mpsc::Receiver<Waiting>,
    waiting: Vec<Waiting>,
    /// Requests at the front of `waiting` that are done one by one, since together one of them spoiled it for the others.
    alone: usize,
}

impl Queue {
    pub(super) fn new(
        store: Arc<dyn Datastore>,
        node: String,
        metrics: Option<Metrics>,
        requests: mpsc::Receiver<Waiting>,
    ) -> Self {
        Self {
            store,
            node,
            metrics,
            requests,
            waiting: Vec::new(),
            alone: 0,
        }
    }

    /// Does what is asked until nobody is left who could ask.
    pub(super) async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match self.requests.recv().await {
                    Some(first) => self.waiting.push(first),
                    None => return,
                }
            }
            if let Err(error) = self.serve().await {
                self.fail(&error);
            }
        }
    }

    /// Plans and does steps until nobody waits, or what was read is old.
    ///
    /// # Errors
    /// What ends all requests that are under way.
    async fn serve(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let (mut choice, mut known, mut is_recalled) = self.basis().await?;
        let mut conflicts = BTreeMap::new();
        while began.elapsed() < MAX_AGE {
            self.take_in();
            let batch = self.batch(&choice);
            // With nobody left there may still be counts of handles to lower after what was given back.
            let Plan { outcomes, step } = plan(known.view(), &batch, now());
            if is_recalled && needs_reading(&outcomes, &step) {
                choice = PoolChoice::read(&*self.store, &self.node).await?;
                known.recall_no_more(choice.policy());
                is_recalled = false;
                continue;
            }
            let progress = self.answer(outcomes);
            match step {
                Step::Read(reads) => known.read(reads).await?,
                Step::Write(changes) => {
                    self.note_claims(&changes);
                    let (freed, refused) = known.write(changes).await?;
                    for freed in freed {
                        if let Some(waiting) = self.waiting.get_mut(freed.request) {
                            waiting.freed.push(freed.address);
                        }
                    }
                    self.note(&refused, &mut conflicts)?;
                }
                Step::Done if batch.is_empty() => return Ok(()),
                Step::Done if progress => {}
                Step::Done => return Err(Failure::Stuck),
            }
            self.forget_answered();
        }
        Ok(())
    }

    /// What is gone by at first: what the watch has told, or else what is read; and whether it is the former.
    async fn basis(&self) -> Result<(PoolChoice, Known, bool), DatastoreError> {
        let Some(mut recalled) = self.store.recall(&self.node) else {
            let choice = PoolChoice::read(&*self.store, &self.node).await?;
            let known = Known::new(Arc::clone(&self.store), choice.policy());
            return Ok((choice, known, false));
        };
        let affinities = std::mem::take(&mut recalled.affinities);
        let choice = PoolChoice::of(recalled);
        let mut known = Known::new(Arc::clone(&self.store), choice.policy());
        known.recall(&self.node, affinities);
        Ok((choice, known, true))
    }

    /// Takes in those who asked meanwhile.
    fn take_in(&mut self) {
        while self.waiting.len() < MAX_BATCH
            && let Ok(next) = self.requests.try_recv()
        {
            self.waiting.push(next);
        }
    }

    /// The requests that are planned together now.
    fn batch(&self, choice: &PoolChoice) -> Vec<Request> {
        let count = if self.alone > 0 { 1 } else { self.waiting.len() };
        let together = self.waiting.iter().take(count);
        together
            .map(|waiting| {
                let Ask {
                    request,
                    tunnelled,
                    namespace,
                } = &waiting.ask;
                let mut request = request.clone();
                if let Request::Assign(assign) = &mut request {
                    assign.excluded = choice.excluded(*tunnelled, namespace.as_ref());
                }
                request
            })
            .collect()
    }

    /// Answers those whose requests have come to something; whether there are any.
    fn answer(&mut self, outcomes: Vec<Option<Result<Outcome, Error>>>) -> bool {
        let mut any = false;
        for (waiting, outcome) in self.waiting.iter_mut().zip(outcomes) {
            if let Some(outcome) = outcome {
                waiting.answer(outcome.map_err(AllocationError::from));
                any = true;
            }
        }
        any
    }

    /// Only after the step: its changes count the requests of the batch.
    fn forget_answered(&mut self) {
        let first_is_answered = self.waiting.first().is_some_and(|first| first.answered.is_none());
        if self.alone > 0 && first_is_answered {
            self.alone -= 1;
        }
        self.waiting.retain(|waiting| waiting.answered.is_some());
    }

    /// From the first write of a claim on, somebody waits for the block's route at the peers.
    fn note_claims(&self, changes: &[Change]) {
        let Some(metrics) = &self.metrics else { return };
        for change in changes {
            if let Write::Create {
                object: Spec::Affinity(affinity),
                ..
            } = &change.write
            {
                metrics.claims.start(affinity.cidr);
            }
        }
    }

    fn note(&self, refused: &[Key], conflicts: &mut BTreeMap<Key, u32>) -> Result<(), Failure> {
        if let Some(metrics) = &self.metrics {
            metrics.ipam_conflicts.inc_by(refused.len() as u64);
        }
        for key in refused {
            let tries = conflicts.entry(key.clone()).or_default();
            *tries += 1;
            debug!(node = %self.node, %key, tries, "somebody else wrote first");
            if *tries >= MAX_CONFLICTS {
                return Err(Failure::Contended(key.clone(), *tries));
            }
        }
        Ok(())
    }

    /// Answers with an error: the one who asks alone, all that are under way, or, where one of them may be the cause, nobody
    /// yet, and they are done one by one.
    fn fail(&mut self, failure: &Failure) {
        self.forget_answered();
        if let Failure::Datastore(error) = failure
            && matches!(**error, DatastoreError::Invalid { .. })
            && self.alone == 0
            && self.waiting.len() > 1
        {
            self.alone = self.waiting.len();
            return;
        }
        let count = if self.alone > 0 { 1 } else { self.waiting.len() };
        for waiting in self.waiting.iter_mut().take(count) {
            waiting.answer(Err(failure.to_error(&self.node)));
        }
        self.forget_answered();
    }
}

/// Whether a plan made by a memory has to be made anew by what is read: a memory is no reason to refuse anybody, nor to look
/// for a block to claim.
fn needs_reading(outcomes: &[Option<Result<Outcome, Error>>], step: &Step) -> bool {
    let refuses = outcomes.iter().flatten().any(Result::is_err);
    let lists = |read: &Read| matches!(read, Read::List(_));
    refuses || matches!(step, Step::Read(reads) if reads.iter().any(lists))
}

/// What ends all requests that are under way.
#[derive(Debug)]
enum Failure {
    Datastore(Arc<DatastoreError>),
    Contended(Key, u32),
    /// Nothing is left to do, and yet there are requests without an outcome.
    Stuck,
}

impl From<DatastoreError> for Failure {
    fn from(error: DatastoreError) -> Self {
        Self::Datastore(Arc::new(error))
    }
}

impl From<Refused> for Failure {
    fn from(Refused { key, error }: Refused) -> Self {
        debug!(key = %api_key(&key), %error, "write failed");
        error.into()
    }
}

impl Failure {
    fn to_error(&self, node: &str) -> AllocationError {
        let node = node.to_owned();
        match self {
            Self::Datastore(error) => AllocationError::Datastore(Arc::clone(error)),
            Self::Contended(key, tries) => AllocationError::Contended {
                node,
                key: key.clone(),
                tries: *tries,
            },
            Self::Stuck => AllocationError::Outcome {
                node,
                request: "a batch",
                outcome: "nothing",
            },
        }
    }
}
