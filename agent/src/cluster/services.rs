//! Services: their addresses, and the nodes with a ready endpoint of each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::bgp::place;
use crate::api::{EndpointSlice, ExternalTrafficPolicy, Kind, SERVICE_NAME_LABEL, Service};

/// Namespace and name.
type Place = (String, String);

/// The services and their endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Services {
    services: BTreeMap<Place, ServiceAddresses>,
    /// The services of slices, by the namespace and name of the slice.
    slices: BTreeMap<Place, Slice>,
    /// The slices of services.
    of_service: BTreeMap<Place, BTreeSet<Place>>,
}

/// The addresses of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAddresses {
    /// Its cluster IPs.
    pub cluster: Vec<IpAddr>,
    /// Its external IPs.
    pub external: Vec<IpAddr>,
    /// Its load balancer's IPs.
    pub load_balancer: Vec<IpAddr>,
    /// Packets from outside are taken by nodes with a ready endpoint alone (`externalTrafficPolicy: Local`).
    pub local: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Slice {
    service: Place,
    ipv4: bool,
    /// The nodes with a ready endpoint.
    nodes: BTreeSet<String>,
}

impl Services {
    pub(super) fn upsert_service(&mut self, service: &Service) -> bool {
        let place = place(&service.metadata.key(Kind::Service));
        match addresses(service) {
            Some(addresses) => super::replace(&mut self.services, place, addresses),
            None => self.services.remove(&place).is_some(),
        }
    }

    pub(super) fn remove_service(&mut self, place: &Place) -> bool {
        self.services.remove(place).is_some()
    }

    pub(super) fn upsert_slice(&mut self, slice: &EndpointSlice) -> bool {
        let (namespace, name) = place(&slice.metadata.key(Kind::EndpointSlice));
        let Some(service) = slice.metadata.labels.get(SERVICE_NAME_LABEL) else {
            return self.remove_slice(&(namespace, name));
        };
        let ready = slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.conditions.ready != Some(false));
        let short = Slice {
            service: (namespace.clone(), service.clone()),
            ipv4: slice.address_type == "IPv4",
            nodes: ready.filter_map(|endpoint| endpoint.node_name.clone()).collect(),
        };
        let place = (namespace, name);
        if self.slices.get(&place) == Some(&short) {
            return false;
        }
        let mattered = self.remove_slice(&place);
        self.of_service
            .entry(short.service.clone())
            .or_default()
            .insert(place.clone());
        let matters = self.matters(&short.service);
        self.slices.insert(place, short);
        mattered || matters
    }

    /// Whether it matters on which nodes a service is. Endpoints of the others come and go all the time.
    fn matters(&self, service: &Place) -> bool {
        self.services.get(service).is_some_and(|service| service.local)
    }

    pub(super) fn remove_slice(&mut self, place: &Place) -> bool {
        let Some(slice) = self.slices.remove(place) else {
            return false;
        };
        if let Some(slices) = self.of_service.get_mut(&slice.service) {
            slices.remove(place);
            if slices.is_empty() {
                self.of_service.remove(&slice.service);
            }
        }
        self.matters(&slice.service)
    }

    /// All services that have addresses, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = (&Place, &ServiceAddresses)> {
        self.services.iter()
    }

    /// Whether `node` has a ready endpoint of a service, in the family of `address`.
    #[must_use]
    pub fn is_on(&self, service: &Place, node: &str, address: IpAddr) -> bool {
        let mut slices = self.of_service.get(service).into_iter().flatten();
        slices.any(|place| {
            self.slices
                .get(place)
                .is_some_and(|slice| slice.ipv4 == address.is_ipv4() && slice.nodes.contains(node))
        })
    }
}

/// The addresses of a service; none of one that has no cluster IP (headless), or is only a name for another.
fn addresses(service: &Service) -> Option<ServiceAddresses> {
    let spec = &service.spec;
    if spec.r#type.as_deref() == Some("ExternalName") {
        return None;
    }
    let parse = |texts: &mut dyn Iterator<Item = &String>| -> Vec<IpAddr> {
        let addresses: BTreeSet<IpAddr> = texts.filter_map(|text| text.parse().ok()).collect();
        addresses.into_iter().collect()
    };
    let cluster = parse(&mut spec.cluster_ips.iter().chain(&spec.cluster_ip));
    if cluster.is_empty() {
        return None;
    }
    let ingress = &service.status.load_balancer.ingress;
    Some(ServiceAddresses {
        cluster,
        external: parse(&mut spec.external_ips.iter()),
        load_balancer: parse(&mut ingress.iter().filter_map(|ingress| ingress.ip.as_ref())),
        local: spec.external_traffic_policy == Some(ExternalTrafficPolicy::Local),
    })
}
