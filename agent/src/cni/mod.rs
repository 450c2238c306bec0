//! The CNI plugin, and the agent's side of it.
//!
//! The plugin is the same binary under the name `culvert-cni`. It is thin: it asks the agent for an address over the
//! agent's socket, wires the pod, and answers the container runtime. The agent alone knows pools and blocks.

mod annotations;
mod attachments;
mod install;
mod link_check;
mod plugin;
pub mod protocol;
mod request;

use std::path::Path;

use sha1::{Digest, Sha1};

pub use attachments::{AddressSource, Attachments};
pub use install::{Host, InstallError};
pub use plugin::main;
pub use protocol::{CniError, Name, Pod};
pub use request::{
    AddAnswer, AddRequest, Addresses, CheckRequest, Container, Containers, NetworkRequest, Problem,
};

/// The name under which the binary is the CNI plugin.
pub const PLUGIN_NAME: &str = "culvert-cni";

/// Whether the first argument of a process says that it is the plugin.
#[must_use]
pub fn is_plugin(argv0: Option<&std::ffi::OsStr>) -> bool {
    argv0
        .and_then(|path| Path::new(path).file_name())
        .is_some_and(|name| name == PLUGIN_NAME)
}

/// The name of the host's end of a pod's veth pair: `cali` and 11 digits of the SHA-1 of `namespace.name`, as Calico
/// names it, so that the two find each other's; of the container's id where there is no Kubernetes.
#[must_use]
pub fn host_link_name(pod: Option<&Pod>, container: &Name) -> String {
    let digest = match pod {
        Some(pod) => Sha1::digest(format!("{}.{}", pod.namespace, pod.name)),
        None => Sha1::digest(container.as_str()),
    };
    let mut name = format!("cali{digest:x}");
    name.truncate(15);
    name
}

/// The handle under which a container's addresses are allocated, as Calico's plugin names it.
#[must_use]
pub fn handle(network: &Name, container: &Name) -> String {
    format!("{network}.{container}")
}

/// The handle under which Calico's plugin allocated a pod's address before its version 3.
#[must_use]
pub fn workload_handle(pod: &Pod) -> String {
    format!("{}.{}", pod.namespace, pod.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Digests from `printf default.nginx-0 | sha1sum` (coreutils 9.1).
    #[test]
    fn the_hosts_end_is_named_after_the_pod_or_else_after_the_container() {
        let container: Name = "0123456789abcdef".parse().unwrap();
        let pod = Pod {
            namespace: "default".into(),
            name: "nginx-0".into(),
        };
        assert_eq!(host_link_name(Some(&pod), &container), "calic048fd9a750");
        assert_eq!(host_link_name(None, &container), "calife5567e8d76");
    }

    #[test]
    fn the_binary_is_the_plugin_by_its_name_alone() {
        for (argv0, plugin) in [
            ("/opt/cni/bin/culvert-cni", true),
            ("culvert-cni", true),
            ("culvert", false),
            ("", false),
        ] {
            assert_eq!(is_plugin(Some(argv0.as_ref())), plugin, "{argv0}");
        }
        assert!(!is_plugin(None));
    }

    #[test]
    fn the_handle_is_the_network_and_the_container() {
        let handle = handle(&"k8s-pod-network".parse().unwrap(), &"abc".parse().unwrap());
        assert_eq!(handle, "k8s-pod-network.abc");
    }
}
