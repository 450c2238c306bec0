//! The ranges of the cluster's services, as far as the API server tells: by ServiceCIDR objects (Kubernetes 1.33; as a beta
//! since 1.31), or by what kubeadm wrote down when it made the cluster.

use std::fmt;

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Access;
use super::connection::{Connection, REQUEST_TIMEOUT};

/// Where the objects are, the newest version first.
const SERVICE_CIDRS: [&str; 2] = [
    "/apis/networking.k8s.io/v1/servicecidrs",
    "/apis/networking.k8s.io/v1beta1/servicecidrs",
];

/// The ConfigMap in which kubeadm keeps its ClusterConfiguration (kubeadm.k8s.io, `networking.serviceSubnet`).
const KUBEADM_CONFIG: &str = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config";

/// The ranges of services, and how they are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRanges {
    /// The ranges; at least one.
    pub ranges: Vec<IpNet>,
    /// Who tells of them.
    pub known_by: ServiceSource,
}

/// By what the addresses of services are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ServiceSource {
    /// By the ServiceCIDR objects.
    ServiceCidrs,
    /// By the ConfigMap kubeadm-config.
    KubeadmConfig,
    /// By the services that there are: of the rest of the range nothing is known.
    Addresses,
}

impl fmt::Display for ServiceSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ServiceCidrs => "the ServiceCIDR objects",
            Self::KubeadmConfig => "the ConfigMap kubeadm-config in kube-system",
            Self::Addresses => "the addresses of the services alone",
        })
    }
}

/// Of a ServiceCIDRList (networking.k8s.io).
#[derive(Deserialize)]
struct ServiceCidrList {
    items: Vec<ServiceCidr>,
}

#[derive(Deserialize)]
struct ServiceCidr {
    spec: ServiceCidrSpec,
}

#[derive(Deserialize)]
struct ServiceCidrSpec {
    #[serde(default)]
    cidrs: Vec<IpNet>,
}

#[derive(Deserialize)]
struct ConfigMap {
    data: KubeadmData,
}

#[derive(Deserialize)]
struct KubeadmData {
    #[serde(rename = "ClusterConfiguration")]
    cluster_configuration: String,
}

#[derive(Deserialize)]
struct ClusterConfiguration {
    networking: Networking,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Networking {
    /// One, or one of each family, with a comma between them.
    service_subnet: String,
}

/// The ranges of services; none where the server tells of none, or not to us.
pub async fn service_ranges(access: &Access) -> Option<ServiceRanges> {
    let connection = Connection::open(access).await.ok()?;
    for path in SERVICE_CIDRS {
        let list = get::<ServiceCidrList>(&connection, path).await;
        if let Some(ranges) = list.map(of_objects).filter(|ranges| !ranges.is_empty()) {
            return Some(ServiceRanges {
                ranges,
                known_by: ServiceSource::ServiceCidrs,
            });
        }
    }
    let config = get::<ConfigMap>(&connection, KUBEADM_CONFIG).await?;
    Some(ServiceRanges {
        ranges: of_kubeadm(&config.data.cluster_configuration)?,
        known_by: ServiceSource::KubeadmConfig,
    })
}

async fn get<T: DeserializeOwned>(connection: &Connection, path: &str) -> Option<T> {
    let request = hyper::Request::get(path).body(Vec::new()).ok()?;
    let asked = connection.client().request::<T>(request);
    tokio::time::timeout(REQUEST_TIMEOUT, asked).await.ok()?.ok()
}

fn of_objects(list: ServiceCidrList) -> Vec<IpNet> {
    let items = list.items.into_iter();
    items.flat_map(|object| object.spec.cidrs).collect()
}

/// None where it says nothing of them, or nothing that can be read.
fn of_kubeadm(configuration: &str) -> Option<Vec<IpNet>> {
    let configuration: ClusterConfiguration = serde_yaml::from_str(configuration).ok()?;
    let subnets = configuration.networking.service_subnet;
    subnets
        .split(',')
        .map(|subnet| subnet.trim().parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_ranges_are_read_as_service_cidrs_have_them() {
        // KEP-1880: the object `kubernetes` has the ranges of the server's flags, others may be added.
        let list = r#"{"kind": "ServiceCIDRList", "metadata": {"resourceVersion": "1"}, "items": [
            {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00:96::/108"]}, "status": {"conditions": []}},
            {"metadata": {"name": "more"}, "spec": {"cidrs": ["10.200.0.0/16"]}}]}"#;
        assert_eq!(
            of_objects(serde_json::from_str(list).unwrap()),
            nets(&["10.96.0.0/12", "fd00:96::/108", "10.200.0.0/16"])
        );
    }

    #[test]
    fn the_ranges_are_read_as_kubeadm_writes_them() {
        for (text, ranges) in [
            (
                "apiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\nnetworking:\n  dnsDomain: cluster.local\n  \
                 podSubnet: 10.65.0.0/16\n  serviceSubnet: 10.96.0.0/12\n",
                Some(nets(&["10.96.0.0/12"])),
            ),
            (
                "networking: {serviceSubnet: '10.96.0.0/16,fd00:96::/112'}",
                Some(nets(&["10.96.0.0/16", "fd00:96::/112"])),
            ),
            ("networking: {podSubnet: 10.65.0.0/16}", None),
            ("networking: {serviceSubnet: ''}", None),
            ("[", None),
        ] {
            assert_eq!(of_kubeadm(text), ranges, "{text}");
        }
    }
}
