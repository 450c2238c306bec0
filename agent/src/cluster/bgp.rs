//! What the datastore says of BGP: settings, peers, filters and passwords.

use std::collections::BTreeMap;

use super::services::Services;
use crate::api::{
    BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec, DEFAULT_NAMESPACE, Key, Kind, Object, Secret,
    peer_annotation,
};

/// The name of the cluster-wide BGPConfiguration.
const CLUSTER_WIDE: &str = "default";

/// What the name of the BGPConfiguration of one node begins with.
const OF_NODE: &str = "node.";

/// The resources that say how nodes speak BGP.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BgpResources {
    configuration: BgpConfigurationSpec,
    /// What is otherwise on one node, by its name.
    of_nodes: BTreeMap<String, BgpConfigurationSpec>,
    /// Each with the annotations that are Culvert's own.
    peers: BTreeMap<String, (BgpPeerSpec, BTreeMap<String, String>)>,
    filters: BTreeMap<String, BgpFilterSpec>,
    /// By namespace and name.
    secrets: BTreeMap<(String, String), Secret>,
    /// The services, and on which nodes they are.
    pub(super) services: Services,
}

impl BgpResources {
    /// Takes in an object that appeared or changed; whether that changed anything. Objects of other kinds do not.
    pub(super) fn upsert(&mut self, object: &Object) -> bool {
        let name = object.metadata().name.clone();
        match object {
            Object::BgpConfiguration(bgp) if name == CLUSTER_WIDE => {
                let changed = self.configuration != bgp.spec;
                self.configuration = bgp.spec.clone();
                changed
            }
            Object::BgpConfiguration(bgp) => match name.strip_prefix(OF_NODE) {
                Some(node) => super::replace(&mut self.of_nodes, node.to_owned(), bgp.spec.clone()),
                None => false,
            },
            Object::BgpPeer(peer) => {
                let annotations = peer.metadata.annotations.iter();
                let own = annotations.filter(|(key, _)| key.starts_with(peer_annotation::OWN));
                let own = own.map(|(key, value)| (key.clone(), value.clone())).collect();
                super::replace(&mut self.peers, name, (peer.spec.clone(), own))
            }
            Object::BgpFilter(filter) => super::replace(&mut self.filters, name, filter.spec.clone()),
            Object::Secret(secret) => {
                let short = Secret {
                    unknown: BTreeMap::new(),
                    ..secret.clone()
                };
                super::replace(&mut self.secrets, place(&object.key()), short)
            }
            Object::Service(service) => self.services.upsert_service(service),
            Object::EndpointSlice(slice) => self.services.upsert_slice(slice),
            _ => false,
        }
    }

    /// Takes in that an object is gone; whether that changed anything.
    pub(super) fn remove(&mut self, key: &Key) -> bool {
        let name = &key.name;
        match key.kind {
            Kind::BgpConfiguration if name == CLUSTER_WIDE => {
                let changed = self.configuration != BgpConfigurationSpec::default();
                self.configuration = BgpConfigurationSpec::default();
                changed
            }
            Kind::BgpConfiguration => name
                .strip_prefix(OF_NODE)
                .is_some_and(|node| self.of_nodes.remove(node).is_some()),
            Kind::BgpPeer => self.peers.remove(name).is_some(),
            Kind::BgpFilter => self.filters.remove(name).is_some(),
            Kind::Secret => self.secrets.remove(&place(key)).is_some(),
            Kind::Service => self.services.remove_service(&place(key)),
            Kind::EndpointSlice => self.services.remove_slice(&place(key)),
            _ => false,
        }
    }

    /// The cluster-wide settings.
    #[must_use]
    pub fn configuration(&self) -> &BgpConfigurationSpec {
        &self.configuration
    }

    /// What is otherwise on this node.
    #[must_use]
    pub fn of_node(&self, node: &str) -> Option<&BgpConfigurationSpec> {
        self.of_nodes.get(node)
    }

    /// What `pick` finds in the settings of this node, else in those of the cluster.
    pub fn setting<'a, T>(
        &'a self,
        node: &str,
        pick: impl Fn(&'a BgpConfigurationSpec) -> Option<T>,
    ) -> Option<T> {
        let of_node = self.of_nodes.get(node).and_then(&pick);
        of_node.or_else(|| pick(&self.configuration))
    }

    /// The port that the speaker of this node listens on, where one is named.
    #[must_use]
    pub fn listen_port(&self, node: &str) -> Option<u16> {
        self.setting(node, |bgp| bgp.listen_port.filter(|port| *port != 0))
    }

    /// All BGPPeers, by name.
    pub fn peers(&self) -> impl Iterator<Item = (&str, &BgpPeerSpec)> {
        self.peers.iter().map(|(name, (peer, _))| (name.as_str(), peer))
    }

    /// The annotations of a BGPPeer that are Culvert's own.
    #[must_use]
    pub fn annotations_of_peer(&self, name: &str) -> &BTreeMap<String, String> {
        const NONE: &BTreeMap<String, String> = &BTreeMap::new();
        self.peers.get(name).map_or(NONE, |(_, annotations)| annotations)
    }

    /// The BGPFilter of this name.
    #[must_use]
    pub fn filter(&self, name: &str) -> Option<&BgpFilterSpec> {
        self.filters.get(name)
    }

    /// The Secret of this name in a namespace.
    #[must_use]
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Secret> {
        self.secrets.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The services, and on which nodes they are.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }
}

/// Namespace and name of an object of a namespaced kind.
pub(super) fn place(key: &Key) -> (String, String) {
    let namespace = key.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    (namespace.to_owned(), key.name.clone())
}
