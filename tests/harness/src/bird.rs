//! BIRD 2 in place of an agent: as one more node of the mesh, or as Calico configures it.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::layout::{AS_NUMBER, BIRD_BLOCK, BIRD_POD, Layout};
use crate::record::{Record, kill};
use crate::{LabError, Namespace, wait_for};

/// A running BIRD.
#[derive(Debug)]
pub struct Bird {
    /// Its node.
    pub namespace: Namespace,
    control: PathBuf,
    child: Child,
}

impl Bird {
    /// Starts BIRD in a namespace that has its links already, and waits until it answers.
    pub(crate) fn start(
        namespace: Namespace,
        folder: &Path,
        configuration: &str,
        record: &Record,
    ) -> Result<Self, LabError> {
        let config = folder.join("bird.conf");
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&config, configuration))
            .map_err(LabError::io(format!("write {}", config.display())))?;
        let control = folder.join("bird.ctl");
        let mut command = Command::new("bird");
        // Its restart is one of those that peers keep routes for (RFC 4724).
        command
            .arg("-f")
            .arg("-R")
            .arg("-c")
            .arg(&config)
            .arg("-s")
            .arg(&control);
        let log = fs::File::create(folder.join("bird.log")).map_err(LabError::io("create bird.log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = namespace.spawn(command)?;
        record.process(child.id())?;
        let bird = Self {
            namespace,
            control,
            child,
        };
        wait_for("BIRD to answer", Duration::from_secs(30), || {
            bird.ask("show status").map_err(|e| e.to_string())
        })?;
        Ok(bird)
    }

    /// Asks it something, as `birdc` does.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, question: &str) -> Result<String, LabError> {
        let control = self.control.to_string_lossy();
        let mut arguments = vec!["-r", "-s", &control];
        arguments.extend(question.split_whitespace());
        self.namespace.run("birdc", &arguments)
    }

    /// Ends it at once, as the deletion of its pod does in the end: it leaves the kernel as it is, and peers are not told.
    pub fn kill(mut self) {
        kill(self.child.id(), Signal::SIGKILL);
        self.reap();
    }

    /// Collects the process after it was killed from outside.
    pub(crate) fn reap(&mut self) {
        let _ = self.child.wait();
    }
}

/// The commands that make a pod's place on BIRD's node: an address of its block, and an end for tunnels. BIRD itself
/// sends without a tunnel, which a receiver takes as well.
pub(crate) fn places(layout: &Layout) -> Vec<String> {
    let mut lines = vec![format!("addr add {BIRD_POD}/32 dev lo")];
    if layout.mode != crate::Mode::Direct {
        lines.push("link set tunl0 up".to_owned());
    }
    lines
}

/// What Calico makes of a node with these blocks among these others (confd/etc/calico/confd/templates): only the blocks leave
/// the node, and of two nodes the one whose address comes first as text dials. The routes to other nodes' blocks, which its
/// fork of BIRD writes with `krt_tunnel`, are not written by this one.
pub(crate) fn of_calico(own: Ipv4Addr, others: &[Ipv4Addr], blocks: &[String]) -> String {
    let routes: String = blocks
        .iter()
        .map(|block| format!("route {block} blackhole; "))
        .collect();
    let mut text = format!(
        "log stderr all;
router id {own};
protocol device {{ scan time 2; }}
protocol static blocks {{ ipv4; {routes}}}
protocol kernel {{ learn; persist; scan time 2; merge paths on; graceful restart; ipv4 {{ import all; export none; }}; }}
template bgp mesh {{
  local {own} as {AS_NUMBER};
  multihop;
  graceful restart;
  connect delay time 2;
  connect retry time 5;
  error wait time 5,30;
  ipv4 {{ import all; export where proto = \"blocks\"; add paths on; gateway recursive; next hop self; }};
}}
"
    );
    for other in others {
        let passive = if other.to_string() > own.to_string() {
            "on"
        } else {
            "off"
        };
        let name = other.to_string().replace('.', "_");
        let _ = writeln!(
            text,
            "protocol bgp Mesh_{name} from mesh {{ neighbor {other} as {AS_NUMBER}; passive {passive}; }}"
        );
    }
    text
}

/// A session with every node, one block to announce, and all that is learned goes to the kernel.
pub(crate) fn in_the_mesh(layout: &Layout) -> String {
    let own = layout.address(layout.bird_number());
    let mut text = format!(
        "log stderr all;
router id {own};
protocol device {{ scan time 2; }}
protocol static own_block {{ ipv4; route {BIRD_BLOCK} blackhole; }}
protocol kernel {{ ipv4 {{ import none; export all; }}; }}
template bgp mesh {{
  local {own} as {AS_NUMBER};
  direct;
  connect retry time 2;
  error wait time 1, 5;
  ipv4 {{ import all; export where source = RTS_STATIC; next hop self; }};
}}
"
    );
    for number in layout.numbers() {
        let _ = writeln!(
            text,
            "protocol bgp node{number} from mesh {{ neighbor {} as {AS_NUMBER}; }}",
            layout.address(number)
        );
    }
    text
}
