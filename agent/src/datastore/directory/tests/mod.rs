//! Tests of the directory datastore: real files, real processes.

mod crash;
mod manifests;
mod swap;
mod watching;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use super::DirectoryStore;
use crate::api::{IpamHandle, Key, Kind, Metadata, Node, Object, Resource};
use crate::datastore::Datastore;

/// Tells a test that it runs as a child process of itself, and on which folder.
const CHILD: &str = "CULVERT_TEST_DIRECTORY";

/// A folder of its own, and a store in it.
fn fresh() -> (TempDir, DirectoryStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    (folder, store)
}

fn open(folder: &Path) -> DirectoryStore {
    DirectoryStore::open(folder).unwrap()
}

fn write(folder: &TempDir, file: &str, text: &str) -> PathBuf {
    let path = folder.path().join(file);
    fs::write(&path, text).unwrap();
    path
}

fn node(name: &str) -> Node {
    Node::named(name)
}

fn node_key(name: &str) -> Key {
    Key::new(Kind::Node, name)
}

/// A handle without addresses.
fn handle(name: &str) -> Object {
    let spec = serde_json::from_value(serde_json::json!({ "handleID": name })).unwrap();
    Object::IpamHandle(IpamHandle::new(name, spec))
}

/// The manifest of a Node with a label, as somebody would write it.
fn node_text(name: &str, label: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    at: \"{label}\"\n")
}

fn label(object: &impl HasMetadata) -> &str {
    object.of().labels.get("at").map_or("", String::as_str)
}

trait HasMetadata {
    fn of(&self) -> &Metadata;
}

impl HasMetadata for Object {
    fn of(&self) -> &Metadata {
        self.metadata()
    }
}

impl HasMetadata for Node {
    fn of(&self) -> &Metadata {
        &self.metadata
    }
}

fn set_label(object: &mut Object, text: &str) {
    object
        .metadata_mut()
        .labels
        .insert("at".to_owned(), text.to_owned());
}

async fn get(store: &DirectoryStore, name: &str) -> Object {
    store.get(&node_key(name)).await.unwrap().unwrap()
}

async fn create(store: &DirectoryStore, name: &str) -> Object {
    store.create(node(name).into_object()).await.unwrap()
}

/// This test again, as a process of its own that finds `folder` in its environment.
fn child(test: &str, folder: &Path) -> Command {
    let module = module_path!().split_once("::").unwrap().1;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        &format!("{module}::{test}"),
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env(CHILD, folder).stdin(Stdio::null());
    command
}

fn is_child() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}
