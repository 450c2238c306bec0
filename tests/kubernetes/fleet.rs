//! A cluster of a thousand nodes, seen with nothing but a kubeconfig: through the proxy of a real API server, to as many
//! agents. These are invented: one socket hears for all of their addresses, and says what agents say. Some say nothing, some
//! refuse, some are not there; then a third of all nodes falls silent, as when a zone is cut off.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use culvert_agent::datastore::Datastore as _;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::doctor::{Check, Finding, Report};
use culvert_agent::http::{Peers, Question};
use culvert_agent::status::{AgentStatus, DatastoreStatus, PeerStatus, PeerType, SessionCounts};
use futures_util::{FutureExt as _, StreamExt as _};
use harness::api_server::{ADMIN, Setup};
use harness::{ApiServer, Lab, Layout, Mode, Namespace, kernel};
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use crate::chart::permit_operator;
use crate::scale::{self, name};
use crate::servers::{NODE, Server, install_crds};
use crate::survey::OPERATOR;
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [("of_a_thousand_nodes_every_one_is_told_of_in_time", fleet)];

const NODES: usize = 1000;
/// Where the agents hear, and where nobody does.
const PORTS: (u16, u16) = (9179, 9180);
/// How long may be waited: see [`told`].
const TERMS: [&str; 4] = ["--timeout", "45", "--node-timeout", "10"];
/// How many objects are written at once.
const AT_ONCE: usize = 16;
/// How long the doctor of a node looks at the counters of its packet filters.
const LOOK: Duration = Duration::from_millis(500);
/// The answer of an agent that is busy (HTTP/1.1, RFC 9110 §15.6.4), as the real one gives it.
const BUSY: &str = "the agent is busy with 4 other questions: ask again";
const UNFORWARDING: &str = "this host does not forward packets";

/// What becomes of a question to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Answered,
    Silent,
    Refused,
    Busy,
    Pending,
    WithoutPod,
}

impl Fate {
    /// While a zone is cut off, those in it are silent that answered.
    fn of(number: usize, is_cut_off: bool) -> Self {
        match number % 100 {
            7 => Self::Silent,
            27 => Self::Refused,
            47 => Self::Busy,
            67 => Self::Pending,
            87 => Self::WithoutPod,
            _ if is_cut_off && number.is_multiple_of(3) => Self::Silent,
            _ => Self::Answered,
        }
    }

    /// What an operator is told of the node.
    fn words(self) -> &'static str {
        match self {
            Self::Answered => "",
            Self::Silent => "no answer within ",
            Self::Refused => ":9180: connect: connection refused; is the chart's http.address 127.0.0.1",
            Self::Busy => BUSY,
            Self::Pending => "its agent does not run: the pod culvert-",
            Self::WithoutPod => "no agent runs there: no pod of the DaemonSet is on this node",
        }
    }
}

fn address(number: usize) -> Result<Ipv4Addr, Failed> {
    let (high, low) = (u8::try_from(number / 250)?, u8::try_from(number % 250)?);
    Ok(Ipv4Addr::new(10, high, low, 9))
}

fn number_of(address: Ipv4Addr) -> usize {
    let [_, high, low, _] = address.octets().map(usize::from);
    high * 250 + low
}

/// All agents, until it is dropped.
struct Agents {
    is_cut_off: Arc<AtomicBool>,
    _runtime: Runtime,
}

impl Agents {
    /// In a namespace whose kernel takes all of the nodes' addresses for its own.
    fn start(namespace: &Namespace) -> Result<Self, Failed> {
        namespace.ip("link set lo up")?;
        namespace.ip("route add local 10.0.0.0/13 dev lo")?;
        let listener = namespace.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORTS.0)))??;
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let is_cut_off = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&is_cut_off);
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let is_cut_off = Arc::clone(&shared);
                // A connection that breaks is the other side's to tell.
                tokio::spawn(async move { drop(serve(stream, &is_cut_off).await) });
            }
        });
        Ok(Self {
            is_cut_off,
            _runtime: runtime,
        })
    }
}

/// One connection, question after question.
async fn serve(stream: TcpStream, is_cut_off: &AtomicBool) -> Result<(), Failed> {
    let IpAddr::V4(address) = stream.local_addr()?.ip() else {
        return Err("not of IPv4".into());
    };
    let number = number_of(address);
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let target = head.split(' ').nth(1).unwrap_or_default();
        let is_cut_off = is_cut_off.load(Ordering::Relaxed);
        let (code, body) = match Fate::of(number, is_cut_off) {
            // Until the other side gives up.
            Fate::Silent => {
                stream.read_line(&mut String::new()).await?;
                return Ok(());
            }
            Fate::Busy => (
                "503 Service Unavailable",
                json!({"reason": BUSY, "retry": true}).to_string(),
            ),
            _ if target == Question::Doctor.target() => {
                tokio::time::sleep(LOOK).await;
                ("200 OK", serde_json::to_string(&report(number))?)
            }
            _ if target == Question::Status(Peers::Exceptional).target() => {
                ("200 OK", serde_json::to_string(&status(number, is_cut_off)?)?)
            }
            _ => ("404 Not Found", String::new()),
        };
        let head = format!(
            "HTTP/1.1 {code}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
    }
}

/// What an agent says of itself in a mesh of all nodes, where only what is wrong is asked for. All sessions with who is cut off
/// are down.
fn status(number: usize, is_cut_off: bool) -> Result<AgentStatus, Failed> {
    let is_lost = |other: &usize| is_cut_off && Fate::of(*other, true) != Fate::of(*other, false);
    let down = (0..NODES).filter(|other| *other != number).filter(is_lost);
    let peers: Result<Vec<PeerStatus>, Failed> = down.map(lost).collect();
    let peers = peers?;
    let full = AgentStatus {
        address: Some(IpAddr::V4(address(number)?)),
        asn: 64_512,
        answered: Some(jiff::Timestamp::now()),
        datastore: DatastoreStatus {
            in_sync: true,
            problem: None,
        },
        sessions: SessionCounts {
            peers: NODES - 1,
            established: NODES - 1 - peers.len(),
        },
        peers,
        pools: 1,
        blocks: vec!["10.65.42.0/26".parse()?],
        addresses_in_use: 30,
        pod_mtu: 1480,
        converged: true,
        ..AgentStatus::starting(&name(number))
    };
    Ok(full.exceptional())
}

/// A peer whose session is down.
fn lost(number: usize) -> Result<PeerStatus, Failed> {
    let reason = "connection timed out: the host is down, or something filters TCP port 179";
    Ok(PeerStatus {
        address: IpAddr::V4(address(number)?),
        node: Some(name(number)),
        r#type: PeerType::Mesh,
        state: "Active".to_owned(),
        since: jiff::Timestamp::UNIX_EPOCH,
        reason: Some(reason.to_owned()),
        failures: 3,
        failed: None,
        prefixes_received: 0,
        prefixes_sent: 0,
        established_count: 1,
        stale: true,
        outer_source: None,
    })
}

/// What the doctor of a node finds: nothing, but for one in a hundred.
fn report(number: usize) -> Report {
    let finding = Finding {
        check: Check::Forwarding,
        finding: UNFORWARDING.to_owned(),
        evidence: "net.ipv4.ip_forward is 0".to_owned(),
        consequence: "no packet gets to or from a pod on this node while it is off".to_owned(),
        cure: "sysctl -w net.ipv4.ip_forward=1".to_owned(),
        fix: None,
    };
    Report {
        node: name(number),
        findings: Vec::from_iter((number % 100 == 99).then_some(finding)),
        probed: false,
    }
}

/// The pod of an agent, as the DaemonSet's controller and the kubelet of its node have written it.
fn pod(number: usize) -> Result<Option<Value>, Failed> {
    let fate = Fate::of(number, false);
    let (phase, state) = match fate {
        Fate::WithoutPod => return Ok(None),
        Fate::Pending => ("Pending", json!({"waiting": {"reason": "ImagePullBackOff"}})),
        _ => (
            "Running",
            json!({"running": {"startedAt": "2026-11-21T12:00:00Z"}}),
        ),
    };
    let port = if fate == Fate::Refused { PORTS.1 } else { PORTS.0 };
    let address = address(number)?.to_string();
    Ok(Some(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("culvert-{number:05}"), "namespace": "kube-system",
            "uid": format!("00000000-0000-0000-0000-{number:012}"), "creationTimestamp": "2026-11-21T12:00:00Z",
            "labels": {"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": "agent"},
        },
        "spec": {
            "nodeName": name(number), "hostNetwork": true,
            "containers": [{
                "name": "agent", "image": "culvert",
                "ports": [{"name": "metrics", "containerPort": port, "hostPort": port, "protocol": "TCP"}],
            }],
        },
        "status": {
            "phase": phase, "hostIP": address, "podIP": address, "podIPs": [{"ip": address}],
            "containerStatuses": [{
                "name": "agent", "state": state, "ready": phase == "Running", "restartCount": 0, "image": "culvert",
                "imageID": "",
            }],
        },
    })))
}

fn fill(lab: &Lab, server: &ApiServer) -> Outcome {
    let kubeconfig = server.kubeconfig(ADMIN);
    // Worker threads are born where the one is that asks for them.
    lab.fabric().within(|| {
        on_runtime(
            async {
                let store = KubernetesStore::open(&Access::Kubeconfig(kubeconfig), NODE).await?;
                let nodes = (0..NODES).map(|number| store.create(scale::node(number)));
                let mut writes = futures_util::stream::iter(nodes).buffer_unordered(AT_ONCE);
                while let Some(written) = writes.next().await {
                    written?;
                }
                Ok(())
            }
            .boxed_local(),
        )
    })??;
    for number in 0..NODES {
        if let Some(pod) = pod(number)? {
            server.write_behind(&format!("/registry/pods/kube-system/culvert-{number:05}"), &pod)?;
        }
    }
    Ok(())
}

fn fleet(_: &Server) -> Outcome {
    if let Some(reason) = kernel::no_namespaces() {
        return Err(format!("this trial needs network namespaces: {reason}").into());
    }
    let lab = Lab::build(Layout::new(Mode::Direct))?;
    let server = ApiServer::start(Setup {
        address: lab.layout().router(1),
        namespace: Some(lab.fabric()),
        users: vec![OPERATOR.to_owned()],
        ..Setup::default()
    })?;
    install_crds(&server)?;
    permit_operator(&server, OPERATOR)?;
    let agents = Agents::start(&lab.fabric())?;
    fill(&lab, &server)?;
    told(&lab, &server, false)?;
    diagnosed(&lab, &server)?;
    agents.is_cut_off.store(true, Ordering::Relaxed);
    told(&lab, &server, true)?;
    for is_cut_off in [false, true] {
        agents.is_cut_off.store(is_cut_off, Ordering::Relaxed);
        measured(&lab, &server, is_cut_off)?;
    }
    lab.down()?;
    Ok(())
}

/// `culvert ARGUMENTS` by an operator, from where the API server is. It ends by its own deadline.
fn culvert(lab: &Lab, server: &ApiServer, arguments: &[&str]) -> Result<String, Failed> {
    let mut command = Command::new(harness::culvert()?);
    command
        .args(arguments)
        .arg("--kubeconfig")
        .arg(server.kubeconfig(OPERATOR));
    let output = lab.fabric().within(|| command.output())??;
    let complaint = String::from_utf8_lossy(&output.stderr);
    Ok(format!("{}{complaint}", String::from_utf8_lossy(&output.stdout)))
}

/// With time for a machine that does other things as well: every node is told of, and who does not answer with the reason.
/// There is not time enough to wait for each of a third of them to the end, before others are asked.
fn told(lab: &Lab, server: &ApiServer, is_cut_off: bool) -> Outcome {
    let text = culvert(lab, server, &[&["status", "-o", "json"], &TERMS[..]].concat())?;
    let status = parsed(&text)?;
    let nodes = status["nodes"].as_array().ok_or_else(|| text.clone())?;
    let by_name: BTreeMap<&str, &Value> = nodes
        .iter()
        .filter_map(|node| Some((node["node"].as_str()?, node)))
        .collect();
    ensure(by_name.len() == NODES, || format!("{} nodes", by_name.len()))?;
    let mut counts: BTreeMap<Fate, usize> = BTreeMap::new();
    for number in 0..NODES {
        let fate = Fate::of(number, is_cut_off);
        *counts.entry(fate).or_default() += 1;
        let node = by_name
            .get(name(number).as_str())
            .ok_or("a node is not told of")?;
        let is_right = match node["unanswered"].as_str() {
            None => fate == Fate::Answered && node["status"]["node"] == name(number),
            Some(reason) => fate != Fate::Answered && reason.contains(fate.words()),
        };
        ensure(is_right, || format!("{fate:?}: {node}"))?;
    }
    println!("  {counts:?}");
    let answered = counts.get(&Fate::Answered).copied().unwrap_or(0);
    ensure(status["summary"]["answered"] == answered, || {
        status["summary"].to_string()
    })
}

/// What a command printed, before what it complained of.
fn parsed(text: &str) -> Result<Value, Failed> {
    let mut answers = serde_json::Deserializer::from_str(text).into_iter();
    Ok(answers.next().ok_or_else(|| text.to_owned())??)
}

/// What is found on many nodes is one finding that counts them, and so are those of whom nothing is known.
fn diagnosed(lab: &Lab, server: &ApiServer) -> Outcome {
    let command = [&["doctor", "--all-nodes", "-o", "json"], &TERMS[..]].concat();
    let text = culvert(lab, server, &command)?;
    let report = parsed(&text)?;
    let findings = report["findings"].as_array().ok_or_else(|| text.clone())?;
    let on = |words: &str| {
        let found = findings.iter().filter(|finding| {
            finding["finding"]
                .as_str()
                .is_some_and(|text| text.contains(words))
        });
        found
            .filter_map(|finding| finding["nodes"].as_array())
            .map(Vec::len)
            .sum::<usize>()
    };
    let silent = (0..NODES)
        .filter(|number| Fate::of(*number, false) != Fate::Answered)
        .count();
    ensure(
        report["nodes"] == NODES && report["answered"] == NODES - silent,
        || text.clone(),
    )?;
    ensure(on(UNFORWARDING) == 10 && on("does not answer") == silent, || {
        text.clone()
    })
}

/// How long the commands take with the times that they have by default: a figure for the README.
fn measured(lab: &Lab, server: &ApiServer, is_cut_off: bool) -> Outcome {
    for command in [&["status"][..], &["doctor", "--all-nodes"]] {
        let began = Instant::now();
        let text = culvert(lab, server, command)?;
        let took = began.elapsed();
        let head = text
            .lines()
            .find(|line| line.contains(" answered"))
            .unwrap_or_default();
        println!(
            "  {command:?}{}: {took:.1?}; {head} {} not asked",
            if is_cut_off { " with a third cut off" } else { "" },
            text.matches("not asked").count()
        );
    }
    Ok(())
}
