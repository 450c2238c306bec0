//! The datastore of a laboratory before any agent runs: manifests as an operator would write them by hand.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::layout::{AS_NUMBER, BIRD_BLOCK, Layout, POOL};
use crate::{LabError, Mode};

/// Writes the manifests into one file, as for `kubectl apply`.
pub(crate) fn prepare(folder: &Path, layout: &Layout) -> Result<(), LabError> {
    let path = folder.join("cluster.yaml");
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, manifests(layout)))
        .map_err(LabError::io(format!("write {}", path.display())))
}

/// The manifests of a layout.
fn manifests(layout: &Layout) -> String {
    let mut text = pool(layout.mode) + &configuration();
    for number in layout.numbers() {
        text += &node(&format!("node{number}"), &layout.address(number).to_string());
    }
    if layout.bird {
        text += &bird(layout);
    }
    text
}

fn pool(mode: Mode) -> String {
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: default-ipv4-ippool
spec:
  cidr: {POOL}
  blockSize: 26
  ipipMode: {}
  vxlanMode: Never
  nodeSelector: all()
",
        mode.ipip_mode()
    )
}

fn configuration() -> String {
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: BGPConfiguration
metadata:
  name: default
spec:
  asNumber: {AS_NUMBER}
  nodeToNodeMeshEnabled: true
"
    )
}

fn node(name: &str, address: &str) -> String {
    format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: {name}
status:
  addresses:
  - type: InternalIP
    address: {address}
  - type: Hostname
    address: {name}
"
    )
}

/// The node without an agent: what Calico would have published for it, and its block.
fn bird(layout: &Layout) -> String {
    let address = layout.address(layout.bird_number());
    let dashed = BIRD_BLOCK.replace(['.', '/'], "-");
    let free: Vec<_> = (0..64).map(|n: u8| n.to_string()).collect();
    let mut text = format!(
        "---
apiVersion: v1
kind: Node
metadata:
  name: bird
  annotations:
    projectcalico.org/IPv4Address: {address}/24
status:
  addresses:
  - type: InternalIP
    address: {address}
---
apiVersion: crd.projectcalico.org/v1
kind: BlockAffinity
metadata:
  name: bird-{dashed}
spec:
  cidr: {BIRD_BLOCK}
  node: bird
  state: confirmed
  type: host
  deleted: \"false\"
"
    );
    let _ = write!(
        text,
        "---
apiVersion: crd.projectcalico.org/v1
kind: IPAMBlock
metadata:
  name: {dashed}
spec:
  cidr: {BIRD_BLOCK}
  affinity: host:bird
  allocations: [{nulls}]
  unallocated: [{free}]
  attributes: []
  sequenceNumber: 1700000000000000000
  strictAffinity: false
  deleted: false
",
        nulls = vec!["null"; free.len()].join(", "),
        free = free.join(", "),
    );
    text
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    #[test]
    fn the_manifests_are_yaml_and_name_every_node() {
        let layout = Layout {
            bird: true,
            ..Layout::new(Mode::CrossSubnet)
        };
        let text = manifests(&layout);
        let documents: Vec<serde_yaml::Value> = serde_yaml::Deserializer::from_str(&text)
            .map(|document| serde_yaml::Value::deserialize(document).unwrap())
            .collect();
        let named = |kind: &str| {
            let of_kind = documents.iter().filter(|d| d["kind"] == kind);
            of_kind
                .map(|d| d["metadata"]["name"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(named("Node"), ["node1", "node2", "node3", "bird"]);
        assert_eq!(named("IPPool").len(), 1);
        let block = documents.iter().find(|d| d["kind"] == "IPAMBlock").unwrap();
        assert_eq!(block["spec"]["allocations"].as_sequence().unwrap().len(), 64);
    }
}
