//! Programs that run beside a trial, and live as long as it does at most, whatever becomes of it.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex, PoisonError};

use nix::sys::signal::Signal;

use crate::command::show;
use crate::record::kill;
use crate::{LabError, Namespace};

/// How much of a log is shown with an error.
const LAST_LINES: usize = 15;

/// A program in a namespace, that ends with the thread that starts it; its number stays the same through all of it.
pub(crate) fn command_in(namespace: Option<&Namespace>, program: &str) -> Command {
    let mut command = match namespace {
        Some(namespace) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", namespace.path())).arg("--");
            command.arg("setpriv");
            command
        }
        None => Command::new("setpriv"),
    };
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

type Order = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a program that lives as long as this process, at most. The kernel's "parent" is the thread that forked, and
/// those of tests come and go: so one that stays does it.
pub(crate) fn spawn(mut command: Command, log: &Path) -> Result<Child, LabError> {
    use std::os::unix::process::CommandExt as _;

    static KEEPER: LazyLock<Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, ordered) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in ordered {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    let shown = show(&command);
    let file = |path: &Path| {
        let opened = File::options().create(true).append(true).open(path);
        opened.map_err(LabError::io(format!("open {}", path.display())))
    };
    command.process_group(0).stdin(Stdio::null());
    command.stdout(file(log)?).stderr(file(log)?);
    let (answer, answered) = mpsc::channel();
    let keeper = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    // It ends with the process only.
    let _ = keeper.send((command, answer));
    drop(keeper);
    let ended = || std::io::Error::other("the thread that starts processes is gone");
    answered
        .recv()
        .unwrap_or_else(|_| Err(ended()))
        .map_err(LabError::io(format!("start `{shown}`")))
}

pub(crate) fn end(mut child: Child) -> Result<(), LabError> {
    kill(child.id(), Signal::SIGKILL);
    child.wait().map(drop).map_err(LabError::io("wait for its end"))
}

pub(crate) fn died(program: &str, status: std::process::ExitStatus, log: &Path) -> LabError {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    LabError::Command {
        command: program.to_owned(),
        status: status.to_string(),
        output: lines[lines.len().saturating_sub(LAST_LINES)..].join("\n"),
    }
}
