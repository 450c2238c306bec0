//! How many paths and routes a session carries. Calico's resources have no field for either: the configuration of the agent
//! says it for all peers, and annotations of a BGPPeer for the peers that it names.

use std::collections::BTreeMap;

use culvert_bgp::config::{FamilyConfig, PrefixLimit};
use serde::{Deserialize, Serialize};

use super::Fault;
use crate::api::peer_annotation::{ADD_PATH, MAX_PREFIXES};

/// The most that `bgp.maxPrefixes` may be.
pub const MOST_PREFIXES: u32 = 10_000_000;

/// Whether a session carries several paths to one destination (RFC 7911), as far as the peer can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddPath {
    /// The best alone, both ways.
    #[default]
    Off,
    /// Several from the peer.
    Receive,
    /// All of them to the peer.
    Send,
    /// Both.
    Both,
}

/// How many paths and routes the session with a peer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathTerms {
    /// To one destination.
    pub add_path: AddPath,
    /// The most routes that are taken from the peer, 1 to [`MOST_PREFIXES`]. With more the session ends for a while.
    pub max_prefixes: u32,
}

impl Default for PathTerms {
    fn default() -> Self {
        Self {
            add_path: AddPath::default(),
            max_prefixes: u32::try_from(PrefixLimit::default().most).unwrap_or(MOST_PREFIXES),
        }
    }
}

impl PathTerms {
    /// These, but for what the annotations of a resource say otherwise. What cannot be read is left out, and named.
    pub(super) fn overlaid(
        mut self,
        annotations: &BTreeMap<String, String>,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut wrong = |annotation: &'static str, value: &str, allowed: &'static str| {
            faults.push(Fault::Annotation {
                annotation,
                value: value.to_owned(),
                allowed,
            });
        };
        match annotations.get(ADD_PATH).map(String::as_str) {
            None => {}
            Some("off") => self.add_path = AddPath::Off,
            Some("receive") => self.add_path = AddPath::Receive,
            Some("send") => self.add_path = AddPath::Send,
            Some("both") => self.add_path = AddPath::Both,
            Some(other) => wrong(ADD_PATH, other, "off, receive, send or both"),
        }
        if let Some(text) = annotations.get(MAX_PREFIXES) {
            match text.parse() {
                Ok(number) if (1..=MOST_PREFIXES).contains(&number) => self.max_prefixes = number,
                _ => wrong(MAX_PREFIXES, text, "a whole number from 1 to 10000000"),
            }
        }
        self
    }

    /// The same, as the speaker has it for a family. People are warned at three quarters of the limit.
    pub(super) fn of_family(self) -> FamilyConfig {
        let most = usize::try_from(self.max_prefixes).unwrap_or(usize::MAX);
        FamilyConfig {
            add_path_send: matches!(self.add_path, AddPath::Send | AddPath::Both),
            add_path_receive: matches!(self.add_path, AddPath::Receive | AddPath::Both),
            limit: PrefixLimit {
                most,
                warn: most - most / 4,
                ..PrefixLimit::default()
            },
            ..FamilyConfig::default()
        }
    }
}
