//! All of a cluster that can have or use addresses, at one moment: what the check and the collection of leaks go by.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::affinity::Affinity;
use crate::allocator::{Held, Key, Kind, Request, Write};
use crate::block::{Attribute, Block, Owner};
use crate::handle::Handle;
use crate::limits::Limits;
use crate::name;
use crate::pool::Pools;
use crate::ranges::Ranges;

/// A kind of thing that a snapshot is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// IPPools.
    Pools,
    /// IPAMBlocks.
    Blocks,
    /// BlockAffinities.
    Affinities,
    /// IPAMHandles.
    Handles,
    /// Nodes.
    Nodes,
    /// Pods.
    Pods,
}

impl Source {
    /// Every one.
    pub const ALL: [Source; 6] = [
        Source::Pools,
        Source::Blocks,
        Source::Affinities,
        Source::Handles,
        Source::Nodes,
        Source::Pods,
    ];
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Pools => "IPPools",
            Source::Blocks => "IPAMBlocks",
            Source::Affinities => "BlockAffinities",
            Source::Handles => "IPAMHandles",
            Source::Nodes => "Nodes",
            Source::Pods => "Pods",
        })
    }
}

/// An object as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<T> {
    /// Its `metadata.name`.
    pub name: String,
    /// Its revision, which a write has to name.
    pub revision: String,
    /// What it says.
    pub spec: T,
}

/// A pod on the pod network (not the host's) that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it runs on; `None` while it has none.
    pub node: Option<String>,
    /// The addresses that it is known to have, in its status or in an annotation; none while it starts.
    pub addresses: Vec<IpAddr>,
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod {}/{}", self.namespace, self.name)
    }
}

/// All of it at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// All pools, whatever nodes they select.
    pub pools: Pools,
    /// All reservations.
    pub reserved: Ranges,
    /// Settings.
    pub limits: Limits,
    /// All blocks, deleted ones too.
    pub blocks: Vec<Stored<Block>>,
    /// All affinities, deleted ones too.
    pub affinities: Vec<Stored<Affinity>>,
    /// All handles, deleted ones too.
    pub handles: Vec<Stored<Handle>>,
    /// The tunnel addresses of each node that there is.
    pub nodes: BTreeMap<String, Vec<IpAddr>>,
    /// All pods that can have an address of a pool.
    pub pods: Vec<Pod>,
    /// What is complete and up to date: told whole by the datastore, with a watch that stands.
    pub in_sync: BTreeSet<Source>,
}

impl Snapshot {
    /// What is not complete or up to date.
    #[must_use]
    pub fn missing(&self) -> Vec<Source> {
        let known = |source: &Source| self.in_sync.contains(source);
        Source::ALL.into_iter().filter(|s| !known(s)).collect()
    }

    /// The blocks that are not deleted.
    pub fn live_blocks(&self) -> impl Iterator<Item = &Stored<Block>> {
        self.blocks.iter().filter(|b| !b.spec.deleted)
    }

    /// The affinities that are not deleted.
    pub fn live_affinities(&self) -> impl Iterator<Item = &Stored<Affinity>> {
        self.affinities.iter().filter(|a| !a.spec.is_deleted())
    }

    /// The handles that are not deleted.
    pub fn live_handles(&self) -> impl Iterator<Item = &Stored<Handle>> {
        self.handles.iter().filter(|h| !h.spec.deleted)
    }

    /// The objects that are marked as deleted and still there, each with its revision.
    pub fn marks(&self) -> impl Iterator<Item = (Key, &str)> {
        let blocks = self.blocks.iter().filter(|b| b.spec.deleted);
        let blocks = blocks.map(|b| (Kind::Block, &b.name, &b.revision));
        let affinities = self.affinities.iter().filter(|a| a.spec.is_deleted());
        let affinities = affinities.map(|a| (Kind::Affinity, &a.name, &a.revision));
        let handles = self.handles.iter().filter(|h| h.spec.deleted);
        let handles = handles.map(|h| (Kind::Handle, &h.name, &h.revision));
        let all = blocks.chain(affinities).chain(handles);
        all.map(|(kind, name, revision)| (Key::new(kind, name.clone()), revision.as_str()))
    }

    /// All addresses that somebody has: neither free nor at rest, nor reserved for Windows.
    pub fn held(&self) -> impl Iterator<Item = HeldAddress<'_>> {
        self.live_blocks().flat_map(|stored| {
            let block = &stored.spec;
            let taken = block.taken();
            let held = taken.filter(|t| !t.attribute.rests() && !t.attribute.is_windows_reserved());
            held.map(move |t| HeldAddress {
                address: t.address,
                block: block.cidr,
                sequence_number: block.sequence_number_of(t.ordinal),
                attribute: t.attribute,
                owner: block.owner(),
            })
        })
    }

    /// What each handle has, by the name of its object, as the handle should count it.
    #[must_use]
    pub fn counted(&self) -> BTreeMap<String, Handle> {
        let mut has: BTreeMap<String, Handle> = BTreeMap::new();
        for held in self.held() {
            let Some(id) = held.attribute.handle() else {
                continue;
            };
            let handle = has.entry(name::handle(id)).or_insert_with(|| Handle::new(id));
            handle.set(held.block, handle.count(held.block).saturating_add(1));
        }
        has
    }

    /// The pods by namespace and name.
    pub(crate) fn pods_by_name(&self) -> BTreeMap<(&str, &str), Vec<&Pod>> {
        let mut pods: BTreeMap<(&str, &str), Vec<&Pod>> = BTreeMap::new();
        for pod in &self.pods {
            pods.entry((&pod.namespace, &pod.name)).or_default().push(pod);
        }
        pods
    }
}

/// An address that somebody has.
#[derive(Clone, Copy, Debug)]
pub struct HeldAddress<'a> {
    /// The address.
    pub address: IpAddr,
    /// Its block.
    pub block: IpNet,
    /// The sequence number with which it was taken.
    pub sequence_number: u64,
    /// Who has it.
    pub attribute: &'a Attribute,
    /// Whose the block is.
    pub owner: Owner<'a>,
}

impl<'a> HeldAddress<'a> {
    /// The node it was taken for; the block's where the attributes do not say.
    #[must_use]
    pub fn node(&self) -> Option<&'a str> {
        let of_block = match self.owner {
            Owner::Host(node) => Some(node),
            Owner::Virtual(_) | Owner::None => None,
        };
        self.attribute.value("node").or(of_block)
    }

    /// Whether it is that of a node's tunnel device, which lives as long as the Node object.
    #[must_use]
    pub fn is_of_tunnel(&self) -> bool {
        self.attribute
            .value("type")
            .is_some_and(|t| t.ends_with("TunnelAddress"))
    }

    /// The namespace and name of its pod; `None` for what is no pod's.
    #[must_use]
    pub fn pod(&self) -> Option<(&'a str, &'a str)> {
        let known = |key: &str| self.attribute.value(key).filter(|v| !v.is_empty());
        Some((known("namespace")?, known("pod")?))
    }
}

/// Something to do about what was found. Each is safe however old what it was decided on is: a write names its revision, a
/// request its sequence numbers.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    clippy::large_enum_variant,
    reason = "made, shown and done, never stored in number"
)]
pub enum Action {
    /// To be planned ([`crate::allocator::plan`]).
    Request(Request),
    /// To be written by compare-and-swap; when it is refused, look again.
    Write(Write),
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Request(Request::Release(release)) => match &release.what {
                Held::Handle(handle) => write!(f, "release all addresses of handle {handle}"),
                Held::Addresses(held) => {
                    let addresses: Vec<String> = held.iter().map(|h| h.address.to_string()).collect();
                    write!(f, "release {}", addresses.join(", "))
                }
            },
            Action::Request(Request::Unclaim(unclaim)) => {
                write!(f, "give up block {} of node {}", unclaim.block, unclaim.node)
            }
            Action::Request(Request::Claim(claim)) => write!(f, "claim a block for node {}", claim.node),
            Action::Request(Request::Assign(assign)) => write!(f, "assign addresses to {}", assign.handle),
            Action::Write(Write::Create { name, object }) => {
                write!(f, "create {}", Key::new(object.kind(), name.clone()))
            }
            Action::Write(Write::Update { name, object, .. }) => {
                write!(f, "rewrite {}", Key::new(object.kind(), name.clone()))
            }
            Action::Write(Write::Delete { key, .. }) => write!(f, "delete {key}"),
        }
    }
}
