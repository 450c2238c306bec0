//! BIRD 2 as one more node of the mesh: a peer that shares no code with the agents.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::layout::{AS_NUMBER, BIRD_BLOCK, BIRD_POD, Layout};
use crate::record::Record;
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
        layout: &Layout,
        record: &Record,
    ) -> Result<Self, LabError> {
        let config = folder.join("bird.conf");
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&config, configuration(layout)))
            .map_err(LabError::io(format!("write {}", config.display())))?;
        let control = folder.join("bird.ctl");
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&config).arg("-s").arg(&control);
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

/// The configuration: a session with every node, one block to announce, and all that is learned goes to the kernel.
fn configuration(layout: &Layout) -> String {
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
