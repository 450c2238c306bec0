//! The allocator on a real store: what an address costs an API server, and that nothing is lost of what Calico wrote.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use culvert_agent::allocation::{Allocator, Assignment};
use culvert_agent::api::{BlockAffinity, Key, Kind, Object, Resource as _};
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore, DatastoreError};
use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::pool::{Family, Use};
use futures_util::{FutureExt as _, StreamExt as _};
use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::servers::{NODE, Server, Stores, Told, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] =
    [("an_address_costs_four_requests_however_large_the_cluster", cost)];

/// Claims of other nodes: three pages of a list.
const CLAIMS: u32 = 1_100;
/// Requests that are under way while the server is filled.
const AT_ONCE: usize = 16;

fn assignment(handle: &str) -> Assignment {
    Assignment::one(
        handle,
        BTreeMap::from([("pod".to_owned(), handle.to_owned())]),
        Use::Workload,
    )
}

/// The requests that the server has answered about our resources and Nodes, by verb and resource; watches are left out, which
/// are counted when they end.
fn answered(server: &ApiServer) -> Result<BTreeMap<String, u64>, Failed> {
    let metrics = server.kubectl(ADMIN, &["get", "--raw", "/metrics"], "")?;
    let mut counts = BTreeMap::new();
    for line in metrics.lines() {
        let Some((labels, count)) = line
            .strip_prefix("apiserver_request_total{")
            .and_then(|line| line.split_once("} "))
        else {
            continue;
        };
        let label = |name: &str| {
            let labels = labels.split_once(&format!("{name}=\""));
            labels
                .and_then(|(_, rest)| rest.split_once('"'))
                .map_or("", |(value, _)| value)
        };
        let (verb, resource) = (label("verb"), label("resource"));
        let is_ours = label("group") == "crd.projectcalico.org" || resource == "nodes";
        if is_ours && verb != "WATCH" {
            *counts.entry(format!("{verb} {resource}")).or_default() += count.parse::<u64>()?;
        }
    }
    Ok(counts)
}

/// What was answered since.
fn since(server: &ApiServer, before: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>, Failed> {
    let mut now = answered(server)?;
    for (what, count) in &mut now {
        *count -= before.get(what).copied().unwrap_or(0);
    }
    now.retain(|_, count| *count > 0);
    Ok(now)
}

/// Claims of many other nodes.
async fn fill(store: &KubernetesStore) -> Outcome {
    let claims = (0..CLAIMS).map(|number| -> Result<Object, Failed> {
        let (node, first) = (
            format!("other{number}"),
            Ipv4Addr::from(0x0a48_0000 + number * 64),
        );
        let cidr = format!("{first}/26").parse().map_err(Failed::from)?;
        let claim = Affinity {
            state: AffinityState::Confirmed,
            ..Affinity::pending(&node, cidr)
        };
        Ok(BlockAffinity::new(culvert_ipam::name::affinity(&node, cidr), claim).into_object())
    });
    let claims = claims.collect::<Result<Vec<_>, _>>()?;
    let mut writes = futures_util::stream::iter(claims.into_iter().map(|claim| store.create(claim)))
        .buffer_unordered(AT_ONCE);
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

fn cost(_: &Server) -> Outcome {
    const POOL: &str = r#"{"apiVersion":"crd.projectcalico.org/v1","kind":"IPPool","metadata":{"name":"p"},
        "spec":{"cidr":"10.71.0.0/24","blockSize":26}}"#;
    let server = start(&[])?;
    server.kubectl(ADMIN, &["apply", "-f", "-"], POOL)?;
    on_runtime(
        async {
            let access = Access::Kubeconfig(server.kubeconfig(ADMIN));
            let store = KubernetesStore::open(&access, NODE).await?;
            fill(&store).await?;
            let mut told = Told::in_sync(&store, "").await?;
            let node = Allocator::new(Arc::new(store), NODE.to_owned());
            let blocks = node.ensure_block(Family::V4).await?;
            told.until("the node's own block", |told| {
                let confirmed = |object: &Object| match object {
                    Object::BlockAffinity(claim) => claim.spec.is_confirmed_for(NODE),
                    _ => false,
                };
                let is_told = |key: &Key| key.kind == Kind::IpamBlock;
                told.state.values().any(confirmed) && told.state.keys().any(is_told)
            })
            .await?;

            let before = answered(&server)?;
            let first = node.assign(assignment("watched")).await?;
            let costs = since(&server, &before)?;
            println!("an address, with a watch: {costs:?}");
            // The two that are read are read at once.
            let expected = [
                "GET ipamblocks",
                "GET ipamhandles",
                "POST ipamhandles",
                "PUT ipamblocks",
            ];
            let expected = BTreeMap::from(expected.map(|what| (what.to_owned(), 1)));
            ensure(costs == expected, || format!("{costs:?}"))?;
            ensure(blocks.iter().any(|block| block.contains(&first[0])), || {
                format!("{first:?} of {blocks:?}")
            })?;

            let before = answered(&server)?;
            let released = node.release("watched").await?;
            let costs = since(&server, &before)?;
            println!("its release: {costs:?}");
            ensure(
                released == first && costs.keys().all(|what| !what.starts_with("LIST")),
                || format!("{costs:?}"),
            )?;

            // Without a watch everything has to be read.
            let unwatched = KubernetesStore::open(&access, NODE).await?;
            let unwatched = Allocator::new(Arc::new(unwatched), NODE.to_owned());
            let before = answered(&server)?;
            let second = unwatched.assign(assignment("unwatched")).await?;
            let costs = since(&server, &before)?;
            println!("an address, without one: {costs:?}");
            ensure(
                second != first && costs.get("LIST blockaffinities") == Some(&3),
                || format!("{costs:?}"),
            )
        }
        .boxed_local(),
    )
}

/// Beyond what a float holds.
const NUMBER: u64 = 9_007_199_254_740_993;

/// A block of Calico's, a claim to it, and their pool.
fn golden() -> [Value; 3] {
    let metadata = |name: &str| json!({"name": name, "labels": {"theirs": "1"}, "annotations": {"projectcalico.org/metadata": "{}"}});
    let block = json!({
        "metadata": metadata("10-72-0-64-29"),
        "spec": {
            "cidr": "10.72.0.64/29", "affinity": "host:golden", "allocations": [0, 0, 0, 1, null, null, null, 0],
            "unallocated": [6, 5, 4],
            "attributes": [
                {"handle_id": "windows-reserved-ipam-handle", "secondary": {"note": "windows host rsvd"}},
                {"handle_id": "k8s-pod-network.5e", "secondary": {"node": "golden", "pod": "w"}, "alternateOwnerAttrs": {"pod": "v"}},
            ],
            "sequenceNumber": NUMBER, "sequenceNumberForAllocation": {"3": NUMBER - 2}, "deleted": false, "strictAffinity": true,
            "newer": {"deep": [1, {"er": true}]},
        },
    });
    // A row of an older version: it has no type.
    let claim = json!({
        "metadata": metadata("golden-10-72-0-64-29"),
        "spec": {"cidr": "10.72.0.64/29", "node": "golden", "state": "confirmed", "deleted": "false", "newer": [1]},
    });
    let pool = json!({"metadata": {"name": "golden"}, "spec": {"cidr": "10.72.0.0/24", "blockSize": 29}});
    [block, claim, pool]
}

/// The allocator takes and gives back an address in objects as Calico writes them: whatever else they say stays as it was.
pub(crate) async fn worked_on(stores: Stores) -> Outcome {
    let [block, claim, pool] = golden();
    let store = stores.open().await?;
    for (kind, body) in [
        (Kind::IpPool, &pool),
        (Kind::IpamBlock, &block),
        (Kind::BlockAffinity, &claim),
    ] {
        store.create(Object::deserialize(kind, body.clone())?).await?;
    }
    let node = Allocator::new(Arc::clone(&store), "golden".to_owned());
    let addresses = node.assign(assignment("golden-new")).await?;
    ensure(addresses == [IpAddr::from([10, 72, 0, 70])], || {
        format!("{addresses:?}")
    })?;
    let mut expected = block.clone();
    let spec = &mut expected["spec"];
    spec["allocations"][6] = json!(2);
    spec["unallocated"] = json!([5, 4]);
    spec["sequenceNumber"] = json!(NUMBER + 1);
    spec["sequenceNumberForAllocation"]["6"] = json!(NUMBER);
    let attributes = spec["attributes"].as_array_mut().ok_or("no list")?;
    attributes.push(json!({"handle_id": "golden-new", "secondary": {"node": "golden", "pod": "golden-new"}}));
    holds(&*store, Kind::IpamBlock, &expected).await?;
    holds(&*store, Kind::BlockAffinity, &claim).await?;

    node.release("golden-new").await?;
    let mut expected = block;
    expected["spec"]["unallocated"] = json!([5, 4, 6]);
    expected["spec"]["sequenceNumber"] = json!(NUMBER + 2);
    let block = holds(&*store, Kind::IpamBlock, &expected).await?;
    let claim = holds(&*store, Kind::BlockAffinity, &claim).await?;
    let pool = store
        .get(&Key::new(Kind::IpPool, "golden"))
        .await?
        .ok_or("no pool")?;
    for object in [block, claim, pool] {
        store
            .delete(&object.key(), &crate::contract::revision(&object))
            .await?;
    }
    Ok(())
}

/// Whether the object of this name says what is expected, and nothing else but what a store writes beside it.
async fn holds(store: &dyn Datastore, kind: Kind, expected: &Value) -> Result<Object, Failed> {
    let name = expected["metadata"]["name"].as_str().unwrap_or_default();
    let key = Key::new(kind, name);
    let object = store
        .get(&key)
        .await?
        .ok_or_else(|| DatastoreError::NotFound { key: key.clone() })?;
    let found = serde_json::to_value(&object)?;
    for place in ["/spec", "/metadata/annotations", "/metadata/labels/theirs"] {
        ensure(found.pointer(place) == expected.pointer(place), || {
            format!(
                "{key}: {place} is {:?}, not {:?}",
                found.pointer(place),
                expected.pointer(place)
            )
        })?;
    }
    Ok(object)
}
