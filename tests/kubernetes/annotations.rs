//! What annotations and namespaces ask for, as the agent reads it from a real API server with the chart's own permissions.

use std::sync::Arc;

use culvert_agent::allocation::Allocator;
use culvert_agent::cni::{AddRequest, Attachments, Pod};
use culvert_agent::datastore::Datastore;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::status::{AgentStatus, DatastoreStatus};
use futures_util::FutureExt as _;
use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::chart::permit;
use crate::servers::{NODE, SERVICE_ACCOUNT, Server, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] =
    [("pods_get_addresses_as_annotations_and_namespaces_ask", annotated)];

/// Two pools, the second for the namespaces of one tenant, the first for all others; and pods that ask for something, or for nothing.
const OBJECTS: &str = r#"
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: everybodys}
spec: {cidr: 10.73.0.0/24, blockSize: 28, nodeSelector: all(), namespaceSelector: '!has(tenant)'}
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

/// Makes a pod with these annotations, and what its node's plugin asks for it.
fn pod(server: &ApiServer, namespace: &str, name: &str, annotations: &Value) -> Result<AddRequest, Failed> {
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
}

async fn attachments(access: &Access) -> Result<Attachments, Failed> {
    let store: Arc<dyn Datastore> = Arc::new(KubernetesStore::open(access, NODE).await?);
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
    Ok(Attachments::new(Arc::new(allocator), store, status))
}

fn annotated(_: &Server) -> Outcome {
    let server = start(&[])?;
    permit(&server)?;
    server.kubectl(ADMIN, &["apply", "-f", "-"], OBJECTS)?;
    let address = |address: &str| json!({"cni.projectcalico.org/ipAddrs": format!("[{address:?}]")});
    let granted = [
        (pod(&server, "default", "plain", &json!({}))?, "10.73.0."),
        (pod(&server, "blue", "tenants", &json!({}))?, "10.74.0."),
        (pod(&server, "pooled", "pooled", &json!({}))?, "10.74.0."),
        (
            pod(&server, "default", "named", &address("10.73.0.200"))?,
            "10.73.0.200",
        ),
    ];
    let refused = [
        (
            pod(&server, "default", "taken", &address("10.73.0.200"))?,
            ["default/taken", "pod default/named", "10.73.0.200"],
        ),
        (
            pod(&server, "default", "elsewhere", &address("192.0.2.1"))?,
            ["192.0.2.1", "a-tenants (10.74.0.0/24", "everybodys (10.73.0.0/24"],
        ),
    ];
    let access = Access::Kubeconfig(server.kubeconfig(SERVICE_ACCOUNT));
    on_runtime(
        async move {
            let attachments = attachments(&access).await?;
            for (request, begins) in granted {
                let shown = format!("{:?}", request.pod);
                let granted = attachments.add(request).await;
                let granted = granted.map_err(|problem| format!("{shown}: {}", problem.reason))?;
                ensure(granted.address.to_string().starts_with(begins), || {
                    format!("{shown} got {}, expected {begins}", granted.address)
                })?;
            }
            for (request, words) in refused {
                let problem = attachments.add(request).await.err();
                let problem = problem.ok_or("it got what it may not")?;
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
