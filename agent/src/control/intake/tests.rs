use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use async_trait::async_trait;
use tempfile::TempDir;

use super::*;
use crate::api::{Kind, NodeAddress};
use crate::datastore::Datastore;

/// A datastore whose watch tells what the test tells.
struct Told(Mutex<Option<mpsc::Receiver<Update>>>);

fn none() -> DatastoreError {
    DatastoreError::Io {
        operation: "use a datastore that only has a watch".to_owned(),
        source: io::Error::from(io::ErrorKind::Unsupported),
    }
}

#[async_trait]
impl Datastore for Told {
    async fn get(&self, _: &Key) -> Result<Option<Object>, DatastoreError> {
        Err(none())
    }

    async fn list(&self, _: Kind) -> Result<Vec<Object>, DatastoreError> {
        Err(none())
    }

    async fn list_whole(&self, kind: Kind) -> Result<Vec<Object>, DatastoreError> {
        self.list(kind).await
    }

    async fn create(&self, _: Object) -> Result<Object, DatastoreError> {
        Err(none())
    }

    async fn update(&self, _: Object) -> Result<Object, DatastoreError> {
        Err(none())
    }

    async fn delete(&self, _: &Key, _: &str) -> Result<(), DatastoreError> {
        Err(none())
    }

    fn watch(&self) -> Result<mpsc::Receiver<Update>, DatastoreError> {
        self.0.lock().unwrap().take().ok_or_else(none)
    }
}

fn node(name: &str, address: &str) -> Object {
    let mut node = Node::named(name);
    node.status.addresses.push(NodeAddress {
        r#type: "InternalIP".to_owned(),
        address: address.to_owned(),
    });
    Object::Node(node)
}

fn records(objects: &[Object]) -> BTreeMap<Key, Record> {
    let records = objects
        .iter()
        .map(|object| (object.key(), Record::of(object).unwrap()));
    records.collect()
}

fn upsert(object: &Object) -> Update {
    Update::Upsert(Box::new(object.clone()))
}

struct Running {
    tell: mpsc::Sender<Update>,
    outlets: Outlets,
    file: LastGood,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<mpsc::Receiver<oneshot::Sender<usize>>>,
    _folder: TempDir,
}

impl Running {
    /// The intake of node `a`, with a copy of these objects.
    fn start(copy: &[Object]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = LastGood::new(folder.path(), "a", "here");
        let copy = (!copy.is_empty()).then(|| LastGoodCopy {
            saved: "2026-11-21T10:00:00Z".parse().unwrap(),
            records: records(copy),
        });
        let (tell, told) = mpsc::channel(8);
        let store: Arc<dyn Datastore> = Arc::new(Told(Mutex::new(Some(told))));
        let store = Arc::new(Deferred::new(move || {
            let store = Arc::clone(&store);
            Box::pin(async move { Ok(store) })
        }));
        let limit = Duration::from_secs(10);
        let terms = Terms {
            node: "a".to_owned(),
            address: Ipv4Addr::new(172, 18, 0, 1),
            address_is_configured: false,
            max_vanish_share: 50,
            patience: (Instant::now() + limit, limit),
        };
        let (_, confirmations) = mpsc::channel(1);
        let (intake, outlets) = Intake::new(terms, store, file.clone(), copy.as_ref(), confirmations);
        let stop = CancellationToken::new();
        let task = tokio::spawn(intake.run(stop.clone()));
        Self {
            tell,
            outlets,
            file,
            stop,
            task,
            _folder: folder,
        }
    }

    async fn next(&mut self) -> Update {
        self.outlets.updates.recv().await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_datastore_that_is_silent_for_too_long_is_stood_in_for_and_takes_over_by_difference() {
    let (a, b, c) = (
        node("a", "172.18.0.1"),
        node("b", "172.18.0.2"),
        node("c", "172.18.0.3"),
    );
    let mut intake = Running::start(&[a.clone(), b.clone()]);
    let begin = Instant::now();
    assert_eq!(intake.next().await, upsert(&a));
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
    assert_eq!(intake.next().await, upsert(&b));
    assert_eq!(intake.next().await, Update::InSync);
    intake.outlets.remarks.changed().await.unwrap();
    let problem = intake.outlets.remarks.borrow_and_update().datastore.clone();
    assert_eq!(
        problem.as_deref(),
        Some("serving the last good copy of 2026-11-21T10:00:00Z: the datastore is not in sync after 10 s")
    );

    for update in [upsert(&a), upsert(&c), Update::InSync] {
        intake.tell.send(update).await.unwrap();
    }
    assert_eq!(intake.next().await, upsert(&a));
    assert_eq!(intake.next().await, upsert(&c));
    assert_eq!(intake.next().await, Update::Delete(b.key()));
    assert_eq!(intake.next().await, Update::InSync);
    intake.outlets.remarks.changed().await.unwrap();
    assert_eq!(*intake.outlets.remarks.borrow(), Remarks::default());

    intake.stop.cancel();
    intake.task.await.unwrap();
    let saved = intake.file.read().unwrap().records;
    assert_eq!(saved, records(&[a, c]));
}

#[tokio::test(start_paused = true)]
async fn a_datastore_in_time_is_told_as_it_is_and_the_copy_adds_only_what_is_held() {
    let copy: Vec<Object> = (1..=4)
        .map(|n| node(&format!("n{n}"), &format!("172.18.0.{n}")))
        .collect();
    let mut intake = Running::start(&copy);
    for update in [upsert(&copy[0]), Update::InSync] {
        intake.tell.send(update).await.unwrap();
    }
    assert_eq!(intake.next().await, upsert(&copy[0]));
    for held in &copy[1..] {
        assert_eq!(intake.next().await, upsert(held));
    }
    assert_eq!(intake.next().await, Update::InSync);
    intake.outlets.remarks.changed().await.unwrap();
    assert_eq!(intake.outlets.remarks.borrow().held, 3);
}

#[tokio::test(start_paused = true)]
async fn a_datastore_that_goes_away_is_remarked_on_until_it_is_back_and_what_was_read_stands() {
    let mut intake = Running::start(&[]);
    for update in [upsert(&node("a", "172.18.0.1")), Update::InSync] {
        intake.tell.send(update).await.unwrap();
        let _ = intake.next().await;
    }
    let problem = Some("cannot reach it".to_owned());
    intake.tell.send(Update::Problem(problem)).await.unwrap();
    intake.outlets.remarks.changed().await.unwrap();
    let told = intake.outlets.remarks.borrow_and_update().datastore.clone();
    assert_eq!(
        told.as_deref(),
        Some("what was last read stands: cannot reach it")
    );
    intake.tell.send(Update::Problem(None)).await.unwrap();
    intake.outlets.remarks.changed().await.unwrap();
    assert_eq!(*intake.outlets.remarks.borrow(), Remarks::default());
    assert!(
        intake.outlets.updates.try_recv().is_err(),
        "the loop is told nothing of it"
    );
}

#[tokio::test(start_paused = true)]
async fn a_datastore_that_says_at_a_start_that_it_is_away_is_stood_in_for_at_once() {
    let a = node("a", "172.18.0.1");
    let mut intake = Running::start(std::slice::from_ref(&a));
    let begin = Instant::now();
    let problem = Some("cannot reach it".to_owned());
    intake.tell.send(Update::Problem(problem)).await.unwrap();
    assert_eq!(intake.next().await, upsert(&a));
    assert_eq!(intake.next().await, Update::InSync);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn without_a_copy_nothing_is_in_sync_before_the_datastore_is_and_nothing_is_written() {
    let intake = Running::start(&[]);
    intake.tell.send(upsert(&node("a", "172.18.0.1"))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let Running {
        mut outlets,
        file,
        stop,
        task,
        tell: _tell,
        _folder,
    } = intake;
    stop.cancel();
    task.await.unwrap();
    assert_eq!(
        outlets.updates.recv().await,
        Some(upsert(&node("a", "172.18.0.1")))
    );
    assert_eq!(outlets.updates.recv().await, None);
    assert_eq!(file.read(), None);
}

#[tokio::test(start_paused = true)]
async fn another_address_in_this_nodes_object_is_said_and_another_nodes_is_not() {
    let mut intake = Running::start(&[]);
    for object in [node("b", "172.18.0.9"), node("a", "172.18.0.7")] {
        intake.tell.send(upsert(&object)).await.unwrap();
    }
    intake.outlets.remarks.changed().await.unwrap();
    assert_eq!(
        intake.outlets.remarks.borrow_and_update().node.as_deref(),
        Some(
            "Node a has the InternalIP 172.18.0.7 now, and this agent is known by 172.18.0.1: it takes the new one as soon as \
             this host has it and no longer has 172.18.0.1; or restart the agent to take it now"
        )
    );
    intake.tell.send(upsert(&node("a", "172.18.0.1"))).await.unwrap();
    intake.outlets.remarks.changed().await.unwrap();
    assert_eq!(intake.outlets.remarks.borrow().node, None);
}
