//! How long a pod waits for its network when fifty are started at once, and what the plugin's own process costs.
//!
//! One real agent on a directory datastore, in a namespace; every pod is a namespace, attached by the real plugin. It needs
//! root, and no ipip. The plugin's processor time is that of all its processes together, as the kernel accounts for them.
//!
//! What it is to be measured by is made in turns with it: the same objects of the kernel without any of Culvert's processes,
//! once by `ip -batch` for the host and `ip -batch` for the pod, and once by threads that write the netlink messages
//! themselves, which is the kernel's own part of it.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use culvert_agent::dataplane::{PodLink, attach_pod, detach_pod};
use harness::{Agent, Lab, Layout, Mode, Namespace};

/// Pods that are started at once.
const AT_ONCE: usize = 50;
/// How often that is done.
const ROUNDS: usize = 6;
/// How often one is started alone.
const ALONE: usize = 20;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> ExitCode {
    // `cargo test --benches` runs it to see whether it starts.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attach: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One node and its pods.
struct Place {
    plugin: PathBuf,
    socket: PathBuf,
    node: Namespace,
    pods: Vec<Namespace>,
}

impl Place {
    fn command(&self, program: &[&str], verb: &str, pod: &Namespace) -> Command {
        let mut command = match program {
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.plugin);
                command
            }
            [] => Command::new(&self.plugin),
        };
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", pod.name())
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env(
                "CNI_ARGS",
                format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={}", pod.name()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// A call to its end: how long it took, and what it wrote to standard error.
    fn call(&self, program: &[&str], verb: &str, pod: &Namespace) -> Outcome<(Duration, String)> {
        let config = format!(
            r#"{{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"culvert-cni","agentSocket":"{}"}}"#,
            self.socket.display()
        );
        let mut command = self.command(program, verb, pod);
        let begun = Instant::now();
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(config.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        let took = begun.elapsed();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            return Ok((took, errors));
        }
        Err(format!("{verb}: {}{errors}", String::from_utf8_lossy(&output.stdout)).into())
    }

    /// The same for all pods at once, by a thread each in the node's namespace: how long each took.
    fn at_once(&self, act: impl Fn(usize, &Namespace) -> Outcome<Duration> + Sync) -> Outcome<Vec<Duration>> {
        let barrier = Barrier::new(self.pods.len());
        let (barrier, act) = (&barrier, &act);
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .pods
                .iter()
                .enumerate()
                .map(|(nth, pod)| {
                    scope.spawn(move || {
                        // A thread's children are born in its namespace.
                        self.node.within(|| {
                            barrier.wait();
                            act(nth, pod)
                        })?
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("a thread panicked".into())))
                .collect()
        })
    }

    /// The same call of the plugin for all pods at once.
    fn all(&self, verb: &str) -> Outcome<Vec<Duration>> {
        self.at_once(|_, pod| self.call(&[], verb, pod).map(|(took, _)| took))
    }

    fn link(nth: usize, pod: &Namespace) -> Outcome<PodLink> {
        Ok(PodLink {
            host_name: format!("calibare{nth}"),
            pod_netns: pod.path().into(),
            pod_name: "eth0".to_owned(),
            // TEST-NET-1 (RFC 5737): nobody's.
            address: Ipv4Addr::new(192, 0, 2, u8::try_from(nth)?),
            address_v6: None,
            mtu: 1480,
        })
    }

    /// The same objects by the threads of this process.
    fn by_threads(&self) -> Outcome<Vec<Duration>> {
        self.at_once(|nth, pod| {
            let link = Self::link(nth, pod)?;
            let begun = Instant::now();
            attach_pod(&link)?;
            Ok(begun.elapsed())
        })
    }

    /// The same objects by two processes of `ip`.
    fn by_ip(&self) -> Outcome<Vec<Duration>> {
        self.at_once(|nth, pod| {
            let PodLink { host_name, address, .. } = Self::link(nth, pod)?;
            let on_host = format!(
                "link add {host_name} address ee:ee:ee:ee:ee:ee mtu 1480 type veth peer name eth0 mtu 1480 netns {pod}\n\
                 link set {host_name} up\nroute add {address} dev {host_name} scope link\n",
                pod = pod.name()
            );
            let in_pod = format!(
                "link set eth0 up\naddress add {address} dev eth0\n\
                 neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee nud permanent dev eth0\n\
                 route add 169.254.1.1 dev eth0 scope link\nroute add default via 169.254.1.1 dev eth0\n"
            );
            let begun = Instant::now();
            batch(&["-batch", "-"], &on_host)?;
            batch(&["-n", pod.name(), "-batch", "-"], &in_pod)?;
            Ok(begun.elapsed())
        })
    }

    fn without_links(&self) -> Outcome<()> {
        let all = self.at_once(|nth, pod| {
            let link = Self::link(nth, pod)?;
            detach_pod(&link.host_name, None, "eth0")?;
            Ok(Duration::ZERO)
        });
        all.map(drop)
    }
}

/// Has `ip` do what the lines say.
fn batch(arguments: &[&str], lines: &str) -> Outcome<()> {
    let mut child = Command::new("ip").args(arguments).stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let ended = child.wait()?;
    if ended.success() {
        return Ok(());
    }
    Err(format!("ip {arguments:?}: {ended}:\n{lines}").into())
}

/// Processor time of a process that runs, of all threads that it has now.
fn running(pid: u32) -> Outcome<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // proc(5): the first field of schedstat. A thread may end meanwhile.
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text
            .split_whitespace()
            .next()
            .and_then(|field| field.parse().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Whose processor time is meant.
#[derive(Clone, Copy)]
enum Whose {
    /// This process's.
    Own,
    /// That of all its children that have ended.
    Children,
}

/// Processor time by the kernel's accounts, in steps of 10 ms (proc(5), `utime` and `stime`, `cutime` and `cstime`).
fn spent(whose: Whose) -> Outcome<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // Counted from the field after the name, which is the third.
    let first = match whose {
        Whose::Own => 11,
        Whose::Children => 13,
    };
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut ticks = 0;
    for field in fields.split_whitespace().skip(first).take(2) {
        ticks += field.parse::<u64>()?;
    }
    Ok(Duration::from_millis(10 * ticks))
}

/// One way of doing it: how long each pod waited, and what the processes cost that did it.
struct Way {
    name: &'static str,
    whose: Whose,
    took: Vec<Duration>,
    cpu: Duration,
}

impl Way {
    fn new(name: &'static str, whose: Whose) -> Self {
        Self {
            name,
            whose,
            took: Vec::new(),
            cpu: Duration::ZERO,
        }
    }

    fn add(&mut self, act: impl FnOnce() -> Outcome<Vec<Duration>>) -> Outcome<()> {
        let before = spent(self.whose)?;
        self.took.extend(act()?);
        self.cpu += spent(self.whose)?.saturating_sub(before);
        Ok(())
    }

    fn print(&mut self) {
        self.took.sort_unstable();
        let last = self.took.len().saturating_sub(1);
        let at = |share: usize| {
            let nth = (self.took.len() * share / 100).min(last);
            self.took.get(nth).copied().map_or(0.0, ms)
        };
        println!(
            "  {:<26} p50 {:>6.1} ms, p99 {:>6.1} ms, longest {:>6.1} ms; {:.2} ms of CPU each",
            self.name,
            at(50),
            at(99),
            at(100),
            ms(self.cpu) / self.took.len().max(1) as f64
        );
    }
}

/// What the agent counts of its own time: seconds in all, and how often.
struct Within {
    name: &'static str,
    metric: &'static str,
    before: (f64, f64),
}

impl Within {
    fn since(agent: &Agent, name: &'static str, metric: &'static str) -> Outcome<Self> {
        let before = Self::now(agent, metric)?;
        Ok(Self { name, metric, before })
    }

    fn now(agent: &Agent, metric: &str) -> Outcome<(f64, f64)> {
        let (_, page) = agent.page("/metrics")?;
        let (family, labels) = metric.split_once('{').unwrap_or((metric, "}"));
        let value = |what: &str| {
            let line = page
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{family}_{what}{{{labels} ")));
            line.map_or(Ok(0.0), str::parse::<f64>)
        };
        Ok((value("sum")?, value("count")?))
    }

    fn print(&self, agent: &Agent) -> Outcome<()> {
        let (seconds, count) = Self::now(agent, self.metric)?;
        let mean = (seconds - self.before.0) / (count - self.before.1).max(1.0);
        println!("    {:<24} {:.1} ms on average", self.name, mean * 1000.0);
        Ok(())
    }
}

fn measure() -> Outcome<()> {
    let mut lab = Lab::build(Layout {
        nodes: 2,
        ..Layout::new(Mode::Direct)
    })?;
    lab.start_agents()?;
    lab.wait_for_sessions()?;
    let mut pods = Vec::new();
    for nth in 0..AT_ONCE {
        pods.push(lab.bare_pod(&format!("b{nth}"))?);
    }
    let place = Place {
        plugin: lab.plugin().to_owned(),
        socket: lab.node(1).agent.socket(),
        node: lab.node(1).namespace.clone(),
        pods,
    };
    let agent = &lab.node(1).agent;
    println!("{AT_ONCE} pods at once, {ROUNDS} times");
    at_once(&place, agent)?;
    alone(&place, agent)?;
    lab.down()?;
    Ok(())
}

/// What of an ADD is spent where.
fn parts(agent: &Agent) -> Outcome<[Within; 2]> {
    Ok([
        Within::since(
            agent,
            "of that the agent",
            r#"culvert_cni_request_duration_seconds{command="add"}"#,
        )?,
        Within::since(
            agent,
            "of that the allocation",
            r#"culvert_ipam_request_duration_seconds{request="assign"}"#,
        )?,
    ])
}

fn at_once(place: &Place, agent: &Agent) -> Outcome<()> {
    let pid = agent.pid().ok_or("no agent")?;
    let mut plugin = Way::new("ADD by the plugin", Whose::Children);
    let mut del = Way::new("DEL by the plugin", Whose::Children);
    let mut ip = Way::new("bare: two ip -batch", Whose::Children);
    let mut threads = Way::new("bare: netlink by threads", Whose::Own);
    let within = parts(agent)?;
    let mut of_agent = Duration::ZERO;
    for _ in 0..ROUNDS {
        let before = running(pid)?;
        plugin.add(|| place.all("ADD"))?;
        of_agent += running(pid)?.saturating_sub(before);
        del.add(|| place.all("DEL"))?;
        ip.add(|| place.by_ip())?;
        place.without_links()?;
        threads.add(|| place.by_threads())?;
        place.without_links()?;
    }
    plugin.print();
    for part in &within {
        part.print(agent)?;
    }
    println!(
        "    {:<24} {:.2} ms of CPU each",
        "and the agent's own",
        ms(of_agent) / plugin.took.len().max(1) as f64
    );
    del.print();
    ip.print();
    threads.print();
    Ok(())
}

fn alone(place: &Place, agent: &Agent) -> Outcome<()> {
    let first = place.pods.first().ok_or("no pod")?;
    let mut add = Way::new("ADD alone", Whose::Children);
    let within = parts(agent)?;
    for _ in 0..ALONE {
        add.add(|| Ok(vec![place.node.within(|| place.call(&[], "ADD", first))??.0]))?;
        place.node.within(|| place.call(&[], "DEL", first))??;
    }
    add.print();
    for part in &within {
        part.print(agent)?;
    }
    if std::path::Path::new("/usr/bin/time").exists() {
        let (_, said) = place
            .node
            .within(|| place.call(&["/usr/bin/time", "-f", "%M"], "ADD", first))??;
        println!("  the plugin's peak memory   {} kB", said.trim());
        place.node.within(|| place.call(&[], "DEL", first))??;
    } else {
        println!("  the plugin's peak memory   unknown: GNU time is not installed");
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
