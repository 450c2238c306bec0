//! One question to the agents of all nodes at once: by way of the API server, for somebody who has only a kubeconfig, or
//! directly, where one reaches the nodes.
//!
//! Nobody is waited for too long: each node has its time, and all of them together have theirs. A node that does not answer
//! is there all the same, with the reason in words.

mod agents;
mod lines;
mod matrix;
mod one;
mod state;

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

/// Asks every node `question`, whose answer is `T`; the answers are in the order of the nodes.
pub async fn ask<T: DeserializeOwned>(agents: &Agents, question: Question, terms: Terms) -> Vec<Answered<T>> {
    let deadline = Instant::now() + terms.all;
    let target = question.target();
    let asked = stream::iter(agents.members().iter().cloned().enumerate()).map(|(at, member)| {
        let target = &target;
        async move { (at, ask_one(agents, member, target, terms, deadline).await) }
    });
    let mut answered: Vec<_> = asked.buffer_unordered(terms.at_once.max(1)).collect().await;
    answered.sort_by_key(|(at, _)| *at);
    answered.into_iter().map(|(_, answered)| answered).collect()
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
