//! A real Prometheus in the namespace of a node, which scrapes the agent there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::agent::HTTP;
use harness::{LabError, Namespace, wait_for};
use libtest_mimic::Failed;
use serde_json::Value;
use tempfile::TempDir;

use crate::ensure;

/// Far more than anything here takes.
const GENEROUS: Duration = Duration::from_secs(120);

/// Where it listens: in a namespace of its own every port is free.
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// A running Prometheus. It ends when it is dropped.
pub(crate) struct Prometheus {
    namespace: Namespace,
    child: Child,
    folder: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes the agent in `namespace` every second, with the labels that the chart's ServiceMonitor gives.
    pub(crate) fn start(namespace: &Namespace, node: &str) -> Result<Self, Failed> {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("prometheus.yml");
        fs::write(
            &config,
            format!(
                "scrape_configs:\n- job_name: culvert-metrics\n  scrape_interval: 1s\n  static_configs:\n  - targets: ['{HTTP}']\n    labels: {{node: {node}}}\n"
            ),
        )?;
        let log = fs::File::create(folder.path().join("log"))?;
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = namespace
            .within(|| command.spawn())?
            .map_err(|error| format!("prometheus: {error}; tests/run installs it"))?;
        Ok(Self {
            namespace: namespace.clone(),
            child,
            folder,
        })
    }

    /// Waits until a query has a result that is told by its numbers: at least one of them finite and, where there is one,
    /// as `is_enough` wants it.
    pub(crate) fn wait_for(&self, query: &str, is_enough: impl Fn(f64) -> bool) -> Result<(), LabError> {
        let waited = wait_for(&format!("data for {query}"), GENEROUS, || {
            let found = self.query(query).map_err(|error| format!("{error:?}"))?;
            if found.iter().any(|value| value.is_finite() && is_enough(*value)) {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
        waited.map_err(|error| match error {
            LabError::Timeout { what, limit, last } => {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                let last = format!("{last}\nits log:\n{log}");
                LabError::Timeout { what, limit, last }
            }
            other => other,
        })
    }

    /// The values that a query has now.
    pub(crate) fn query(&self, query: &str) -> Result<Vec<f64>, Failed> {
        let answer = self.get(&format!("/api/v1/query?query={}", escaped(query)))?;
        let series = answer["data"]["result"].as_array().ok_or("no result")?;
        let value = |series: &Value| series["value"][1].as_str()?.parse().ok();
        Ok(series.iter().filter_map(value).collect())
    }

    /// The names of all metrics that it has ever seen.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failed> {
        let answer = self.get("/api/v1/label/__name__/values")?;
        Ok(serde_json::from_value(answer["data"].clone())?)
    }

    fn get(&self, page: &str) -> Result<Value, Failed> {
        let (status, body) = self.namespace.http_get(ADDRESS, page)?;
        ensure(status == 200, || format!("{page}: {status} {body}"))?;
        Ok(serde_json::from_str(&body)?)
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As a query in a URL must be.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(byte).collect()
}
