//! `culvert node status -o json`, read leniently: what a laboratory needs of it, wherever else it grows.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde::Deserialize;

use crate::LabError;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Status {
    /// Its node.
    pub node: String,
    /// The address that it is known by; none until it has found that.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    #[serde(default)]
    peers: Vec<Peer>,
    /// Its routes.
    #[serde(default)]
    pub routes: Routes,
    /// The blocks that it owns.
    #[serde(default)]
    pub blocks: Vec<String>,
    /// Addresses of those blocks that somebody has.
    #[serde(default, rename = "addressesInUse")]
    pub addresses_in_use: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Peer {
    address: String,
    state: String,
    #[serde(default, rename = "establishedCount")]
    established_count: u64,
    #[serde(default, rename = "prefixesReceived")]
    prefixes_received: u64,
}

/// How many routes there should be, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Routes {
    /// Routes that should be in the kernel.
    pub desired: u64,
    /// Of those, the ones that are.
    pub programmed: u64,
}

impl Status {
    /// Reads the JSON that the command printed.
    ///
    /// # Errors
    /// When it is not JSON, or lacks what the laboratory needs.
    pub fn read(text: &str) -> Result<Self, LabError> {
        serde_json::from_str(text).map_err(|e| LabError::Answer {
            what: "the output of `culvert node status -o json`".to_owned(),
            reason: e.to_string(),
            text: text.to_owned(),
        })
    }

    /// The state of the session with each peer, by the peer's address.
    #[must_use]
    pub fn sessions(&self) -> BTreeMap<&str, &str> {
        self.peers
            .iter()
            .map(|p| (p.address.as_str(), p.state.as_str()))
            .collect()
    }

    /// How often the session with each peer has come up, by the peer's address.
    #[must_use]
    pub fn established_counts(&self) -> BTreeMap<&str, u64> {
        self.peers
            .iter()
            .map(|p| (p.address.as_str(), p.established_count))
            .collect()
    }

    /// How many routes each peer has told of, by the peer's address.
    #[must_use]
    pub fn prefixes_received(&self) -> BTreeMap<&str, u64> {
        self.peers
            .iter()
            .map(|p| (p.address.as_str(), p.prefixes_received))
            .collect()
    }

    /// How many sessions are Established.
    #[must_use]
    pub fn established(&self) -> usize {
        self.peers.iter().filter(|p| p.state == "Established").count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_the_laboratory_does_not_know_are_no_obstacle() {
        let status = Status::read(
            r#"{"node": "node1", "later": 1, "blocks": ["10.65.1.0/26"], "routes": {"desired": 3, "programmed": 2, "x": []},
                "peers": [{"address": "172.18.0.12", "state": "Established", "since": "now"},
                          {"address": "172.18.0.13", "state": "Active"}]}"#,
        )
        .unwrap();
        assert_eq!(status.established(), 1);
        assert_eq!(status.sessions()["172.18.0.13"], "Active");
        assert_eq!(
            status.routes,
            Routes {
                desired: 3,
                programmed: 2
            }
        );
    }

    #[test]
    fn what_is_no_status_is_shown() {
        let error = Status::read("agent is not running").unwrap_err();
        assert!(error.to_string().ends_with("agent is not running"));
    }
}
