//! What people ask of the speaker: they look at its tables, or clear a session.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_bgp::id::Prefix;
use culvert_bgp::speaker::{Input, RouteView};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::info;

use super::Driver;
use crate::ribs::{self, PeerUnknown, RibRequest, RibRoutes};

/// What is asked. Who has gone away without the answer is not missed.
#[derive(Debug)]
pub enum Query {
    /// Routes of a table.
    Routes {
        /// Which.
        request: RibRequest,
        /// Takes them.
        answer: oneshot::Sender<Result<RibRoutes, PeerUnknown>>,
    },
    /// How many routes of each peer are let in.
    Count {
        /// Takes the numbers.
        answer: oneshot::Sender<BTreeMap<IpAddr, usize>>,
    },
    /// All that is known of a destination.
    Explain {
        /// The first of these of which anything is known.
        prefixes: Vec<Prefix>,
        /// Takes it; none when nothing is known of any.
        answer: oneshot::Sender<Option<RouteView>>,
    },
    /// Begin sessions anew.
    Clear {
        /// Which, and how.
        clear: Clear,
        /// Takes the peers whose sessions these are.
        answer: oneshot::Sender<Result<Vec<IpAddr>, PeerUnknown>>,
    },
}

/// Sessions that an operator wants to begin anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clear {
    /// The session with this peer; none for all.
    pub peer: Option<IpAddr>,
    /// Keep the session, and ask for all routes once more (RFC 2918).
    pub soft: bool,
}

impl Driver {
    pub(super) fn inquire(&mut self, query: Query) {
        match query {
            Query::Routes { request, answer } => {
                let _ = answer.send(ribs::routes(&self.speaker, &request));
            }
            Query::Count { answer } => {
                let peers = self.speaker.peers().map(|status| status.peer);
                let accepted = |peer| {
                    let all = self.speaker.adj_rib_in(peer);
                    all.filter(|(.., rejected)| rejected.is_none()).count()
                };
                let _ = answer.send(peers.map(|peer| (peer, accepted(peer))).collect());
            }
            Query::Explain { prefixes, answer } => {
                let known = prefixes
                    .into_iter()
                    .find_map(|prefix| self.speaker.explain(prefix));
                let _ = answer.send(known);
            }
            Query::Clear { clear, answer } => {
                let peers = ribs::peers_meant(&self.speaker, clear.peer);
                for &peer in peers.as_deref().unwrap_or_default() {
                    info!(%peer, soft = clear.soft, "session cleared by an operator");
                    self.tell(if clear.soft {
                        Input::Refresh { peer }
                    } else {
                        Input::Reset { peer }
                    });
                }
                let _ = answer.send(peers);
            }
        }
    }
}
