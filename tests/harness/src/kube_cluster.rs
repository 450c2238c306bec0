//! A whole cluster of Kubernetes on one machine: API server, controllers, scheduler; and nodes, each with a kubelet and a
//! containerd in a network namespace, a mount namespace and a PID namespace of its own, on one bridge.
//!
//! Nothing runs in it yet that would give pods a network. It takes about a minute to come up, and 1.5 GB with three nodes.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;

use crate::api_server::{ADMIN, ApiServer, Setup};
use crate::command::run;
use crate::daemon::{command_in, spawn};
use crate::kube_node::KubeNode;
use crate::lab::netns_batch;
use crate::record::{Record, kill};
use crate::{LabError, Namespace, kubernetes};

/// Where the API server is, for nodes and agents.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

/// A cluster. It is taken down when it is dropped.
#[derive(Debug)]
pub struct KubeCluster {
    prefix: String,
    fabric: Namespace,
    images: Vec<PathBuf>,
    nodes: BTreeMap<u8, KubeNode>,
    controllers: Vec<Child>,
    server: ApiServer,
    record: Record,
}

/// Why there can be none here, if so.
#[must_use]
pub fn no_cluster() -> Option<String> {
    let programs = ["kubelet", "kube-controller-manager", "kube-scheduler"];
    let missing = |name: &str| kubernetes::program(name).err().map(|error| error.to_string());
    crate::api_server::no_api_server().or_else(|| programs.into_iter().find_map(missing))
}

impl KubeCluster {
    /// Starts one without nodes; `images` (archives) are given to every node.
    ///
    /// # Errors
    /// When a program is missing, or one of them does not come up.
    pub fn start(images: Vec<PathBuf>) -> Result<Self, LabError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        let prefix = format!(
            "ck{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let record = Record::new(&prefix)?;
        let fabric = Namespace::named(format!("{prefix}-fabric"));
        record.namespace(fabric.name())?;
        netns_batch("add", std::slice::from_ref(&fabric))?;
        let made = make_fabric(&fabric).and_then(|()| {
            ApiServer::start(Setup {
                address: SERVER,
                namespace: Some(fabric.clone()),
                has_controllers: true,
                arguments: vec!["--kubelet-preferred-address-types=InternalIP".to_owned()],
                ..Setup::default()
            })
        });
        let server = match made {
            Ok(server) => server,
            Err(error) => {
                let _ = record.take_down();
                return Err(error);
            }
        };
        let mut cluster = Self {
            prefix,
            fabric,
            images,
            nodes: BTreeMap::new(),
            controllers: Vec::new(),
            server,
            record,
        };
        cluster.start_controllers()?;
        Ok(cluster)
    }

    fn start_controllers(&mut self) -> Result<(), LabError> {
        let file = |name: &str| self.server.folder().join(name).display().to_string();
        let kubeconfig = format!("--kubeconfig={}", self.server.kubeconfig(ADMIN).display());
        let manager = [
            format!(
                "--service-account-private-key-file={}",
                file("service-accounts.key")
            ),
            format!("--root-ca-file={}", file("ca.crt")),
            // There is no cloud, and Culvert gives the nodes their addresses.
            "--controllers=*,-nodeipam,-cloud-node-lifecycle".to_owned(),
        ];
        for (name, more) in [("kube-controller-manager", &manager[..]), ("kube-scheduler", &[])] {
            let program = kubernetes::program(name)?;
            let mut command = command_in(Some(&self.fabric), &program.to_string_lossy());
            command.args([
                &kubeconfig,
                "--leader-elect=false",
                "--port=0",
                "--bind-address=127.0.0.1",
            ]);
            command.args(more);
            let log = self.server.folder().join(format!("{name}.log"));
            self.controllers.push(spawn(command, &log)?);
        }
        Ok(())
    }

    /// Its API server.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Where the API server is reached from, and the bridge is.
    #[must_use]
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// Adds a node of this number, from 1 to 9: `node1`, known by 172.18.0.11, and so on.
    ///
    /// # Errors
    /// When containerd or the kubelet do not come up.
    pub fn add_node(&mut self, number: u8) -> Result<&KubeNode, LabError> {
        let namespace = Namespace::named(format!("{}-node{number}", self.prefix));
        self.record.namespace(namespace.name())?;
        netns_batch("add", std::slice::from_ref(&namespace))?;
        let node = KubeNode::start(number, namespace, &self.fabric, &self.images, &self.server)?;
        self.nodes.insert(number, node);
        Ok(self.node(number))
    }

    /// The node of this number.
    ///
    /// # Panics
    /// When there is none: the caller has added it.
    #[must_use]
    pub fn node(&self, number: u8) -> &KubeNode {
        &self.nodes[&number]
    }

    /// The power of a node fails: everything on it is gone at once, and nobody is told.
    pub fn cut_off(&mut self, number: u8) {
        self.nodes.remove(&number);
    }

    /// A process of a running pod's first container.
    ///
    /// # Errors
    /// When there is no such pod, or it does not run.
    pub fn process(&self, namespace: &str, pod: &str) -> Result<u32, LabError> {
        let path = "jsonpath={.status.containerStatuses[0].containerID}";
        let id = self
            .server
            .kubectl(ADMIN, &["-n", namespace, "get", "pod", pod, "-o", path], "")?;
        process_of(id.trim_start_matches("containerd://")).ok_or_else(|| LabError::Answer {
            what: format!("the container of pod {namespace}/{pod}"),
            reason: "no process is in it".to_owned(),
            text: id,
        })
    }

    /// The network namespace of a running pod, under a name, so that programs can be run in it.
    ///
    /// # Errors
    /// When there is no such pod, or it does not run.
    pub fn inside(&self, namespace: &str, pod: &str) -> Result<Namespace, LabError> {
        let inside = Namespace::named(format!("{}-{pod}", self.prefix));
        if Path::new(&inside.path()).exists() {
            return Ok(inside);
        }
        let pid = self.process(namespace, pod)?;
        self.record.namespace(inside.name())?;
        let mut command = Command::new("ip");
        command.args(["netns", "attach", inside.name(), &pid.to_string()]);
        run(command)?;
        Ok(inside)
    }
}

impl Drop for KubeCluster {
    fn drop(&mut self) {
        self.nodes.clear();
        for child in &mut self.controllers {
            kill(child.id(), Signal::SIGKILL);
            let _ = child.wait();
        }
        let _ = self.record.take_down();
    }
}

fn make_fabric(fabric: &Namespace) -> Result<(), LabError> {
    fabric.sysctl(&[("net/ipv4/ip_forward", "1")])?;
    let lines = [
        "link set lo up".to_owned(),
        "link add fabric type bridge".to_owned(),
        format!("addr add {SERVER}/24 dev fabric"),
        "link set fabric up".to_owned(),
    ];
    fabric.ip_batch(&lines)
}

/// A process in the control group of this container.
fn process_of(container: &str) -> Option<u32> {
    let is_in = |pid: u32| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| line.contains(container))
    };
    let all = fs::read_dir("/proc").ok()?;
    let mut numbers = all
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    (!container.is_empty()).then(|| numbers.find(|pid| is_in(*pid)))?
}
