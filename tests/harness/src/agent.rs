//! The real agent in a node's namespace: started, killed, ended and asked.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::record::{Record, kill};
use crate::status::Status;
use crate::{LabError, Namespace, wait_for};

/// Where an agent answers HTTP, in its own namespace. The other nodes reach it at its address.
pub const HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9179);
/// How much of a log is shown with an error.
const LAST_LINES: usize = 25;

/// An agent and its files. It may be down.
#[derive(Debug)]
pub struct Agent {
    namespace: Namespace,
    binary: PathBuf,
    folder: PathBuf,
    is_confined: bool,
    child: Option<Child>,
}

impl Agent {
    /// Writes the configuration of an agent, which stays down yet.
    pub(crate) fn prepare(
        namespace: Namespace,
        binary: &Path,
        folder: PathBuf,
        name: &str,
        datastore: &Path,
    ) -> Result<Self, LabError> {
        let agent = Self {
            namespace,
            binary: binary.to_owned(),
            folder,
            is_confined: false,
            child: None,
        };
        let text = format!(
            "nodeName: {name}\ndatastore:\n  directory: {}\nstate:\n  directory: {}\nsocket: {}\nhttp:\n  listen: 0.0.0.0:{}\nlog:\n  format: human\n  level: info\n",
            datastore.display(),
            agent.folder.join("state").display(),
            agent.socket().display(),
            HTTP.port()
        );
        fs::create_dir_all(&agent.folder)
            .and_then(|()| fs::write(agent.config(), text))
            .map_err(LabError::io(format!("write {}", agent.config().display())))?;
        Ok(agent)
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("agent.yaml")
    }

    /// Its unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    /// The file that its log goes to.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// From its next start on it may no more than in the container that the chart makes of it: three capabilities, and the
    /// kernel's switches are read-only.
    pub fn confine(&mut self) {
        self.is_confined = true;
    }

    /// Starts it.
    pub(crate) fn start(&mut self, record: &Record) -> Result<(), LabError> {
        let path = self.log();
        let opened = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = opened.map_err(LabError::io(format!("open {}", path.display())))?;
        let twin = log
            .try_clone()
            .map_err(LabError::io(format!("open {}", path.display())))?;
        let mut command = if self.is_confined {
            confined(&self.binary)
        } else {
            Command::new(&self.binary)
        };
        command.arg("agent").arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(log).stderr(twin);
        // The agent takes its settings from the environment as well: what is set for others is not meant for it.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CULVERT_"))
        {
            command.env_remove(name);
        }
        let child = self.namespace.spawn(command)?;
        record.process(child.id())?;
        self.child = Some(child);
        Ok(())
    }

    /// Ends it as a crash would: at once, with no chance to do anything.
    ///
    /// # Errors
    /// When it is down already.
    pub fn kill(&mut self) -> Result<(), LabError> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Asks it to end (SIGTERM), and says how long that took.
    ///
    /// # Errors
    /// When it is down already, or does not end within half a minute.
    pub fn terminate(&mut self) -> Result<Duration, LabError> {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Result<Duration, LabError> {
        let Some(mut child) = self.child.take() else {
            return Err(LabError::Layout("the agent is down already"));
        };
        let start = Instant::now();
        kill(child.id(), signal);
        let what = format!("the agent in {} to end on {signal}", self.namespace.name());
        wait_for(&what, Duration::from_secs(30), || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        })?;
        Ok(start.elapsed())
    }

    /// Puts another copy of the binary in place of the one that is used from the next start on, as an upgrade does.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn upgrade(&mut self) -> Result<(), LabError> {
        let copy = self.folder.join("culvert-upgraded");
        fs::copy(&self.binary, &copy).map_err(LabError::io(format!(
            "copy {} to {}",
            self.binary.display(),
            copy.display()
        )))?;
        self.binary = copy;
        Ok(())
    }

    /// The binary that its process runs.
    ///
    /// # Errors
    /// When it is down.
    pub fn executable(&self) -> Result<PathBuf, LabError> {
        let path = format!(
            "/proc/{}/exe",
            self.pid().ok_or(LabError::Layout("the agent is down"))?
        );
        fs::read_link(&path).map_err(LabError::io(format!("read {path}")))
    }

    /// The number of its process, while it is up.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The value of a metric without labels.
    ///
    /// # Errors
    /// When it does not answer, or has no such metric.
    pub fn metric(&self, name: &str) -> Result<u64, LabError> {
        let (_, page) = self.page("/metrics")?;
        let value = page
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value
            .and_then(|value| value.trim().parse().ok())
            .ok_or_else(|| LabError::Answer {
                what: "the page of metrics".to_owned(),
                reason: format!("it has no number for {name}"),
                text: page.clone(),
            })
    }

    /// All of its log.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log_text(&self) -> Result<String, LabError> {
        fs::read_to_string(self.log()).map_err(LabError::io(format!("read {}", self.log().display())))
    }

    /// Runs `culvert agent --cleanup` in its node, and returns what that printed.
    ///
    /// # Errors
    /// When it fails.
    pub fn clean_up(&self) -> Result<String, LabError> {
        let config = self.config();
        self.culvert(&["agent", "--config", &config.to_string_lossy(), "--cleanup"])
    }

    /// What `culvert shadow` prints with its configuration in its node.
    ///
    /// # Errors
    /// When it fails.
    pub fn shadow(&self) -> Result<String, LabError> {
        self.by_configuration(&["shadow"])
    }

    /// What a command of `culvert` prints in its node that goes by its configuration, and needs no agent.
    ///
    /// # Errors
    /// When it fails; [`LabError::Command`] holds what it printed then.
    pub fn by_configuration(&self, arguments: &[&str]) -> Result<String, LabError> {
        let config = self.config();
        self.culvert(&[arguments, &["--config", &config.to_string_lossy()]].concat())
    }

    /// Makes `mode: MODE` the first line of its configuration, in place of the one before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_mode(&self, mode: &str) -> Result<(), LabError> {
        let path = self.config();
        let shown = path.display().to_string();
        let text = fs::read_to_string(&path).map_err(LabError::io(format!("read {shown}")))?;
        let others = text.lines().filter(|line| !line.starts_with("mode:"));
        let text: String = others.map(|line| format!("{line}\n")).collect();
        fs::write(&path, format!("mode: {mode}\n{text}")).map_err(LabError::io(format!("write {shown}")))
    }

    /// Whether its process is there; once it ended by itself, an error that shows its last words.
    pub(crate) fn alive(&mut self) -> Result<(), LabError> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => Err(LabError::Command {
                command: format!("{} agent in {}", self.binary.display(), self.namespace.name()),
                status: status.to_string(),
                output: self.last_words(),
            }),
            _ => Ok(()),
        }
    }

    /// What `/readyz` says: nothing when the agent is ready, else why it is not.
    #[must_use]
    pub fn not_ready(&self) -> Option<String> {
        match self.namespace.http_get(HTTP, "/readyz") {
            Ok((200, _)) => None,
            Ok((status, body)) => Some(format!("{status} {}", body.trim())),
            Err(error) => Some(error.to_string()),
        }
    }

    /// A page of its HTTP server.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn page(&self, page: &str) -> Result<(u16, String), LabError> {
        self.namespace.http_get(HTTP, page)
    }

    /// What it says of itself.
    ///
    /// # Errors
    /// When it does not answer, or not as expected.
    pub fn status(&self) -> Result<Status, LabError> {
        Status::read(&self.status_text(&["-o", "json"])?)
    }

    /// What `culvert node status` prints, with these options more, whether or not something is wrong with the node.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn status_text(&self, options: &[&str]) -> Result<String, LabError> {
        /// What commands end with that found something wrong.
        const WRONG: i32 = 1;
        let socket = self.socket();
        let mut command = Command::new(&self.binary);
        command.args(["node", "status"]).args(options);
        command.arg("--socket").arg(&socket);
        let output = self.namespace.output(command, "")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() || output.status.code() == Some(WRONG) {
            return Ok(text(&output.stdout));
        }
        Err(LabError::Command {
            command: format!("culvert node status in {}", self.namespace.name()),
            status: output.status.to_string(),
            output: text(&output.stderr),
        })
    }

    /// What a command of `culvert` prints that asks this agent.
    ///
    /// # Errors
    /// When it fails; [`LabError::Command`] holds what it printed then.
    pub fn ask(&self, arguments: &[&str]) -> Result<String, LabError> {
        let socket = self.socket();
        let socket = socket.to_string_lossy();
        self.culvert(&[arguments, &["--socket", &socket]].concat())
    }

    /// Runs `culvert node accept-withdrawal`, and returns what that printed.
    ///
    /// # Errors
    /// When there is nothing to accept, or it does not answer.
    pub fn accept_withdrawal(&self) -> Result<String, LabError> {
        let socket = self.socket();
        self.culvert(&["node", "accept-withdrawal", "--socket", &socket.to_string_lossy()])
    }

    fn culvert(&self, arguments: &[&str]) -> Result<String, LabError> {
        self.namespace.run(&self.binary.to_string_lossy(), arguments)
    }

    /// Collects the process after it was killed from outside.
    pub(crate) fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}
/// A program as a container runtime starts it: of the mounts only `/proc/sys` is as there.
fn confined(program: &Path) -> Command {
    const SCRIPT: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
        exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all,+net_admin,+net_raw,+net_bind_service -- \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", SCRIPT]).arg(program);
    command
}
