//! Sessions with the BGP daemons of others, each in a network namespace of its own, over real TCP on this kernel.
//!
//! The agent is the real one: what is seen is what an operator would see, in the daemon's own words and in the kernel.

mod daemon;
mod exabgp;
mod malformed;
mod table;
mod trials;

use std::process::ExitCode;
use std::sync::Arc;

use daemon::Kind;
use harness::{interruption, kernel};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use table::Passed;
use trials::Feature;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Two are enough for two processors.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    if std::env::var_os("CULVERT_INTEROP").is_some_and(|value| value == "elsewhere") {
        println!("interoperability: left out here (CULVERT_INTEROP=elsewhere)");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = interruption::listen() {
        eprintln!("interoperability: {error}");
        return ExitCode::FAILURE;
    }
    let missing = kernel::no_namespaces();
    let all = daemon::ALL.into_iter().flat_map(|kind| {
        let of_kind = trials::ALL
            .into_iter()
            .filter(move |feature| feature.is_for(&kind));
        of_kind.map(move |feature| (kind, feature))
    });
    let passed = Arc::new(Passed::default());
    let trials: Vec<_> = all
        .map(|(kind, feature)| trial(kind, feature, missing.clone(), &passed))
        .chain(malformed(missing.as_ref()))
        .collect();
    let count = trials.len();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // A run of some of them says nothing of the whole table.
    if usize::try_from(conclusion.num_passed).is_ok_and(|passed| passed == count)
        && let Err(error) = passed.check()
    {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

fn trial(kind: Kind, feature: Feature, missing: Option<String>, passed: &Arc<Passed>) -> Trial {
    let passed = Arc::clone(passed);
    runnable(
        format!("{}::{}", kind.name, feature.name),
        kind.program,
        missing,
        move || {
            let version = feature.run(kind)?;
            passed.note(kind.name, &version, feature.name);
            Ok(())
        },
    )
}

/// What is no feature of a daemon's.
fn malformed(missing: Option<&String>) -> [Trial; 2] {
    let trial = |name: &str, act: fn() -> Result<(), Failed>| {
        runnable(format!("exabgp::{name}"), exabgp::PROGRAM, missing.cloned(), act)
    };
    [
        trial(
            "a_malformed_attribute_costs_its_route_and_not_the_session",
            malformed::costs_its_route_and_not_the_session,
        ),
        trial(
            "a_message_that_hides_its_routes_ends_the_session",
            malformed::ends_the_session,
        ),
    ]
}

/// A trial, if this program is there and `missing` names nothing else.
fn runnable(
    name: String,
    program: &'static str,
    missing: Option<String>,
    act: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let missing = missing.or_else(|| {
        let is_there = std::path::Path::new(program).exists();
        (!is_there).then(|| format!("{program} is missing; tests/run installs it"))
    });
    Trial::ignorable_test(name.clone(), move || {
        if let Some(reason) = missing {
            eprintln!("NOT RUN: {name}: {reason}");
            return Ok(Completion::ignored_with(reason));
        }
        act()?;
        Ok(Completion::Completed)
    })
}

/// Fails a trial with words, unless a condition holds.
fn ensure(condition: bool, words: impl FnOnce() -> String) -> Result<(), Failed> {
    if condition { Ok(()) } else { Err(words().into()) }
}
