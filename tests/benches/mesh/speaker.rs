//! The speakers under test: Culvert, and BIRD 1.6 and BIRD 2 configured as Calico configures its BIRD.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use harness::interruption;
use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use crate::Outcome;
use crate::message::{AS_NUMBER, HOLD_TIME};
use crate::place::{self, Place, SPEAKER};

/// How long a speaker may take to start and to come to rest.
const START_LIMIT: Duration = Duration::from_secs(60);
/// At rest is who uses less than a twentieth of a processor for so long.
const REST: Duration = Duration::from_millis(300);

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Culvert,
    Bird1,
    Bird2,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Culvert, Self::Bird1, Self::Bird2];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Culvert => "Culvert",
            Self::Bird1 => "BIRD 1.6",
            Self::Bird2 => "BIRD 2",
        }
    }
}

/// Where the programs are.
#[derive(Debug)]
pub(crate) struct Programs {
    culvert: PathBuf,
    bird1: PathBuf,
    bird2: PathBuf,
}

impl Programs {
    /// Finds them. BIRD 1.6 cannot be installed beside BIRD 2: its package is unpacked into `folder`.
    pub(crate) fn find(folder: &Path) -> Outcome<Self> {
        let culvert = harness::culvert()?;
        let bird2 = PathBuf::from("bird");
        let version = version(&bird2).map_err(|e| format!("BIRD 2 (package bird2) is needed: {e}"))?;
        if !version.contains(" 2.") {
            return Err(format!("`bird` is {version}, not BIRD 2: install the package bird2").into());
        }
        let bird1 = folder.join("usr/sbin/bird");
        if !bird1.is_file() {
            let script = "apt-get download bird >&2 && dpkg -x bird_1.*.deb .";
            fs::create_dir_all(folder)?;
            let status = Command::new("sh")
                .args(["-c", script])
                .current_dir(folder)
                .status()?;
            if !status.success() {
                return Err("BIRD 1.6 (package bird of Debian 12) could not be downloaded".into());
            }
        }
        Ok(Self {
            culvert,
            bird1,
            bird2,
        })
    }
}

fn version(bird: &Path) -> Outcome<String> {
    let output = Command::new(bird).arg("--version").output()?;
    Ok(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// A running speaker. It ends when it is dropped, and with this process.
#[derive(Debug)]
pub(crate) struct Speaker {
    kind: Kind,
    folder: PathBuf,
    peers: usize,
    /// Blocks of its own, beyond the first.
    blocks: Vec<Ipv4Addr>,
    child: Child,
    clock: ClockId,
}

impl Speaker {
    /// Starts one that knows so many peers, and waits until it listens and has come to rest.
    pub(crate) fn start(
        kind: Kind,
        programs: &Programs,
        place: &Place,
        folder: &Path,
        peers: usize,
    ) -> Outcome<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        match kind {
            Kind::Culvert => {
                prepare_culvert(folder, peers)?;
                command.arg(&programs.culvert).args(["agent", "--config"]);
                command.arg(folder.join("agent.yaml"));
            }
            Kind::Bird1 | Kind::Bird2 => {
                fs::write(folder.join("bird.conf"), bird_configuration(kind, peers, &[]))?;
                command.arg(if kind == Kind::Bird1 {
                    &programs.bird1
                } else {
                    &programs.bird2
                });
                command.arg("-f").arg("-c").arg(folder.join("bird.conf"));
                command.arg("-s").arg(folder.join("bird.ctl"));
            }
        }
        let log = File::create(folder.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = place.at_speaker(|| command.spawn())??;
        let clock = ClockId::pid_cpu_clock_id(pid(&child))?;
        let mut speaker = Self {
            kind,
            folder: folder.to_owned(),
            peers,
            blocks: Vec::new(),
            child,
            clock,
        };
        speaker.wait_for_rest(place)?;
        Ok(speaker)
    }

    fn wait_for_rest(&mut self, place: &Place) -> Outcome<()> {
        let end = Instant::now() + START_LIMIT;
        let mut rested = 0;
        while rested < 2 {
            interruption::check()?;
            if Instant::now() > end {
                return Err(format!("{} does not come to rest:\n{}", self.kind.name(), self.log()).into());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("{} ended with {status}:\n{}", self.kind.name(), self.log()).into());
            }
            let before = self.cpu()?;
            std::thread::sleep(REST);
            let resting = self.cpu()? - before < REST / 20;
            rested = if resting && place.at_speaker(listens)? {
                rested + 1
            } else {
                0
            };
        }
        Ok(())
    }

    /// Processor time used so far, by all threads, in user code and in the kernel.
    pub(crate) fn cpu(&self) -> Outcome<Duration> {
        Ok(self.clock.now()?.into())
    }

    /// The most memory that was ever resident, in MiB.
    pub(crate) fn peak_memory(&self) -> Outcome<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        Ok(kilobytes.ok_or("no VmHWM")?.parse::<f64>()? / 1024.0)
    }

    /// The end of what it wrote.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(self.folder.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Makes everything ready for one more block of its own; what is returned gives it the block.
    pub(crate) fn prepare_block(&mut self, block: Ipv4Addr) -> Outcome<impl FnOnce() -> Outcome<()> + use<>> {
        self.blocks.push(block);
        let written = self.folder.join("new");
        let target = match self.kind {
            Kind::Culvert => {
                fs::write(&written, affinity(block))?;
                self.folder.join(format!(
                    "cluster/datastore/blockaffinities/{}.yaml",
                    affinity_name(block)
                ))
            }
            Kind::Bird1 | Kind::Bird2 => {
                fs::write(&written, bird_configuration(self.kind, self.peers, &self.blocks))?;
                self.folder.join("bird.conf")
            }
        };
        let control = match self.kind {
            Kind::Culvert => None,
            Kind::Bird1 | Kind::Bird2 => Some(UnixStream::connect(self.folder.join("bird.ctl"))?),
        };
        Ok(move || {
            fs::rename(written, target)?;
            let Some(mut control) = control else {
                return Ok(());
            };
            control.write_all(b"configure\n")?;
            let mut answers = BufReader::new(control).lines();
            let refused = |line: &String| line.starts_with('8') || line.starts_with('9');
            // 0003 is "reconfigured", 0004 "in progress".
            let last = |line: &String| line.starts_with("0003") || line.starts_with("0004") || refused(line);
            match answers.by_ref().map_while(Result::ok).find(last) {
                Some(line) if !refused(&line) => Ok(()),
                other => Err(format!("BIRD does not take its configuration: {other:?}").into()),
            }
        })
    }
}

impl Drop for Speaker {
    fn drop(&mut self) {
        let _ = kill(pid(&self.child), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().expect("process ids are small"))
}

/// Whether anybody listens on port 179 (00B3) in this thread's namespace; 0A is LISTEN.
fn listens() -> bool {
    ["tcp", "tcp6"].iter().any(|family| {
        let text = fs::read_to_string(format!("/proc/thread-self/net/{family}")).unwrap_or_default();
        text.lines().any(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            fields.get(1).is_some_and(|local| local.ends_with(":00B3")) && fields.get(3) == Some(&"0A")
        })
    })
}

/// The block that every speaker has from the start.
fn first_block() -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, 0)
}

fn affinity_name(block: Ipv4Addr) -> String {
    format!("node-{}-26", block.to_string().replace('.', "-"))
}

fn affinity(block: Ipv4Addr) -> String {
    format!(
        "apiVersion: crd.projectcalico.org/v1
kind: BlockAffinity
metadata: {{name: {}}}
spec: {{cidr: {block}/26, deleted: \"false\", node: node, state: confirmed}}
",
        affinity_name(block)
    )
}

/// A configuration and a datastore as on a node of a mesh without tunnels.
fn prepare_culvert(folder: &Path, peers: usize) -> Outcome<()> {
    let path = |name: &str| folder.join(name).display().to_string();
    let configuration = format!(
        "nodeName: node
datastore: {{directory: {}}}
state: {{directory: {}}}
socket: {}
node: {{address: {SPEAKER}}}
bgp: {{holdTime: {HOLD_TIME}}}
",
        path("cluster/datastore"),
        path("state"),
        path("agent.sock")
    );
    fs::write(folder.join("agent.yaml"), configuration)?;
    let mut objects = format!(
        "apiVersion: crd.projectcalico.org/v1
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{asNumber: {AS_NUMBER}}}
---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {{name: default}}
spec: {{cidr: 10.0.0.0/8, blockSize: 26, ipipMode: Never}}
"
    );
    for n in 0..peers {
        let _ = write!(
            objects,
            "---
apiVersion: v1
kind: Node
metadata:
  name: peer-{n}
  annotations: {{projectcalico.org/IPv4Address: {}/16}}
",
            place::peer(n)
        );
    }
    // Not beside the log: the agent watches the folder that the datastore is in as well.
    let datastore = folder.join("cluster/datastore");
    fs::create_dir_all(datastore.join("nodes"))?;
    fs::create_dir_all(datastore.join("blockaffinities"))?;
    fs::write(datastore.join("cluster.yaml"), objects)?;
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node}\n";
    fs::write(datastore.join("nodes/node.yaml"), node)?;
    let file = format!("blockaffinities/{}.yaml", affinity_name(first_block()));
    fs::write(datastore.join(file), affinity(first_block()))?;
    Ok(())
}

/// What Calico's templates make of a mesh without tunnels, in the words of either version.
fn bird_configuration(kind: Kind, peers: usize, blocks: &[Ipv4Addr]) -> String {
    let mut text = format!("router id {SPEAKER};\nlog stderr all;\nprotocol device {{ scan time 2; }}\n");
    let own: String = std::iter::once(first_block())
        .chain(blocks.iter().copied())
        .map(|block| format!("route {block}/26 blackhole; "))
        .collect();
    let kernel = "learn; persist; scan time 2; merge paths on; graceful restart;";
    let (ours, way) = (
        "import all; export where source = RTS_STATIC;",
        "gateway recursive; add paths on;",
    );
    let times =
        format!("hold time {HOLD_TIME}; connect delay time 2; connect retry time 5; error wait time 5, 30;");
    let text_of = if kind == Kind::Bird1 {
        format!(
            "protocol direct {{ interface \"*\"; }}
protocol static own {{ {own} }}
protocol kernel {{ {kernel} import all; export all; }}
template bgp mesh {{
  local as {AS_NUMBER}; multihop; source address {SPEAKER}; graceful restart; {times}
  {ours} {way}
}}
"
        )
    } else {
        format!(
            "protocol direct {{ ipv4; interface \"*\"; }}
protocol static own {{ ipv4; {own} }}
protocol kernel {{ {kernel} ipv4 {{ import all; export all; }}; }}
template bgp mesh {{
  local {SPEAKER} as {AS_NUMBER}; multihop; graceful restart; {times}
  ipv4 {{ {ours} {way} }};
}}
"
        )
    };
    text.push_str(&text_of);
    for n in 0..peers {
        let _ = writeln!(
            text,
            "protocol bgp mesh_{n} from mesh {{ neighbor {} as {AS_NUMBER}; passive on; }}",
            place::peer(n)
        );
    }
    text
}
