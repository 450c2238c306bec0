//! What annotations and namespaces ask for, as the agent reads it from a real API server with the chart's own permissions.

use std::sync::Arc;

use culvert_agent::allocation::Allocator;
use culvert_agent::cni::{AddRequest, Attachments, Pod};
use culvert_agent::datastore::Datastore;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::status::{AgentStatus, DatastoreStatus};
use futures_util::FutureExt as _;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::json;
use tokio::sync::watch;

use crate::chart::permit;
use crate::servers::{NODE, SERVICE_ACCOUNT, Server, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [(
    "pods_get_addresses_as_annotations_and_namespaces_ask",
    annotated,
)];

/// Two pools, the second for the namespaces of one tenant; and pods that ask for something, or for nothing.
const OBJECTS: &str = r#"
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: everybodys}
spec: {cidr: 10.73.0.0/24, blockSize: 28, nodeSelector: all()}
---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: a-tenants}
spec: {cidr: 10.74.0.0/24, blockSize: 28, nodeSelector: all(), namespaceSelector: tenant == 'blue'}
---
apiVersion: v1
kind: Namespace
metadata: {name: blue, labels: {tenant: blue}}
---
apiVersion: v1
kind: Namespace
metadata: {name: pooled, annotations: {cni.projectcalico.org/ipv4pools: '["a-tenants"]'}}
"#;

fn annotated(_: &Server) -> Outcome {
    let server = start(&[])?;
    permit(&server)?;
    server.kubectl(ADMIN, &["apply", "-f", "-"], OBJECTS)?;
    let pod = |namespace: &str, name: &str, annotations: serde_json::Value| -> Result<AddRequest, Failed> {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        server.kubectl(ADMIN, &["apply", "-f", "-"], &pod.to_string())?;
        Ok(AddRequest {
            network: "k8s-pod-network".parse()?,
            container_id: format!("container-{name}").parse()?,
            pod: Some(Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
        })
    };
    let addresses = "cni.projectcalico.org/ipAddrs";
    let plain = pod("default", "plain", json!({}))?;
    let tenants = pod("blue", "tenants", json!({}))?;
    let pooled = pod("pooled", "pooled", json!({}))?;
    let named = pod("default", "named", json!({addresses: "[\"10.73.0.200\"]"}))?;
    let taken = pod("default", "taken", json!({addresses: "[\"10.73.0.200\"]"}))?;
    let elsewhere = pod("default", "elsewhere", json!({addresses: "[\"192.0.2.1\"]"}))?;
    let access = Access::Kubeconfig(server.kubeconfig(SERVICE_ACCOUNT));
    on_runtime(
        async move {
            let store: Arc<dyn Datastore> = Arc::new(KubernetesStore::open(&access, NODE).await?);
            let (_, status) = watch::channel(Arc::new(AgentStatus {
                node: NODE.to_owned(),
                datastore: DatastoreStatus {
                    in_sync: true,
                    problem: None,
                },
                pod_mtu: 1480,
                ..AgentStatus::default()
            }));
            let allocator = Allocator::new(Arc::clone(&store), NODE.to_owned());
            let attachments = Attachments::new(Arc::new(allocator), store, status);
            for (request, begins) in [
                (plain, "10.73.0."),
                (tenants, "10.74.0."),
                (pooled, "10.74.0."),
                (named, "10.73.0.200"),
            ] {
                let shown = format!("{:?}", request.pod);
                let granted = attachments.add(request).await;
                let granted = granted.map_err(|problem| format!("{shown}: {}", problem.reason))?;
                ensure(granted.address.to_string().starts_with(begins), || {
                    format!("{shown} got {}, expected {begins}", granted.address)
                })?;
            }
            for (request, words) in [
                (taken, ["default/taken", "pod default/named", "10.73.0.200"]),
                (elsewhere, ["192.0.2.1", "a-tenants (10.74.0.0/24", "everybodys (10.73.0.0/24"]),
            ] {
                let problem = attachments.add(request).await.err().ok_or("it got what it may not")?;
                for word in words {
                    ensure(!problem.retry && problem.reason.contains(word), || {
                        format!("{problem:?} does not say {word}")
                    })?;
                }
            }
            Ok(())
        }
        .boxed_local(),
    )
}
