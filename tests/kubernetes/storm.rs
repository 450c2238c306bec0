//! A storm of pods on a real API server: the allocators of twenty nodes, and two thousand pods that come and go at once.
//! It prints what that cost; what it asserts is that nothing was given twice and nothing was left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use culvert_agent::allocation::{Allocator, Assignment};
use culvert_agent::api::{IpPool, Key, Kind, Node, Object, Resource as _};
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore, DatastoreError, Recollection, Update};
use culvert_agent::inventory;
use culvert_ipam::check;
use culvert_ipam::pool::Use;
use culvert_ipam::timestamp::Timestamp;
use futures_util::FutureExt as _;
use futures_util::future::try_join_all;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::contract::revision;
use crate::servers::{Server, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [("a_storm_of_pods_leaves_no_conflict_and_no_leak", storm)];

const NODES: usize = 20;
/// Pools and pods. In the first there are blocks for all; in the second fewer than nodes, which borrow from each other and
/// write the same blocks.
const STORMS: [(&str, usize); 2] = [("10.72.0.0/20", 2_000), ("10.72.0.0/23", 480)];
/// Addresses that are taken one by one, with nobody else about.
const ALONE: usize = 200;

/// The store of one agent, of which what is written is counted.
struct Counted {
    store: KubernetesStore,
    costs: Arc<Costs>,
}

/// What was written by all.
#[derive(Default)]
struct Costs {
    /// By kind.
    writes: Mutex<BTreeMap<Kind, u64>>,
    conflicts: AtomicU64,
    /// How long each took.
    latencies: Mutex<Vec<Duration>>,
}

impl Costs {
    fn note<T>(&self, kind: Kind, began: Instant, result: &Result<T, DatastoreError>) {
        match result {
            Ok(_) => {
                *lock(&self.writes).entry(kind).or_default() += 1;
                lock(&self.latencies).push(began.elapsed());
            }
            Err(error) if error.is_conflict() => drop(self.conflicts.fetch_add(1, Ordering::Relaxed)),
            Err(_) => {}
        }
    }

    fn of(&self, kind: Kind) -> u64 {
        lock(&self.writes).get(&kind).copied().unwrap_or(0)
    }

    fn all(&self) -> u64 {
        lock(&self.writes).values().sum()
    }

    /// How long all writes since the last time took together.
    fn take_time(&self) -> Duration {
        std::mem::take(&mut *lock(&self.latencies)).iter().sum()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Datastore for Counted {
    async fn get(&self, key: &Key) -> Result<Option<Object>, DatastoreError> {
        self.store.get(key).await
    }

    async fn list(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.store.list(kind).await
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.store.list_whole(kind).await
    }

    async fn create(&self, object: Object) -> Result<Object, DatastoreError> {
        let (kind, began) = (object.key().kind, Instant::now());
        let result = self.store.create(object).await;
        self.costs.note(kind, began, &result);
        result
    }

    async fn update(&self, object: Object) -> Result<Object, DatastoreError> {
        let (kind, began) = (object.key().kind, Instant::now());
        let result = self.store.update(object).await;
        self.costs.note(kind, began, &result);
        result
    }

    async fn delete(&self, key: &Key, revision: &str) -> Result<(), DatastoreError> {
        let began = Instant::now();
        let result = self.store.delete(key, revision).await;
        self.costs.note(key.kind, began, &result);
        result
    }

    fn knows_pods(&self) -> bool {
        self.store.knows_pods()
    }

    fn recall(&self, node: &str) -> Option<Recollection> {
        self.store.recall(node)
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        self.store.watch()
    }
}

/// Whose each address is at the moment, by those who were given it.
#[derive(Clone, Default)]
struct Given(Arc<Mutex<BTreeMap<IpAddr, String>>>);

impl Given {
    fn take(&self, address: IpAddr, pod: &str) -> Outcome {
        let before = lock(&self.0).insert(address, pod.to_owned());
        ensure(before.is_none(), || {
            format!("{address} was given to {pod} while {before:?} had it")
        })
    }

    /// Before it is asked for: from then on another may be given it.
    fn give_back(&self, pod: &str) {
        lock(&self.0).retain(|_, holder| holder != pod);
    }
}

fn handle(pod: &str) -> String {
    format!("k8s-pod-network.{pod}")
}

async fn add(allocator: Allocator, pod: String, given: Given) -> Result<Duration, Failed> {
    let attributes =
        [("namespace", "storm"), ("pod", pod.as_str())].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let wanted = Assignment::one(handle(&pod), attributes.into(), Use::Workload);
    let began = Instant::now();
    let addresses = allocator.assign(wanted).await?;
    let took = began.elapsed();
    for address in addresses {
        given.take(address, &pod)?;
    }
    Ok(took)
}

async fn remove(allocator: Allocator, pod: String, given: Given) -> Result<Duration, Failed> {
    given.give_back(&pod);
    let began = Instant::now();
    let released = allocator.release(&handle(&pod)).await?;
    ensure(released.len() == 1, || format!("{pod} gave back {released:?}"))?;
    Ok(began.elapsed())
}

fn name(node: usize) -> String {
    format!("storm-{node}")
}

/// The allocator of each node, each with a connection of its own, as an agent has it.
async fn allocators(kubeconfig: &Path, costs: &Arc<Costs>) -> Result<Vec<Allocator>, Failed> {
    let allocator = async |node: usize| -> Result<Allocator, Failed> {
        let access = Access::Kubeconfig(kubeconfig.to_owned());
        let store = KubernetesStore::open(&access, &name(node)).await?;
        // Allocation goes by what the watch tells, as in an agent, which hears it.
        let mut updates = store.watch()?;
        while !matches!(updates.recv().await, Some(Update::InSync) | None) {}
        tokio::spawn(async move { while updates.recv().await.is_some() {} });
        let costs = Arc::clone(costs);
        Ok(Allocator::new(Arc::new(Counted { store, costs }), name(node)))
    };
    try_join_all((0..NODES).map(allocator)).await
}

fn storm(_: &Server) -> Outcome {
    let server = start(&[])?;
    on_runtime(
        async {
            let kubeconfig = server.kubeconfig(ADMIN);
            let admin = KubernetesStore::open(&Access::Kubeconfig(kubeconfig.clone()), &name(0)).await?;
            for node in 0..NODES {
                admin.create(Node::named(name(node)).into_object()).await?;
            }
            for (range, pods) in STORMS {
                in_pool(&admin, &kubeconfig, range, pods).await?;
            }
            Ok(())
        }
        .boxed_local(),
    )
}

async fn in_pool(admin: &KubernetesStore, kubeconfig: &Path, range: &str, pods: usize) -> Outcome {
    let spec = serde_json::from_value(json!({"cidr": range, "blockSize": 26, "ipipMode": "Always"}))?;
    let pool = admin.create(IpPool::new("storm", spec).into_object()).await?;
    let costs = Arc::new(Costs::default());
    let allocators = allocators(kubeconfig, &costs).await?;
    alone(&allocators[0], &costs).await?;
    rage(&allocators, &costs, (range, pods)).await?;
    // What nobody waits for is written by then.
    for allocator in allocators {
        allocator.close().await;
    }
    nothing_is_left(admin).await?;
    // The next storm is in another pool, on clean ground.
    admin.delete(&pool.key(), &revision(&pool)).await?;
    for kind in [Kind::BlockAffinity, Kind::IpamBlock] {
        for object in admin.list_whole(kind).await? {
            admin.delete(&object.key(), &revision(&object)).await?;
        }
    }
    Ok(())
}

async fn nothing_is_left(admin: &KubernetesStore) -> Outcome {
    let snapshot = inventory::read(admin).await?;
    let held: Vec<_> = snapshot.held().map(|held| held.address).collect();
    ensure(held.is_empty(), || format!("left behind: {held:?}"))?;
    ensure(snapshot.handles.is_empty(), || format!("{:?}", snapshot.handles))?;
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = Timestamp::from_unix_nanos(u64::try_from(since.as_nanos())?);
    let problems = check::cluster(&snapshot, now);
    ensure(problems.is_empty(), || format!("{problems:#?}"))
}

/// One address after the other, with nobody else about.
async fn alone(allocator: &Allocator, costs: &Costs) -> Outcome {
    let given = Given::default();
    // The first one claims a block.
    add(allocator.clone(), "first".to_owned(), given.clone()).await?;
    let (mut whole, mut beyond) = (Vec::new(), Vec::new());
    for n in 0..ALONE {
        let pod = format!("alone-{n}");
        costs.take_time();
        let took = add(allocator.clone(), pod.clone(), given.clone()).await?;
        whole.push(took);
        // Nothing else writes meanwhile, and these writes wait for each other.
        beyond.push(took.saturating_sub(costs.take_time()));
        remove(allocator.clone(), pod, given.clone()).await?;
    }
    remove(allocator.clone(), "first".to_owned(), given).await?;
    println!(
        "alone: {ALONE} addresses one by one: {} each; beyond the datastore's own writes {}",
        quantiles(&mut whole),
        quantiles(&mut beyond)
    );
    Ok(())
}

/// Half of the pods come, then the other half while these go, then those go too; all at once each time.
async fn rage(allocators: &[Allocator], costs: &Costs, (range, pods): (&str, usize)) -> Outcome {
    let (blocks, all) = (costs.of(Kind::IpamBlock), costs.all());
    let conflicts = costs.conflicts.load(Ordering::Relaxed);
    let given = Given::default();
    let (early, late): (Vec<usize>, Vec<usize>) = (0..pods).partition(|pod| *pod < pods / 2);
    let began = Instant::now();
    let (mut adds, mut removals) = (Vec::new(), Vec::new());
    for (coming, going) in [(&early, &Vec::new()), (&late, &early), (&Vec::new(), &late)] {
        let (mut come, mut go) = (JoinSet::new(), JoinSet::new());
        for pod in going {
            go.spawn(remove(
                allocators[pod % NODES].clone(),
                format!("pod-{pod}"),
                given.clone(),
            ));
        }
        for pod in coming {
            come.spawn(add(
                allocators[pod % NODES].clone(),
                format!("pod-{pod}"),
                given.clone(),
            ));
        }
        while let Some(added) = come.join_next().await {
            adds.push(added??);
        }
        while let Some(removed) = go.join_next().await {
            removals.push(removed??);
        }
    }
    let took = began.elapsed();
    ensure(adds.len() == pods && removals.len() == pods, || {
        format!("{} added, {} removed", adds.len(), removals.len())
    })?;
    let distinct: BTreeSet<IpAddr> = lock(&given.0).keys().copied().collect();
    ensure(distinct.is_empty(), || format!("{distinct:?}"))?;
    #[allow(clippy::cast_precision_loss, reason = "to be printed")]
    let each = |count: u64| count as f64 / pods as f64;
    println!(
        "storm of {NODES} nodes and {pods} pods in {range}: {:.0} addresses/s given and taken back; for each {:.3} writes of blocks, \
         {:.2} writes in all, {:.3} conflicts; add {}, remove {}",
        2.0 * pods as f64 / took.as_secs_f64(),
        each(costs.of(Kind::IpamBlock) - blocks),
        each(costs.all() - all),
        each(costs.conflicts.load(Ordering::Relaxed) - conflicts),
        quantiles(&mut adds),
        quantiles(&mut removals)
    );
    Ok(())
}

/// `p50 3.1 ms, p99 9.9 ms`.
fn quantiles(durations: &mut [Duration]) -> String {
    durations.sort_unstable();
    let at = |percent: usize| {
        durations
            .get(durations.len() * percent / 100)
            .copied()
            .unwrap_or_default()
    };
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    format!(
        "p50 {:.1} ms, p99 {:.1} ms",
        milliseconds(at(50)),
        milliseconds(at(99))
    )
}
