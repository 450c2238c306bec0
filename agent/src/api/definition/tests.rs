//! The definitions against the types, and the files against the definitions.

use std::fs;
use std::path::Path;

use super::*;
use crate::api::Object;

/// For each kind an object in which every field has a value that is not the default.
fn full(kind: Kind) -> Value {
    match kind {
        Kind::IpPool => json!({
            "cidr": "10.65.0.0/16", "blockSize": 27, "ipipMode": "CrossSubnet", "vxlanMode": "Always", "natOutgoing": true,
            "disabled": true, "disableBGPExport": true, "nodeSelector": "all()", "namespaceSelector": "all()",
            "allowedUses": ["Tunnel"], "assignmentMode": "Manual",
        }),
        Kind::BgpConfiguration => json!({
            "asNumber": 4_294_967_295_u32, "nodeToNodeMeshEnabled": false, "listenPort": 1790, "bindMode": "NodeIP",
            "nodeMeshPassword": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}, "nodeMeshMaxRestartTime": "90s",
            "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}], "serviceExternalIPs": [{"cidr": "10.1.0.0/16"}],
            "serviceLoadBalancerIPs": [{"cidr": "10.2.0.0/16"}], "serviceLoadBalancerAggregation": "Disabled",
            "communities": [{"name": "c", "value": "1:2"}],
            "prefixAdvertisements": [{"cidr": "10.0.0.0/8", "communities": ["c"]}],
            "ignoredInterfaces": ["eth1"], "ipv4NormalRoutePriority": 7, "ipv6NormalRoutePriority": 8,
        }),
        Kind::BgpPeer => json!({
            "node": "n", "nodeSelector": "all()", "peerIP": "192.0.2.1:1790", "asNumber": 65_001, "localASNumber": 65_002,
            "peerSelector": "has(x)", "localWorkloadSelector": "all()", "keepOriginalNextHop": true, "nextHopMode": "Self",
            "password": {"secretKeyRef": {"name": "s", "key": "k"}}, "sourceAddress": "None", "maxRestartTime": "2m0s",
            "keepaliveTime": "30s", "numAllowedLocalASNumbers": 2, "ttlSecurity": 1, "reachableBy": "192.0.2.254",
            "filters": ["f"], "reversePeering": "Manual",
        }),
        Kind::BgpFilter => {
            let rule = json!({
                "cidr": "10.0.0.0/8", "matchOperator": "In", "prefixLength": {"min": 24, "max": 32}, "source": "RemotePeers",
                "interface": "eth0", "peerType": "eBGP", "communities": {"values": ["1:2"]}, "asPathPrefix": [65_001],
                "priority": 5, "action": "Accept", "operations": [
                    {"addCommunity": {"value": "1:2"}}, {"prependASPath": {"prefix": [65_001]}}, {"setPriority": {"value": 9}},
                ],
            });
            json!({"exportV4": [rule], "importV4": [rule], "exportV6": [rule], "importV6": [rule]})
        }
        Kind::IpReservation => json!({"reservedCIDRs": ["10.0.0.0/28", "10.0.1.1"]}),
        Kind::IpamConfig => {
            json!({"strictAffinity": true, "autoAllocateBlocks": true, "maxBlocksPerHost": 7})
        }
        Kind::BlockAffinity => json!({
            "cidr": "10.65.0.0/26", "node": "n", "state": "pendingDeletion", "type": "host", "deleted": "true",
        }),
        Kind::IpamBlock => json!({
            "cidr": "10.65.0.0/26", "affinity": "host:n", "affinityClaimTime": "2026-08-01T10:00:00Z",
            "allocations": [0, null], "unallocated": [1],
            "attributes": [{"handle_id": "h", "secondary": {"pod": "p"}, "releasedAt": "2026-08-01T10:00:00Z"}],
            "sequenceNumber": 1_785_578_400_000_000_001_u64, "sequenceNumberForAllocation": {"0": 5},
            "deleted": true, "strictAffinity": true,
        }),
        Kind::IpamHandle => json!({"handleID": "h", "block": {"10.65.0.0/26": 2}, "deleted": true}),
        _ => Value::Null,
    }
}

fn defined() -> impl Iterator<Item = (Kind, Value)> {
    Kind::ALL.into_iter().filter_map(|kind| {
        Some((
            kind,
            definition(kind)?["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone(),
        ))
    })
}

/// Where a value is not what its schema says, as far as types, enums, ranges and required fields go.
fn breaches(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    if value.is_null() {
        return if schema["nullable"] == true {
            Vec::new()
        } else {
            vec![format!("{path} is null")]
        };
    }
    let is_type = match schema["type"].as_str() {
        None if schema["x-kubernetes-int-or-string"] == true => value.is_u64() || value.is_string(),
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        _ => false,
    };
    let mut breaches_found = Vec::new();
    if !is_type {
        return vec![format!("{path} is no {}", schema["type"])];
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|allowed| !allowed.contains(value))
    {
        breaches_found.push(format!("{path} is none of {}", schema["enum"]));
    }
    let beyond = |limit: &str| Some((schema[limit].as_i64()?, value.as_i64()?));
    if beyond("minimum").is_some_and(|(least, v)| v < least)
        || beyond("maximum").is_some_and(|(most, v)| v > most)
    {
        breaches_found.push(format!("{path} is out of range"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap()).is_none() {
            breaches_found.push(format!("{path} has no {required}"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        breaches_found.extend(breaches(&schema["items"], item, &format!("{path}[]")));
    }
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match schema["properties"]
            .get(name)
            .or_else(|| schema.get("additionalProperties"))
        {
            Some(schema) => breaches_found.extend(breaches(schema, value, &path)),
            None => breaches_found.push(format!("{path} is not in the schema")),
        }
    }
    breaches_found
}

fn read(kind: Kind, spec: &Value) -> Result<Object, String> {
    let body = json!({"metadata": {"name": "x"}, "spec": spec});
    Object::deserialize(kind, body).map_err(|error| error.to_string())
}

#[test]
fn whatever_the_types_write_is_let_in() {
    for (kind, schema) in defined() {
        let read = read(kind, &full(kind)).unwrap();
        let mut written = serde_json::to_value(&read).unwrap();
        written.as_object_mut().unwrap().remove("metadata");
        assert_eq!(breaches(&schema, &written, kind.as_str()), Vec::<String>::new());
        // Nothing is lost on the way through the types.
        assert_eq!(written["spec"], full(kind), "{kind:?}");
        // The sample has every field of the schema, so that none of them is made up.
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(
            names(&schema["properties"]["spec"]["properties"]),
            names(&full(kind)),
            "{kind:?}"
        );
    }
}

#[test]
fn a_field_of_a_wrong_type_is_refused_by_definition_and_type_alike() {
    for (kind, schema) in defined() {
        let spec = &schema["properties"]["spec"];
        for (field, of_field) in spec["properties"].as_object().unwrap() {
            let mut wrong = full(kind);
            // What is no value of any field.
            wrong[field] = json!([{"wrong": 1}, "wrong"]);
            assert_ne!(
                breaches(spec, &wrong, ""),
                Vec::<String>::new(),
                "{kind:?} {field}"
            );
            if of_field["enum"].is_array() && field != "deleted" && field != "assignmentMode" {
                wrong[field] = json!("wrong");
                assert_ne!(
                    breaches(spec, &wrong, ""),
                    Vec::<String>::new(),
                    "{kind:?} {field}"
                );
                assert!(read(kind, &wrong).is_err(), "{kind:?} {field}");
            }
        }
    }
}

#[test]
fn the_files_of_the_chart_are_the_definitions() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/culvert/crds");
    let mut expected = Vec::new();
    for kind in Kind::ALL {
        let Some(definition) = definition(kind) else {
            continue;
        };
        let path = folder.join(format!("crd.projectcalico.org_{}.yaml", kind.plural()));
        let text = serde_yaml::to_string(&definition).unwrap();
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &text).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "{} is not what the types say: run this test with UPDATE_GOLDEN=1, and look at the difference",
            path.display()
        );
        expected.push(path);
    }
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}
