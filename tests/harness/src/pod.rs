//! Pods: a namespace each, attached to its node by the real CNI plugin.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use crate::{LabError, Namespace};

/// A pod that was attached.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, `n1p2`: the second pod of the first node.
    pub name: String,
    /// The number of its node, from 1.
    pub node: u8,
    /// Where its processes are.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// Its IPv6 address, where pods get one.
    pub address_v6: Option<Ipv6Addr>,
    /// The node's end of its link, `cali…`.
    pub host_interface: String,
}

/// Of a CNI result (specification 1.0), what the laboratory uses.
#[derive(Deserialize)]
struct Result1 {
    ips: Vec<Ip>,
    #[serde(default)]
    interfaces: Vec<Interface>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
}

#[derive(Deserialize)]
struct Interface {
    name: String,
}

/// A call of the plugin, as a container runtime makes it.
pub(crate) struct Call<'a> {
    /// The plugin's file.
    pub(crate) plugin: &'a Path,
    /// The agent's socket.
    pub(crate) socket: std::path::PathBuf,
    /// The pod's node.
    pub(crate) node: &'a Namespace,
    /// The pod.
    pub(crate) pod: &'a Namespace,
    /// The pod's name.
    pub(crate) name: &'a str,
}

impl Call<'_> {
    /// Attaches the pod: its addresses, and the node's end of its link.
    pub(crate) fn add(&self) -> Result<(Ipv4Addr, Option<Ipv6Addr>, String), LabError> {
        let text = self.make("ADD")?;
        let result: Result1 = serde_json::from_str(&text).map_err(|e| self.answer(&e.to_string(), &text))?;
        let bare = || result.ips.iter().filter_map(|ip| ip.address.split('/').next());
        let address = bare().find_map(|address| address.parse().ok());
        let address = address.ok_or_else(|| self.answer("no IPv4 address", &text))?;
        let address_v6 = bare().find_map(|address| address.parse().ok());
        let link = result
            .interfaces
            .into_iter()
            .map(|i| i.name)
            .find(|name| name.starts_with("cali"));
        Ok((
            address,
            address_v6,
            link.ok_or_else(|| self.answer("no interface cali…", &text))?,
        ))
    }

    /// Detaches the pod.
    pub(crate) fn delete(&self) -> Result<(), LabError> {
        self.make("DEL").map(drop)
    }

    fn make(&self, verb: &str) -> Result<String, LabError> {
        let mut command = Command::new(self.plugin);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", self.pod.name())
            .env("CNI_NETNS", self.pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.plugin.parent().unwrap_or(self.plugin))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={}",
                    self.name
                ),
            );
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "culvert", "type": "culvert-cni", "agentSocket": self.socket,
        });
        let output = self.node.output(command, &config.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(LabError::Command {
            command: format!("culvert-cni {verb} of pod {}", self.name),
            status: output.status.to_string(),
            output: format!("{}{text}", String::from_utf8_lossy(&output.stderr)),
        })
    }

    fn answer(&self, reason: &str, text: &str) -> LabError {
        LabError::Answer {
            what: format!("the CNI result for pod {}", self.name),
            reason: reason.to_owned(),
            text: text.to_owned(),
        }
    }
}
