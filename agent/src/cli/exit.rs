//! What the exit status of a command tells: the same for all of them, and said here alone.

use std::process::ExitCode;

use clap::Command;

use super::CliError;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was done, and nothing is wrong.
    Well,
    /// Something is wrong with what was looked at.
    Wrong,
    /// Nobody knows: what was asked for could not be had, or not be done.
    Unknown,
}

impl Exit {
    /// All of them.
    pub const ALL: [Exit; 3] = [Exit::Well, Exit::Wrong, Exit::Unknown];

    /// The number; clap ends with the last of these for arguments that are wrong.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Exit::Well => 0,
            Exit::Wrong => 1,
            Exit::Unknown => 2,
        }
    }

    /// What it tells.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Exit::Well => "It was done, and nothing is wrong.",
            Exit::Wrong => {
                "Something is wrong: what, is printed. Only commands that look for what is wrong end so; of a whole cluster a \
                 node that does not answer is wrong."
            }
            Exit::Unknown => {
                "It could not be asked, looked at or done: no agent, no API server, no permission, arguments that are wrong. \
                 Standard error says why."
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

impl CliError {
    /// How the command ends with it.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Problems { .. }
            | Self::Findings(_)
            | Self::Lost
            | Self::Differs
            | Self::Unfinished { .. }
            // What was found is still so.
            | Self::Unconfirmed
            | Self::Fix(_) => Exit::Wrong,
            Self::NoAgent(_)
            | Self::Client(_)
            | Self::Unanswered { .. }
            | Self::NoNode(_)
            | Self::WithoutNode
            | Self::Output(_)
            | Self::Runtime(_)
            | Self::Log(_)
            | Self::Config(_)
            | Self::Agent(_)
            | Self::Json(_)
            | Self::Yaml(_)
            | Self::Datastore(_)
            | Self::Allocation(_)
            | Self::Unseen(_)
            | Self::Silent
            | Self::Limits(_)
            | Self::Split(_)
            | Self::Listen { .. }
            | Self::File { .. }
            | Self::NoReport { .. }
            | Self::Install(_)
            | Self::Modules { .. }
            | Self::NoObject { .. } => Exit::Unknown,
        }
    }
}

/// The command line with the exit status at the end of the help of each command.
pub(super) fn explained(command: Command) -> Command {
    let lines = Exit::ALL.map(|exit| format!("  {}  {}", exit.code(), exit.words()));
    let text = format!("Exit status:\n{}", lines.join("\n"));
    each(command, &text)
}

fn each(command: Command, text: &str) -> Command {
    command
        .after_help(text.to_owned())
        .mut_subcommands(|subcommand| each(subcommand, text))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::Arguments;
    use super::*;

    #[test]
    fn what_was_found_and_what_could_not_be_found_out_end_differently() {
        for (error, code) in [
            (CliError::Findings(2), 1),
            (CliError::Lost, 1),
            (CliError::Problems { count: 1, advice: "" }, 1),
            (CliError::Differs, 1),
            (CliError::Unseen(1), 2),
            (CliError::Silent, 2),
            (CliError::Output(std::io::Error::other("full")), 2),
        ] {
            assert_eq!(error.exit().code(), code, "{error}");
        }
    }

    #[test]
    fn arguments_that_are_wrong_end_as_what_cannot_be_asked() {
        let error = explained(Arguments::command())
            .try_get_matches_from(["culvert", "status", "--no-such-option"])
            .unwrap_err();
        assert_eq!(error.exit_code(), i32::from(Exit::Unknown.code()));
    }

    #[test]
    fn the_help_of_every_command_tells_of_it() {
        for words in [
            &["culvert", "--help"][..],
            &["culvert", "doctor", "--help"],
            &["culvert", "route", "explain", "--help"],
        ] {
            let help = explained(Arguments::command()).try_get_matches_from(words);
            let help = help.unwrap_err().to_string();
            for exit in Exit::ALL {
                assert!(help.contains(exit.words()), "{words:?}: {help}");
            }
        }
    }
}
