//! Trials on a real API server of Kubernetes (`tests/run` builds or finds it). Those of the datastore's contract run on
//! the directory datastore as well, by the same code.

mod agents;
mod allocating;
mod annotations;
mod chart;
mod collection;
mod contract;
mod fleet;
mod helm;
mod image;
mod in_cluster;
mod interest;
mod outage;
mod release;
mod scale;
mod servers;
mod storm;
mod survey;
mod validation;
mod watching;
mod whole;

use std::process::ExitCode;

use futures_util::future::LocalBoxFuture;
use harness::api_server::no_api_server;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::servers::{Server, Stores};

/// What a trial comes to.
type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if let Some(outcome) = scale::child().or_else(in_cluster::child) {
        return outcome.map_or_else(
            |why| {
                eprintln!("{why:?}");
                ExitCode::FAILURE
            },
            |()| ExitCode::SUCCESS,
        );
    }
    let mut arguments = Arguments::from_args();
    // Trials share a server, and some measure: one at a time.
    arguments.test_threads = Some(1);
    let server = Server::default();
    let trials = trials(&server);
    let conclusion = libtest_mimic::run(&arguments, trials);
    server.stop();
    conclusion.exit_code()
}

/// All trials, in the order in which they run; `server` is for those that share one.
fn trials(server: &Server) -> Vec<Trial> {
    let mut trials = Vec::new();
    let missing = no_api_server();
    for (name, act) in contract::TRIALS {
        trials.push(Trial::test(format!("directory::{name}"), move || {
            on_runtime(act(Stores::directory()?))
        }));
        let (server, missing) = (server.clone(), missing.clone());
        trials.push(trial(&format!("kubernetes::{name}"), missing, move || {
            let stores =
                server.with(|server| Stores::of(server, server.kubeconfig(harness::api_server::ADMIN)))??;
            on_runtime(act(stores))
        }));
    }
    for (name, act) in watching::TRIALS
        .into_iter()
        .chain(interest::TRIALS)
        .chain(validation::TRIALS)
        .chain(allocating::TRIALS)
        .chain(outage::TRIALS)
        .chain(in_cluster::TRIALS)
        .chain(chart::TRIALS)
        .chain(agents::TRIALS)
        .chain(survey::TRIALS)
        .chain(fleet::TRIALS)
        .chain(annotations::TRIALS)
        .chain(collection::TRIALS)
        .chain(storm::TRIALS)
        .chain(scale::TRIALS)
    {
        let server = server.clone();
        trials.push(trial(name, missing.clone(), move || act(&server)));
    }
    let no_helm = missing.clone().or_else(helm::no_helm);
    for (name, act) in helm::TRIALS.into_iter().chain(release::TRIALS) {
        let name = format!("helm::{name}");
        let server = server.clone();
        trials.push(trial(&name, no_helm.clone(), move || act(&server)));
    }
    for (name, act) in image::TRIALS.map(|(name, act)| (format!("image::{name}"), act)) {
        let server = server.clone();
        trials.push(trial(&name, image::no_image(), move || act(&server)));
    }
    let none = harness::kube_cluster::no_cluster()
        .or_else(helm::no_helm)
        .or_else(image::no_image);
    for (name, act) in whole::TRIALS.map(|(name, act)| (format!("whole::{name}"), act)) {
        let server = server.clone();
        trials.push(trial(&name, none.clone(), move || act(&server)));
    }
    trials
}

fn trial(name: &str, missing: Option<String>, act: impl FnOnce() -> Outcome + Send + 'static) -> Trial {
    let shown = name.to_owned();
    Trial::ignorable_test(name, move || match missing {
        Some(reason) => {
            eprintln!("NOT RUN: {shown}: {reason}");
            Ok(Completion::ignored_with(reason))
        }
        None => act().map(|()| Completion::Completed),
    })
}

/// Runs a trial to its end.
fn on_runtime(act: LocalBoxFuture<'_, Outcome>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(act)
}

/// Fails a trial with words, unless a condition holds.
fn ensure(condition: bool, words: impl FnOnce() -> String) -> Outcome {
    if condition { Ok(()) } else { Err(words().into()) }
}
