//! What an operator's Prometheus makes of an agent: its metrics, the chart's alerts with their runbooks, and the dashboard.
//!
//! Debian's `prometheus` and its `promtool` judge; the agents are real ones, in a laboratory without tunnels, which any kernel has.

mod dashboard;
mod expression;
mod rules;
mod server;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use harness::{interruption, kernel};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

type Outcome = Result<(), Failed>;

/// How a trial goes.
type Act = fn() -> Outcome;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = interruption::listen() {
        eprintln!("prometheus: {error}");
        return ExitCode::FAILURE;
    }
    let trials: [(&'static str, Act); 5] = [
        ("every_alert_has_its_page_and_its_test", rules::documented),
        (
            "alerts_fire_for_what_they_are_about_and_nothing_else",
            rules::tested,
        ),
        (
            "a_test_of_an_alert_that_fires_too_late_fails",
            rules::tests_can_fail,
        ),
        ("promtool_finds_nothing_wrong_with_the_metrics", dashboard::linted),
        (
            "prometheus_finds_all_that_dashboard_and_alerts_ask_for",
            dashboard::evaluated,
        ),
    ];
    let missing = kernel::no_namespaces();
    let trials = trials.map(|(name, act)| {
        let missing = missing.clone();
        Trial::ignorable_test(name, move || {
            if let Some(reason) = missing {
                eprintln!("NOT RUN: {name}: {reason}");
                return Ok(Completion::ignored_with(reason));
            }
            act().map(|()| Completion::Completed)
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// A file of the chart.
fn chart(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../charts/culvert")
        .join(file)
}

/// Runs promtool in a folder, and fails with its words where it finds something.
fn promtool(folder: &Path, arguments: &[&str], input: &str) -> Outcome {
    use std::io::Write as _;
    use std::process::Stdio;

    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("promtool: {error}; tests/run installs it"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure(output.status.success(), || {
        format!("promtool {arguments:?}: {}", String::from_utf8_lossy(&said))
    })
}

/// Fails a trial with words, unless a condition holds.
fn ensure(condition: bool, words: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(words().into()) }
}
