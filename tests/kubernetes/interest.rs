//! The single objects that a node's watch tells of besides whole kinds: blocks of others in which the node has an address, and
//! the Secrets with passwords.

use culvert_agent::api::{Key, Kind, Object};
use culvert_agent::cluster::Cluster;
use culvert_agent::datastore::Datastore as _;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use futures_util::FutureExt as _;
use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::chart::permit;
use crate::servers::{NODE, SERVICE_ACCOUNT, Server, Told};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 2] = [
    ("a_node_learns_of_its_addresses_in_the_blocks_of_others", borrowed),
    ("passwords_are_read_by_name_and_again_when_they_change", passwords),
];

/// A block of another node; `ours` of its addresses are of a pod on this node.
fn block(cidr: &str, ours: Option<usize>) -> Result<Object, Failed> {
    let name = cidr.replace(['.', '/'], "-");
    let mut allocations = vec![Value::Null; 4];
    let mut free: Vec<usize> = (0..4).collect();
    if let Some(ordinal) = ours {
        allocations[ordinal] = json!(0);
        free.remove(ordinal);
    }
    let attributes = ours
        .map(|_| json!({"handle_id": "h", "secondary": {"node": NODE, "pod": "p", "namespace": "default"}}));
    let body = json!({
        "metadata": {"name": name},
        "spec": {"cidr": cidr, "affinity": "host:another", "allocations": allocations, "unallocated": free,
            "attributes": Vec::from_iter(attributes), "sequenceNumber": 1_785_578_400_000_000_001_u64,
            "strictAffinity": false},
    });
    Ok(Object::deserialize(Kind::IpamBlock, body)?)
}

/// The same block with what another one says, in its next write.
fn says(there: &Object, other: Object) -> Result<Object, Failed> {
    let (Object::IpamBlock(there), Object::IpamBlock(mut other)) = (there, other) else {
        return Err("no blocks".into());
    };
    other.metadata = there.metadata.clone();
    other.spec.sequence_number = there.spec.sequence_number + 1;
    Ok(Object::IpamBlock(other))
}

/// A pod on this node that has this address.
fn run_pod(server: &ApiServer, name: &str, address: &str) -> Outcome {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "i"}]},
    });
    server.kubectl(ADMIN, &["create", "-f", "-"], &pod.to_string())?;
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    let mut pod: Value = serde_json::from_str(&server.kubectl(ADMIN, &["get", "--raw", &path], "")?)?;
    pod["status"]["phase"] = json!("Running");
    pod["status"]["podIP"] = json!(address);
    pod["status"]["podIPs"] = json!([{"ip": address}]);
    server.kubectl(
        ADMIN,
        &["replace", "--raw", &format!("{path}/status"), "-f", "-"],
        &pod.to_string(),
    )?;
    Ok(())
}

fn borrowed_addresses(told: &Told) -> Vec<String> {
    let mut cluster = Cluster::default();
    for object in told.state.values() {
        cluster.upsert(object);
    }
    cluster
        .borrowed_by(NODE)
        .map(|address| address.to_string())
        .collect()
}

fn borrowed(server: &Server) -> Outcome {
    const POOL: &str = r#"{"apiVersion":"crd.projectcalico.org/v1","kind":"IPPool","metadata":{"name":"borrowed"},
        "spec":{"cidr":"10.69.0.0/16","blockSize":30}}"#;
    server.with(|server| {
        server.kubectl(ADMIN, &["apply", "-f", "-"], POOL)?;
        run_pod(server, "borrower", "10.69.0.1")?;
        on_runtime(
            async move {
                let access = Access::Kubeconfig(server.kubeconfig(ADMIN));
                let store = KubernetesStore::open(&access, NODE).await?;
                let other = KubernetesStore::open(&access, "another").await?;
                let first = other.create(block("10.69.0.0/30", Some(1))?).await?;
                let second = other.create(block("10.69.0.4/30", None)?).await?;

                // As after a restart: the pod's address says in which block to look, before anything is planned.
                let mut told = Told::in_sync(&store, "10-69-").await?;
                ensure(borrowed_addresses(&told) == ["10.69.0.1"], || {
                    format!("{:?}", told.state)
                })?;
                ensure(!told.state.contains_key(&second.key()), || {
                    format!("{:?}", told.state)
                })?;

                // What this agent takes itself it knows before anybody has written it into a pod.
                let second = store
                    .update(says(&second, block("10.69.0.4/30", Some(2))?)?)
                    .await?;
                told.until("the block that was borrowed from", |told| {
                    borrowed_addresses(told) == ["10.69.0.1", "10.69.0.6"]
                })
                .await?;

                // Nothing is left in the one, and the pod in the other is gone.
                let second = other.update(says(&second, block("10.69.0.4/30", None)?)?).await?;
                told.until("the end of interest in it", |told| {
                    told.deleted.contains(&second.key())
                })
                .await?;
                let first = other.update(says(&first, block("10.69.0.0/30", None)?)?).await?;
                server.kubectl(
                    ADMIN,
                    &["delete", "pod", "borrower", "--grace-period=0", "--force"],
                    "",
                )?;
                told.until("the end of interest in both", |told| told.state.is_empty())
                    .await?;
                for block in [first, second] {
                    other
                        .delete(&block.key(), &crate::contract::revision(&block))
                        .await?;
                }
                Ok(())
            }
            .boxed_local(),
        )?;
        server.kubectl(ADMIN, &["delete", "ippool", "borrowed"], "")?;
        Ok(())
    })?
}

fn peer(name: &str, secret: &str) -> String {
    json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "BGPPeer", "metadata": {"name": name},
        "spec": {"peerIP": "192.0.2.7", "asNumber": 64513, "node": NODE,
            "password": {"secretKeyRef": {"name": secret, "key": "tor"}}},
    })
    .to_string()
}

fn password(told: &Told, key: &Key) -> Option<Vec<u8>> {
    match told.state.get(key) {
        Some(Object::Secret(secret)) => secret.value("tor"),
        _ => None,
    }
}

fn write_password(server: &ApiServer, value: &str) -> Outcome {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp-passwords", "namespace": "kube-system"},
        "stringData": {"tor": value},
    });
    server.kubectl(ADMIN, &["apply", "-f", "-"], &secret.to_string())?;
    Ok(())
}

fn passwords(server: &Server) -> Outcome {
    server.with(|server| {
        permit(server)?;
        let delete = [
            "-n",
            "kube-system",
            "delete",
            "--ignore-not-found",
            "secret",
            "bgp-passwords",
        ];
        server.kubectl(ADMIN, &delete, "")?;
        server.kubectl(ADMIN, &["apply", "-f", "-"], &peer("allowed", "bgp-passwords"))?;
        on_runtime(
            async move {
                let access = Access::Kubeconfig(server.kubeconfig(SERVICE_ACCOUNT));
                let open = async || KubernetesStore::open(&access, NODE).await;
                let store = open().await?.reading_secrets_of("kube-system");
                let secret = Key::namespaced(Kind::Secret, Some("kube-system"), "bgp-passwords");
                // One that is missing holds back nothing.
                let mut told = Told::in_sync(&store, "bgp-").await?;
                ensure(told.problem.is_none() && told.state.is_empty(), || {
                    format!("{:?}", told.problem)
                })?;
                for value in ["hunter2", "hunter3"] {
                    write_password(server, value)?;
                    told.until("the password", |told| {
                        password(told, &secret).as_deref() == Some(value.as_bytes())
                    })
                    .await?;
                }

                // One that may not be read is named, with what to do, and holds back nothing either.
                server.kubectl(ADMIN, &["apply", "-f", "-"], &peer("forbidden", "other"))?;
                let is_named = |told: &Told| {
                    told.problem.as_ref().is_some_and(|said| {
                        ["secrets", "403", "other", "bgp.passwordSecrets", "kube-system"]
                            .iter()
                            .all(|word| said.contains(word))
                    })
                };
                told.until("the refusal", is_named).await?;
                let again = open().await?.reading_secrets_of("kube-system");
                let begun = Told::in_sync(&again, "bgp-").await?;
                ensure(password(&begun, &secret).is_some() && is_named(&begun), || {
                    format!("{:?}", begun.problem)
                })?;
                server.kubectl(ADMIN, &["delete", "bgppeer", "forbidden"], "")?;
                told.until("the end of the problem", |told| told.problem.is_none())
                    .await?;

                server.kubectl(ADMIN, &delete, "")?;
                told.until("the end of the Secret", |told| told.deleted.contains(&secret))
                    .await
            }
            .boxed_local(),
        )?;
        server.kubectl(ADMIN, &["delete", "bgppeer", "allowed"], "")?;
        Ok(())
    })?
}
