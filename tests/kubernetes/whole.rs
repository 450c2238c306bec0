//! A whole cluster, with kubelets and container runtimes, that gets its pod network from the chart and nothing else: from
//! `helm install` to `helm uninstall`, with nodes that come and go and an upgrade under a train of pings.
//!
//! It runs on this machine's kernel, which may have no ipip: so the pool's packets are not encapsulated here.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use harness::api_server::ADMIN;
use harness::kube_cluster::{KubeCluster, SERVER};
use harness::kube_image;
use harness::ping::{PingTrain, ping};
use ipnet::Ipv4Net;
use libtest_mimic::Failed;
use serde_json::Value;

use crate::helm::{chart, helm};
use crate::servers::Server;
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [(
    "a_cluster_gets_its_pod_network_from_helm_install_and_keeps_it_through_an_upgrade",
    lives,
)];

/// Pods are started by real kubelets, on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(300);

const POOL: &str = "10.65.0.0/16";

/// A pod on every node that answers on the node's port 8080 and may send so much; and two more, anywhere.
const PODS: &str = "\
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}, annotations: {kubernetes.io/egress-bandwidth: 50M}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
        - name: web
          image: IMAGE
          command: [httpd, -f, -p, '80', -h, /www]
          ports: [{containerPort: 80, hostPort: 8080}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: more, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: more}}
  template:
    metadata: {labels: {app: more}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
        - {name: more, image: 'IMAGE'}
";

/// The cluster, and the release of the chart on it.
struct Whole {
    cluster: KubeCluster,
}

/// A pod that runs: its node and its address.
type Pods = BTreeMap<String, (String, Ipv4Addr)>;

impl Whole {
    fn helm(&self, arguments: &[&str]) -> Result<String, Failed> {
        let chart = chart();
        let chart = chart.to_string_lossy();
        let server = format!(
            "apiServer.host={SERVER},apiServer.port={}",
            self.cluster.server().address().port()
        );
        let mut words: Vec<&str> = arguments
            .iter()
            .map(|word| if *word == "CHART" { &*chart } else { word })
            .collect();
        words.extend(["-n", "kube-system", "--timeout", "290s"]);
        if arguments.contains(&"CHART") {
            // This kernel has no modules to load, and perhaps no ipip.
            words.extend([
                "--set",
                "modules.enabled=false,ipPool.ipipMode=Never,ipPool.cidr=10.65.0.0/16",
            ]);
            words.extend([
                "--set",
                "garbageCollection.interval=1,garbageCollection.gracePeriod=1",
            ]);
            words.extend(["--set", &server]);
        }
        let kubeconfig = self.cluster.server().kubeconfig(ADMIN);
        let said = self.cluster.fabric().within(|| helm(Some(&kubeconfig), &words))?;
        Ok(said?)
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let said = self.cluster.server().kubectl(ADMIN, arguments, "");
        said.map_err(|error| error.to_string())
    }

    fn get(&self, arguments: &[&str]) -> Result<Value, String> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// Waits until something holds; else tells what all pods are at.
    fn until<T>(&self, what: &str, look: impl FnMut() -> Result<T, String>) -> Result<T, Failed> {
        harness::wait_for(what, PATIENCE, look).map_err(|error| {
            let pods = self
                .kubectl(&["get", "pods", "-A", "-o", "wide"])
                .unwrap_or_else(|e| e);
            let events = self
                .kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"])
                .unwrap_or_else(|e| e);
            let lines: Vec<&str> = events.lines().collect();
            let last = lines[lines.len().saturating_sub(15)..].join("\n");
            let logs = self
                .kubectl(&[
                    "logs",
                    "-n",
                    "kube-system",
                    "-l",
                    "app.kubernetes.io/component=agent",
                    "--tail=15",
                ])
                .unwrap_or_else(|e| e);
            Failed::from(format!("{error}\n{pods}\n{last}\n{logs}"))
        })
    }

    /// Waits until so many nodes are ready, with an agent that is.
    fn nodes_are_ready(&self, count: usize) -> Result<(), Failed> {
        self.until(&format!("{count} nodes to be ready"), || {
            let nodes = self.get(&["nodes"])?;
            let ready = items(&nodes).filter(|node| condition(node, "Ready") == Some("True"));
            let set = self.get(&["daemonset", "culvert", "-n", "kube-system"])?;
            let agents = set["status"]["numberReady"].as_u64().unwrap_or(0);
            let updated = set["status"]["updatedNumberScheduled"].as_u64().unwrap_or(0);
            let observed = set["status"]["observedGeneration"] == set["metadata"]["generation"];
            let ready = ready.count();
            let all = observed && [ready as u64, agents, updated] == [count as u64; 3];
            all.then_some(())
                .ok_or_else(|| format!("{ready} nodes, {agents} agents, {updated} updated"))
        })
    }

    /// Waits until so many pods run, and says where.
    fn pods_run(&self, count: usize) -> Result<Pods, Failed> {
        self.until(&format!("{count} pods to run"), || {
            let listed = self.get(&["pods", "-n", "default"])?;
            let running: Pods = items(&listed)
                .filter(|pod| {
                    condition(pod, "Ready") == Some("True") && pod["metadata"]["deletionTimestamp"].is_null()
                })
                .filter_map(|pod| {
                    let text = |path: &str| pod.pointer(path)?.as_str().map(str::to_owned);
                    let address = text("/status/podIP")?.parse().ok()?;
                    Some((text("/metadata/name")?, (text("/spec/nodeName")?, address)))
                })
                .collect();
            if running.len() == count {
                Ok(running)
            } else {
                Err(format!("{running:?}"))
            }
        })
    }

    /// The blocks, with the node of each.
    fn blocks(&self) -> Result<BTreeMap<Ipv4Net, String>, String> {
        let listed = self.get(&["ipamblocks.crd.projectcalico.org"])?;
        let block = |block: &Value| {
            let cidr = block["spec"]["cidr"].as_str()?.parse().ok()?;
            let owner = block["spec"]["affinity"].as_str()?.strip_prefix("host:")?;
            Some((cidr, owner.to_owned()))
        };
        Ok(items(&listed).filter_map(block).collect())
    }

    /// Every pod reaches every other.
    fn all_reach_all(&self, pods: &Pods) -> Outcome {
        for from in pods.keys() {
            let inside = self.cluster.inside("default", from)?;
            for (address, to) in pods
                .iter()
                .filter(|(name, _)| *name != from)
                .map(|(name, (_, address))| (address, name))
            {
                ping(&inside, *address).map_err(|error| format!("{from} to {to}: {error}"))?;
            }
        }
        Ok(())
    }

    fn agent_on(&self, node: &str) -> Result<String, Failed> {
        let field = format!("spec.nodeName={node}");
        let labels = "app.kubernetes.io/component=agent";
        let listed = self.get(&[
            "pods",
            "-n",
            "kube-system",
            "-l",
            labels,
            "--field-selector",
            &field,
        ])?;
        let name = items(&listed)
            .next()
            .and_then(|pod| pod["metadata"]["name"].as_str());
        Ok(name.ok_or("no agent")?.to_owned())
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

fn lives(_: &Server) -> Outcome {
    let folder = tempfile::tempdir()?;
    let busybox = kube_image::make(folder.path())?;
    let culvert = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/image/culvert.tar");
    let mut whole = Whole {
        cluster: KubeCluster::start(vec![culvert, busybox])?,
    };
    for number in [1, 2] {
        whole.cluster.add_node(number)?;
    }
    whole.helm(&["install", "culvert", "CHART"])?;
    whole.nodes_are_ready(2)?;

    let manifest = PODS.replace("IMAGE", kube_image::NAME);
    whole
        .cluster
        .server()
        .kubectl(ADMIN, &["apply", "-f", "-"], &manifest)?;
    let pods = whole.pods_run(4)?;
    let blocks = whole.blocks()?;
    let pool: Ipv4Net = POOL.parse()?;
    for (pod, (node, address)) in &pods {
        let block = blocks.iter().find(|(block, _)| block.contains(address));
        let (block, owner) =
            block.ok_or_else(|| format!("{address} of {pod} is in no block of {blocks:?}"))?;
        ensure(
            pool.contains(block) && block.prefix_len() == 26 && owner == node,
            || format!("{address} of {pod} on {node} is in {block} of {owner}"),
        )?;
    }
    whole.all_reach_all(&pods)?;
    chained_plugins_work(&whole)?;
    no_more_than_the_chart_says(&whole)?;

    whole.cluster.add_node(3)?;
    whole.nodes_are_ready(3)?;
    let pods = whole.pods_run(5)?;
    whole.all_reach_all(&pods)?;

    upgrade(&whole, &pods)?;
    password(&whole)?;
    remove_a_node(&mut whole)?;
    uninstall(&whole)
}

/// What pods ask of `portmap` and `bandwidth`, which the chart's configuration names after ours.
fn chained_plugins_work(whole: &Whole) -> Outcome {
    for number in [1, 2] {
        let node = whole.cluster.node(number);
        let server = (node.address, 8080).into();
        let (status, page) = whole.cluster.fabric().http_get(server, "/index.html")?;
        ensure((status, page.trim()) == (200, kube_image::PAGE), || {
            format!("{status} {page}")
        })?;
        let mut tc = std::process::Command::new("tc");
        tc.args(["-n", node.namespace.name(), "qdisc", "show"]);
        let shaped = String::from_utf8(tc.output()?.stdout)?;
        ensure(shaped.contains("rate 50Mbit"), || shaped.clone())?;
    }
    Ok(())
}

/// The agent's container has the capabilities that the chart names, no more, and sees the kernel's switches read-only.
fn no_more_than_the_chart_says(whole: &Whole) -> Outcome {
    let agent = whole.agent_on("node1")?;
    let pid = whole.cluster.process("kube-system", &agent)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    // linux/capability.h: NET_BIND_SERVICE is 10, NET_ADMIN 12, NET_RAW 13.
    let expected = format!("{:016x}", (1 << 10) | (1 << 12) | (1 << 13));
    ensure(effective.map(str::trim) == Some(&expected), || status.clone())?;
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let read_only = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        fields.get(4) == Some(&"/proc/sys") && fields.get(5).is_some_and(|options| options.starts_with("ro"))
    };
    ensure(mounts.lines().any(read_only), || mounts.clone())
}

/// Another configuration goes over all nodes, one after the other, while a pod of the first talks to one of the second.
fn upgrade(whole: &Whole, pods: &Pods) -> Outcome {
    let on = |wanted: &str| {
        let found = pods.iter().find(|(_, (node, _))| node == wanted);
        found
            .map(|(name, (_, address))| (name.clone(), *address))
            .ok_or("no pod there")
    };
    let (from, (_, to)) = (on("node1")?.0, on("node2")?);
    let before = whole.agent_on("node1")?;
    let inside = whole.cluster.inside("default", &from)?;
    let train = PingTrain::start(&inside, to, Duration::from_millis(20))?;
    whole.helm(&["upgrade", "culvert", "CHART", "--set", "bgp.holdTime=30"])?;
    whole.nodes_are_ready(3)?;
    train.wait_for_more(50)?;
    let outcome = train.stop();
    ensure(whole.agent_on("node1")? != before, || {
        "the agent is the same".to_owned()
    })?;
    ensure(outcome.lost.is_empty(), || format!("{outcome:?}"))
}

/// The mesh gets a password, from a Secret that the chart names: all sessions come back with it, by what the kernel says of
/// their connections and the agents of themselves.
fn password(whole: &Whole) -> Outcome {
    let secret = [
        "create",
        "secret",
        "generic",
        "bgp-mesh",
        "--from-literal=key=s3cret",
    ];
    whole.kubectl(&[&["-n", "kube-system"], &secret[..]].concat())?;
    whole.helm(&[
        "upgrade",
        "culvert",
        "CHART",
        "--set",
        "bgp.passwordSecrets={bgp-mesh}",
    ])?;
    let wanted = r#"{"spec":{"nodeMeshPassword":{"secretKeyRef":{"name":"bgp-mesh","key":"key"}}}}"#;
    let configuration = ["bgpconfigurations.crd.projectcalico.org", "default"];
    whole.kubectl(&[
        "patch",
        configuration[0],
        configuration[1],
        "--type=merge",
        "-p",
        wanted,
    ])?;
    for number in [1, 2, 3] {
        let node = whole.cluster.node(number);
        whole.until(&format!("the sessions of {} with a password", node.name), || {
            let signed = node
                .namespace
                .run("ss", &["-Htin", "( sport = :179 or dport = :179 )"])
                .map_err(|error| error.to_string())?;
            let agent = whole.agent_on(&node.name).map_err(|error| format!("{error:?}"))?;
            let status = whole.kubectl(&[
                "exec",
                "-n",
                "kube-system",
                &agent,
                "--",
                "culvert",
                "node",
                "status",
            ])?;
            let is_up = status.matches("Established").count() == 2;
            if signed.matches("md5keys:").count() >= 2 && is_up {
                Ok(())
            } else {
                Err(format!("{signed}\n{status}"))
            }
        })?;
    }
    Ok(())
}

/// A node whose power failed and whose object was deleted: its blocks become free, and nobody else's.
fn remove_a_node(whole: &mut Whole) -> Outcome {
    whole.cluster.cut_off(3);
    whole.kubectl(&["delete", "node", "node3"])?;
    whole.until("the blocks of node3 to be free", || {
        let blocks = whole.blocks()?;
        let left = blocks.values().any(|node| node == "node3");
        if left { Err(format!("{blocks:?}")) } else { Ok(()) }
    })?;
    let owners: Vec<String> = whole.blocks()?.into_values().collect();
    ensure(
        ["node1", "node2"]
            .iter()
            .all(|node| owners.iter().any(|owner| owner == node)),
        || format!("{owners:?}"),
    )?;
    whole.nodes_are_ready(2)
}

/// Afterwards a node is as it was before: no plugin, no configuration, no route, no rule of ours.
fn uninstall(whole: &Whole) -> Outcome {
    whole.kubectl(&["delete", "daemonset,deployment", "-n", "default", "--all"])?;
    whole.until("the pods to be gone", || {
        let left = whole.get(&["pods", "-n", "default"])?;
        let count = items(&left).count();
        if count == 0 {
            Ok(())
        } else {
            Err(format!("{count} pods"))
        }
    })?;
    whole.helm(&["uninstall", "culvert"])?;
    for number in [1, 2] {
        let node = whole.cluster.node(number);
        let left: Vec<_> = ["cni-bin", "cni-conf"]
            .iter()
            .flat_map(|folder| {
                std::fs::read_dir(node.folder(folder))
                    .into_iter()
                    .flatten()
                    .flatten()
            })
            .map(|entry| entry.file_name())
            .filter(|name| name.to_string_lossy().contains("culvert"))
            .collect();
        ensure(left.is_empty(), || format!("{left:?} is left on {}", node.name))?;
        let routes = node.namespace.ip("route show table all proto 86")?;
        let rules = node.namespace.ip("rule show")?;
        ensure(routes.trim().is_empty() && !rules.contains("886"), || {
            format!("{routes}{rules}")
        })?;
    }
    Ok(())
}
