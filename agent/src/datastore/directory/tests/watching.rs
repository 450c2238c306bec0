//! Watches: what was told adds up to what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use culvert_ipam::affinity::{Affinity, AffinityState};
use notify::event::{AccessKind, AccessMode, DataChange, EventKind, ModifyKind};
use proptest::prelude::*;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::super::watch::Marks;
use super::*;
use crate::api::BlockAffinity;
use crate::datastore::{DatastoreError, Update};

/// Far beyond anything that a loaded machine needs.
const LIMIT: Duration = Duration::from_secs(60);

/// A receiver, and the state that it was told.
struct Told {
    updates: Receiver<Update>,
    state: BTreeMap<Key, Object>,
    in_sync: bool,
    deleted: BTreeSet<Key>,
    problem: Option<String>,
    count: usize,
}

impl Told {
    fn new(store: &DirectoryStore) -> Self {
        Self {
            updates: store.watch().unwrap(),
            state: BTreeMap::new(),
            in_sync: false,
            deleted: BTreeSet::new(),
            problem: None,
            count: 0,
        }
    }

    async fn next(&mut self) {
        let update = timeout(LIMIT, self.updates.recv()).await;
        let state = || format!("nothing more is told; the state is {:?}", self.state);
        self.count += 1;
        match update.unwrap_or_else(|_| panic!("{}", state())).unwrap() {
            Update::Upsert(object) => {
                let old = self.state.insert(object.key(), (*object).clone());
                assert_ne!(old.as_ref(), Some(&*object), "told twice");
            }
            Update::Delete(key) => {
                assert!(self.state.remove(&key).is_some(), "{key} was not there");
                self.deleted.insert(key);
            }
            Update::InSync => assert!(!std::mem::replace(&mut self.in_sync, true)),
            Update::Problem(problem) => {
                assert_ne!(self.problem, problem, "told twice");
                self.problem = problem;
            }
        }
    }

    async fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            self.next().await;
        }
    }

    /// Waits longer than a deletion needs to be told.
    async fn nothing_more(&mut self) {
        let more = timeout(Duration::from_secs(1), self.updates.recv()).await;
        assert!(more.is_err(), "{more:?}");
    }

    async fn in_sync(store: &DirectoryStore) -> Self {
        let mut told = Self::new(store);
        told.until(|t| t.in_sync).await;
        told
    }

    async fn until_label(&mut self, name: &str, text: &str) {
        let key = node_key(name);
        self.until(|t| t.state.get(&key).is_some_and(|o| label(o) == text))
            .await;
    }
}

async fn everything(store: &DirectoryStore) -> BTreeMap<Key, Object> {
    let mut all = BTreeMap::new();
    for kind in Kind::ALL {
        all.extend(store.list(kind).await.unwrap().into_iter().map(|o| (o.key(), o)));
    }
    all
}

#[tokio::test]
async fn all_that_is_there_comes_first_then_in_sync_then_changes() {
    let (folder, store) = fresh();
    write(&folder, "a.yaml", &node_text("a", "1"));
    create(&store, "b").await;
    let mut told = Told::in_sync(&store).await;
    assert_eq!(told.count, 3);
    assert_eq!(told.state, everything(&store).await);

    // Another process is another store.
    let other = open(folder.path());
    let c = create(&other, "c").await;
    told.until(|t| t.state.contains_key(&c.key())).await;
    assert_eq!(told.state[&c.key()], c);
    other
        .delete(&c.key(), c.metadata().resource_version.as_deref().unwrap())
        .await
        .unwrap();
    told.until(|t| !t.state.contains_key(&c.key())).await;
    assert_eq!(told.count, 5);
}

#[tokio::test]
async fn an_allocation_goes_by_what_was_told_and_handles_are_not_told() {
    let (_folder, store) = fresh();
    let store = store.of_node("a");
    store.create(handle("before")).await.unwrap();
    let affinity = Affinity {
        state: AffinityState::Confirmed,
        ..Affinity::pending("a", "10.0.0.0/26".parse().unwrap())
    };
    let affinity = store
        .create(Object::BlockAffinity(BlockAffinity::new(
            "a-10-0-0-0-26",
            affinity,
        )))
        .await
        .unwrap();
    assert_eq!(store.recall("a"), None, "nobody watches");
    let mut told = Told::in_sync(&store).await;
    let recalled = |store: &DirectoryStore| {
        let recalled = store.recall("a").unwrap();
        let affinities: Vec<_> = recalled
            .affinities
            .into_iter()
            .map(Resource::into_object)
            .collect();
        (affinities, recalled.node.map(Resource::into_object))
    };
    assert_eq!(recalled(&store), (vec![affinity.clone()], None));
    assert_eq!(store.recall("b"), None, "it is of another node");

    store.create(handle("after")).await.unwrap();
    let node = create(&store, "a").await;
    told.until(|t| t.state.contains_key(&node.key())).await;
    assert_eq!(recalled(&store), (vec![affinity.clone()], Some(node)));
    let revision = affinity.metadata().resource_version.as_deref().unwrap();
    store.delete(&affinity.key(), revision).await.unwrap();
    told.until(|t| t.deleted.contains(&affinity.key())).await;
    assert_eq!(
        store.recall("a"),
        None,
        "without a block of its own it has to read"
    );
    assert!(
        told.state.keys().all(|key| key.kind == Kind::Node),
        "{:?}",
        told.state
    );
}

#[tokio::test]
async fn an_empty_store_is_in_sync_at_once() {
    let (_folder, store) = fresh();
    assert_eq!(Told::in_sync(&store).await.count, 1);
}

#[tokio::test]
async fn edits_by_hand_are_told_however_they_are_made() {
    let (folder, store) = fresh();
    let path = write(&folder, "nodes/n.yaml", &node_text("n", "first"));
    let mut told = Told::in_sync(&store).await;

    // In place.
    fs::write(&path, node_text("n", "in place")).unwrap();
    told.until_label("n", "in place").await;
    // By a rename, as `sed -i` and rsync do it.
    let beside = write(&folder, "nodes/sedXXXX", &node_text("n", "renamed"));
    fs::rename(beside, &path).unwrap();
    told.until_label("n", "renamed").await;
    // By moving the old one away, as editors do it.
    fs::rename(&path, folder.path().join("nodes/n.yaml~")).unwrap();
    fs::write(&path, node_text("n", "edited")).unwrap();
    told.until_label("n", "edited").await;
    // By removing it first, as git does it.
    fs::remove_file(&path).unwrap();
    fs::write(&path, node_text("n", "checked out")).unwrap();
    told.until_label("n", "checked out").await;
    // By a hard link.
    let linked = write(&folder, "linked", &node_text("m", "linked"));
    fs::hard_link(linked, folder.path().join("m.yml")).unwrap();
    told.until_label("m", "linked").await;
    assert_eq!(told.deleted, BTreeSet::new());

    fs::remove_file(&path).unwrap();
    told.until(|t| t.deleted.contains(&node_key("n"))).await;
    assert_eq!(told.state, everything(&store).await);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_missed_for_a_moment_is_not_deleted() {
    let (folder, store) = fresh();
    let path = write(&folder, "n.yaml", &node_text("n", "1"));
    let mut told = Told::in_sync(&store).await;
    // Time stands still while a blocking task runs, and leaps to the next deadline when none does.
    let (moves, stands_still) = std::sync::mpsc::channel::<()>();
    let stands_still = tokio::task::spawn_blocking(move || stands_still.recv());
    fs::remove_file(&path).unwrap();
    write(&folder, "mark.yaml", &node_text("mark", "n is missed"));
    told.until_label("mark", "n is missed").await;
    fs::write(&path, node_text("n", "2")).unwrap();
    told.until_label("n", "2").await;
    assert_eq!(told.deleted, BTreeSet::new());

    fs::remove_file(&path).unwrap();
    write(&folder, "mark.yaml", &node_text("mark", "n is missed again"));
    told.until_label("mark", "n is missed again").await;
    drop(moves);
    assert!(stands_still.await.unwrap().is_err());
    told.until(|t| t.deleted.contains(&node_key("n"))).await;
}

#[tokio::test]
async fn a_file_that_moves_changes_nothing_and_what_it_hid_appears() {
    let (folder, store) = fresh();
    let path = write(&folder, "b.yaml", &node_text("n", "1"));
    let mut told = Told::in_sync(&store).await;
    fs::rename(path, folder.path().join("nodes/c.yaml")).unwrap();
    write(&folder, "d.yaml", &node_text("mark", "1"));
    told.until_label("mark", "1").await;
    assert_eq!(told.count, 3);

    write(&folder, "a.yaml", &node_text("n", "2"));
    told.until_label("n", "2").await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    told.until_label("n", "1").await;
    assert_eq!(told.deleted, BTreeSet::new());
}

#[tokio::test]
async fn a_broken_file_is_no_deletion_and_its_repair_is_told() {
    let (folder, store) = fresh();
    let path = write(&folder, "n.yaml", &node_text("n", "1"));
    let mut told = Told::in_sync(&store).await;
    for (round, text) in [
        "",
        "kind: [",
        "apiVersion: v1\nkind: Node\nmetadata: {name: n, labels: 1}\n",
    ]
    .iter()
    .enumerate()
    {
        fs::write(&path, text).unwrap();
        let mark = format!("mark{round}");
        write(&folder, "mark.yaml", &node_text("mark", &mark));
        told.until_label("mark", &mark).await;
        told.nothing_more().await;
    }
    fs::write(&path, node_text("n", "mended")).unwrap();
    told.until_label("n", "mended").await;
    assert_eq!(told.deleted, BTreeSet::new());
    assert_eq!(store.faults(), []);
}

#[tokio::test]
async fn folders_that_are_replaced_are_watched_again() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("store");
    let store = open(&root);
    fs::write(root.join("nodes/n.yaml"), node_text("n", "1")).unwrap();
    let mut told = Told::in_sync(&store).await;

    for (round, folder) in ["store/nodes", "store", "store/nodes", "store"]
        .into_iter()
        .enumerate()
    {
        let folder = outer.path().join(folder);
        fs::rename(&folder, outer.path().join(format!("old{round}"))).unwrap();
        fs::create_dir_all(root.join("nodes")).unwrap();
        let text = format!("replaced {round}");
        fs::write(root.join("nodes/n.yaml"), node_text("n", &text)).unwrap();
        told.until_label("n", &text).await;
        // And what happens in the new one is seen as well.
        let text = format!("written {round}");
        fs::write(root.join("nodes/n.yaml"), node_text("n", &text)).unwrap();
        told.until_label("n", &text).await;
    }
    assert_eq!(told.state, everything(&store).await);
}

#[tokio::test]
async fn a_folder_that_is_gone_deletes_nothing() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("store");
    let store = open(&root);
    fs::write(root.join("n.yaml"), node_text("n", "1")).unwrap();
    let mut told = Told::in_sync(&store).await;
    fs::remove_dir_all(&root).unwrap();
    let error = store.get(&node_key("n")).await.unwrap_err();
    assert!(matches!(error, DatastoreError::Io { .. }), "{error:?}");
    told.until(|told| told.problem.is_some()).await;
    let problem = told.problem.clone().unwrap_or_default();
    assert!(problem.contains(&root.display().to_string()), "{problem}");
    told.nothing_more().await;
    fs::create_dir(&root).unwrap();
    fs::write(root.join("n.yaml"), node_text("n", "2")).unwrap();
    told.until_label("n", "2").await;
    told.until(|told| told.problem.is_none()).await;
    assert_eq!(told.deleted.len(), 0);
}

#[tokio::test]
async fn a_receiver_that_lags_gets_the_latest_state_not_each_step() {
    const OBJECTS: usize = 100;
    const STEPS: usize = 10;
    let (folder, store) = fresh();
    for n in 0..OBJECTS {
        write(
            &folder,
            &format!("nodes/n{n}.yaml"),
            &node_text(&format!("n{n}"), "start"),
        );
    }
    // More objects than the channel holds: the watch stands still before it is in sync.
    let mut told = Told::new(&store);
    for step in 0..STEPS {
        for n in 0..OBJECTS {
            write(
                &folder,
                &format!("nodes/n{n}.yaml"),
                &node_text(&format!("n{n}"), &step.to_string()),
            );
        }
    }
    let last = (STEPS - 1).to_string();
    told.until(|t| t.in_sync && t.state.values().filter(|o| label(*o) == last).count() == OBJECTS)
        .await;
    // What the channel held when the receiver began, and each object once more.
    assert!(told.count <= 2 * OBJECTS + 1, "{} updates", told.count);
    assert_eq!(told.state, everything(&store).await);
}

#[tokio::test]
async fn the_watch_ends_with_its_receiver() {
    let (_folder, store) = fresh();
    let told = Told::in_sync(&store).await;
    assert!(Arc::strong_count(&store.shared) > 1);
    drop(told);
    let ended = async {
        while Arc::strong_count(&store.shared) > 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, ended).await.unwrap();
}

#[test]
fn reading_marks_nothing_and_a_file_being_written_waits_for_its_end() {
    let root = PathBuf::from("/store");
    let marks = Marks::new(root.clone());
    let now = tokio::time::Instant::now();
    assert!(marks.take(now).is_some(), "the first look reads all");
    let note = |kind, path: &str| marks.note(Ok(notify::Event::new(kind).add_path(root.join(path))));
    let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));

    for kind in [
        AccessKind::Open(AccessMode::Any),
        AccessKind::Close(AccessMode::Read),
        AccessKind::Read,
    ] {
        for path in ["", "nodes", "a.yaml", "nodes/a.yaml", ".lock"] {
            note(EventKind::Access(kind), path);
        }
    }
    for path in [
        ".lock",
        ".revision",
        "nodes/.unfinished",
        "nodes/.unfinished/a.yaml",
        "nodes/a.yaml~",
        "deeper/a.yaml",
    ] {
        note(closed, path);
    }
    assert!(marks.take(now).is_none());

    note(written, "nodes/a.yaml");
    assert!(marks.take(now).is_none());
    note(closed, "b.yaml");
    let look = marks.take(now).unwrap();
    assert_eq!(look.unsettled, BTreeSet::from([root.join("nodes/a.yaml")]));
    note(closed, "nodes/a.yaml");
    assert_eq!(marks.take(now).unwrap().unsettled, BTreeSet::new());
    // Without a close the end of writing is taken for granted after a while.
    note(written, "nodes/a.yaml");
    assert!(marks.take(now).is_none());
    assert!(marks.take(marks.deadline().unwrap()).is_some());
    assert_eq!(marks.deadline(), None);
}

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    /// The store writes a node's label.
    Put(u8, u16),
    /// The store deletes a node.
    Delete(u8),
    /// A hand writes a file that holds two nodes.
    Write(u8, u16),
    /// A hand breaks a file.
    Break(u8),
    /// A hand removes a file.
    Remove(u8),
    /// A hand moves a file.
    Move(u8, u8),
    /// The receiver takes one update.
    Take,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = || 0..6_u8;
    let step = prop_oneof![
        4 => (n(), any::<u16>()).prop_map(|(a, b)| Step::Put(a, b)),
        2 => n().prop_map(Step::Delete),
        3 => (n(), any::<u16>()).prop_map(|(a, b)| Step::Write(a, b)),
        1 => n().prop_map(Step::Break),
        1 => n().prop_map(Step::Remove),
        1 => (n(), n()).prop_map(|(a, b)| Step::Move(a, b)),
        1 => Just(Step::Take),
    ];
    prop::collection::vec(step, 1..60)
}

async fn take_step(step: &Step, folder: &TempDir, store: &DirectoryStore, told: &mut Told) {
    let file = |n: u8| folder.path().join(format!("hand{n}.yaml"));
    let name = |n: u8| format!("n{n}");
    // Conflicts and broken files in the way are part of the game.
    match *step {
        Step::Put(n, text) => match store.get(&node_key(&name(n))).await {
            Ok(Some(mut object)) => {
                set_label(&mut object, &text.to_string());
                let _ = store.update(object).await;
            }
            Ok(None) => drop(store.create(node(&name(n)).into_object()).await),
            Err(_) => {}
        },
        Step::Delete(n) => {
            if let Ok(Some(object)) = store.get(&node_key(&name(n))).await {
                let revision = object.metadata().resource_version.clone().unwrap();
                let _ = store.delete(&object.key(), &revision).await;
            }
        }
        Step::Write(n, text) => {
            let two = format!(
                "{}---\n{}",
                node_text(&name(n), &text.to_string()),
                node_text(&format!("m{n}"), "m")
            );
            fs::write(file(n), two).unwrap();
        }
        Step::Break(n) => fs::write(file(n), "kind: [").unwrap(),
        Step::Remove(n) => drop(fs::remove_file(file(n))),
        Step::Move(from, to) => drop(fs::rename(file(from), file(to))),
        Step::Take => {
            if let Ok(Some(update)) = timeout(Duration::from_millis(1), told.updates.recv()).await {
                match update {
                    Update::Upsert(object) => drop(told.state.insert(object.key(), *object)),
                    Update::Delete(key) => drop(told.state.remove(&key)),
                    Update::InSync => told.in_sync = true,
                    Update::Problem(problem) => told.problem = problem,
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_told_adds_up_to_what_a_fresh_look_finds(before in steps(), after in steps()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (folder, store) = fresh();
            let watched = open(folder.path());
            let mut told = Told::new(&watched);
            for step in &before {
                take_step(step, &folder, &store, &mut told).await;
            }
            told.until(|t| t.in_sync).await;
            for step in &after {
                take_step(step, &folder, &store, &mut told).await;
            }
            // Mended, so that no last good state is left, which a fresh look cannot know.
            for n in 0..6 {
                take_step(&Step::Write(n, 1), &folder, &store, &mut told).await;
            }
            let expected = everything(&open(folder.path())).await;
            told.until(|t| t.state == expected).await;
            assert_eq!(everything(&watched).await, expected);
        });
    }
}

#[tokio::test]
async fn a_limit_of_inotify_is_named_in_the_error() {
    if let Some(folder) = is_child() {
        let said = open(&folder).watch().unwrap_err().to_string();
        println!("said: {said}");
        return;
    }
    let name = "watching::a_limit_of_inotify_is_named_in_the_error";
    for limit in ["max_inotify_instances", "max_inotify_watches"] {
        let folder = tempfile::tempdir().unwrap();
        let test = child(name, folder.path());
        // The limits of a user namespace are its own: nobody else's watches suffer.
        let mut confined = Command::new("unshare");
        let script = format!("echo 0 > /proc/sys/user/{limit} && exec \"$@\"");
        confined.args(["--user", "--map-root-user", "sh", "-c", &script, "sh"]);
        confined
            .arg(test.get_program())
            .args(test.get_args())
            .env(CHILD, folder.path());
        let output = confined.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let sysctl = limit.replace("inotify_", "user_");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains(&format!("fs.inotify.{sysctl}")),
            "{limit}: {said}\n{errors}"
        );
    }
}
