//! Shows a small Culvert cluster on one machine: nodes are network namespaces, agents and pods are real.
//!
//! `examples/quickstart/run` builds this and starts it, where needed in a guest with a kernel that has ipip.

mod progress;
mod tour;

use std::process::ExitCode;

use clap::Parser;
use harness::{Layout, Mode};

/// Brings up a small Culvert cluster on this machine, shows that it carries traffic, and takes it down again.
#[derive(Debug, Parser)]
#[command(name = "examples/quickstart/run")]
struct Arguments {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=20))]
    nodes: u8,
    /// When packets between pods travel in packets between nodes: ipip (always), crosssubnet (where a router is between
    /// the nodes) or direct (never).
    #[arg(long, default_value_t = Mode::Ipip)]
    mode: Mode,
    /// Leave it up, and say how to look around in it.
    #[arg(long)]
    keep: bool,
    /// Take down what --keep left up, and do nothing else.
    #[arg(long, conflicts_with_all = ["nodes", "mode", "keep"])]
    down: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.down { down() } else { show(&arguments) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!();
            eprintln!("quick start: {error}");
            // What a shell says of a command that Ctrl-C ended.
            if matches!(error, harness::LabError::Interrupted) {
                ExitCode::from(130)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn down() -> Result<(), harness::LabError> {
    match harness::take_down_left_over()? {
        0 => println!("Nothing was left up."),
        1 => println!("Taken down."),
        many => println!("{many} taken down."),
    }
    Ok(())
}

fn show(arguments: &Arguments) -> Result<(), harness::LabError> {
    harness::interruption::listen()?;
    let layout = Layout {
        nodes: arguments.nodes,
        ..Layout::new(arguments.mode)
    };
    tour::run(layout, arguments.keep)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn impossible_numbers_of_nodes_are_refused() {
        for nodes in ["1", "21", "x"] {
            assert!(Arguments::try_parse_from(["run", "--nodes", nodes]).is_err());
        }
        assert_eq!(
            Arguments::try_parse_from(["run", "--nodes", "10"]).unwrap().nodes,
            10
        );
    }
}
