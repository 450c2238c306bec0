//! Garbage collection on a real API server, with the chart's own permissions: what is taken back, what is not, and by whom.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_agent::allocation::{Allocator, Assignment};
use culvert_agent::api::{IpPool, Kind, Node, Resource as _};
use culvert_agent::collector::{self, CollectionMode, Terms};
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::Datastore;
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
    let spec = serde_json::from_value(json!({"cidr": "10.70.0.0/24", "blockSize": 29, "ipipMode": "Always"}))?;
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

async fn snapshot(store: &dyn Datastore) -> Result<Snapshot, Failed> {
    Ok(inventory::read(store).await?)
}

fn held(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.held().map(|held| held.address).collect()
}

fn now() -> Result<Timestamp, Failed> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(Timestamp::from_unix_nanos(u64::try_from(since.as_nanos())?))
}

fn collected(_: &Server) -> Outcome {
    let server = start(&[])?;
    let kubeconfig = server.kubeconfig(SERVICE_ACCOUNT);
    on_runtime(
        async {
            furnish(&server).await?;
            let reader = store(&kubeconfig, NODES[0]).await?;
            let mut allocators = Vec::new();
            for node in NODES {
                let allocator = Allocator::new(store(&kubeconfig, node).await?, node.to_owned());
                allocator.ensure_block(Family::V4).await?;
                allocator.tunnel_address().await?;
                allocators.push(allocator);
            }
            let lives = attach(&server, &allocators[0], NODES[0], "lives").await?;
            let goes = attach(&server, &allocators[0], NODES[0], "goes").await?;
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

            // Its node is there: the runtime may yet say that it is gone. So nothing is done at once.
            delete(&server, "pod", "goes")?;
            until("a candidate", async || {
                Ok(leader.candidates(Leftover::PodAddress) == 1)
            })
            .await?;
            until("its address to come back", async || {
                Ok(!held(&snapshot(&*reader).await?).contains(&goes))
            })
            .await?;
            leader.looks(2).await?;
            ensure(held(&snapshot(&*reader).await?).contains(&lives), || {
                format!("{lives} was taken from a pod that lives")
            })?;
            ensure(leader.reclaimed(Leftover::PodAddress) == 1, || {
                format!("{} addresses", leader.reclaimed(Leftover::PodAddress))
            })?;

            // The second node goes, with a pod on it.
            attach(&server, &allocators[1], NODES[1], "with-node").await?;
            delete(&server, "pod", "with-node")?;
            delete(&server, "node", NODES[1])?;
            until("block and claim of the node that is gone to be free", async || {
                let snapshot = snapshot(&*reader).await?;
                let claims = snapshot.affinities.iter().any(|claim| claim.spec.node == NODES[1]);
                Ok(!claims && snapshot.blocks.len() == 1)
            })
            .await?;
            leader.looks(1).await?;
            let after = snapshot(&*reader).await?;
            let problems = check::cluster(&after, now()?);
            ensure(problems.is_empty(), || format!("{problems:#?}"))?;
            ensure(held(&after).contains(&lives), || format!("{:?}", held(&after)))?;
            let sorts = [Leftover::TunnelAddress, Leftover::Claim].map(|sort| leader.reclaimed(sort));
            ensure(sorts == [1, 1], || format!("{sorts:?}"))?;

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
            let mut revisions = Vec::new();
            let state = async |all: &mut Vec<_>| {
                for kind in [Kind::IpamBlock, Kind::IpamHandle, Kind::BlockAffinity] {
                    all.extend(reader.list_whole(kind).await?);
                }
                Ok::<(), Failed>(())
            };
            state(&mut revisions).await?;
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
            ensure(held(&snapshot(&*reader).await?).contains(&goes), || {
                format!("{goes} was taken back")
            })?;
            let mut after = Vec::new();
            state(&mut after).await?;
            ensure(after == revisions, || format!("{after:?}\n{revisions:?}"))?;
            agent.stop.cancel();
            agent.task.await?;
            Ok(())
        }
        .boxed_local(),
    )
}
