//! The collector on a datastore in memory, with the faults that a real one cannot be made to have at a given moment.

use std::collections::BTreeMap;
use std::net::IpAddr;

use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::pool::{Family, Use};

use super::*;
use crate::allocation::Assignment;
use crate::api::{IpPool, Key, Kind, Metadata, Node, Object, Pod, PodIp, PodSpec, PodStatus, UnknownFields};
use crate::datastore::memory::{Memory as Store, ip_pool};
use crate::status::DatastoreStatus;

const GRACE: u64 = 900;

fn at(seconds: u32) -> Timestamp {
    Timestamp::from_unix_nanos(1_790_000_000_000_000_000).plus_seconds(seconds)
}

/// Nodes n1 and n2, each with a block of four addresses, a tunnel address and no pods.
async fn cluster() -> Arc<Store> {
    let nodes = ["n1", "n2"].map(|name| Object::Node(Node::named(name)));
    let store = Store::of(
        [Object::IpPool(ip_pool("p", "10.0.0.0/24", 30))]
            .into_iter()
            .chain(nodes),
    );
    store.set(|state| state.knows_pods = true);
    for node in ["n1", "n2"] {
        let allocator = Allocator::new(store.clone(), node.to_owned());
        allocator.ensure_block(Family::V4).await.unwrap();
        allocator.tunnel_address().await.unwrap();
    }
    store
}

fn pod(name: &str, node: &str, address: IpAddr) -> Object {
    Object::Pod(Pod {
        metadata: Metadata {
            namespace: Some("shop".to_owned()),
            ..Metadata::named(name)
        },
        spec: PodSpec {
            node_name: Some(node.to_owned()),
            ..PodSpec::default()
        },
        status: PodStatus {
            pod_ips: vec![PodIp {
                ip: address.to_string(),
            }],
            ..PodStatus::default()
        },
        unknown: UnknownFields::new(),
    })
}

/// An address for a pod, as the plugin takes it; the pod itself is not there.
async fn take(store: &Arc<Store>, node: &str, name: &str) -> IpAddr {
    let attributes = [("namespace", "shop"), ("pod", name)].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let wanted = Assignment::one(handle(name), attributes.into(), Use::Workload);
    let allocator = Allocator::new(store.clone(), node.to_owned());
    allocator.assign(wanted).await.unwrap()[0]
}

fn handle(name: &str) -> String {
    format!("k8s-pod-network.{name}")
}

/// The addresses of pods by name, as the blocks have them.
fn held(store: &Store) -> BTreeMap<String, Vec<IpAddr>> {
    let mut held: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for block in store.blocks() {
        for taken in block.spec.taken() {
            let pod = taken.attribute.value("pod").unwrap_or("a tunnel").to_owned();
            held.entry(pod).or_default().push(taken.address);
        }
    }
    held
}

struct Bench {
    store: Arc<Store>,
    collector: Collector,
    leads: watch::Sender<bool>,
    status: watch::Sender<Arc<AgentStatus>>,
}

fn in_sync() -> AgentStatus {
    AgentStatus {
        datastore: DatastoreStatus {
            in_sync: true,
            problem: None,
        },
        ..AgentStatus::default()
    }
}

impl Bench {
    fn new(store: Arc<Store>, mode: CollectionMode) -> Self {
        let (status, reader) = watch::channel(Arc::new(in_sync()));
        let terms = Terms {
            mode,
            interval: Duration::from_secs(450),
            grace_seconds: GRACE,
        };
        let metrics = Metrics::register().unwrap();
        let collector = Collector::new(store.clone(), "n2".to_owned(), terms, reader, metrics);
        Self {
            store,
            collector,
            leads: watch::channel(true).0,
            status,
        }
    }

    async fn look(&mut self, seconds: u32) -> Result<(), LookError> {
        let looked = self.collector.look(at(seconds), &self.leads.subscribe()).await;
        // Counts of handles are set right after those who asked are answered.
        let written = || self.store.set(|state| state.writes.len());
        let (mut before, mut quiet) = (written(), 0);
        while quiet < 100 {
            tokio::task::yield_now().await;
            quiet = if written() == before { quiet + 1 } else { 0 };
            before = written();
        }
        looked
    }

    /// Two looks, a grace period apart.
    async fn twice(&mut self) {
        self.look(0).await.unwrap();
        self.look(GRACE.try_into().unwrap()).await.unwrap();
    }

    fn reclaimed(&self, kind: Leftover) -> u64 {
        let counter = &self.collector.metrics.ipam_gc_reclaims;
        counter.with_label_values(&[kind.as_str()]).get()
    }

    fn candidates(&self, kind: Leftover) -> i64 {
        let gauge = &self.collector.metrics.ipam_gc_candidates;
        gauge.with_label_values(&[kind.as_str()]).get()
    }

    /// Writes of anything since the last time.
    fn writes(&self) -> Vec<String> {
        self.store.set(|state| std::mem::take(&mut state.writes))
    }
}

#[tokio::test]
async fn an_address_without_a_pod_comes_back_after_its_grace_and_one_with_a_pod_stays() {
    let store = cluster().await;
    let lives = take(&store, "n1", "lives").await;
    take(&store, "n1", "gone").await;
    store.set(|state| state.store(pod("lives", "n1", lives)));
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    bench.look(0).await.unwrap();
    bench.look(899).await.unwrap();
    assert!(held(&bench.store).contains_key("gone"));
    assert_eq!(bench.candidates(Leftover::PodAddress), 1);
    bench.look(900).await.unwrap();
    let held = held(&bench.store);
    assert_eq!((held.get("lives"), held.get("gone")), (Some(&vec![lives]), None));
    assert_eq!(held["a tunnel"].len(), 2);
    assert_eq!(bench.reclaimed(Leftover::PodAddress), 1);
    assert_eq!(bench.candidates(Leftover::PodAddress), 0);
    let handles = bench.store.set(|state| {
        let names = state.objects.keys().filter(|key| key.kind == Kind::IpamHandle);
        names.map(|key| key.name.clone()).collect::<Vec<_>>()
    });
    assert!(!handles.contains(&handle("gone")), "{handles:?}");
    // And then there is nothing left to do.
    bench.writes();
    bench.look(1800).await.unwrap();
    assert_eq!(bench.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_taken_anew_between_the_last_look_and_the_release_stays() {
    let store = cluster().await;
    let address = take(&store, "n1", "gone").await;
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    bench.look(0).await.unwrap();
    let block = bench
        .store
        .blocks()
        .into_iter()
        .find(|b| b.spec.cidr.contains(&address))
        .unwrap();
    let key = Key::new(Kind::IpamBlock, block.metadata.name.clone());
    // The same container gives it back and takes it again: only the sequence number tells the two lives apart.
    bench.store.set(|state| {
        let hook_key = key.clone();
        let again = move |state: &mut crate::datastore::memory::State| {
            let Some(Object::IpamBlock(mut block)) = state.objects.get(&hook_key).cloned() else {
                panic!("no block");
            };
            let attributes = block.spec.taken().find(|t| t.address == address).unwrap();
            let attributes = attributes.attribute.secondary.clone().unwrap();
            let mut ordinals = Ordinals::of(&block.spec).unwrap();
            ordinals.release(&handle("gone"), None);
            block.spec = ordinals.into_written();
            let mut ordinals = Ordinals::of(&block.spec).unwrap();
            let free = block.spec.unallocated.len();
            ordinals.assign(free, &handle("gone"), &attributes);
            block.spec = ordinals.into_written();
            state.store(Object::IpamBlock(block));
        };
        state.before_write.insert(key.clone(), Box::new(again));
    });
    bench.look(900).await.unwrap();
    assert!(
        bench.store.set(|state| state.before_write.is_empty()),
        "nobody tried"
    );
    assert!(held(&bench.store)["gone"].contains(&address));
    assert_eq!(bench.reclaimed(Leftover::PodAddress), 0);
}

#[tokio::test]
async fn a_pod_that_appears_right_before_the_release_keeps_its_address() {
    let store = cluster().await;
    let address = take(&store, "n1", "late").await;
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    // The first two lists are those of the two looks; with the third all is looked at once more.
    bench.store.set(|state| {
        let appear = move |state: &mut crate::datastore::memory::State| {
            state.store(pod("late", "n1", address));
        };
        state.before_list.insert((Kind::Pod, 3), Box::new(appear));
    });
    bench.twice().await;
    assert!(
        bench.store.set(|state| state.before_list.is_empty()),
        "nobody looked again"
    );
    assert_eq!(held(&bench.store)["late"], [address]);
    assert_eq!(bench.reclaimed(Leftover::PodAddress), 0);
}

#[tokio::test]
async fn half_a_list_takes_nothing_and_forgets_nothing() {
    for kind in [
        Kind::Pod,
        Kind::Node,
        Kind::IpamBlock,
        Kind::IpamHandle,
        Kind::IpPool,
    ] {
        let store = cluster().await;
        take(&store, "n1", "gone").await;
        let mut bench = Bench::new(store, CollectionMode::Enabled);
        bench.look(0).await.unwrap();
        bench.writes();
        bench.store.set(|state| state.cut_off.insert(kind));
        let error = bench.look(900).await.unwrap_err();
        assert!(error.to_string().contains("connection lost"), "{error}");
        // It is as bad when it happens on the second reading.
        let next = bench.store.set(|state| {
            state.cut_off.clear();
            let next = state.lists.get(&kind).copied().unwrap_or(0) + 2;
            let cut_off = move |state: &mut crate::datastore::memory::State| {
                state.cut_off.insert(kind);
            };
            state.before_list.insert((kind, next), Box::new(cut_off));
            next
        });
        assert!(bench.look(901).await.is_err(), "{kind:?}, list {next}");
        assert_eq!(bench.writes(), Vec::<String>::new(), "{kind:?}");
        bench.store.set(|state| state.cut_off.clear());
        bench.look(902).await.unwrap();
        assert_eq!(held(&bench.store).get("gone"), None, "{kind:?}");
    }
}

#[tokio::test]
async fn who_leads_no_longer_stops_in_the_middle() {
    let count = AT_ONCE + 6;
    let store = cluster().await;
    for n in 0..count {
        take(&store, "n1", &format!("gone-{n}")).await;
    }
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    let leads = bench.leads.clone();
    // Two looks, and a reading before each lot.
    bench.store.set(|state| {
        let lose = move |_: &mut crate::datastore::memory::State| {
            leads.send_replace(false);
        };
        state.before_list.insert((Kind::Pod, 4), Box::new(lose));
    });
    bench.twice().await;
    let held = held(&bench.store);
    let left = held.keys().filter(|pod| pod.starts_with("gone-")).count();
    assert_eq!(left, 6, "{held:?}");
    assert_eq!(bench.reclaimed(Leftover::PodAddress), AT_ONCE as u64);
    assert_eq!(bench.candidates(Leftover::PodAddress), 6);
    // Not even the first lot by one who lost the lease before it.
    bench.writes();
    bench.look(1800).await.unwrap();
    assert_eq!(bench.writes(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_that_is_gone_leaves_no_address_no_block_and_no_claim() {
    let store = cluster().await;
    let lives = take(&store, "n1", "lives").await;
    store.set(|state| state.store(pod("lives", "n1", lives)));
    take(&store, "n2", "gone").await;
    store.set(|state| state.objects.remove(&Key::new(Kind::Node, "n2")));
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    // Seen, its addresses taken back, its claims taken back.
    for seconds in [0, 1, 2] {
        bench.look(seconds).await.unwrap();
    }
    let left = bench.store.set(|state| {
        let theirs = |key: &&Key| key.kind != Kind::Lease && key.name.contains("n2");
        state.objects.keys().filter(theirs).cloned().collect::<Vec<_>>()
    });
    assert_eq!(left, []);
    let blocks = bench.store.blocks();
    assert_eq!(blocks.len(), 1, "{blocks:?}");
    assert_eq!(held(&bench.store)["lives"], [lives]);
    assert_eq!(bench.reclaimed(Leftover::TunnelAddress), 1);
    assert_eq!(bench.reclaimed(Leftover::PodAddress), 1);
    assert_eq!(bench.reclaimed(Leftover::Claim), 1);
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let store = cluster().await;
    take(&store, "n1", "gone").await;
    let mut bench = Bench::new(store, CollectionMode::DryRun);
    bench.writes();
    bench.twice().await;
    assert_eq!(bench.writes(), Vec::<String>::new());
    let told: Vec<&str> = bench.collector.told.iter().map(String::as_str).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0].contains("release 10.0.0.") && told[0].ends_with("there is no pod shop/gone"),
        "{told:?}"
    );
    assert_eq!(bench.candidates(Leftover::PodAddress), 1);
    assert_eq!(bench.reclaimed(Leftover::PodAddress), 0);
}

#[tokio::test]
async fn where_nobody_tells_of_pods_the_living_keep_theirs_and_it_is_said_once() {
    let store = cluster().await;
    take(&store, "n1", "unseen").await;
    take(&store, "n2", "of-gone-node").await;
    store.set(|state| {
        state.knows_pods = false;
        state.objects.remove(&Key::new(Kind::Node, "n2"));
    });
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    bench.twice().await;
    let held = held(&bench.store);
    assert!(
        held.contains_key("unseen") && !held.contains_key("of-gone-node"),
        "{held:?}"
    );
    assert!(bench.collector.said_that_pods_are_not_told);
}

#[tokio::test]
async fn a_datastore_that_the_agent_does_not_believe_takes_nothing_from_anybody() {
    let store = cluster().await;
    take(&store, "n1", "gone").await;
    let mut bench = Bench::new(store, CollectionMode::Enabled);
    bench.look(0).await.unwrap();
    bench.writes();
    let mut status = in_sync();
    status.datastore.problem = Some("too much has vanished at once".to_owned());
    bench.status.send_replace(Arc::new(status));
    let error = bench.look(900).await.unwrap_err();
    assert_eq!(error.to_string(), "too much has vanished at once");
    bench.status.send_replace(Arc::new(AgentStatus::default()));
    assert!(bench.look(901).await.is_err(), "not in sync");
    assert_eq!(bench.writes(), Vec::<String>::new());
    bench.status.send_replace(Arc::new(in_sync()));
    bench.look(902).await.unwrap();
    assert_eq!(held(&bench.store).get("gone"), None);
}

#[tokio::test(start_paused = true)]
async fn of_two_agents_one_collects_and_the_other_takes_over_from_it() {
    let store = cluster().await;
    take(&store, "n1", "gone").await;
    let (_status, status) = watch::channel(Arc::new(in_sync()));
    let terms = Terms {
        mode: CollectionMode::Enabled,
        interval: Duration::from_secs(450),
        grace_seconds: GRACE,
    };
    let mut agents: Vec<_> = ["n1", "n2"]
        .map(|node| {
            let (metrics, stop) = (Metrics::register().unwrap(), CancellationToken::new());
            let task = start(
                store.clone(),
                node.to_owned(),
                terms,
                status.clone(),
                metrics.clone(),
                stop.clone(),
            );
            (metrics, stop, task)
        })
        .into();
    // The clock stands still but for those who wait: nobody waits for longer than a look's interval.
    let hour = Duration::from_secs(3600);
    sleep(hour).await;
    let leaders: Vec<i64> = agents.iter().map(|(m, ..)| m.ipam_gc_leader.get()).collect();
    assert_eq!(leaders.iter().sum::<i64>(), 1, "{leaders:?}");
    let first = leaders.iter().position(|leads| *leads == 1).unwrap();
    let (metrics, stop, task) = agents.remove(first);
    let reclaims = |metrics: &Metrics| metrics.ipam_gc_reclaims.with_label_values(&["pod_address"]).get();
    assert_eq!(reclaims(&metrics), 1);
    assert_eq!(agents[0].0.ipam_gc_looks.get(), 0, "only the leader looks");
    stop.cancel();
    task.await.unwrap();
    take(&store, "n1", "gone-too").await;
    sleep(hour).await;
    assert_eq!(agents[0].0.ipam_gc_leader.get(), 1);
    assert_eq!(reclaims(&agents[0].0), 1);
    assert_eq!(reclaims(&metrics), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_looks_once_it_has_read_the_datastore_and_soon_again_after_a_failure() {
    let (status, reader) = watch::channel(Arc::new(AgentStatus::default()));
    let terms = Terms {
        mode: CollectionMode::Enabled,
        interval: Duration::from_secs(450),
        grace_seconds: GRACE,
    };
    let (metrics, stop) = (Metrics::register().unwrap(), CancellationToken::new());
    let store = cluster().await;
    let task = start(
        store,
        "n1".to_owned(),
        terms,
        reader,
        metrics.clone(),
        stop.clone(),
    );
    let seen = || (metrics.ipam_gc_looks.get(), metrics.ipam_gc_failures.get());
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((metrics.ipam_gc_leader.get(), seen()), (1, (0, 0)));
    status.send_replace(Arc::new(in_sync()));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(seen(), (1, 0));
    let mut away = in_sync();
    away.datastore.problem = Some("away".to_owned());
    status.send_replace(Arc::new(away));
    sleep(Duration::from_secs(450)).await;
    assert_eq!(seen(), (1, 1));
    status.send_replace(Arc::new(in_sync()));
    sleep(RETRY).await;
    assert_eq!(seen(), (2, 1));
    stop.cancel();
    task.await.unwrap();
    assert_eq!(metrics.ipam_gc_leader.get(), 0);
}

#[tokio::test]
async fn pools_are_measured_and_those_that_fill_are_told_how_long_they_last() {
    let store = cluster().await;
    let mut bench = Bench::new(store, CollectionMode::Disabled);
    let metrics = bench.collector.metrics.clone();
    bench.look(0).await.unwrap();
    let text = metrics.encode().unwrap();
    let has = |text: &str, line: &str| text.lines().any(|l| l == line);
    assert!(
        has(&text, "culvert_ipam_pool_addresses{pool=\"p\"} 256"),
        "{text}"
    );
    assert!(
        has(&text, "culvert_ipam_pool_addresses_free{pool=\"p\"} 254"),
        "{text}"
    );
    assert!(!text.contains("culvert_ipam_pool_seconds_left{"), "{text}");
    take(&bench.store, "n1", "a").await;
    bench.look(100).await.unwrap();
    let text = metrics.encode().unwrap();
    // One in 100 s: the 253 that are left last 25300 s.
    assert!(
        has(&text, "culvert_ipam_pool_seconds_left{pool=\"p\"} 25300"),
        "{text}"
    );
    // More pools than are told of; and one that is gone is told of no longer.
    bench.store.set(|state| {
        state.objects.remove(&Key::new(Kind::IpPool, "p"));
        for n in 0..pools::POOLS_MAX + 5 {
            let pool: IpPool = ip_pool(&format!("p{n}"), &format!("10.1.{n}.0/24"), 26);
            state.store(Object::IpPool(pool));
        }
    });
    bench.look(200).await.unwrap();
    let text = metrics.encode().unwrap();
    assert!(!text.contains("pool=\"p\""), "{text}");
    let told = text
        .lines()
        .filter(|l| l.starts_with("culvert_ipam_pool_addresses_free{"));
    assert_eq!(told.count(), pools::POOLS_MAX);
    bench.collector.end();
    assert!(!metrics.encode().unwrap().contains("culvert_ipam_pool"));
}
