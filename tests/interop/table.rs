//! The table of the README: which daemon did what. Written by this program (`UPDATE_GOLDEN=1`), and held against each run.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{daemon, trials};

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
const BEGIN: &str = "<!-- interoperability: written by tests/interop -->\n";
const END: &str = "<!-- end of interoperability -->\n";

/// What was seen to work, by daemon.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    by_daemon: Mutex<BTreeMap<&'static str, Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    version: String,
    features: Vec<&'static str>,
}

impl Passed {
    /// Notes that a daemon of this version did this.
    pub(crate) fn note(&self, daemon: &'static str, version: &str, feature: &'static str) {
        let mut all = self.lock();
        let seen = all.entry(daemon).or_default();
        version.clone_into(&mut seen.version);
        seen.features.push(feature);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Seen>> {
        self.by_daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table. What a daemon cannot do at all has a dash.
    fn render(&self) -> String {
        let all = self.lock();
        let kinds: Vec<_> = daemon::ALL
            .into_iter()
            .filter(|kind| all.contains_key(kind.name))
            .collect();
        let versions: Vec<_> = kinds.iter().map(|kind| all[kind.name].version.as_str()).collect();
        let mut text = format!(
            "| | {} |\n|---|{}\n",
            versions.join(" | "),
            "---|".repeat(kinds.len())
        );
        for feature in trials::ALL {
            let cell = |kind: &daemon::Kind| {
                let passed = all[kind.name].features.contains(&feature.name);
                match (feature.is_for(kind), passed) {
                    (false, _) => "-",
                    (true, true) => "passed",
                    (true, false) => "not run",
                }
            };
            let cells: Vec<_> = kinds.iter().map(cell).collect();
            text += &format!("| {} | {} |\n", feature.name.replace('_', " "), cells.join(" | "));
        }
        text
    }

    /// Writes the table into the README, or holds it against the one that is there; the versions may differ, since those
    /// are the machine's.
    pub(crate) fn check(&self) -> Result<(), String> {
        let readme = fs::read_to_string(README).map_err(|e| format!("{README}: {e}"))?;
        let parts = readme
            .split_once(BEGIN)
            .and_then(|(before, rest)| Some((before, rest.split_once(END)?)));
        let Some((before, (there, after))) = parts else {
            return Err(format!("{README} has no place for the table: {BEGIN}{END}"));
        };
        let table = self.render();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let written = fs::write(README, format!("{before}{BEGIN}{table}{END}{after}"));
            return written.map_err(|e| format!("{README}: {e}"));
        }
        let without_versions = |table: &str| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        if without_versions(&table) == without_versions(there) {
            return Ok(());
        }
        Err(format!(
            "the table in {README} is not what this run saw (UPDATE_GOLDEN=1 writes it):\n{table}"
        ))
    }
}
