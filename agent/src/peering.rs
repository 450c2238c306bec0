//! With whom this node speaks BGP, how, and what it originates: from Calico's resources to the terms of the speaker.
//!
//! Pure: a function of the cluster. What cannot be right is left out and named in [`Peering::problems`]; it never holds back
//! the rest.

mod exports;
mod interfaces;
mod passwords;
mod paths;
mod peers;
mod policies;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_bgp::config::PeerConfig;
use culvert_bgp::id::Asn;

use crate::api::{BindMode, DEFAULT_NAMESPACE};
use crate::cluster::Cluster;

pub use exports::{EXCLUDE_LABEL, exports, is_service_range};
pub use interfaces::IgnoredInterfaces;
pub use paths::{AddPath, MOST_PREFIXES, PathTerms};

/// The port of BGP (RFC 4271 §8.2.1.5, IANA).
pub const BGP_PORT: u16 = 179;

/// How a node takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaking {
    /// Its AS.
    pub asn: Asn,
    /// The IPv6 address it is known by.
    pub address_v6: Option<Ipv6Addr>,
    /// The port that it listens on, and that the others do unless they say otherwise; none for what the cluster says.
    pub port: Option<u16>,
    /// The namespace of the Secrets with passwords.
    pub secret_namespace: String,
    /// Whether a default route that a router of the network tells of is installed.
    pub accepts_default: bool,
    /// Seconds for which routes that are stale stay after the restart time (RFC 9494 §4.2), here and at the peers.
    pub long_lived_stale_time: u32,
    /// How many paths and routes its sessions carry.
    pub paths: PathTerms,
}

impl Default for Speaking {
    /// In Calico's AS, on the port of BGP, over IPv4.
    fn default() -> Self {
        Self {
            asn: crate::cluster::DEFAULT_AS_NUMBER,
            address_v6: None,
            port: None,
            secret_namespace: DEFAULT_NAMESPACE.to_owned(),
            accepts_default: false,
            long_lived_stale_time: 0,
            paths: PathTerms::default(),
        }
    }
}

/// This node.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// Its name.
    pub node: &'a str,
    /// The IPv4 address it is known by.
    pub address: Ipv4Addr,
    /// How it takes part.
    pub speaking: &'a Speaking,
}

/// With whom this node speaks BGP, and how.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peering {
    /// The terms of the speaker, by the peer's address.
    pub peers: BTreeMap<IpAddr, PeerConfig>,
    /// Why each is a peer.
    pub origins: BTreeMap<IpAddr, Origin>,
    /// Gateways through which peers are reached (`reachableBy`), by the peer's address.
    pub gateways: BTreeMap<IpAddr, IpAddr>,
    /// The interfaces on which there is no router.
    pub ignored_interfaces: IgnoredInterfaces,
    /// Where this node listens.
    pub endpoint: Endpoint,
    /// What is left out, and why.
    pub problems: BTreeSet<Problem>,
}

/// Where a speaker listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The TCP port.
    pub port: u16,
    /// The addresses; empty for all of this host.
    pub addresses: BTreeSet<IpAddr>,
}

/// Why somebody is a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// In which way.
    pub kind: OriginKind,
    /// The node it is, where it is one.
    pub node: Option<String>,
    /// The BGPPeer that says so.
    pub resource: Option<String>,
}

/// In which way somebody is a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OriginKind {
    /// A BGPPeer names this node.
    Node,
    /// A BGPPeer is for all nodes.
    Global,
    /// It is a node of the full mesh.
    Mesh,
}

/// Something in a resource that is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Kind and name of the resource.
    pub resource: String,
    /// What is wrong with it.
    pub fault: Fault,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.resource, self.fault)
    }
}

/// Why something is left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    /// A selector that cannot be read.
    #[error("{field} cannot be read, and the peer is left out: {reason}")]
    Selector {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither an address nor nodes.
    #[error("it says neither by peerIP and asNumber nor by peerSelector who the peer is, and is left out")]
    NoPeer,
    /// Pods as peers.
    #[error("Culvert does not speak BGP with pods: {field} is left out")]
    Workloads {
        /// The field.
        field: &'static str,
    },
    /// Two resources, one peer.
    #[error("{address} is a peer already, by BGPPeer {by}, and is left out here: keep one of the two")]
    Twice {
        /// The peer.
        address: IpAddr,
        /// The resource that counts.
        by: String,
    },
    /// No address of this node's for the family.
    #[error(
        "this node advertises no IPv6 address to reach {peer} from: give it one, or set sourceAddress to None"
    )]
    NoSource {
        /// The peer.
        peer: IpAddr,
    },
    /// A filter that is not there.
    #[error("there is no BGPFilter {name}: create it, or take it out of filters; the others are applied")]
    NoFilter {
        /// Its name.
        name: String,
    },
    /// A rule by the interface that a route leads to. Which one that is the kernel's routes say, and they may change at any
    /// time; the filters are the speaker's, which knows of none.
    #[error(
        "{rule} asks for interface {interface}, of which filters of routes from and to peers know nothing: the rule is \
         applied to no route; use cidr, source, peerType or communities"
    )]
    Interface {
        /// Its place.
        rule: String,
        /// What it asks for.
        interface: String,
    },
    /// An annotation that cannot be read.
    #[error("the annotation {annotation} is {value:?}, and is passed over: it may be {allowed}")]
    Annotation {
        /// Its name.
        annotation: &'static str,
        /// What it says.
        value: String,
        /// What it may say.
        allowed: &'static str,
    },
    /// A rule that the datastore let through though it is not valid.
    #[error("{rule} is not valid, and is passed over")]
    Rule {
        /// Its place.
        rule: String,
    },
    /// A name that stands for no community.
    #[error(
        "prefixAdvertisements of {range} name the community {name}, which communities does not define: it is left out; add it there"
    )]
    NoCommunity {
        /// The range.
        range: String,
        /// The name.
        name: String,
    },
    /// A secret that is not there.
    #[error(
        "the password is in Secret {namespace}/{name}, which is not there: no session without it; create the Secret"
    )]
    NoSecret {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// A key that is not in the secret.
    #[error(
        "the password is under key {key} of Secret {namespace}/{name}, which has {keys}: no session without it; add the key"
    )]
    NoKey {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The key.
        key: String,
        /// The keys that it has.
        keys: String,
    },
    /// A password that no session can have.
    #[error(
        "the password under key {key} of Secret {namespace}/{name} has {length} octets: 1 to 80 octets of text are allowed"
    )]
    Password {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The key.
        key: String,
        /// Its length in octets.
        length: usize,
    },
}

/// With whom this node speaks BGP, and how.
#[must_use]
pub fn peering(local: Local<'_>, cluster: &Cluster) -> Peering {
    let mut peering = Peering {
        endpoint: endpoint(local, cluster),
        ignored_interfaces: IgnoredInterfaces::new(local, cluster),
        ..Peering::default()
    };
    let mut policies = policies::Policies::new(local, cluster);
    peers::add_configured(local, cluster, &mut policies, &mut peering);
    peers::add_mesh(local, cluster, &mut policies, &mut peering);
    peering.problems.extend(policies.into_problems());
    for field in ["localWorkloadPeeringIPV4", "localWorkloadPeeringIPV6"] {
        if cluster.bgp().configuration().unknown.contains_key(field) {
            peering.problems.insert(Problem {
                resource: "BGPConfiguration default".to_owned(),
                fault: Fault::Workloads { field },
            });
        }
    }
    peering
}

/// Where this node listens.
#[must_use]
pub fn endpoint(local: Local<'_>, cluster: &Cluster) -> Endpoint {
    let bgp = cluster.bgp();
    let port = local.speaking.port.or_else(|| bgp.listen_port(local.node));
    let mode = bgp.setting(local.node, |bgp| bgp.bind_mode);
    Endpoint {
        port: port.unwrap_or(BGP_PORT),
        addresses: match mode.unwrap_or_default() {
            BindMode::None => BTreeSet::new(),
            BindMode::NodeIP => local.addresses().collect(),
        },
    }
}

impl Local<'_> {
    /// Its addresses.
    pub fn addresses(self) -> impl Iterator<Item = IpAddr> + use<> {
        let v6 = self.speaking.address_v6.map(IpAddr::V6);
        std::iter::once(IpAddr::V4(self.address)).chain(v6)
    }

    /// The address by which peers of the family of `peer` know it.
    #[must_use]
    pub fn address_for(self, peer: IpAddr) -> Option<IpAddr> {
        match peer {
            IpAddr::V4(_) => Some(IpAddr::V4(self.address)),
            IpAddr::V6(_) => self.speaking.address_v6.map(IpAddr::V6),
        }
    }
}

#[cfg(test)]
mod tests;
