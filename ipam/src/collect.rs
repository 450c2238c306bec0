//! Garbage collection: what is left of pods and nodes that are gone.
//!
//! [`collect`] is a function of a snapshot, the time, and what it remembers of the last times ([`Memory`]); it says what to
//! take back, and does not do it, so that a dry run is the same function. An address is valid until it is proven leaked: on
//! snapshots that were complete, twice, with a grace period in between unless its node is gone; and [`Reclaim::is_still_due`]
//! asks again, of a snapshot taken just before. What is taken back is named by sequence number or revision, so that what was
//! taken anew in the meantime is another's, and stays.

mod address;
mod leftover;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::allocator::{Held, HeldAddress, Key, Release, Request, Unclaim, Write};
use crate::snapshot::{Action, Snapshot, Source};
use crate::timestamp::Timestamp;

use address::Leaks;

/// How patient the collection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Seconds for which an address must look leaked while its node is there (Calico's `leakGracePeriod`), and a block must be
    /// empty. 0 turns both off.
    pub grace_seconds: u64,
    /// Most things to take back at once; the rest comes next time.
    pub limit: usize,
    /// Whether the datastore tells of pods at all. Where it does not, no address is taken back for want of a pod, but those
    /// that nodes have left that are gone: after the grace period, since nothing else speaks for it.
    pub pods_are_told: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grace_seconds: 15 * 60,
            limit: 1000,
            pods_are_told: true,
        }
    }
}

impl Settings {
    /// What a snapshot lacks that the collection goes by.
    fn missing(self, snapshot: &Snapshot) -> Vec<Source> {
        let mut missing = snapshot.missing();
        missing.retain(|source| *source != Source::Pods || self.pods_are_told);
        missing
    }
}

/// The sorts of things that are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// The address of a pod.
    PodAddress,
    /// The address of a tunnel device.
    TunnelAddress,
    /// A handle that does not count what it has.
    Handle,
    /// An object that is marked as deleted.
    Mark,
    /// Addresses that have rested long enough.
    Rested,
    /// A block that its node does not need.
    EmptyBlock,
    /// A claim of a node that is gone.
    Claim,
}

impl Leftover {
    /// Every one.
    pub const ALL: [Leftover; 7] = [
        Leftover::PodAddress,
        Leftover::TunnelAddress,
        Leftover::Handle,
        Leftover::Mark,
        Leftover::Rested,
        Leftover::EmptyBlock,
        Leftover::Claim,
    ];

    /// Its name in metrics: `pod_address`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Leftover::PodAddress => "pod_address",
            Leftover::TunnelAddress => "tunnel_address",
            Leftover::Handle => "handle",
            Leftover::Mark => "mark",
            Leftover::Rested => "rested",
            Leftover::EmptyBlock => "empty_block",
            Leftover::Claim => "claim",
        }
    }
}

/// What was seen before: since when, how often, and in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    addresses: BTreeMap<(IpAddr, u64), Sighting>,
    /// By name and revision.
    handles: BTreeMap<(String, String), Sighting>,
    /// By object and revision.
    marks: BTreeMap<(Key, String), Sighting>,
    /// By block and its sequence number.
    empty_blocks: BTreeMap<(IpNet, u64), Sighting>,
    /// By node and block.
    blocks_of_gone_nodes: BTreeMap<(String, IpNet), Sighting>,
}

/// Since when and how often something was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    since: Timestamp,
    times: u32,
}

impl Sighting {
    /// The same once more.
    fn again(before: Option<&Self>, now: Timestamp) -> Self {
        Self {
            since: before.map_or(now, |s| s.since.min(now)),
            times: before.map_or(0, |s| s.times).saturating_add(1),
        }
    }

    /// Whether it was seen twice, so many seconds apart.
    fn is_proven(self, now: Timestamp, seconds: u64) -> bool {
        self.times >= 2 && now.seconds_since(self.since) >= seconds
    }
}

/// What a look has come to.
#[derive(Clone, Debug, Default)]
pub struct Collection {
    /// What to remember for the next look.
    pub memory: Memory,
    /// Addresses that look leaked, but are not proven to be.
    pub candidates: Vec<Leak>,
    /// How many of each sort look left over, but are not proven to be; those addresses are among them.
    pub waiting: BTreeMap<Leftover, usize>,
    /// What to take back now.
    pub reclaims: Vec<Reclaim>,
    /// What was not complete: then nothing is taken back, and nothing new remembered.
    pub missing: Vec<Source>,
}

impl Collection {
    fn wait(&mut self, leftover: Leftover) {
        *self.waiting.entry(leftover).or_default() += 1;
    }
}

/// An address that looks leaked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// The address.
    pub address: IpAddr,
    /// Its handle.
    pub handle: Option<String>,
    /// Its node.
    pub node: Option<String>,
    /// The sequence number with which it was taken.
    pub sequence_number: u64,
    /// What it was taken for: [`Leftover::PodAddress`] or [`Leftover::TunnelAddress`].
    pub leftover: Leftover,
    /// What speaks for it.
    pub evidence: Evidence,
}

/// Why an address looks leaked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// There is no such pod.
    NoPod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
    },
    /// The pod of this name has other addresses.
    OtherAddresses {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
        /// What it has.
        has: Vec<IpAddr>,
    },
    /// The pod of this name is on another node.
    OtherNode {
        /// Its namespace.
        namespace: String,
        /// Its name.
        pod: String,
        /// Where it is.
        is_on: String,
    },
    /// The Node object is gone, whose tunnel's the address was; or, where nobody tells of pods, one of whose pods' it was.
    NoNode,
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Evidence::NoPod { namespace, pod } => write!(f, "there is no pod {namespace}/{pod}"),
            Evidence::OtherAddresses { namespace, pod, has } => {
                let has: Vec<String> = has.iter().map(ToString::to_string).collect();
                write!(f, "pod {namespace}/{pod} has {}", has.join(", "))
            }
            Evidence::OtherNode {
                namespace,
                pod,
                is_on,
            } => {
                write!(f, "pod {namespace}/{pod} is on node {is_on}")
            }
            Evidence::NoNode => f.write_str("the Node is gone"),
        }
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (handle, node) = (
            self.handle.as_deref().unwrap_or("none"),
            self.node.as_deref().unwrap_or("none"),
        );
        write!(
            f,
            "{} (handle {handle}, node {node}): {}",
            self.address, self.evidence
        )
    }
}

/// Something to take back.
#[derive(Clone, Debug, PartialEq)]
pub enum Reclaim {
    /// All addresses of a handle, which are proven to be leaked.
    Addresses(Vec<Leak>),
    /// A handle that does not count what it has.
    Handle {
        /// Its name.
        handle: String,
        /// The write that sets it right.
        write: Write,
    },
    /// An object that is marked as deleted, and whose deletion nobody finishes.
    Mark {
        /// Which.
        key: Key,
        /// Its deletion.
        write: Write,
    },
    /// Addresses that have rested long enough, in a block that nobody writes.
    Rested {
        /// The block.
        block: IpNet,
        /// The write that frees them.
        write: Write,
    },
    /// A block that its node does not need.
    EmptyBlock {
        /// Its owner.
        node: String,
        /// The block.
        block: IpNet,
        /// At which it was empty each time.
        sequence_number: u64,
    },
    /// A claim of a node that is gone.
    GoneNode {
        /// The node.
        node: String,
        /// The block.
        block: IpNet,
    },
}

impl Reclaim {
    /// What it is, and how many.
    #[must_use]
    pub fn leftover(&self) -> (Leftover, usize) {
        match self {
            Reclaim::Addresses(leaks) => {
                let first = leaks.first().map_or(Leftover::PodAddress, |leak| leak.leftover);
                (first, leaks.len())
            }
            Reclaim::Handle { .. } => (Leftover::Handle, 1),
            Reclaim::Mark { .. } => (Leftover::Mark, 1),
            Reclaim::Rested { .. } => (Leftover::Rested, 1),
            Reclaim::EmptyBlock { .. } => (Leftover::EmptyBlock, 1),
            Reclaim::GoneNode { .. } => (Leftover::Claim, 1),
        }
    }

    /// What to do.
    #[must_use]
    pub fn action(&self) -> Action {
        match self {
            Reclaim::Addresses(leaks) => Action::Request(Request::Release(Release {
                node: leaks.first().and_then(|l| l.node.clone()).unwrap_or_default(),
                what: Held::Addresses(leaks.iter().map(Leak::held).collect()),
            })),
            Reclaim::Handle { write, .. } | Reclaim::Mark { write, .. } | Reclaim::Rested { write, .. } => {
                Action::Write(write.clone())
            }
            Reclaim::EmptyBlock {
                node,
                block,
                sequence_number,
            } => Action::Request(Request::Unclaim(Unclaim {
                node: node.clone(),
                block: *block,
                must_be_empty: true,
                sequence_number: Some(*sequence_number),
            })),
            Reclaim::GoneNode { node, block } => Action::Request(Request::Unclaim(Unclaim {
                node: node.clone(),
                block: *block,
                must_be_empty: false,
                sequence_number: None,
            })),
        }
    }

    /// Whether it is still to be taken back on a newer snapshot: to be asked right before it is done.
    #[must_use]
    pub fn is_still_due(&self, fresh: &Snapshot, settings: Settings) -> bool {
        if !settings.missing(fresh).is_empty() {
            return false;
        }
        match self {
            Reclaim::Addresses(leaks) => {
                let now = Leaks::of(fresh, settings.pods_are_told);
                leaks.iter().all(|leak| now.has(leak)) && now.are_all_of_their_handle(leaks)
            }
            // The revision that it names says it.
            Reclaim::Handle { .. } | Reclaim::Mark { .. } | Reclaim::Rested { .. } => true,
            Reclaim::EmptyBlock {
                node,
                block,
                sequence_number,
            } => {
                fresh.nodes.contains_key(node)
                    && fresh.live_blocks().any(|b| {
                        b.spec.cidr == *block
                            && b.spec.sequence_number == *sequence_number
                            && !b.spec.is_in_use()
                    })
                    && leftover::may_spare(fresh, node, *block)
            }
            Reclaim::GoneNode { node, .. } => leftover::is_rid_of(fresh, node),
        }
    }
}

impl Leak {
    fn held(&self) -> HeldAddress {
        HeldAddress {
            address: self.address,
            handle: self.handle.clone(),
            sequence_number: Some(self.sequence_number),
        }
    }
}

impl fmt::Display for Reclaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reclaim::Addresses(leaks) => {
                let leaks: Vec<String> = leaks.iter().map(ToString::to_string).collect();
                write!(f, "release {}", leaks.join("; "))
            }
            Reclaim::Handle { handle, .. } => write!(f, "set handle {handle} to what it has"),
            Reclaim::Mark { key, .. } => write!(f, "finish the deletion of {key}"),
            Reclaim::Rested { block, .. } => write!(f, "free the rested addresses of block {block}"),
            Reclaim::EmptyBlock { node, block, .. } => {
                write!(f, "release block {block}, which node {node} does not use")
            }
            Reclaim::GoneNode { node, block } => {
                write!(f, "release block {block} of node {node}, which is gone")
            }
        }
    }
}

/// All addresses that look leaked now, proven or not.
#[must_use]
pub fn leaks(snapshot: &Snapshot) -> Vec<Leak> {
    Leaks::of(snapshot, true).into_all()
}

/// Looks for what is to be taken back.
#[must_use]
pub fn collect(snapshot: &Snapshot, settings: Settings, memory: &Memory, now: Timestamp) -> Collection {
    let missing = settings.missing(snapshot);
    if !missing.is_empty() {
        return Collection {
            memory: memory.clone(),
            missing,
            ..Collection::default()
        };
    }
    let mut collection = Collection::default();
    address::collect(snapshot, settings, memory, now, &mut collection);
    leftover::collect(snapshot, settings, memory, now, &mut collection);
    collection.reclaims.truncate(settings.limit);
    collection
}
