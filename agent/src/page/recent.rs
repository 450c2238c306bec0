//! What happened lately: what one status says and the one before it did not.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Serialize;

use crate::status::{AgentStatus, PeerStatus};

/// Events that are kept.
const KEPT: usize = 100;

/// So many events of one kind are told one by one; more of them at once are one.
const ONE_BY_ONE: usize = 8;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// When.
    pub at: Timestamp,
    /// What, in a sentence.
    pub what: String,
    /// Whether that is good, bad, or neither.
    pub kind: EventKind,
}

/// What an event is for the one who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum EventKind {
    /// Something went wrong.
    Trouble,
    /// Something that was wrong is over, or something that was missing is there.
    Relief,
    /// Something changed.
    Change,
}

/// The events of the last time.
#[derive(Debug, Default)]
pub struct Recent {
    events: VecDeque<Event>,
}

impl Recent {
    /// Takes in that the status was one and is another from now on.
    pub(crate) fn note(&mut self, before: &AgentStatus, after: &AgentStatus, at: Timestamp) {
        for (kind, what) in happened(before, after) {
            self.events.push_front(Event { at, what, kind });
        }
        self.events.truncate(KEPT);
    }

    /// The events, the latest first.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.events.iter().cloned().collect()
    }
}

/// What is wrong, a sentence each.
pub(super) fn problems(status: &AgentStatus) -> BTreeSet<String> {
    let mut problems: BTreeSet<String> = status.problems.iter().cloned().collect();
    problems.extend(lasting(status));
    if status.started != Timestamp::default() {
        let peers = status.peers.iter().filter(|peer| !peer.is_established());
        problems.extend(peers.map(|peer| match &peer.reason {
            Some(reason) => format!("no session with {}: {reason}", named(peer)),
            None => format!("no session with {}: {}", named(peer), peer.state),
        }));
    }
    problems
}

/// The problems that are not peers', by what the status says elsewhere.
fn lasting(status: &AgentStatus) -> impl Iterator<Item = String> {
    let datastore = status
        .datastore
        .problem
        .iter()
        .map(|why| format!("datastore: {why}"));
    let tunnel = status.tunnel_problem.iter().map(|why| format!("tunnel: {why}"));
    let filter = status.firewall.problem.iter();
    let filter = filter.map(|why| format!("packet filter not written: {why}"));
    let refused = status.firewall.refused.iter().map(|who| format!("refused {who}"));
    let routes = status.routes.failed.iter();
    let routes = routes.map(|problem| format!("route {}: {}", problem.route, problem.reason));
    let rejected = status.routes.rejected.iter();
    let rejected = rejected.map(|problem| format!("{} is not installed: {}", problem.route, problem.reason));
    let sources = status.sources.mismatches.iter().map(|of| of.problem.clone());
    let sources = sources.chain(status.sources.problems.iter().cloned());
    let held = (status.withdrawals_held > 0).then(|| {
        format!(
            "{} deletions are held, since too much would vanish at once",
            status.withdrawals_held
        )
    });
    let all = datastore.chain(tunnel).chain(filter).chain(refused);
    all.chain(routes)
        .chain(rejected)
        .chain(sources)
        .chain(held)
        .collect::<Vec<_>>()
        .into_iter()
}

/// What one status says and the one before did not, what is wrong last.
fn happened(before: &AgentStatus, after: &AgentStatus) -> Vec<(EventKind, String)> {
    let mut all = Vec::new();
    let blocks = |status: &AgentStatus| status.blocks.iter().copied().collect::<BTreeSet<_>>();
    let (had, has) = (blocks(before), blocks(after));
    let got = has
        .difference(&had)
        .map(|block| format!("{block} is a block of this node"));
    told(&mut all, EventKind::Change, got, "blocks are this node's");
    let lost = had
        .difference(&has)
        .map(|block| format!("{block} is no block of this node any more"));
    told(
        &mut all,
        EventKind::Change,
        lost,
        "blocks are no longer this node's",
    );
    if after.datastore.in_sync && !before.datastore.in_sync {
        all.push((EventKind::Relief, "all of the datastore has been read".to_owned()));
    }
    sessions(&mut all, before, after);
    let (was, is) = (by_subject(before), by_subject(after));
    let over = was.iter().filter(|(subject, _)| !is.contains_key(*subject));
    let over = over.map(|(_, problem)| format!("over: {problem}"));
    told(&mut all, EventKind::Relief, over, "problems are over");
    let new = is.iter().filter(|(subject, _)| !was.contains_key(*subject));
    let new = new.map(|(_, problem)| problem.clone());
    told(&mut all, EventKind::Trouble, new, "new problems");
    all
}

/// The problems that are not peers', by their words without the numbers: one that grows is not another.
fn by_subject(status: &AgentStatus) -> BTreeMap<String, String> {
    let all = lasting(status).chain(status.problems.iter().cloned());
    all.map(|problem| {
        let words = problem.split(' ').filter(|word| word.parse::<u64>().is_err());
        (words.collect::<Vec<_>>().join(" "), problem)
    })
    .collect()
}

/// Sessions that came up, that were lost, and peers that came and went.
fn sessions(all: &mut Vec<(EventKind, String)>, before: &AgentStatus, after: &AgentStatus) {
    let by_address = |status| -> BTreeMap<IpAddr, &PeerStatus> {
        let status: &AgentStatus = status;
        status.peers.iter().map(|peer| (peer.address, peer)).collect()
    };
    let (were, are) = (by_address(before), by_address(after));
    let had_session = |address: &IpAddr| were.get(address).is_some_and(|peer| peer.is_established());
    let gone = were.iter().filter(|(address, _)| !are.contains_key(address));
    let gone = gone.map(|(_, peer)| format!("{} is no peer any more", named(peer)));
    told(all, EventKind::Change, gone, "peers are none any more");
    let up = are
        .iter()
        .filter(|(address, peer)| peer.is_established() && !had_session(address));
    let up = up.map(|(_, peer)| format!("session with {} is Established", named(peer)));
    told(all, EventKind::Relief, up, "sessions are Established");
    let down = are
        .iter()
        .filter(|(address, peer)| !peer.is_established() && had_session(address));
    let down = down.map(|(_, peer)| {
        let reason = peer.reason.as_deref().unwrap_or("no reason was told");
        format!("session with {} was lost: {reason}", named(peer))
    });
    told(all, EventKind::Trouble, down, "sessions were lost");
}

/// A few one by one, many as one.
fn told(
    all: &mut Vec<(EventKind, String)>,
    kind: EventKind,
    sentences: impl Iterator<Item = String>,
    together: &str,
) {
    let sentences: Vec<String> = sentences.collect();
    if sentences.len() > ONE_BY_ONE {
        all.push((kind, format!("{} {together}", sentences.len())));
    } else {
        all.extend(sentences.into_iter().map(|sentence| (kind, sentence)));
    }
}

/// A peer by its node's name and its address.
fn named(peer: &PeerStatus) -> String {
    match &peer.node {
        Some(node) => format!("{node} ({})", peer.address),
        None => peer.address.to_string(),
    }
}
