//! What the loop answers to people's questions.

use jiff::Timestamp;

use super::fights::Fights;
use crate::cluster::Cluster;
use crate::dataplane::DataplaneError;
use crate::desired::{Plan, Settings};
use crate::doctor;
use crate::explanation;
use crate::fib::{Change, RouteKey};
use crate::inquiry::{Inquiry, Known, Undone};
use crate::page::{self, Recent};
use crate::reconcile::Actual;
use crate::speaker::{Command, Running};
use crate::status::AgentStatus;
use crate::trace;

/// What the loop knows.
pub(super) struct Answering<'a> {
    pub(super) settings: &'a Settings,
    pub(super) cluster: &'a Cluster,
    pub(super) plan: &'a Plan,
    pub(super) actual: &'a Actual,
    pub(super) failures: &'a [(Change, DataplaneError)],
    pub(super) fights: &'a Fights,
    pub(super) undone: Undone,
    pub(super) status: &'a AgentStatus,
    pub(super) recent: &'a Recent,
}

/// Answers, or hands the question to the speaker. Should that be gone, the loop notices by itself.
pub(super) async fn give(known: Answering<'_>, speaker: &Running, inquiry: Inquiry) {
    let refused = |key: &RouteKey| why_not(known.failures, known.fights, key);
    let told = Known {
        settings: known.settings,
        cluster: known.cluster,
        plan: known.plan,
        actual: known.actual,
        status: known.status,
        undone: known.undone,
        refused: &refused,
    };
    match inquiry {
        Inquiry::Speaker(query) => {
            let _ = speaker.commands.send(Command::Ask(query)).await;
        }
        Inquiry::Examine { host, answer } => {
            let _ = answer.send(doctor::examine(&told, &host));
        }
        Inquiry::View { answer } => {
            let _ = answer.send(page::view(&told, known.recent, Timestamp::now()));
        }
        Inquiry::Explain {
            destination,
            bgp,
            answer,
        } => {
            let _ = answer.send(explanation::explain(&told, destination, (*bgp).as_ref()));
        }
        Inquiry::Locate { from, to, answer } => {
            let _ = answer.send(trace::locate(&told, from, to));
        }
        Inquiry::IsOfNode { address, answer } => {
            let _ = answer.send(told.is_of_node(address));
        }
        Inquiry::Neighbours { answer } => {
            let _ = answer.send(told.neighbours());
        }
    }
}

/// Why the kernel does not hold a route, or not for long.
fn why_not(failures: &[(Change, DataplaneError)], fights: &Fights, key: &RouteKey) -> Option<String> {
    let failure = failures.iter().find_map(|(change, error)| match change {
        Change::ReplaceRoute(route) if route.key == *key => Some(error.to_string()),
        _ => None,
    });
    failure.or_else(|| fights.words().find(|(of, _)| of == key).map(|(_, what)| what))
}
