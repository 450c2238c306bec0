//! A node of Kubernetes: a kubelet and a containerd that see their own network, processes and folders of the host.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::api_server::{ADMIN, ApiServer};
use crate::command::run;
use crate::daemon::{command_in, spawn};
use crate::record::kill;
use crate::wiring::cable;
use crate::{LabError, Namespace, kubernetes, wait_for};

/// A loaded machine needs a while for an image.
const PATIENCE: Duration = Duration::from_secs(240);
/// Chained by what the chart installs, and asked by containerd itself: from Debian's containernetworking-plugins.
const PLUGINS: [&str; 3] = ["loopback", "portmap", "bandwidth"];
const PLUGINS_FROM: &str = "/usr/lib/cni";
/// The folders of the host of which each node has its own.
const FOLDERS: [(&str, &str); 6] = [
    ("run-culvert", "/run/culvert"),
    ("lib-culvert", "/var/lib/culvert"),
    ("cni-bin", "/opt/cni/bin"),
    ("cni-conf", "/etc/cni/net.d"),
    ("kubelet", "/var/lib/kubelet"),
    ("pod-logs", "/var/log/pods"),
];

/// A node. Everything on it ends when it is dropped.
#[derive(Debug)]
pub struct KubeNode {
    /// Its name.
    pub name: String,
    /// Its links and routes.
    pub namespace: Namespace,
    /// What it is known by.
    pub address: Ipv4Addr,
    folder: tempfile::TempDir,
    /// The first process of its PID namespace is the child of this one: with it, all others end.
    init: Child,
    kubelet: Option<Child>,
}

impl KubeNode {
    /// Starts it in an empty namespace, and waits until its containerd has the images.
    pub(crate) fn start(
        number: u8,
        namespace: Namespace,
        fabric: &Namespace,
        images: &[PathBuf],
        server: &ApiServer,
    ) -> Result<Self, LabError> {
        let name = format!("node{number}");
        let address = Ipv4Addr::new(172, 18, 0, number.saturating_add(10));
        fabric.ip_batch(&cable(&name, "fabric", "eth0", &namespace))?;
        // What kubeadm asks of a host before it lets it join.
        namespace.sysctl(&[("net/ipv4/ip_forward", "1")])?;
        namespace.ip_batch(&[
            "link set lo up".to_owned(),
            format!("addr add {address}/24 dev eth0"),
            "link set eth0 up".to_owned(),
            "route add default via 172.18.0.1".to_owned(),
        ])?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("culvert-{name}-"))
            .tempdir()
            .map_err(LabError::io(format!("make a folder for {name}")))?;
        make_folders(folder.path())?;
        let init = start_containerd(&namespace, folder.path())?;
        let mut node = Self {
            name,
            namespace,
            address,
            folder,
            init,
            kubelet: None,
        };
        let what = format!("containerd of {} to answer", node.name);
        wait_for(&what, PATIENCE, || {
            node.ctr(&["version"]).map_err(|error| error.to_string())
        })?;
        for image in images {
            let image = image.to_string_lossy();
            node.ctr(&["images", "import", "--snapshotter", "native", &image])?;
        }
        node.kubelet = Some(node.start_kubelet(server)?);
        Ok(node)
    }

    /// A folder of this node's host, as it is seen from outside: `cni-bin`, `cni-conf`, `lib-culvert`, `run-culvert`.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `ctr` of its containerd, in the namespace of the kubelet's images.
    fn ctr(&self, arguments: &[&str]) -> Result<String, LabError> {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.folder.path().join("containerd.sock"));
        command.args(["-n", "k8s.io"]).args(arguments);
        run(command)
    }

    fn start_kubelet(&self, server: &ApiServer) -> Result<Child, LabError> {
        let configuration = self.folder.path().join("kubelet.yaml");
        write(&configuration, &kubelet_configuration(self.address))?;
        // unshare's child, which is the first of the PID namespace.
        let outer = self.init.id();
        let children = PathBuf::from(format!("/proc/{outer}/task/{outer}/children"));
        let inner =
            fs::read_to_string(&children).map_err(LabError::io(format!("read {}", children.display())))?;
        let mut command = command_in(None, "nsenter");
        command.args(["--target", inner.trim(), "--mount", "--net", "--pid", "--"]);
        command.arg(kubernetes::program("kubelet")?);
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        command.args([
            format!("--config={}", configuration.display()),
            format!("--kubeconfig={}", server.kubeconfig(ADMIN).display()),
            format!("--hostname-override={}", self.name),
            format!("--node-ip={}", self.address),
            "--container-runtime=remote".to_owned(),
            format!("--container-runtime-endpoint=unix://{}", at("containerd.sock")),
            "--network-plugin=cni".to_owned(),
            format!("--cert-dir={}", at("kubelet-certificates")),
        ]);
        spawn(command, &self.folder.path().join("kubelet.log"))
    }
}

impl Drop for KubeNode {
    fn drop(&mut self) {
        for child in self.kubelet.iter_mut().chain([&mut self.init]) {
            kill(child.id(), Signal::SIGKILL);
            let _ = child.wait();
        }
    }
}

fn make_folders(folder: &Path) -> Result<(), LabError> {
    let make =
        |path: &Path| fs::create_dir_all(path).map_err(LabError::io(format!("make {}", path.display())));
    for (name, of_host) in FOLDERS {
        make(&folder.join(name))?;
        make(Path::new(of_host))?;
    }
    make(&folder.join("netns"))?;
    for plugin in PLUGINS {
        let (from, to) = (
            Path::new(PLUGINS_FROM).join(plugin),
            folder.join("cni-bin").join(plugin),
        );
        fs::copy(&from, to).map_err(LabError::io(format!("copy {}", from.display())))?;
    }
    Ok(())
}

fn start_containerd(namespace: &Namespace, folder: &Path) -> Result<Child, LabError> {
    let at = |name: &str| folder.join(name).display().to_string();
    let configuration = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\n[grpc]\n  address = \"{}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{PAUSE}\"\n  disable_tcp_service = true\n  restrict_oom_score_adj = true\n  \
         stream_server_address = \"127.0.0.1\"\n  [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n    snapshotter = \"native\"\n",
        at("containerd-root"),
        at("containerd-state"),
        at("containerd.sock"),
        PAUSE = crate::kube_image::NAME,
    );
    write(&folder.join("containerd.toml"), &configuration)?;
    // Names of pods' network namespaces are mounts that only this node sees.
    let mut script = String::from("set -e\n");
    for (name, of_host) in FOLDERS.into_iter().chain([("netns", "/run/netns")]) {
        script.push_str(&format!("mount --bind {} {of_host}\n", at(name)));
    }
    script.push_str(&format!("exec containerd --config {}\n", at("containerd.toml")));
    let mut command = command_in(Some(namespace), "unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
    command.args(["sh", "-c", &script]);
    spawn(command, &folder.join("containerd.log"))
}

fn kubelet_configuration(address: Ipv4Addr) -> String {
    // Nothing of the machine's own limits, control groups and firewall is to be touched, and no pod is to go for want of disk.
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\naddress: {address}\nhealthzPort: 0\n\
         authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\nauthorization: {{mode: AlwaysAllow}}\n\
         cgroupDriver: cgroupfs\ncgroupsPerQOS: false\nenforceNodeAllocatable: []\nmakeIPTablesUtilChains: false\nfailSwapOn: false\n\
         evictionHard: {{nodefs.available: '0%', imagefs.available: '0%', memory.available: '0%'}}\n\
         imageGCHighThresholdPercent: 100\nnodeStatusUpdateFrequency: 3s\n"
    )
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))
}
