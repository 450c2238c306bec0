//! Agents on a real API server, with the chart's own permissions, from nothing to a mesh.

use std::fs;
use std::time::Duration;

use harness::api_server::{ADMIN, Setup};
use harness::{ApiServer, Lab, Layout, Mode, kernel, wait_for};
use libtest_mimic::Failed;
use serde_json::Value;

use crate::chart::permit;
use crate::servers::{LIMIT, SERVICE_ACCOUNT, Server, install_crds};
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [("agents_on_an_api_server_make_a_mesh_and_outlive_it", mesh)];

/// Without tunnels: any kernel can.
const LAYOUT: Layout = Layout::new(Mode::Direct);

fn mesh(_: &Server) -> Outcome {
    if let Some(reason) = kernel::no_namespaces() {
        return Err(format!("this trial needs network namespaces: {reason}").into());
    }
    let mut lab = Lab::build(LAYOUT)?;
    // Between the nodes, where their router is.
    let mut server = ApiServer::start(Setup {
        address: LAYOUT.router(1),
        namespace: Some(lab.fabric()),
        users: vec![SERVICE_ACCOUNT.to_owned()],
        ..Setup::default()
    })?;
    install_crds(&server)?;
    permit(&server)?;
    lead_to(&server, &lab)?;
    lab.start_agents()?;
    lab.wait_for_sessions()?;
    lab.wait_for_routes()?;
    lab.attach_everywhere(1)?;
    let other = lab.pod("n2p1").address;
    pings(&lab, &other.to_string())?;
    wait_for("the nodes' networks to be there", LIMIT, || {
        available(&server).map_err(|error| format!("{error:?}"))
    })?;

    // An agent that is there goes on without the server, and one that starts goes by its last good copy.
    wait_for_copy(&mut lab)?;
    server.kill()?;
    lab.agent(1).kill()?;
    lab.start_agent(1)?;
    lab.wait_for_sessions()?;
    pings(&lab, &other.to_string())?;
    let refusal = lab
        .attach(1, "late")
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    ensure(
        refusal.contains("is away") || refusal.contains("did not answer"),
        || refusal.clone(),
    )?;
    server.start_again()?;
    wait_for("a pod to be attached again", LIMIT, || {
        lab.attach(1, "later")
            .map(drop)
            .map_err(|error| error.to_string())
    })?;
    wrong_source(&mut lab, &server)?;
    lab.down()?;
    Ok(())
}

/// Gives the server all that the laboratory's datastore has, and leads the agents, which are down yet, to the server.
pub(crate) fn lead_to(server: &ApiServer, lab: &Lab) -> Outcome {
    server.kubectl(ADMIN, &["apply", "-f", &lab.datastore().to_string_lossy()], "")?;
    let kubeconfig = server.kubeconfig(SERVICE_ACCOUNT);
    for node in lab.nodes() {
        let config = node.agent.config();
        let text = fs::read_to_string(&config)?;
        let folder = format!("  directory: {}\n", lab.datastore().display());
        let kubernetes = format!("  kubernetes:\n    kubeconfig: {}\n", kubeconfig.display());
        let changed = text.replacen(&folder, &kubernetes, 1);
        ensure(changed != text, || format!("no datastore in {text}"))?;
        fs::write(&config, changed)?;
    }
    // What the agents read is on the server alone.
    fs::remove_dir_all(lab.datastore())?;
    Ok(())
}

/// A node whose tunnelled packets would leave with another source than the one it advertises says so in an Event of its
/// Node object.
fn wrong_source(lab: &mut Lab, server: &ApiServer) -> Outcome {
    let (here, there) = (lab.node(3).namespace.clone(), lab.node(1).address);
    here.ip("addr add 172.18.0.113/24 dev eth0")?;
    here.ip(&format!("route add {there}/32 dev eth0 src 172.18.0.113"))?;
    let config = lab.node(3).agent.config();
    let text = fs::read_to_string(&config)?;
    fs::write(&config, format!("{text}routes:\n  sourcePin: off\n"))?;
    let pool = "apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata: {name: tunnelled}\n\
                spec: {cidr: 10.66.0.0/16, ipipMode: Always, vxlanMode: Never, disabled: true}\n";
    server.kubectl(ADMIN, &["apply", "-f", "-"], pool)?;
    lab.agent(3).terminate()?;
    lab.start_agent(3)?;
    let told = format!(
        "node3: packets to {there} would leave with source 172.18.0.113 (eth0) instead of the advertised {}",
        lab.node(3).address
    );
    wait_for("an Event that tells of the wrong source", LIMIT, || {
        let shown = server.kubectl(ADMIN, &["get", "events", "--all-namespaces", "-o", "json"], "");
        let events: Value = serde_json::from_str(&shown.map_err(|error| error.to_string())?)
            .map_err(|error| error.to_string())?;
        let about_it = |event: &&Value| {
            event["reason"] == "WrongTunnelSource" && event["involvedObject"]["name"] == "node3"
        };
        let items = events["items"].as_array().cloned().unwrap_or_default();
        let messages: Vec<&str> = items
            .iter()
            .filter(about_it)
            .filter_map(|event| event["message"].as_str())
            .collect();
        if messages.iter().any(|message| message.starts_with(&told)) {
            Ok(())
        } else {
            Err(format!("{messages:?} of {} events", items.len()))
        }
    })?;
    Ok(())
}

fn pings(lab: &Lab, to: &str) -> Outcome {
    let pod = lab.pod("n1p1");
    wait_for("a ping between pods", Duration::from_secs(60), || {
        let ping = pod.namespace.run("ping", &["-c", "1", "-W", "2", to]);
        ping.map(drop).map_err(|error| error.to_string())
    })?;
    Ok(())
}

/// Whether every Node says that its network is there.
fn available(server: &ApiServer) -> Outcome {
    let nodes: Value = serde_json::from_str(&server.kubectl(ADMIN, &["get", "nodes", "-o", "json"], "")?)?;
    for node in nodes["items"].as_array().ok_or("no list")? {
        let conditions = node["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let said = conditions
            .iter()
            .find(|condition| condition["type"] == "NetworkUnavailable");
        ensure(
            said.is_some_and(|condition| condition["status"] == "False"),
            || format!("{}: {conditions:?}", node["metadata"]["name"]),
        )?;
    }
    Ok::<(), Failed>(())
}

/// Waits until the first agent has written down what it knows of the other nodes.
fn wait_for_copy(lab: &mut Lab) -> Outcome {
    let copy = lab.agent(1).config().with_file_name("state/node1.last-good");
    wait_for("the last good copy to know the other nodes", LIMIT, || {
        let text = fs::read_to_string(&copy).map_err(|error| error.to_string())?;
        let known = text.contains("172.18.0.12") && text.contains("172.18.0.13");
        if known { Ok(()) } else { Err(text) }
    })?;
    Ok(())
}
