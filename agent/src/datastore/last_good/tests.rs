use serde_json::{Value, json};

use super::*;
use crate::api::{BgpConfiguration, BlockAffinity, IpPool, IpamBlock, annotation};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn node() -> Node {
    of(json!({
        "metadata": {
            "name": "a", "resourceVersion": "7", "uid": "u", "labels": {"rack": "1"},
            "annotations": {annotation::IPV4_ADDRESS: "172.18.0.1/24", "token": "hidden"},
        },
        "spec": {"providerID": "hidden"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "172.18.0.1"}],
            "images": [{"names": ["hidden"]}],
        },
    }))
}

fn objects() -> BTreeMap<Key, Object> {
    let pool: IpPool = of(json!({"metadata": {"name": "p"}, "spec": {"cidr": "10.65.0.0/16"}}));
    let bgp: BgpConfiguration = of(json!({"metadata": {"name": "default"}, "spec": {"asNumber": 64513}}));
    let affinity: BlockAffinity = of(json!({
        "metadata": {"name": "a-10-65-1-0-26"},
        "spec": {"cidr": "10.65.1.0/26", "node": "a", "state": "confirmed", "deleted": "false", "new": [1, {"x": null}]},
    }));
    let all = [
        Object::Node(node()),
        Object::IpPool(pool),
        Object::BgpConfiguration(bgp),
        Object::BlockAffinity(affinity),
    ];
    let all = all.iter().map(|object| kept(object, "a").unwrap());
    all.map(|object| (object.key(), object)).collect()
}

fn records() -> Vec<Record> {
    objects()
        .values()
        .map(|object| Record::of(object).unwrap())
        .collect()
}

fn file(folder: &Path) -> LastGood {
    LastGood::new(folder, "a", "directory /d")
}

#[test]
fn what_is_written_is_read_and_nothing_else_is_left_in_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("lib/state");
    let now = Timestamp::now();
    for _ in 0..2 {
        file(&state).write(&records(), now).unwrap();
    }
    let copy = LastGoodCopy {
        saved: now,
        records: objects()
            .iter()
            .map(|(key, object)| (key.clone(), Record::of(object).unwrap()))
            .collect(),
    };
    assert_eq!(file(&state).read(), Some(copy));
    assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
}

#[test]
fn nothing_that_may_be_secret_or_changes_all_the_time_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    file(folder.path()).write(&records(), Timestamp::now()).unwrap();
    let text = fs::read_to_string(folder.path().join("a.last-good")).unwrap();
    for gone in ["hidden", "token", "resourceVersion", "uid"] {
        assert!(!text.contains(gone), "{gone} is in {text}");
    }
    for needed in ["172.18.0.1/24", "InternalIP", "rack"] {
        assert!(text.contains(needed), "{needed} is not in {text}");
    }
}

#[test]
fn of_the_blocks_the_nodes_own_are_kept_and_those_in_which_it_has_an_address() {
    let with = |affinity: Value, allocations: Value| {
        let block: IpamBlock = of(json!({
            "metadata": {"name": "10-65-1-0-26"},
            "spec": {
                "cidr": "10.65.1.0/26", "affinity": affinity, "allocations": allocations, "unallocated": [],
                "attributes": [{"handle_id": "h", "secondary": {"node": "a"}}],
            },
        }));
        Object::IpamBlock(block)
    };
    let block = |affinity: Value| with(affinity, json!([]));
    assert!(kept(&with(json!("host:b"), json!([null, 0])), "a").is_some());
    assert!(kept(&with(json!("host:b"), json!([null, 0])), "c").is_none());
    assert!(kept(&block(json!("host:a")), "a").is_some());
    assert!(kept(&block(json!("host:b")), "a").is_none());
    assert!(kept(&block(Value::Null), "a").is_none());
}

#[test]
fn a_copy_that_is_cut_or_changed_anywhere_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path());
    file.write(&records(), Timestamp::now()).unwrap();
    let path = folder.path().join("a.last-good");
    let good = fs::read(&path).unwrap();
    for length in 0..good.len() {
        assert!(file.parse(&good[..length]).is_err(), "cut at {length}");
    }
    let begin = good.iter().position(|byte| *byte == b'\n').unwrap();
    for place in begin..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1;
        assert!(file.parse(&bad).is_err(), "changed at {place}");
    }
    fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert_eq!(file.read(), None);
}

#[test]
fn a_copy_of_another_node_datastore_or_version_is_not_used_and_named() {
    let folder = tempfile::tempdir().unwrap();
    file(folder.path()).write(&records(), Timestamp::now()).unwrap();
    let text = fs::read_to_string(folder.path().join("a.last-good")).unwrap();
    let error = |file: LastGood, text: &str| file.parse(text.as_bytes()).unwrap_err().to_string();
    let other = |node, datastore| LastGood::new(folder.path(), node, datastore);
    assert_eq!(
        error(other("b", "directory /d"), &text),
        "is the copy of node a and directory /d, not of node b and directory /d"
    );
    assert_eq!(
        error(other("a", "directory /e"), &text),
        "is the copy of node a and directory /d, not of node a and directory /e"
    );
    assert_eq!(
        error(
            file(folder.path()),
            &text.replacen("\"version\":1", "\"version\":2", 1)
        ),
        "is of format culvert-last-good version 2, not culvert-last-good version 1"
    );
}

#[test]
fn an_empty_copy_or_none_is_no_copy() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path());
    assert_eq!(file.read(), None);
    file.write(&[], Timestamp::now()).unwrap();
    assert_eq!(file.read(), None);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let error = LastGood::new(Path::new("/proc/none"), "a", "directory /d");
    let error = error.write(&records(), Timestamp::now()).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot make the folder of /proc/none/a.last-good: "),
        "{error}"
    );
}
