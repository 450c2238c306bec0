//! Compare-and-swap: within a process, between processes, and against edits by hand.

use std::collections::BTreeSet;
use std::io::Write;
use std::time::SystemTime;

use super::super::manifest::Manifest;
use super::super::write::Write as Change;
use super::*;
use crate::datastore::DatastoreError;

fn revision(object: &Object) -> String {
    object.metadata().resource_version.clone().unwrap()
}

fn counter(object: &Object) -> u64 {
    revision(object).split_once('-').unwrap().0.parse().unwrap()
}

#[tokio::test]
async fn a_write_from_an_old_revision_is_a_conflict_and_changes_nothing() {
    let (folder, store) = fresh();
    let first = create(&store, "n").await;
    let other = open(folder.path());
    let mut theirs = get(&other, "n").await;
    assert_eq!(theirs, first);
    set_label(&mut theirs, "theirs");
    let theirs = other.update(theirs).await.unwrap();
    assert!(counter(&theirs) > counter(&first));

    let mut ours = first.clone();
    set_label(&mut ours, "ours");
    let error = store.update(ours).await.unwrap_err();
    assert!(matches!(error, DatastoreError::Conflict { .. }), "{error:?}");
    let error = store.delete(&node_key("n"), &revision(&first)).await.unwrap_err();
    assert!(matches!(error, DatastoreError::Conflict { .. }), "{error:?}");
    assert_eq!(get(&store, "n").await, theirs);

    let error = store.create(node("n").into_object()).await.unwrap_err();
    assert!(matches!(error, DatastoreError::AlreadyExists { .. }), "{error:?}");
    other.delete(&node_key("n"), &revision(&theirs)).await.unwrap();
    let error = store
        .delete(&node_key("n"), &revision(&theirs))
        .await
        .unwrap_err();
    assert!(matches!(error, DatastoreError::NotFound { .. }), "{error:?}");
    let error = store.update(theirs.clone()).await.unwrap_err();
    assert!(matches!(error, DatastoreError::NotFound { .. }), "{error:?}");

    // The same object again is another revision: who has seen the old one must not write over it.
    let again = create(&store, "n").await;
    assert!(counter(&again) > counter(&theirs));
    let error = store.update(theirs).await.unwrap_err();
    assert!(matches!(error, DatastoreError::Conflict { .. }), "{error:?}");
}

#[tokio::test]
async fn an_update_without_a_revision_is_refused() {
    let (_folder, store) = fresh();
    create(&store, "n").await;
    let error = store.update(node("n").into_object()).await.unwrap_err();
    assert!(error.to_string().contains("metadata.resourceVersion"), "{error}");
}

#[tokio::test]
async fn an_update_that_changes_nothing_keeps_the_revision() {
    let (_folder, store) = fresh();
    let object = create(&store, "n").await;
    assert_eq!(store.update(object.clone()).await.unwrap(), object);
}

#[tokio::test]
async fn an_edit_by_hand_makes_a_write_from_before_it_fail() {
    let (folder, store) = fresh();
    let mut object = create(&store, "n").await;
    let path = folder.path().join("nodes/n.yaml");
    for n in 0..200 {
        set_label(&mut object, &format!("{n:03}"));
        object = store.update(object).await.unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let edited = text.replace(&format!("{n:03}"), &format!("{:03}", 999 - n));
        let stamp = fs::metadata(&path).unwrap().modified().unwrap();
        match n % 3 {
            // In place, with the length, the counter and even the time that were there before.
            0 => {
                let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all(edited.as_bytes()).unwrap();
                file.set_modified(stamp).unwrap();
            }
            // As `sed -i` does.
            1 => {
                let beside = folder.path().join("nodes/sedXXXX");
                fs::write(&beside, &edited).unwrap();
                fs::rename(&beside, &path).unwrap();
            }
            // As an editor that keeps a backup does.
            _ => {
                fs::rename(&path, folder.path().join("nodes/n.yaml~")).unwrap();
                fs::write(&path, &edited).unwrap();
            }
        }
        let mut stale = object.clone();
        set_label(&mut stale, "stale");
        let error = store.update(stale).await.unwrap_err();
        assert!(matches!(error, DatastoreError::Conflict { .. }), "{n}: {error:?}");
        object = get(&store, "n").await;
        assert_eq!(label(&object), format!("{:03}", 999 - n));
    }
}

#[tokio::test]
async fn two_edits_within_one_tick_of_the_clock_are_both_seen() {
    let (folder, store) = fresh();
    let path = write(&folder, "n.yaml", &node_text("n", "000"));
    for n in 1..500 {
        fs::write(&path, node_text("n", &format!("{n:03}"))).unwrap();
        assert_eq!(label(&get(&store, "n").await), format!("{n:03}"));
    }
}

#[tokio::test]
async fn a_file_of_old_times_is_read_once_and_again_when_its_times_change() {
    let (folder, store) = fresh();
    let path = write(&folder, "n.yaml", &node_text("n", "1"));
    let long_ago = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    assert_eq!(label(&get(&store, "n").await), "1");
    // As `cp -p` leaves it: other content of the same length and time.
    fs::write(&path, node_text("n", "2")).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();
    assert_eq!(label(&get(&store, "n").await), "2");
}

#[tokio::test]
async fn the_layout_of_a_file_is_not_its_content() {
    let (folder, store) = fresh();
    let path = write(&folder, "n.yaml", &node_text("n", "1"));
    let object = get(&store, "n").await;
    fs::write(
        &path,
        "kind: Node\n# A comment.\nmetadata: {labels: {\"at\": '1'}, name: n}\napiVersion: v1\n",
    )
    .unwrap();
    assert_eq!(get(&store, "n").await, object);
}

#[tokio::test]
async fn a_counter_that_is_lost_or_spoilt_heals_from_the_files() {
    let (folder, store) = fresh();
    let mut object = create(&store, "n").await;
    let path = folder.path().join(super::super::lock::COUNTER_FILE);
    for (n, spoilt) in [
        None,
        Some(""),
        Some("0\n"),
        Some("what?"),
        Some("99999999999999999999999"),
    ]
    .into_iter()
    .enumerate()
    {
        match spoilt {
            None => fs::remove_file(&path).unwrap(),
            Some(text) => fs::write(&path, text).unwrap(),
        }
        let before = counter(&object);
        set_label(&mut object, &n.to_string());
        object = store.update(object).await.unwrap();
        assert!(counter(&object) > before, "{spoilt:?}");
    }
    // A version from elsewhere does not stop the counter, whatever it is.
    for version in ["18446744073709551615", "99999999999999999999999", "abc", "-1", ""] {
        let text = node_text("other", version)
            .replace("  labels", &format!("  resourceVersion: \"{version}\"\n  labels"));
        write(&folder, "other.yaml", &text);
        let mut other = get(&store, "other").await;
        set_label(&mut other, "new");
        let other = store.update(other).await.unwrap();
        assert!(
            counter(&other) > counter(&object),
            "{version}: {}",
            revision(&other)
        );
    }
}

#[tokio::test]
async fn the_lock_survives_the_removal_of_its_file() {
    let (folder, store) = fresh();
    create(&store, "a").await;
    fs::remove_file(folder.path().join(super::super::lock::LOCK_FILE)).unwrap();
    create(&store, "b").await;
    assert_eq!(store.list(Kind::Node).await.unwrap().len(), 2);
}

/// Adds one to the number in the label, `times` times, by compare-and-swap.
async fn count(store: &DirectoryStore, times: u32) {
    for _ in 0..times {
        loop {
            let mut object = get(store, "counter").await;
            let next = label(&object).parse::<u32>().unwrap() + 1;
            set_label(&mut object, &next.to_string());
            match store.update(object).await {
                Ok(_) => break,
                Err(DatastoreError::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_count_in_one_object_lose_no_step() {
    const STEPS: u32 = 200;
    if let Some(folder) = is_child() {
        return count(&open(&folder), STEPS).await;
    }
    let (folder, store) = fresh();
    write(&folder, "counter.yaml", &node_text("counter", "0"));
    let name = "swap::processes_that_count_in_one_object_lose_no_step";
    let mut children: Vec<_> = (0..2)
        .map(|_| child(name, folder.path()).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    // A third one in this process, with a store of its own.
    count(&open(folder.path()), STEPS).await;
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(label(&get(&store, "counter").await), (3 * STEPS).to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_create_one_object_exactly_one_does() {
    let (folder, store) = fresh();
    for round in 0..20 {
        let name = format!("n{round}");
        let tasks = (0..8).map(|_| {
            let (store, object) = (open(folder.path()), node(&name).into_object());
            tokio::spawn(async move { store.create(object).await })
        });
        let mut made = 0;
        for task in tasks.collect::<Vec<_>>() {
            match task.await.unwrap() {
                Ok(_) => made += 1,
                Err(DatastoreError::AlreadyExists { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(made, 1);
    }
    assert_eq!(store.list(Kind::Node).await.unwrap().len(), 20);
}

#[tokio::test]
async fn writes_that_are_done_together_come_to_what_they_would_one_after_the_other() {
    let (folder, store) = fresh();
    let shared = format!("{}---\n{}", node_text("left", "old"), node_text("right", "old"));
    write(&folder, "shared.yaml", &shared);
    let stale = create(&store, "stale").await;
    let mut newer = stale.clone();
    set_label(&mut newer, "newer");
    store.update(newer).await.unwrap();
    let gone = create(&store, "gone").await;
    let [mut left, mut right] = [get(&store, "left").await, get(&store, "right").await];
    set_label(&mut left, "new");
    set_label(&mut right, "new");
    let mut late = stale.clone();
    set_label(&mut late, "late");

    let writes = vec![
        Change::Create(node("one").into_object()),
        Change::Create(node("one").into_object()),
        Change::Update(left),
        Change::Update(right),
        Change::Update(late),
        Change::Delete(node_key("gone"), revision(&gone)),
        Change::Delete(node_key("gone"), revision(&gone)),
        Change::Create(node("two").into_object()),
    ];
    let written = store.shared.folder().write(writes);
    let [one, again, left, right, late, gone, twice, two] = written.as_slice() else {
        panic!("{written:?}")
    };
    assert!(
        matches!(again, Err(DatastoreError::AlreadyExists { .. })),
        "{again:?}"
    );
    assert!(matches!(late, Err(DatastoreError::Conflict { .. })), "{late:?}");
    assert!(matches!(gone, Ok(None)), "{gone:?}");
    assert!(matches!(twice, Err(DatastoreError::NotFound { .. })), "{twice:?}");
    let made: Vec<_> = [one, left, right, two]
        .map(|one| one.as_ref().unwrap().clone().unwrap())
        .into();
    let counters: BTreeSet<_> = made.iter().map(counter).collect();
    assert_eq!(counters.len(), made.len(), "each has a counter of its own");
    // Somebody else who looks at the folder sees the same.
    let other = open(folder.path());
    for object in made {
        assert_eq!(get(&other, &object.metadata().name).await, object);
    }
    assert_eq!(label(&get(&other, "stale").await), "newer");
    assert_eq!(other.get(&node_key("gone")).await.unwrap(), None);
    assert!(other.faults().is_empty(), "{:?}", other.faults());
}

/// What is known of each file is what a reader finds in it, and others find the same objects.
async fn assert_known_is_written(folder: &TempDir, store: &DirectoryStore) {
    for (path, file) in &store.shared.folder().files {
        let text = fs::read_to_string(path).unwrap();
        assert_eq!(file.manifest.text, text);
        let read = Manifest::parse(path, text, true);
        assert_eq!(
            format!("{:?}", file.manifest.documents),
            format!("{:?}", read.documents),
            "{}",
            path.display()
        );
    }
    let other = open(folder.path());
    for kind in [Kind::IpamHandle, Kind::Node] {
        assert_eq!(other.list(kind).await.unwrap(), store.list(kind).await.unwrap());
    }
    assert!(other.faults().is_empty(), "{:?}", other.faults());
}

#[tokio::test]
async fn handles_that_are_made_together_share_files_and_are_written_and_deleted_one_by_one() {
    let (folder, store) = fresh();
    let files = || {
        let entries = fs::read_dir(folder.path().join("ipamhandles")).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.ends_with(".yaml"))
            .collect::<BTreeSet<_>>()
    };
    let create = |range: std::ops::Range<u32>| range.map(|n| Change::Create(handle(&format!("h{n:02}"))));
    let all_are_done = |written: Vec<Result<Option<Object>, DatastoreError>>| {
        written.into_iter().map(Result::unwrap).collect::<Vec<_>>()
    };
    let made = all_are_done(store.shared.folder().write(create(0..40).collect()));
    assert_eq!(files(), ["h00.yaml", "h32.yaml"].map(str::to_owned).into());
    assert_known_is_written(&folder, &store).await;

    // The first, one in the middle and the last of a file go, one changes, and new ones come, all at once.
    let made: Vec<Object> = made.into_iter().flatten().collect();
    let delete = |n: usize| Change::Delete(made[n].key(), revision(&made[n]));
    let mut changed = made[5].clone();
    set_label(&mut changed, "changed");
    let mut writes = vec![
        delete(0),
        delete(31),
        Change::Update(changed),
        delete(7),
        delete(33),
    ];
    writes.extend(create(40..43));
    writes.push(Change::Create(node("beside").into_object()));
    all_are_done(store.shared.folder().write(writes));
    assert_eq!(
        files(),
        ["h00.yaml", "h32.yaml", "h40.yaml"].map(str::to_owned).into()
    );
    assert_known_is_written(&folder, &store).await;

    // The file is taken, though the handle of its name is gone.
    all_are_done(store.shared.folder().write(create(0..1).collect()));
    assert_eq!(
        files(),
        ["h00.2.yaml", "h00.yaml", "h32.yaml", "h40.yaml"]
            .map(str::to_owned)
            .into()
    );
    assert_known_is_written(&folder, &store).await;

    let left = store.list(Kind::IpamHandle).await.unwrap();
    assert_eq!(left.len(), 40 - 4 + 3 + 1);
    let delete = |object: &Object| Change::Delete(object.key(), revision(object));
    all_are_done(
        store
            .shared
            .folder()
            .write(left.iter().rev().map(delete).collect()),
    );
    assert_eq!(files(), BTreeSet::new());
    assert_known_is_written(&folder, &store).await;
}

#[tokio::test]
async fn an_edit_by_hand_stops_the_writes_of_its_file_and_no_others() {
    let (folder, store) = fresh();
    let create = |name: &str| Change::Create(handle(name));
    let made = store.shared.folder().write(vec![create("a"), create("b")]);
    let made: Vec<Object> = made.into_iter().flat_map(Result::unwrap).collect();
    let apart = store.create(node("apart").into_object()).await.unwrap();
    let path = folder.path().join("ipamhandles/a.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let edit = format!("# by hand\n{text}");
    fs::write(&path, &edit).unwrap();
    let delete = |object: &Object| Change::Delete(object.key(), revision(object));
    // Without a look in between, as if the edit came after it.
    let written = store
        .shared
        .folder()
        .write(vec![delete(&made[0]), delete(&apart), delete(&made[1])]);
    let [first, apart, second] = written.as_slice() else {
        panic!("{written:?}")
    };
    assert!(matches!(first, Err(DatastoreError::Conflict { .. })), "{first:?}");
    assert!(
        matches!(second, Err(DatastoreError::Conflict { .. })),
        "{second:?}"
    );
    assert!(matches!(apart, Ok(None)), "{apart:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), edit);
    assert_known_is_written(&folder, &store).await;
    // What was refused is looked at again.
    for object in store.list(Kind::IpamHandle).await.unwrap() {
        store.delete(&object.key(), &revision(&object)).await.unwrap();
    }
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_write_at_once_are_all_answered_and_so_are_those_who_read() {
    let (folder, store) = fresh();
    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let name = format!("n{n}");
                assert_eq!(store.get(&node_key(&name)).await.unwrap(), None);
                let mut object = create(&store, &name).await;
                assert_eq!(get(&store, &name).await, object);
                set_label(&mut object, "again");
                let object = store.update(object).await.unwrap();
                if n % 2 == 0 {
                    store.delete(&node_key(&name), &revision(&object)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let left = open(folder.path()).list(Kind::Node).await.unwrap();
    assert_eq!(left.len(), 50);
    assert!(left.iter().all(|object| label(object) == "again"));
}

#[tokio::test]
async fn where_the_folder_is_gone_everybody_who_waits_is_told() {
    let (folder, store) = fresh();
    drop(folder);
    let key = node_key("n");
    let (a, b, c) = tokio::join!(
        store.list(Kind::Node),
        store.create(node("n").into_object()),
        store.delete(&key, "1-0")
    );
    for error in [a.unwrap_err(), b.unwrap_err(), c.unwrap_err()] {
        assert!(matches!(error, DatastoreError::Io { .. }), "{error:?}");
    }
}
