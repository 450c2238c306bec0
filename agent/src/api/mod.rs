//! The resources: Calico's custom resources (`crd.projectcalico.org/v1`) and the Kubernetes Node, one file a kind.
//!
//! Fields that are not known here are kept and written back, so that a newer writer loses nothing.

mod bgp_configuration;
mod bgp_filter;
mod bgp_peer;
mod block_affinity;
mod definition;
mod endpoint_slice;
mod ip_pool;
mod ip_reservation;
mod ipam_block;
mod ipam_config;
mod ipam_handle;
mod lease;
mod metadata;
mod namespace;
mod node;
mod pod;
mod record;
mod secret;
mod service;
mod text;
mod validate;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use bgp_configuration::{
    Aggregation, BgpConfiguration, BgpConfigurationSpec, BindMode, NamedCommunity, PrefixAdvertisement,
    ServiceCidr,
};
pub use bgp_filter::{
    AddCommunity, BgpFilter, BgpFilterSpec, CommunityMatch, FilterAction, FilterOperation, FilterRule,
    MatchOperator, MatchSource, PeerTypeMatch, PrefixLengths, PrependAsPath, SetPriority,
};
pub use bgp_peer::{
    BgpPassword, BgpPeer, BgpPeerSpec, NextHopMode, ReversePeering, SecretKeyRef, SourceAddress,
    peer_annotation,
};
pub use block_affinity::BlockAffinity;
pub use definition::definition;
pub use endpoint_slice::{Endpoint, EndpointConditions, EndpointSlice, SERVICE_NAME_LABEL};
pub use ip_pool::{EncapsulationMode, IpPool, IpPoolSpec};
pub use ip_reservation::{IpReservation, IpReservationSpec};
pub use ipam_block::IpamBlock;
pub use ipam_config::{IpamConfig, IpamConfigSpec};
pub use ipam_handle::IpamHandle;
pub use lease::{Lease, LeaseSpec};
pub use metadata::Metadata;
pub use namespace::Namespace;
pub use node::{AdvertisedAddress, Node, NodeAddress, NodeSpec, NodeStatus, annotation};
pub use pod::{Pod, PodIp, PodSpec, PodStatus};
pub use record::{Record, RecordError};
pub use secret::Secret;
pub use service::{
    ExternalTrafficPolicy, LoadBalancerIngress, LoadBalancerStatus, Service, ServiceSpec, ServiceStatus,
};
pub use text::{AsNumber, GoDuration, PeerAddress, community};
pub use validate::{FieldError, NAME_MAX, check_name};

/// The API group and version of Calico's custom resources.
pub const CALICO_API_VERSION: &str = "crd.projectcalico.org/v1";

/// Fields that this version does not know, kept for the next write.
pub type UnknownFields = BTreeMap<String, serde_json::Value>;

/// Reads `null` as what the type has where nothing is said, as the API server does: `labels:` with nothing after it.
pub(crate) fn null_as_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Reads `null` and an empty text as nothing, as Calico does where it says "if non-empty".
pub(crate) fn empty_as_none<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: DeserializeOwned,
    D: serde::Deserializer<'de>,
{
    match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::Null => Ok(None),
        serde_json::Value::String(text) if text.is_empty() => Ok(None),
        value => serde_json::from_value(value)
            .map(Some)
            .map_err(serde::de::Error::custom),
    }
}

/// A kind of resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Node.
    Node,
    /// A range of pod addresses.
    IpPool,
    /// Addresses that are not given out unless somebody asks for them by name.
    IpReservation,
    /// Settings of the BGP speakers.
    BgpConfiguration,
    /// A block of addresses of a pool, and who has each.
    IpamBlock,
    /// Which node a block belongs to.
    BlockAffinity,
    /// The addresses that one owner has.
    IpamHandle,
    /// Settings of address allocation.
    IpamConfig,
    /// Who is a BGP peer of which nodes, and how.
    BgpPeer,
    /// Which routes are taken from a peer, and told to it.
    BgpFilter,
    /// core/v1 Secret: passwords of BGP peers.
    Secret,
    /// core/v1 Service: the addresses that are advertised for it.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice: on which nodes a service is.
    EndpointSlice,
    /// core/v1 Pod: who an address is for.
    Pod,
    /// core/v1 Namespace: by whose labels pools are chosen.
    Namespace,
    /// coordination.k8s.io/v1 Lease: who does what only one may do.
    Lease,
}

impl Kind {
    /// Every kind, in the order in which a datastore reads them.
    pub const ALL: [Kind; 16] = [
        Kind::Node,
        Kind::IpPool,
        Kind::IpReservation,
        Kind::BgpConfiguration,
        Kind::BgpFilter,
        Kind::BgpPeer,
        Kind::Secret,
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Namespace,
        Kind::Pod,
        Kind::Lease,
        Kind::IpamConfig,
        Kind::BlockAffinity,
        Kind::IpamBlock,
        Kind::IpamHandle,
    ];

    /// The `kind` of a manifest.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::IpPool => "IPPool",
            Kind::IpReservation => "IPReservation",
            Kind::BgpConfiguration => "BGPConfiguration",
            Kind::IpamBlock => "IPAMBlock",
            Kind::BlockAffinity => "BlockAffinity",
            Kind::IpamHandle => "IPAMHandle",
            Kind::IpamConfig => "IPAMConfig",
            Kind::BgpPeer => "BGPPeer",
            Kind::BgpFilter => "BGPFilter",
            Kind::Secret => "Secret",
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Pod => "Pod",
            Kind::Namespace => "Namespace",
            Kind::Lease => "Lease",
        }
    }

    /// The `apiVersion` of a manifest.
    #[must_use]
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Node | Kind::Secret | Kind::Service | Kind::Pod | Kind::Namespace => "v1",
            Kind::EndpointSlice => "discovery.k8s.io/v1",
            Kind::Lease => "coordination.k8s.io/v1",
            _ => CALICO_API_VERSION,
        }
    }

    /// The name of the collection in the API, and of the folder in a directory datastore.
    #[must_use]
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Node => "nodes",
            Kind::IpPool => "ippools",
            Kind::IpReservation => "ipreservations",
            Kind::BgpConfiguration => "bgpconfigurations",
            Kind::IpamBlock => "ipamblocks",
            Kind::BlockAffinity => "blockaffinities",
            Kind::IpamHandle => "ipamhandles",
            Kind::IpamConfig => "ipamconfigs",
            Kind::BgpPeer => "bgppeers",
            Kind::BgpFilter => "bgpfilters",
            Kind::Secret => "secrets",
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Pod => "pods",
            Kind::Namespace => "namespaces",
            Kind::Lease => "leases",
        }
    }

    /// Whether its objects live in namespaces: then two of one name may stand side by side.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        match self {
            Kind::Service | Kind::EndpointSlice | Kind::Secret | Kind::Pod | Kind::Lease => true,
            Kind::Node
            | Kind::Namespace
            | Kind::IpPool
            | Kind::IpReservation
            | Kind::BgpConfiguration
            | Kind::BgpPeer
            | Kind::BgpFilter
            | Kind::IpamBlock
            | Kind::BlockAffinity
            | Kind::IpamHandle
            | Kind::IpamConfig => false,
        }
    }

    /// The kind that a manifest names.
    #[must_use]
    pub fn of_manifest(api_version: &str, kind: &str) -> Option<Kind> {
        Kind::ALL
            .into_iter()
            .find(|k| k.as_str() == kind && k.api_version() == api_version)
    }
}

/// The namespace of an object of a namespaced kind that names none, as `kubectl apply` has it.
pub const DEFAULT_NAMESPACE: &str = "default";

/// An object's kind and name, and its namespace where its kind has one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its kind.
    pub kind: Kind,
    /// Its `metadata.namespace`; none for a kind that lives in no namespace.
    pub namespace: Option<String>,
    /// Its `metadata.name`.
    pub name: String,
}

impl Key {
    /// The key of the object of this kind and name, in the namespace `default` where the kind has one.
    #[must_use]
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self::namespaced(kind, None, name)
    }

    /// The key of the object of this kind, namespace and name. No namespace is `default`; for a kind that lives in none,
    /// it is left out.
    #[must_use]
    pub fn namespaced(kind: Kind, namespace: Option<&str>, name: impl Into<String>) -> Self {
        let namespace = namespace.filter(|namespace| !namespace.is_empty());
        let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE).to_owned();
        Self {
            kind,
            namespace: kind.is_namespaced().then_some(namespace),
            name: name.into(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

/// What every resource has.
pub trait Resource: Clone + Serialize + DeserializeOwned + Send + Sync + Sized + 'static {
    /// Its kind.
    const KIND: Kind;

    /// Its metadata.
    fn metadata(&self) -> &Metadata;

    /// Its metadata, to be changed.
    fn metadata_mut(&mut self) -> &mut Metadata;

    /// The object as this type, or `None` when it is of another kind.
    fn from_object(object: Object) -> Option<Self>;

    /// This as an object of any kind.
    fn into_object(self) -> Object;

    /// Its key.
    fn key(&self) -> Key {
        self.metadata().key(Self::KIND)
    }
}

/// A custom resource with a `spec`, and whatever else it carries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Custom<S> {
    /// Name, revision, annotations.
    pub metadata: Metadata,
    /// What the resource says.
    pub spec: S,
    /// Status and anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl<S> Custom<S> {
    /// A new resource of this name.
    pub fn new(name: impl Into<String>, spec: S) -> Self {
        Self {
            metadata: Metadata::named(name),
            spec,
            unknown: UnknownFields::new(),
        }
    }
}

macro_rules! objects {
    ($($kind:ident => $type:ty),* $(,)?) => {
        /// A resource of any kind.
        #[derive(Clone, Debug, PartialEq)]
        #[allow(missing_docs, reason = "each variant is the kind of its name")]
        pub enum Object {
            $($kind($type),)*
        }

        impl Object {
            /// Its kind and name.
            #[must_use]
            pub fn key(&self) -> Key {
                match self { $(Object::$kind(o) => o.metadata.key(Kind::$kind),)* }
            }

            /// Its metadata.
            #[must_use]
            pub fn metadata(&self) -> &Metadata {
                match self { $(Object::$kind(o) => &o.metadata,)* }
            }

            /// Its metadata, to be changed.
            pub fn metadata_mut(&mut self) -> &mut Metadata {
                match self { $(Object::$kind(o) => &mut o.metadata,)* }
            }

            /// Reads the body of a manifest (without `apiVersion` and `kind`) as an object of `kind`.
            ///
            /// # Errors
            /// Those of the deserializer, when a field is missing or of a wrong type.
            pub fn deserialize<'de, D: serde::Deserializer<'de>>(kind: Kind, body: D) -> Result<Object, D::Error> {
                match kind { $(Kind::$kind => <$type>::deserialize(body).map(Object::$kind),)* }
            }
        }

        impl Serialize for Object {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                /// A manifest as `kubectl get -o yaml` prints it.
                #[derive(Serialize)]
                #[serde(rename_all = "camelCase")]
                struct Manifest<'a, T> {
                    api_version: &'static str,
                    kind: &'static str,
                    #[serde(flatten)]
                    body: &'a T,
                }
                let kind = self.key().kind;
                match self {
                    $(Object::$kind(body) => Manifest {
                        api_version: kind.api_version(), kind: kind.as_str(), body,
                    }.serialize(serializer),)*
                }
            }
        }

        $(impl Resource for $type {
            const KIND: Kind = Kind::$kind;

            fn metadata(&self) -> &Metadata {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut Metadata {
                &mut self.metadata
            }

            fn from_object(object: Object) -> Option<Self> {
                match object { Object::$kind(o) => Some(o), _ => None }
            }

            fn into_object(self) -> Object {
                Object::$kind(self)
            }
        })*
    };
}

objects! {
    Node => Node,
    IpPool => IpPool,
    IpReservation => IpReservation,
    BgpConfiguration => BgpConfiguration,
    IpamBlock => IpamBlock,
    BlockAffinity => BlockAffinity,
    IpamHandle => IpamHandle,
    IpamConfig => IpamConfig,
    BgpPeer => BgpPeer,
    BgpFilter => BgpFilter,
    Secret => Secret,
    Service => Service,
    EndpointSlice => EndpointSlice,
    Pod => Pod,
    Namespace => Namespace,
    Lease => Lease,
}
