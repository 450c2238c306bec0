//! Why the laboratory could not do it.

use std::path::PathBuf;
use std::time::Duration;

/// Why the laboratory could not do it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A command ended badly.
    #[error("`{command}` ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status, or the signal that ended it.
        status: String,
        /// What it wrote, standard error first.
        output: String,
    },
    /// A command did not end.
    #[error("`{command}` did not end within {limit:?}")]
    Stuck {
        /// The command line.
        command: String,
        /// How long it was given.
        limit: Duration,
    },
    /// The operating system refused.
    #[error("{operation}: {source}")]
    Io {
        /// What was tried, and on what.
        operation: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// What was waited for did not come.
    #[error("waited {limit:?} for {what}; the last look saw: {last}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// What was there instead.
        last: String,
    },
    /// An answer is not of the form that it should have.
    #[error("{what} is not understood ({reason}): {text}")]
    Answer {
        /// Whose answer.
        what: String,
        /// What is wrong with it.
        reason: String,
        /// The answer.
        text: String,
    },
    /// The layout asked for cannot be built.
    #[error("{0}")]
    Layout(&'static str),
    /// There is no `culvert` binary.
    #[error(
        "there is no culvert binary at {0}: build it (cargo build -p culvert-agent), or name one in CULVERT_BIN"
    )]
    NoBinary(PathBuf),
    /// A program of Kubernetes is missing.
    #[error(
        "there is no {name} at {path}: build it (tests/kubernetes/build, or tests/run), or name a kube-apiserver with it beside \
         it in CULVERT_KUBE_APISERVER"
    )]
    NoKubernetes {
        /// The program.
        name: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// Ctrl-C, or a signal that asks to end.
    #[error("interrupted")]
    Interrupted,
}

impl LabError {
    /// For `map_err`: an error of the operating system, with what was tried.
    pub(crate) fn io(operation: impl Into<String>) -> impl FnOnce(std::io::Error) -> LabError {
        let operation = operation.into();
        move |source| LabError::Io { operation, source }
    }
}
