//! The CustomResourceDefinitions of Calico's kinds: what the API server checks before it keeps an object.
//!
//! Required fields, enums, ranges and formats are Calico's own, so that objects of both are let in. Fields that are not
//! listed are kept (`x-kubernetes-preserve-unknown-fields`): a newer writer's are no reason to lose them. What one field
//! says of another is checked by [`super::Object::validate`], since servers before 1.25 cannot.

mod bgp;

use serde_json::{Map, Value, json};

use super::{CALICO_API_VERSION, Kind};

/// The definition of a kind, as a manifest; none for kinds that are Kubernetes' own.
#[must_use]
pub fn definition(kind: Kind) -> Option<Value> {
    let (singular, description, spec) = match kind {
        Kind::IpPool => (
            "ippool",
            "A range of pod addresses, and how packets travel to them.",
            ip_pool(),
        ),
        Kind::IpReservation => (
            "ipreservation",
            "Addresses that are given to nobody unasked.",
            ip_reservation(),
        ),
        Kind::BgpConfiguration => {
            let description = "Settings of the BGP speakers; the one named default is the cluster's.";
            ("bgpconfiguration", description, bgp::configuration())
        }
        Kind::BgpPeer => (
            "bgppeer",
            "Who is a BGP peer of which nodes, and how.",
            bgp::peer(),
        ),
        Kind::BgpFilter => (
            "bgpfilter",
            "Which routes are taken from a peer, and told to it.",
            bgp::filter(),
        ),
        Kind::IpamConfig => {
            let description = "Settings of address allocation; there is one, named default.";
            ("ipamconfig", description, ipam_config())
        }
        Kind::BlockAffinity => (
            "blockaffinity",
            "Which node a block belongs to.",
            block_affinity(),
        ),
        Kind::IpamBlock => (
            "ipamblock",
            "A block of addresses, and who has each of them.",
            ipam_block(),
        ),
        Kind::IpamHandle => (
            "ipamhandle",
            "In which blocks one owner has addresses.",
            ipam_handle(),
        ),
        Kind::Node
        | Kind::Secret
        | Kind::Service
        | Kind::EndpointSlice
        | Kind::Pod
        | Kind::Namespace
        | Kind::Lease => return None,
    };
    Some(manifest(kind, singular, description, &spec, &columns(kind)))
}

/// What `kubectl get` shows beside the name.
fn columns(kind: Kind) -> Vec<Value> {
    match kind {
        Kind::IpPool => vec![
            column("CIDR", "string", ".spec.cidr", "The range"),
            column("IPIP", "string", ".spec.ipipMode", "When packets travel in IPv4"),
            column(
                "NAT",
                "boolean",
                ".spec.natOutgoing",
                "Whether packets that leave the cluster get the node's address",
            ),
            column(
                "Disabled",
                "boolean",
                ".spec.disabled",
                "Whether no new addresses are taken from it",
            ),
        ],
        Kind::BgpConfiguration => vec![column(
            "AS",
            "integer",
            ".spec.asNumber",
            "The AS number of the cluster",
        )],
        Kind::BgpPeer => vec![
            column("Peer", "string", ".spec.peerIP", "The peer's address"),
            column("AS", "integer", ".spec.asNumber", "The peer's AS"),
            column("Node", "string", ".spec.node", "The one node that has this peer"),
        ],
        Kind::BlockAffinity => vec![
            column("CIDR", "string", ".spec.cidr", "The block"),
            column("Node", "string", ".spec.node", "Whose it is"),
            column("State", "string", ".spec.state", "How far the claim has come"),
        ],
        Kind::IpamBlock => vec![
            column("CIDR", "string", ".spec.cidr", "The block"),
            column("Affinity", "string", ".spec.affinity", "Whose it is"),
        ],
        Kind::IpamHandle => vec![column("Handle", "string", ".spec.handleID", "The owner")],
        _ => Vec::new(),
    }
}

fn manifest(kind: Kind, singular: &str, description: &str, spec: &Value, columns: &[Value]) -> Value {
    let (group, version) = CALICO_API_VERSION.split_once('/').unwrap_or_default();
    let plural = kind.plural();
    let mut version = json!({
        "name": version, "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {
            "type": "object",
            "description": description,
            "required": ["spec"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                "spec": spec,
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            },
        }},
    });
    if !columns.is_empty() {
        version["additionalPrinterColumns"] = json!(columns);
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "names": {
                "kind": kind.as_str(), "listKind": format!("{}List", kind.as_str()),
                "plural": plural, "singular": singular,
            },
            "scope": "Cluster",
            "versions": [version],
        },
    })
}

fn column(name: &str, r#type: &str, path: &str, description: &str) -> Value {
    json!({"name": name, "type": r#type, "jsonPath": path, "description": description})
}

/// An object with these fields, of which some must be there; others are kept as they are.
fn object(required: &[&str], fields: &[(&str, Value)]) -> Value {
    let properties: Map<_, _> = fields
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    let mut object = json!({
        "type": "object", "properties": properties, "x-kubernetes-preserve-unknown-fields": true,
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn cidr(description: &str) -> Value {
    json!({"type": "string", "format": "cidr", "description": description})
}

fn switch(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}

fn one_of(values: &[&str], description: &str) -> Value {
    json!({"type": "string", "enum": values, "description": description})
}

fn number(range: (i64, i64), description: &str) -> Value {
    json!({"type": "integer", "format": "int64", "minimum": range.0, "maximum": range.1, "description": description})
}

fn nullable(mut schema: Value) -> Value {
    schema["nullable"] = json!(true);
    schema
}

fn list(items: &Value, description: &str) -> Value {
    json!({"type": "array", "items": items, "description": description})
}

fn by_name(values: &Value, description: &str) -> Value {
    json!({"type": "object", "additionalProperties": values, "description": description})
}

#[rustfmt::skip]
fn ip_pool() -> Value {
    let modes = ["Never", "Always", "CrossSubnet"];
    object(
        &["cidr"],
        &[
            ("cidr", cidr("The range.")),
            ("blockSize", number((0, 128), "Prefix length of its blocks: 20 to 32, 26 by default; for IPv6 116 to 128, 122 by default.")),
            ("ipipMode", one_of(&modes, "When packets travel in IPv4. Default: Never.")),
            ("vxlanMode", one_of(&modes, "When packets travel in VXLAN, which Culvert does not do. Default: Never.")),
            ("natOutgoing", switch("Whether packets that leave the cluster get the node's address.")),
            ("disabled", switch("No new addresses from it.")),
            ("disableBGPExport", switch("Its blocks are not advertised.")),
            ("nodeSelector", text("The nodes that may have blocks of it. Default: all().")),
            ("namespaceSelector", text("The namespaces whose pods get its addresses. Default: all.")),
            ("allowedUses", list(&one_of(&["Workload", "Tunnel", "LoadBalancer"], "A use."), "What its addresses are for. Default: Workload and Tunnel.")),
            ("assignmentMode", one_of(&["Automatic", "Manual"], "Whether addresses are taken from it unasked. Default: Automatic.")),
        ],
    )
}

fn ip_reservation() -> Value {
    let cidrs = list(&json!({"type": "string"}), "Ranges and addresses.");
    object(&[], &[("reservedCIDRs", cidrs)])
}

#[rustfmt::skip]
fn ipam_config() -> Value {
    object(
        &["strictAffinity", "autoAllocateBlocks"],
        &[
            ("strictAffinity", switch("A node hands out addresses of its own blocks only.")),
            ("autoAllocateBlocks", switch("A node whose blocks are full claims another.")),
            ("maxBlocksPerHost", number((0, 2_147_483_647), "Most blocks a node may have; 0 means 20.")),
        ],
    )
}

#[rustfmt::skip]
fn block_affinity() -> Value {
    object(
        &["cidr", "deleted", "node", "state"],
        &[
            ("cidr", cidr("The block.")),
            ("node", text("The node, or the virtual owner.")),
            ("state", one_of(&["pending", "confirmed", "pendingDeletion"], "How far the claim has come.")),
            ("type", text("host (the default) or virtual.")),
            ("deleted", one_of(&["true", "false"], "Soft delete, as a text.")),
        ],
    )
}

#[rustfmt::skip]
fn ipam_block() -> Value {
    let ordinal = json!({"type": "integer"});
    let texts = by_name(&json!({"type": "string"}), "What else is known of the owner.");
    let attribute = object(
        &[],
        &[
            ("handle_id", nullable(text("The owner."))),
            ("secondary", nullable(texts)),
            ("releasedAt", nullable(json!({"type": "string", "format": "date-time", "description": "When it was released."}))),
        ],
    );
    let sequence = json!({"type": "integer", "format": "int64", "minimum": 0});
    let mut sequence_number = sequence.clone();
    sequence_number["default"] = json!(0);
    sequence_number["description"] = json!("Raised by one with every write.");
    object(
        &["allocations", "attributes", "cidr", "strictAffinity", "unallocated"],
        &[
            ("cidr", cidr("The block.")),
            ("affinity", nullable(text("host:NODE or virtual:OWNER."))),
            ("affinityClaimTime", nullable(json!({"type": "string", "format": "date-time", "description": "When the owner claimed it."}))),
            ("allocations", list(&nullable(ordinal.clone()), "For each ordinal the index of its attributes; null for a free one.")),
            ("unallocated", list(&ordinal, "The free ordinals, in the order in which they are given out.")),
            ("attributes", list(&attribute, "Who has addresses.")),
            ("sequenceNumber", sequence_number),
            ("sequenceNumberForAllocation", by_name(&sequence, "The sequence number when an ordinal was taken.")),
            ("deleted", switch("Soft delete.")),
            ("strictAffinity", switch("Without meaning; required.")),
        ],
    )
}

#[rustfmt::skip]
fn ipam_handle() -> Value {
    object(
        &["block", "handleID"],
        &[
            ("handleID", text("The owner.")),
            ("block", by_name(&json!({"type": "integer"}), "How many addresses it has in each block.")),
            ("deleted", switch("Soft delete.")),
        ],
    )
}

#[cfg(test)]
mod tests;
