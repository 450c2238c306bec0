//! A release of the chart from its installation to its end, on the API server.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::helm::{chart, helm};
use crate::servers::{LIMIT, Server, UNINSTALL_ACCOUNT};
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 1] = [(
    "install_upgrade_rollback_and_uninstall_leave_what_is_not_theirs",
    lives,
)];

/// A release on the server.
struct Release<'a> {
    server: &'a ApiServer,
    kubeconfig: PathBuf,
}

impl Release<'_> {
    fn helm(&self, arguments: &[&str]) -> Result<String, Failed> {
        let chart = chart();
        let chart = chart.to_string_lossy();
        let words: Vec<&str> = arguments
            .iter()
            .map(|word| if *word == "CHART" { &*chart } else { word })
            .chain(["-n", "kube-system", "--timeout", "120s"])
            .collect();
        Ok(helm(Some(&self.kubeconfig), &words)?)
    }

    fn get(&self, kind: &str, name: &str) -> Result<Value, Failed> {
        let text = self
            .server
            .kubectl(ADMIN, &["-n", "kube-system", "get", kind, name, "-o", "json"], "")?;
        Ok(serde_json::from_str(&text)?)
    }

    /// What the agents are told, and what makes their pods start anew.
    fn told(&self) -> Result<(Value, Value), Failed> {
        let map = self.get("configmap", "culvert")?["data"]["agent.yaml"].clone();
        let set = self.get("daemonset", "culvert")?;
        let checksum = set["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone();
        Ok((map, checksum))
    }
}

fn lives(server: &Server) -> Outcome {
    server.with(|server| {
        // What other trials have applied by hand.
        for (kind, name) in [
            ("clusterrole", "culvert"),
            ("clusterrolebinding", "culvert"),
            ("role", "culvert"),
            ("rolebinding", "culvert"),
            ("role", "culvert-passwords"),
            ("rolebinding", "culvert-passwords"),
        ] {
            server.kubectl(ADMIN, &["-n", "kube-system", "delete", "--ignore-not-found", kind, name], "")?;
        }
        let release = Release {
            server,
            kubeconfig: server.kubeconfig(ADMIN),
        };
        let theirs = r#"{"apiVersion":"crd.projectcalico.org/v1","kind":"BGPConfiguration","metadata":{"name":"default"},
            "spec":{"asNumber":65001}}"#;
        server.kubectl(ADMIN, &["apply", "-f", "-"], theirs)?;
        let pool = ["ippools.crd.projectcalico.org", "default-ipv4-ippool"];

        let notes = release.helm(&["install", "culvert", "CHART"])?;
        ensure(notes.contains("rollout status daemonset/culvert"), || notes.clone())?;
        let installed = release.told()?;
        ensure(release.get(pool[0], pool[1])?["spec"]["cidr"] == "10.244.0.0/16", || "no pool".to_owned())?;
        // Somebody changes the pool that the chart made.
        server.kubectl(ADMIN, &["patch", pool[0], pool[1], "--type=merge", "-p", r#"{"spec":{"natOutgoing":false}}"#], "")?;
        let as_left = release.get(pool[0], pool[1])?["spec"].clone();

        release.helm(&["upgrade", "culvert", "CHART", "--set", "bgp.holdTime=30,ipPool.cidr=10.99.0.0/16,bgpConfiguration.asNumber=7"])?;
        let upgraded = release.told()?;
        ensure(upgraded.0 != installed.0 && upgraded.1 != installed.1, || format!("{upgraded:?}"))?;
        release.helm(&["rollback", "culvert", "1"])?;
        ensure(release.told()? == installed, || "the rollback is not what was installed".to_owned())?;

        uninstall(&release)?;
        let pool_now = release.get(pool[0], pool[1])?["spec"].clone();
        ensure(pool_now == as_left, || format!("{as_left} became {pool_now}"))?;
        let bgp = release.get("bgpconfigurations.crd.projectcalico.org", "default")?;
        ensure(bgp["spec"]["asNumber"] == 65001, || bgp.to_string())?;
        let left = server.kubectl(
            ADMIN,
            &[
                "get",
                "all,configmap,serviceaccount,role,rolebinding,clusterrole,clusterrolebinding",
                "-A",
                "-l",
                "app.kubernetes.io/instance=culvert",
                "-o",
                "name",
            ],
            "",
        )?;
        ensure(left.trim().is_empty(), || format!("left over: {left}"))?;
        server.kubectl(ADMIN, &["delete", pool[0], pool[1]], "")?;
        server.kubectl(ADMIN, &["delete", "bgpconfigurations.crd.projectcalico.org", "default"], "")?;
        Ok(())
    })?
}

/// Uninstalls, while this trial does what controllers and kubelets would: it says that the pods are ready, and that the Job,
/// whose command is run here with its own account, has succeeded.
fn uninstall(release: &Release<'_>) -> Outcome {
    std::thread::scope(|scope| {
        let controllers = scope.spawn(|| controllers(release.server).map_err(|error| format!("{error:?}")));
        let said = release.helm(&["uninstall", "culvert"]);
        controllers.join().map_err(|_| "the controllers panicked")??;
        said.map(drop)
    })
}

fn controllers(server: &ApiServer) -> Outcome {
    const NAME: &str = "culvert-uninstall";
    let path = |group: &str, plural: &str| format!("/apis/{group}/v1/namespaces/kube-system/{plural}/{NAME}");
    let get = |path: &str| -> Result<Value, String> {
        let text = server
            .kubectl(ADMIN, &["get", "--raw", path], "")
            .map_err(|e| e.to_string())?;
        serde_json::from_str(&text).map_err(|e| e.to_string())
    };
    let set = path("apps", "daemonsets");
    let mut object = harness::wait_for("the DaemonSet of the hook", LIMIT, || get(&set))?;
    let account = server
        .kubeconfig(UNINSTALL_ACCOUNT)
        .to_string_lossy()
        .into_owned();
    let mut wait = Command::new(harness::culvert()?);
    wait.args([
        "rollout",
        "--namespace=kube-system",
        "--timeout=60",
        "--kubeconfig",
        &account,
        NAME,
    ]);
    let waiting = wait.stdout(Stdio::piped()).spawn()?;
    object["status"] = json!({"currentNumberScheduled": 3, "numberMisscheduled": 0, "desiredNumberScheduled": 3, "numberReady": 3,
        "updatedNumberScheduled": 3, "observedGeneration": object["metadata"]["generation"]});
    server.kubectl(
        ADMIN,
        &["replace", "--raw", &format!("{set}/status"), "-f", "-"],
        &object.to_string(),
    )?;
    let ended = waiting.wait_with_output()?;
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    ensure(
        ended.status.success() && said.ends_with("is ready: 3 of 3 nodes.\n"),
        || said.clone(),
    )?;
    let job = path("batch", "jobs");
    let mut object = harness::wait_for("the Job of the hook", Duration::from_secs(60), || get(&job))?;
    object["status"] = json!({"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]});
    server.kubectl(
        ADMIN,
        &["replace", "--raw", &format!("{job}/status"), "-f", "-"],
        &object.to_string(),
    )?;
    Ok(())
}
