//! The commands over a whole cluster, with nothing but a kubeconfig: through the proxy of a real API server, to real agents.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use harness::api_server::{ADMIN, Setup};
use harness::{ApiServer, Lab, LabError, Layout, Mode, kernel, wait_for};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::agents::lead_to;
use crate::chart::{permit, permit_operator};
use crate::servers::{LIMIT, NOBODY, SERVICE_ACCOUNT, Server, install_crds};
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [(
    "an_operator_with_a_kubeconfig_sees_every_node_and_who_does_not_answer",
    survey,
)];

/// Who has the chart's roles for operators, and no others.
pub(crate) const OPERATOR: &str = "operator";
/// Without tunnels: any kernel can.
const LAYOUT: Layout = Layout::new(Mode::Direct);

/// How a command ended, as an operator's script sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Well,
    Wrong,
    Unknown,
}

/// `culvert ARGUMENTS` with a user's kubeconfig, from where the API server is: how it ended, and what it prints.
fn culvert(lab: &Lab, server: &ApiServer, user: &str, arguments: &[&str]) -> Result<(Ended, String), Failed> {
    let kubeconfig = server.kubeconfig(user).display().to_string();
    let all = [arguments, &["--kubeconfig", &kubeconfig]].concat();
    match lab.fabric().run(&harness::culvert()?.to_string_lossy(), &all) {
        Ok(text) => Ok((Ended::Well, text)),
        Err(LabError::Command { status, output, .. }) => match status.as_str() {
            "exit status: 1" => Ok((Ended::Wrong, output)),
            "exit status: 2" => Ok((Ended::Unknown, output)),
            _ => Err(format!("culvert {arguments:?} ended with {status}: {output}").into()),
        },
        Err(error) => Err(error.into()),
    }
}

fn survey(_: &Server) -> Outcome {
    if let Some(reason) = kernel::no_namespaces() {
        return Err(format!("this trial needs network namespaces: {reason}").into());
    }
    let mut lab = Lab::build(LAYOUT)?;
    let mut server = ApiServer::start(Setup {
        address: LAYOUT.router(1),
        namespace: Some(lab.fabric()),
        users: [SERVICE_ACCOUNT, OPERATOR, NOBODY].map(str::to_owned).to_vec(),
        ..Setup::default()
    })?;
    install_crds(&server)?;
    permit(&server)?;
    permit_operator(&server, OPERATOR)?;
    lead_to(&server, &lab)?;
    lab.start_agents()?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    for node in lab.nodes() {
        let status = node.agent.status()?;
        pod(&server, &status.node, &node.address.to_string())?;
    }
    all_answer(&lab, &server)?;
    service_range(&lab, &server)?;
    who_may_not_is_told(&lab, &server)?;
    page(&lab, &server)?;
    bundle(&lab, &server)?;
    some_do_not(&mut lab, &server)?;
    server_away(&lab, &mut server)?;
    lab.down()?;
    Ok(())
}

/// The pod of an agent, as the chart's DaemonSet and a kubelet make it.
fn pod(server: &ApiServer, node: &str, address: &str) -> Outcome {
    let name = format!("culvert-{node}");
    let labels = json!({"app.kubernetes.io/name": "culvert", "app.kubernetes.io/component": "agent"});
    let metadata = json!({"name": name, "namespace": "kube-system", "labels": labels});
    let spec = json!({
        "nodeName": node, "hostNetwork": true,
        "containers": [{"name": "agent", "image": "culvert", "ports": [{"name": "metrics", "containerPort": 9179, "hostPort": 9179}]}],
    });
    let mut object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    server.kubectl(ADMIN, &["create", "-f", "-"], &object.to_string())?;
    object["status"] =
        json!({"phase": "Running", "hostIP": address, "podIP": address, "podIPs": [{"ip": address}]});
    let path = format!("/api/v1/namespaces/kube-system/pods/{name}/status");
    server.kubectl(
        ADMIN,
        &["replace", "--raw", &path, "-f", "-"],
        &object.to_string(),
    )?;
    Ok(())
}

fn all_answer(lab: &Lab, server: &ApiServer) -> Outcome {
    let (ended, text) = culvert(lab, server, OPERATOR, &["status"])?;
    let nodes = lab.nodes().count();
    ensure(
        ended == Ended::Well && text.starts_with(&format!("{nodes} nodes: {nodes} answered, {nodes} ready.")),
        || text.clone(),
    )?;
    ensure(
        text.contains("Nothing is wrong.") && text.matches(" up").count() == nodes * (nodes - 1),
        || text.clone(),
    )?;
    let (_, text) = culvert(lab, server, OPERATOR, &["status", "-o", "json"])?;
    let status: Value = serde_json::from_str(&text)?;
    ensure(
        status["summary"]["established"] == nodes * (nodes - 1)
            && status["nodes"][0]["status"]["node"] == "node1",
        || text.clone(),
    )?;
    let (_, text) = culvert(lab, server, OPERATOR, &["doctor", "--all-nodes"])?;
    ensure(
        text.starts_with(&format!("{nodes} nodes: {nodes} answered")) && !text.contains("NOT LOOKED AT"),
        || text.clone(),
    )
}

/// The range of services is known by what kubeadm wrote down, with the operator's roles; and else by the services.
fn service_range(lab: &Lab, server: &ApiServer) -> Outcome {
    let report = || -> Result<(Ended, Value), Failed> {
        let arguments = ["doctor", "--all-nodes", "-o", "json"];
        let (ended, text) = culvert(lab, server, OPERATOR, &arguments)?;
        // What it ends with stands before it.
        let json = text.find('{').and_then(|begin| text.get(begin..));
        Ok((ended, serde_json::from_str(json.unwrap_or_default())?))
    };
    let (_, known) = report()?;
    ensure(known["servicesKnownBy"] == "addresses", || known.to_string())?;
    let create = |subnet: &str| {
        let literal = format!("--from-literal=ClusterConfiguration=networking: {{serviceSubnet: {subnet}}}");
        let words = [
            "-n",
            "kube-system",
            "create",
            "configmap",
            "kubeadm-config",
            &literal,
        ];
        server.kubectl(ADMIN, &words, "")
    };
    let delete = || {
        server.kubectl(
            ADMIN,
            &["-n", "kube-system", "delete", "configmap", "kubeadm-config"],
            "",
        )
    };
    create("10.65.192.0/18")?;
    let (ended, known) = report()?;
    let overlaps = |finding: &Value| {
        let finding = finding["finding"].as_str().unwrap_or_default();
        finding.ends_with("overlaps the range of services")
    };
    let found = known["findings"]
        .as_array()
        .is_some_and(|all| all.iter().any(overlaps));
    ensure(
        ended == Ended::Wrong && known["servicesKnownBy"] == "kubeadmConfig" && found,
        || known.to_string(),
    )?;
    delete()?;
    create("10.96.0.0/12")?;
    let (_, known) = report()?;
    let found = known["findings"]
        .as_array()
        .is_some_and(|all| all.iter().any(overlaps));
    ensure(known["servicesKnownBy"] == "kubeadmConfig" && !found, || {
        known.to_string()
    })?;
    delete()?;
    Ok(())
}

fn who_may_not_is_told(lab: &Lab, server: &ApiServer) -> Outcome {
    let (ended, text) = culvert(lab, server, NOBODY, &["status"])?;
    ensure(
        ended == Ended::Unknown && text.contains("403") && text.contains("culvert-operator"),
        || text.clone(),
    )
}

/// A `culvert ui` that ends when it is dropped.
struct Ui(Child);

impl Drop for Ui {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The page of an agent comes by the API server's proxy, and what is in the way of that is told.
fn page(lab: &Lab, server: &ApiServer) -> Outcome {
    let kubeconfig = server.kubeconfig(OPERATOR);
    let mut command = Command::new(harness::culvert()?);
    command
        .args(["ui", "--node", "node2", "--kubeconfig"])
        .arg(&kubeconfig);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut ui = Ui(lab.fabric().spawn(command)?);
    let mut said = String::new();
    if let Some(output) = ui.0.stdout.take() {
        BufReader::new(output).read_line(&mut said)?;
    }
    let address = said.strip_prefix("http://").and_then(|rest| rest.split_once('/'));
    let Some((address, " is the page of the agent of node2; Ctrl-C ends this.\n")) = address else {
        return Err(format!("culvert ui says {said:?}").into());
    };
    let address = address.parse()?;
    let (code, text) = lab.fabric().http_get(address, "/")?;
    ensure(code == 200 && text.contains("<script>"), || text.clone())?;
    let (code, text) = lab.fabric().http_get(address, "/v1/view")?;
    let view: Value = serde_json::from_str(&text)?;
    ensure(
        code == 200
            && view["status"]["node"] == "node2"
            && view["nodes"].as_array().map(Vec::len) == Some(lab.nodes().count()),
        || text.clone(),
    )?;
    for (user, arguments, words) in [
        (
            OPERATOR,
            &["ui", "--node", "nowhere"][..],
            "the cluster has no node \"nowhere\"; it has node1, node2, node3",
        ),
        (OPERATOR, &["ui"], "of which node? name it with --node"),
        (NOBODY, &["ui", "--node", "node2"], "culvert-operator"),
    ] {
        let (ended, text) = culvert(lab, server, user, arguments)?;
        ensure(ended == Ended::Unknown && text.contains(words), || text.clone())?;
    }
    Ok(())
}

/// A bundle of all nodes has what they say, and no password.
fn bundle(lab: &Lab, server: &ApiServer) -> Outcome {
    const PASSWORD: &str = "correct-horse-battery";
    let secret = ["-n", "kube-system", "create", "secret", "generic", "bgp"];
    let literal = format!("--from-literal=password={PASSWORD}");
    server.kubectl(ADMIN, &[&secret[..], &[&literal]].concat(), "")?;
    let annotation = format!("example.org/password={PASSWORD}");
    server.kubectl(
        ADMIN,
        &["annotate", "ippools.crd.projectcalico.org", "--all", &annotation],
        "",
    )?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("diags.tar.gz").display().to_string();
    let (ended, text) = culvert(lab, server, OPERATOR, &["diags", "--all-nodes", "-o", &file])?;
    ensure(ended == Ended::Well, || text.clone())?;
    let output = Command::new("tar")
        .args(["-xzf", &file, "--strip-components=1", "-C"])
        .arg(folder.path())
        .output()?;
    ensure(output.status.success(), || {
        String::from_utf8_lossy(&output.stderr).into_owned()
    })?;
    for name in [
        "version.txt",
        "datastore/ippools.json",
        "nodes/node1/status.json",
        "nodes/node3/kernel.json",
        "nodes/node1/configuration.json",
        "nodes/node2/packet-filter.json",
        "nodes/node3/routes-wrong.json",
    ] {
        ensure(folder.path().join(name).is_file(), || {
            format!("no {name}: {text}")
        })?;
    }
    let found = Command::new("grep")
        .args(["-rl", PASSWORD])
        .arg(folder.path())
        .output()?;
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    ensure(found.is_empty(), || format!("the password is in {found}"))
}

/// One agent is gone, and one node has no pod of it.
fn some_do_not(lab: &mut Lab, server: &ApiServer) -> Outcome {
    let address = lab.node(2).address;
    lab.agent(2).kill()?;
    server.kubectl(
        ADMIN,
        &[
            "-n",
            "kube-system",
            "delete",
            "pod",
            "culvert-node3",
            "--force",
            "--grace-period=0",
        ],
        "",
    )?;
    let refused = format!(
        "the API server cannot reach its agent: dial tcp {address}:9179: connect: connection refused"
    );
    let lab = &*lab;
    wait_for("the others to say that the session is down", LIMIT, || {
        let (ended, text) =
            culvert(lab, server, OPERATOR, &["status"]).map_err(|error| format!("{error:?}"))?;
        let down = format!("-> node2 ({address}): ");
        let all = [refused.as_str(), "no agent runs there", "DOWN", down.as_str()];
        if ended == Ended::Wrong && all.iter().all(|words| text.contains(words)) {
            Ok(())
        } else {
            Err(text)
        }
    })?;
    for (node, words) in [("node2", refused.as_str()), ("node3", "no agent runs there")] {
        let (ended, text) = culvert(lab, server, OPERATOR, &["ui", "--node", node])?;
        ensure(ended == Ended::Unknown && text.contains(words), || text.clone())?;
    }
    let (ended, text) = culvert(lab, server, OPERATOR, &["doctor", "--all-nodes"])?;
    ensure(
        ended == Ended::Wrong
            && text.contains("FINDING  agent: the agent does not answer")
            && text.contains(&refused),
        || text.clone(),
    )
}

/// With the API server gone an agent says so, and who asks for the cluster is told why nothing is known. When it is back the
/// agent has nothing more to say of it.
fn server_away(lab: &Lab, server: &mut ApiServer) -> Outcome {
    const WORDS: &str = "the datastore does not answer as it should";
    let doctor = || match lab.node(1).agent.ask(&["doctor"]) {
        Err(LabError::Command { output, .. }) => Ok(output),
        other => other.map_err(|error| error.to_string()),
    };
    let address = server.address().to_string();
    server.kill()?;
    wait_for("the agent to say that the API server is away", LIMIT, || {
        let text = doctor()?;
        let all = [WORDS, &address, "connection refused", "look at the API server"];
        if all.iter().all(|words| text.contains(words)) {
            Ok(())
        } else {
            Err(text)
        }
    })?;
    let (ended, text) = culvert(lab, server, OPERATOR, &["status"])?;
    ensure(
        ended == Ended::Unknown && text.contains(&format!("the API server at https://{address} is away")),
        || text.clone(),
    )?;
    server.start_again()?;
    wait_for("the agent to have the API server back", LIMIT, || {
        let text = doctor()?;
        if text.contains(WORDS) { Err(text) } else { Ok(()) }
    })?;
    Ok(())
}
