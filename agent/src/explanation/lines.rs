//! The explanation as lines for people, in the order in which a packet's way is decided.

use std::fmt::Write as _;

use super::{BgpPart, BlockPart, Explanation, OuterPart};
use crate::table::printable;

/// The width of the first column.
const LABEL: usize = 15;

/// So many paths are shown; a destination that all nodes announce is rare, and its first paths tell.
const PATHS_SHOWN: usize = 16;

impl Explanation {
    /// The explanation as text: what each part says, then the findings.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, words: &str| {
            let _ = writeln!(text, "{label:<LABEL$}{}", printable(words));
        };
        line("Destination", &self.asked());
        line("Pool", &self.pool_line());
        line(
            "Block",
            &self.block.as_ref().map_or_else(|| "none".to_owned(), block_line),
        );
        let bgp = self
            .bgp
            .as_ref()
            .map_or_else(|| vec!["no peer announces it".to_owned()], bgp_lines);
        for (nth, words) in bgp.iter().enumerate() {
            line(if nth == 0 { "BGP" } else { "" }, words);
        }
        if let Some(words) = &self.encapsulation {
            line("Encapsulation", words);
        }
        if let Some(outer) = &self.outer {
            line("Outer header", &outer_line(outer));
        }
        line("Expected route", self.expected.as_deref().unwrap_or("none"));
        line("Kernel route", self.kernel.as_deref().unwrap_or("none"));
        if self.findings.is_empty() {
            line("Finding", "nothing is wrong on this node");
        }
        for words in &self.findings {
            line("Finding", words);
        }
        text
    }

    fn asked(&self) -> String {
        let destination = self.destination;
        let words = if destination.prefix_len() == destination.max_prefix_len() {
            destination.addr().to_string()
        } else {
            destination.to_string()
        };
        match self.address {
            Some(address) => format!("{words}, seen from node {} ({address})", self.node),
            None => format!("{words}, seen from node {}", self.node),
        }
    }

    fn pool_line(&self) -> String {
        self.pool.as_ref().map_or_else(
            || "none".to_owned(),
            |pool| {
                let disabled = if pool.disabled { ", disabled" } else { "" };
                format!(
                    "{} ({}), ipipMode {:?}{disabled}",
                    pool.name, pool.cidr, pool.ipip_mode
                )
            },
        )
    }
}

fn block_line(block: &BlockPart) -> String {
    let known_by = block.address.map_or_else(
        || "has no address".to_owned(),
        |address| format!("known by {address}"),
    );
    format!("{} of node {}, {known_by}", block.cidr, block.node)
}

fn bgp_lines(bgp: &BgpPart) -> Vec<String> {
    let mut lines = Vec::new();
    if bgp.local {
        lines.push(format!("{} is announced by this node", bgp.prefix));
    }
    for path in bgp.paths.iter().take(PATHS_SHOWN) {
        let via = path
            .next_hop
            .map_or_else(String::new, |hop| format!(" via {hop}"));
        let node = path
            .node
            .as_ref()
            .map_or_else(String::new, |node| format!(" ({node})"));
        lines.push(format!(
            "{}{via} from {}{node}: {}",
            bgp.prefix, path.peer, path.verdict
        ));
    }
    if let Some(more @ 1..) = bgp.paths.len().checked_sub(PATHS_SHOWN) {
        lines.push(format!("and {more} more paths"));
    }
    lines
}

fn outer_line(outer: &OuterPart) -> String {
    let seen = match outer.seen {
        Some(seen) if seen == outer.source => "and so says the kernel".to_owned(),
        Some(seen) => format!("but the kernel says {seen}"),
        None => "the kernel was not asked yet".to_owned(),
    };
    format!("{} to {}, {seen}", outer.source, outer.destination)
}
