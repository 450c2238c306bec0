//! Writers that are killed at any point leave every file whole.

use std::io::{BufRead, BufReader};
use std::time::Duration;

use super::super::lock::COUNTER_FILE;
use super::*;

/// What a writer prints after each write.
const WRITTEN: &str = "written";

/// Writes for ever, and says so each time: new files, rewrites of single and of shared files, deletions.
async fn write_for_ever(folder: &Path) {
    let store = open(folder);
    for n in 0_u64.. {
        let store = &store;
        let writes = ["shared-a", "shared-b", "alone"].map(async |name| {
            let mut object = get(store, name).await;
            // Long, so that a write is not one page; and never what the writer before has written, which would be no write.
            let writer = std::process::id();
            set_label(&mut object, &format!("{writer} {n} {}", "x".repeat(20_000)));
            store.update(object).await.unwrap();
            println!("{WRITTEN}");
        });
        // The first by itself, and those that come meanwhile together.
        futures_util::future::join_all(writes).await;
        match store.get(&node_key("fleeting")).await.unwrap() {
            Some(object) => {
                let revision = object.metadata().resource_version.clone().unwrap();
                store.delete(&node_key("fleeting"), &revision).await.unwrap();
            }
            None => drop(create(store, "fleeting").await),
        }
    }
}

fn unfinished(folder: &Path) -> usize {
    let folders = [folder.to_owned(), folder.join("nodes")].into_iter();
    let entries = folders.filter_map(|of| fs::read_dir(of.join(".unfinished")).ok());
    entries.map(Iterator::count).sum()
}

#[tokio::test]
async fn a_writer_killed_at_any_point_leaves_every_file_whole() {
    if let Some(folder) = is_child() {
        return write_for_ever(&folder).await;
    }
    const KILLS: u32 = 60;
    let folder = tempfile::tempdir().unwrap();
    let shared = format!(
        "{}---\n{}",
        node_text("shared-a", "start"),
        node_text("shared-b", "start")
    );
    write(&folder, "shared.yaml", &shared);
    write(&folder, "alone.yaml", &node_text("alone", "start"));
    let name = "crash::a_writer_killed_at_any_point_leaves_every_file_whole";
    let (mut last, mut leftovers, mut awaited) = (0, 0, 0);
    for kill in 0..KILLS {
        let mut writer = child(name, folder.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut writes = lines.map_while(Result::ok).filter(|line| line.ends_with(WRITTEN));
        // However slow the machine is, it is at work when it is killed: in one round or the next of its writes.
        let skipped = usize::try_from(kill % 4).unwrap();
        assert!(writes.nth(skipped).is_some(), "the writer ended by itself");
        awaited += u64::from(kill % 4) + 1;
        // The moment of the kill is the input of this test: spread evenly over some writes.
        std::thread::sleep(Duration::from_micros(u64::from(kill * 7919 % 10_000)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        leftovers += unfinished(folder.path());

        let store = open(folder.path());
        assert_eq!(store.faults(), [], "after kill {kill}");
        assert_eq!(unfinished(folder.path()), 0);
        for name in ["shared-a", "shared-b", "alone"] {
            let object = get(&store, name).await;
            let text = label(&object);
            let whole = text == "start" || text.ends_with(&"x".repeat(20_000));
            assert!(whole, "{name} after kill {kill}: {} bytes", text.len());
        }
        let counter = fs::read_to_string(folder.path().join(COUNTER_FILE)).unwrap_or_default();
        let counter = counter.trim().parse().unwrap_or(0);
        assert!(counter >= last, "the counter went from {last} to {counter}");
        last = counter;
    }
    assert!(
        last >= awaited,
        "the counter is {last} after at least {awaited} writes"
    );
    println!("{last} writes, {leftovers} unfinished files in {KILLS} kills");
}

#[test]
fn what_a_dead_writer_left_is_removed_at_open_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("nodes/.unfinished")).unwrap();
    fs::create_dir(folder.path().join(".unfinished")).unwrap();
    let keep = [".notes", "a.tmp", "nodes/.a.yaml.swp", "nodes/a.yaml.tmp"];
    for file in keep {
        write(&folder, file, "mine");
    }
    write(&folder, ".unfinished/x1", "half");
    write(&folder, "nodes/.unfinished/x2", "half");
    assert_eq!(unfinished(folder.path()), 2);
    open(folder.path());
    assert_eq!(unfinished(folder.path()), 0);
    for file in keep {
        assert!(folder.path().join(file).exists(), "{file}");
    }
}
