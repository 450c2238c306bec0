//! As a pod does it: by the service account's token and CA in the files that a kubelet mounts, and the server's address in
//! the environment. In a process with a mount namespace of its own, where those files are this trial's.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use culvert_agent::api::Kind;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore as _, DatastoreError};
use futures_util::FutureExt as _;
use harness::api_server::ADMIN;
use harness::{ApiServer, kernel};
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::chart::permit;
use crate::servers::{LIMIT, NODE, Server, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [(
    "a_pods_service_account_is_enough_and_its_token_is_read_anew",
    service_account,
)];

/// Set in the child.
const CHILD: &str = "CULVERT_IN_CLUSTER_CHILD";
/// Puts the folder that is its first argument where a pod has its service account, and becomes the second.
const MOUNT: &str = r#"run=$(readlink -f /var/run) && mount -t tmpfs none "$run" && mkdir -p "$run/secrets/kubernetes.io" &&
    ln -s "$1" "$run/secrets/kubernetes.io/serviceaccount" && exec "$2""#;
/// Between two requests.
const PAUSE: Duration = Duration::from_millis(250);

/// A token of the service account, as a kubelet asks for it.
fn token(server: &ApiServer) -> Result<String, Failed> {
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600},
    });
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/culvert/token";
    let answer = server.kubectl(ADMIN, &["create", "--raw", path, "-f", "-"], &request.to_string())?;
    let answer: Value = serde_json::from_str(&answer)?;
    Ok(answer["status"]["token"].as_str().ok_or("no token")?.to_owned())
}

/// Replaces a file as a kubelet does: at one moment.
fn replace(path: &Path, text: &str) -> Outcome {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text)?;
    std::fs::rename(beside, path)?;
    Ok(())
}

fn service_account(_: &Server) -> Outcome {
    if let Some(reason) = kernel::no_namespaces() {
        return Err(format!("this trial needs a mount namespace: {reason}").into());
    }
    let server = start(&[])?;
    permit(&server)?;
    let account = ["-n", "kube-system", "create", "serviceaccount", "culvert"];
    server.kubectl(ADMIN, &account, "")?;
    let folder = tempfile::tempdir()?;
    std::fs::copy(server.folder().join("ca.crt"), folder.path().join("ca.crt"))?;
    std::fs::write(folder.path().join("namespace"), "kube-system")?;
    let file = folder.path().join("token");
    replace(&file, &token(&server)?)?;
    let mut child = Command::new("unshare")
        .args(["--mount", "sh", "-c", MOUNT, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe()?)
        .env(CHILD, "1")
        .env("KUBERNETES_SERVICE_HOST", server.address().ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", server.address().port().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
    let mut next = || -> Result<String, Failed> { Ok(lines.next().ok_or("the child has ended")??) };
    let said = next()?;
    ensure(said == "listed", || said.clone())?;
    // A token is good for as long as the account that it was made for is there.
    server.kubectl(
        ADMIN,
        &["-n", "kube-system", "delete", "serviceaccount", "culvert"],
        "",
    )?;
    server.kubectl(ADMIN, &account, "")?;
    let said = next()?;
    let words = [
        "401",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        "renew it",
    ];
    ensure(words.iter().all(|word| said.contains(word)), || said.clone())?;
    replace(&file, &token(&server)?)?;
    let said = next()?;
    ensure(said == "listed", || said.clone())?;
    let status = child.wait()?;
    ensure(status.success(), || status.to_string())
}

/// The child's part, if this is one: says when a list succeeds, when it no longer does, and when it does again.
pub(crate) fn child() -> Option<Outcome> {
    std::env::var_os(CHILD)?;
    Some(on_runtime(
        async move {
            let store = KubernetesStore::open(&Access::InCluster, NODE).await?;
            for wanted in [true, false, true] {
                let error = until(&store, wanted).await?;
                println!("{}", error.map_or("listed".to_owned(), |error| error.to_string()));
            }
            Ok(())
        }
        .boxed_local(),
    ))
}

/// Asks until a list succeeds, or until it fails: with what error.
async fn until(store: &KubernetesStore, succeeds: bool) -> Result<Option<DatastoreError>, Failed> {
    let begin = Instant::now();
    loop {
        let error = store.list(Kind::IpPool).await.err();
        if error.is_none() == succeeds {
            return Ok(error);
        }
        if begin.elapsed() > LIMIT {
            return Err(format!("after {LIMIT:?}: {error:?}").into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
