//! The binary from outside: its arguments, its name, its environment and standard input, and what it prints.

#![allow(clippy::unwrap_used, reason = "a test ends where it is wrong")]

use std::collections::BTreeSet;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use culvert_agent::allocation::Assignment;
use culvert_agent::cni::{AddressSource, Attachments, Problem};
use culvert_agent::dataplane::Namespace;
use culvert_agent::datastore::directory::DirectoryStore;
use culvert_agent::http::{Confirmations, SocketApi, bind_socket, serve_socket};
use culvert_agent::status::{AgentStatus, DatastoreStatus, PeerStatus, PeerType, RouteStatus};
use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// One address, that one container may have.
#[derive(Default)]
struct OneAddress(Mutex<Option<String>>);

#[async_trait]
impl AddressSource for OneAddress {
    async fn assign(&self, wanted: Assignment) -> Result<Vec<IpAddr>, Problem> {
        let mut holder = self.0.lock().unwrap();
        if let Some(holder) = holder.as_ref().filter(|holder| **holder != wanted.handle) {
            let reason = format!("no address is free: {holder} has the only one");
            return Err(Problem { reason, retry: false });
        }
        *holder = Some(wanted.handle);
        Ok(vec!["10.65.42.1".parse().unwrap()])
    }

    async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        let addresses = self.addresses(handle).await?;
        self.0.lock().unwrap().take_if(|holder| holder == handle);
        Ok(addresses)
    }

    async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        let holds = self.0.lock().unwrap().as_deref() == Some(handle);
        Ok(if holds {
            vec!["10.65.42.1".parse().unwrap()]
        } else {
            vec![]
        })
    }

    async fn handles(&self, _: &[IpNet]) -> Result<BTreeSet<String>, Problem> {
        Ok(self.0.lock().unwrap().iter().cloned().collect())
    }
}

/// The agent's socket with this status, served in this process.
struct Agent {
    source: Arc<OneAddress>,
    folder: TempDir,
    _runtime: Runtime,
}

fn agent(status: AgentStatus) -> Agent {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let _guard = runtime.enter();
    let listener = bind_socket(&folder.path().join("agent.sock")).unwrap();
    let source = Arc::new(OneAddress::default());
    let (_, status) = watch::channel(Arc::new(status));
    let store = Arc::new(DirectoryStore::open(&folder.path().join("datastore")).unwrap());
    let attachments = Attachments::new(Arc::clone(&source) as _, store, status.clone());
    let attachments = Arc::new(attachments);
    let (confirmations, _) = Confirmations::channel();
    let api = SocketApi {
        status,
        attachments,
        confirmations,
        inquiries: culvert_agent::inquiry::Inquiries::channel().0,
        configuration: Arc::default(),
        tracer: None,
        metrics: culvert_agent::metrics::Metrics::register().unwrap(),
    };
    runtime.spawn(serve_socket(listener, api, CancellationToken::new()));
    Agent {
        source,
        folder,
        _runtime: runtime,
    }
}

impl Agent {
    fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    fn config(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "culvert-cni", "agentSocket": self.socket(),
        })
    }
}

fn running() -> AgentStatus {
    AgentStatus {
        node: "a".into(),
        datastore: DatastoreStatus {
            in_sync: true,
            problem: None,
        },
        pod_mtu: 1480,
        ..AgentStatus::default()
    }
}

const CALL: [(&str, &str); 4] = [
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", ""),
    ("CNI_PATH", "/opt/cni/bin"),
];

fn plugin(environment: &[(&str, &str)], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_culvert"))
        .arg0("/opt/cni/bin/culvert-cni")
        .env_clear()
        .envs(CALL)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may stop reading before the end: what counts is what it answers.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn refused(output: &Output, code: u32, words: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], code, "{error}");
    assert!(error["msg"].as_str().unwrap().contains(words), "{error}");
    assert!(
        error["cniVersion"].is_string() && error["details"].is_string(),
        "{error}"
    );
}

#[test]
fn the_plugin_tells_its_versions() {
    for (input, version) in [("", "1.1.0"), (r#"{"cniVersion":"0.4.0"}"#, "0.4.0")] {
        let output = plugin(&[("CNI_COMMAND", "VERSION")], input.as_bytes());
        assert!(output.status.success(), "{output:?}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let expected = json!({
            "cniVersion": version, "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        });
        assert_eq!(answer, expected);
    }
}

#[test]
fn the_plugin_refuses_a_wrong_call_in_the_runtimes_words() {
    refused(&plugin(&[], b""), 4, "CNI_COMMAND is not set");
    refused(&plugin(&[("CNI_COMMAND", "ADD")], b"{"), 6, "is not JSON");
    refused(&plugin(&[("CNI_COMMAND", "ADD")], b"{}"), 7, "cniVersion");
    refused(
        &plugin(&[("CNI_COMMAND", "ADD")], br#"{"cniVersion":"0.1.0","name":"a"}"#),
        1,
        "0.1.0",
    );
    let config = br#"{"cniVersion":"1.0.0","name":"a"}"#;
    refused(
        &plugin(&[("CNI_COMMAND", "ADD")], config),
        4,
        "CNI_NETNS is not set",
    );
    refused(
        &plugin(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "a/b")], config),
        4,
        "CNI_IFNAME",
    );
    refused(
        &plugin(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "../x")], config),
        4,
        "CNI_CONTAINERID",
    );
    let gone = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_NETNS", "/var/run/netns/there-is-none"),
    ];
    refused(&plugin(&gone, config), 3, "is gone");
    refused(
        &plugin(&[("CNI_COMMAND", "ADD")], &vec![b' '; (1 << 20) + 1]),
        5,
        "more than 1048576 bytes",
    );
}

#[test]
fn an_error_says_whose_it_was() {
    let args = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0";
    let output = plugin(&[("CNI_COMMAND", "ADD"), ("CNI_ARGS", args)], b"{");
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        error["details"]
            .as_str()
            .unwrap()
            .ends_with("container c1, pod default/web-0"),
        "{error}"
    );
}

#[test]
fn a_del_releases_the_address_and_says_nothing_however_often_it_comes() {
    let agent = agent(running());
    *agent.source.0.lock().unwrap() = Some("k8s-pod-network.c1".into());
    for _ in 0..2 {
        let output = plugin(&[("CNI_COMMAND", "DEL")], agent.config().to_string().as_bytes());
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert_eq!(*agent.source.0.lock().unwrap(), None);
    }
}

#[test]
fn a_del_without_an_agent_is_to_be_tried_again() {
    let config = br#"{"cniVersion":"0.4.0","name":"a","agentSocket":"/nowhere/agent.sock"}"#;
    let output = plugin(&[("CNI_COMMAND", "DEL")], config);
    refused(
        &output,
        11,
        "no agent answers on /nowhere/agent.sock (no such file or directory)",
    );
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["cniVersion"], "0.4.0");
}

#[test]
fn status_follows_the_agents_readiness() {
    let ready = agent(running());
    let output = plugin(
        &[("CNI_COMMAND", "STATUS")],
        ready.config().to_string().as_bytes(),
    );
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    let starting = agent(AgentStatus::starting("a"));
    let output = plugin(
        &[("CNI_COMMAND", "STATUS")],
        starting.config().to_string().as_bytes(),
    );
    refused(&output, 50, "datastore is not in sync yet");
}

/// Runs in a new network namespace. None, loudly, where the right to make one is missing.
fn in_new_namespace<T: Send>(run: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let entered = || match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => Some(run()),
            Err(error) => {
                eprintln!("SKIPPED: a network namespace cannot be made: {error}");
                None
            }
        };
        scope.spawn(entered).join().unwrap()
    })
}

/// The addresses of the interfaces of the calling thread's namespace, by the interface's name.
fn addresses() -> Vec<(String, Ipv4Addr)> {
    let address = |entry: nix::ifaddrs::InterfaceAddress| {
        let address = entry.address?.as_sockaddr_in()?.ip();
        Some((entry.interface_name, address))
    };
    nix::ifaddrs::getifaddrs().unwrap().filter_map(address).collect()
}

fn has_link(name: &str) -> bool {
    nix::net::if_::if_nametoindex(name).is_ok()
}

#[test]
fn a_pod_is_attached_checked_and_detached_in_the_kernel() {
    // The host of this test is a namespace of its own, and so is the pod within it.
    in_new_namespace(|| {
        let path = format!("/proc/self/task/{}/ns/net", nix::unistd::gettid());
        let host = Namespace::open(path.as_ref()).unwrap();
        in_new_namespace(|| {
            let pod = format!(
                "/proc/{}/task/{}/ns/net",
                std::process::id(),
                nix::unistd::gettid()
            );
            let agent = agent(running());
            let mut config = agent.config();
            let call = |command: &str, config: &Value| {
                let environment = [
                    ("CNI_COMMAND", command),
                    ("CNI_NETNS", &pod),
                    ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"),
                ];
                host.run(|| Ok(plugin(&environment, config.to_string().as_bytes())))
                    .unwrap()
            };

            let output = call("ADD", &config);
            assert!(output.status.success(), "{output:?}");
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            let host_end = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
            assert_eq!(result["interfaces"][0]["mac"], "ee:ee:ee:ee:ee:ee");
            assert_eq!(result["interfaces"][1]["sandbox"], *pod);
            assert_eq!(result["ips"][0]["address"], "10.65.42.1/32");
            let address = Ipv4Addr::new(10, 65, 42, 1);
            assert_eq!(addresses(), [("eth0".to_owned(), address)]);
            assert!(host.run(|| Ok(has_link(&host_end))).unwrap());

            config["prevResult"] = result;
            let output = call("CHECK", &config);
            assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
            for _ in 0..2 {
                let output = call("DEL", &config);
                assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
                assert!(!has_link("eth0"));
                assert!(!host.run(|| Ok(has_link(&host_end))).unwrap());
                assert_eq!(*agent.source.0.lock().unwrap(), None);
            }
            refused(
                &call("CHECK", &config),
                102,
                "has the addresses [], not 10.65.42.1",
            );
        })
    });
}

#[test]
fn an_address_that_cannot_be_used_is_given_back() {
    in_new_namespace(|| {
        let pod = format!(
            "/proc/{}/task/{}/ns/net",
            std::process::id(),
            nix::unistd::gettid()
        );
        // No interface takes packets that small.
        let agent = agent(AgentStatus {
            pod_mtu: 1,
            ..running()
        });
        let environment = [("CNI_COMMAND", "ADD"), ("CNI_NETNS", &*pod)];
        let config = agent.config().to_string();
        let output = in_new_namespace(|| plugin(&environment, config.as_bytes())).unwrap();
        refused(&output, 101, "create the veth pair cali");
        assert_eq!(*agent.source.0.lock().unwrap(), None);
    });
}

fn culvert(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_culvert"))
        .args(arguments)
        .env("TZ", "UTC")
        .output()
        .unwrap()
}

#[test]
fn node_status_prints_the_tables_or_the_whole_status_as_json() {
    let status = AgentStatus {
        peers: vec![PeerStatus {
            address: "172.18.0.12".parse().unwrap(),
            node: Some("b".into()),
            r#type: PeerType::Mesh,
            state: "Active".into(),
            since: "2026-11-20T10:00:00Z".parse().unwrap(),
            reason: Some("connection refused by 172.18.0.12:179".into()),
            prefixes_received: 0,
            prefixes_sent: 0,
            established_count: 0,
            failures: 0,
            failed: None,
            stale: false,
            outer_source: None,
        }],
        routes: RouteStatus {
            desired: 1,
            programmed: 1,
            ..RouteStatus::default()
        },
        ..running()
    };
    let agent = agent(status.clone());
    let socket = agent.socket();
    let socket = socket.to_str().unwrap();
    let output = culvert(&["node", "status", "--socket", socket]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("Culvert agent is running.\n\nIPv4 BGP status\n+-"),
        "{text}"
    );
    let row = "| 172.18.0.12  | node-to-node mesh | start | 2026-11-20 | Active: connection refused by 172.18.0.12:179 |";
    assert!(text.contains(row), "{text}");
    let output = culvert(&["node", "status", "-o", "json", "--socket", socket]);
    let told: AgentStatus = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told.answered.is_some(), "{told:?}");
    assert_eq!(
        AgentStatus {
            answered: None,
            ..told
        },
        status
    );
}

#[test]
fn a_node_with_which_something_is_wrong_is_not_one_that_cannot_be_asked() {
    let agent = agent(AgentStatus::starting("a"));
    let socket = agent.socket();
    let output = culvert(&["node", "status", "--socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text, "1 thing is wrong, as said above\n");
    for unheard in [
        &["node", "status", "--socket", "/nowhere/agent.sock"][..],
        &["doctor", "--socket", "/nowhere/agent.sock"],
        &["trace", "a/b", "c/d", "--socket", "/nowhere/agent.sock"],
        &["route", "explain", "10.65.0.1", "--socket", "/nowhere/agent.sock"],
        &["status", "--kubeconfig", "/nowhere/config"],
        &["doctor", "--all-nodes", "--kubeconfig", "/nowhere/config"],
        &["trace", "b"],
        &["status", "--timeout", "never"],
    ] {
        let output = culvert(unheard);
        assert_eq!(output.status.code(), Some(2), "{unheard:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{unheard:?}: {output:?}");
    }
}

#[test]
fn node_status_says_what_to_do_when_there_is_no_agent() {
    let output = culvert(&["node", "status", "--socket", "/nowhere/agent.sock"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: no agent answers on /nowhere/agent.sock (no such file or directory): is it running? \
         systemctl status culvert; or name another socket with --socket\n"
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn the_version_is_printed() {
    let output = culvert(&["--version"]);
    let expected = format!("culvert {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}
