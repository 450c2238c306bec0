//! The report as lines for people.

use std::fmt::Write as _;

use super::{Check, Finding, Report};
use crate::table::printable;

impl Report {
    /// A line for each check that found nothing, and a paragraph for each finding.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!("Node {}\n", printable(&self.node));
        let probes = self.probed.then_some(Check::Ways);
        for check in Check::ALL.into_iter().chain(probes) {
            let mut found = self
                .findings
                .iter()
                .filter(|finding| finding.check == check)
                .peekable();
            if found.peek().is_none() {
                let _ = writeln!(text, "  ok       {}", check.title());
            }
            for finding in found {
                paragraph(&mut text, finding);
            }
        }
        let _ = match self.findings.len() {
            0 => writeln!(text, "Nothing is wrong."),
            1 => writeln!(text, "1 finding."),
            count => writeln!(text, "{count} findings."),
        };
        text
    }
}

fn paragraph(text: &mut String, finding: &Finding) {
    let title = finding.check.title();
    let _ = writeln!(text, "  FINDING  {title}: {}", printable(&finding.finding));
    for (label, words) in [
        ("evidence", &finding.evidence),
        ("so", &finding.consequence),
        ("mend", &finding.cure),
    ] {
        let _ = writeln!(text, "           {label:<9} {}", printable(words));
    }
}
