use crate::api::{CALICO_API_VERSION, Kind, Object};

/// What is wrong with an object of this kind and spec, in words.
fn fault(kind: &str, spec: &str) -> Option<String> {
    let kind = Kind::of_manifest(CALICO_API_VERSION, kind).unwrap();
    let body = format!(r#"{{"metadata":{{"name":"x"}},"spec":{spec}}}"#);
    let object = Object::deserialize(kind, &mut serde_json::Deserializer::from_str(&body));
    match object {
        Ok(object) => object.validate().err().map(|error| error.to_string()),
        Err(error) => Some(error.to_string()),
    }
}

fn assert_faults(kind: &str, table: &[(&str, &str)]) {
    for (spec, said) in table {
        let fault = fault(kind, spec).unwrap_or_else(|| panic!("{spec} has no fault"));
        assert_eq!(&fault, said, "{spec}");
    }
}

fn assert_sound(kind: &str, specs: &[&str]) {
    for spec in specs {
        assert_eq!(fault(kind, spec), None, "{spec}");
    }
}

#[test]
fn a_configuration_names_the_field_that_is_wrong_and_what_is_allowed() {
    assert_faults(
        "BGPConfiguration",
        &[
            (
                r#"{"asNumber":0}"#,
                "spec.asNumber is 0: 1 to 4294967295 is allowed",
            ),
            (
                r#"{"listenPort":0}"#,
                "spec.listenPort is 0: 1 to 65535 is allowed",
            ),
            (
                r#"{"communities":[{"name":"a","value":"1:70000"}]}"#,
                r#"spec.communities[0].value is "1:70000": allowed is AA:NN with numbers up to 65535, or AA:NN:MM with numbers up to 4294967295, or rt: or ro: and AA:NN"#,
            ),
            (
                r#"{"communities":[{"name":"a","value":"1:1"},{"name":"a","value":"1:2"}]}"#,
                "spec.communities[1].name is a: another community has this name already: give each its own",
            ),
            (
                r#"{"communities":[{"value":"1:1"}]}"#,
                "spec.communities[0].name is empty: a community needs a name",
            ),
            (
                r#"{"prefixAdvertisements":[{"cidr":"10.0.0.0/8"},{"cidr":"10.1.0.0/8"}]}"#,
                "spec.prefixAdvertisements[1].cidr is 10.1.0.0/8: bits beyond the prefix are set, write 10.0.0.0/8",
            ),
            (
                r#"{"serviceExternalIPs":[{"cidr":"192.0.2.7/24"}]}"#,
                "spec.serviceExternalIPs[0].cidr is 192.0.2.7/24: bits beyond the prefix are set, write 192.0.2.0/24",
            ),
            (
                r#"{"nodeMeshMaxRestartTime":"2h"}"#,
                "spec.nodeMeshMaxRestartTime is 2h: at most 4095s is allowed",
            ),
            (
                r#"{"nodeMeshPassword":{"secretKeyRef":{"name":"bgp"}}}"#,
                "spec.nodeMeshPassword.secretKeyRef.key is empty: the Secret and the key in it that hold the password must be named",
            ),
            (
                r#"{"nodeMeshPassword":{}}"#,
                "spec.nodeMeshPassword.secretKeyRef is missing: the Secret and the key in it that hold the password must be named",
            ),
            (
                r#"{"ipv4NormalRoutePriority":0}"#,
                "spec.ipv4NormalRoutePriority is 0: 1 to 2147483646 is allowed",
            ),
        ],
    );
}

#[test]
fn a_peer_says_in_one_way_who_it_is_and_of_which_nodes() {
    assert_faults(
        "BGPPeer",
        &[
            (
                "{}",
                "spec.peerIP is missing: peerIP or peerSelector must say who the peer is",
            ),
            (
                r#"{"peerIP":"192.0.2.1"}"#,
                "spec.asNumber is missing: the AS of the peer 192.0.2.1 must be given, 1 to 4294967295",
            ),
            (
                r#"{"peerIP":"192.0.2.1","asNumber":0}"#,
                "spec.asNumber is 0: 1 to 4294967295 is allowed",
            ),
            (
                r#"{"peerIP":"224.0.0.5","asNumber":1}"#,
                "spec.peerIP is 224.0.0.5: only the unicast address of another host is allowed",
            ),
            (
                r#"{"peerIP":"192.0.2.1","asNumber":1,"peerSelector":"all()"}"#,
                "spec.peerSelector is all(): a peerSelector stands in place of peerIP and asNumber: leave those out",
            ),
            (
                r#"{"peerSelector":"all()","node":"n1","nodeSelector":"all()"}"#,
                "spec.node is n1: nodeSelector is given as well: leave one of them out",
            ),
            (
                r#"{"peerIP":"192.0.2.1","asNumber":1,"reachableBy":"2001:db8::1"}"#,
                "spec.reachableBy is 2001:db8::1: only an address of the family of 192.0.2.1 is allowed",
            ),
            (
                r#"{"peerSelector":"all()","ttlSecurity":255}"#,
                "spec.ttlSecurity is 255: 0 to 254 is allowed",
            ),
            (
                r#"{"peerSelector":"all()","numAllowedLocalASNumbers":-1}"#,
                "spec.numAllowedLocalASNumbers is -1: 0 to 255 is allowed",
            ),
            (
                r#"{"peerSelector":"all()","keepaliveTime":"10ms"}"#,
                "spec.keepaliveTime is 10ms: 1s and more is allowed; leave it out for a third of the hold time",
            ),
            (
                r#"{"peerSelector":"all()","localASNumber":0}"#,
                "spec.localASNumber is 0: 1 to 4294967295 is allowed",
            ),
        ],
    );
    let broken = fault("BGPPeer", r#"{"peerSelector":"all("}"#).unwrap();
    assert!(broken.starts_with("spec.peerSelector is all(: "), "{broken}");
    assert_sound(
        "BGPPeer",
        &[
            r#"{"peerIP":"192.0.2.1","asNumber":65001,"node":"n1","ttlSecurity":0}"#,
            r#"{"peerIP":"[2001:db8::1]:1790","asNumber":"1.10","nodeSelector":"rack == '7'"}"#,
            r#"{"peerSelector":"has(route-reflector)"}"#,
            r#"{"localWorkloadSelector":"all()"}"#,
        ],
    );
}

#[test]
fn a_filter_rule_is_named_by_its_list_and_place() {
    assert_faults(
        "BGPFilter",
        &[
            (
                r#"{"exportV4":[{"action":"Accept"},{"action":"Accept","cidr":"10.0.0.0/8"}]}"#,
                "spec.exportV4[1].matchOperator is missing: how to compare with 10.0.0.0/8 must be given: Equal, NotEqual, In or NotIn",
            ),
            (
                r#"{"importV6":[{"action":"Accept","cidr":"10.0.0.0/8","matchOperator":"In"}]}"#,
                "spec.importV6[0].cidr is 10.0.0.0/8: this list is for IPv6 routes: move the rule to the other list",
            ),
            (
                r#"{"importV4":[{"action":"Accept","matchOperator":"In"}]}"#,
                "spec.importV4[0].matchOperator is In: it is not allowed without cidr: give both or neither",
            ),
            (
                r#"{"importV4":[{"action":"Accept","cidr":"10.0.0.0/8","matchOperator":"In","prefixLength":{"max":33}}]}"#,
                "spec.importV4[0].prefixLength.max is 33: 0 to 32 is allowed",
            ),
            (
                r#"{"importV4":[{"action":"Accept","cidr":"10.0.0.0/16","matchOperator":"In","prefixLength":{"max":8}}]}"#,
                "spec.importV4[0].prefixLength is 16 to 8: nothing is as long as 16 at least and 8 at most",
            ),
            (
                r#"{"exportV6":[{"action":"Accept","communities":{"values":["1:1","1:2"]}}]}"#,
                "spec.exportV6[0].communities.values is a list of 2: exactly one is allowed",
            ),
            (
                r#"{"exportV4":[{"action":"Accept","asPathPrefix":[65001,0]}]}"#,
                "spec.exportV4[0].asPathPrefix[1] is 0: 1 to 4294967295 is allowed",
            ),
            (
                r#"{"exportV4":[{"action":"Reject","operations":[{"setPriority":{"value":1}}]}]}"#,
                "spec.exportV4[0].operations is a list of 1: a route that is rejected is not changed: leave them out, or accept it",
            ),
            (
                r#"{"exportV4":[{"action":"Accept","operations":[{}]}]}"#,
                "spec.exportV4[0].operations[0] is 0 operations: exactly one of addCommunity, prependASPath and setPriority is allowed",
            ),
            (
                r#"{"exportV4":[{"action":"Accept","operations":[{"prependASPath":{"prefix":[]}}]}]}"#,
                "spec.exportV4[0].operations[0].prependASPath.prefix is empty: it needs an AS number",
            ),
            (
                r#"{"exportV4":[{"action":"Accept","operations":[{"setPriority":{"value":2147483647}}]}]}"#,
                "spec.exportV4[0].operations[0].setPriority.value is 2147483647: 1 to 2147483646 is allowed",
            ),
        ],
    );
    assert_sound(
        "BGPFilter",
        &[
            "{}",
            r#"{"exportV4":[{"action":"Reject","cidr":"","matchOperator":"","source":"","interface":""}]}"#,
            r#"{"importV6":[{"action":"Accept","cidr":"fd00::/8","matchOperator":"In","prefixLength":{"min":48,"max":64}}]}"#,
        ],
    );
}
