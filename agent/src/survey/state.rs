//! The state of a cluster: what its agents say of themselves, put together.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use super::Answered;
use crate::status::{AgentStatus, PeerStatus};

/// A cluster up to so many nodes is small: every session of it is shown.
pub const SMALL: usize = 16;

/// What all nodes of a cluster say of themselves.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// When they were asked.
    pub asked: Timestamp,
    /// How the whole of it is.
    pub summary: Summary,
    /// The nodes, by name.
    pub nodes: Vec<NodeState>,
}

/// How the whole of a cluster is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of their agents have answered.
    pub answered: usize,
    /// How many of them are ready.
    pub ready: usize,
    /// The sessions that there should be, each counted at both ends.
    pub sessions: usize,
    /// How many of them are Established.
    pub established: usize,
    /// How many nodes run which version.
    pub versions: BTreeMap<String, usize>,
    /// On how many nodes something is wrong.
    pub wrong: usize,
}

/// What is known of a node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Its name.
    pub node: String,
    /// The address that it advertises.
    pub address: Option<IpAddr>,
    /// What its agent says; of a node among many without the peers whose sessions are as they should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<AgentStatus>,
    /// Why the agent has not answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
    /// How long the answer took, in milliseconds.
    pub took_ms: u64,
}

/// A session that is not Established, as the node at one end says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Down<'a> {
    pub(super) node: &'a NodeState,
    pub(super) peer: &'a PeerStatus,
}

impl NodeState {
    /// Why somebody should look at this node, in a few words; nothing where all is well.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        if let Some(reason) = &self.unanswered {
            return vec![reason.clone()];
        }
        self.status.as_ref().map(AgentStatus::faults).unwrap_or_default()
    }
}

impl ClusterStatus {
    /// Puts the answers together.
    #[must_use]
    pub fn of(asked: Timestamp, answered: Vec<Answered<AgentStatus>>) -> Self {
        let nodes = answered.into_iter().map(|answered| {
            let took_ms = u64::try_from(answered.took.as_millis()).unwrap_or(u64::MAX);
            let (status, unanswered) = match answered.outcome {
                Ok(status) => (Some(status), None),
                Err(reason) => (None, Some(reason.to_string())),
            };
            let told = status.as_ref().and_then(|status| status.address);
            NodeState {
                node: answered.member.node,
                address: told.or(answered.member.address),
                status,
                unanswered,
                took_ms,
            }
        });
        let nodes: Vec<NodeState> = nodes.collect();
        Self {
            asked,
            summary: summary(&nodes),
            nodes,
        }
    }

    /// Whether every session can be shown.
    #[must_use]
    pub fn is_small(&self) -> bool {
        self.nodes.len() <= SMALL
    }

    /// The sessions that are down, as far as they were told.
    pub(super) fn down(&self) -> impl Iterator<Item = Down<'_>> {
        self.nodes.iter().flat_map(|node| {
            let peers = node.status.iter().flat_map(|status| &status.peers);
            let down = peers.filter(|peer| !peer.is_established());
            down.map(move |peer| Down { node, peer })
        })
    }
}

fn summary(nodes: &[NodeState]) -> Summary {
    let mut summary = Summary {
        nodes: nodes.len(),
        wrong: nodes.iter().filter(|node| !node.remarks().is_empty()).count(),
        ..Summary::default()
    };
    for status in nodes.iter().filter_map(|node| node.status.as_ref()) {
        summary.answered += 1;
        summary.ready += usize::from(status.ready().is_ok());
        summary.sessions += status.sessions.peers;
        summary.established += status.sessions.established;
        *summary.versions.entry(status.version.clone()).or_default() += 1;
    }
    summary
}
