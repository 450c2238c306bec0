mod paths;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use culvert_bgp::config::{NextHopMode, PeerConfig};
use culvert_bgp::id::{Asn, Prefix};
use culvert_bgp::policy::rule::{PeerType, Source};
use culvert_bgp::wire::message::{AsPath, AsSegment, Origin, PathAttributes};
use serde_json::{Value, json};

use services::{service, slice};

use super::{Local, OriginKind, Peering, Speaking, exports, peering};
use crate::api::{Kind, Object};
use crate::cluster::Cluster;

/// The cluster of these manifests.
fn cluster(manifests: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    for manifest in manifests {
        cluster.upsert(&object(manifest));
    }
    cluster
}

fn object(manifest: &Value) -> Object {
    let text = |field: &str| manifest[field].as_str().unwrap();
    let kind = Kind::of_manifest(text("apiVersion"), text("kind")).unwrap();
    let object = Object::deserialize(kind, manifest).unwrap();
    object.validate().unwrap();
    object
}

fn calico(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

fn peer(name: &str, spec: &Value) -> Value {
    calico("BGPPeer", name, spec)
}

fn node(name: &str, address: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels,
        "annotations": {"projectcalico.org/IPv4Address": address}}})
}

fn reflector(name: &str, address: &str, cluster: &str) -> Value {
    let mut node = node(name, address, &json!({"rr": "yes"}));
    node["metadata"]["annotations"]["projectcalico.org/RouteReflectorClusterID"] = cluster.into();
    node
}

/// n1, which is this node, n2 and n3.
fn three_nodes() -> Vec<Value> {
    vec![
        node("n1", "172.18.0.1/24", &json!({"rack": "7"})),
        node("n2", "172.18.0.2/24", &json!({"rack": "7"})),
        node("n3", "172.18.0.3/24", &json!({"rack": "8"})),
    ]
}

fn with(mut nodes: Vec<Value>, more: &[Value]) -> Cluster {
    nodes.extend_from_slice(more);
    cluster(&nodes)
}

fn of(cluster: &Cluster) -> Peering {
    peering(n1(&Speaking::default()), cluster)
}

fn n1(speaking: &Speaking) -> Local<'_> {
    Local {
        node: "n1",
        address: Ipv4Addr::new(172, 18, 0, 1),
        speaking,
    }
}

fn addresses(peering: &Peering) -> Vec<String> {
    peering.peers.keys().map(ToString::to_string).collect()
}

fn problems(peering: &Peering) -> Vec<String> {
    peering.problems.iter().map(ToString::to_string).collect()
}

const NO_MESH: &str = r#"{"nodeToNodeMeshEnabled": false}"#;

fn settings(spec: &str) -> Value {
    calico(
        "BGPConfiguration",
        "default",
        &serde_json::from_str(spec).unwrap(),
    )
}

/// The terms that a BGPPeer for 192.0.2.1 in AS 65001 makes, with these fields more.
fn terms(more: &Value, others: &[Value]) -> (Option<PeerConfig>, Vec<String>) {
    let mut spec = json!({"peerIP": "192.0.2.1", "asNumber": 65001});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    let manifests = [&[peer("tor", &spec), settings(NO_MESH)], others].concat();
    let peering = of(&with(three_nodes(), &manifests));
    let config = peering.peers.values().next().cloned();
    (config, problems(&peering))
}

#[test]
fn in_a_full_mesh_every_other_node_is_a_peer_in_its_as_and_on_its_port() {
    let mut nodes = three_nodes();
    nodes[2]["metadata"]["annotations"]["projectcalico.org/ASNumber"] = "65003".into();
    let special = calico("BGPConfiguration", "node.n2", &json!({"listenPort": 1790}));
    let peering = of(&with(nodes, &[special]));
    let told: Vec<_> = peering
        .peers
        .values()
        .map(|peer| (peer.address.to_string(), peer.asn.get(), peer.port, peer.source))
        .collect();
    let source = Some(IpAddr::from([172, 18, 0, 1]));
    assert_eq!(
        told,
        [
            ("172.18.0.2".to_owned(), 64_512, Some(1790), source),
            ("172.18.0.3".to_owned(), 65_003, Some(179), source),
        ]
    );
    assert!(
        peering
            .origins
            .values()
            .all(|origin| origin.kind == OriginKind::Mesh)
    );
    assert_eq!(problems(&peering), Vec::<String>::new());
}

#[test]
fn route_reflectors_are_not_in_the_mesh_and_their_clients_are_those_of_another_cluster() {
    let mut nodes = three_nodes();
    nodes.push(reflector("n4", "172.18.0.4/24", "244.0.0.1"));
    assert_eq!(
        addresses(&of(&cluster(&nodes))),
        ["172.18.0.2", "172.18.0.3"],
        "for the others"
    );
    nodes[0] = reflector("n1", "172.18.0.1/24", "244.0.0.1");
    assert_eq!(
        addresses(&of(&cluster(&nodes))),
        Vec::<String>::new(),
        "for a reflector"
    );
    nodes.push(reflector("n5", "172.18.0.5/24", "244.0.0.2"));
    nodes.push(peer("all", &json!({"peerSelector": "all()"})));
    let peering = of(&cluster(&nodes));
    let clients: Vec<_> = peering
        .peers
        .values()
        .map(|peer| (peer.address.to_string(), peer.reflector_client.is_some()))
        .collect();
    let expected = [
        ("172.18.0.2", true),
        ("172.18.0.3", true),
        ("172.18.0.4", false),
        ("172.18.0.5", true),
    ];
    assert_eq!(
        clients,
        expected.map(|(address, client)| (address.to_owned(), client))
    );
}

#[test]
fn a_peer_is_one_of_the_nodes_that_it_names_or_selects_or_of_all() {
    for (which, is_ours, kind) in [
        (json!({}), true, OriginKind::Global),
        (json!({"node": "n1"}), true, OriginKind::Node),
        (json!({"node": "n2"}), false, OriginKind::Node),
        (json!({"nodeSelector": "rack == '7'"}), true, OriginKind::Node),
        (json!({"nodeSelector": "rack == '8'"}), false, OriginKind::Node),
    ] {
        let mut spec = json!({"peerIP": "192.0.2.1", "asNumber": 65001});
        spec.as_object_mut()
            .unwrap()
            .extend(which.as_object().unwrap().clone());
        let peering = of(&with(three_nodes(), &[peer("tor", &spec), settings(NO_MESH)]));
        let tor = IpAddr::from([192, 0, 2, 1]);
        assert_eq!(peering.peers.contains_key(&tor), is_ours, "{which}");
        if is_ours {
            assert_eq!(peering.origins[&tor].kind, kind, "{which}");
        }
    }
}

#[test]
fn nodes_that_are_selected_as_peers_are_so_in_both_directions_unless_it_is_manual() {
    let select = |spec: &Value| {
        let manifests = [peer("racks", spec), settings(NO_MESH)];
        addresses(&of(&with(three_nodes(), &manifests)))
    };
    let to_8 = json!({"nodeSelector": "rack == '7'", "peerSelector": "rack == '8'"});
    assert_eq!(select(&to_8), ["172.18.0.3"]);
    let mut from_8 = json!({"nodeSelector": "rack == '8'", "peerSelector": "rack == '7'"});
    assert_eq!(select(&from_8), ["172.18.0.3"], "the other way round");
    from_8["reversePeering"] = "Manual".into();
    assert_eq!(select(&from_8), Vec::<String>::new());
}

#[test]
fn of_two_resources_for_one_peer_the_one_for_this_node_counts_and_a_mesh_gives_way() {
    let manifests = [
        peer("a", &json!({"peerIP": "172.18.0.2", "asNumber": 64512})),
        peer(
            "b",
            &json!({"peerIP": "172.18.0.2", "asNumber": 64512, "node": "n1", "ttlSecurity": 1}),
        ),
        peer("c", &json!({"peerIP": "172.18.0.1", "asNumber": 64512})),
    ];
    let peering = of(&with(three_nodes(), &manifests));
    assert_eq!(addresses(&peering), ["172.18.0.2", "172.18.0.3"]);
    let n2 = IpAddr::from([172, 18, 0, 2]);
    assert_eq!(peering.origins[&n2].resource.as_deref(), Some("b"));
    assert_eq!(peering.origins[&n2].node.as_deref(), Some("n2"));
    assert_eq!(peering.peers[&n2].ttl_security, Some(1));
    assert_eq!(
        problems(&peering),
        ["BGPPeer a: 172.18.0.2 is a peer already, by BGPPeer b, and is left out here: keep one of the two"]
    );
}

#[test]
fn each_field_of_a_peer_becomes_a_term_of_its_session() {
    let base = terms(&json!({}), &[]).0.unwrap();
    let check = |more: Value, change: &dyn Fn(&mut PeerConfig)| {
        let (config, problems) = terms(&more, &[]);
        let mut expected = base.clone();
        change(&mut expected);
        assert_eq!(config, Some(expected), "{more}");
        assert_eq!(problems, Vec::<String>::new(), "{more}");
    };
    assert_eq!(base.source, Some(IpAddr::from([172, 18, 0, 1])));
    assert_eq!(base.port, None, "the usual port of somebody who is no node");
    check(json!({"peerIP": "192.0.2.1:1790"}), &|c| c.port = Some(1790));
    check(json!({"asNumber": "1.10"}), &|c| {
        c.asn = Asn::new(65_546).unwrap();
    });
    check(json!({"localASNumber": 65_100}), &|c| {
        c.local_asn = Asn::new(65_100);
    });
    check(json!({"localASNumber": 64_512}), &|_| {});
    check(json!({"nextHopMode": "Self"}), &|c| c.next_hop = NextHopMode::Own);
    check(json!({"nextHopMode": "Keep"}), &|c| {
        c.next_hop = NextHopMode::Keep;
    });
    check(json!({"keepOriginalNextHop": true}), &|c| {
        c.next_hop = NextHopMode::Keep;
    });
    check(json!({"keepOriginalNextHop": true, "asNumber": 64_512}), &|c| {
        c.asn = Asn::new(64_512).unwrap();
    });
    check(json!({"sourceAddress": "None"}), &|c| c.source = None);
    check(json!({"maxRestartTime": "1m30s"}), &|c| c.restart_time = Some(90));
    check(json!({"keepaliveTime": "10s"}), &|c| {
        c.keepalive = Some(Duration::from_secs(10));
    });
    check(json!({"numAllowedLocalASNumbers": 2}), &|c| c.allowed_own_as = 2);
    check(json!({"ttlSecurity": 3}), &|c| c.ttl_security = Some(3));
    check(json!({"ttlSecurity": 0}), &|_| {});
    let reachable = json!({"peerIP": "192.0.2.1", "asNumber": 65001, "reachableBy": "172.18.0.254"});
    let peering = of(&with(three_nodes(), &[peer("tor", &reachable)]));
    let gateway = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([172, 18, 0, 254]));
    assert_eq!(peering.gateways, BTreeMap::from([gateway]));
}

fn secret(namespace: &str, key: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "bgp", "namespace": namespace},
        "stringData": {key: value}})
}

#[test]
fn pods_as_peers_are_left_out_and_named() {
    let pods = peer(
        "pods",
        &json!({"localWorkloadSelector": "app == 'router'", "asNumber": 65_001}),
    );
    let gateway = settings(r#"{"localWorkloadPeeringIPV4": "169.254.1.1"}"#);
    let peering = of(&with(three_nodes(), &[pods, gateway]));
    assert_eq!(addresses(&peering), ["172.18.0.2", "172.18.0.3"]);
    assert_eq!(
        problems(&peering),
        [
            "BGPConfiguration default: Culvert does not speak BGP with pods: localWorkloadPeeringIPV4 is left out",
            "BGPPeer pods: Culvert does not speak BGP with pods: localWorkloadSelector is left out",
        ]
    );
}

#[test]
fn a_password_is_read_from_its_secret_and_what_is_missing_is_named() {
    let wanted = json!({"password": {"secretKeyRef": {"name": "bgp", "key": "tor"}}});
    let optional = json!({"password": {"secretKeyRef": {"name": "bgp", "key": "tor", "optional": true}}});
    let (config, problems) = terms(&wanted, &[secret("default", "tor", "hunter2\n")]);
    assert_eq!(config.unwrap().password.unwrap().expose(), "hunter2");
    assert_eq!(problems, Vec::<String>::new());
    let long = "x".repeat(81);
    for (secrets, said) in [
        (
            vec![],
            "BGPPeer tor: the password is in Secret default/bgp, which is not there: no session without it; create the Secret",
        ),
        (
            vec![secret("other", "tor", "hunter2")],
            "BGPPeer tor: the password is in Secret default/bgp, which is not there: no session without it; create the Secret",
        ),
        (
            vec![secret("default", "rot", "hunter2")],
            "BGPPeer tor: the password is under key tor of Secret default/bgp, which has rot: no session without it; add the key",
        ),
        (
            vec![secret("default", "tor", "\n")],
            "BGPPeer tor: the password under key tor of Secret default/bgp has 0 octets: 1 to 80 octets of text are allowed",
        ),
        (
            vec![secret("default", "tor", &long)],
            "BGPPeer tor: the password under key tor of Secret default/bgp has 81 octets: 1 to 80 octets of text are allowed",
        ),
    ] {
        assert_eq!(terms(&wanted, &secrets), (None, vec![said.to_owned()]));
    }
    let (config, problems) = terms(&optional, &[]);
    assert_eq!((config.unwrap().password, problems), (None, Vec::new()));
}

#[test]
fn the_mesh_has_one_password_and_no_session_without_it() {
    let spec = r#"{"nodeMeshPassword": {"secretKeyRef": {"name": "bgp", "key": "mesh"}}, "nodeMeshMaxRestartTime": "3m"}"#;
    let tor = peer("tor", &json!({"peerIP": "192.0.2.1", "asNumber": 65001}));
    let without = of(&with(three_nodes(), &[settings(spec), tor.clone()]));
    assert_eq!(addresses(&without), ["192.0.2.1"], "no other peer is harmed");
    assert_eq!(without.problems.len(), 1);
    let all = of(&with(
        three_nodes(),
        &[settings(spec), tor, secret("default", "mesh", "hunter2")],
    ));
    for address in ["172.18.0.2", "172.18.0.3"] {
        let peer = &all.peers[&address.parse::<IpAddr>().unwrap()];
        assert_eq!(
            peer.password.as_ref().map(culvert_bgp::config::Password::expose),
            Some("hunter2")
        );
        assert_eq!(peer.restart_time, Some(180));
    }
    assert_eq!(all.peers[&IpAddr::from([192, 0, 2, 1])].password, None);
}

#[test]
fn a_speaker_listens_on_its_own_addresses_where_it_is_told_to() {
    let spec = settings(r#"{"bindMode": "NodeIP"}"#);
    let own = BTreeSet::from([IpAddr::from([172, 18, 0, 1])]);
    assert_eq!(
        of(&with(three_nodes(), std::slice::from_ref(&spec)))
            .endpoint
            .addresses,
        own
    );
    let off = calico("BGPConfiguration", "node.n1", &json!({"bindMode": "None"}));
    assert_eq!(
        of(&with(three_nodes(), &[spec, off])).endpoint.addresses,
        BTreeSet::new()
    );
}

fn path(local_pref: Option<u32>) -> Arc<PathAttributes> {
    let mut path = PathAttributes::new(IpAddr::from([192, 0, 2, 9]));
    path.as_path = AsPath {
        segments: vec![AsSegment::Sequence(vec![Asn::new(65_001).unwrap()])],
    };
    path.origin = Origin::Igp;
    path.local_pref = local_pref;
    Arc::new(path)
}

/// What becomes of a route that is let out to the peer.
fn let_out(config: &PeerConfig, prefix: &str, source: Source) -> Option<Arc<PathAttributes>> {
    let prefix = Prefix::new(prefix.parse().unwrap());
    let policy = config.export.as_ref().unwrap();
    policy
        .evaluate(prefix, source, PeerType::External, &path(Some(100)))
        .ok()
}

fn pool(cidr: &str, disabled: bool) -> Value {
    let name = cidr.replace(['.', '/', ':'], "-");
    calico(
        "IPPool",
        &name,
        &json!({"cidr": cidr, "disableBGPExport": disabled}),
    )
}

#[test]
fn without_filters_own_routes_and_those_of_pools_are_let_out_and_all_is_let_in() {
    let pools = [pool("10.65.0.0/16", false), pool("10.66.0.0/16", true)];
    let (config, _) = terms(&json!({}), &pools);
    let config = config.unwrap();
    assert_eq!(config.import, None);
    for (prefix, source, is_out) in [
        ("10.65.17.64/26", Source::Own, true),
        ("10.65.17.64/26", Source::Peers, true),
        ("10.66.0.0/26", Source::Peers, false),
        ("192.0.2.0/24", Source::Own, true),
        ("192.0.2.0/24", Source::Peers, false),
        ("0.0.0.0/0", Source::Peers, false),
    ] {
        assert_eq!(
            let_out(&config, prefix, source).is_some(),
            is_out,
            "{prefix} {source:?}"
        );
    }
}

#[test]
fn routes_go_out_with_the_communities_of_their_range_those_of_the_node_first() {
    let default = calico(
        "BGPConfiguration",
        "default",
        &json!({"communities": [{"name": "pods", "value": "65000:1"}],
            "prefixAdvertisements": [{"cidr": "10.65.0.0/16", "communities": ["pods", "65000:2:3", "podz"]}]}),
    );
    let (config, said) = terms(&json!({}), &[]);
    assert_eq!(
        let_out(&config.unwrap(), "10.65.1.0/26", Source::Own)
            .unwrap()
            .communities,
        Vec::<u32>::new()
    );
    assert_eq!(said, Vec::<String>::new());
    let (config, said) = terms(&json!({}), std::slice::from_ref(&default));
    let config = config.unwrap();
    let out = let_out(&config, "10.65.1.0/26", Source::Own).unwrap();
    assert_eq!(out.communities, [(65_000 << 16) | 1]);
    assert_eq!(out.large_communities, [[65_000, 2, 3]]);
    assert_eq!(
        let_out(&config, "10.66.1.0/26", Source::Own).unwrap().communities,
        Vec::<u32>::new()
    );
    assert_eq!(
        said,
        [
            "BGPConfiguration default: prefixAdvertisements of 10.65.0.0/16 name the community podz, which communities does not define: it is left out; add it there"
        ]
    );
    let of_node = calico(
        "BGPConfiguration",
        "node.n1",
        &json!({"prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["pods", "65000:9"]}]}),
    );
    let (config, said) = terms(&json!({}), &[default, of_node]);
    let out = let_out(&config.unwrap(), "10.65.1.0/26", Source::Own).unwrap();
    assert_eq!(out.communities, [(65_000 << 16) | 1, (65_000 << 16) | 9]);
    assert_eq!((out.large_communities.len(), said), (0, Vec::new()));
}

#[test]
fn filters_are_tried_in_their_order_before_what_calico_lets_out() {
    let no_26 = calico(
        "BGPFilter",
        "no-26",
        &json!({"exportV4": [{"action": "Reject", "cidr": "10.65.0.0/16", "matchOperator": "In", "prefixLength": {"min": 26, "max": 26}}]}),
    );
    let all = calico(
        "BGPFilter",
        "all",
        &json!({"exportV4": [{"action": "Accept", "operations": [{"setPriority": {"value": 512}}, {"prependASPath": {"prefix": [65002]}}]}],
            "importV4": [{"action": "Reject", "asPathPrefix": [65001], "priority": 1024}]}),
    );
    let (config, said) = terms(&json!({"filters": ["no-26", "gone", "all"]}), &[no_26, all]);
    let config = config.unwrap();
    assert_eq!(
        said,
        [
            "BGPPeer tor: there is no BGPFilter gone: create it, or take it out of filters; the others are applied"
        ]
    );
    assert!(let_out(&config, "10.65.1.0/26", Source::Own).is_none());
    let out = let_out(&config, "0.0.0.0/0", Source::Peers).unwrap();
    assert_eq!(out.local_pref, Some(2_147_483_647 - 512));
    let first = Asn::new(65_002);
    assert_eq!(
        out.as_path.segments,
        [AsSegment::Sequence(vec![
            first.unwrap(),
            Asn::new(65_001).unwrap()
        ])]
    );
    let import = config.import.unwrap();
    let prefix = Prefix::new("10.0.0.0/8".parse().unwrap());
    let lets_in = |pref| {
        import
            .evaluate(prefix, Source::Peers, PeerType::External, &path(pref))
            .is_ok()
    };
    assert_eq!(
        [None, Some(100), Some(2_147_482_623), Some(2_147_483_135)].map(lets_in),
        [false, false, false, true],
        "a route that was given no priority is of the ordinary one"
    );
}

#[test]
fn a_rule_that_cannot_be_applied_is_named_and_the_others_of_its_filter_are() {
    let filter = calico(
        "BGPFilter",
        "f",
        &json!({"exportV4": [{"action": "Accept", "interface": "eth*"}, {"action": "Reject", "cidr": "10.0.0.0/8", "matchOperator": "Equal"}]}),
    );
    let (config, said) = terms(&json!({"filters": ["f"]}), &[filter]);
    assert!(let_out(&config.unwrap(), "10.0.0.0/8", Source::Own).is_none());
    assert_eq!(
        said,
        [
            "BGPFilter f: exportV4[0] asks for interface eth*, of which filters of routes from and to peers know nothing: the rule is applied to no route; use cidr, source, peerType or communities"
        ]
    );
}

#[test]
fn the_order_in_which_resources_come_does_not_matter() {
    let mut manifests = three_nodes();
    manifests.extend([
        peer("a", &json!({"peerSelector": "rack == '8'", "filters": ["f"]})),
        calico("BGPFilter", "f", &json!({"importV4": [{"action": "Reject"}]})),
        service("web", true, &json!({"clusterIP": "10.96.0.7"}), "198.51.100.7"),
        slice("web", "n1", true),
        settings(r#"{"serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]}"#),
    ]);
    let speaking = Speaking::default();
    let both = |cluster: &Cluster| (of(cluster), exports(n1(&speaking), cluster));
    let forwards = both(&cluster(&manifests));
    manifests.reverse();
    assert_eq!(both(&cluster(&manifests)), forwards);
    assert!(forwards.1.contains(&Prefix::new("10.96.0.7/32".parse().unwrap())));
}
