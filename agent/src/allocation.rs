//! Driver of the crate `culvert_ipam`: read, plan, write by compare-and-swap, and again on a conflict.
//!
//! The crate plans one step at a time from what was read. Here each step is done on the datastore and its result told to
//! the plan; a write that is refused, because somebody else wrote first, only means that the object is read again. All that
//! makes the order of writes safe is in [`culvert_ipam::allocator`].
//!
//! One agent does one request at a time. When many wait (a node that starts a hundred pods), they can be joined to one write
//! of a block: [`Allocator::turn`] is the place where they queue.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use culvert_ipam::allocator::{
    Assign, Change, Claim, Held, Key as PlanKey, Kind as PlanKind, Object as Spec, Outcome, Plan, Policy,
    Read, Release, Request, Step, View, Wanted, Write, plan,
};
use culvert_ipam::check;
use culvert_ipam::limits::Limits;
use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::pool::{Excluded, Family, Pool, PoolError, Pools, Use};
use culvert_ipam::ranges::Ranges;
use culvert_ipam::timestamp::Timestamp;
use ipnet::IpNet;
use tokio::sync::{Mutex, MutexGuard};
use tracing::{debug, info, warn};

use crate::api::{
    BlockAffinity, EncapsulationMode, IpPool, IpReservation, IpamBlock, IpamConfig, IpamConfigSpec,
    IpamHandle, Key, Kind, Object,
};
use crate::datastore::{self, Datastore, DatastoreError};

#[cfg(test)]
mod tests;

/// Refused writes of one request after which it is given up, as in Calico.
const MAX_CONFLICTS: u32 = 100;

/// An address for somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Who gets it: `k8s-pod-network.<containerID>` for a pod.
    pub handle: String,
    /// What is written beside it: `pod`, `namespace`, `type`, `timestamp`. `node` is added.
    pub attributes: BTreeMap<String, String>,
    /// What it is for.
    pub usage: Use,
}

/// Hands out the addresses of a node's blocks. Clones are the same allocator.
#[derive(Clone)]
pub struct Allocator {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Datastore>,
    node: String,
    turn: Mutex<()>,
}

/// Why there is no address or block.
#[derive(Debug, thiserror::Error)]
pub enum AllocationError {
    /// It cannot be done as things stand.
    #[error(transparent)]
    Plan(#[from] culvert_ipam::error::Error),
    /// The datastore failed.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
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
        "node {node}: the plan for handle {handle} ended with {outcome}; this is an error in culvert, report it"
    )]
    Outcome {
        /// The node.
        node: String,
        /// The handle.
        handle: String,
        /// What it ended with.
        outcome: &'static str,
    },
}

impl Allocator {
    /// An allocator for the node of this name.
    pub fn new(store: Arc<dyn Datastore>, node: String) -> Self {
        let turn = Mutex::new(());
        Self {
            inner: Arc::new(Inner { store, node, turn }),
        }
    }

    /// One IPv4 address for `handle`; the same again if it has one already on this node.
    ///
    /// # Errors
    /// When no pool has one to give, when the datastore fails, or when others always write first.
    pub async fn assign(&self, request: Assignment) -> Result<IpAddr, AllocationError> {
        let turn = self.turn().await;
        let pools = self.pools().await?;
        turn.assign(request, pools.iter().map(pool).collect()).await
    }

    /// Releases all addresses of `handle`, on whichever node; returns them. There may be none.
    ///
    /// # Errors
    /// When a block that has some of them is broken (the others are released), when the datastore fails, or when others
    /// always write first.
    pub async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, AllocationError> {
        self.turn().await.release(handle).await
    }

    /// The addresses of `handle`, on whichever node. A block that is broken is passed over: it gives out nothing either.
    ///
    /// # Errors
    /// When the datastore fails.
    pub async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, AllocationError> {
        let store = &*self.inner.store;
        let name = culvert_ipam::name::handle(handle);
        let Some(counts) = datastore::get::<IpamHandle>(store, &name).await? else {
            return Ok(Vec::new());
        };
        let mut addresses = Vec::new();
        for block in counts.spec.block.keys() {
            let found = datastore::get::<IpamBlock>(store, &culvert_ipam::name::block(*block)).await?;
            if let Some(ordinals) = found.and_then(|block| Ordinals::of(&block.spec).ok()) {
                addresses.extend(ordinals.of_handle(handle).map(|(address, _)| address));
            }
        }
        Ok(addresses)
    }

    /// Claims a first block for this node where it has none yet in any enabled pool, so that its route is out before the
    /// first pod; finishes what claims of this node were left at. Returns the confirmed blocks.
    ///
    /// # Errors
    /// When no pool has a block to give, when the datastore fails, or when others always write first.
    pub async fn ensure_block(&self) -> Result<Vec<IpNet>, AllocationError> {
        let turn = self.turn().await;
        let pools = self.pools().await?;
        let request = Request::Claim(Claim {
            node: self.inner.node.clone(),
            usage: Use::Workload,
            family: Family::V4,
        });
        match turn.run(&request, pools.iter().map(pool).collect()).await?.0 {
            Outcome::Claimed(blocks) => Ok(blocks),
            other => Err(self.odd("", &other)),
        }
    }

    /// The address of this node's `tunl0`, from a pool whose packets are tunnelled; assigned if need be. The one in use is
    /// kept until its pool is gone.
    ///
    /// # Errors
    /// When no pool has one to give, when the datastore fails, or when others always write first.
    pub async fn tunnel_address(&self) -> Result<Ipv4Addr, AllocationError> {
        let turn = self.turn().await;
        let node = &self.inner.node;
        let request = Assignment {
            handle: format!("ipip-tunnel-addr-{node}"),
            attributes: BTreeMap::from([("type".to_owned(), "ipipTunnelAddress".to_owned())]),
            usage: Use::Tunnel,
        };
        let pools = self.pools().await?;
        let tunnelled: Vec<_> = pools.iter().map(tunnel_pool).collect();
        let mut address = turn.assign(request.clone(), tunnelled.clone()).await?;
        if !pools.iter().any(|p| p.spec.cidr.contains(&address)) {
            info!(%node, %address, "the pool of the tunnel address is gone, taking another address");
            turn.release(&request.handle).await?;
            address = turn.assign(request.clone(), tunnelled).await?;
        }
        match address {
            IpAddr::V4(address) => Ok(address),
            IpAddr::V6(_) => Err(self.odd(&request.handle, &Outcome::Assigned(Vec::new()))),
        }
    }

    /// Waits until this agent's earlier requests are done.
    async fn turn(&self) -> Turn<'_> {
        Turn {
            allocator: self,
            _alone: self.inner.turn.lock().await,
        }
    }

    async fn pools(&self) -> Result<Vec<IpPool>, AllocationError> {
        Ok(datastore::list::<IpPool>(&*self.inner.store).await?)
    }

    async fn reserved(&self) -> Result<Ranges, AllocationError> {
        let reservations = datastore::list::<IpReservation>(&*self.inner.store).await?;
        Ok(reservations.iter().flat_map(|r| r.spec.ranges()).collect())
    }

    async fn limits(&self) -> Result<Limits, AllocationError> {
        let config = datastore::get::<IpamConfig>(&*self.inner.store, "default").await?;
        Ok(limits(&config.map(|c| c.spec).unwrap_or_default()))
    }

    fn odd(&self, handle: &str, outcome: &Outcome) -> AllocationError {
        AllocationError::Outcome {
            node: self.inner.node.clone(),
            handle: handle.to_owned(),
            outcome: match outcome {
                Outcome::Assigned(_) => "other addresses than asked for",
                Outcome::Released => "a release",
                Outcome::Claimed(_) => "a claim",
                Outcome::Unclaimed => "a block given up",
            },
        }
    }
}

/// The right to do a request, of which one agent does one at a time.
struct Turn<'a> {
    allocator: &'a Allocator,
    _alone: MutexGuard<'a, ()>,
}

impl Turn<'_> {
    async fn assign(
        &self,
        request: Assignment,
        pools: Vec<Result<Pool, PoolError>>,
    ) -> Result<IpAddr, AllocationError> {
        let node = &self.allocator.inner.node;
        let handle = request.handle.clone();
        let assign = Request::Assign(Assign {
            node: node.clone(),
            handle: request.handle,
            attributes: request.attributes,
            usage: request.usage,
            wanted: vec![Wanted::one(Family::V4)],
            excluded: BTreeMap::new(),
        });
        let (outcome, _) = self.run(&assign, pools).await?;
        match outcome {
            Outcome::Assigned(addresses) if addresses.len() == 1 => {
                let address = addresses.first().copied();
                debug!(%node, handle, address = address.map(display), "address assigned");
                address.ok_or_else(|| self.allocator.odd(&handle, &Outcome::Assigned(addresses)))
            }
            other => Err(self.allocator.odd(&handle, &other)),
        }
    }

    async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, AllocationError> {
        let node = self.allocator.inner.node.clone();
        let release = Request::Release(Release {
            node,
            what: Held::Handle(handle.to_owned()),
        });
        let pools = self.allocator.pools().await?;
        let (_, released) = self.run(&release, pools.iter().map(pool).collect()).await?;
        info!(handle, ?released, "addresses released");
        Ok(released)
    }

    /// Plans and does steps until the request has come true. Gives what it came to, and the addresses that were freed.
    async fn run(
        &self,
        request: &Request,
        pools: Vec<Result<Pool, PoolError>>,
    ) -> Result<(Outcome, Vec<IpAddr>), AllocationError> {
        let Inner { store, node, .. } = &*self.allocator.inner;
        let policy = Policy {
            pools: Pools::new(pools),
            reserved: self.allocator.reserved().await?,
            limits: self.allocator.limits().await?,
        };
        let mut known = Known {
            store: &**store,
            view: View::new(policy),
            objects: BTreeMap::new(),
        };
        let mut freed = Vec::new();
        let mut conflicts = 0;
        loop {
            let Plan { mut outcomes, step } = plan(&known.view, std::slice::from_ref(request), now());
            if let Some(outcome) = outcomes.pop().flatten() {
                return Ok((outcome?, freed));
            }
            match step {
                Step::Read(reads) => {
                    for read in reads {
                        known.read(read).await?;
                    }
                }
                Step::Write(changes) => {
                    for change in changes {
                        let key = change.write.key();
                        match known.write(&change).await {
                            Ok(()) => freed.extend(change.frees.iter().map(|f| f.address)),
                            Err(error) if is_conflict(&error) => {
                                conflicts += 1;
                                debug!(%node, %key, conflicts, "somebody else wrote first");
                                if conflicts >= MAX_CONFLICTS {
                                    let (node, key) = (node.clone(), api_key(&key));
                                    let tries = conflicts;
                                    return Err(AllocationError::Contended { node, key, tries });
                                }
                                known.view.forget(key);
                            }
                            Err(error) => return Err(error.into()),
                        }
                    }
                }
                // One request alone waits for no other.
                Step::Done => return Err(self.allocator.odd("", &Outcome::Unclaimed)),
            }
        }
    }
}

fn is_conflict(error: &DatastoreError) -> bool {
    match error {
        DatastoreError::Conflict { .. }
        | DatastoreError::AlreadyExists { .. }
        | DatastoreError::NotFound { .. } => true,
        DatastoreError::Invalid { .. } | DatastoreError::Io { .. } => false,
    }
}

/// What is known for one request: the plan's view, and the whole objects, of which the plan sees the specs.
struct Known<'a> {
    store: &'a dyn Datastore,
    view: View,
    objects: BTreeMap<Key, Object>,
}

impl Known<'_> {
    async fn read(&mut self, read: Read) -> Result<(), DatastoreError> {
        match read {
            Read::List(kind) => {
                let objects = self.store.list(api_kind(kind)).await?;
                let specs: Vec<_> = objects.iter().filter_map(described).collect();
                self.view.listed(kind, specs);
                self.objects.extend(objects.into_iter().map(|o| (o.key(), o)));
            }
            Read::Get(key) => match self.store.get(&api_key(&key)).await {
                Ok(object) => {
                    let described = object.as_ref().and_then(described);
                    self.view
                        .got(key, described.map(|(_, revision, spec)| (revision, spec)));
                    self.objects.extend(object.map(|o| (o.key(), o)));
                }
                Err(error @ DatastoreError::Invalid { .. }) => self.view.unreadable(key, error.to_string()),
                Err(error) => return Err(error),
            },
        }
        Ok(())
    }

    async fn write(&mut self, change: &Change) -> Result<(), DatastoreError> {
        let write = &change.write;
        let key = api_key(&write.key());
        let written = match write {
            Write::Create { name, object } => self.store.create(new_object(name, object.clone())).await?,
            Write::Update {
                object,
                revision,
                name,
            } => {
                // What the plan does not see (labels, annotations, finalizers) is written back as it was read.
                let mut whole = new_object(name, object.clone());
                if let Some(read) = self.objects.get(&key) {
                    whole = with_spec(read.clone(), object.clone());
                }
                whole.metadata_mut().resource_version = Some(revision.clone());
                self.store.update(whole).await?
            }
            Write::Delete { revision, .. } => {
                self.store.delete(&key, revision).await?;
                self.objects.remove(&key);
                self.view.wrote(change.clone(), String::new());
                return Ok(());
            }
        };
        let revision = written.metadata().resource_version.clone().unwrap_or_default();
        self.view.wrote(change.clone(), revision);
        self.objects.insert(key, written);
        Ok(())
    }
}

/// An object as the plan sees it: name, revision, spec. `None` for kinds that no plan asks for.
fn described(object: &Object) -> Option<(String, String, Spec)> {
    let spec = match object {
        Object::BlockAffinity(o) => Spec::Affinity(o.spec.clone()),
        Object::IpamHandle(o) => Spec::Handle(o.spec.clone()),
        Object::IpamBlock(o) => {
            if let Err(fault) = check::named_block(&o.metadata.name, &o.spec) {
                warn!(%fault, "block is not used");
            }
            Spec::Block(o.spec.clone())
        }
        _ => return None,
    };
    let metadata = object.metadata();
    let revision = metadata.resource_version.clone().unwrap_or_default();
    Some((metadata.name.clone(), revision, spec))
}

fn new_object(name: &str, spec: Spec) -> Object {
    let labels = spec.labels();
    let mut object = match spec {
        Spec::Affinity(spec) => Object::BlockAffinity(BlockAffinity::new(name, spec)),
        Spec::Block(spec) => Object::IpamBlock(IpamBlock::new(name, spec)),
        Spec::Handle(spec) => Object::IpamHandle(IpamHandle::new(name, spec)),
    };
    object.metadata_mut().labels.extend(labels);
    object
}

/// The object with another spec; objects are looked up by kind, so that the two are of one kind.
fn with_spec(mut object: Object, spec: Spec) -> Object {
    object.metadata_mut().labels.extend(spec.labels());
    match (&mut object, spec) {
        (Object::BlockAffinity(o), Spec::Affinity(spec)) => o.spec = spec,
        (Object::IpamBlock(o), Spec::Block(spec)) => o.spec = spec,
        (Object::IpamHandle(o), Spec::Handle(spec)) => o.spec = spec,
        (_, spec) => return new_object(&object.metadata().name.clone(), spec),
    }
    object
}

fn api_kind(kind: PlanKind) -> Kind {
    match kind {
        PlanKind::Affinity => Kind::BlockAffinity,
        PlanKind::Block => Kind::IpamBlock,
        PlanKind::Handle => Kind::IpamHandle,
    }
}

fn api_key(key: &PlanKey) -> Key {
    Key::new(api_kind(key.kind), key.name.clone())
}

/// An IPPool as allocation sees it.
///
/// # Errors
/// When its block size is wrong.
pub fn pool(object: &IpPool) -> Result<Pool, PoolError> {
    let spec = &object.spec;
    let named = |field: &str| spec.unknown.get(field).and_then(|v| v.as_str());
    let narrow = |selector: &str| !matches!(selector.trim(), "" | "all()");
    let node_selector = spec.node_selector.as_deref().filter(|s| narrow(s));
    let namespace_selector = named("namespaceSelector").filter(|s| narrow(s));
    let excluded = if spec.disabled || object.metadata.unknown.contains_key("deletionTimestamp") {
        Some(Excluded::Disabled)
    } else if let Some(selector) = node_selector {
        Some(Excluded::NodeSelector(selector.to_owned()))
    } else if let Some(selector) = namespace_selector {
        Some(Excluded::NamespaceSelector(selector.to_owned()))
    } else {
        (named("assignmentMode") == Some("Manual")).then_some(Excluded::Manual)
    };
    let pool = Pool::new(&object.metadata.name, spec.cidr, spec.block_size)?.excluding(excluded);
    if spec.allowed_uses.is_empty() {
        return Ok(pool);
    }
    let uses = [Use::Workload, Use::Tunnel];
    Ok(pool.allowing(
        uses.into_iter()
            .filter(|u| spec.allowed_uses.contains(&u.to_string())),
    ))
}

/// The same for a tunnel's address, which must be of a pool whose packets are tunnelled.
fn tunnel_pool(object: &IpPool) -> Result<Pool, PoolError> {
    let pool = pool(object)?;
    if object.spec.ipip_mode == EncapsulationMode::Never && pool.refusal(Use::Tunnel).is_none() {
        return Ok(pool.excluding(Some(Excluded::NotTunnelled)));
    }
    Ok(pool)
}

fn limits(config: &IpamConfigSpec) -> Limits {
    let cooldown = config
        .unknown
        .get("ipCooldownSeconds")
        .and_then(serde_json::Value::as_u64);
    Limits {
        strict_affinity: config.strict_affinity,
        auto_allocate_blocks: config.auto_allocate_blocks,
        max_blocks_per_host: config.max_blocks_per_host,
        cooldown_seconds: cooldown.and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
    }
}

/// The clock's time; 1970 where the clock is before that.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_unix_nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
