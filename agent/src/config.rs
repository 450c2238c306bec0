//! The agent's configuration: a YAML file, overlaid by the environment.
//!
//! Every field has a default. The field `bgp.listenPort` of the file is the variable `CULVERT_BGP_LISTEN_PORT` of the
//! environment, and the environment wins.

mod differences;
mod values;
mod variables;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_yaml::Value;

use crate::api::{AdvertisedAddress, DEFAULT_NAMESPACE};
use crate::collector::CollectionMode;
use crate::datastore::{Access, Location};
use crate::filter::UnknownTunnelPeers;
use crate::logging::{Format, Level};
use crate::peering::{AddPath, MOST_PREFIXES};

use variables::{VARIABLES, Variable};

pub use values::{HoldSeconds, NodeName, Ranged, Switch};

/// What the agent is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Whether the agent routes, or only says what it would change. Default: `active`.
    pub mode: Mode,
    /// Name of this node's Node object. Default: the host name.
    pub node_name: NodeName,
    /// Where the resources live.
    pub datastore: DatastoreConfig,
    /// What the agent keeps on this host.
    pub state: StateConfig,
    /// What is not believed at once.
    pub safety: SafetyConfig,
    /// How this node is known to the others.
    pub node: NodeConfig,
    /// The BGP speaker.
    pub bgp: BgpConfig,
    /// Unix socket for `culvert node status` and the CNI plugin. Default: `/run/culvert/agent.sock`.
    pub socket: PathBuf,
    /// Metrics and health.
    pub http: HttpConfig,
    /// The routes this agent installs.
    pub routes: RouteConfig,
    /// The tunnel device.
    pub tunnel: TunnelConfig,
    /// The packet filter.
    pub filter: FilterConfig,
    /// Garbage collection: addresses, handles, blocks and claims that pods and nodes which are gone have left.
    pub garbage_collection: GarbageCollectionConfig,
    /// The log.
    pub log: LogConfig,
}

/// What the agent does with what it computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// It routes.
    #[default]
    Active,
    /// It says what it would change in the kernel, and writes nothing anywhere.
    Shadow,
}

/// Where the resources live.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DatastoreConfig {
    /// A folder of YAML manifests. Default: `/var/lib/culvert/datastore`.
    pub directory: PathBuf,
    /// The API server of Kubernetes, in place of the folder. Default: none.
    pub kubernetes: Option<KubernetesConfig>,
    /// Seconds for which a start waits for all of the datastore before it goes by the last good copy, 1 to 3600.
    /// Default: 10.
    pub sync_timeout: Ranged<1, 3_600>,
}

/// How the API server of Kubernetes is found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct KubernetesConfig {
    /// A kubeconfig file, of which the current context counts. Default, also when it is empty: the service account of the
    /// pod that the agent runs in.
    pub kubeconfig: PathBuf,
}

/// What the agent keeps on this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StateConfig {
    /// Folder of the last good copy of the datastore. Default: `/var/lib/culvert/state`.
    pub directory: PathBuf,
}

/// What is not believed at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SafetyConfig {
    /// How many percent of the nodes, or of the confirmed blocks, may vanish from the datastore at once, 1 to 100. More, or
    /// a pool in use, and nothing is withdrawn until they are back or somebody confirms; 100 believes everything.
    /// Default: 50.
    pub max_vanish_share: Ranged<1, 100>,
}

/// How this node is known to the others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeConfig {
    /// The IPv4 address to advertise, with or without prefix length. Default: the InternalIP of the Node object, else
    /// the only address of this host that comes into question.
    #[serde(deserialize_with = "values::ipv4_address")]
    pub address: Option<AdvertisedAddress>,
    /// The IPv6 address to advertise, with or without prefix length. Default, where there is a pool of IPv6: the first
    /// InternalIP of IPv6 of the Node object, else the only address of this host that comes into question; else none.
    #[serde(deserialize_with = "values::ipv6_address")]
    pub address_v6: Option<AdvertisedAddress>,
    /// The AS number of this node, 1 to 4294967295. Default: that of the Node object, else the cluster's
    /// (BGPConfiguration `default`), else 64512.
    pub as_number: Option<Ranged<1, 4_294_967_295>>,
}

/// The BGP speaker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BgpConfig {
    /// TCP port to listen on and to dial, 1 to 65535. Default: the cluster's (BGPConfiguration `default`), else 179.
    pub listen_port: Option<Ranged<1, 65_535>>,
    /// Seconds of silence after which a session is down: 0 for never, else 3 to 65535. Default: 90.
    pub hold_time: HoldSeconds,
    /// Seconds between two attempts to reach a peer, 1 to 3600. Default: 5.
    pub connect_retry: Ranged<1, 3_600>,
    /// Seconds for which peers are asked to keep this node's routes while its agent restarts, 0 to 4095. Default: 120.
    pub restart_time: Ranged<0, 4_095>,
    /// Seconds, after those of `restart_time`, for which routes of a node that is gone are kept as the last choice, here and at
    /// peers that ask for no less (RFC 9494 §4.2), 0 to 16777215. Default: 0, not at all.
    pub long_lived_stale_time: Ranged<0, 16_777_215>,
    /// The namespace of the Secrets with the passwords of peers. Default: `default`.
    pub secret_namespace: String,
    /// `off`, `receive`, `send` or `both`: whether sessions carry several paths to one destination (RFC 7911), as far as the
    /// peer can. The annotation `culvert/add-path` of a BGPPeer says otherwise for its peers. Default: off.
    pub add_path: AddPath,
    /// The most routes of a family that are taken from a peer, 1 to 10000000; with more its session ends for a minute. The
    /// annotation `culvert/max-prefixes` of a BGPPeer says otherwise for its peers. Default: 200000.
    pub max_prefixes: Ranged<1, MOST_PREFIXES>,
    /// The most next hops that a route has at once where several paths are equally good, 1 to 64. Default: 16, as BIRD has it.
    pub multipath: Ranged<1, 64>,
    /// `on` or `off`: whether nothing is taken from a peer in another AS for which no BGPFilter has import rules (RFC 8212;
    /// what it is told has Calico's own rules in any case). Default: off, as Calico has it.
    pub external_needs_policy: Switch,
    /// `on` or `off`: whether a default route that a router tells of (a BGPPeer that is no node) is installed. Default: off.
    pub accept_default_route: Switch,
}

/// Metrics, health, and questions that change nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Address and port of `/metrics`, `/healthz`, `/readyz`, and of what `culvert status` asks under `/v1`: others reach it
    /// only where this is no loopback address. Default: `127.0.0.1:9179`.
    #[serde(deserialize_with = "values::socket_address")]
    pub listen: SocketAddr,
    /// `on` or `off`: whether each peer has series of its own in `/metrics`, or only those that have no session. A thousand
    /// nodes with a thousand peers each are a million. Default: off.
    pub peer_metrics: Switch,
}

/// The routes this agent installs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteConfig {
    /// The protocol number that marks them (`proto`), 5 to 255. Whatever carries it is this agent's to change and to
    /// remove. Default: 86.
    pub protocol: Ranged<5, 255>,
    /// `on` or `off`: whether encapsulated packets leave with the advertised address as their outer source, whatever the
    /// host's own routes would pick. Default: on.
    pub source_pin: Switch,
    /// The routing table for the routes that do this, 256 to 4294967295. It must be nobody else's. Default: 886.
    pub pin_table: Ranged<256, 4_294_967_295>,
}

/// The tunnel device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TunnelConfig {
    /// MTU of `tunl0` in bytes, 576 to 65515. Default: that of the link with the advertised address, less 20.
    pub mtu: Option<Ranged<576, 65_515>>,
    /// Whether `tunl0` forbids routers to fragment any tunnelled packet (DF in the outer header, `pmtudisc`). If not, the
    /// inner packet's own DF is copied there. Default: as the device is.
    pub path_mtu_discovery: Option<bool>,
}

/// The packet filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FilterConfig {
    /// `drop` or `off`: what happens to IPIP packets from an address that no node advertises. Default: `drop`.
    pub unknown_tunnel_peers: UnknownTunnelPeers,
}

/// Garbage collection. One agent of the cluster does it: whichever holds the Lease `culvert-ipam-gc` in `kube-system`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GarbageCollectionConfig {
    /// `enabled`; `dryRun`, which only says what would be taken back; or `disabled`. Default: enabled.
    pub mode: CollectionMode,
    /// Seconds between two looks at all pods, nodes, blocks and handles of the cluster, 1 to 86400. Nothing is taken back
    /// that was not seen to be left over twice. The same look measures the pools. Default: 450, half of Calico's grace period.
    pub interval: Ranged<1, 86_400>,
    /// Seconds for which an address must have no pod, though its node is there, and a block no address, before it is taken
    /// back, 0 to 604800; 0 never takes back either. Default: 900, as in Calico.
    pub grace_period: Ranged<0, 604_800>,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LogConfig {
    /// `human` or `json`. Default: `human`.
    pub format: Format,
    /// `error`, `warn`, `info`, `debug`, `trace` or `off`, and exceptions for single targets. Default: `info`.
    pub level: Level,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            node_name: NodeName::of_host(),
            datastore: DatastoreConfig::default(),
            state: StateConfig::default(),
            safety: SafetyConfig::default(),
            node: NodeConfig::default(),
            bgp: BgpConfig::default(),
            socket: PathBuf::from("/run/culvert/agent.sock"),
            http: HttpConfig::default(),
            routes: RouteConfig::default(),
            tunnel: TunnelConfig::default(),
            filter: FilterConfig::default(),
            garbage_collection: GarbageCollectionConfig::default(),
            log: LogConfig::default(),
        }
    }
}

impl Default for DatastoreConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/culvert/datastore"),
            kubernetes: None,
            sync_timeout: const { Ranged::new(10) },
        }
    }
}

impl DatastoreConfig {
    /// Where the resources live.
    #[must_use]
    pub fn location(&self) -> Location {
        match &self.kubernetes {
            None => Location::Directory(self.directory.clone()),
            Some(KubernetesConfig { kubeconfig }) if kubeconfig.as_os_str().is_empty() => {
                Location::Kubernetes(Access::InCluster)
            }
            Some(KubernetesConfig { kubeconfig }) => {
                Location::Kubernetes(Access::Kubeconfig(kubeconfig.clone()))
            }
        }
    }
}

impl Default for StateConfig {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("/var/lib/culvert/state"),
        }
    }
}

impl Default for SafetyConfig {
    fn default() -> Self {
        Self {
            max_vanish_share: const { Ranged::new(50) },
        }
    }
}

impl Default for BgpConfig {
    fn default() -> Self {
        Self {
            listen_port: None,
            hold_time: HoldSeconds::default(),
            connect_retry: const { Ranged::new(5) },
            restart_time: const { Ranged::new(120) },
            long_lived_stale_time: const { Ranged::new(0) },
            secret_namespace: DEFAULT_NAMESPACE.to_owned(),
            add_path: AddPath::Off,
            max_prefixes: const { Ranged::new(200_000) },
            multipath: const { Ranged::new(16) },
            external_needs_policy: Switch(false),
            accept_default_route: Switch(false),
        }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9179)),
            peer_metrics: Switch(false),
        }
    }
}

impl Default for GarbageCollectionConfig {
    fn default() -> Self {
        Self {
            mode: CollectionMode::default(),
            interval: const { Ranged::new(450) },
            grace_period: const { Ranged::new(900) },
        }
    }
}

impl Default for RouteConfig {
    fn default() -> Self {
        Self {
            protocol: const { Ranged::new(86) },
            source_pin: Switch(true),
            pin_table: const { Ranged::new(886) },
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not YAML, or not a mapping.
    #[error("configuration file {}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        source: serde_yaml::Error,
    },
    /// A field is unknown, or its value is not allowed.
    #[error("{origin}: {field}: {source}")]
    Field {
        /// The file, or the variable of the environment.
        origin: String,
        /// The field, `bgp.listenPort`.
        field: String,
        /// The value, and what is allowed.
        source: serde_yaml::Error,
    },
    /// The name on the command line is no node name.
    #[error(
        "--node-name {name}: not a node name (lower case letters, digits, '-' and '.', at most 253); name the Node object of this host"
    )]
    NodeName {
        /// What was given.
        name: String,
    },
}

impl Config {
    /// Reads the file at `path` (none: all defaults), overlays the environment's `CULVERT_*`, then `node_name`.
    ///
    /// # Errors
    /// When the file cannot be read or a field of it, or of the environment, is wrong; nothing else happens then.
    pub fn load(path: Option<&Path>, node_name: Option<&str>) -> Result<Self, ConfigError> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
                path: path.to_owned(),
                source,
            })?,
            None => String::new(),
        };
        let environment = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.to_string_lossy().into_owned())))
            .filter(|(k, _)| k.starts_with("CULVERT_"))
            .collect();
        let mut config = Self::parse(&text, path.unwrap_or(Path::new("(none)")), &environment)?;
        if let Some(name) = node_name {
            config.node_name = NodeName::new(name).ok_or_else(|| ConfigError::NodeName {
                name: name.to_owned(),
            })?;
        }
        Ok(config)
    }

    /// Reads the file's text and the environment. Variables that name no field are left alone: Kubernetes makes some
    /// (`CULVERT_SERVICE_HOST`) for a Service of this name.
    fn parse(text: &str, path: &Path, environment: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let syntax = |source| ConfigError::Syntax {
            path: path.to_owned(),
            source,
        };
        let mut value: Value = serde_yaml::from_str(text).map_err(syntax)?;
        drop_nulls(&mut value);
        if value.is_null() {
            value = Value::Mapping(serde_yaml::Mapping::new());
        }
        for variable in VARIABLES {
            if let Some(text) = environment.get(&variable.name()) {
                set(&mut value, variable.path, variable.value(text));
            }
        }
        serde_path_to_error::deserialize(value).map_err(|error| {
            let field = error.path().to_string();
            let variable = VARIABLES
                .iter()
                .find(|v| v.path.join(".") == field)
                .map(Variable::name);
            let origin = match variable.filter(|name| environment.contains_key(name)) {
                Some(name) => format!("environment variable {name}"),
                None => format!("configuration file {}", path.display()),
            };
            ConfigError::Field {
                origin,
                field,
                source: error.into_inner(),
            }
        })
    }
}

/// A section left empty means its defaults.
fn drop_nulls(value: &mut Value) {
    if let Value::Mapping(mapping) = value {
        mapping.retain(|_, v| !v.is_null());
        mapping.values_mut().for_each(drop_nulls);
    }
}

/// Puts `leaf` at `path`, unless a section on the way is no section: then the file's own error is told.
fn set(value: &mut Value, path: &[&str], leaf: Value) {
    let (Some((first, rest)), Value::Mapping(mapping)) = (path.split_first(), value) else {
        return;
    };
    if rest.is_empty() {
        mapping.insert(Value::from(*first), leaf);
    } else {
        let section = mapping
            .entry(Value::from(*first))
            .or_insert_with(|| Value::Mapping(serde_yaml::Mapping::new()));
        set(section, rest, leaf);
    }
}

#[cfg(test)]
mod tests;
