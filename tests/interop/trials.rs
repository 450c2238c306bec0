//! What is tried with every daemon.

use std::time::Duration;

use harness::pair::{self, Pair};
use harness::{LabError, wait_for};
use libtest_mimic::Failed;

use crate::daemon::{Kind, Learned, Peer, THEIR_BLOCK, Terms};

/// How long anything may take, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// One thing that two speakers can do together.
#[derive(Clone, Copy)]
pub(crate) struct Feature {
    /// Its name, a sentence after that of the daemon.
    pub(crate) name: &'static str,
    /// What the daemon is told.
    terms: fn() -> Terms,
    /// Whether a daemon can do it at all.
    can: fn(&Kind) -> bool,
    /// What is done and looked at, with the session Established.
    act: fn(&mut Session) -> Result<(), Failed>,
}

impl Feature {
    /// Whether this daemon can do it at all.
    pub(crate) fn is_for(&self, kind: &Kind) -> bool {
        (self.can)(kind)
    }

    /// Tries it; the version of the daemon.
    pub(crate) fn run(&self, kind: Kind) -> Result<String, Failed> {
        let mut session = Session::establish(kind, (self.terms)())?;
        (self.act)(&mut session).map_err(|error| session.explain(&error))?;
        Ok(session.peer.version()?)
    }
}

fn every(_: &Kind) -> bool {
    true
}

/// OpenBGPD knows the End-of-RIB marker of graceful restart alone: it neither keeps routes nor asks others to.
fn keeps_routes(kind: &Kind) -> bool {
    kind.name != "openbgpd"
}

/// All of them.
#[rustfmt::skip]
pub(crate) const ALL: [Feature; 4] = [
    Feature { name: "routes_go_both_ways_and_a_withdrawn_one_goes", terms: Terms::default, can: every, act: routes },
    Feature { name: "it_asks_for_all_routes_again", terms: Terms::default, can: every, act: refresh },
    Feature { name: "its_routes_stay_while_it_restarts", terms: Terms::default, can: keeps_routes, act: it_restarts },
    Feature { name: "it_keeps_our_routes_while_the_agent_restarts", terms: Terms::default, can: keeps_routes, act: agent_restarts },
];

/// An agent and a daemon with a session between them.
struct Session {
    // Dropped before the pair, which takes its namespace away.
    peer: Box<dyn Peer>,
    pair: Pair,
    terms: Terms,
}

impl Session {
    fn establish(kind: Kind, terms: Terms) -> Result<Self, Failed> {
        let mut pair = Pair::build(&manifests(&terms))?;
        let peer = (kind.start)(&pair, &terms)?;
        pair.start_agent()?;
        let session = Self { peer, pair, terms };
        session
            .wait_until_up()
            .map_err(|error| session.explain(&error.into()))?;
        Ok(session)
    }

    fn wait_until_up(&self) -> Result<(), LabError> {
        wait_for("the session to be Established at both ends", PATIENCE, || {
            self.peer.state().map_err(|e| e.to_string())??;
            let status = self.pair.agent.status().map_err(|e| e.to_string())?;
            let address = self.terms.their_address().to_string();
            match status.sessions().get(address.as_str()) {
                Some(&"Established") => Ok(()),
                other => Err(format!("the agent's end is {other:?}")),
            }
        })
    }

    /// An error with what both ends say of it.
    fn explain(&self, error: &Failed) -> Failed {
        let what = error.message().unwrap_or_default();
        format!(
            "{what}\n--- the daemon:\n{}\n--- the agent:\n{}\n{}",
            self.peer.last_words(),
            self.pair.agent.status_text(&["-o", "wide"]).unwrap_or_default(),
            self.pair.agent.last_words()
        )
        .into()
    }

    /// The agent's block, once it has one.
    fn our_block(&self) -> Result<String, LabError> {
        wait_for("the agent to have a block", PATIENCE, || {
            let status = self.pair.agent.status().map_err(|e| e.to_string())?;
            status
                .blocks
                .first()
                .cloned()
                .ok_or_else(|| "no block yet".to_owned())
        })
    }

    /// Waits until the daemon has our block, and returns what it knows of it.
    fn wait_until_learned(&self) -> Result<Learned, LabError> {
        let block = self.our_block()?;
        wait_for(&format!("the daemon to learn {block}"), PATIENCE, || {
            let learned = self.peer.learned().map_err(|e| e.to_string())?;
            let found = learned.get(&block).cloned();
            found.ok_or_else(|| format!("{:?}", learned.keys().collect::<Vec<_>>()))
        })
    }

    /// Whether the agent's kernel has the daemon's block.
    fn is_installed(&self) -> Result<bool, LabError> {
        let wanted = format!("{THEIR_BLOCK} via {} dev eth0 proto culvert", pair::THEIR_ADDRESS);
        let routes = self.pair.ours.routes()?;
        Ok(routes.iter().any(|line| line.starts_with(&wanted)))
    }

    fn wait_until_installed(&self, installed: bool) -> Result<(), LabError> {
        let what = format!(
            "{THEIR_BLOCK} to be {}",
            if installed { "installed" } else { "removed" }
        );
        wait_for(&what, PATIENCE, || match self.is_installed() {
            Ok(is) if is == installed => Ok(()),
            Ok(_) => Err(format!("{:?}", self.pair.ours.routes())),
            Err(error) => Err(error.to_string()),
        })
    }
}

/// The cluster: this node, the daemon as another node of the mesh, a pool around both blocks.
fn manifests(terms: &Terms) -> String {
    let (ours, theirs) = (pair::OUR_ADDRESS, pair::THEIR_ADDRESS);
    let asn = terms.our_asn;
    format!(
        "apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: pods
spec:
  cidr: 10.65.0.0/16
  blockSize: 26
  ipipMode: Never
---
apiVersion: crd.projectcalico.org/v1
kind: BGPConfiguration
metadata:
  name: default
spec:
  asNumber: {asn}
---
apiVersion: v1
kind: Node
metadata:
  name: ours
status:
  addresses:
  - type: InternalIP
    address: {ours}
---
apiVersion: v1
kind: Node
metadata:
  name: theirs
  annotations:
    projectcalico.org/IPv4Address: {theirs}/24
"
    )
}

fn routes(session: &mut Session) -> Result<(), Failed> {
    let learned = session.wait_until_learned()?;
    crate::ensure(
        learned.next_hop == session.terms.our_address().to_string(),
        || format!("the daemon has our block with {learned:?}"),
    )?;
    session.wait_until_installed(true)?;
    session.peer.announce(false)?;
    session.wait_until_installed(false)?;
    session.peer.announce(true)?;
    Ok(session.wait_until_installed(true)?)
}

fn refresh(session: &mut Session) -> Result<(), Failed> {
    let before = session.wait_until_learned()?;
    session.peer.refresh()?;
    // The session stands, and what is sent again is the same.
    session.wait_until_up()?;
    let after = session.wait_until_learned()?;
    crate::ensure(before == after, || format!("{before:?} became {after:?}"))
}

/// The daemon dies and comes back: the route to its block is never gone from the agent's kernel.
fn it_restarts(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_installed(true)?;
    let watch = session.pair.watch_routes()?;
    session.peer.crash(&session.pair)?;
    session.wait_until_up()?;
    session.wait_until_learned()?;
    let events = watch.end()?;
    let deleted = events
        .iter()
        .find(|line| line.starts_with("Deleted") && line.contains(THEIR_BLOCK));
    crate::ensure(deleted.is_none(), || {
        format!("the route was withdrawn: {deleted:?}")
    })?;
    Ok(session.wait_until_installed(true)?)
}

/// The agent dies and comes back: the daemon has its block all the time.
fn agent_restarts(session: &mut Session) -> Result<(), Failed> {
    session.wait_until_learned()?;
    let block = session.our_block()?;
    session.pair.agent.kill()?;
    wait_for("the daemon to notice", PATIENCE, || match session.peer.state() {
        Ok(Err(_)) => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let kept = session.peer.learned()?;
    crate::ensure(kept.contains_key(&block), || {
        format!("the daemon is left with {kept:?}")
    })?;
    session.pair.start_agent()?;
    session.wait_until_up()?;
    session.wait_until_learned()?;
    Ok(())
}
