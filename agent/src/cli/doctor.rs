//! `culvert doctor`: what is wrong with this node, or with all of them, and what mends it.

mod all;

use std::io::{self, BufRead, IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::CliError;
use super::asked::{AgentArguments, Output};
use super::members::MemberArguments;
use crate::doctor::cluster::ClusterReport;
use crate::doctor::{Fix, Report};

/// How long the probes of all nodes may take.
const PROBES: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Look at all nodes, and at what no single node can see, by way of the API server.
    #[arg(long, conflicts_with_all = ["fix", "probe"])]
    all_nodes: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Mend what can be mended safely: switches of the kernel (sysctl), until the next start of the host. What will be done
    /// is said first, with the command that undoes it, and a yes is waited for.
    #[arg(long)]
    fix: bool,
    /// With --fix: do not wait for a yes.
    #[arg(long, requires = "fix")]
    yes: bool,
    /// Send probes as well: a few packets through the tunnel to other nodes and back, and TCP connections where a session is
    /// down. Sixteen nodes at most are looked at.
    #[arg(long)]
    probe: bool,
    #[command(flatten)]
    agent: AgentArguments,
    #[command(flatten)]
    members: MemberArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    if arguments.all_nodes {
        let report = super::runtime()?.block_on(all::examine(&arguments.members))?;
        super::print(&arguments.output.of(&report, ClusterReport::render)?)?;
        return match (report.findings.len(), report.unchecked.len()) {
            (0, 0) => Ok(()),
            (0, unseen) => Err(CliError::Unseen(unseen)),
            (count, _) => Err(CliError::Findings(count)),
        };
    }
    let mut report = arguments.agent.ask(async |agent| agent.doctor().await)?;
    if arguments.probe {
        let ways = arguments
            .agent
            .ask_within(PROBES, async |agent| agent.ways().await)?;
        report.findings.extend(ways);
        report.probed = true;
    }
    super::print(&arguments.output.of(&report, Report::render)?)?;
    if arguments.fix {
        return mend(&report, arguments.yes);
    }
    match report.findings.len() {
        0 => Ok(()),
        count => Err(CliError::Findings(count)),
    }
}

/// Does what is safe, and fails where something is left that it cannot do.
fn mend(report: &Report, is_confirmed: bool) -> Result<(), CliError> {
    let mut fixes: Vec<&Fix> = report
        .findings
        .iter()
        .filter_map(|finding| finding.fix.as_ref())
        .collect();
    let left = report.findings.len() - fixes.len();
    fixes.sort();
    fixes.dedup();
    let mut told = String::new();
    for fix in &fixes {
        let undo = fix.undo()?;
        told += &format!("To be done: {}\n  to undo it: {undo}\n", fix.command());
    }
    if fixes.is_empty() {
        told += "There is nothing that --fix may mend.\n";
    }
    super::print(&told)?;
    if !fixes.is_empty() && !is_confirmed && !ask()? {
        return Err(CliError::Unconfirmed);
    }
    for fix in fixes {
        fix.apply()?;
        super::print(&format!("Done: {}\n", fix.command()))?;
    }
    match left {
        0 => Ok(()),
        count => Err(CliError::Findings(count)),
    }
}

/// Waits for a yes; nobody to ask is a no.
fn ask() -> Result<bool, CliError> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    super::print("Do this now? [y/N] ")?;
    io::stdout().flush().map_err(CliError::Output)?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(CliError::Output)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
