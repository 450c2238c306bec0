//! A peer whose messages are not as they should be. `ExaBGP` puts any octets into an UPDATE that it is told to.

use std::time::Duration;

use harness::pair::{self, Pair};
use harness::{LabError, wait_for};
use libtest_mimic::Failed;

use crate::daemon::Terms;
use crate::exabgp::Exabgp;
use crate::trials::manifests;

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

/// A block, and the attribute that ends the session with a NOTIFICATION of an UPDATE Message Error of this subcode.
const RESETS: [(&str, &str, u8); 3] = [
    // RFC 7606 §3 (test), §5.3: an MP_REACH_NLRI of three octets hides its routes.
    ("10.65.206.0/26", "attribute [ 0x0E 0x80 0x000101 ]", 9),
    // RFC 7606 §5.3 (test): a prefix of 255 bits in MP_UNREACH_NLRI.
    ("10.65.207.0/26", "attribute [ 0x0F 0x80 0x000101FF ]", 9),
    // RFC 4271 §6.3 (test): a well-known attribute that nobody knows.
    ("10.65.208.0/26", "attribute [ 0xF1 0x40 0x00 ]", 2),
];

/// RFC 7606 §2 (test): a fault costs its route or its attribute; the session stands, and so does the agent.
pub(crate) fn costs_its_route_and_not_the_session() -> Result<(), Failed> {
    let mut pair = Pair::build(&manifests(&Terms::default()))?;
    pair.start_agent()?;
    let routes = ROUTES.map(|(block, attribute, _)| (block, attribute.to_owned()));
    let exabgp = Exabgp::start(&pair, (pair::THEIR_ADDRESS, 64512), pair::THEIR_ADDRESS, &routes)?;
    seen(&pair).map_err(|error| explained(&pair, &exabgp, &error))
}

/// What hides the routes ends the session with the NOTIFICATION that says why, and the agent lives.
pub(crate) fn ends_the_session() -> Result<(), Failed> {
    for (block, attribute, subcode) in RESETS {
        let theirs = pair::THEIR_ADDRESS;
        let mut pair = Pair::build(&manifests(&Terms::default()))?;
        let capture = pair.capture()?;
        pair.start_agent()?;
        let exabgp = Exabgp::start(&pair, (theirs, 64512), theirs, &[(block, attribute.to_owned())])?;
        let filter = format!(
            "ip.src == {} && bgp.type == 3 && bgp.notify.major_error == 3 && bgp.notify.minor_error_update == {subcode}",
            pair::OUR_ADDRESS
        );
        wait_for(&format!("{attribute} to end the session"), PATIENCE, || {
            let sent = capture.dissect(&filter).map_err(|e| e.to_string())?;
            (!sent.is_empty())
                .then_some(())
                .ok_or_else(|| "no such NOTIFICATION yet".to_owned())
        })
        .and_then(|()| pair.agent.status())
        .map_err(|error| explained(&pair, &exabgp, &error))?;
        let routes = pair.ours.routes()?;
        crate::ensure(!routes.iter().any(|route| route.starts_with(block)), || {
            format!("{routes:?}")
        })?;
    }
    Ok(())
}

fn explained(pair: &Pair, exabgp: &Exabgp, error: &LabError) -> Failed {
    let (log, agent) = (exabgp.log(), pair.agent.last_words());
    format!("{error}\n--- ExaBGP:\n{log}\n--- the agent:\n{agent}").into()
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
