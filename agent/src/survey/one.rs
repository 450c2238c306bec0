//! One agent of a cluster, asked again and again.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::{Agents, Member, Terms, ask_one};
use crate::cni::Problem;
use crate::http::{NoView, Question, Unanswered, ViewSource};

/// So many nodes are named where one is asked for that is not there.
const NODES_NAMED: usize = 8;

/// The agent of one node.
#[derive(Clone)]
pub struct OneAgent {
    agents: Arc<Agents>,
    member: Member,
    patience: Duration,
}

/// There is no such node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cluster has no node {node:?}; it has {known}")]
pub struct NoSuchNode {
    /// Who was asked for.
    node: String,
    /// The first of those that there are, and how many more.
    known: String,
}

impl OneAgent {
    /// That of `node` among `agents`; an answer may take it so long.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn of(agents: Agents, node: &str, patience: Duration) -> Result<Self, NoSuchNode> {
        let member = agents.members().iter().find(|member| member.node == node);
        match member.cloned() {
            Some(member) => Ok(Self {
                agents: Arc::new(agents),
                member,
                patience,
            }),
            None => Err(NoSuchNode {
                node: node.to_owned(),
                known: named(agents.members()),
            }),
        }
    }

    /// Its answer to `question`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ask<T: DeserializeOwned>(&self, question: Question) -> Result<T, Unanswered> {
        let terms = Terms {
            each: self.patience,
            all: self.patience,
            at_once: 1,
        };
        let deadline = Instant::now() + self.patience;
        let target = question.target();
        let answered = ask_one(&self.agents, self.member.clone(), &target, terms, deadline).await;
        answered.outcome
    }
}

fn named(members: &[Member]) -> String {
    let first: Vec<&str> = members
        .iter()
        .take(NODES_NAMED)
        .map(|member| member.node.as_str())
        .collect();
    match members.len().saturating_sub(NODES_NAMED) {
        0 if first.is_empty() => "none".to_owned(),
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

impl ViewSource for OneAgent {
    async fn view(&self) -> Result<Value, NoView> {
        self.ask(Question::View).await.map_err(|reason| {
            let problem = Problem {
                reason: format!("node {}: {reason}", self.member.node),
                retry: true,
            };
            match reason {
                Unanswered::Refused(_) => NoView::Refused(problem),
                _ => NoView::Unheard(problem),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agents(count: usize) -> Agents {
        let member = |n: usize| Member {
            node: format!("n{n}"),
            address: None,
            way: Err(Unanswered::NoPod),
        };
        Agents::of((1..=count).map(member).collect())
    }

    #[tokio::test]
    async fn a_node_without_an_agent_is_told_with_the_reason() {
        let one = OneAgent::of(agents(2), "n2", Duration::from_secs(60))
            .ok()
            .unwrap();
        assert_eq!(one.ask::<Value>(Question::View).await, Err(Unanswered::NoPod));
        let Err(NoView::Unheard(problem)) = one.view().await else {
            panic!("a view of an agent that there is none of")
        };
        assert_eq!(problem.reason, format!("node n2: {}", Unanswered::NoPod));
    }

    #[test]
    fn a_node_that_there_is_none_of_is_told_with_those_that_there_are() {
        for (count, words) in [
            (0, "the cluster has no node \"n99\"; it has none"),
            (2, "the cluster has no node \"n99\"; it has n1, n2"),
            (
                10,
                "the cluster has no node \"n99\"; it has n1, n2, n3, n4, n5, n6, n7, n8 and 2 more",
            ),
        ] {
            let error = OneAgent::of(agents(count), "n99", Duration::ZERO).err().unwrap();
            assert_eq!(error.to_string(), words);
        }
    }
}
