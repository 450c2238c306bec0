//! The state of a cluster as text for people: all of a small one, of a large one what is not as it should be.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::{Timestamp, Zoned};

use super::matrix;
use super::state::{ClusterStatus, Down, NodeState};
use crate::status::uptime;
use crate::table::{Paint, plain, printable};

/// So many nodes of a large cluster that something is wrong with are named.
const NODES_NAMED: usize = 50;
/// So many reasons for sessions that are down are told.
const REASONS_TOLD: usize = 50;
/// So many nodes are named that say the same.
const NAMED_OF_ONE_REASON: usize = 3;

const COLUMNS: [&str; 7] = [
    "NODE", "ADDRESS", "AGENT", "SESSIONS", "ROUTES", "BLOCKS", "REMARKS",
];
const WIDE_COLUMNS: [&str; 11] = [
    "NODE",
    "ADDRESS",
    "AGENT",
    "SESSIONS",
    "ROUTES",
    "BLOCKS",
    "ADDRESSES",
    "UPTIME",
    "VERSION",
    "ANSWER",
    "REMARKS",
];

impl ClusterStatus {
    /// The state as text; `wide` with further columns.
    #[must_use]
    pub(crate) fn render(&self, wide: bool, now: &Zoned, paint: Paint) -> String {
        let mut text = self.headline(paint);
        let shown: Vec<&NodeState> = if self.is_small() {
            self.nodes.iter().collect()
        } else {
            let wrong = self.nodes.iter().filter(|node| !node.remarks().is_empty());
            wrong.collect()
        };
        if !shown.is_empty() {
            text.push('\n');
            text += &nodes(&shown, wide, now.timestamp(), paint);
        }
        if self.is_small() && self.nodes.len() > 1 && self.summary.sessions > 0 {
            text += "\nBGP sessions\n";
            text += &matrix::render(self, paint);
        }
        let reasons = self.reasons();
        if !reasons.is_empty() {
            text += "\nSessions that are down\n";
            for reason in reasons.iter().take(REASONS_TOLD) {
                let _ = writeln!(text, "  {reason}");
            }
            if let Some(more @ 1..) = reasons.len().checked_sub(REASONS_TOLD) {
                let _ = writeln!(text, "  and {more} more");
            }
        }
        text
    }

    fn headline(&self, paint: Paint) -> String {
        let all = &self.summary;
        let mut text = format!(
            "{} nodes: {} answered, {} ready. {} of {} ends of sessions are Established.",
            all.nodes, all.answered, all.ready, all.established, all.sessions
        );
        let versions: Vec<String> = match all.versions.len() {
            0 => Vec::new(),
            1 => all.versions.keys().map(|version| printable(version)).collect(),
            _ => all
                .versions
                .iter()
                .map(|(version, count)| format!("{} on {count}", printable(version)))
                .collect(),
        };
        if !versions.is_empty() {
            let _ = write!(text, " Version {}.", versions.join(", "));
        }
        let verdict = match all.wrong {
            0 => paint.well("Nothing is wrong."),
            1 => paint.wrong("Something is wrong on 1 node."),
            count => paint.wrong(&format!("Something is wrong on {count} nodes.")),
        };
        format!("{text}\n{verdict}\n")
    }

    /// Why sessions are down: who says the same of the same peer is told in one line.
    fn reasons(&self) -> Vec<String> {
        let mut alike: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
        for Down { node, peer } in self.down() {
            let who = match &peer.node {
                Some(name) => format!("{} ({})", printable(name), peer.address),
                None => peer.address.to_string(),
            };
            let why = match &peer.reason {
                Some(reason) => printable(reason),
                None => format!("{}, not tried yet or without an answer so far", peer.state),
            };
            alike.entry((who, why)).or_default().push(&node.node);
        }
        let lines = alike.into_iter().map(|((who, why), nodes)| {
            let mut named: Vec<String> = nodes
                .iter()
                .take(NAMED_OF_ONE_REASON)
                .map(|node| printable(node))
                .collect();
            if let Some(more @ 1..) = nodes.len().checked_sub(NAMED_OF_ONE_REASON) {
                named.push(format!("{more} more"));
            }
            (nodes.len(), format!("{} -> {who}: {why}", named.join(", ")))
        });
        // What most nodes say is most likely the cause of the rest.
        let mut lines: Vec<(usize, String)> = lines.collect();
        lines.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        lines.into_iter().map(|(_, line)| line).collect()
    }
}

fn nodes(shown: &[&NodeState], wide: bool, now: Timestamp, paint: Paint) -> String {
    let named = shown.iter().take(NODES_NAMED);
    let rows: Vec<Vec<String>> = named.map(|node| row(node, wide, now)).collect();
    let header: &[&str] = if wide { &WIDE_COLUMNS } else { &COLUMNS };
    let table = plain(header, &rows);
    let mut text = String::new();
    for (at, line) in table.lines().enumerate() {
        let node = at.checked_sub(1).and_then(|at| shown.get(at));
        let is_wrong = node.is_some_and(|node| !node.remarks().is_empty());
        if is_wrong {
            text += &paint.wrong(line);
        } else {
            text += line;
        }
        text.push('\n');
    }
    if let Some(more @ 1..) = shown.len().checked_sub(NODES_NAMED) {
        let _ = writeln!(text, "and {more} more nodes; -o json names all of them");
    }
    text
}

fn row(node: &NodeState, wide: bool, now: Timestamp) -> Vec<String> {
    let dash = || "-".to_owned();
    let remarks = node.remarks();
    let agent = match &node.status {
        None => "no answer",
        Some(status) if status.ready().is_ok() => "ready",
        Some(_) => "not ready",
    };
    let told =
        |tell: &dyn Fn(&crate::status::AgentStatus) -> String| node.status.as_ref().map_or_else(dash, tell);
    let mut row = vec![
        printable(&node.node),
        node.address.map_or_else(dash, |address| address.to_string()),
        agent.to_owned(),
        told(&|status| format!("{}/{}", status.sessions.established, status.sessions.peers)),
        told(&|status| format!("{}/{}", status.routes.programmed, status.routes.desired)),
        told(&|status| status.blocks.len().to_string()),
    ];
    if wide {
        row.extend([
            told(&|status| status.addresses_in_use.to_string()),
            told(&|status| uptime(status.started, now)),
            told(&|status| printable(&status.version)),
            format!("{} ms", node.took_ms),
        ]);
    }
    row.push(if remarks.is_empty() {
        dash()
    } else {
        printable(&remarks.join("; "))
    });
    row
}
