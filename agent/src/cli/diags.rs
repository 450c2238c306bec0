//! `culvert diags`: a bundle of all that tells how this node, or the whole cluster, is.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::Value;

use super::CliError;
use super::asked::AgentArguments;
use super::members::{MemberArguments, Members};
use crate::api::Kind;
use crate::dataplane::{Dataplane as _, Netlink};
use crate::diags::Bundle;
use crate::http::{Client, Peers, Question};
use crate::kernel_view::KernelView;
use crate::reconcile::Actual;
use crate::ribs::{RibRequest, RibRoutes, RibTable};
use crate::survey;

/// So many destinations are explained.
const EXPLAINED: usize = 16;
/// So many lines of a log are taken.
const LOG_LINES: usize = 5_000;
/// So many bytes of a log file are taken, from its end.
const LOG_BYTES: u64 = 4 << 20;
/// A table of a thousand nodes is large: each gets so much longer for it.
const TIMES_FOR_TABLES: u32 = 2;

/// What people configure, and what the agents write; no Secrets.
const KINDS: [Kind; 7] = [
    Kind::IpPool,
    Kind::BgpConfiguration,
    Kind::BgpPeer,
    Kind::BgpFilter,
    Kind::IpamConfig,
    Kind::BlockAffinity,
    Kind::Node,
];

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file to write; it must not be there yet.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// All nodes, by way of the API server.
    #[arg(long)]
    all_nodes: bool,
    /// The agent's log, where it is not in the journal of systemd.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    #[command(flatten)]
    agent: AgentArguments,
    #[command(flatten)]
    members: MemberArguments,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), CliError> {
    let now = Timestamp::now();
    let folder = format!("culvert-diags-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    let path = match &arguments.output {
        Some(path) => path.clone(),
        None => PathBuf::from(format!("{folder}.tar.gz")),
    };
    let file = |source| CliError::File {
        path: path.clone(),
        source,
    };
    // It tells much of a cluster: it is its owner's alone, and takes nobody's place.
    let output = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(file)?;
    let mut bundle = Bundle::default();
    bundle.text("version.txt", Ok::<_, io::Error>(about(now)));
    let runtime = super::runtime()?;
    if arguments.all_nodes {
        runtime.block_on(of_all(&mut bundle, &arguments.members))?;
    } else {
        runtime.block_on(of_agent(&mut bundle, &arguments.agent.client()));
        of_host(&mut bundle, arguments);
        runtime.block_on(of_kernel(&mut bundle));
    }
    let seconds = u64::try_from(now.as_second()).unwrap_or(0);
    bundle.write(output, &folder, seconds).map_err(file)?;
    let mut text = format!("{}: {} files.\n", path.display(), bundle.names().count());
    for missing in bundle.missing() {
        text += &format!("  missing: {}\n", crate::table::printable(missing));
    }
    super::print(&text)
}

fn about(now: Timestamp) -> String {
    format!("culvert {}\nmade at {now:.0}\n", env!("CARGO_PKG_VERSION"))
}

fn table(table: RibTable) -> Question {
    Question::Routes(RibRequest {
        table,
        peer: None,
        within: None,
    })
}

/// The speaker's tables, and the names of their files.
const TABLES: [(&str, RibTable); 3] = [
    ("bgp-received.json", RibTable::Received),
    ("bgp-advertised.json", RibTable::Advertised),
    ("bgp-best.json", RibTable::Best),
];

/// What else an agent is asked, and the names of the files.
const FURTHER: [(&str, Question); 3] = [
    ("configuration.json", Question::Configuration),
    ("packet-filter.json", Question::PacketFilter),
    ("routes-wrong.json", Question::WrongRoutes),
];

/// What the agent of this node says.
async fn of_agent(bundle: &mut Bundle, agent: &Client) {
    bundle.answer(
        "status.json",
        agent.question::<Value>(Question::Status(Peers::Counted)).await,
    );
    bundle.answer("doctor.json", agent.question::<Value>(Question::Doctor).await);
    bundle.answer("kernel.json", agent.question::<Value>(Question::Kernel).await);
    for (name, question) in FURTHER {
        bundle.answer(name, agent.question::<Value>(question).await);
    }
    for (name, of) in TABLES {
        bundle.answer(name, agent.question::<Value>(table(of)).await);
    }
    let best = agent.question::<RibRoutes>(table(RibTable::Best)).await;
    for prefix in destinations(best.unwrap_or_default()) {
        let name = format!("explain/{}.json", prefix.to_string().replace(['/', ':'], "_"));
        bundle.answer(&name, agent.question::<Value>(Question::Explain(prefix)).await);
    }
}

fn destinations(best: RibRoutes) -> impl Iterator<Item = IpNet> {
    let prefixes = best.routes.into_iter().map(|route| route.prefix);
    prefixes.take(EXPLAINED)
}

/// What the host of this node has, with or without an agent.
fn of_host(bundle: &mut Bundle, arguments: &Arguments) {
    let config = arguments
        .members
        .config()
        .unwrap_or(Path::new("/etc/culvert/agent.yaml"));
    bundle.text(
        "agent.yaml",
        fs::read_to_string(config).map_err(|error| named(config, &error)),
    );
    let lines = LOG_LINES.to_string();
    let log = match &arguments.log {
        Some(path) => end_of(path).map_err(|error| named(path, &error)),
        None => output("journalctl", &["-u", "culvert", "-n", &lines, "--no-pager"]),
    };
    bundle.text("agent.log", log);
    for (name, program, words) in [
        ("nftables.txt", "nft", &["list", "ruleset"][..]),
        ("iptables.txt", "iptables-save", &["-c"]),
        ("ip-route.txt", "ip", &["-d", "route", "show", "table", "all"]),
        ("ip-rule.txt", "ip", &["-d", "rule", "show"]),
        ("ip-link.txt", "ip", &["-d", "-s", "link", "show"]),
        ("ip-addr.txt", "ip", &["-d", "addr", "show"]),
    ] {
        bundle.text(name, output(program, words));
    }
}

/// What the kernel says itself: the agent may be wrong, or away.
async fn of_kernel(bundle: &mut Bundle) {
    let read = async {
        let kernel = Netlink::open()?.dump().await?;
        Ok::<_, crate::dataplane::DataplaneError>(KernelView::of(&Actual::new(kernel)).with_switches())
    };
    bundle.answer("kernel-now.json", read.await);
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The last part of a file.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(length.saturating_sub(LOG_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a program of the host prints.
fn output(program: &str, words: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(words)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {}: {}", words.join(" "), said.trim()))
    }
}

/// What all agents say, and what the datastore has.
async fn of_all(bundle: &mut Bundle, arguments: &MemberArguments) -> Result<(), CliError> {
    let Members { agents, store, .. } = arguments.find().await?;
    let mut terms = arguments.terms();
    let asked = [
        ("status.json", Question::Status(Peers::Counted)),
        ("doctor.json", Question::Doctor),
        ("kernel.json", Question::Kernel),
        ("bgp-received.json", table(RibTable::Received)),
        ("bgp-best.json", table(RibTable::Best)),
    ];
    for (name, question) in asked.into_iter().chain(FURTHER) {
        if name != "status.json" {
            terms.all = arguments.terms().all * TIMES_FOR_TABLES;
        }
        for answered in survey::ask::<Value>(&agents, question, terms).await {
            let name = format!("nodes/{}/{name}", answered.member.node);
            bundle.answer(&name, answered.outcome);
        }
    }
    for (node, log) in agents.logs(LOG_LINES, terms).await {
        bundle.text(&format!("nodes/{node}/agent.log"), log);
    }
    for kind in KINDS {
        let listed = tokio::time::timeout(terms.all.max(Duration::from_secs(10)), store.list(kind));
        let name = format!("datastore/{}.json", kind.plural());
        match listed.await {
            Ok(listed) => bundle.answer(&name, listed),
            Err(_) => bundle.text(&name, Err::<String, _>("not listed in time")),
        }
    }
    Ok(())
}
