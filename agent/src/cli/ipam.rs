//! `culvert ipam`: who has which addresses, what is wrong with that, and the settings of allocation.

mod check;
mod configure;
mod release;
mod show;
mod split;

use clap::Subcommand;

use super::CliError;

pub(super) use split::SplitError;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show how the pools are used, or who has an address.
    Show(show::Arguments),
    /// Look for everything that is wrong: leaked addresses, blocks with two owners, handles that count wrong, and more.
    Check(check::Arguments),
    /// Give addresses back that nobody uses.
    Release(release::Arguments),
    /// Change the settings of allocation.
    Configure(configure::Arguments),
    /// Split a pool into smaller ones of equal size.
    Split(split::Arguments),
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    match command {
        Command::Show(arguments) => show::run(arguments),
        Command::Check(arguments) => check::run(arguments),
        Command::Release(arguments) => release::run(arguments),
        Command::Configure(arguments) => configure::run(arguments),
        Command::Split(arguments) => split::run(arguments),
    }
}

/// The node that the command line stands for where a request needs one: none has this name, so that no block is its own.
const NOBODY: &str = "culvert-ipam-cli";
