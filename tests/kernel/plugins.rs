//! The CNI plugin as a runtime calls it: killed in its midst, and chained with the plugins of others.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use harness::{Lab, Namespace, Node, wait_for};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::ensure;

/// Where Debian has the plugins that others are chained with.
const PLUGINS: &str = "/usr/lib/cni";
const PATIENCE: Duration = Duration::from_secs(30);

/// A container of the first node, to attach and detach.
struct Container<'a> {
    node: &'a Node,
    pod: &'a Namespace,
    name: &'a str,
}

impl Container<'_> {
    /// A call of a plugin, begun with `program` and its arguments.
    fn call(&self, program: &[&str], verb: &str, config: &Value) -> Result<Output, Failed> {
        let (first, arguments) = program.split_first().ok_or("no program")?;
        let mut command = Command::new(first);
        command
            .args(arguments)
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.name)
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}",
                    self.name
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self.node.namespace.within(|| command.spawn())??;
        if let Some(mut stdin) = child.stdin.take() {
            // One that was killed before it read has no use for it.
            let _ = stdin.write_all(config.to_string().as_bytes());
        }
        Ok(child.wait_with_output()?)
    }

    /// The same, which must succeed: its answer.
    fn must(&self, program: &[&str], verb: &str, config: &Value) -> Result<Value, Failed> {
        let output = self.call(program, verb, config)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure(output.status.success(), || {
            format!(
                "{program:?} {verb}: {}\n{said}{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )
        })?;
        if said.trim().is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_str(&said)?)
    }
}

fn config(node: &Node) -> Value {
    json!({"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "culvert-cni", "agentSocket": node.agent.socket()})
}

fn in_use(node: &Node, wanted: u64) -> Result<(), Failed> {
    let what = format!("{wanted} addresses in use");
    Ok(wait_for(&what, PATIENCE, || {
        let count = node
            .agent
            .status()
            .map_err(|error| error.to_string())?
            .addresses_in_use;
        if count == wanted {
            Ok(())
        } else {
            Err(count.to_string())
        }
    })?)
}

/// Everything by which the plugin changes something outside of itself: what it says to the agent and to the kernel, the
/// switches that it writes, and where it is.
const STEPS: [&str; 6] = ["connect", "sendto", "sendmsg", "write", "writev", "setns"];

/// Killed before each of its steps in turn, and then a DEL: no link on the host, none in the pod, no address in use. After the
/// last of each sort an ADD in the same place succeeds, as the runtime's next attempt would.
pub(crate) fn killed(lab: &mut Lab) -> Result<(), Failed> {
    let pod = lab.bare_pod("killed")?;
    let plugin = lab.plugin().to_string_lossy().into_owned();
    let node = lab.node(1);
    let before = node.agent.status()?.addresses_in_use;
    let links = node.namespace.ip("-oneline link show")?.lines().count();
    let container = Container {
        node,
        pod: &pod,
        name: "killed",
    };
    let (mut kills, mut halfway) = (0, 0);
    for step in STEPS {
        for nth in 1.. {
            let is_done = killed_at(&container, &plugin, step, nth)?;
            kills += usize::from(!is_done);
            halfway += usize::from(node.namespace.ip("-oneline link show")?.lines().count() > links);
            container.must(&[&plugin], "DEL", &config(node))?;
            let now = node.namespace.ip("-oneline link show")?;
            ensure(now.lines().count() == links, || {
                format!("after {step} {nth}: {now}")
            })?;
            let inside = pod.ip("-oneline link show")?;
            ensure(!inside.contains("eth0"), || {
                format!("after {step} {nth}: {inside}")
            })?;
            in_use(node, before)?;
            if is_done {
                break;
            }
            ensure(nth < 100, || "it never gets to its end".to_owned())?;
        }
    }
    println!(
        "  killed before each of {kills} steps, {} times with its link made",
        halfway - STEPS.len()
    );
    ensure(kills > 5 && halfway > STEPS.len() + 1, || {
        format!("{kills} steps, {halfway} with a link: nothing was tried")
    })
}

/// An ADD whose plugin is killed before its call number `nth` of the kernel's `step`: whether it has no such call, and succeeds.
fn killed_at(container: &Container<'_>, plugin: &str, step: &str, nth: u32) -> Result<bool, Failed> {
    let injection = format!("inject={step}:signal=SIGKILL:when={nth}");
    let trace = [
        "strace",
        "-f",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        &injection,
        plugin,
    ];
    let output = container.call(&trace, "ADD", &config(container.node))?;
    if output.status.success() {
        return Ok(true);
    }
    let was_killed = output.status.signal() == Some(9) || output.status.code() == Some(137);
    ensure(was_killed, || {
        format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
    })?;
    Ok(false)
}

/// The names that portmap calls, and the program behind them that this kernel has the modules for.
fn legacy_iptables(folder: &Path) -> Result<String, Failed> {
    for name in ["iptables", "ip6tables", "iptables-save", "iptables-restore"] {
        symlink("/usr/sbin/xtables-legacy-multi", folder.join(name))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    Ok(format!("PATH={}:{path}", folder.display()))
}

/// What a server says at this address, seen from a namespace.
fn hear(from: &Namespace, server: SocketAddr) -> Result<String, Failed> {
    let heard = from.within(|| -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    Ok(heard?)
}

/// A pod's port is reached by its host's address from another node, from a pod there, and from the host itself; and no longer
/// after the runtime's DEL, which goes through the chain from its end.
pub(crate) fn host_port(lab: &mut Lab) -> Result<(), Failed> {
    let pod = lab.bare_pod("hostport")?;
    let plugin = lab.plugin().to_string_lossy().into_owned();
    let node = lab.node(1);
    let folder = tempfile::tempdir()?;
    let path = legacy_iptables(folder.path())?;
    let portmap = ["env", &path, "/usr/lib/cni/portmap"];
    let container = Container {
        node,
        pod: &pod,
        name: "hostport",
    };
    let config = config(node);
    let mut chained = json!({
        "cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "portmap", "snat": true,
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": [{"hostPort": 18080, "containerPort": 8080, "protocol": "tcp"}]},
    });
    let result = container.must(&[&plugin], "ADD", &config)?;
    let address = result["ips"][0]["address"]
        .as_str()
        .and_then(|text| text.split('/').next()?.parse().ok());
    let address: std::net::IpAddr = address.ok_or_else(|| result.to_string())?;
    chained["prevResult"] = result;
    container.must(&portmap, "ADD", &chained)?;

    let listener = pod.within(|| TcpListener::bind(SocketAddr::new(address, 8080)))??;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut stream| stream.write_all(b"from the pod"));
        }
    });
    let port = SocketAddr::new(node.address.into(), 18080);
    for from in [
        &lab.node(2).namespace,
        &lab.pod("n2p1").namespace,
        &lab.pod("n1p1").namespace,
        &node.namespace,
    ] {
        let heard = hear(from, port).map_err(|error| format!("from {}: {error:?}", from.name()))?;
        ensure(heard == "from the pod", || heard.clone())?;
    }

    // Chained with another, ours finds what its ADD made.
    let mut checked = config.clone();
    checked["prevResult"] = chained["prevResult"].clone();
    container.must(&[&plugin], "CHECK", &checked)?;
    container.must(&portmap, "DEL", &chained)?;
    container.must(&[&plugin], "DEL", &config)?;
    let after = hear(&lab.node(2).namespace, port);
    ensure(after.is_err(), || format!("still there: {after:?}"))
}
