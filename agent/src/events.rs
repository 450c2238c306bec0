//! What an operator must know of a node, as Events of its Node object: where people look first when pods do not start.
//!
//! A server keeps events for an hour and pays for each write. The same words are one event that is counted, written again
//! at most every ten minutes; and whatever happens, no more than a few are written a minute.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::datastore::{Datastore, NodeEvent};
use crate::status::{AgentStatus, LastError};

/// How long the same event is only counted before it is written again.
const REPEAT: Duration = Duration::from_secs(600);
/// How many events may be written at once, after a quiet time.
const BURST: u32 = 10;
/// How long it takes until one more may be.
const REFILL: Duration = Duration::from_secs(30);
/// So many different events are remembered.
const KNOWN_MAX: usize = 64;
/// Events that wait to be taken in.
const CAPACITY: usize = 16;
/// So many problems of one kind are told.
const OF_A_KIND: usize = 3;

/// What happened: a word in CamelCase, and a sentence.
pub type Happening = (&'static str, String);

/// A way to tell of what happened, and its end.
#[must_use]
pub fn channel() -> (mpsc::Sender<Happening>, mpsc::Receiver<Happening>) {
    mpsc::channel(CAPACITY)
}

/// Writes events of `node` until both sources of them are gone: what the status says is wrong, and what `told` tells.
pub async fn keep(
    store: Arc<dyn Datastore>,
    node: String,
    mut status: watch::Receiver<Arc<AgentStatus>>,
    mut told: mpsc::Receiver<Happening>,
) {
    let mut ledger = Ledger::new(Instant::now());
    let mut present = BTreeSet::new();
    loop {
        while let Some(event) = ledger.due(Instant::now()) {
            match store.record(&node, &event).await {
                Ok(()) => debug!(reason = event.reason, message = event.message, "event"),
                // What it says is in the log and in the status as well.
                Err(error) => warn!(%error, reason = event.reason, "an event is lost"),
            }
        }
        tokio::select! {
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                let now: BTreeSet<_> = problems(&status.borrow_and_update()).into_iter().collect();
                for (reason, message) in now.difference(&present) {
                    ledger.note(reason, message, Instant::now(), Timestamp::now());
                }
                present = now;
            }
            happened = told.recv() => match happened {
                Some((reason, message)) => ledger.note(reason, &message, Instant::now(), Timestamp::now()),
                None => return,
            },
            () = at(ledger.next(Instant::now())) => {}
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The last of the errors that `now` tells of and that somebody must see to: one that `former` did not tell of, else the one that
/// was the last, as long as it stands.
pub(crate) fn last_error(former: &AgentStatus, now: &AgentStatus, at: Timestamp) -> Option<LastError> {
    let (before, present) = (errors(former), errors(now));
    let is_last = |error: &&Happening| {
        let last = former.last_error.as_ref();
        last.is_some_and(|last| (last.reason.as_str(), &last.message) == (error.0, &error.1))
    };
    let new = present.iter().find(|error| !before.contains(error));
    if new.is_none() && present.iter().any(|error| is_last(&error)) {
        return former.last_error.clone();
    }
    let (reason, message) = new.or(present.first())?;
    Some(LastError {
        since: at,
        reason: (*reason).to_owned(),
        message: message.clone(),
    })
}

/// All that somebody must see to; also what no Event can tell of, since the datastore is away.
fn errors(status: &AgentStatus) -> Vec<Happening> {
    let away = status.datastore.problem.iter();
    let away = away.map(|problem| ("Datastore", problem.clone()));
    away.chain(problems(status)).collect()
}

/// What is wrong now that concerns people, as far as its words do not change by themselves.
fn problems(status: &AgentStatus) -> Vec<Happening> {
    let sources = &status.sources;
    let mismatches = sources.mismatches.iter().map(|mismatch| &mismatch.problem);
    let mut all: Vec<Happening> = Vec::new();
    all.extend(
        mismatches
            .take(OF_A_KIND)
            .map(|problem| ("WrongTunnelSource", problem.clone())),
    );
    all.extend(
        sources
            .problems
            .iter()
            .take(OF_A_KIND)
            .map(|problem| ("TunnelSource", problem.clone())),
    );
    all.extend(
        status
            .tunnel_problem
            .iter()
            .map(|problem| ("TunnelNotUp", problem.clone())),
    );
    let failed = status.routes.failed.iter().take(OF_A_KIND);
    all.extend(failed.map(|failed| ("RouteNotInKernel", format!("{}: {}", failed.route, failed.reason))));
    all.extend(
        status
            .problems
            .iter()
            .take(OF_A_KIND)
            .map(|problem| ("NodeProblem", problem.clone())),
    );
    all.extend(
        status
            .session_faults
            .iter()
            .take(OF_A_KIND)
            .map(|fault| ("SessionDown", fault.clone())),
    );
    all.extend(
        status
            .firewall
            .problem
            .iter()
            .map(|problem| ("PacketFilterNotWritten", problem.clone())),
    );
    if status.withdrawals_held > 0 {
        let held = "too much has vanished from the datastore at once: nothing is withdrawn until it is back, or until \
                    somebody confirms it with culvert node accept-withdrawal";
        all.push(("WithdrawalsHeld", held.to_owned()));
    }
    all
}

/// What has happened, how often, and what of it was written. Time is an argument.
#[derive(Debug)]
struct Ledger {
    entries: BTreeMap<Happening, Entry>,
    /// How many may be written now, as of `filled`.
    tokens: u32,
    filled: Instant,
}

#[derive(Debug)]
struct Entry {
    count: u32,
    first: Timestamp,
    last: Timestamp,
    /// What was written last, and when.
    written: Option<(u32, Instant)>,
}

impl Entry {
    /// When it is to be written, whatever else is; none when there is nothing new.
    fn due(&self) -> Option<Option<Instant>> {
        match self.written {
            None => Some(None),
            Some((count, _)) if count == self.count => None,
            Some((_, at)) => Some(Some(at + REPEAT)),
        }
    }
}

impl Ledger {
    fn new(now: Instant) -> Self {
        Self {
            entries: BTreeMap::new(),
            tokens: BURST,
            filled: now,
        }
    }

    fn note(&mut self, reason: &'static str, message: &str, now: Instant, wall: Timestamp) {
        let key = (reason, message.to_owned());
        if !self.entries.contains_key(&key) && self.entries.len() >= KNOWN_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.last);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.entries.remove(&oldest);
            }
        }
        self.refill(now);
        let entry = self.entries.entry(key).or_insert(Entry {
            count: 0,
            first: wall,
            last: wall,
            written: None,
        });
        entry.count = entry.count.saturating_add(1);
        entry.last = wall;
    }

    /// The next event to write, which then counts as written.
    fn due(&mut self, now: Instant) -> Option<NodeEvent> {
        self.refill(now);
        if self.tokens == 0 {
            return None;
        }
        let is_due = |entry: &Entry| entry.due().is_some_and(|at| at.is_none_or(|at| at <= now));
        let ((reason, message), entry) = self.entries.iter_mut().find(|(_, entry)| is_due(entry))?;
        entry.written = Some((entry.count, now));
        self.tokens -= 1;
        Some(NodeEvent {
            reason,
            message: message.clone(),
            count: entry.count,
            first: entry.first,
            last: entry.last,
        })
    }

    /// When there may be something to write.
    fn next(&self, now: Instant) -> Option<Instant> {
        let earliest = self
            .entries
            .values()
            .filter_map(Entry::due)
            .map(|at| at.unwrap_or(now))
            .min()?;
        let allowed = if self.tokens == 0 {
            self.filled + REFILL
        } else {
            now
        };
        Some(earliest.max(allowed))
    }

    fn refill(&mut self, now: Instant) {
        while self.tokens < BURST && self.filled + REFILL <= now {
            self.tokens += 1;
            self.filled += REFILL;
        }
        if self.tokens == BURST {
            self.filled = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;
    const SECOND: Duration = Duration::from_secs(1);

    fn all(ledger: &mut Ledger, now: Instant) -> Vec<(String, u32)> {
        std::iter::from_fn(|| ledger.due(now).map(|event| (event.message, event.count))).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_words_are_one_event_that_is_counted() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        ledger.note("R", "a", start, WALL);
        assert_eq!(all(&mut ledger, start), [("a".to_owned(), 1)]);
        for second in 1..=100 {
            ledger.note("R", "a", start + second * SECOND, WALL);
        }
        assert_eq!(all(&mut ledger, start + 599 * SECOND), []);
        assert_eq!(ledger.next(start + 599 * SECOND), Some(start + 600 * SECOND));
        assert_eq!(all(&mut ledger, start + 600 * SECOND), [("a".to_owned(), 101)]);
        assert_eq!(ledger.next(start + 600 * SECOND), None);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_a_few_are_written_a_minute_and_none_is_lost() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        for n in 0..15 {
            ledger.note("R", &format!("{n:02}"), start, WALL);
        }
        assert_eq!(all(&mut ledger, start).len(), 10);
        assert_eq!(ledger.next(start), Some(start + REFILL));
        assert_eq!(all(&mut ledger, start + REFILL), [("10".to_owned(), 1)]);
        assert_eq!(all(&mut ledger, start + 60 * REFILL).len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let mut ledger = Ledger::new(start);
        for n in 0..10 * KNOWN_MAX {
            ledger.note("R", &n.to_string(), start, WALL);
        }
        assert_eq!(ledger.entries.len(), KNOWN_MAX);
    }

    #[test]
    fn the_last_error_is_the_newest_that_stands_and_goes_when_it_is_over() {
        let with = |problems: &[&str], last: Option<LastError>| AgentStatus {
            session_faults: problems.iter().map(|problem| (*problem).to_owned()).collect(),
            last_error: last,
            ..AgentStatus::default()
        };
        let later = WALL + jiff::SignedDuration::from_secs(60);
        let first = last_error(&with(&[], None), &with(&["a"], None), WALL).unwrap();
        assert_eq!(
            (first.reason.as_str(), first.message.as_str(), first.since),
            ("SessionDown", "a", WALL)
        );
        let stands = last_error(&with(&["a"], Some(first.clone())), &with(&["a"], None), later);
        assert_eq!(stands, Some(first.clone()));
        let newer = last_error(&with(&["a"], Some(first)), &with(&["a", "b"], None), later).unwrap();
        assert_eq!((newer.message.as_str(), newer.since), ("b", later));
        let older = last_error(
            &with(&["a", "b"], Some(newer.clone())),
            &with(&["a"], None),
            later,
        );
        assert_eq!(older.unwrap().message, "a");
        assert_eq!(
            last_error(&with(&["b"], Some(newer)), &with(&[], None), later),
            None
        );
        let mut away = with(&[], None);
        away.datastore.problem = Some("gone".into());
        let told = last_error(&with(&[], None), &away, WALL).unwrap();
        assert_eq!(
            (told.reason.as_str(), told.message.as_str()),
            ("Datastore", "gone")
        );
    }
}
