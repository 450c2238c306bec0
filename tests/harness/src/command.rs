//! Running programs to their end, and finding our own.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::LabError;

/// No command that the laboratory runs to its end needs longer, on the slowest machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The `culvert` binary: what `CULVERT_BIN` names, else the one built beside the running program.
///
/// # Errors
/// [`LabError::NoBinary`] when it is not there.
pub fn culvert() -> Result<PathBuf, LabError> {
    if let Some(named) = std::env::var_os("CULVERT_BIN") {
        let path = PathBuf::from(named);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(LabError::NoBinary(path))
        };
    }
    let program = std::env::current_exe().map_err(LabError::io("find the running program"))?;
    // target/PROFILE/quickstart, or target/PROFILE/deps/kernel-0123456789abcdef.
    let beside = program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("culvert"));
    let found = beside.clone().find(|path| path.is_file());
    found.ok_or_else(|| LabError::NoBinary(beside.last().unwrap_or_default()))
}

/// Runs a command, without standard input, and returns its standard output.
pub(crate) fn run(command: Command) -> Result<String, LabError> {
    run_with_input(command, "")
}

/// Runs a command on this standard input and returns its standard output.
pub(crate) fn run_with_input(command: Command, input: &str) -> Result<String, LabError> {
    let shown = show(&command);
    let output = output(command, input)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(LabError::Command {
        command: shown,
        status: output.status.to_string(),
        output: format!("{}\n{}", errors.trim(), text.trim()).trim().to_owned(),
    })
}

/// Runs a command on this standard input, to whatever end it comes within a minute.
pub(crate) fn output(mut command: Command, input: &str) -> Result<Output, LabError> {
    use std::io::Write as _;

    let shown = show(&command);
    let stdin = if input.is_empty() {
        Stdio::null()
    } else {
        Stdio::piped()
    };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(LabError::io(format!("start `{shown}`")))?;
    let pid = child.id();
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends without reading says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(LIMIT) {
        Ok(result) => result.map_err(LabError::io(format!("wait for `{shown}`"))),
        Err(_) => {
            crate::record::kill(pid, nix::sys::signal::Signal::SIGKILL);
            Err(LabError::Stuck {
                command: shown,
                limit: LIMIT,
            })
        }
    }
}

/// A command line as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|w| w.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_fails_shows_its_words_and_its_status() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo said; echo wrong >&2; exit 3"]);
        let error = run(command).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("wrong\nsaid"),
            "{error}"
        );
    }

    #[test]
    fn a_command_reads_what_it_is_given() {
        assert_eq!(
            run_with_input(Command::new("cat"), "one\ntwo\n").unwrap(),
            "one\ntwo\n"
        );
    }
}
