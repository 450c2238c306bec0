//! What the quick start does and shows, step by step.

use std::path::Path;
use std::process::Command;

use harness::capture::Capture;
use harness::ping::ping;
use harness::{Lab, LabError, Layout, Mode, Pod, interruption};

use crate::progress::Progress;

/// Pods on every node.
const PODS: u8 = 2;

/// Brings the cluster up, shows it, and takes it down or leaves it.
pub(crate) fn run(layout: Layout, keep: bool) -> Result<(), LabError> {
    let progress = Progress::new();
    println!(
        "A cluster of {} nodes on this machine, mode {}.",
        layout.nodes, layout.mode
    );
    println!();
    let mut lab = progress.step("nodes and network", || {
        let lab = Lab::build(layout)?;
        Ok((lab, format!("{} namespaces on bridges", layout.nodes)))
    })?;
    let shown = show(&mut lab, &progress);
    if shown.is_ok() && keep {
        println!();
        println!("total {:.1} s", progress.total().as_secs_f64());
        return leave_up(lab);
    }
    let taken = progress.step("clean up", || {
        lab.down()?;
        Ok(((), "nothing is left".to_owned()))
    });
    shown?;
    taken?;
    println!();
    println!("All pings passed. total {:.1} s", progress.total().as_secs_f64());
    Ok(())
}

fn show(lab: &mut Lab, progress: &Progress) -> Result<(), LabError> {
    let nodes = lab.layout().nodes;
    progress.step("agents, BGP sessions", || {
        lab.start_agents()?;
        let sessions = lab.wait_for_sessions()?;
        Ok((
            (),
            format!("{nodes} agents, {} sessions Established", sessions / 2),
        ))
    })?;
    progress.step("pods attached", || {
        lab.attach_everywhere(PODS)?;
        Ok(((), format!("{} pods", lab.pods().count())))
    })?;
    let blocks = progress.step("blocks claimed", || {
        let mut lines = Vec::new();
        for node in lab.nodes() {
            lines.push(format!(
                "  node{} {:<12} {}",
                node.number,
                node.address,
                node.agent.status()?.blocks.join(" ")
            ));
        }
        let count = lines.len();
        Ok((lines, format!("by {count} nodes")))
    })?;
    println!("{}", blocks.join("\n"));
    progress.step("routes in the kernels", || {
        let routes = lab.wait_for_routes()?;
        Ok(((), format!("{routes} routes of proto culvert")))
    })?;
    ping_all_pairs(lab, progress)?;
    capture_one(lab, progress)?;
    look_at_one_node(lab)
}

/// A ping between every two pods on different nodes, in both directions.
fn ping_all_pairs(lab: &Lab, progress: &Progress) -> Result<(), LabError> {
    let pods: Vec<&Pod> = lab.pods().collect();
    let failures = progress.step("ping between all pods", || {
        let mut failures = Vec::new();
        let mut passed = 0;
        for from in &pods {
            for to in pods.iter().filter(|to| to.node != from.node) {
                interruption::check()?;
                match ping(&from.namespace, to.address) {
                    Ok(_) => passed += 1,
                    Err(error) => failures.push(format!(
                        "{} {} to {} {}: {error}",
                        from.name, from.address, to.name, to.address
                    )),
                }
            }
        }
        let all = passed + failures.len();
        Ok((failures, format!("{passed} of {all} passed")))
    })?;
    if failures.is_empty() {
        return Ok(());
    }
    println!("  {}", failures.join("\n  "));
    Err(LabError::Layout("not all pings passed"))
}

/// One packet between pods as it looks on the wire between their nodes.
fn capture_one(lab: &Lab, progress: &Progress) -> Result<(), LabError> {
    let last = lab.layout().nodes;
    let (from, to) = (lab.pod("n1p1"), lab.pod(&format!("n{last}p1")));
    let tunnelled = lab.layout().tunnelled(from.node, to.node);
    let what = if tunnelled {
        "an outer packet on the wire"
    } else {
        "a packet on the wire"
    };
    let packet = progress.step(what, || {
        let filter = if tunnelled { "ip proto 4" } else { "icmp" };
        let capture = Capture::start(&lab.node(1).namespace, "eth0", filter)?;
        ping(&from.namespace, to.address)?;
        let packet = capture.wait_for("the ping", |packet| {
            packet.inner() == Some((from.address, to.address))
        })?;
        let (source, destination) = packet.headers[0];
        Ok((packet, format!("{source} > {destination}")))
    })?;
    println!("  {}", packet.text);
    Ok(())
}

fn look_at_one_node(lab: &Lab) -> Result<(), LabError> {
    let node = lab.node(1);
    println!();
    println!("node1# culvert node status");
    print!("{}", node.agent.status_text(&[])?);
    println!();
    println!("node1# ip route");
    println!("{}", node.namespace.routes()?.join("\n"));
    println!();
    Ok(())
}

/// Says how to look around. In a guest, whose files and processes end with us, gives a shell.
fn leave_up(lab: Lab) -> Result<(), LabError> {
    let node = lab.node(1);
    let enter = format!("ip netns exec {} bash", node.namespace.name());
    let (from, to) = (lab.pod("n1p1"), lab.pod("n2p1"));
    let culvert = harness::culvert()?;
    println!();
    println!("It stands. To enter a node:");
    println!("  {enter}");
    println!("What to try there:");
    println!("  ip route");
    println!(
        "  {} node status --socket {}",
        shown(&culvert),
        node.agent.socket().display()
    );
    println!("  curl http://{}/metrics", harness::agent::HTTP);
    if lab.layout().mode == Mode::Ipip {
        println!("  tcpdump -nni eth0 ip proto 4");
        println!(
            "  ip route replace BLOCK via {} dev tunl0 onlink    (a wrong next hop: see it repaired)",
            to.address
        );
    }
    println!("From a pod to one on another node:");
    println!("  ip netns exec {} ping {}", from.namespace.name(), to.address);
    println!("Its page, for a browser on this machine (from outside of the node):");
    println!(
        "  {} ui --socket {}",
        shown(&culvert),
        node.agent.socket().display()
    );
    println!("Logs, configuration and the datastore:");
    println!("  {}", lab.folder().display());
    println!();
    if std::env::var_os("CULVERT_GUEST").is_some() {
        println!("This is a guest with a kernel of its own: all of it ends with this shell.");
        let ended = Command::new("bash").status();
        ended.map_err(|source| LabError::Io {
            operation: "start bash".to_owned(),
            source,
        })?;
        return lab.down();
    }
    println!("To take it down:");
    println!("  examples/quickstart/run --down");
    lab.keep()
}

/// A path as one would type it here.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here).unwrap_or(path).display().to_string()
}
