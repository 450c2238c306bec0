//! How long a pod waits for its network when fifty are started at once, and what the plugin's own process costs.
//!
//! One real agent on a directory datastore, in a namespace; every pod is a namespace, attached by the real plugin. It needs
//! root, and no ipip. The plugin's processor time is that of all its processes together, as the kernel accounts for them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use harness::{Lab, Layout, Mode, Namespace};

/// Pods that are started at once.
const AT_ONCE: usize = 50;
/// How often that is done.
const ROUNDS: usize = 6;

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

    /// The same call for all pods at once: how long each took.
    fn all(&self, verb: &str) -> Outcome<Vec<Duration>> {
        let barrier = Barrier::new(self.pods.len());
        std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .pods
                .iter()
                .map(|pod| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        // A thread's children are born in its namespace.
                        self.node.within(|| {
                            barrier.wait();
                            self.call(&[], verb, pod).map(|(took, _)| took)
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
}

/// Processor time of all children that have ended, in clock ticks of 10 ms (proc(5), `cutime` and `cstime`).
fn children() -> Outcome<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<_> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let field = |nth: usize| {
        fields
            .get(nth)
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or("no such field")
    };
    // Counted from the field after the name, which is the third.
    Ok(field(13)? + field(14)?)
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
    let mut took = Vec::new();
    let mut ticks = 0;
    for _ in 0..ROUNDS {
        let before = children()?;
        took.extend(place.all("ADD")?);
        ticks += children()? - before;
        place.all("DEL")?;
    }
    took.sort_unstable();
    let at = |share: usize| {
        took.get((took.len() * share / 100).min(took.len() - 1))
            .copied()
            .unwrap_or_default()
    };
    println!("{AT_ONCE} pods at once, {ROUNDS} times");
    println!(
        "  ADD                 p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        ms(at(50)),
        ms(at(99)),
        ms(at(100))
    );
    println!(
        "  the plugin's CPU    {:.2} ms each",
        ticks as f64 * 10.0 / took.len() as f64
    );
    let first = place.pods.first().ok_or("no pod")?;
    let alone = place.node.within(|| place.call(&[], "ADD", first))??;
    place.node.within(|| place.call(&[], "DEL", first))??;
    println!("  ADD alone           {:.1} ms", ms(alone.0));
    if std::path::Path::new("/usr/bin/time").exists() {
        let (_, said) = place
            .node
            .within(|| place.call(&["/usr/bin/time", "-f", "%M"], "ADD", first))??;
        println!("  its peak memory     {} kB", said.trim());
    } else {
        println!("  its peak memory     unknown: GNU time is not installed");
    }
    lab.down()?;
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
