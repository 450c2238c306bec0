//! The `culvert` binary: the CNI plugin under that one's name, else the command line.

use std::process::ExitCode;

use culvert_agent::{cli, cni};

fn main() -> ExitCode {
    if cni::is_plugin(std::env::args_os().next().as_deref()) {
        return cni::main();
    }
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
