//! What a watch of a large cluster costs in memory: measured in a process of its own, which holds what an agent holds.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Instant;

use culvert_agent::api::{BlockAffinity, Kind, Node, Object, Resource as _};
use culvert_agent::cluster::Cluster;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore as _, Update, last_good};
use culvert_agent::withdrawal::Withdrawals;
use futures_util::{FutureExt as _, StreamExt as _};
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::json;

use crate::servers::{NODE, Server, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [("the_memory_of_a_watch_is_bounded", bounded)];

/// Set in the child: the kubeconfig.
const CHILD: &str = "CULVERT_SCALE_CHILD";
/// Set to measure a whole large cluster, which takes minutes to fill.
const WHOLE: &str = "CULVERT_SCALE_WHOLE";
/// Nodes of a large cluster; twice as many blocks.
const NODES: usize = 10_000;
/// Most that a process may need for it, in bytes.
const MOST: usize = 60 << 20;
/// What any process with a connection to the server needs, in bytes.
const BASE: usize = 24 << 20;
/// The released program, with the C library, if all of it were in memory, in bytes. That of the tests is larger, and counts
/// as this.
const PROGRAM: usize = 12 << 20;
/// How many requests are under way while the server is filled.
const AT_ONCE: usize = 16;

/// The name of a node.
pub(crate) fn name(number: usize) -> String {
    format!(
        "ip-10-{}-{}.eu-central-1.compute.internal",
        number / 250,
        number % 250
    )
}

/// A node as a cloud's cluster has it.
pub(crate) fn node(number: usize) -> Object {
    let mut node = Node::named(name(number));
    let labels = [
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "kubernetes.io/hostname",
        "node.kubernetes.io/instance-type",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    ];
    for label in labels {
        node.metadata
            .labels
            .insert(label.to_owned(), format!("value-of-it-{}", number % 7));
    }
    let annotations = &mut node.metadata.annotations;
    annotations.insert(
        "projectcalico.org/IPv4Address".to_owned(),
        format!("10.{}.{}.9/20", number / 250, number % 250),
    );
    annotations.insert("node.alpha.kubernetes.io/ttl".to_owned(), "0".to_owned());
    annotations.insert(
        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
        "true".to_owned(),
    );
    let images: Vec<_> = (0..20)
        .map(|n| json!({"names": [format!("registry.invalid/project/image-{n}@sha256:{n:064}")], "sizeBytes": 123_456_789}))
        .collect();
    let unknown = &mut node.status.unknown;
    unknown.insert("images".to_owned(), json!(images));
    unknown.insert(
        "capacity".to_owned(),
        json!({"cpu": "8", "memory": "32Gi", "pods": "110"}),
    );
    node.into_object()
}

fn affinity(number: usize) -> Result<Object, Failed> {
    let node = name(number / 2);
    let address = std::net::Ipv4Addr::from(0x0a40_0000 + u32::try_from(number)? * 64);
    let cidr = format!("{address}/26").parse().map_err(Failed::from)?;
    let mut affinity = culvert_ipam::affinity::Affinity::pending(&node, cidr);
    affinity.state = culvert_ipam::affinity::AffinityState::Confirmed;
    let name = format!("{node}-{}", culvert_ipam::name::block(cidr));
    Ok(BlockAffinity::new(name, affinity).into_object())
}

fn bounded(_: &Server) -> Outcome {
    let share = if std::env::var_os(WHOLE).is_some() { 1 } else { 20 };
    let nodes = NODES / share;
    // A bigger page of its log than it needs, and room for many requests at once.
    let server = start(&["--max-mutating-requests-inflight=400"])?;
    let kubeconfig = server.kubeconfig(ADMIN);
    let began = Instant::now();
    on_runtime(
        async {
            let store = KubernetesStore::open(&Access::Kubeconfig(kubeconfig.clone()), NODE).await?;
            let objects = (0..nodes).map(node).map(Ok).chain((0..2 * nodes).map(affinity));
            let objects = objects.collect::<Result<Vec<_>, Failed>>()?;
            let mut writes =
                futures_util::stream::iter(objects.into_iter().map(|object| store.create(object)))
                    .buffer_unordered(AT_ONCE);
            while let Some(written) = writes.next().await {
                written?;
            }
            Ok(())
        }
        .boxed_local(),
    )?;
    println!(
        "{nodes} nodes and {} blocks written in {:?}",
        2 * nodes,
        began.elapsed()
    );
    let child = Command::new(std::env::current_exe()?)
        .env(CHILD, &kubeconfig)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&child.stdout);
    let complaint = || format!("{said}\n{}", String::from_utf8_lossy(&child.stderr));
    let mut words = said
        .split_whitespace()
        .filter_map(|word| word.parse::<usize>().ok());
    let (Some(found), Some(blocks), Some(peak), Some(now), Some(program)) = (
        words.next(),
        words.next(),
        words.next(),
        words.next(),
        words.next(),
    ) else {
        return Err(complaint().into());
    };
    println!(
        "{found} nodes, {blocks} blocks: {} KiB at most, {} KiB at the end, {} of them the program itself",
        peak >> 10,
        now >> 10,
        program >> 10
    );
    ensure(found == nodes && blocks == 2 * nodes, complaint)?;
    let most = BASE + (MOST - BASE) / share;
    let needed = peak - program + PROGRAM;
    ensure(needed < most, || {
        format!("{} KiB, more than {} KiB", needed >> 10, most >> 10)
    })
}

/// The child's part, if this is one: watches, holds what an agent holds, and says how much memory that took.
pub(crate) fn child() -> Option<Outcome> {
    let kubeconfig = std::env::var_os(CHILD)?;
    Some(on_runtime(
        async move {
            let store = KubernetesStore::open(&Access::Kubeconfig(kubeconfig.into()), NODE).await?;
            let mut updates = store.watch()?;
            let mut cluster = Cluster::default();
            let mut copy = Withdrawals::new(50, []);
            let mut counts = BTreeMap::new();
            loop {
                match updates.recv().await {
                    Some(Update::Upsert(object)) => {
                        *counts.entry(object.key().kind).or_insert(0_usize) += 1;
                        cluster.upsert(&object);
                        if let Some(kept) = last_good::kept(&object, NODE) {
                            copy.upsert(&kept, Instant::now());
                        }
                    }
                    Some(Update::InSync) => break,
                    Some(_) => {}
                    None => return Err("the watch has ended".into()),
                }
            }
            let count = |kind| counts.get(&kind).copied().unwrap_or(0);
            println!(
                "{} {} {} {} {}",
                count(Kind::Node),
                count(Kind::BlockAffinity),
                memory("VmHWM:")?,
                memory("VmRSS:")?,
                memory("RssFile:")?
            );
            // Held until here.
            ensure(cluster.nodes().count() <= copy.records().count(), || {
                "the copy is not whole".to_owned()
            })
        }
        .boxed_local(),
    ))
}

/// A line of /proc/self/status, in bytes.
fn memory(line: &str) -> Result<usize, Failed> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kilobytes = status
        .lines()
        .find_map(|text| text.strip_prefix(line))
        .ok_or("no such line")?;
    Ok(kilobytes.trim().trim_end_matches(" kB").parse::<usize>()? << 10)
}
