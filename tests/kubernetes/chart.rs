//! The chart's own permissions, on a server that enforces them: all that is needed is there, and nothing else.

use std::path::Path;
use std::sync::Arc;

use culvert_agent::api::{BlockAffinity, Key, Kind, Object, Resource as _};
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore, DatastoreError};
use culvert_agent::{collector, leader};
use futures_util::FutureExt as _;
use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::contract::revision;
use crate::servers::{LIMIT, NODE, SERVICE_ACCOUNT, Server, Told};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 4] = [
    (
        "with_the_charts_permissions_nothing_that_is_needed_is_forbidden",
        needed,
    ),
    (
        "with_the_charts_permissions_nothing_else_is_allowed",
        nothing_else,
    ),
    (
        "where_the_endpoints_of_services_are_is_read_by_the_version_that_the_server_has",
        endpoints,
    ),
    ("of_a_node_object_only_what_is_ours_is_touched", node_object),
];

/// Secrets that the agent may read.
const PASSWORDS: &str = "[\"bgp-passwords\"]";

/// Applies the chart's permissions of the agents, with what Helm would fill in.
pub(crate) fn permit(server: &ApiServer) -> Outcome {
    apply(server, "rbac.yaml", PASSWORDS)
}

/// Applies the chart's roles for operators, and gives them to this user.
pub(crate) fn permit_operator(server: &ApiServer, user: &str) -> Outcome {
    let subjects = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]);
    apply(server, "operator.yaml", &subjects.to_string())
}

/// Applies a template that needs no more of Helm than the namespace, and one value in one place.
fn apply(server: &ApiServer, template: &str, value: &str) -> Outcome {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert/templates");
    let text = std::fs::read_to_string(folder.join(template))?;
    let rendered: String = text
        .lines()
        .filter(|line| !line.starts_with("{{-") && !line.contains("culvert.labels"))
        .map(|line| {
            let line = line.replace("{{ .Release.Namespace }}", "kube-system");
            let line = line.replace("{{ $.Release.Namespace }}", "kube-system");
            let line = line.replace("{{- toYaml . | nindent 2 }}", value);
            line.replace("{{ toJson . }}", value) + "\n"
        })
        .collect();
    ensure(!rendered.contains("{{"), || format!("not rendered: {rendered}"))?;
    server.kubectl(ADMIN, &["apply", "-f", "-"], &rendered)?;
    Ok(())
}

fn node(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"theirs": "1"}, "annotations": {"theirs": "1"}},
        "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "172.18.0.11"}],
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "KubeletReady"},
                {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
            ],
        },
    })
    .to_string()
}

async fn store(server: &ApiServer) -> Result<KubernetesStore, Failed> {
    let access = Access::Kubeconfig(server.kubeconfig(SERVICE_ACCOUNT));
    Ok(KubernetesStore::open(&access, NODE).await?)
}

fn needed(server: &Server) -> Outcome {
    server.with(|server| {
        permit(server)?;
        server.kubectl(ADMIN, &["apply", "-f", "-"], &node(NODE))?;
        on_runtime(
            async move {
                let store = store(server).await?;
                // Everything that is watched, and what is listed for the collection of garbage.
                let told = Told::in_sync(&store, "").await?;
                ensure(told.problem.is_none(), || format!("{:?}", told.problem))?;
                for kind in Kind::ALL {
                    // What is read by name only.
                    if !matches!(kind, Kind::Secret | Kind::Lease | Kind::EndpointSlice) {
                        store.list(kind).await?;
                    }
                }
                store.annotate(&Key::new(Kind::Node, NODE), &[("a".to_owned(), Some("b".to_owned()))].into()).await?;
                store.network_available(NODE).await?;
                let cidr = "10.68.0.0/30".parse().map_err(Failed::from)?;
                let claim = culvert_ipam::affinity::Affinity::pending(NODE, cidr);
                let claim = BlockAffinity::new("rbac", claim).into_object();
                let block = json!({"metadata": {"name": "rbac"}, "spec": {"cidr": "10.68.0.0/30", "affinity": "host:node1",
                    "allocations": [], "unallocated": [], "attributes": [], "strictAffinity": false}});
                let handle = json!({"metadata": {"name": "rbac"}, "spec": {"handleID": "rbac", "block": {}}});
                let block = Object::deserialize(Kind::IpamBlock, block)?;
                let handle = Object::deserialize(Kind::IpamHandle, handle)?;
                for object in [claim, block, handle] {
                    let created = store.create(object).await?;
                    let updated = store.update(created).await?;
                    store.delete(&updated.key(), &revision(&updated)).await?;
                }
                let stop = CancellationToken::new();
                let store: Arc<dyn Datastore> = Arc::new(store);
                let candidacy = leader::stand(Arc::clone(&store), collector::LEASE, NODE, leader::LOOK, stop.clone());
                timeout(LIMIT, candidacy.is_leader().wait_for(|leads| *leads)).await??;
                stop.cancel();
                candidacy.ended().await;
                let lease = server.kubectl(ADMIN, &["-n", "kube-system", "get", "lease", "culvert-ipam-gc", "-o", "json"], "")?;
                let lease: Value = serde_json::from_str(&lease)?;
                ensure(lease["spec"]["holderIdentity"] == "" && lease["spec"]["renewTime"].is_string(), || lease.to_string())?;
                let secret = r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"bgp-passwords","namespace":"kube-system"}}"#;
                server.kubectl(ADMIN, &["apply", "-f", "-"], secret)?;
                let secret = store.get(&Key::namespaced(Kind::Secret, Some("kube-system"), "bgp-passwords")).await?;
                ensure(secret.is_some(), || "the Secret in the list is not read".to_owned())
            }
            .boxed_local(),
        )
    })?
}

/// A slice of endpoints on this node, by the version that this server has.
fn slice(server: &ApiServer, ready: bool) -> Result<String, Failed> {
    let group = server.kubectl(ADMIN, &["get", "--raw", "/apis/discovery.k8s.io"], "")?;
    let version = if group.contains("discovery.k8s.io/v1\"") {
        "v1"
    } else {
        "v1beta1"
    };
    let mut endpoint = json!({"addresses": ["10.68.0.9"], "conditions": {"ready": ready}});
    if version == "v1" {
        endpoint["nodeName"] = NODE.into();
    } else {
        // As the controller of 1.20 writes it.
        endpoint["topology"] = json!({"kubernetes.io/hostname": NODE});
    }
    Ok(json!({
        "apiVersion": format!("discovery.k8s.io/{version}"), "kind": "EndpointSlice", "addressType": "IPv4", "ports": [],
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [endpoint],
    })
    .to_string())
}

fn endpoints(server: &Server) -> Outcome {
    server.with(|server| {
        permit(server)?;
        let bgp = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "BGPConfiguration", "metadata": {"name": "default"},
            "spec": {"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]}});
        server.kubectl(ADMIN, &["apply", "-f", "-"], &slice(server, true)?)?;
        let done = on_runtime(
            async move {
                let store = store(server).await?;
                let mut told = Told::in_sync(&store, "").await?;
                // Only now are they asked for.
                server.kubectl(ADMIN, &["apply", "-f", "-"], &bgp.to_string())?;
                let ready = |told: &Told| {
                    told.state.values().find_map(|object| match object {
                        Object::EndpointSlice(slice) => {
                            let endpoint = slice.endpoints.first()?;
                            let here = endpoint.node_name.as_deref() == Some(NODE);
                            endpoint.conditions.ready.filter(|_| here)
                        }
                        _ => None,
                    })
                };
                told.until("the slice, on this node", |told| ready(told) == Some(true)).await?;
                server.kubectl(ADMIN, &["apply", "-f", "-"], &slice(server, false)?)?;
                told.until("its change", |told| ready(told) == Some(false)).await?;
                server.kubectl(ADMIN, &["-n", "default", "delete", "endpointslice", "web-1"], "")?;
                told.until("its end", |told| ready(told).is_none()).await?;
                ensure(told.problem.is_none(), || format!("{:?}", told.problem))
            }
            .boxed_local(),
        );
        server.kubectl(ADMIN, &["delete", "bgpconfigurations.crd.projectcalico.org", "default"], "")?;
        done
    })?
}

fn nothing_else(server: &Server) -> Outcome {
    const POD: &str = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"somebodys","namespace":"default"},
        "spec":{"containers":[{"name":"c","image":"i"}]}}"#;
    server.with(|server| {
        permit(server)?;
        server.kubectl(ADMIN, &["apply", "-f", "-"], POD)?;
        server.kubectl(ADMIN, &["apply", "-f", "-"], &node("somebodys"))?;
        on_runtime(
            async move {
                let store = store(server).await?;
                let pod = Key::namespaced(Kind::Pod, Some("default"), "somebodys");
                let found = store.get(&pod).await?.ok_or("the pod is not seen")?;
                let node = Key::new(Kind::Node, "somebodys");
                let found_node = store.get(&node).await?.ok_or("the node is not seen")?;
                let secret = |name: &str| Key::namespaced(Kind::Secret, Some("kube-system"), name);
                let refused = [
                    store.delete(&pod, &revision(&found)).await.err(),
                    store.update(found).await.err(),
                    store.delete(&node, &revision(&found_node)).await.err(),
                    store.update(found_node).await.err(),
                    store.get(&secret("other")).await.err(),
                    store.list(Kind::Secret).await.err(),
                    store.get(&Key::namespaced(Kind::Lease, Some("kube-system"), "other")).await.err(),
                    store.create(crate::contract::pool("rbac")).await.err(),
                ];
                for (nth, error) in refused.into_iter().enumerate() {
                    let forbidden = matches!(&error, Some(DatastoreError::Refused { said, .. }) if said.starts_with("403"));
                    ensure(forbidden, || format!("attempt {nth}: {error:?}"))?;
                }
                Ok(())
            }
            .boxed_local(),
        )?;
        server.kubectl(ADMIN, &["delete", "--wait=false", "pod", "somebodys"], "")?;
        server.kubectl(ADMIN, &["delete", "node", "somebodys"], "")?;
        Ok(())
    })?
}

fn node_object(server: &Server) -> Outcome {
    server.with(|server| {
        permit(server)?;
        server.kubectl(ADMIN, &["apply", "-f", "-"], &node("annotated"))?;
        let shown = |server: &ApiServer| -> Result<Value, Failed> {
            Ok(serde_json::from_str(&server.kubectl(
                ADMIN,
                &["get", "node", "annotated", "-o", "json"],
                "",
            )?)?)
        };
        let before = shown(server)?;
        on_runtime(
            async move {
                let store: Arc<dyn Datastore> = Arc::new(store(server).await?);
                let announcement = culvert_agent::node::Announcement {
                    address: "172.18.0.11/24".parse().ok(),
                    address_v6: None,
                    as_number: None,
                    tunnel_address: "10.65.0.1".parse().ok(),
                };
                let missing = culvert_agent::node::Missing::Create;
                culvert_agent::node::publish(&store, "annotated", &announcement, missing).await?;
                store.network_available("annotated").await?;
                // A Node is never made.
                let error = culvert_agent::node::publish(&store, "absent", &announcement, missing)
                    .await
                    .err();
                ensure(matches!(error, Some(DatastoreError::NoNode { .. })), || {
                    format!("{error:?}")
                })
            }
            .boxed_local(),
        )?;
        only_ours(&before, shown(server)?)?;
        server.kubectl(ADMIN, &["delete", "node", "annotated"], "")?;
        Ok(())
    })?
}

/// Whether of two states of a Node only what is ours differs.
fn only_ours(before: &Value, mut after: Value) -> Outcome {
    let annotations = &mut after["metadata"]["annotations"];
    let ours = [
        ("projectcalico.org/IPv4Address", "172.18.0.11/24"),
        ("projectcalico.org/IPv4IPIPTunnelAddr", "10.65.0.1"),
    ];
    for (name, value) in ours {
        let found = annotations.as_object_mut().and_then(|all| all.remove(name));
        ensure(found == Some(json!(value)), || format!("{name}: {found:?}"))?;
    }
    let conditions = after["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let network = conditions
        .iter()
        .find(|condition| condition["type"] == "NetworkUnavailable");
    ensure(
        network.is_some_and(|c| c["status"] == "False" && c["reason"] == "CulvertIsUp"),
        || format!("{conditions:?}"),
    )?;
    let others = |value: &Value| {
        let all = value["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.into_iter()
            .filter(|c| c["type"] != "NetworkUnavailable")
            .collect::<Vec<_>>()
    };
    ensure(others(&after) == others(before), || format!("{after}"))?;
    for part in [
        "/metadata/labels",
        "/metadata/annotations",
        "/spec",
        "/status/addresses",
    ] {
        ensure(after.pointer(part) == before.pointer(part), || {
            format!("{part}: {after}")
        })?;
    }
    Ok(())
}
