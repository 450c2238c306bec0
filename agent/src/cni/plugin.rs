//! The plugin: one call of the container runtime, from its environment and standard input to its answer.

use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use super::link_check;
use super::protocol::{
    Attached, CniError, Code, Command, Environment, LinkEnd, Name, NetworkConfig, Pod, VERSIONS,
    asked_version,
};
use super::request::{AddRequest, CheckRequest, Container, NetworkRequest};
use crate::dataplane::{DataplaneError, PodAttached, PodLink, attach_pod, detach_pod};
use crate::http::{BlockingClient, ClientError};

/// The largest network configuration, in bytes.
const MAX_INPUT: u64 = 1 << 20;

/// How long the agent may take for one request: less than a runtime waits for a pod's network.
const PATIENCE: Duration = Duration::from_secs(30);

/// The version that an answer is written in when the call does not tell one.
const LATEST: &str = "1.1.0";

/// What the plugin asks of a kernel.
pub(super) trait PodNetwork {
    /// Wires a pod.
    fn attach(&self, link: &PodLink) -> Result<PodAttached, DataplaneError>;

    /// Takes away what [`PodNetwork::attach`] made; that there is nothing is no error.
    fn detach(&self, host: &str, netns: Option<&Path>, pod: &str) -> Result<(), DataplaneError>;

    /// The addresses that the host routes through its end of a pair.
    fn addresses_behind(&self, host: &str) -> Result<Vec<IpAddr>, CniError>;

    /// The host's ends through which it routes any of these addresses.
    fn links_to(&self, addresses: &[IpAddr]) -> Result<Vec<String>, CniError>;
}

/// Answers the call that this process is, on standard output.
#[must_use]
pub fn main() -> ExitCode {
    let environment = Environment::of_process();
    let mut input = Vec::new();
    let read = std::io::stdin()
        .lock()
        .take(MAX_INPUT + 1)
        .read_to_end(&mut input);
    let result = match read {
        Err(error) => Err(CniError::new(Code::Io, format!("standard input: {error}"))),
        Ok(_) => answer(&environment, &input, &Kernel),
    };
    let (text, code) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(value)) => (value, ExitCode::SUCCESS),
        Err(error) => {
            let version = asked_version(&input).unwrap_or_else(|| LATEST.to_owned());
            (error.to_json(&version, &details(&environment)), ExitCode::FAILURE)
        }
    };
    match writeln!(std::io::stdout().lock(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Which call it was, for a log that has only the error.
fn details(environment: &Environment) -> String {
    let container = environment
        .container_id()
        .map_or_else(|_| "none".to_owned(), |id| id.to_string());
    let pod = match environment.pod() {
        Ok(Some(pod)) => format!("{}/{}", pod.namespace, pod.name),
        _ => "none".to_owned(),
    };
    format!(
        "culvert-cni {}: container {container}, pod {pod}",
        env!("CARGO_PKG_VERSION")
    )
}

/// The answer to a call; none where the specification has none.
fn answer(
    environment: &Environment,
    input: &[u8],
    network: &dyn PodNetwork,
) -> Result<Option<Value>, CniError> {
    let command = environment.command()?;
    if input.len() as u64 > MAX_INPUT {
        return Err(CniError::new(
            Code::Io,
            format!("standard input has more than {MAX_INPUT} bytes: that is no network configuration"),
        ));
    }
    if command == Command::Version {
        let version = asked_version(input).unwrap_or_else(|| LATEST.to_owned());
        return Ok(Some(
            json!({ "cniVersion": version, "supportedVersions": VERSIONS }),
        ));
    }
    let config = NetworkConfig::parse(input)?;
    let client = BlockingClient::new(&config.agent_socket, PATIENCE);
    match command {
        Command::Status => status(&client).map(|()| None),
        Command::Gc => collect(&client, &config, network).map(|()| None),
        Command::Version => Ok(None),
        Command::Add => {
            let call = Call::new(environment, &config, client)?;
            call.add(environment.required_netns()?, network)
                .map(|made| Some(made.to_json(&config)))
        }
        Command::Del => {
            let call = Call::new(environment, &config, client)?;
            call.del(environment.netns(), network).map(|()| None)
        }
        Command::Check => {
            let call = Call::new(environment, &config, client)?;
            call.check(&environment.required_netns()?, &config, network)
                .map(|()| None)
        }
    }
}

fn status(client: &BlockingClient) -> Result<(), CniError> {
    let not_available = |message| CniError::new(Code::NotAvailable, message);
    let status = client
        .status()
        .map_err(|error| not_available(error.to_string()))?;
    status.can_attach().map_err(not_available)
}

/// Detaches the containers of a network that nobody wants any more, each as its DEL would. One that cannot be detached holds
/// back no other.
fn collect(
    client: &BlockingClient,
    config: &NetworkConfig,
    network: &dyn PodNetwork,
) -> Result<(), CniError> {
    let valid = config.valid_containers()?;
    let request = NetworkRequest {
        network: config.name.clone(),
    };
    let there = client.containers(&request).map_err(|error| refused(&error))?;
    let mut failed = Vec::new();
    for container_id in there.containers.into_iter().filter(|id| !valid.contains(id)) {
        let container = Container {
            network: config.name.clone(),
            container_id,
            // A pod of this name may be there anew.
            pod: None,
        };
        if let Err(error) = forget(client, &container, network) {
            failed.push(format!("container {}: {error}", container.container_id));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(CniError::new(Code::TryAgainLater, failed.join("; ")))
}

/// Removes the links that lead to a container's addresses, and then gives those back.
fn forget(client: &BlockingClient, container: &Container, network: &dyn PodNetwork) -> Result<(), CniError> {
    let held = client.addresses(container).map_err(|error| refused(&error))?;
    for host in network.links_to(&held.addresses)? {
        network
            .detach(&host, None, "")
            .map_err(|error| CniError::new(Code::Kernel, error.to_string()))?;
    }
    client.del(container).map(drop).map_err(|error| refused(&error))
}

/// A call about one container.
struct Call {
    client: BlockingClient,
    container: Container,
    pod: Option<Pod>,
    /// The pod's end.
    interface: String,
    /// The host's end.
    host: String,
}

impl Call {
    fn new(
        environment: &Environment,
        config: &NetworkConfig,
        client: BlockingClient,
    ) -> Result<Self, CniError> {
        let container_id: Name = environment.container_id()?;
        let pod = environment.pod()?;
        Ok(Self {
            client,
            interface: environment.interface()?,
            host: super::host_link_name(pod.as_ref(), &container_id),
            container: Container {
                network: config.name.clone(),
                container_id,
                pod: pod.clone(),
            },
            pod,
        })
    }

    fn add(&self, netns: PathBuf, network: &dyn PodNetwork) -> Result<Attached, CniError> {
        link_check::of_another(&netns)?;
        let request = AddRequest {
            network: self.container.network.clone(),
            container_id: self.container.container_id.clone(),
            pod: self.pod.clone(),
        };
        let granted = self.client.add(&request).map_err(|error| refused(&error))?;
        let link = PodLink {
            host_name: self.host.clone(),
            pod_netns: netns,
            pod_name: self.interface.clone(),
            address: granted.address,
            address_v6: granted.address_v6,
            mtu: granted.mtu,
        };
        match network.attach(&link) {
            Ok(made) => Ok(Attached {
                host: LinkEnd {
                    name: link.host_name,
                    mac: made.host_mac.to_string(),
                },
                pod: LinkEnd {
                    name: link.pod_name,
                    mac: made.pod_mac.to_string(),
                },
                netns: link.pod_netns,
                address: link.address,
                address_v6: link.address_v6,
                mtu: link.mtu,
            }),
            Err(error) => {
                let mut message = error.to_string();
                if let Err(kept) = self.client.del(&self.container) {
                    message = format!("{message}; and {} is kept until DEL: {kept}", granted.address);
                }
                Err(CniError::new(Code::Kernel, message))
            }
        }
    }

    fn del(&self, netns: Option<PathBuf>, network: &dyn PodNetwork) -> Result<(), CniError> {
        // The agent first: without it the address cannot be given back, and the runtime must come again.
        let held = self
            .client
            .addresses(&self.container)
            .map_err(|error| refused(&error))?
            .addresses;
        // A pod that was set up anew has the same name and so the same host's end: a late DEL must not cut it off.
        let routed = network.addresses_behind(&self.host)?;
        if routed.iter().all(|address| held.contains(address)) {
            let netns = netns.filter(|path| link_check::of_another(path).is_ok());
            network
                .detach(&self.host, netns.as_deref(), &self.interface)
                .map_err(|error| CniError::new(Code::Kernel, error.to_string()))?;
        }
        self.client
            .del(&self.container)
            .map_err(|error| refused(&error))?;
        Ok(())
    }

    fn check(&self, netns: &Path, config: &NetworkConfig, network: &dyn PodNetwork) -> Result<(), CniError> {
        let changed = |message| Err(CniError::new(Code::Changed, message));
        if config.cni_version.starts_with("0.3.") {
            let message = format!(
                "CHECK is not part of CNI {}: it came with 0.4.0",
                config.cni_version
            );
            return Err(CniError::new(Code::IncompatibleVersion, message));
        }
        let (address, address_v6) = config.previous_addresses()?;
        link_check::of_another(netns)?;
        let found = link_check::addresses_in(netns, &self.interface)?;
        let routed = network.addresses_behind(&self.host)?;
        let given = [Some(IpAddr::V4(address)), address_v6.map(IpAddr::V6)];
        for address in given.into_iter().flatten() {
            if !found.contains(&address) {
                return changed(format!(
                    "{} in {} has the addresses {found:?}, not {address}",
                    self.interface,
                    netns.display()
                ));
            }
            if !routed.contains(&address) {
                return changed(format!(
                    "the host has no route to {address} through {}",
                    self.host
                ));
            }
        }
        let request = CheckRequest {
            network: self.container.network.clone(),
            container_id: self.container.container_id.clone(),
            address,
            address_v6,
        };
        match self.client.check(&request) {
            Err(ClientError::Refused(problem)) if !problem.retry => changed(problem.reason),
            result => result.map_err(|error| refused(&error)),
        }
    }
}

fn refused(error: &ClientError) -> CniError {
    let code = if error.is_temporary() {
        Code::TryAgainLater
    } else {
        Code::Refused
    };
    let message = match error {
        ClientError::NoAgent { .. } => {
            format!("{error}; or name another socket as agentSocket in the network configuration")
        }
        _ => error.to_string(),
    };
    CniError::new(code, message)
}

/// Wires pods in this machine's kernel.
struct Kernel;

impl PodNetwork for Kernel {
    fn attach(&self, link: &PodLink) -> Result<PodAttached, DataplaneError> {
        attach_pod(link)
    }

    fn detach(&self, host: &str, netns: Option<&Path>, pod: &str) -> Result<(), DataplaneError> {
        detach_pod(host, netns, pod)
    }

    fn addresses_behind(&self, host: &str) -> Result<Vec<IpAddr>, CniError> {
        link_check::addresses_behind(host)
    }

    fn links_to(&self, addresses: &[IpAddr]) -> Result<Vec<String>, CniError> {
        link_check::links_to(addresses)
    }
}

#[cfg(test)]
mod tests;
