//! What of services is told to peers.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::{Speaking, exports};
use super::{n1, settings, three_nodes, with};

pub(super) fn service(name: &str, local: bool, spec: &Value, ingress: &str) -> Value {
    let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"type": "LoadBalancer", "externalTrafficPolicy": if local { "Local" } else { "Cluster" }},
        "status": {"loadBalancer": {"ingress": [{"ip": ingress}]}}});
    service["spec"]
        .as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    service
}

pub(super) fn slice(service: &str, node: &str, ready: bool) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-x"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": [{"nodeName": node, "conditions": {"ready": ready}}]})
}

fn originated(manifests: &[Value]) -> Vec<String> {
    let speaking = Speaking::default();
    let out = exports(n1(&speaking), &with(three_nodes(), manifests));
    out.iter().map(ToString::to_string).collect()
}

#[test]
fn service_ranges_are_originated_and_addresses_of_local_services_by_nodes_with_a_ready_endpoint() {
    let ranges = settings(
        r#"{"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "serviceExternalIPs": [{"cidr": "192.0.2.0/24"}],
            "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}, {"cidr": "203.0.113.5/32"}]}"#,
    );
    let whole = [
        "10.96.0.0/12",
        "192.0.2.0/24",
        "198.51.100.0/24",
        "203.0.113.5/32",
    ];
    assert_eq!(originated(std::slice::from_ref(&ranges)), whole);
    let addresses = json!({"clusterIP": "10.96.0.7", "externalIPs": ["192.0.2.7", "8.8.8.8"]});
    let web = |local| service("web", local, &addresses, "198.51.100.7");
    for (local, slice, more) in [
        (true, slice("web", "n1", true), true),
        (true, slice("web", "n2", true), false),
        (true, slice("web", "n1", false), false),
        (true, slice("other", "n1", true), false),
        (false, slice("web", "n1", true), false),
    ] {
        let mut expected: BTreeSet<&str> = whole.into();
        if more {
            expected.extend(["10.96.0.7/32", "192.0.2.7/32", "198.51.100.7/32"]);
        }
        let out = originated(&[ranges.clone(), slice.clone(), web(local)]);
        assert_eq!(
            out.iter().map(String::as_str).collect::<BTreeSet<_>>(),
            expected,
            "{local} {slice}"
        );
    }
}

#[test]
fn load_balancer_addresses_are_originated_one_by_one_without_aggregation() {
    let ranges = settings(
        r#"{"serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}], "serviceLoadBalancerAggregation": "Disabled"}"#,
    );
    let addresses = json!({"clusterIP": "10.96.0.7"});
    let services = [
        ranges,
        service("inside", false, &addresses, "198.51.100.7"),
        service("outside", false, &addresses, "203.0.113.7"),
        service("headless", false, &json!({"clusterIP": "None"}), "198.51.100.8"),
    ];
    assert_eq!(originated(&services), ["198.51.100.7/32"]);
}

#[test]
fn a_node_that_takes_no_packets_from_outside_originates_no_service() {
    let mut nodes = three_nodes();
    nodes[0]["metadata"]["labels"][super::super::EXCLUDE_LABEL] = "".into();
    let ranges = settings(r#"{"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]}"#);
    let out = exports(n1(&Speaking::default()), &with(nodes, &[ranges]));
    assert_eq!(out, BTreeSet::new());
}
