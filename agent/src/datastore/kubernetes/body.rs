//! What the API server writes, as objects: typed, and without what nobody here reads.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::api::{Key, Kind, Object, annotation};
use crate::datastore::DatastoreError;

/// What `kubectl apply` leaves on each object: as long as the object, and of no use to anybody else.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One page of a list. The items are read one at a time, so that one tree of values is in memory and no more.
#[derive(Deserialize)]
pub(super) struct Page<'a> {
    #[serde(default)]
    pub(super) metadata: PageMetadata,
    #[serde(borrow, default)]
    pub(super) items: Vec<&'a RawValue>,
}

/// Where a list stands.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PageMetadata {
    /// The revision that all pages are of.
    pub(super) resource_version: String,
    /// What the next page is asked for with; empty on the last.
    pub(super) r#continue: String,
}

/// One line of a watch.
#[derive(Deserialize)]
pub(super) struct WatchLine<'a> {
    pub(super) r#type: &'a str,
    #[serde(borrow)]
    pub(super) object: &'a RawValue,
}

/// How much of an object is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All that a write has to give back.
    Whole,
    /// What a watch tells.
    Told,
}

/// An object that cannot be read: its key, as far as it is known, and why.
#[derive(Debug)]
pub(super) struct Unreadable {
    pub(super) key: Key,
    pub(super) reason: String,
}

impl Unreadable {
    pub(super) fn at(self, server: &str) -> DatastoreError {
        DatastoreError::Invalid {
            place: format!("{} at {server}", self.key),
            reason: self.reason,
        }
    }
}

/// Reads an object of `kind`.
pub(super) fn object(kind: Kind, text: &str, extent: Extent) -> Result<Object, Unreadable> {
    let key = key(kind, text).unwrap_or_else(|| Key::new(kind, "of unknown name"));
    let mut value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            let reason = format!("is no JSON: {error}");
            return Err(Unreadable { key, reason });
        }
    };
    trim(kind, &mut value, extent);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let read = Object::deserialize(kind, tracked).map_err(|error| format!("{}: {error}", track.path()));
    let checked = read.and_then(|object| match object.validate() {
        Ok(()) => Ok(object),
        Err(error) => Err(error.to_string()),
    });
    checked.map_err(|reason| Unreadable { key, reason })
}

/// Takes away what is the server's own book-keeping; for a watch also what only makes an object large.
fn trim(kind: Kind, value: &mut Value, extent: Extent) {
    let Some(fields) = value.as_object_mut() else {
        return;
    };
    fields.remove("apiVersion");
    fields.remove("kind");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        if extent == Extent::Told {
            metadata.retain(|name, _| {
                matches!(
                    name.as_str(),
                    "name" | "namespace" | "resourceVersion" | "labels" | "annotations" | "deletionTimestamp"
                )
            });
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                match kind {
                    // There are many of both, and of all that people write beside them only this is about the network.
                    Kind::Node => annotations.retain(|name, _| name.starts_with(annotation::PREFIX)),
                    _ => drop(annotations.remove(LAST_APPLIED)),
                }
            }
            if kind == Kind::BlockAffinity {
                metadata.remove("labels");
                metadata.remove("annotations");
            }
        }
    }
    match kind {
        Kind::Node if extent == Extent::Told => {
            keep(fields, "spec", &["podCIDR", "podCIDRs", "unschedulable"]);
            keep(fields, "status", &["addresses"]);
        }
        Kind::Pod if extent == Extent::Told => {
            keep(fields, "spec", &["nodeName", "hostNetwork"]);
            keep(fields, "status", &["phase", "podIP", "podIPs"]);
        }
        Kind::EndpointSlice => fields
            .get_mut("endpoints")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .for_each(name_node),
        _ => {}
    }
}

/// The node of an endpoint where discovery.k8s.io/v1 has it: v1beta1 has it among the labels of its topology.
fn name_node(endpoint: &mut Value) {
    const HOSTNAME: &str = "kubernetes.io/hostname";
    let Some(endpoint) = endpoint.as_object_mut() else {
        return;
    };
    if endpoint.get("nodeName").is_some_and(Value::is_string) {
        return;
    }
    let node = endpoint.get("topology").and_then(|labels| labels.get(HOSTNAME));
    if let Some(node) = node.filter(|node| node.is_string()).cloned() {
        endpoint.insert("nodeName".to_owned(), node);
    }
}

fn keep(fields: &mut serde_json::Map<String, Value>, part: &str, names: &[&str]) {
    if let Some(part) = fields.get_mut(part).and_then(Value::as_object_mut) {
        part.retain(|name, _| names.contains(&name.as_str()));
    }
}

#[derive(Deserialize)]
struct Named {
    metadata: NamedMetadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NamedMetadata {
    name: String,
    namespace: String,
    resource_version: String,
}

/// The revision of an object, or of a bookmark, whatever else it is.
pub(super) fn revision(text: &str) -> Option<String> {
    let named: Named = serde_json::from_str(text).ok()?;
    Some(named.metadata.resource_version).filter(|revision| !revision.is_empty())
}

/// The key of an object, whatever else it is.
pub(super) fn key(kind: Kind, text: &str) -> Option<Key> {
    let Named { metadata } = serde_json::from_str(text).ok()?;
    Some(Key::namespaced(kind, Some(&metadata.namespace), metadata.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"n","uid":"u","resourceVersion":"7",
        "labels":{"a":"b"},"managedFields":[{"manager":"kubelet"}],
        "annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}","projectcalico.org/IPv4Address":"172.18.0.1/24"}},
        "spec":{"podCIDR":"10.0.0.0/24","taints":[]},
        "status":{"addresses":[{"type":"InternalIP","address":"172.18.0.1"}],"images":[{"sizeBytes":1}],"conditions":[]}}"#;

    fn json(object: &Object) -> Value {
        serde_json::to_value(object).unwrap()
    }

    #[test]
    fn whole_is_all_but_the_servers_own_book_keeping() {
        let mut expected: Value = serde_json::from_str(NODE).unwrap();
        expected["metadata"]
            .as_object_mut()
            .unwrap()
            .remove("managedFields");
        assert_eq!(json(&object(Kind::Node, NODE, Extent::Whole).unwrap()), expected);
    }

    #[test]
    fn a_watch_tells_of_a_node_what_the_network_needs() {
        let told = json(&object(Kind::Node, NODE, Extent::Told).unwrap());
        let expected = serde_json::json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n", "resourceVersion": "7", "labels": {"a": "b"},
                "annotations": {"projectcalico.org/IPv4Address": "172.18.0.1/24"}},
            "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.18.0.1"}]},
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_sequence_number_beyond_what_a_float_holds_stays_what_it_is() {
        let number = 9_007_199_254_740_993_u64; // 2^53 + 1, the first that a float cannot hold.
        let text = format!(
            r#"{{"metadata":{{"name":"10-0-0-0-26"}},"spec":{{"cidr":"10.0.0.0/26","allocations":[],"unallocated":[],
            "attributes":[],"strictAffinity":false,"deleted":false,"sequenceNumber":{number},
            "sequenceNumberForAllocation":{{"3":{number}}}}}}}"#
        );
        let Ok(Object::IpamBlock(block)) = object(Kind::IpamBlock, &text, Extent::Whole) else {
            panic!("not read");
        };
        assert_eq!(block.spec.sequence_number, number);
        assert!(
            serde_json::to_string(&Object::IpamBlock(block))
                .unwrap()
                .matches(&number.to_string())
                .count()
                == 2
        );
    }

    #[test]
    fn the_node_of_an_endpoint_is_read_of_either_version_of_the_api() {
        for (endpoint, node) in [
            (
                r#"{"topology":{"kubernetes.io/hostname":"n1","zone":"a"}}"#,
                Some("n1"),
            ),
            (
                r#"{"nodeName":"n1","topology":{"kubernetes.io/hostname":"n2"}}"#,
                Some("n1"),
            ),
            (
                r#"{"nodeName":null,"topology":{"kubernetes.io/hostname":"n1"}}"#,
                Some("n1"),
            ),
            (r#"{"topology":{"kubernetes.io/hostname":7}}"#, None),
            (r#"{"topology":null}"#, None),
            ("{}", None),
        ] {
            let text = format!(r#"{{"metadata":{{"name":"s","namespace":"d"}},"endpoints":[{endpoint}]}}"#);
            let Ok(Object::EndpointSlice(slice)) = object(Kind::EndpointSlice, &text, Extent::Told) else {
                panic!("{text} is not read");
            };
            assert_eq!(slice.endpoints[0].node_name.as_deref(), node, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_in_an_object_is_named() {
        let text = r#"{"metadata":{"name":"p"},"spec":{"cidr":"10.0.0.0/16","blockSize":"x"}}"#;
        let error = object(Kind::IpPool, text, Extent::Whole)
            .unwrap_err()
            .at("https://server");
        let said = error.to_string();
        for word in ["IPPool p at https://server", "spec.blockSize"] {
            assert!(said.contains(word), "{said:?} does not say {word:?}");
        }
    }
}
