//! The `culvert` binary: the CNI plugin under that one's name, else the command line.

use std::process::ExitCode;

use culvert_agent::cli::{self, Exit};
use culvert_agent::cni;

fn main() -> ExitCode {
    if cni::is_plugin(std::env::args_os().next().as_deref()) {
        return cni::main();
    }
    let Err(error) = cli::run() else {
        return Exit::Well.into();
    };
    match error.exit() {
        // The command has done what it was asked to do.
        exit @ (Exit::Well | Exit::Wrong) => {
            eprintln!("{error}");
            exit.into()
        }
        exit @ Exit::Unknown => {
            eprintln!("error: {error}");
            exit.into()
        }
    }
}
