//! What is made from the definition of the command line itself: completions and manual pages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{CliError, Exit};

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
    let mut command = command.disable_help_subcommand(true);
    // Then each knows its whole name.
    command.build();
    pages(command, folder).map_err(|source| CliError::File {
        path: folder.to_owned(),
        source,
    })
}

/// A page for a command, and for each below it.
fn pages(command: Command, folder: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below.clone(), folder)?;
    }
    let page = Man::new(command);
    let mut text = Vec::new();
    page.render(&mut text)?;
    exit_status().to_writer(&mut text)?;
    fs::write(folder.join(page.get_filename()), text)
}

/// The section that man-pages(7) has for it.
fn exit_status() -> Roff {
    let mut section = Roff::new();
    section.control("SH", ["EXIT STATUS"]);
    for exit in Exit::ALL {
        section.control("TP", []);
        section.text([roman(exit.code().to_string())]);
        section.text([roman(exit.words())]);
    }
    section
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
            let text = fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
            let (_, status) = text.split_once(".SH \"EXIT STATUS\"").unwrap_or_default();
            for exit in Exit::ALL {
                let number = format!(".TP\n{}\n", exit.code());
                assert!(status.contains(&number), "{page}: {text}");
            }
        }
        let none = ManualArguments {
            folder: folder.path().join("none"),
        };
        let error = manual(&none, Arguments::command()).unwrap_err().to_string();
        assert!(error.contains("none: "), "{error}");
    }
}
