//! An agent and a daemon, and what a trial asks of both.

use std::time::Duration;

use harness::capture::PacketFile;
use harness::pair::{self, Pair};
use harness::{LabError, wait_for};
use libtest_mimic::Failed;

use super::manifests::manifests;
use crate::daemon::{Kind, Learned, Peer, THEIR_BLOCK, Terms};

/// How long anything may take, on the slowest machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// An agent and a daemon with a session between them.
pub(super) struct Session {
    // Dropped before the pair, which takes its namespace away.
    pub(super) peer: Box<dyn Peer>,
    pub(super) pair: Pair,
    pub(super) terms: Terms,
    /// What went over the wire since before the agent was started.
    pub(super) capture: PacketFile,
}

/// Puts a line behind the agent's configuration, in place of one that was put there before.
fn configure(pair: &Pair, bgp: &str) -> Result<(), LabError> {
    let path = pair.agent.config();
    let io = |source| LabError::Io {
        operation: format!("change {}", path.display()),
        source,
    };
    let text = std::fs::read_to_string(&path).map_err(io)?;
    let kept = text.lines().filter(|line| !line.starts_with("bgp:"));
    let mut text: String = kept.flat_map(|line| [line, "\n"]).collect();
    if !bgp.is_empty() {
        text += &format!("bgp: {{{bgp}}}\n");
    }
    std::fs::write(&path, text).map_err(io)
}

impl Session {
    /// Starts both; nobody has waited for the session yet.
    pub(super) fn start(kind: Kind, terms: Terms) -> Result<Self, Failed> {
        let mut pair = Pair::build(&manifests(&terms))?;
        let peer = (kind.start)(&pair, &terms)?;
        let capture = pair.capture()?;
        configure(&pair, terms.configured)?;
        pair.start_agent()?;
        Ok(Self {
            peer,
            pair,
            terms,
            capture,
        })
    }

    /// Gives the agent what its terms are by now, as an operator changes resources while all runs.
    pub(super) fn configure(&self) -> Result<(), LabError> {
        self.pair.configure(&manifests(&self.terms))
    }

    /// Starts the agent anew, with this in the section `bgp` of its configuration.
    pub(super) fn restart_agent_with(&mut self, bgp: &str) -> Result<(), LabError> {
        self.pair.agent.terminate()?;
        configure(&self.pair, bgp)?;
        self.pair.start_agent()
    }

    pub(super) fn wait_until_up(&self) -> Result<(), LabError> {
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

    /// How often the session has come up.
    pub(super) fn established_count(&self) -> Result<u64, LabError> {
        let address = self.terms.their_address().to_string();
        let status = self.pair.agent.status()?;
        Ok(status
            .established_counts()
            .get(address.as_str())
            .copied()
            .unwrap_or(0))
    }

    /// An error with what both ends say of it.
    pub(super) fn explain(&self, error: &Failed) -> Failed {
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
    pub(super) fn our_block(&self) -> Result<String, LabError> {
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
    pub(super) fn wait_until_learned(&self) -> Result<Learned, LabError> {
        self.wait_until_it_has(&self.our_block()?)
    }

    /// Waits until the daemon has this destination from us, and returns what it knows of it.
    pub(super) fn wait_until_it_has(&self, block: &str) -> Result<Learned, LabError> {
        wait_for(&format!("the daemon to learn {block}"), PATIENCE, || {
            let learned = self.peer.learned().map_err(|e| e.to_string())?;
            let found = learned.get(block).cloned();
            found.ok_or_else(|| format!("{:?}", learned.keys().collect::<Vec<_>>()))
        })
    }

    /// Waits until the agent has so many routes from the daemon.
    pub(super) fn wait_until_received(&self, count: u64) -> Result<(), LabError> {
        wait_for(&format!("the agent to have {count} routes"), PATIENCE, || {
            let status = self.pair.agent.status().map_err(|e| e.to_string())?;
            let address = self.terms.their_address().to_string();
            match status.prefixes_received().get(address.as_str()) {
                Some(received) if *received == count => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
    }

    /// Waits until the agent's kernel has `wanted` of this destination, as `ip -oneline route show` prints it.
    pub(super) fn wait_until_kernel_has(
        &self,
        family: &str,
        destination: &str,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), LabError> {
        wait_for(&format!("{destination} to be {what}"), PATIENCE, || {
            match self
                .pair
                .ours
                .ip(&format!("{family} -oneline route show {destination}"))
            {
                Ok(shown) if wanted(&shown) => Ok(()),
                Ok(shown) => Err(format!("{shown:?}")),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    /// Whether the agent's kernel has the daemon's destination.
    fn is_installed(&self, destination: &str) -> Result<bool, LabError> {
        let wanted = format!("{destination} via {} dev eth0 proto culvert", pair::THEIR_ADDRESS);
        let routes = self.pair.ours.routes()?;
        Ok(routes.iter().any(|line| line.starts_with(&wanted)))
    }

    pub(super) fn wait_until_installed(&self, installed: bool) -> Result<(), LabError> {
        self.wait_until_has(THEIR_BLOCK, installed)
    }

    /// Waits until the agent's kernel has the daemon's destination, or has it no more.
    pub(super) fn wait_until_has(&self, destination: &str, installed: bool) -> Result<(), LabError> {
        let what = format!(
            "{destination} to be {}",
            if installed { "installed" } else { "removed" }
        );
        wait_for(&what, PATIENCE, || match self.is_installed(destination) {
            Ok(is) if is == installed => Ok(()),
            Ok(_) => Err(format!("{:?}", self.pair.ours.routes())),
            Err(error) => Err(error.to_string()),
        })
    }
}
