//! One question to the agents of all nodes at once: by way of the API server, for somebody who has only a kubeconfig, or
//! directly, where one reaches the nodes.
//!
//! Nobody is waited for too long: each node has its time, and all of them together have theirs. A node that does not answer
//! is there all the same, with the reason in words. Where many are silent, as when a zone is cut off, they keep none of the
//! others from being asked: each is waited for a little at first, and asked again in what time is left.

mod agents;
mod lines;
mod matrix;
mod one;
mod state;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

pub use self::agents::Agents;
pub use self::one::{NoSuchNode, OneAgent};
pub use self::state::{ClusterStatus, NodeState, SMALL};
use crate::http::{self, Question, Unanswered};

/// How long it may take, and how many are asked at once.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// For one node.
    pub each: Duration,
    /// For all of them.
    pub all: Duration,
    /// So many nodes are asked at once.
    pub at_once: usize,
}

/// A node, and how its agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: String,
    /// The address that it advertises, or else its first internal one.
    pub address: Option<IpAddr>,
    /// How its agent is reached, or why it is not.
    pub way: Result<Way, Unanswered>,
}

/// How an agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the API server: its pod, and the port.
    Proxy(String, u16),
    /// At its address.
    Direct(SocketAddr),
}

/// What came of asking one node.
#[derive(Clone, Debug)]
pub struct Answered<T> {
    /// The node.
    pub member: Member,
    /// Its answer, or why there is none.
    pub outcome: Result<T, Unanswered>,
    /// When it was asked, by the clock of the one who asks.
    pub sent: Timestamp,
    /// How long it took.
    pub took: Duration,
}

impl<T> Answered<T> {
    /// Whether it might have answered with more time.
    fn is_late(&self) -> bool {
        matches!(self.outcome, Err(Unanswered::Timeout(_)))
    }

    /// How far the clock of the node is ahead of the one who asked, and by how much that may be wrong, when its answer says
    /// `told`: it was given at some moment between the question and its arrival.
    #[must_use]
    pub fn clock(&self, told: Timestamp) -> Clock {
        let took = SignedDuration::try_from(self.took).unwrap_or(SignedDuration::MAX);
        let half = took / 2;
        Clock {
            ahead: told.duration_since(self.sent) - half,
            error: half,
        }
    }
}

/// How far a clock is ahead of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// By so much; negative where it is behind.
    pub ahead: SignedDuration,
    /// It may be so much more or less.
    pub error: SignedDuration,
}

/// Where not all of many silent nodes can be waited for, this is the least that each is given at first: far more than an
/// answer takes, the doctor's look at a node included.
const AT_FIRST: Duration = Duration::from_secs(1);

impl Terms {
    /// How long each of so many nodes is waited for, so that even silent ones take no more than `time` together; but not less
    /// than `least`.
    fn patience(&self, nodes: usize, time: Duration, least: Duration) -> Duration {
        let turns = u32::try_from(nodes.div_ceil(self.at_once.max(1))).unwrap_or(u32::MAX);
        (time / turns.max(1)).max(least).min(self.each)
    }
}

/// Asks every node `question`, whose answer is `T`; the answers are in the order of the nodes.
pub async fn ask<T: DeserializeOwned>(agents: &Agents, question: Question, terms: Terms) -> Vec<Answered<T>> {
    let deadline = Instant::now() + terms.all;
    let target = question.target();
    let round = async |members: Vec<(usize, Member)>, patience| -> Vec<(usize, Answered<T>)> {
        let terms = Terms {
            each: patience,
            ..terms
        };
        let asked = stream::iter(members).map(|(at, member)| {
            let target = &target;
            async move { (at, ask_one(agents, member, target, terms, deadline).await) }
        });
        asked.buffer_unordered(terms.at_once.max(1)).collect().await
    };
    let members: Vec<(usize, Member)> = agents.members().iter().cloned().enumerate().collect();
    let first = terms.patience(members.len(), terms.all / 2, AT_FIRST);
    let mut answered: BTreeMap<usize, Answered<T>> = round(members, first).await.into_iter().collect();
    let late = answered.iter().filter(|(_, answered)| answered.is_late());
    let late: Vec<(usize, Member)> = late
        .map(|(at, answered)| (*at, answered.member.clone()))
        .collect();
    let left = deadline.saturating_duration_since(Instant::now());
    let second = terms.patience(late.len(), left, first);
    if second > first {
        let again = round(late, second).await.into_iter();
        // Whose turn has not come again was silent for as long as before.
        answered.extend(again.filter(|(_, again)| !matches!(again.outcome, Err(Unanswered::NotAsked(_)))));
    }
    answered.into_values().collect()
}

async fn ask_one<T: DeserializeOwned>(
    agents: &Agents,
    member: Member,
    target: &str,
    terms: Terms,
    deadline: Instant,
) -> Answered<T> {
    let (sent, begun) = (Timestamp::now(), Instant::now());
    let outcome = match &member.way {
        Err(reason) => Err(reason.clone()),
        Ok(_) if begun >= deadline => Err(Unanswered::NotAsked(terms.all.as_secs())),
        Ok(way) => {
            let until = deadline.min(begun + terms.each);
            match timeout_at(until, agents.get(way, target)).await {
                Ok(Ok((code, body))) => http::read(code, &body),
                Ok(Err(reason)) => Err(reason),
                Err(_) => Err(Unanswered::Timeout(
                    until.saturating_duration_since(begun).as_secs(),
                )),
            }
        }
    };
    Answered {
        member,
        outcome,
        sent,
        took: begun.elapsed(),
    }
}

#[cfg(test)]
mod tests;
