//! What the API server makes of a resource by the schemas of the chart: what is wrong it refuses in words, what is right it
//! takes, and what is missing it fills in.

use harness::ApiServer;
use harness::api_server::ADMIN;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::servers::Server;
use crate::{Outcome, ensure};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 2] = [
    ("the_server_refuses_a_wrong_resource_in_words", refused),
    ("the_server_takes_a_right_resource_and_fills_in_defaults", taken),
];

fn create(server: &ApiServer, kind: &str, spec: &Value) -> Result<Value, String> {
    let manifest = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": kind, "metadata": {"name": "validated"}, "spec": spec,
    });
    // It is the server that is to speak, and not kubectl.
    let arguments = ["create", "--validate=false", "-o", "json", "-f", "-"];
    let said = server.kubectl(ADMIN, &arguments, &manifest.to_string());
    let created = said.map_err(|error| error.to_string())?;
    serde_json::from_str(&created).map_err(|error| error.to_string())
}

/// Kind, spec, and what the server must say of it.
type Wrong = (&'static str, Value, &'static [&'static str]);

fn wrong() -> Vec<Wrong> {
    vec![
        ("IPPool", json!({"blockSize": 26}), &["spec.cidr", "Required"][..]),
        (
            "BGPConfiguration",
            json!({"asNumber": "sixty-five"}),
            &["spec.asNumber", "[0-9]"],
        ),
        (
            "BGPConfiguration",
            json!({"asNumber": 4_294_967_296_u64}),
            &["spec.asNumber", "4294967295"],
        ),
        ("IPPool", json!({"cidr": "10.70.0.0/33"}), &["spec.cidr", "cidr"]),
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "blockSize": 129}),
            &["spec.blockSize", "128"],
        ),
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "blockSize": "26"}),
            &["spec.blockSize", "integer"],
        ),
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "ipipMode": "Sometimes"}),
            &["spec.ipipMode", "CrossSubnet"],
        ),
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "natOutgoing": "yes"}),
            &["spec.natOutgoing", "boolean"],
        ),
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "allowedUses": ["Pods"]}),
            &["spec.allowedUses", "Workload"],
        ),
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "assignmentMode": "Never"}),
            &["spec.assignmentMode", "Manual"],
        ),
        (
            "IPAMConfig",
            json!({"strictAffinity": true}),
            &["spec.autoAllocateBlocks", "Required"],
        ),
        (
            "BlockAffinity",
            json!({"cidr": "10.70.0.0/26", "node": "n", "state": "mine", "deleted": "false"}),
            &["spec.state", "pendingDeletion"],
        ),
        (
            "IPAMBlock",
            json!({"cidr": "10.70.0.0/31", "allocations": ["a", null], "unallocated": [1], "attributes": [], "strictAffinity": false}),
            &["spec.allocations", "integer"],
        ),
    ]
}

fn refused(server: &Server) -> Outcome {
    server.with(|server| {
        for (kind, spec, words) in wrong() {
            let said = match create(server, kind, &spec) {
                Ok(created) => return Err(Failed::from(format!("{spec} was taken: {created}"))),
                Err(said) => said,
            };
            let missing = words.iter().find(|word| !said.contains(**word));
            ensure(missing.is_none() && said.contains("is invalid"), || {
                format!("{spec}: {said:?} does not say {missing:?}")
            })?;
        }
        Ok(())
    })?
}

fn taken(server: &Server) -> Outcome {
    // Between 2^53 and 2^63, and odd: no float holds it.
    let number = 9_007_199_254_740_993_u64;
    let right = [
        (
            "IPPool",
            json!({"cidr": "10.70.0.0/16", "blockSize": 26, "ipipMode": "Always", "natOutgoing": true, "nodeSelector": "all()",
                "allowedUses": ["Workload"], "fieldOfALaterVersion": {"kept": true}}),
            json!({}),
        ),
        (
            "IPAMBlock",
            json!({"cidr": "10.70.0.0/31", "affinity": null, "allocations": [0, null], "unallocated": [1],
                "attributes": [{"handle_id": null, "secondary": null, "later": 1}], "strictAffinity": false,
                "sequenceNumberForAllocation": {"0": number}}),
            json!({"sequenceNumber": 0}),
        ),
        (
            "IPAMConfig",
            json!({"strictAffinity": false, "autoAllocateBlocks": true, "ipCooldownSeconds": 5}),
            json!({}),
        ),
    ];
    server.with(|server| {
        for (kind, spec, defaults) in right {
            let created = create(server, kind, &spec)?;
            server.kubectl(ADMIN, &["delete", kind, "validated"], "")?;
            let fields = spec.as_object().into_iter().chain(defaults.as_object()).flatten();
            for (field, value) in fields {
                ensure(created["spec"][field] == *value, || {
                    format!("{field}: {value} became {created}")
                })?;
            }
        }
        Ok(())
    })?
}
