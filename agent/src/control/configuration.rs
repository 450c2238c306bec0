//! A configuration file that says something else than at the start.
//!
//! The agent goes by what it read then: another address, port or protocol number is a new beginning, which nobody wants from
//! a file that is half edited. So a change is told, with what it takes to go by it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::config::{Config, ConfigError};
use crate::events::Happening;

/// How often the file is read. No event tells all the ways in which a file is replaced: a ConfigMap's is a link to a link.
const INTERVAL: Duration = Duration::from_secs(5);

/// Reads the file again and again, and tells when it is not `running` any more, and when it is again.
pub(super) async fn watch(path: PathBuf, running: Config, tell: mpsc::Sender<Happening>) {
    watch_every(INTERVAL, path, running, tell).await;
}

async fn watch_every(every: Duration, path: PathBuf, running: Config, tell: mpsc::Sender<Happening>) {
    let mut told = None;
    let mut turns = interval(every);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turns.tick().await;
        let (file, name) = (path.clone(), running.node_name.as_str().to_owned());
        let read = tokio::task::spawn_blocking(move || Config::load(Some(&file), Some(&name)));
        let Ok(read) = read.await else { return };
        let words = difference(&path, &running, &read);
        if words == told {
            continue;
        }
        if let Some(words) = &words {
            warn!("{words}");
            // An event that nobody takes in is no reason to wait.
            let _ = tell.try_send(("ConfigurationChanged", words.clone()));
        } else {
            info!(file = %path.display(), "the configuration is again what this agent goes by");
        }
        told = words;
    }
}

/// What the file says otherwise than the agent goes by, and what to do.
fn difference(path: &Path, running: &Config, read: &Result<Config, ConfigError>) -> Option<String> {
    match read {
        Ok(read) => {
            let fields = running.differences(read);
            (!fields.is_empty()).then(|| {
                format!(
                    "{} has another {} now than when this agent started, which goes by what it read then: restart the \
                     agent (its routes stay meanwhile), or change the file back",
                    path.display(),
                    fields.join(", ")
                )
            })
        }
        Err(error) => Some(format!(
            "this agent goes by what it read at its start, and a restart would fail: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_file_that_is_edited_is_told_with_the_field_and_what_to_do_and_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.yaml");
        let write = |text: &str| {
            let beside = folder.path().join("new");
            std::fs::write(&beside, text).unwrap();
            std::fs::rename(&beside, &file).unwrap();
        };
        write("node: {address: 172.18.0.11}");
        let running = Config::load(Some(&file), Some("node1")).unwrap();
        let (tell, mut told) = mpsc::channel(4);
        let task = tokio::spawn(watch_every(Duration::from_millis(5), file.clone(), running, tell));
        for (text, words) in [
            (
                "node: {address: 172.18.0.31}",
                ["node.address", "restart the agent"],
            ),
            ("node: {adress: 172.18.0.31}", ["a restart would fail", "adress"]),
            (
                "node: {address: 172.18.0.11}\nroutes: {sourcePin: off}",
                ["another routes now", "restart the agent"],
            ),
        ] {
            write(text);
            let (_, sentence) = tokio::time::timeout(PATIENCE, told.recv())
                .await
                .unwrap()
                .unwrap();
            assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
        }
        assert!(!task.is_finished());
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        assert!(told.recv().await.is_none(), "each is told once");
    }

    #[test]
    fn every_section_that_differs_is_named() {
        let read = |text: &str| {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("agent.yaml");
            std::fs::write(&file, text).unwrap();
            Config::load(Some(&file), Some("node1")).unwrap()
        };
        let running = read("");
        assert!(running.differences(&read("bgp: {holdTime: 90}")).is_empty());
        let other = read(
            "{datastore: {syncTimeout: 5}, state: {directory: /x}, safety: {maxVanishShare: 1}, socket: /x, \
             node: {address: 10.0.0.1, addressV6: '2001:db8::1', asNumber: 7}, bgp: {holdTime: 9}, \
             http: {listen: '127.0.0.1:1'}, routes: {protocol: 99}, tunnel: {mtu: 1400}, \
             filter: {unknownTunnelPeers: off}, garbageCollection: {interval: 9}, log: {level: debug}}",
        );
        assert_eq!(
            running.differences(&other),
            [
                "datastore",
                "state",
                "safety",
                "node.address",
                "node.addressV6",
                "node.asNumber",
                "bgp",
                "socket",
                "http",
                "routes",
                "tunnel",
                "filter",
                "garbageCollection",
                "log"
            ]
        );
    }
}
