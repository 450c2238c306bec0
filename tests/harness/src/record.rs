//! What a laboratory leaves on the machine while it stands, written down before it is made, so that it can be taken down
//! by anybody at any time: by its owner, or later by another process when the owner kept it up or died.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::LabError;
use crate::command::{output, run};

/// Where the folders of all laboratories are. Not on a disk: nothing of it should outlive the machine's run.
const LABS: &str = "/run/culvert-lab";
/// What `ip route` calls protocol 86 while a laboratory stands.
const PROTOCOL_NAMES: &str = "/etc/iproute2/rt_protos.d/culvert.conf";
/// By this the file is known as ours.
const OUR_NAMES: &str =
    "# Made by a laboratory of Culvert, and removed with the last of them.\n86\tculvert\n";

/// The folder of one laboratory, and the lists in it.
#[derive(Debug)]
pub(crate) struct Record {
    folder: PathBuf,
}

impl Record {
    /// Makes the folder of a new laboratory of this process.
    pub(crate) fn new(prefix: &str) -> Result<Self, LabError> {
        let folder = Path::new(LABS).join(prefix);
        fs::create_dir_all(&folder).map_err(LabError::io(format!("make {}", folder.display())))?;
        let record = Self { folder };
        record.append("owner", &identity(std::process::id()).unwrap_or_default())?;
        name_protocol()?;
        Ok(record)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes a namespace that is about to be made.
    pub(crate) fn namespace(&self, name: &str) -> Result<(), LabError> {
        self.append("namespaces", name)
    }

    /// Notes a process that was started.
    pub(crate) fn process(&self, pid: u32) -> Result<(), LabError> {
        identity(pid).map_or(Ok(()), |identity| self.append("processes", &identity))
    }

    /// From now on the laboratory stands without its owner.
    pub(crate) fn keep(&self) -> Result<(), LabError> {
        self.append("kept", "")
    }

    fn append(&self, list: &str, line: &str) -> Result<(), LabError> {
        let path = self.folder.join(list);
        let mut options = fs::OpenOptions::new();
        let opened = options.append(true).create(true).open(&path);
        let written = opened.and_then(|mut file| writeln!(file, "{line}"));
        written.map_err(LabError::io(format!("write {}", path.display())))
    }

    fn lines(&self, list: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.join(list)).unwrap_or_default();
        text.lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Whether nobody is left who would take it down.
    fn is_left_over(&self) -> bool {
        let kept = self.folder.join("kept").exists();
        kept || self.lines("owner").iter().all(|owner| running(owner).is_none())
    }

    /// Takes everything down that is written here. What is gone already is no error, so that it may be repeated.
    pub(crate) fn take_down(&self) -> Result<(), LabError> {
        for process in self.lines("processes") {
            if let Some(pid) = running(&process) {
                kill(pid, Signal::SIGKILL);
            }
        }
        let deletions: Vec<_> = self
            .lines("namespaces")
            .iter()
            .map(|n| format!("netns del {n}"))
            .collect();
        if !deletions.is_empty() {
            let mut command = Command::new("ip");
            command.args(["-force", "-batch", "-"]);
            // Deleting what is gone is an error to `ip`; what matters is looked at below.
            output(command, &(deletions.join("\n") + "\n"))?;
        }
        let left = run({
            let mut command = Command::new("ip");
            command.args(["netns", "list"]);
            command
        })?;
        let ours = self.lines("namespaces");
        if let Some(left) = left
            .lines()
            .find(|line| ours.iter().any(|n| line.split(' ').next() == Some(n)))
        {
            return Err(LabError::Answer {
                what: "the deletion of namespaces".to_owned(),
                reason: "one is still there".to_owned(),
                text: left.to_owned(),
            });
        }
        fs::remove_dir_all(&self.folder)
            .map_err(LabError::io(format!("remove {}", self.folder.display())))?;
        // Of several laboratories the last one succeeds.
        if fs::remove_dir(LABS).is_ok()
            && fs::read_to_string(PROTOCOL_NAMES).is_ok_and(|text| text == OUR_NAMES)
        {
            fs::remove_file(PROTOCOL_NAMES).map_err(LabError::io(format!("remove {PROTOCOL_NAMES}")))?;
        }
        Ok(())
    }
}

/// Takes down every laboratory that was kept up, or whose owner died: how many there were.
///
/// # Errors
/// When one of them resists; those before it are gone.
pub fn take_down_left_over() -> Result<usize, LabError> {
    let Ok(folders) = fs::read_dir(LABS) else {
        return Ok(0);
    };
    let mut taken = 0;
    for folder in folders.flatten() {
        let record = Record {
            folder: folder.path(),
        };
        if record.is_left_over() {
            record.take_down()?;
            taken += 1;
        }
    }
    Ok(taken)
}

/// Lets `ip route` say `proto culvert`, unless the machine has a name for it.
fn name_protocol() -> Result<(), LabError> {
    let path = Path::new(PROTOCOL_NAMES);
    if path.exists() {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(path, OUR_NAMES))
        .map_err(LabError::io(format!("write {PROTOCOL_NAMES}")))
}

/// A process as its number and its start (clock ticks since boot): the number alone may be another's by and by.
fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // proc(5): the second field, the name in parentheses, may contain anything; the start is the 22nd, the state the 3rd.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let dead = matches!(fields.first(), Some(&"Z" | &"X"));
    let start = fields.get(19)?;
    (!dead).then(|| format!("{pid} {start}"))
}

/// The number of this process, if it still runs.
fn running(process: &str) -> Option<u32> {
    let pid = process.split(' ').next()?.parse().ok()?;
    (identity(pid).as_deref() == Some(process)).then_some(pid)
}

/// Sends a signal; that the process is gone already is fine.
pub(crate) fn kill(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start() {
        let me = identity(std::process::id()).unwrap();
        assert_eq!(running(&me), Some(std::process::id()));
        assert_eq!(
            running(&format!("{me}0")),
            None,
            "another start is another process"
        );
    }

    #[test]
    fn a_process_that_ended_is_not_running() {
        let mut child = Command::new("true").spawn().unwrap();
        let process = identity(child.id());
        child.wait().unwrap();
        assert!(process.is_none_or(|process| running(&process).is_none()));
    }
}
