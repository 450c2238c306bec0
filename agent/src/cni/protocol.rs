//! The Container Network Interface, versions 0.3.0 to 1.1.0: what the container runtime says in the environment and on
//! standard input, and what it is told on standard output.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::POD_GATEWAY;

/// The versions of the specification that are spoken, oldest first.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Where the agent listens unless the configuration names another socket.
const DEFAULT_SOCKET: &str = "/run/culvert/agent.sock";

/// A network's name or a container's id: begins with a letter or a digit, goes on with those, `_`, `.` and `-`
/// (CNI specification, sections 1 and 2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: it must begin with a letter or digit and go on with letters, digits, '_', '.' and '-'"
)]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod of Kubernetes, from `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
}

/// What the runtime wants (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// Tell whether it is still attached as it was.
    Check,
    /// Tell whether the plugin can attach containers now.
    Status,
    /// Forget the containers that are not named.
    Gc,
    /// Tell the versions that are spoken.
    Version,
}

/// The environment of a call. Each part is checked when a command asks for it.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok().filter(|name| name.starts_with("CNI_"))?;
                Some((name, value.to_string_lossy().into_owned()))
            })
            .collect()
    }

    /// `CNI_COMMAND`.
    ///
    /// # Errors
    /// When it is absent or unknown.
    pub fn command(&self) -> Result<Command, CniError> {
        match self.required("CNI_COMMAND")? {
            "ADD" => Ok(Command::Add),
            "DEL" => Ok(Command::Del),
            "CHECK" => Ok(Command::Check),
            "STATUS" => Ok(Command::Status),
            "GC" => Ok(Command::Gc),
            "VERSION" => Ok(Command::Version),
            other => Err(CniError::environment(format!(
                "CNI_COMMAND is {other:?}: it must be ADD, DEL, CHECK, STATUS, GC or VERSION"
            ))),
        }
    }

    /// `CNI_CONTAINERID`.
    ///
    /// # Errors
    /// When it is absent or no [`Name`].
    pub fn container_id(&self) -> Result<Name, CniError> {
        self.required("CNI_CONTAINERID")?
            .parse()
            .map_err(|error| CniError::environment(format!("CNI_CONTAINERID: {error}")))
    }

    /// `CNI_IFNAME`: what the kernel allows as a name of an interface (net/core/dev.c `dev_valid_name`).
    ///
    /// # Errors
    /// When it is absent or not allowed.
    pub fn interface(&self) -> Result<String, CniError> {
        let name = self.required("CNI_IFNAME")?;
        let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.len() > 15 || name == "." || name == ".." || name.contains(forbidden) {
            return Err(CniError::environment(format!(
                "CNI_IFNAME is {name:?}: a name of an interface has at most 15 bytes, no '/', ':' or white space, \
                 and is not '.' or '..'"
            )));
        }
        Ok(name.to_owned())
    }

    /// `CNI_NETNS`, if there is one.
    #[must_use]
    pub fn netns(&self) -> Option<PathBuf> {
        self.0
            .get("CNI_NETNS")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
    }

    /// `CNI_NETNS`, for the commands that cannot do without.
    ///
    /// # Errors
    /// When it is absent.
    pub fn required_netns(&self) -> Result<PathBuf, CniError> {
        self.required("CNI_NETNS").map(PathBuf::from)
    }

    /// The pod that `CNI_ARGS` names, if it names one.
    ///
    /// # Errors
    /// When an argument is no `KEY=VALUE`, or only half of the pod is named, or its name is none of Kubernetes.
    pub fn pod(&self) -> Result<Option<Pod>, CniError> {
        let mut arguments = BTreeMap::new();
        let text = self.0.get("CNI_ARGS").map_or("", String::as_str);
        for argument in text.split(';').filter(|argument| !argument.is_empty()) {
            let (key, value) = argument.split_once('=').ok_or_else(|| {
                CniError::environment(format!(
                    "CNI_ARGS has {argument:?}: it must be KEY=VALUE;KEY=VALUE"
                ))
            })?;
            arguments.insert(key, value);
        }
        match (arguments.get("K8S_POD_NAMESPACE"), arguments.get("K8S_POD_NAME")) {
            (None, None) => Ok(None),
            (Some(namespace), Some(name)) => Ok(Some(Pod {
                namespace: pod_name("K8S_POD_NAMESPACE", namespace)?,
                name: pod_name("K8S_POD_NAME", name)?,
            })),
            (Some(_), None) => Err(CniError::environment(
                "CNI_ARGS has K8S_POD_NAMESPACE but no K8S_POD_NAME".to_owned(),
            )),
            (None, Some(_)) => Err(CniError::environment(
                "CNI_ARGS has K8S_POD_NAME but no K8S_POD_NAMESPACE".to_owned(),
            )),
        }
    }

    fn required(&self, name: &str) -> Result<&str, CniError> {
        match self.0.get(name).map(String::as_str) {
            None | Some("") => Err(CniError::environment(format!("{name} is not set"))),
            Some(value) => Ok(value),
        }
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// A DNS subdomain of RFC 1123, as Kubernetes wants its names.
fn pod_name(key: &str, value: &str) -> Result<String, CniError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    if value.is_empty() || value.len() > 253 || !value.chars().all(allowed) {
        return Err(CniError::environment(format!(
            "CNI_ARGS has {key}={value:?}: a name has 1 to 253 lower case letters, digits, '.' and '-'"
        )));
    }
    Ok(value.to_owned())
}

/// The network's configuration, from standard input.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The version of the specification that the runtime speaks, and wants the answer in.
    pub cni_version: String,
    /// The network's name.
    pub name: Name,
    /// Where the agent listens.
    #[serde(default = "default_socket")]
    pub agent_socket: PathBuf,
    /// Resolver settings, handed through.
    #[serde(default)]
    pub dns: Option<serde_json::Value>,
    /// Another plugin that would allocate addresses.
    #[serde(default)]
    ipam: Option<ForeignIpam>,
    /// What ADD answered, for CHECK.
    #[serde(default)]
    pub prev_result: Option<PreviousResult>,
}

#[derive(Clone, Debug, Deserialize)]
struct ForeignIpam {
    #[serde(rename = "type")]
    plugin: Option<String>,
}

/// The part of an earlier result that CHECK holds against what is there.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PreviousResult {
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<PreviousAddress>,
}

/// An address of an earlier result.
#[derive(Clone, Debug, Deserialize)]
pub struct PreviousAddress {
    /// With its prefix length.
    pub address: ipnet::IpNet,
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

/// The version that a configuration asks for, whatever else is in it: even a refusal is written in it.
#[must_use]
pub fn asked_version(input: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        cni_version: String,
    }
    serde_json::from_slice::<Asked>(input)
        .ok()
        .map(|asked| asked.cni_version)
}

impl NetworkConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When it is not JSON, a field is missing or wrong, the version is not spoken, or it names an IPAM plugin.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        // The version comes first: of a version that is not spoken, the other fields may mean something else.
        if let Some(version) = asked_version(input)
            && !VERSIONS.contains(&version.as_str())
        {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!(
                    "cniVersion {version:?} is not spoken: choose one of {}",
                    VERSIONS.join(", ")
                ),
            ));
        }
        let json = &mut serde_json::Deserializer::from_slice(input);
        let config: Self = serde_path_to_error::deserialize(json).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            match error.classify() {
                serde_json::error::Category::Data if path == "." => {
                    CniError::new(Code::InvalidConfig, format!("network configuration: {error}"))
                }
                serde_json::error::Category::Data => CniError::new(
                    Code::InvalidConfig,
                    format!("network configuration, field {path}: {error}"),
                ),
                _ => CniError::new(
                    Code::Undecodable,
                    format!("network configuration is not JSON: {error}"),
                ),
            }
        })?;
        if let Some(plugin) = config.ipam.as_ref().and_then(|ipam| ipam.plugin.as_deref()) {
            return Err(CniError::new(
                Code::UnsupportedField,
                format!("ipam.type is {plugin:?}, but the agent allocates the addresses: leave ipam out"),
            ));
        }
        Ok(config)
    }
}

/// The codes of errors that the specification knows, and our own from 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version is not spoken.
    IncompatibleVersion = 1,
    /// A field of the configuration is not supported.
    UnsupportedField = 2,
    /// The container is not there: nothing needs to be cleaned up.
    UnknownContainer = 3,
    /// A variable of the environment is absent or wrong.
    InvalidEnvironment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// The configuration is not JSON.
    Undecodable = 6,
    /// The configuration is wrong.
    InvalidConfig = 7,
    /// It may work later.
    TryAgainLater = 11,
    /// Containers cannot be attached now (STATUS).
    NotAvailable = 50,
    /// The agent refused.
    Refused = 100,
    /// The kernel refused.
    Kernel = 101,
    /// What CHECK found is not what ADD made.
    Changed = 102,
}

/// An error as the runtime is told it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// What kind of error.
    pub code: Code,
    /// What is wrong, and with what.
    pub message: String,
}

impl CniError {
    /// An error of this kind.
    #[must_use]
    pub fn new(code: Code, message: String) -> Self {
        Self { code, message }
    }

    fn environment(message: String) -> Self {
        Self::new(Code::InvalidEnvironment, message)
    }

    /// The error as the runtime reads it on standard output.
    #[must_use]
    pub fn to_json(&self, version: &str, details: &str) -> serde_json::Value {
        serde_json::json!({
            "cniVersion": version, "code": self.code as u32, "msg": self.message, "details": details,
        })
    }
}

/// What ADD made.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    /// The host's end of the veth pair.
    pub host: LinkEnd,
    /// The pod's end.
    pub pod: LinkEnd,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Bytes, of both ends.
    pub mtu: u32,
}

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkEnd {
    /// The interface's name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
}

impl Attached {
    /// The result in the shape that `config` asks for: before 1.0.0 an address tells its family, since 1.1.0 an
    /// interface tells its MTU.
    #[must_use]
    pub fn to_json(&self, config: &NetworkConfig) -> serde_json::Value {
        let version = config.cni_version.as_str();
        let mut host = serde_json::json!({ "name": self.host.name, "mac": self.host.mac });
        let mut pod = serde_json::json!({
            "name": self.pod.name, "mac": self.pod.mac, "sandbox": self.netns,
        });
        let address = Ipv4Net::from(self.address);
        let mut ip = serde_json::json!({ "interface": 1, "address": address, "gateway": POD_GATEWAY });
        if version.starts_with("0.") {
            ip["version"] = "4".into();
        }
        if version == "1.1.0" {
            host["mtu"] = self.mtu.into();
            pod["mtu"] = self.mtu.into();
        }
        let mut result = serde_json::json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": [ip],
            "routes": [{ "dst": "0.0.0.0/0", "gw": POD_GATEWAY }],
        });
        if let Some(dns) = &config.dns {
            result["dns"] = dns.clone();
        }
        result
    }
}
