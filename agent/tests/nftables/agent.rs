//! The whole agent: what it takes from the datastore, what it tells, what stays when it ends, and what `--cleanup` takes
//! away. That this kernel may have no ipip keeps it from none of that.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::netns::in_namespace;
use crate::world::{Host, nft, table, to, until};

/// Node b is known by its second address; its first is what its packets come from.
const OBJECTS: &str = "\
apiVersion: v1
kind: Node
metadata: {name: b, annotations: {projectcalico.org/IPv4Address: 198.51.100.3/24}}
status: {addresses: [{type: InternalIP, address: 192.0.2.3}]}
---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: pool}
spec: {cidr: 10.65.0.0/16, ipipMode: Always, natOutgoing: true}
";

/// An agent of node a, in the namespace of this thread.
struct Agent {
    folder: TempDir,
    running: Option<Child>,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let datastore = folder.path().join("datastore");
        fs::create_dir(&datastore).unwrap();
        fs::write(datastore.join("objects.yaml"), OBJECTS).unwrap();
        let mut agent = Self {
            folder,
            running: None,
        };
        let config = format!(
            "{{nodeName: a, node: {{address: 192.0.2.1}}, socket: {}, datastore: {{directory: {}}}}}",
            agent.socket().display(),
            datastore.display(),
        );
        fs::write(agent.config(), config).unwrap();
        let log = fs::File::create(agent.folder.path().join("log")).unwrap();
        let started = agent.command("agent").stderr(log).stdout(Stdio::null()).spawn();
        agent.running = Some(started.unwrap());
        agent
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("agent.yaml")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        command.args([subcommand, "--config"]).arg(self.config());
        command
    }

    fn status(&self) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
        let command = command.args(["node", "status", "--socket"]).arg(self.socket());
        // It ends with 1 while something is wrong with the node.
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }

    fn stop(&mut self) {
        let mut running = self.running.take().unwrap();
        kill(Pid::from_raw(running.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        running.wait().unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.kill();
            let _ = running.wait();
            eprintln!("{}", self.log());
        }
    }
}

#[test]
fn the_agent_refuses_strangers_says_whose_they_are_and_takes_its_table_away_only_when_told() {
    in_namespace(|| async {
        let peer = Host::joined("u0", "192.0.2.1/24", &["192.0.2.3/24"]);
        let mut agent = Agent::start();
        until("the table is there", || nft("list tables").contains("culvert")).await;
        let written = table();
        for part in [
            "192.0.2.1, 198.51.100.3",
            "10.65.0.0/16",
            "ip saddr @nodes accept",
        ] {
            assert!(written.contains(part), "{part} is not in\n{written}");
        }
        let strange = peer.ipip_from("192.0.2.3");
        for _ in 0..5 {
            strange.send_to(&[0x45; 28], &to("192.0.2.1")).unwrap();
        }
        let sentence = "5 packets from 192.0.2.3, which no node advertises; b advertises 198.51.100.3 and owns that \
                        address: its source pin is missing";
        until("the status tells", || {
            agent.status().contains(&format!("\nRefused: {sentence}.\n"))
        })
        .await;
        let log = agent.log();
        assert_eq!(
            log.matches("which no node advertises; b advertises").count(),
            1,
            "{log}"
        );
        agent.stop();
        assert!(table().contains("198.51.100.3"), "a restart cuts nothing");
        let cleaned = agent.command("agent").arg("--cleanup").output().unwrap();
        assert!(cleaned.status.success(), "{cleaned:?}");
        assert_eq!(nft("list ruleset"), "");
    });
}
