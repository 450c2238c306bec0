//! Garbage collection on a real API server, with the chart's own permissions: what is taken back, what is not, and by whom.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_agent::allocation::{Allocator, Assignment};
use culvert_agent::api::{IpPool, Kind, Node, Object, Resource as _};
use culvert_agent::collector::{self, CollectionMode, Terms};
use culvert_agent::datastore::Datastore;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::inventory;
use culvert_agent::metrics::Metrics;
use culvert_agent::status::{AgentStatus, DatastoreStatus};
use culvert_ipam::check;
use culvert_ipam::collect::Leftover;
use culvert_ipam::pool::{Family, Use};
use culvert_ipam::snapshot::Snapshot;
use culvert_ipam::timestamp::Timestamp;
use futures_util::FutureExt as _;
use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::chart::permit;
use crate::servers::{LIMIT, SERVICE_ACCOUNT, Server, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 2] = [
    (
        "what_pods_and_nodes_leave_is_collected_by_one_of_two_agents",
        collected,
    ),
    ("a_dry_run_collects_nothing", dry_run),
];

/// Long enough for several looks within the grace period.
const INTERVAL: Duration = Duration::from_millis(500);
const GRACE_SECONDS: u64 = 3;
const NODES: [&str; 2] = ["gc-1", "gc-2"];

/// An agent, as far as it collects.
struct Agent {
    metrics: Metrics,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Agent {
    async fn start(kubeconfig: &Path, node: &str, mode: CollectionMode) -> Result<Self, Failed> {
        let terms = Terms {
            mode,
            interval: INTERVAL,
            grace_seconds: GRACE_SECONDS,
        };
        let (_, status) = watch::channel(Arc::new(AgentStatus {
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            ..AgentStatus::default()
        }));
        let (metrics, stop) = (Metrics::register()?, CancellationToken::new());
        let store = store(kubeconfig, node).await?;
        let task = collector::start(
            store,
            node.to_owned(),
            terms,
            status,
            metrics.clone(),
            stop.clone(),
        );
        Ok(Self { metrics, stop, task })
    }

    fn reclaimed(&self, leftover: Leftover) -> u64 {
        let counter = &self.metrics.ipam_gc_reclaims;
        counter.with_label_values(&[leftover.as_str()]).get()
    }

    fn candidates(&self, leftover: Leftover) -> i64 {
        let gauge = &self.metrics.ipam_gc_candidates;
        gauge.with_label_values(&[leftover.as_str()]).get()
    }

    fn leads(&self) -> bool {
        self.metrics.ipam_gc_leader.get() == 1
    }

    /// Waits until it has looked so many times more.
    async fn looks(&self, more: u64) -> Outcome {
        let aim = self.metrics.ipam_gc_looks.get() + more;
        until("the agent to look", async || {
            Ok(self.metrics.ipam_gc_looks.get() >= aim)
        })
        .await
    }
}

async fn store(kubeconfig: &Path, node: &str) -> Result<Arc<dyn Datastore>, Failed> {
    let access = Access::Kubeconfig(kubeconfig.to_owned());
    Ok(Arc::new(KubernetesStore::open(&access, node).await?))
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> Result<bool, Failed>) -> Outcome {
    let began = Instant::now();
    while !done().await? {
        if began.elapsed() > LIMIT {
            return Err(format!("waited {LIMIT:?} for {what}").into());
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// A pool, and the nodes of the agents.
async fn furnish(server: &ApiServer) -> Outcome {
    permit(server)?;
    let admin = store(&server.kubeconfig(ADMIN), NODES[0]).await?;
    let spec =
        serde_json::from_value(json!({"cidr": "10.70.0.0/24", "blockSize": 29, "ipipMode": "Always"}))?;
    admin.create(IpPool::new("pods", spec).into_object()).await?;
    for node in NODES {
        admin.create(Node::named(node).into_object()).await?;
    }
    Ok(())
}

/// A pod with an address, as the plugin and a kubelet leave it.
async fn attach(server: &ApiServer, allocator: &Allocator, node: &str, name: &str) -> Result<IpAddr, Failed> {
    let attributes = [("namespace", "default"), ("pod", name)].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let handle = format!("k8s-pod-network.{name}");
    let wanted = Assignment::one(handle, attributes.into(), Use::Workload);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i"}]},
    });
    server.kubectl(ADMIN, &["apply", "-f", "-"], &pod.to_string())?;
    let addresses = allocator.assign(wanted).await?;
    let address = *addresses.first().ok_or("no address")?;
    pod["status"] = json!({"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]});
    let path = format!("/api/v1/namespaces/default/pods/{name}/status");
    server.kubectl(ADMIN, &["replace", "--raw", &path, "-f", "-"], &pod.to_string())?;
    Ok(address)
}

fn delete(server: &ApiServer, what: &str, name: &str) -> Outcome {
    let force = ["delete", what, name, "--force", "--grace-period=0", "--wait=true"];
    server.kubectl(ADMIN, &force, "")?;
    Ok(())
}

fn held(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.held().map(|held| held.address).collect()
}

fn now() -> Result<Timestamp, Failed> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(Timestamp::from_unix_nanos(u64::try_from(since.as_nanos())?))
}

/// Two nodes and what is done on them.
struct World<'a> {
    server: &'a ApiServer,
    reader: Arc<dyn Datastore>,
    allocators: Vec<Allocator>,
}

impl World<'_> {
    async fn held(&self) -> Result<BTreeSet<IpAddr>, Failed> {
        Ok(held(&inventory::read(&*self.reader).await?))
    }
}

fn collected(_: &Server) -> Outcome {
    let server = start(&[])?;
    let kubeconfig = server.kubeconfig(SERVICE_ACCOUNT);
    on_runtime(
        async {
            furnish(&server).await?;
            let mut allocators = Vec::new();
            for node in NODES {
                let allocator = Allocator::new(store(&kubeconfig, node).await?, node.to_owned());
                allocator.ensure_block(Family::V4).await?;
                allocator.tunnel_address().await?;
                allocators.push(allocator);
            }
            let world = World {
                server: &server,
                reader: store(&kubeconfig, NODES[0]).await?,
                allocators,
            };
            let agents = [
                Agent::start(&kubeconfig, NODES[0], CollectionMode::Enabled).await?,
                Agent::start(&kubeconfig, NODES[1], CollectionMode::Enabled).await?,
            ];
            until("one of the two to lead", async || {
                Ok(agents.iter().any(Agent::leads))
            })
            .await?;
            let [leader, other] = if agents[0].leads() {
                [&agents[0], &agents[1]]
            } else {
                [&agents[1], &agents[0]]
            };
            let lives = attach(&server, &world.allocators[0], NODES[0], "lives").await?;
            pod_goes(&world, leader, lives).await?;
            node_goes(&world, leader, lives).await?;

            // All that was one agent's doing; the other takes over when it ends.
            ensure(other.metrics.ipam_gc_looks.get() == 0 && !other.leads(), || {
                "both have looked".to_owned()
            })?;
            leader.stop.cancel();
            until("the other to take over", async || Ok(other.leads())).await?;
            other.looks(1).await?;
            for Agent { stop, task, .. } in agents {
                stop.cancel();
                task.await?;
            }
            Ok(())
        }
        .boxed_local(),
    )
}

/// A pod goes without a DEL of its plugin: its address comes back, and that of another stays.
async fn pod_goes(world: &World<'_>, leader: &Agent, lives: IpAddr) -> Outcome {
    let goes = attach(world.server, &world.allocators[0], NODES[0], "goes").await?;
    let began = Instant::now();
    delete(world.server, "pod", "goes")?;
    until("its address to come back", async || {
        Ok(!world.held().await?.contains(&goes))
    })
    .await?;
    // Its node is there: the runtime may yet say that it is gone. So nothing is done at once.
    ensure(began.elapsed().as_secs() >= GRACE_SECONDS, || {
        format!("after {:?} already", began.elapsed())
    })?;
    leader.looks(2).await?;
    let held = world.held().await?;
    ensure(held.contains(&lives), || {
        format!("{lives} was taken from a pod that lives: {held:?}")
    })?;
    let count = leader.reclaimed(Leftover::PodAddress);
    ensure(count == 1, || format!("{count} addresses were taken back"))
}

/// The second node goes, with a pod on it: nothing of it is left, and nothing is wrong.
async fn node_goes(world: &World<'_>, leader: &Agent, lives: IpAddr) -> Outcome {
    attach(world.server, &world.allocators[1], NODES[1], "with-node").await?;
    delete(world.server, "pod", "with-node")?;
    delete(world.server, "node", NODES[1])?;
    until(
        "block and claim of the node that is gone to be free",
        async || {
            let snapshot = inventory::read(&*world.reader).await?;
            let claims = snapshot
                .affinities
                .iter()
                .any(|claim| claim.spec.node == NODES[1]);
            Ok(!claims && snapshot.blocks.len() == 1)
        },
    )
    .await?;
    leader.looks(1).await?;
    let after = inventory::read(&*world.reader).await?;
    let problems = check::cluster(&after, now()?);
    ensure(problems.is_empty(), || format!("{problems:#?}"))?;
    ensure(held(&after).contains(&lives), || format!("{:?}", held(&after)))?;
    let sorts = [Leftover::TunnelAddress, Leftover::Claim].map(|sort| leader.reclaimed(sort));
    ensure(sorts == [1, 1], || format!("{sorts:?}"))
}

/// All that allocation writes, as it is.
async fn written(store: &dyn Datastore) -> Result<Vec<Object>, Failed> {
    let mut all = Vec::new();
    for kind in [Kind::IpamBlock, Kind::IpamHandle, Kind::BlockAffinity] {
        all.extend(store.list_whole(kind).await?);
    }
    Ok(all)
}

fn dry_run(_: &Server) -> Outcome {
    let server = start(&[])?;
    let kubeconfig = server.kubeconfig(SERVICE_ACCOUNT);
    on_runtime(
        async {
            furnish(&server).await?;
            let reader = store(&kubeconfig, NODES[0]).await?;
            let allocator = Allocator::new(store(&kubeconfig, NODES[0]).await?, NODES[0].to_owned());
            let goes = attach(&server, &allocator, NODES[0], "goes").await?;
            delete(&server, "pod", "goes")?;
            let before = written(&*reader).await?;
            let agent = Agent::start(&kubeconfig, NODES[0], CollectionMode::DryRun).await?;
            // Past the grace period it stays a candidate.
            let began = Instant::now();
            until("the grace period to pass", async || {
                Ok(began.elapsed().as_secs() > GRACE_SECONDS)
            })
            .await?;
            agent.looks(3).await?;
            ensure(agent.candidates(Leftover::PodAddress) == 1, || {
                "no candidate".to_owned()
            })?;
            let held = held(&inventory::read(&*reader).await?);
            ensure(held.contains(&goes), || format!("{goes} was taken back"))?;
            let after = written(&*reader).await?;
            ensure(after == before, || format!("{after:?}\n{before:?}"))?;
            agent.stop.cancel();
            agent.task.await?;
            Ok(())
        }
        .boxed_local(),
    )
}
