//! What is made from the definition of the command line itself: completions and manual pages.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::CliError;

#[derive(Debug, Args)]
pub(super) struct CompletionArguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManualArguments {
    /// The folder, which must be there: /usr/local/share/man/man1 for all users of this host.
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub(super) fn completions(arguments: &CompletionArguments, mut command: Command) -> Result<(), CliError> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, name, &mut script);
    super::print(&String::from_utf8_lossy(&script))
}

/// `culvert.1`, `culvert-node.1`, `culvert-node-status.1` and so on.
pub(super) fn manual(arguments: &ManualArguments, command: Command) -> Result<(), CliError> {
    let folder: &Path = &arguments.folder;
    clap_mangen::generate_to(command, folder).map_err(|source| CliError::File {
        path: folder.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Arguments;
    use super::*;

    #[test]
    fn every_command_has_a_manual_page() {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ManualArguments {
            folder: folder.path().to_owned(),
        };
        manual(&arguments, Arguments::command()).unwrap();
        for page in [
            "culvert.1",
            "culvert-status.1",
            "culvert-diags.1",
            "culvert-node-status.1",
            "culvert-route-explain.1",
        ] {
            let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
        }
        let none = ManualArguments {
            folder: folder.path().join("none"),
        };
        let error = manual(&none, Arguments::command()).unwrap_err().to_string();
        assert!(error.contains("none: "), "{error}");
    }
}
