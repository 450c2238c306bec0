//! The plugin against an agent in the same process and a kernel that only notes.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::cni::attachments::tests::{Source, attachments, running};
use crate::dataplane::{HOST_MAC, MacAddress};
use crate::http::{SocketApi, bind_socket, serve_socket};

/// An agent whose addresses are in memory, on a socket of its own.
struct Agent {
    source: Arc<Source>,
    folder: TempDir,
    _stop: DropGuard,
}

fn agent() -> Agent {
    let folder = tempfile::tempdir().unwrap();
    let listener = bind_socket(&folder.path().join("s")).unwrap();
    let source = Source::open("10.65.42.1");
    let (_, status) = watch::channel(Arc::new(running()));
    let api = SocketApi {
        status,
        attachments: Arc::new(attachments(&source, running())),
        confirmations: crate::http::Confirmations::channel().0,
        inquiries: crate::inquiry::Inquiries::channel().0,
        configuration: Arc::default(),
        tracer: None,
        metrics: crate::metrics::Metrics::register().unwrap(),
    };
    let stop = CancellationToken::new();
    tokio::spawn(serve_socket(listener, api, stop.clone()));
    Agent {
        source,
        folder,
        _stop: stop.drop_guard(),
    }
}

impl Agent {
    fn config(&self, version: &str) -> Vec<u8> {
        let socket = self.folder.path().join("s");
        json!({ "cniVersion": version, "name": "k8s-pod-network", "agentSocket": socket })
            .to_string()
            .into_bytes()
    }
}

/// A kernel that notes what it is asked, and refuses if told so.
#[derive(Default)]
struct Noted {
    attached: Mutex<Vec<PodLink>>,
    detached: Mutex<Vec<(String, Option<PathBuf>, String)>>,
    refuses: bool,
    routed: Vec<IpAddr>,
}

impl Noted {
    fn answer(&self) -> Result<(), DataplaneError> {
        if self.refuses {
            return Err(DataplaneError::ConnectionLost {
                operation: "pair".into(),
            });
        }
        Ok(())
    }
}

impl PodNetwork for Noted {
    fn attach(&self, link: &PodLink) -> Result<PodAttached, DataplaneError> {
        self.attached.lock().unwrap().push(link.clone());
        self.answer()?;
        Ok(PodAttached {
            host_mac: HOST_MAC,
            pod_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        })
    }

    fn detach(&self, host: &str, netns: Option<&Path>, pod: &str) -> Result<(), DataplaneError> {
        let call = (host.to_owned(), netns.map(Path::to_owned), pod.to_owned());
        self.detached.lock().unwrap().push(call);
        self.answer()
    }

    fn addresses_behind(&self, _host: &str) -> Result<Vec<IpAddr>, CniError> {
        Ok(self.routed.clone())
    }

    fn links_to(&self, addresses: &[IpAddr]) -> Result<Vec<String>, CniError> {
        let routed = self.routed.iter().filter(|address| addresses.contains(*address));
        Ok(routed.map(|address| format!("cali-{address}")).collect())
    }
}

/// A network namespace that is not the one of the tests, for as long as this lives: a thread waits in it.
struct Namespace {
    path: PathBuf,
    _stay: std::sync::mpsc::Sender<()>,
}

impl Namespace {
    /// None, loudly, where the right to make one is missing.
    fn new() -> Option<Self> {
        let (_stay, leave) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            let _ = tell.send(made.map(|()| nix::unistd::gettid()));
            let _ = leave.recv();
        });
        match told.recv().unwrap() {
            Ok(thread) => Some(Self {
                path: format!("/proc/self/task/{thread}/ns/net").into(),
                _stay,
            }),
            Err(error) => {
                eprintln!("SKIPPED: a network namespace cannot be made: {error}");
                None
            }
        }
    }
}

/// The plugin's answer. It waits for the agent, which is in this process: on a thread that nothing else needs meanwhile.
async fn asked(
    environment: &Environment,
    input: &[u8],
    network: &dyn PodNetwork,
) -> Result<Option<Value>, CniError> {
    tokio::task::block_in_place(|| answer(environment, input, network))
}

fn call(command: &str, netns: &Path) -> Environment {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", netns.to_str().unwrap()),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx-0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
    .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn add_wires_the_pod_with_the_address_it_was_given_and_del_takes_both_back() {
    let Some(netns) = Namespace::new() else { return };
    let (agent, kernel) = (agent(), Noted::default());
    let result = asked(&call("ADD", &netns.path), &agent.config("1.0.0"), &kernel)
        .await
        .unwrap()
        .unwrap();
    let host = super::super::host_link_name(
        Some(&Pod {
            namespace: "default".into(),
            name: "nginx-0".into(),
        }),
        &"c1".parse().unwrap(),
    );
    assert_eq!(result["cniVersion"], "1.0.0");
    assert_eq!(result["ips"][0]["address"], "10.65.42.1/32");
    assert_eq!(result["interfaces"][0]["name"], *host);
    assert_eq!(result["interfaces"][1]["sandbox"], netns.path.to_str().unwrap());
    let wired = kernel.attached.lock().unwrap()[0].clone();
    assert_eq!((wired.address, wired.mtu), (Ipv4Addr::new(10, 65, 42, 1), 1480));
    assert_eq!(
        (&wired.host_name, &wired.pod_netns, &*wired.pod_name),
        (&host, &netns.path, "eth0")
    );

    let del = asked(&call("DEL", &netns.path), &agent.config("1.0.0"), &kernel).await;
    assert_eq!(del, Ok(None));
    assert!(agent.source.held.lock().unwrap().is_empty());
    assert_eq!(
        *kernel.detached.lock().unwrap(),
        [(host, Some(netns.path.clone()), "eth0".into())]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_given_back_when_the_pod_cannot_be_wired() {
    let Some(netns) = Namespace::new() else { return };
    let (agent, kernel) = (
        agent(),
        Noted {
            refuses: true,
            ..Noted::default()
        },
    );
    let error = asked(&call("ADD", &netns.path), &agent.config("1.0.0"), &kernel)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Kernel);
    assert_eq!(
        error.message,
        "pair: the netlink connection ended before the kernel answered; only a new dump tells whether it was done"
    );
    assert!(agent.source.held.lock().unwrap().is_empty());
    assert_eq!(
        agent.source.attributes.lock().unwrap().len(),
        1,
        "there was one to give back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_kept_when_the_pod_cannot_be_unwired() {
    let Some(netns) = Namespace::new() else { return };
    let agent = agent();
    asked(
        &call("ADD", &netns.path),
        &agent.config("1.0.0"),
        &Noted::default(),
    )
    .await
    .unwrap();
    let kernel = Noted {
        refuses: true,
        ..Noted::default()
    };
    let error = asked(&call("DEL", &netns.path), &agent.config("1.0.0"), &kernel)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Kernel);
    assert!(
        agent
            .source
            .held
            .lock()
            .unwrap()
            .contains_key("k8s-pod-network.c1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_del_succeeds_though_the_namespace_is_gone() {
    let (agent, kernel) = (agent(), Noted::default());
    for netns in ["", "/var/run/netns/there-is-none", "/proc/self/ns/net"] {
        let del = asked(&call("DEL", netns.as_ref()), &agent.config("0.3.1"), &kernel).await;
        assert_eq!(del, Ok(None), "{netns}");
    }
    assert!(
        kernel
            .detached
            .lock()
            .unwrap()
            .iter()
            .all(|(_, netns, _)| netns.is_none())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_del_gives_the_address_back_and_leaves_the_pod_that_was_set_up_anew() {
    let agent = agent();
    let old = IpAddr::from([10, 65, 42, 1]);
    for (routed, unwired) in [
        (vec![IpAddr::from([10, 65, 42, 9])], false),
        (vec![old], true),
        (vec![], true),
    ] {
        agent
            .source
            .held
            .lock()
            .unwrap()
            .insert("k8s-pod-network.c1".into(), vec![old]);
        let kernel = Noted {
            routed,
            ..Noted::default()
        };
        let del = asked(&call("DEL", Path::new("")), &agent.config("1.0.0"), &kernel).await;
        assert_eq!(del, Ok(None));
        assert!(agent.source.held.lock().unwrap().is_empty());
        assert_eq!(
            !kernel.detached.lock().unwrap().is_empty(),
            unwired,
            "{:?}",
            kernel.routed
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_detaches_the_containers_that_are_not_named_and_no_others() {
    let agent = agent();
    for (handle, last) in [
        ("k8s-pod-network.gone", 1),
        ("k8s-pod-network.there", 2),
        ("k8s-pod-network.b.gone", 3),
        ("another.gone", 4),
        ("ipip-tunnel-addr-a", 5),
    ] {
        let address = IpAddr::from([10, 65, 42, last]);
        agent
            .source
            .held
            .lock()
            .unwrap()
            .insert(handle.to_owned(), vec![address]);
    }
    let mut config: Value = serde_json::from_slice(&agent.config("1.1.0")).unwrap();
    let environment: Environment = [("CNI_COMMAND".to_owned(), "GC".to_owned())]
        .into_iter()
        .collect();
    let kernel = Noted {
        routed: vec![IpAddr::from([10, 65, 42, 1]), IpAddr::from([10, 65, 42, 2])],
        ..Noted::default()
    };
    // Without the list nothing is known to be unwanted.
    let error = asked(&environment, config.to_string().as_bytes(), &kernel)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::InvalidConfig, "{error}");
    assert_eq!(agent.source.held.lock().unwrap().len(), 5);

    config["cni.dev/valid-attachments"] = json!([{ "containerID": "there", "ifname": "eth0" }]);
    for _ in 0..2 {
        let gc = asked(&environment, config.to_string().as_bytes(), &kernel).await;
        assert_eq!(gc, Ok(None));
        let kept: Vec<_> = agent.source.held.lock().unwrap().keys().cloned().collect();
        let wanted = [
            "another.gone",
            "ipip-tunnel-addr-a",
            "k8s-pod-network.b.gone",
            "k8s-pod-network.there",
        ];
        assert_eq!(kept, wanted);
    }
    let detached = kernel.detached.lock().unwrap().clone();
    assert_eq!(detached, [("cali-10.65.42.1".to_owned(), None, String::new())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_unwired_while_the_agent_is_away() {
    let kernel = Noted::default();
    let config = br#"{"cniVersion":"1.0.0","name":"a","agentSocket":"/nowhere/agent.sock"}"#;
    let error = asked(&call("DEL", Path::new("")), config, &kernel)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::TryAgainLater);
    assert_eq!(
        error.message,
        "no agent answers on /nowhere/agent.sock (no such file or directory): is it running? \
         systemctl status culvert; or name another socket as agentSocket in the network configuration"
    );
    assert!(kernel.detached.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn check_sees_that_the_address_is_not_in_the_pod() {
    let Some(netns) = Namespace::new() else { return };
    let agent = agent();
    let mut config: Value = serde_json::from_slice(&agent.config("1.0.0")).unwrap();
    let environment = call("CHECK", &netns.path);
    let error = asked(&environment, config.to_string().as_bytes(), &Noted::default())
        .await
        .unwrap_err();
    assert_eq!(
        (error.code, &*error.message),
        (Code::InvalidConfig, "CHECK needs prevResult, the answer to ADD")
    );
    config["prevResult"] = json!({ "ips": [{ "address": "10.65.42.1/32" }] });
    let error = asked(&environment, config.to_string().as_bytes(), &Noted::default())
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Changed);
    assert!(
        error.message.ends_with(" has the addresses [], not 10.65.42.1"),
        "{error}"
    );
    config["cniVersion"] = "0.3.1".into();
    let error = asked(&environment, config.to_string().as_bytes(), &Noted::default())
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::IncompatibleVersion);
}
