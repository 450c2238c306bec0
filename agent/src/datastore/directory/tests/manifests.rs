//! What files hold: loaded as kubectl prints it, written back without a loss, and faults that name their place.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::Value;

use super::super::folder::{Folder, Reread};
use super::super::manifest::render;
use super::*;
use crate::datastore::DatastoreError;

/// One manifest a kind, with all the fields of the table of its CRD and some that are known to nobody.
const KINDS: &str = include_str!("kinds.yaml");

fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    documents
        .map(|d| serde::Deserialize::deserialize(d).unwrap())
        .collect()
}

#[tokio::test]
async fn every_kind_as_kubectl_prints_it_is_written_back_without_losing_a_field() {
    let (folder, store) = fresh();
    let path = write(&folder, "all.yaml", KINDS);
    let mut expected = documents(KINDS);
    assert_eq!(expected.len(), Kind::ALL.len());

    for (n, document) in expected.iter_mut().enumerate() {
        let text_of = |pointer| document.pointer(pointer).unwrap().as_str().unwrap();
        let kind = Kind::of_manifest(text_of("/apiVersion"), text_of("/kind")).unwrap();
        let namespace = document.pointer("/metadata/namespace").and_then(Value::as_str);
        let key = Key::namespaced(kind, namespace, text_of("/metadata/name"));
        let mut object = store.get(&key).await.unwrap().unwrap();
        object
            .metadata_mut()
            .annotations
            .insert("written".to_owned(), "yes".to_owned());
        store.update(object).await.unwrap();

        document["metadata"]["annotations"]["written"] = "yes".into();
        // The highest counter of the file is 4711; each write takes the next.
        document["metadata"]["resourceVersion"] = (4712 + n).to_string().into();
    }
    assert_eq!(store.faults(), []);
    assert_eq!(documents(&fs::read_to_string(path).unwrap()), expected);
}

#[tokio::test]
async fn the_other_documents_of_a_file_keep_their_bytes() {
    let (folder, store) = fresh();
    let first = format!("# Rack 7.\n\n{}", node_text("a", "1"));
    let third = "---\n# Ours is the second.\napiVersion: apps/v1   # foreign\nkind: Deployment\nspec: {replicas: 3}\n";
    let broken = "--- # broken\nkind: Node\napiVersion: v1\nmetadata: {name: c, labels: [1]}\n";
    let second = format!("---\r\n# Rack 8, \"two\"\n{}", node_text("b", "1"));
    let path = write(&folder, "racks.yml", &format!("{first}{second}{third}{broken}"));

    let mut b = get(&store, "b").await;
    set_label(&mut b, "2");
    store.update(b).await.unwrap();

    let text = fs::read_to_string(path).unwrap();
    let (kept_first, rest) = text.split_at(first.len());
    assert_eq!(kept_first, first);
    let rest = rest.strip_suffix(&format!("{third}{broken}")).unwrap();
    let rest = rest.strip_prefix("---\r\n# Rack 8, \"two\"\n").unwrap();
    assert_eq!(documents(rest)[0]["metadata"]["labels"]["at"], "2");
    assert_eq!(label(&get(&store, "a").await), "1");
}

#[tokio::test]
async fn deleting_the_last_object_of_a_file_deletes_the_file_and_a_foreign_one_stays() {
    let (folder, store) = fresh();
    let text = format!(
        "{}---\n{}---\n# nothing\n",
        node_text("a", "1"),
        node_text("b", "1")
    );
    let path = write(&folder, "two.yaml", &text);
    let foreign = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n";
    let mixed = write(
        &folder,
        "nodes/mixed.yaml",
        &format!("{}---\n{foreign}", node_text("c", "1")),
    );
    for (name, left) in [("a", true), ("b", false), ("c", false)] {
        let object = get(&store, name).await;
        let revision = object.metadata().resource_version.clone().unwrap();
        store.delete(&node_key(name), &revision).await.unwrap();
        assert_eq!(store.get(&node_key(name)).await.unwrap(), None);
        assert_eq!(path.exists(), left, "after {name}");
    }
    assert_eq!(fs::read_to_string(mixed).unwrap(), format!("---\n{foreign}"));
}

#[tokio::test]
async fn a_fault_names_file_line_field_value_and_what_is_allowed() {
    let pool = |spec: &str| {
        format!("apiVersion: crd.projectcalico.org/v1\nkind: IPPool\nmetadata:\n  name: p\nspec:\n{spec}")
    };
    for (text, said) in [
        ("kind: [".to_owned(), "bad.yaml:2:1: "),
        (format!("{}---\nkind: Node\napiVersion: v1\nmetadata: {{\n", node_text("a", "")), "bad.yaml:11:1: "),
        (
            pool("  cidr: 10.65.0.0/33\n"),
            "bad.yaml:6:9: spec.cidr: is \"10.65.0.0/33\": invalid IP address syntax",
        ),
        (
            pool("  cidr: 10.65.0.0/16\n  ipipMode: always\n"),
            "bad.yaml:7:13: spec.ipipMode: unknown variant `always`, expected one of `Never`, `Always`, `CrossSubnet`",
        ),
        (
            pool("  cidr: 10.65.0.0/16\n  natOutgoing: \"yes\"\n"),
            "bad.yaml:7:16: spec.natOutgoing: invalid type: string \"yes\", expected a boolean",
        ),
        (
            pool("  cidr: 10.65.0.0/16\n  blockSize: 33\n"),
            "bad.yaml:7:3: spec.blockSize: is 33: 20 to 32 is allowed in 10.65.0.0/16",
        ),
        (pool("  blockSize: 26\n"), "bad.yaml:6:3: spec: missing field `cidr`"),
        ("apiVersion: v1\nkind: Node\nmetadata: {}\n".to_owned(), "bad.yaml:3:11: metadata: missing field `name`"),
        ("apiVersion: v1\nkind: Node\n".to_owned(), "bad.yaml:1:1: missing field `metadata`"),
        (
            node_text("a/b", ""),
            "bad.yaml:4:3: metadata.name: is \"a/b\": letters, digits, '-', '_' and '.' are allowed",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: a\n  annotations:\n    projectcalico.org/ASNumber: 64512\n".to_owned(),
            "bad.yaml:6:5: metadata.annotations.projectcalico.org/ASNumber: invalid type: integer `64512`, \
             expected a string; put the value in quotes",
        ),
        (
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: p}\n".to_owned(),
            "bad.yaml: apiVersion, kind: kind IPPool of projectcalico.org/v3 is not read: \
             write kind IPPool, apiVersion crd.projectcalico.org/v1",
        ),
        ("\u{0}".to_owned(), "bad.yaml:1:1: "),
    ] {
        let (folder, store) = fresh();
        let path = write(&folder, "bad.yaml", &text);
        let other = write(&folder, "good.yaml", &node_text("good", "1"));
        assert_eq!(label(&get(&store, "good").await), "1");
        let faults = store.faults();
        assert_eq!(faults.len(), 1, "{text}\n{faults:?}");
        let shown = faults[0].to_string();
        let shown = shown.strip_prefix(&format!("{}/", folder.path().display())).unwrap();
        assert!(shown.starts_with(said), "{text}\nshown: {shown}\nwant:  {said}");
        assert!(path.exists() && other.exists());
    }
}

#[tokio::test]
async fn what_cannot_be_read_as_text_is_a_fault_and_comes_in_when_it_is_mended() {
    let (folder, store) = fresh();
    let path = folder.path().join("n.yaml");
    fs::write(&path, b"kind: \xff\n").unwrap();
    assert_eq!(store.list(Kind::Node).await.unwrap(), []);
    assert!(store.faults()[0].reason.contains("UTF-8"), "{:?}", store.faults());

    fs::remove_file(&path).unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &path).unwrap();
    assert_eq!(store.list(Kind::Node).await.unwrap(), []);
    assert!(
        store.faults()[0].reason.contains("symbolic link"),
        "{:?}",
        store.faults()
    );

    fs::remove_file(&path).unwrap();
    write(&folder, "n.yaml", &node_text("n", "1"));
    assert_eq!(label(&get(&store, "n").await), "1");
    assert_eq!(store.faults(), []);
}

#[test]
fn a_fault_is_new_once_a_change_of_its_file_not_once_a_look() {
    let (root, _store) = fresh();
    let mut folder = Folder::new(root.path().to_owned());
    let mut fresh_faults = |reread: &Reread| folder.refresh(reread, &BTreeSet::new()).unwrap().len();
    write(&root, "bad.yaml", "kind: [\n");
    assert_eq!(fresh_faults(&Reread::changed()), 1);
    assert_eq!(fresh_faults(&Reread::changed()), 0);
    assert_eq!(fresh_faults(&Reread::All), 0);
    write(&root, "other.yaml", &node_text("a", "1"));
    assert_eq!(fresh_faults(&Reread::changed()), 0);
    write(&root, "bad.yaml", "kind: [\n# still\n");
    assert_eq!(fresh_faults(&Reread::changed()), 1);
    write(&root, "twin.yaml", &node_text("a", "2"));
    assert_eq!(fresh_faults(&Reread::changed()), 1);
    assert_eq!(fresh_faults(&Reread::All), 0);
}

#[tokio::test]
async fn a_known_object_whose_document_breaks_keeps_its_last_state_and_is_not_written() {
    let (folder, store) = fresh();
    let good = format!("{}---\n{}", node_text("a", "1"), node_text("b", "1"));
    let path = write(&folder, "n.yaml", &good);
    let known = get(&store, "a").await;
    let revision = known.metadata().resource_version.clone().unwrap();

    let unreadable = [
        good.replace("at: \"1\"", "at: [1"),
        good.replacen("at: \"1\"", "at: 1", 1),
        String::new(),
        "\n# gone?\n".to_owned(),
        "apiVersion: v1\n".to_owned(),
    ];
    for text in unreadable {
        fs::write(&path, &text).unwrap();
        assert_eq!(get(&store, "a").await, known, "{text:?}");
        assert_eq!(store.list(Kind::Node).await.unwrap().len(), 2, "{text:?}");
        let mut changed = known.clone();
        set_label(&mut changed, "2");
        let errors = [
            store.update(changed).await.unwrap_err(),
            store.create(node("a").into_object()).await.unwrap_err(),
            store.delete(&node_key("a"), &revision).await.unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, DatastoreError::Invalid { .. }), "{error:?}");
            assert!(error.to_string().contains("n.yaml"), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    fs::write(&path, node_text("a", "3")).unwrap();
    assert_eq!(label(&get(&store, "a").await), "3");
    assert_eq!(store.get(&node_key("b")).await.unwrap(), None);
    assert_eq!(store.faults(), []);
}

#[tokio::test]
async fn a_broken_document_is_in_the_way_of_a_new_object_of_its_name() {
    let (folder, store) = fresh();
    write(
        &folder,
        "x.yaml",
        "apiVersion: v1\nkind: Node\nmetadata: {name: a, labels: 1}\n",
    );
    write(&folder, "nodes/b.yaml", "kind: [\n");
    for name in ["a", "b"] {
        let error = store.create(node(name).into_object()).await.unwrap_err();
        assert!(matches!(error, DatastoreError::Invalid { .. }), "{error:?}");
    }
    let error = store.get(&node_key("a")).await.unwrap_err();
    assert!(error.to_string().contains("x.yaml:3:"), "{error}");
    assert_eq!(store.get(&node_key("b")).await.unwrap(), None);
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_path_counts_and_both_are_named() {
    let (folder, store) = fresh();
    write(&folder, "b.yaml", &node_text("n", "b"));
    let last = write(&folder, "nodes/n.yaml", &node_text("n", "nodes"));
    let first = write(&folder, "a.yaml", &node_text("n", "a"));
    let object = get(&store, "n").await;
    assert_eq!(label(&object), "a");
    let faults = store.faults();
    assert_eq!(faults.len(), 2);
    for (fault, file) in faults.iter().zip(["b.yaml", "nodes/n.yaml"]) {
        let shown = fault.to_string();
        assert!(shown.contains(file) && shown.contains("a.yaml"), "{shown}");
    }

    let revision = object.metadata().resource_version.clone().unwrap();
    store.delete(&node_key("n"), &revision).await.unwrap();
    assert!(!first.exists() && last.exists());
    assert_eq!(label(&get(&store, "n").await), "b");
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone_and_is_no_fault() {
    let (folder, store) = fresh();
    fs::create_dir_all(folder.path().join("nodes/deeper")).unwrap();
    fs::create_dir_all(folder.path().join("folder.yaml")).unwrap();
    let texts = [
        ("README.md", node_text("a", "1")),
        (".hidden.yaml", node_text("a", "1")),
        ("nodes/deeper/a.yaml", node_text("a", "1")),
        ("a.yaml~", node_text("a", "1")),
        (".a.yaml.swp", "\u{1}".to_owned()),
        (
            "peer.yaml",
            "apiVersion: crd.projectcalico.org/v1\nkind: GlobalNetworkPolicy\nmetadata: {name: a}\n"
                .to_owned(),
        ),
        ("values.yaml", "replicas: 3\n".to_owned()),
        ("list.yaml", "- 1\n- 2\n".to_owned()),
        (
            "machine.yaml",
            "apiVersion: cluster.example.org/v1\nkind: Node\nmetadata: {name: a}\n".to_owned(),
        ),
        ("empty.yaml", String::new()),
    ];
    for (file, text) in &texts {
        write(&folder, file, text);
    }
    for kind in Kind::ALL {
        assert_eq!(store.list(kind).await.unwrap(), []);
    }
    assert_eq!(store.faults(), []);
    create(&store, "a").await;
    for (file, text) in &texts {
        assert_eq!(
            fs::read_to_string(folder.path().join(file)).unwrap(),
            *text,
            "{file}"
        );
    }
}

#[tokio::test]
async fn a_new_object_never_takes_the_file_of_another() {
    let (folder, store) = fresh();
    let foreign = write(&folder, "nodes/a.yaml", "replicas: 3\n");
    let stranger = write(&folder, "nodes/a.2.yaml", &node_text("b", "1"));
    create(&store, "a").await;
    assert_eq!(fs::read_to_string(foreign).unwrap(), "replicas: 3\n");
    assert_eq!(fs::read_to_string(stranger).unwrap(), node_text("b", "1"));
    assert!(folder.path().join("nodes/a.3.yaml").exists());
}

#[tokio::test]
async fn names_are_checked_before_they_become_file_names() {
    let (folder, store) = fresh();
    let long = "n".repeat(254);
    for name in ["", ".", "..", "../a", "/a", "a/b", "a\nb", &long] {
        let error = store.create(node(name).into_object()).await.unwrap_err();
        assert!(matches!(error, DatastoreError::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains("metadata.name"), "{error}");
    }
    // The longest allowed name is longer than a file name may be.
    let (one, two) = (format!("{}1", "n".repeat(252)), format!("{}2", "n".repeat(252)));
    create(&store, &one).await;
    create(&store, &two).await;
    assert_eq!(open(folder.path()).list(Kind::Node).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_mode_of_a_file_survives_a_rewrite() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, store) = fresh();
    let path = write(&folder, "a.yaml", &node_text("a", "1"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let mut object = get(&store, "a").await;
    set_label(&mut object, "2");
    store.update(object).await.unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
}

#[tokio::test]
async fn the_manifests_of_the_examples_load() {
    let (folder, store) = fresh();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/manifests");
    let mut files = 0;
    for entry in fs::read_dir(examples).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        files += 1;
    }
    assert!(files > 0);
    for kind in [Kind::Node, Kind::IpPool, Kind::BgpConfiguration, Kind::IpamConfig] {
        assert!(!store.list(kind).await.unwrap().is_empty(), "{kind:?}");
    }
    assert_eq!(store.faults(), []);
}

const MERGE: &str = "<<";

proptest! {
    #[test]
    fn any_text_and_number_comes_back_from_a_file_as_it_was(
        texts in prop::collection::btree_map("\\PC{1,12}".prop_filter("refused", |key| key != MERGE), prop_oneof![
            any::<String>(),
            "(yes|no|on|off|y|n|null|~|true|1e3|0x1f|0o17|1_000|-1|\\.5|\\.inf|\\.nan|2024-01-01|12:30:45|---|\\.\\.\\.|#|<<|=| x |\t|\n\n|a\n b\n)",
        ], 0..6),
        number in any::<u64>(), negative in any::<i64>(), fraction in prop::num::f64::NORMAL,
    ) {
        let mut written = node("n");
        written.metadata.annotations = texts;
        for (name, value) in [("u", Value::from(number)), ("i", negative.into()), ("f", fraction.into())] {
            written.spec.unknown.insert(name.to_owned(), value);
        }
        // It reads the text back and compares.
        prop_assert!(render(Path::new("n.yaml"), &written.into_object(), 7).is_ok());
    }
}

/// In a file it would be a merge of YAML's, however it is quoted; no object of a cluster has such a key.
#[test]
fn a_key_that_yaml_takes_for_a_merge_is_refused_instead_of_lost() {
    let mut written = node("n");
    let annotations = &mut written.metadata.annotations;
    annotations.insert(MERGE.to_owned(), "x".to_owned());
    let refused = render(Path::new("n.yaml"), &written.into_object(), 7).unwrap_err();
    assert!(refused.to_string().contains("Node n"), "{refused}");
}
