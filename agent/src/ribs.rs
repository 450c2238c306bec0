//! The speaker's tables, for people: what a peer announced (Adj-RIB-In), what is used (Loc-RIB), what a peer is told
//! (Adj-RIB-Out), as plain values that the agent's socket carries.

mod lines;

use std::net::IpAddr;

use culvert_bgp::id::{NextHop, Prefix};
use culvert_bgp::speaker::Speaker;
use culvert_bgp::wire::message::{AsSegment, PathAttributes};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// So many routes are told at once: putting them together keeps the speaker from its peers.
const MAX_ROUTES: usize = 20_000;

/// One of the speaker's tables (RFC 4271 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum RibTable {
    /// Adj-RIB-In: what the peers announce.
    Received,
    /// Adj-RIB-Out: what the peers are told.
    Advertised,
    /// Loc-RIB: what is used.
    Best,
}

/// Which routes are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RibRequest {
    /// Of which table.
    pub table: RibTable,
    /// Of which peer; none for all. Loc-RIB has the routes through it.
    pub peer: Option<IpAddr>,
    /// Only destinations that lie in this range; none for all.
    pub within: Option<IpNet>,
}

/// A route of one of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RibRoute {
    /// The destination.
    pub prefix: IpNet,
    /// Who announced it, or is told of it; in Loc-RIB none for what this node originates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<IpAddr>,
    /// Where packets go.
    pub next_hops: Vec<IpAddr>,
    /// The attributes of the path, where it is one path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<RibPath>,
    /// Whether packets go by it. What a peer is told is not told apart by that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<bool>,
    /// Why it is not let in, where a peer announced it in vain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

/// The attributes of a path that tell it apart from others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RibPath {
    /// The Path Identifier (RFC 7911 §3); 0 without ADD-PATH.
    pub id: u32,
    /// The AS numbers, nearest first; those of a confederation in parentheses.
    pub as_path: String,
    /// ORIGIN, in the words of RFC 4271 §5.1.1.
    pub origin: String,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Communities and large communities, as they are written: `65000:1`, `65000:1:2`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub communities: Vec<String>,
}

/// The routes that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RibRoutes {
    /// The first of them, by peer, then destination.
    pub routes: Vec<RibRoute>,
    /// How many more there are.
    pub left_out: usize,
}

/// Why a question cannot be answered, or a wish not be granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerUnknown {
    /// There are peers, and that is none of them.
    #[error("{asked} is no BGP peer of this node; its peers are {}", words(.peers))]
    NotAmong {
        /// Who was asked for.
        asked: IpAddr,
        /// Who is a peer.
        peers: Vec<IpAddr>,
    },
    /// There are none at all.
    #[error("{asked} is no BGP peer of this node, which has none: `culvert node status` says why")]
    None {
        /// Who was asked for.
        asked: IpAddr,
    },
}

/// How many peers a sentence names.
const PEERS_NAMED: usize = 8;

fn words(peers: &[IpAddr]) -> String {
    let mut named: Vec<String> = peers.iter().take(PEERS_NAMED).map(ToString::to_string).collect();
    if let Some(more @ 1..) = peers.len().checked_sub(PEERS_NAMED) {
        named.push(format!("and {more} more"));
    }
    named.join(", ")
}

/// The peers that are meant: one, or all.
///
/// # Errors
/// When the one is no peer.
pub(crate) fn peers_meant(speaker: &Speaker, asked: Option<IpAddr>) -> Result<Vec<IpAddr>, PeerUnknown> {
    let peers: Vec<IpAddr> = speaker.peers().map(|status| status.peer).collect();
    match asked {
        None => Ok(peers),
        Some(asked) if peers.contains(&asked) => Ok(vec![asked]),
        Some(asked) if peers.is_empty() => Err(PeerUnknown::None { asked }),
        Some(asked) => Err(PeerUnknown::NotAmong { asked, peers }),
    }
}

/// The routes that `request` asks for.
///
/// # Errors
/// When it names somebody who is no peer.
pub(crate) fn routes(speaker: &Speaker, request: &RibRequest) -> Result<RibRoutes, PeerUnknown> {
    let peers = peers_meant(speaker, request.peer)?;
    let wanted = |prefix: Prefix| request.within.is_none_or(|range| range.contains(&prefix.net()));
    Ok(match request.table {
        RibTable::Received => gather(peers.into_iter().flat_map(|peer| {
            let all = speaker
                .adj_rib_in(peer)
                .filter(move |(nlri, ..)| wanted(nlri.prefix));
            all.map(move |(nlri, path, rejected)| {
                // A filter may have given it another next hop; with ADD-PATH only that tells a peer's paths apart.
                let is_it =
                    |hop: &NextHop| hop.peer == peer && (nlri.path_id == 0 || hop.address == path.next_hop);
                RibRoute {
                    used: Some(rejected.is_none() && speaker.next_hops(nlri.prefix).iter().any(is_it)),
                    rejected: rejected.map(|why| why.to_string()),
                    ..told(nlri.prefix, peer, nlri.path_id, path)
                }
            })
        })),
        RibTable::Advertised => gather(peers.into_iter().flat_map(|peer| {
            let all = speaker
                .adj_rib_out(peer)
                .filter(move |(nlri, _)| wanted(nlri.prefix));
            all.map(move |(nlri, path)| told(nlri.prefix, peer, nlri.path_id, path))
        })),
        RibTable::Best => {
            let all = speaker.loc_rib().filter(|(prefix, _)| wanted(*prefix));
            let through = all.filter(|(_, hops)| {
                let of_peer = |peer| hops.iter().any(|hop| hop.peer == peer);
                request.peer.is_none_or(of_peer)
            });
            gather(through.map(|(prefix, hops)| used(prefix, &hops)))
        }
    })
}

fn gather(mut all: impl Iterator<Item = RibRoute>) -> RibRoutes {
    let routes: Vec<RibRoute> = all.by_ref().take(MAX_ROUTES).collect();
    RibRoutes {
        routes,
        left_out: all.count(),
    }
}

/// A path that a peer tells or is told.
fn told(prefix: Prefix, peer: IpAddr, id: u32, path: &PathAttributes) -> RibRoute {
    let standard = path
        .communities
        .iter()
        .map(|community| format!("{}:{}", community >> 16, community & 0xffff));
    let large = path
        .large_communities
        .iter()
        .map(|[a, b, c]| format!("{a}:{b}:{c}"));
    RibRoute {
        prefix: prefix.net(),
        peer: Some(peer),
        next_hops: vec![path.next_hop],
        path: Some(RibPath {
            id,
            as_path: as_path(path),
            origin: format!("{:?}", path.origin),
            local_pref: path.local_pref,
            med: path.med,
            communities: standard.chain(large).collect(),
        }),
        used: None,
        rejected: None,
    }
}

/// A destination in use.
fn used(prefix: Prefix, hops: &[NextHop]) -> RibRoute {
    RibRoute {
        prefix: prefix.net(),
        peer: hops.first().map(|hop| hop.peer),
        next_hops: hops.iter().map(|hop| hop.address).collect(),
        path: None,
        used: Some(true),
        rejected: None,
    }
}

fn as_path(path: &PathAttributes) -> String {
    let numbers = |numbers: &[_]| {
        let each: Vec<String> = numbers.iter().map(ToString::to_string).collect();
        each.join(" ")
    };
    let segments: Vec<String> = path
        .as_path
        .segments
        .iter()
        .map(|segment| match segment {
            AsSegment::Sequence(of) => numbers(of.as_slice()),
            AsSegment::ConfedSequence(of) => format!("({})", numbers(of.as_slice())),
        })
        .collect();
    segments.join(" ")
}

#[cfg(test)]
mod tests;
