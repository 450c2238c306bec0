//! The page of an agent, in a real browser: what it names, of agents that are well and of others, and that no name becomes markup.
//!
//! Debian's `chromium` draws it, without a window; its pictures are left in `target/page`, for people to look at.

mod browser;
mod invented;
mod laboratory;

use std::process::ExitCode;

use harness::{interruption, kernel};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

type Outcome = Result<(), Failed>;

/// How a trial goes.
type Act = fn() -> Outcome;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A browser has many threads of its own.
    arguments.test_threads = Some(1);
    if let Err(error) = interruption::listen() {
        eprintln!("page: {error}");
        return ExitCode::FAILURE;
    }
    let trials: [(&'static str, Act); 4] = [
        (
            "a_cluster_that_is_well_is_drawn_and_so_is_a_fault",
            laboratory::well_and_not,
        ),
        (
            "a_thousand_nodes_are_told_by_what_is_wrong_with_them",
            invented::thousand,
        ),
        ("names_that_are_markup_are_text", invented::markup),
        ("an_agent_that_is_gone_is_told", invented::gone),
    ];
    let missing = kernel::no_namespaces().or_else(browser::missing);
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

/// Fails with the whole page unless each of these is in it.
fn names(page: &str, words: &[&str]) -> Outcome {
    let lacking: Vec<_> = words.iter().filter(|word| !page.contains(**word)).collect();
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(format!("the page does not name {lacking:?}:\n{page}").into())
    }
}
