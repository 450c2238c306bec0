//! The sessions with the peers, and packets of those who are none.

use super::{Check, Finding};
use crate::inquiry::Known;
use crate::status::PeerStatus;

/// Sessions that are down, each with the reason that the speaker knows.
pub(super) fn sessions(known: &Known<'_>) -> Vec<Finding> {
    let down = known
        .status
        .peers
        .iter()
        .filter(|peer| peer.state != "Established");
    let mut found: Vec<Finding> = down.map(session).collect();
    let is_alone = known.status.peers.is_empty();
    let others = known
        .cluster
        .nodes()
        .filter(|(name, node)| *name != known.settings.node && node.address.is_some())
        .count();
    if is_alone && others > 0 && known.status.datastore.in_sync {
        found.push(Finding {
            check: Check::Sessions,
            fix: None,
            finding: "this node has no BGP peers".to_owned(),
            evidence: format!("there are {others} other nodes with an address"),
            consequence: "it learns no routes to their pods, and they none to its own".to_owned(),
            cure: "set nodeToNodeMeshEnabled in the BGPConfiguration default, or create a BGPPeer whose selectors \
                   include this node: culvert get bgppeer"
                .to_owned(),
        });
    }
    found
}

fn session(peer: &PeerStatus) -> Finding {
    let who = match &peer.node {
        Some(node) => format!("node {node} ({})", peer.address),
        None => peer.address.to_string(),
    };
    let reason = peer
        .reason
        .as_deref()
        .unwrap_or("it has not been tried yet, or no answer has come so far");
    let consequence = if peer.stale {
        "its routes are kept until it is back, or until its restart time is over"
    } else {
        "there are no routes to its pods from here, unless another peer tells of them"
    };
    Finding {
        check: Check::Sessions,
        fix: None,
        // The same words on every node: a fault of the peer's is then one finding of the cluster.
        finding: format!("the BGP session with {who} is down"),
        evidence: format!("{} since {:.0}: {reason}", peer.state, peer.since),
        consequence: consequence.to_owned(),
        cure: format!(
            "do what the reason says; look at the agent there too: culvert node status on {}",
            peer.node.as_deref().unwrap_or("the peer")
        ),
    }
}

/// Tunnelled packets from addresses that no node advertises.
pub(super) fn strangers(known: &Known<'_>) -> Vec<Finding> {
    let firewall = &known.status.firewall;
    let refused = firewall.refused.iter().map(|sentence| Finding {
        check: Check::Strangers,
        fix: None,
        finding: "tunnelled packets come from an address that no node advertises, and are dropped".to_owned(),
        evidence: sentence.clone(),
        consequence: "a node whose packets these are cannot reach the pods here".to_owned(),
        cure: "if it is a node: pin its outer source (routes.sourcePin there), or correct its address"
            .to_owned(),
    });
    let problem = firewall.problem.iter().map(|problem| Finding {
        check: Check::Strangers,
        fix: None,
        finding: "the packet filter is not written".to_owned(),
        evidence: problem.clone(),
        consequence: "tunnelled packets of anybody are let in, and packets that leave the cluster keep the pod's source"
            .to_owned(),
        cure: "load nf_tables (modprobe nf_tables), or switch both off: filter.unknownTunnelPeers: accept, natOutgoing"
            .to_owned(),
    });
    refused.chain(problem).collect()
}
