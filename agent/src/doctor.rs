//! What is wrong with a node: each check with the finding, the evidence, what follows from it, and what mends it.
//!
//! Pure: [`examine`] looks at what the control loop knows, and at what [`Host::read`] found on the host beside that. It
//! changes nothing.

mod blocks;
pub mod cluster;
mod filters;
mod fix;
mod host;
mod lines;
mod network;
mod peers;
mod pools;

use serde::{Deserialize, Serialize};

use crate::inquiry::Known;

pub use fix::{Fix, FixError};
pub use host::{CniConfiguration, Host};

/// Of one kind so many findings are told, and the others counted: a thousand peers may be down for one reason.
const TOLD_OF_A_KIND: usize = 10;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The agent has what it needs, and has told the kernel all of it.
    Agent,
    /// The datastore answers.
    Datastore,
    /// This node's advertised address is on a link that is up, and no other node's.
    Address,
    /// The host forwards packets.
    Forwarding,
    /// The reverse-path filter lets the peers' packets in.
    ReversePath,
    /// No packet filter drops what goes between pods and between nodes.
    Filters,
    /// The tunnel device is there, and its packets fit the NIC.
    Tunnel,
    /// Encapsulated packets leave with the advertised address.
    OuterSource,
    /// Every next hop is a node, and no pod.
    NextHop,
    /// The kernel holds the routes that it should, and no other program's in their place.
    Routes,
    /// The sessions with the peers are up.
    Sessions,
    /// No pool overlaps another, the host's networks or those of services.
    Pools,
    /// Every block belongs to a node that there is, and there are more to be had.
    Blocks,
    /// No other network plugin is at work.
    Plugin,
    /// Encapsulated packets come from nodes.
    Strangers,
    /// The connection tracking of the kernel has room.
    Conntrack,
    /// The clock is kept in step with those of others.
    Clock,
    /// Packets come to the other nodes and back: looked at only where somebody asks for probes.
    Ways,
}

impl Check {
    /// All, in the order in which they are told.
    pub const ALL: [Check; 17] = [
        Check::Agent,
        Check::Datastore,
        Check::Address,
        Check::Forwarding,
        Check::ReversePath,
        Check::Filters,
        Check::Tunnel,
        Check::OuterSource,
        Check::NextHop,
        Check::Routes,
        Check::Sessions,
        Check::Pools,
        Check::Blocks,
        Check::Plugin,
        Check::Strangers,
        Check::Conntrack,
        Check::Clock,
    ];

    /// What is looked at, in a few words.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Check::Agent => "agent",
            Check::Datastore => "datastore",
            Check::Address => "advertised address",
            Check::Forwarding => "forwarding",
            Check::ReversePath => "reverse-path filter",
            Check::Filters => "packet filters",
            Check::Tunnel => "tunnel",
            Check::OuterSource => "outer source",
            Check::NextHop => "next hops",
            Check::Routes => "routes",
            Check::Sessions => "BGP sessions",
            Check::Pools => "pools",
            Check::Blocks => "blocks",
            Check::Plugin => "network plugin",
            Check::Strangers => "unknown tunnel peers",
            Check::Conntrack => "connection tracking",
            Check::Clock => "clock",
            Check::Ways => "ways to other nodes",
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at.
    pub check: Check,
    /// What is wrong.
    pub finding: String,
    /// By what it shows.
    pub evidence: String,
    /// What follows from it.
    pub consequence: String,
    /// What mends it: a command where there is one.
    pub cure: String,
    /// What `culvert doctor --fix` does about it, where that is safe and can be undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
}

/// What was found on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The node.
    pub node: String,
    /// All that is wrong, in the order of the checks; empty where all is well.
    pub findings: Vec<Finding>,
    /// The ways to other nodes were probed as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probed: bool,
}

/// Looks at everything.
pub(crate) fn examine(known: &Known<'_>, host: &Host) -> Report {
    let mut findings = Vec::new();
    for check in Check::ALL {
        let found = match check {
            Check::Agent => agent(known),
            Check::Datastore => datastore(known),
            Check::Address => network::address(known),
            Check::Forwarding => network::forwarding(known),
            Check::ReversePath => network::reverse_path(known, host),
            Check::Filters => filters::drops(known, host),
            Check::Tunnel => network::tunnel(known, host),
            Check::OuterSource => network::outer_source(known),
            Check::NextHop => network::next_hops(known),
            Check::Routes => network::routes(known),
            Check::Sessions => peers::sessions(known),
            Check::Pools => pools::overlaps(known, host),
            Check::Blocks => blocks::of(known),
            Check::Plugin => host::plugin(host),
            Check::Strangers => peers::strangers(known),
            Check::Conntrack => host::conntrack(host),
            Check::Clock => host::clock(host),
            // Not a function of what is known.
            Check::Ways => Vec::new(),
        };
        findings.extend(first(found));
    }
    Report {
        node: known.settings.node.clone(),
        findings,
        probed: false,
    }
}

/// The first of many findings of one check; the last says how many more there are.
fn first(mut found: Vec<Finding>) -> Vec<Finding> {
    let more = found.len().saturating_sub(TOLD_OF_A_KIND);
    if more > 0 {
        found.truncate(TOLD_OF_A_KIND);
        if let Some(last) = found.last_mut() {
            last.finding += &format!(" (and {more} more of this kind)");
        }
    }
    found
}

fn agent(known: &Known<'_>) -> Vec<Finding> {
    let not_ready = known.status.ready().err().map(|reason| Finding {
        check: Check::Agent,
        fix: None,
        finding: "the agent is not ready".to_owned(),
        evidence: reason,
        consequence: "Kubernetes may keep pods away from this node, and a rolling update stops here"
            .to_owned(),
        cure: "the other findings say what is missing; the agent's log says since when".to_owned(),
    });
    let problems = known.status.problems.iter().map(|problem| Finding {
        check: Check::Agent,
        fix: None,
        finding: "the agent has something to say".to_owned(),
        evidence: problem.clone(),
        consequence: "what it names is left out; the rest goes on".to_owned(),
        cure: "mend what it names".to_owned(),
    });
    not_ready.into_iter().chain(problems).collect()
}

fn datastore(known: &Known<'_>) -> Vec<Finding> {
    let away = known.status.datastore.problem.as_ref().map(|problem| Finding {
        check: Check::Datastore,
        fix: None,
        finding: "the datastore does not answer as it should".to_owned(),
        evidence: problem.clone(),
        consequence:
            "routes stay as they are; new blocks and nodes are not seen, and new pods may get no address"
                .to_owned(),
        cure: "look at the API server and the way to it from this node; the agent tries again by itself"
            .to_owned(),
    });
    let held = known.status.withdrawals_held;
    let held = (held > 0).then(|| Finding {
        check: Check::Datastore,
        fix: None,
        finding: "objects have vanished from the datastore, too many at once to be believed".to_owned(),
        evidence: format!("{held} deletions are held"),
        consequence: "routes to what is gone stay until somebody confirms".to_owned(),
        cure: "put them back; or, if it was meant: culvert node accept-withdrawal".to_owned(),
    });
    away.into_iter().chain(held).collect()
}

#[cfg(test)]
mod tests;
