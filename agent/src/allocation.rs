//! Driver of the crate `culvert_ipam`: read, plan, write by compare-and-swap, and again on a conflict.
//!
//! The crate plans from what was read; here its steps are done on the datastore. Requests that wait while a write is under
//! way share the next one ([`queue`]): a node that starts a hundred pods rewrites its block a few times, not a hundred. All
//! that makes the order of writes safe is in [`culvert_ipam::allocator`].

mod known;
mod policy;
mod queue;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use culvert_ipam::allocator::{Assign, Claim, Held, HeldAddress, Outcome, Release, Request, Unclaim, Wanted};
use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::pool::{Family, Use};
use culvert_ipam::snapshot::Action;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, info};

use crate::api::{IpPool, IpamBlock, IpamHandle, Key};
use crate::datastore::{self, Datastore, DatastoreError};
use crate::metrics::Metrics;

pub(crate) use known::now;
pub use policy::pool;
pub(crate) use policy::{limits, policy_of_cluster};
use queue::{Answer, Ask, Queue, Waiting};

#[cfg(test)]
mod tests;

/// Requests that may wait before those who ask are made to wait with theirs.
const WAITING: usize = 1024;

/// Addresses for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Who gets them: `k8s-pod-network.<containerID>` for a pod.
    pub handle: String,
    /// What is written beside them: `pod`, `namespace`, `type`, `timestamp`. `node` is added.
    pub attributes: BTreeMap<String, String>,
    /// What they are for.
    pub usage: Use,
    /// Which, and how many.
    pub wanted: Vec<Wanted>,
    /// The labels of the namespace that they are for, by which pools are chosen; where they are not known, a pool that
    /// chooses its namespaces is for none.
    pub namespace: Option<BTreeMap<String, String>>,
}

impl Assignment {
    /// One IPv4 address for a handle.
    #[must_use]
    pub fn one(handle: impl Into<String>, attributes: BTreeMap<String, String>, usage: Use) -> Self {
        Self {
            handle: handle.into(),
            attributes,
            usage,
            wanted: vec![Wanted::one(Family::V4)],
            namespace: None,
        }
    }
}

/// Hands out the addresses of a node's blocks. Clones are the same allocator; it ends with the last of them.
#[derive(Clone)]
pub struct Allocator {
    store: Arc<dyn Datastore>,
    node: Arc<str>,
    requests: mpsc::Sender<Waiting>,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
    metrics: Option<Metrics>,
}

/// Why there is no address or block.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// It cannot be done as things stand.
    #[error(transparent)]
    Plan(#[from] culvert_ipam::error::Error),
    /// The datastore failed. Requests that were done together fail together.
    #[error(transparent)]
    Datastore(Arc<DatastoreError>),
    /// Others wrote first, time after time.
    #[error(
        "node {node}: {key} was changed by others before each of our {tries} writes; see who else writes it (another agent or \
         calico-ipam of this node), then try again"
    )]
    Contended {
        /// The node.
        node: String,
        /// The object of the last refused write.
        key: Key,
        /// Refused writes.
        tries: u32,
    },
    /// What came of a request is not what such a request comes to.
    #[error(
        "node {node}: the plan for {request} ended with {outcome}; this is an error in culvert, report it"
    )]
    Outcome {
        /// The node.
        node: String,
        /// What was asked for.
        request: &'static str,
        /// What it ended with.
        outcome: &'static str,
    },
    /// The agent is about to end.
    #[error("node {node}: the agent is stopping; ask again when it is back")]
    Stopping {
        /// The node.
        node: String,
    },
}

impl From<DatastoreError> for AllocationError {
    fn from(error: DatastoreError) -> Self {
        Self::Datastore(Arc::new(error))
    }
}

impl Allocator {
    /// An allocator for the node of this name. It must be made inside a Tokio runtime, in which its requests are done.
    pub fn new(store: Arc<dyn Datastore>, node: String) -> Self {
        Self::counting(store, node, None)
    }

    /// The same, which tells `metrics` how long its requests take, and what becomes of them.
    pub fn measured(store: Arc<dyn Datastore>, node: String, metrics: Metrics) -> Self {
        Self::counting(store, node, Some(metrics))
    }

    fn counting(store: Arc<dyn Datastore>, node: String, metrics: Option<Metrics>) -> Self {
        let (requests, receiver) = mpsc::channel(WAITING);
        let queue = Queue::new(Arc::clone(&store), node.clone(), metrics.clone(), receiver);
        let task = tokio::spawn(queue.run());
        Self {
            store,
            node: node.into(),
            requests,
            task: Arc::new(Mutex::new(Some(task))),
            metrics,
        }
    }

    /// Ends it: waits until all is written that its answers did not wait for. There must be no other clone of it: it would
    /// be waited for as well.
    pub async fn close(self) {
        let Self { requests, task, .. } = self;
        drop(requests);
        let task = task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }

    /// Addresses for a handle, in the order in which they are wanted; the same again if it has them already on this node.
    ///
    /// # Errors
    /// When no pool has them to give, when the datastore fails, or when others always write first. Then none is assigned.
    pub async fn assign(&self, wanted: Assignment) -> Result<Vec<IpAddr>, AllocationError> {
        self.assign_from(wanted, false).await
    }

    async fn assign_from(&self, wanted: Assignment, tunnelled: bool) -> Result<Vec<IpAddr>, AllocationError> {
        let handle = wanted.handle.clone();
        let request = Request::Assign(Assign {
            node: self.node.to_string(),
            handle: wanted.handle,
            attributes: wanted.attributes,
            usage: wanted.usage,
            wanted: wanted.wanted,
            excluded: BTreeMap::new(),
        });
        let ask = Ask {
            request,
            tunnelled,
            namespace: wanted.namespace,
        };
        match self.ask(ask).await?.outcome {
            Outcome::Assigned(addresses) => {
                debug!(node = %self.node, handle, ?addresses, "addresses assigned");
                Ok(addresses)
            }
            other => Err(self.odd("addresses", &other)),
        }
    }

    /// Releases all addresses of `handle`, on whichever node; returns them. There may be none.
    ///
    /// # Errors
    /// When a block that has some of them is broken (the others are released), when the datastore fails, or when others
    /// always write first.
    pub async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, AllocationError> {
        self.release_held(Held::Handle(handle.to_owned())).await
    }

    /// Releases these addresses, each only from the one that is said to have it; returns those that were not free.
    ///
    /// # Errors
    /// Those of [`Allocator::release`], and when one of them is another's by now: then none is released.
    pub async fn release_addresses(&self, held: Vec<HeldAddress>) -> Result<Vec<IpAddr>, AllocationError> {
        self.release_held(Held::Addresses(held)).await
    }

    async fn release_held(&self, what: Held) -> Result<Vec<IpAddr>, AllocationError> {
        let node = self.node.to_string();
        let shown = format!("{what:?}");
        let request = Request::Release(Release { node, what });
        let released = self.ask(Ask::of(request)).await?.freed;
        info!(what = shown, ?released, "addresses released");
        Ok(released)
    }

    /// Gives a block up: it is deleted where it is empty, else it stays without an owner.
    ///
    /// # Errors
    /// When it does not have the sequence number, or is not empty but must be; when the datastore fails, or others always
    /// write first.
    pub async fn give_up(&self, unclaim: Unclaim) -> Result<(), AllocationError> {
        self.ask(Ask::of(Request::Unclaim(unclaim))).await.map(drop)
    }

    /// Does what a check or a collection has found to be due; the addresses that it gave back.
    ///
    /// # Errors
    /// When things have changed since, so that nothing was done; when the datastore fails, or others always write first.
    pub async fn act(&self, action: Action) -> Result<Vec<IpAddr>, AllocationError> {
        match action {
            Action::Request(request) => Ok(self.ask(Ask::of(request)).await?.freed),
            Action::Write(write) => {
                known::write_once(&*self.store, &write).await?;
                Ok(Vec::new())
            }
        }
    }

    /// The addresses of `handle`, on whichever node. A block that is broken is passed over: it gives out nothing either.
    ///
    /// # Errors
    /// When the datastore fails.
    pub async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, AllocationError> {
        let name = culvert_ipam::name::handle(handle);
        let Some(counts) = datastore::get::<IpamHandle>(&*self.store, &name).await? else {
            return Ok(Vec::new());
        };
        let mut addresses = Vec::new();
        for block in counts.spec.block.keys() {
            let found = datastore::get::<IpamBlock>(&*self.store, &culvert_ipam::name::block(*block)).await?;
            if let Some(ordinals) = found.and_then(|block| Ordinals::of(&block.spec).ok()) {
                addresses.extend(ordinals.of_handle(handle).map(|(address, _)| address));
            }
        }
        Ok(addresses)
    }

    /// The handles under which this node has addresses in these blocks. A block that is gone is passed over.
    ///
    /// # Errors
    /// When the datastore fails.
    pub async fn handles_in(&self, blocks: &[IpNet]) -> Result<BTreeSet<String>, AllocationError> {
        let mut handles = BTreeSet::new();
        for block in blocks {
            let found = datastore::get::<IpamBlock>(&*self.store, &culvert_ipam::name::block(*block)).await?;
            let Some(block) = found else { continue };
            let own = block.spec.taken().filter(|taken| {
                taken.attribute.value("node") == Some(&*self.node) && !taken.attribute.rests()
            });
            handles.extend(own.filter_map(|taken| taken.attribute.handle_id.clone()));
        }
        Ok(handles)
    }

    /// Claims a first block for this node where it has none yet in any enabled pool, so that its route is out before the
    /// first pod; finishes what claims of this node were left at. Returns the confirmed blocks.
    ///
    /// # Errors
    /// When no pool has a block to give, when the datastore fails, or when others always write first.
    pub async fn ensure_block(&self, family: Family) -> Result<Vec<IpNet>, AllocationError> {
        let request = Request::Claim(Claim {
            node: self.node.to_string(),
            usage: Use::Workload,
            family,
        });
        match self.ask(Ask::of(request)).await?.outcome {
            Outcome::Claimed(blocks) => Ok(blocks),
            other => Err(self.odd("a block", &other)),
        }
    }

    /// The address of this node's `tunl0`, from a pool whose packets are tunnelled; assigned if need be. The one in use is
    /// kept until its pool is gone.
    ///
    /// # Errors
    /// When no pool has one to give, when the datastore fails, or when others always write first.
    pub async fn tunnel_address(&self) -> Result<Ipv4Addr, AllocationError> {
        let node = &*self.node;
        let attributes = BTreeMap::from([("type".to_owned(), "ipipTunnelAddress".to_owned())]);
        let wanted = Assignment::one(
            culvert_ipam::name::ipip_tunnel_handle(node),
            attributes,
            Use::Tunnel,
        );
        let mut address = self.one_tunnelled(&wanted).await?;
        let pools = datastore::list::<IpPool>(&*self.store).await?;
        if !pools.iter().any(|p| p.spec.cidr.contains(&IpAddr::V4(address))) {
            info!(%node, %address, "the pool of the tunnel address is gone, taking another address");
            self.release(&wanted.handle).await?;
            address = self.one_tunnelled(&wanted).await?;
        }
        Ok(address)
    }

    async fn one_tunnelled(&self, wanted: &Assignment) -> Result<Ipv4Addr, AllocationError> {
        let addresses = self.assign_from(wanted.clone(), true).await?;
        match addresses.as_slice() {
            [IpAddr::V4(address)] => Ok(*address),
            _ => Err(self.odd("a tunnel address", &Outcome::Assigned(addresses))),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, AllocationError> {
        let Some(metrics) = &self.metrics else {
            return self.put(ask).await;
        };
        let (request, began) = (ask.kind(), Instant::now());
        let answer = self.put(ask).await;
        let seconds = metrics.ipam_request_seconds.with_label_values(&[request]);
        seconds.observe(began.elapsed().as_secs_f64());
        if answer.is_err() {
            metrics.ipam_failures.with_label_values(&[request]).inc();
        }
        answer
    }

    async fn put(&self, ask: Ask) -> Result<Answer, AllocationError> {
        let (answer, answered) = oneshot::channel();
        let stopping = || AllocationError::Stopping {
            node: self.node.to_string(),
        };
        let waiting = Waiting::new(ask, answer);
        self.requests.send(waiting).await.map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    fn odd(&self, request: &'static str, outcome: &Outcome) -> AllocationError {
        AllocationError::Outcome {
            node: self.node.to_string(),
            request,
            outcome: match outcome {
                Outcome::Assigned(_) => "other addresses than asked for",
                Outcome::Released => "a release",
                Outcome::Claimed(_) => "a claim",
                Outcome::Unclaimed => "a block given up",
            },
        }
    }
}
