//! The datastore of a laboratory before any agent runs: manifests as an operator would write them by hand.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::layout::{AS_NUMBER, BIRD_BLOCK, Layout, POOL, POOL_V6};
use crate::{LabError, Mode};

/// The name of the IPPool of IPv4.
const POOL_NAME: &str = "default-ipv4-ippool";
/// The name of that of IPv6, where there is one.
const POOL_V6_NAME: &str = "default-ipv6-ippool";

/// Writes the manifests into one file, as for `kubectl apply`.
pub(crate) fn prepare(folder: &Path, layout: &Layout) -> Result<(), LabError> {
    let path = file(folder);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, manifests(layout)))
        .map_err(LabError::io(format!("write {}", path.display())))
}

/// The file that [`prepare`] wrote, which the agents update where it stands.
fn file(folder: &Path) -> std::path::PathBuf {
    folder.join("cluster.yaml")
}

/// Rewrites the file as an editor does: whole, by a rename. `edit` gets the documents, each without its `---`.
fn edit(
    folder: &Path,
    edit: impl FnOnce(Vec<String>) -> Result<Vec<String>, LabError>,
) -> Result<(), LabError> {
    let path = file(folder);
    let text = fs::read_to_string(&path).map_err(LabError::io(format!("read {}", path.display())))?;
    let text: String = edit(documents(&text))?
        .iter()
        .map(|document| format!("---\n{document}"))
        .collect();
    let beside = folder.join(".cluster.yaml.edited");
    fs::write(&beside, text)
        .and_then(|()| fs::rename(&beside, &path))
        .map_err(LabError::io(format!("write {}", path.display())))
}

fn documents(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents
}

fn is(document: &str, kind: &str, name: &str) -> bool {
    let (kind, name) = (format!("kind: {kind}"), format!("  name: {name}"));
    document.lines().any(|line| line == kind) && document.lines().any(|line| line == name)
}

fn unknown(folder: &Path, what: &str) -> LabError {
    LabError::Answer {
        what: file(folder).display().to_string(),
        reason: format!("it has no {what}"),
        text: fs::read_to_string(file(folder)).unwrap_or_default(),
    }
}

/// Sets fields of the IPPool's `spec`, whether they are there already or not.
pub(crate) fn set_in_pool(folder: &Path, fields: &[(&str, &str)]) -> Result<(), LabError> {
    edit(folder, |mut documents| {
        let pool = documents.iter_mut().find(|d| is(d, "IPPool", POOL_NAME));
        let pool = pool.ok_or_else(|| unknown(folder, &format!("IPPool {POOL_NAME}")))?;
        for (field, value) in fields {
            let start = format!("  {field}:");
            let others = pool.lines().filter(|line| !line.starts_with(&start));
            let mut changed = String::new();
            for line in others {
                let _ = writeln!(changed, "{line}");
                if line == "spec:" {
                    let _ = writeln!(changed, "{start} {value}");
                }
            }
            *pool = changed;
        }
        Ok(documents)
    })
}

/// Takes the document of an object out, and returns it.
pub(crate) fn take(folder: &Path, kind: &str, name: &str) -> Result<String, LabError> {
    let mut taken = None;
    edit(folder, |mut documents| {
        let place = documents.iter().position(|d| is(d, kind, name));
        let place = place.ok_or_else(|| unknown(folder, &format!("{kind} {name}")))?;
        taken = Some(documents.remove(place));
        Ok(documents)
    })?;
    taken.ok_or_else(|| unknown(folder, &format!("{kind} {name}")))
}

/// Takes the pool of IPv6 out.
pub(crate) fn take_pool_v6(folder: &Path) -> Result<(), LabError> {
    edit(folder, |mut documents| {
        documents.retain(|document| !is(document, "IPPool", POOL_V6_NAME));
        Ok(documents)
    })
}

/// Removes the blocks of IPv6 and the claims of them, which the agents have written.
pub(crate) fn take_blocks_v6(folder: &Path) -> Result<(), LabError> {
    let remove = || {
        for kind in ["blockaffinities", "ipamblocks"] {
            for entry in fs::read_dir(folder.join(kind))? {
                let entry = entry?;
                // In names of objects a range has dashes for its colons.
                if entry.file_name().to_string_lossy().contains("fd00-65--") {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    };
    remove().map_err(LabError::io(format!("remove the blocks in {}", folder.display())))
}

/// Gives a Node the InternalIP `to` in place of `from`.
pub(crate) fn set_internal_ip(
    folder: &Path,
    name: &str,
    from: Ipv4Addr,
    to: Ipv4Addr,
) -> Result<(), LabError> {
    let (from, to) = (format!("address: {from}"), format!("address: {to}"));
    edit(folder, |mut documents| {
        let node = documents.iter_mut().find(|d| is(d, "Node", name));
        let node = node.ok_or_else(|| unknown(folder, &format!("Node {name}")))?;
        let is_old = |line: &str| line.trim_start_matches([' ', '-']).trim_end() == from;
        if !node.lines().any(is_old) {
            return Err(unknown(folder, &format!("InternalIP of {name} with {from}")));
        }
        *node = node
            .lines()
            .map(|line| if is_old(line) { line.replace(&from, &to) } else { line.to_owned() } + "\n")
            .collect();
        Ok(documents)
    })
}

/// Adds a document.
pub(crate) fn add(folder: &Path, document: String) -> Result<(), LabError> {
    edit(folder, |mut documents| {
        documents.push(document);
        Ok(documents)
    })
}

/// Moves everything but the hidden files from one folder into another, which is made if need be. A folder that is there
/// already, since an agent has written into it meanwhile, takes what is moved besides what it has.
pub(crate) fn move_all(from: &Path, to: &Path) -> Result<(), LabError> {
    move_into(from, to).map_err(LabError::io(format!(
        "move what is in {} to {}",
        from.display(),
        to.display()
    )))
}

fn move_into(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        let (source, target) = (from.join(&name), to.join(&name));
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        if source.is_dir() && target.is_dir() {
            move_into(&source, &target)?;
        } else {
            fs::rename(source, target)?;
        }
    }
    Ok(())
}

/// The manifests of a layout.
fn manifests(layout: &Layout) -> String {
    let mut text = pool(POOL_NAME, POOL, 26, layout.mode) + &configuration();
    if layout.dual_stack {
        text += &pool(POOL_V6_NAME, POOL_V6, 122, Mode::Direct);
    }
    for number in layout.numbers() {
        // Whoever has two addresses names both, that by which it is known first.
        let (known_by, first) = (layout.address(number), layout.first_address(number));
        let other = (known_by != first).then_some(first);
        text += &node(&format!("node{number}"), known_by, other);
    }
    if layout.bird {
        text += &bird(layout);
    }
    text
}

fn pool(name: &str, cidr: &str, block_size: u8, mode: Mode) -> String {
    format!(
        "---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata:
  name: {name}
spec:
  cidr: {cidr}
  blockSize: {block_size}
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

fn node(name: &str, address: Ipv4Addr, other: Option<Ipv4Addr>) -> String {
    let other = other.map_or_else(String::new, |other| {
        format!("  - type: InternalIP\n    address: {other}\n")
    });
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
{other}  - type: Hostname
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
    fn an_edit_changes_what_it_names_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let layout = Layout::new(Mode::Ipip);
        prepare(folder, &layout).unwrap();
        let read = || fs::read_to_string(file(folder)).unwrap();
        set_in_pool(folder, &[("ipipMode", "Never"), ("disabled", "true")]).unwrap();
        let changed = read();
        let pool: serde_yaml::Value = serde_yaml::from_str(&documents(&changed)[0]).unwrap();
        assert_eq!(pool["spec"]["ipipMode"], "Never");
        assert_eq!(pool["spec"]["disabled"], true);
        assert_eq!(pool["spec"]["cidr"], POOL);
        assert_eq!(documents(&changed)[1..], documents(&manifests(&layout))[1..]);

        let addresses = ["172.18.0.13", "172.18.0.33"].map(|text| text.parse().unwrap());
        set_internal_ip(folder, "node3", addresses[0], addresses[1]).unwrap();
        assert!(read().contains("    address: 172.18.0.33") && !read().contains("172.18.0.13"));
        assert!(set_internal_ip(folder, "node3", addresses[0], addresses[1]).is_err());

        let node = take(folder, "Node", "node2").unwrap();
        assert!(node.contains("address: 172.18.0.12") && !read().contains("node2"));
        assert!(take(folder, "Node", "node2").is_err());
        add(folder, node).unwrap();
        assert_eq!(documents(&read()).len(), documents(&changed).len());
    }

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
