//! The sessions of a small cluster, each end with what it says of the other.

use std::fmt::Write as _;

use super::{ClusterStatus, NodeState};
use crate::table::{Paint, printable};

/// What a node says of its session with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Itself,
    Up,
    Down,
    /// The other is none of its peers.
    NoPeer,
    /// It has not answered.
    Unknown,
}

impl Cell {
    fn of(from: &NodeState, to: &NodeState) -> Self {
        if from.node == to.node {
            return Self::Itself;
        }
        let Some(status) = &from.status else {
            return Self::Unknown;
        };
        let is_it = |address| Some(address) == to.address;
        let peer = status
            .peers
            .iter()
            .find(|peer| peer.node.as_ref() == Some(&to.node) || is_it(peer.address));
        match peer {
            None => Self::NoPeer,
            Some(peer) if peer.is_established() => Self::Up,
            Some(_) => Self::Down,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Itself => "·",
            Self::Up => "up",
            Self::Down => "DOWN",
            Self::NoPeer => "-",
            Self::Unknown => "?",
        }
    }
}

/// A row for each node, with what it says of its session with each other; a line below says what the marks mean.
pub(super) fn render(status: &ClusterStatus, paint: Paint) -> String {
    const CELL: usize = 6;
    let nodes = &status.nodes;
    let number = nodes.len().to_string().len();
    let names: Vec<String> = nodes.iter().map(|node| printable(&node.node)).collect();
    let name = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}", "", width = number + 1 + name + 2);
    for at in 1..=nodes.len() {
        let _ = write!(text, "{at:<CELL$}");
    }
    let mut text = text.trim_end().to_owned() + "\n";
    for (at, (from, label)) in nodes.iter().zip(&names).enumerate() {
        let mut row = format!("{:>number$} {label:<name$}  ", at + 1);
        for to in nodes {
            let cell = Cell::of(from, to);
            let padded = format!("{:<CELL$}", cell.text());
            row += &match cell {
                Cell::Down | Cell::Unknown => paint.wrong(&padded),
                Cell::Up => paint.well(&padded),
                Cell::Itself | Cell::NoPeer => padded,
            };
        }
        text += row.trim_end();
        text.push('\n');
    }
    text += "(a row is what that node says; -: not its peer; ?: it has not answered)\n";
    text
}
