//! A peer whose messages are not as they should be. `ExaBGP` puts any octets into an UPDATE that it is told to.

use std::process::Command;
use std::time::Duration;

use harness::pair::{self, Pair};
use harness::{LabError, wait_for};
use libtest_mimic::Failed;

use crate::daemon::Terms;
use crate::trials::manifests;

/// The program, which must be on this machine.
pub(crate) const EXABGP: &str = "/usr/sbin/exabgp";

/// How long anything may take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// What is announced: the block, an attribute as type, flags and octets, and whether RFC 7606 leaves the route alone.
const ROUTES: [(&str, &str, bool); 6] = [
    ("10.65.200.0/26", "", true),
    // RFC 7606 §7.4 (test): a MULTI_EXIT_DISC of two octets.
    ("10.65.201.0/26", "attribute [ 0x04 0x80 0x0001 ]", false),
    // RFC 7606 §7.8 (test): a COMMUNITIES of three octets.
    ("10.65.202.0/26", "attribute [ 0x08 0xC0 0x000100 ]", false),
    // RFC 7606 §7.7 (test): an AGGREGATOR of three octets is discarded alone.
    ("10.65.203.0/26", "attribute [ 0x07 0xC0 0x000100 ]", true),
    // RFC 7606 §7.9 (test): an ORIGINATOR_ID of three octets.
    ("10.65.204.0/26", "attribute [ 0x09 0x80 0x000100 ]", false),
    // RFC 4271 §5: an attribute that nobody knows, and that may be passed on.
    ("10.65.205.0/26", "attribute [ 0xF0 0xC0 0x000100 ]", true),
];

/// How many of them have a fault. Faults are told of when their number is a power of two.
const FAULTS: usize = 4;

/// RFC 7606 §2 (test): a fault costs its route or its attribute; the session stands, and so does the agent.
pub(crate) fn costs_its_route_and_not_the_session() -> Result<(), Failed> {
    let mut pair = Pair::build(&manifests(&Terms::default()))?;
    pair.start_agent()?;
    let folder = pair.folder()?;
    let config = folder.join("exabgp.conf");
    std::fs::write(&config, configuration())?;
    let mut exabgp = Command::new(EXABGP);
    exabgp
        .env("exabgp.daemon.user", "root")
        .env("exabgp.api.cli", "false")
        .arg(&config);
    let log = folder.join("exabgp.log");
    let _exabgp = pair.start(exabgp, &log)?;
    seen(&pair).map_err(|error| {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        format!(
            "{error}\n--- ExaBGP:\n{log}\n--- the agent:\n{}",
            pair.agent.last_words()
        )
        .into()
    })
}

fn seen(pair: &Pair) -> Result<(), LabError> {
    let told = format!("count={FAULTS}");
    wait_for("the agent to have seen all faults", PATIENCE, || {
        let log = pair.agent.log_text().map_err(|e| e.to_string())?;
        let found = log
            .lines()
            .any(|line| line.contains("fault in UPDATE") && line.contains(&told));
        found.then_some(()).ok_or(log)
    })?;
    let wanted: Vec<_> = ROUTES
        .iter()
        .filter(|route| route.2)
        .map(|route| route.0.to_owned())
        .collect();
    wait_for(
        &format!("{wanted:?} to be installed, and no more"),
        PATIENCE,
        || {
            let routes = pair.ours.routes().map_err(|e| e.to_string())?;
            let learned = routes
                .iter()
                .filter(|line| line.contains(&format!("via {}", pair::THEIR_ADDRESS)));
            let blocks: Vec<_> = learned
                .filter_map(|line| line.split(' ').next())
                .map(str::to_owned)
                .collect();
            if blocks == wanted {
                Ok(())
            } else {
                Err(format!("{blocks:?}"))
            }
        },
    )?;
    wait_for("the session to have stood", PATIENCE, || {
        let status = pair.agent.status().map_err(|e| e.to_string())?;
        let address = pair::THEIR_ADDRESS.to_string();
        let state = status.sessions().get(address.as_str()).copied();
        let count = status.established_counts().get(address.as_str()).copied();
        match (state, count) {
            (Some("Established"), Some(1)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn configuration() -> String {
    let (ours, theirs) = (pair::OUR_ADDRESS, pair::THEIR_ADDRESS);
    let routes: String = ROUTES
        .iter()
        .map(|(block, attribute, _)| format!("    route {block} next-hop {theirs} {attribute};\n"))
        .collect();
    format!(
        "neighbor {ours} {{
  router-id {theirs};
  local-address {theirs};
  local-as 64512;
  peer-as 64512;
  hold-time 90;
  static {{
{routes}  }}
}}
"
    )
}
