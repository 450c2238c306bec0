//! A network namespace, as `ip netns` names it.

use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use crate::LabError;
use crate::command::{output, run, run_with_input, show};

/// A network namespace, as `ip netns` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn named(name: String) -> Self {
        Self { name }
    }

    /// Its name, for `ip netns exec`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Does something inside. A thread of its own enters, so that the caller stays where it is; processes that it starts
    /// are born inside, which saves the `ip netns exec` for each.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        let path = self.path();
        let namespace = File::open(&path).map_err(LabError::io(format!("open {path}")))?;
        let inside = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(act())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        inside.map_err(|e: nix::Error| LabError::io(format!("enter {path}"))(e.into()))
    }

    /// Runs a command inside and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be started or ends with another status than 0.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.within(|| run(command))?
    }

    /// Runs a command inside on a standard input, and returns how it ended with all that it wrote.
    pub(crate) fn output(&self, command: Command, input: &str) -> Result<std::process::Output, LabError> {
        self.within(|| output(command, input))?
    }

    /// Starts a program inside, in a process group of its own: a Ctrl-C meant for us does not reach it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Child, LabError> {
        use std::os::unix::process::CommandExt as _;

        let shown = show(&command);
        command.process_group(0);
        self.within(|| command.spawn())?
            .map_err(LabError::io(format!("start `{shown}` in {}", self.name)))
    }

    /// `ip ARGUMENTS` inside.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn ip(&self, arguments: &str) -> Result<String, LabError> {
        let mut command = Command::new("ip");
        command
            .args(["-n", &self.name])
            .args(arguments.split_whitespace());
        run(command)
    }

    /// Several `ip` commands inside, by one process.
    pub(crate) fn ip_batch(&self, lines: &[String]) -> Result<(), LabError> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        run_with_input(command, &(lines.join("\n") + "\n")).map(drop)
    }

    /// The kernel's routes of the main table, one a line, as `ip route` prints them (without the blanks at line ends).
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn routes(&self) -> Result<Vec<String>, LabError> {
        let text = self.ip("route show")?;
        Ok(text.lines().map(|line| line.trim_end().to_owned()).collect())
    }

    /// Sets kernel parameters inside (`net/ipv4/ip_forward`, …), without starting a process for each.
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<(), LabError> {
        self.within(|| {
            for (name, value) in settings {
                let path = format!("/proc/sys/{name}");
                std::fs::write(&path, value).map_err(LabError::io(format!("write {value} to {path}")))?;
            }
            Ok(())
        })?
    }

    /// Asks an HTTP server inside for a page: its status and its body.
    ///
    /// # Errors
    /// When nobody answers, or what answers is not HTTP.
    pub fn http_get(&self, server: SocketAddr, page: &str) -> Result<(u16, String), LabError> {
        self.within(|| http_get(server, page))?
    }
}

fn http_get(server: SocketAddr, page: &str) -> Result<(u16, String), LabError> {
    use std::io::{Read as _, Write as _};

    const PATIENCE: Duration = Duration::from_secs(10);
    let asked = format!("GET http://{server}{page}");
    let mut answer = String::new();
    let mut ask = || {
        let mut stream = std::net::TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {page} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
        stream.read_to_string(&mut answer)
    };
    // Of HTTP 1.0, so that the body comes as it is and not in chunks.
    ask().map_err(LabError::io(asked.clone()))?;
    let not_http = |reason: &str| LabError::Answer {
        what: asked,
        reason: reason.to_owned(),
        text: answer.clone(),
    };
    let Some(status) = answer.split_whitespace().nth(1).and_then(|s| s.parse().ok()) else {
        return Err(not_http("no status line"));
    };
    let Some((_, body)) = answer.split_once("\r\n\r\n") else {
        return Err(not_http("no end of headers"));
    };
    Ok((status, body.to_owned()))
}
