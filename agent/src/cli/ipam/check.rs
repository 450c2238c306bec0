//! `culvert ipam check`, in the words of calicoctl, and `--fix`, which mends what is provable.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use culvert_ipam::check::{self, Finding, Problem};
use culvert_ipam::snapshot::Snapshot;

use super::super::CliError;
use super::super::store::StoreArguments;
use super::release::Report;
use crate::allocation::{self, Allocator};
use crate::datastore::Datastore;
use crate::inventory;
use crate::table::printable;

/// Nodes with the most addresses that are named.
const TOP_NODES: usize = 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct Arguments {
    /// Name every address that is allocated.
    #[arg(long)]
    show_all_ips: bool,
    /// Name every address that something is wrong with; without it they are only counted.
    #[arg(long)]
    show_problem_ips: bool,
    /// Write what leaks to a file, for `culvert ipam release --from-report`.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Mend what can be proven, after showing what would be done.
    #[arg(long)]
    fix: bool,
    /// With --fix: do not ask before mending.
    #[arg(long, requires = "fix")]
    yes: bool,
    #[command(flatten)]
    store: StoreArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let problems = arguments.store.run(async |store| {
        let snapshot = inventory::read(store.as_ref()).await?;
        let problems = check::cluster(&snapshot, allocation::now());
        super::super::print(&report(&snapshot, &problems, arguments))?;
        if let Some(path) = &arguments.output {
            Report::of(&problems).write(path)?;
        }
        if arguments.fix {
            mend(store, &problems, arguments.yes).await
        } else {
            Ok(problems.len())
        }
    })?;
    match problems {
        0 => Ok(()),
        count => Err(CliError::Problems {
            count,
            advice: if arguments.fix {
                ""
            } else {
                "; `culvert ipam check --fix` mends what can be proven"
            },
        }),
    }
}

/// What there is and what is wrong with it, in calicoctl's order.
fn report(snapshot: &Snapshot, problems: &[Problem], arguments: &Arguments) -> String {
    let mut text = String::from("Checking IPAM for inconsistencies...\n\n");
    blocks(&mut text, snapshot, arguments);
    pools_and_users(&mut text, snapshot);
    nodes(&mut text, snapshot);
    let named = arguments.show_problem_ips;
    let mut sections = Sections {
        text,
        problems,
        named,
    };
    sections.write(
        "Scanning for IPs that are allocated but not actually in use...",
        "IPs that are allocated in IPAM but not actually in use",
        |finding| matches!(finding, Finding::NotInUse(_)),
    );
    sections.write(
        "Scanning for IPs that are in use by a workload or node but not allocated in IPAM...",
        "in-use IPs that are not in active IP pools",
        |finding| matches!(finding, Finding::NotInPool { .. }),
    );
    sections.write(
        "",
        "in-use IPs that are in active IP pools but have no corresponding IPAM allocation",
        |finding| matches!(finding, Finding::NotAllocated { .. } | Finding::TwoUsers { .. }),
    );
    sections.write(
        "Scanning for IPAM handles with no matching IPs...",
        "handles with no matching IPs",
        |finding| matches!(finding, Finding::EmptyHandle { .. } | Finding::WrongCount { .. }),
    );
    sections.write(
        "Scanning for IPs with missing handle...",
        "handles mentioned in blocks with no matching handle resource",
        |finding| matches!(finding, Finding::MissingHandle { .. }),
    );
    sections.write(
        "Validating IPAMBlock structures...",
        "invalid IPAMBlocks",
        |finding| {
            matches!(
                finding,
                Finding::Block(_)
                    | Finding::UnusedAttribute { .. }
                    | Finding::LostAddress { .. }
                    | Finding::ReleasedInFuture { .. }
            )
        },
    );
    // What calicoctl does not look at is always named: nobody would know where to look for it.
    sections.named = true;
    sections.write(
        "Checking who owns which block...",
        "problems with pools, settings and claims to blocks",
        is_of_claims,
    );
    let mut text = sections.text;
    let _ = writeln!(text, "Check complete; found {} problems.", problems.len());
    text
}

fn is_of_claims(finding: &Finding) -> bool {
    match finding {
        Finding::Pool(_)
        | Finding::PoolOverlap { .. }
        | Finding::Limits(_)
        | Finding::Overlap { .. }
        | Finding::BlockWithoutPool { .. }
        | Finding::BlockWithoutAffinity { .. }
        | Finding::AffinityWithoutBlock { .. }
        | Finding::AffinityOfAnother { .. }
        | Finding::TwoOwners { .. }
        | Finding::HalfDone { .. }
        | Finding::GoneNode { .. }
        | Finding::Deleted { .. } => true,
        Finding::NotInUse(_)
        | Finding::NotInPool { .. }
        | Finding::NotAllocated { .. }
        | Finding::TwoUsers { .. }
        | Finding::EmptyHandle { .. }
        | Finding::WrongCount { .. }
        | Finding::MissingHandle { .. }
        | Finding::Block(_)
        | Finding::UnusedAttribute { .. }
        | Finding::LostAddress { .. }
        | Finding::ReleasedInFuture { .. } => false,
    }
}

struct Sections<'a> {
    text: String,
    problems: &'a [Problem],
    named: bool,
}

impl Sections<'_> {
    /// A section: what is looked for, and how much of it was found.
    fn write(&mut self, scanning: &str, found: &str, is_here: fn(&Finding) -> bool) {
        if !scanning.is_empty() {
            let _ = writeln!(self.text, "{scanning}");
        }
        let here = self.problems.iter().filter(|problem| is_here(&problem.finding));
        let mut count = 0;
        for problem in here {
            count += 1;
            if self.named {
                let _ = writeln!(self.text, "  {}", printable(&problem.finding.to_string()));
            }
        }
        let _ = writeln!(self.text, "Found {count} {found}.\n");
    }
}

fn blocks(text: &mut String, snapshot: &Snapshot, arguments: &Arguments) {
    let live: Vec<_> = snapshot.live_blocks().collect();
    let _ = writeln!(
        text,
        "Loading all IPAM blocks...\nFound {} IPAM blocks.",
        live.len()
    );
    for stored in &live {
        let affinity = stored.spec.affinity.as_deref().unwrap_or("<none>");
        let _ = writeln!(
            text,
            " IPAM block {} affinity={}:",
            stored.spec.cidr,
            printable(affinity)
        );
    }
    let _ = writeln!(
        text,
        "IPAM blocks record {} allocations.",
        snapshot.held().count()
    );
    if arguments.show_all_ips {
        for held in snapshot.held() {
            let handle = held.attribute.handle_id.as_deref().unwrap_or("<none>");
            let _ = writeln!(text, "  {} handle={}", held.address, printable(handle));
        }
    }
    text.push('\n');
}

fn pools_and_users(text: &mut String, snapshot: &Snapshot) {
    let _ = writeln!(text, "Loading all IPAM pools...");
    for pool in snapshot.pools.iter() {
        let _ = writeln!(text, "  {}", pool.cidr());
    }
    let tunnels: usize = snapshot.nodes.values().map(Vec::len).sum();
    let workloads: usize = snapshot.pods.iter().map(|pod| pod.addresses.len()).sum();
    let _ = writeln!(text, "Found {} active IP pools.\n", snapshot.pools.iter().count());
    let _ = writeln!(text, "Loading all nodes.\nFound {tunnels} node tunnel IPs.\n");
    let missing = snapshot.missing();
    if missing.is_empty() {
        let _ = writeln!(
            text,
            "Loading all workload endpoints.\nFound {workloads} workload IPs."
        );
        let _ = writeln!(
            text,
            "Workloads and nodes are using {} IPs.\n",
            workloads + tunnels
        );
    } else {
        let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            text,
            "This datastore does not tell of all {}: who uses which address is not looked at.\n",
            missing.join(", ")
        );
    }
    let _ = writeln!(
        text,
        "Loading all handles\nFound {} handles.\n",
        snapshot.live_handles().count()
    );
}

/// The nodes with the most addresses.
fn nodes(text: &mut String, snapshot: &Snapshot) {
    let mut by_node: BTreeMap<&str, usize> = BTreeMap::new();
    for node in snapshot.held().filter_map(|held| held.node()) {
        *by_node.entry(node).or_default() += 1;
    }
    let mut sorted: Vec<_> = by_node.into_iter().collect();
    sorted.sort_by_key(|(node, count)| (std::cmp::Reverse(*count), *node));
    let _ = writeln!(
        text,
        "Looking for top (up to {TOP_NODES}) nodes by allocations..."
    );
    for (node, count) in sorted.iter().take(TOP_NODES) {
        let _ = writeln!(text, "  {} has {count} allocations", printable(node));
    }
    if let (Some((_, most)), Some((_, median))) = (sorted.first(), sorted.get(sorted.len() / 2)) {
        let _ = writeln!(text, "Node with most allocations has {most}; median is {median}");
    }
    text.push('\n');
}

/// Shows what would be done, asks unless it was told not to, and does it: how many problems are left.
async fn mend(store: Arc<dyn Datastore>, problems: &[Problem], unasked: bool) -> Result<usize, CliError> {
    let mendable: Vec<&Problem> = problems.iter().filter(|p| !p.mends.is_empty()).collect();
    let mut plan = String::from("\nWhat can be mended:\n");
    for problem in &mendable {
        let _ = writeln!(plan, "  {}", printable(&problem.finding.to_string()));
        for action in &problem.mends {
            let _ = writeln!(plan, "    -> {}", printable(&action.to_string()));
        }
    }
    if mendable.is_empty() {
        plan += "  nothing: what is left needs a person to decide\n";
    }
    super::super::print(&plan)?;
    if mendable.is_empty() || !(unasked || confirmed(mendable.len())?) {
        return Ok(problems.len());
    }
    let allocator = Allocator::new(store, super::NOBODY.to_owned());
    let mut mended = 0;
    for problem in mendable {
        let mut done = true;
        for action in &problem.mends {
            if let Err(error) = allocator.act(action.clone()).await {
                super::super::print(&format!("not mended: {}: {error}\n", problem.finding))?;
                done = false;
                break;
            }
        }
        mended += usize::from(done);
    }
    allocator.close().await;
    super::super::print(&format!("Mended {mended} problems.\n"))?;
    Ok(problems.len() - mended)
}

/// Asks the one at the terminal; where there is none, nothing is done.
fn confirmed(count: usize) -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        super::super::print("Nothing was changed; add --yes to mend it.\n")?;
        return Ok(false);
    }
    let mut output = std::io::stdout();
    write!(output, "Mend these {count}? [y/N] ")
        .and_then(|()| output.flush())
        .map_err(CliError::Output)?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(CliError::Output)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
