//! What the loop answers to people's questions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;

use super::fights::Fights;
use crate::cluster::Cluster;
use crate::dataplane::DataplaneError;
use crate::desired::{Learned, Plan, Settings};
use crate::doctor;
use crate::explanation;
use crate::fib::{Change, RouteKey};
use crate::inquiry::{Inquiry, Known, Undone};
use crate::kernel_view::KernelView;
use crate::page::{self, Recent};
use crate::reconcile::{Actual, Difference};
use crate::speaker::{Command, Running};
use crate::status::{AgentStatus, PeerRoutes};
use crate::trace;

/// What the loop knows.
pub(super) struct Answering<'a> {
    pub(super) settings: &'a Settings,
    pub(super) cluster: &'a Cluster,
    pub(super) plan: &'a Plan,
    pub(super) actual: &'a Actual,
    pub(super) learned: &'a Learned,
    pub(super) difference: &'a Difference,
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
        Inquiry::Count { accepted, answer } => {
            let _ = answer.send(count(&known, accepted));
        }
        Inquiry::Kernel { answer } => {
            let _ = answer.send(KernelView::of(known.actual));
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
        Inquiry::Wrong { answer } => {
            let _ = answer.send(explanation::wrong_destinations(&told));
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

/// What becomes of the routes of each peer: those that are let in were counted.
fn count(known: &Answering<'_>, accepted: BTreeMap<IpAddr, usize>) -> BTreeMap<IpAddr, PeerRoutes> {
    let accepted = accepted.into_iter().map(|(peer, accepted)| {
        let routes = PeerRoutes {
            accepted,
            programmed: 0,
        };
        (peer, routes)
    });
    let mut counted: BTreeMap<IpAddr, PeerRoutes> = accepted.collect();
    for (prefix, hops) in known.learned {
        let key = RouteKey::main(prefix.net());
        if known.plan.desired.routes.contains_key(&key) && !known.difference.is_missing(&key) {
            for hop in hops {
                counted.entry(hop.peer).or_default().programmed += 1;
            }
        }
    }
    counted
}

/// Why the kernel does not hold a route, or not for long.
fn why_not(failures: &[(Change, DataplaneError)], fights: &Fights, key: &RouteKey) -> Option<String> {
    let failure = failures.iter().find_map(|(change, error)| match change {
        Change::ReplaceRoute(route) if route.key == *key => Some(error.to_string()),
        _ => None,
    });
    failure.or_else(|| fights.words().find(|(of, _)| of == key).map(|(_, what)| what))
}
