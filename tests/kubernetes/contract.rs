//! What every datastore promises.

use culvert_agent::api::{BlockAffinity, IpPool, Key, Kind, Object, Resource as _};
use culvert_agent::datastore::{DatastoreError, Update};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::servers::{NODE, Stores, Told};
use crate::{Outcome, ensure};

type Act = fn(Stores) -> LocalBoxFuture<'static, Outcome>;

#[rustfmt::skip]
pub(crate) const TRIALS: [(&str, Act); 10] = [
    ("an_object_is_read_as_it_was_written", |stores| written_and_read(stores).boxed_local()),
    ("a_write_over_an_old_revision_is_a_conflict", |stores| conflict(stores).boxed_local()),
    ("what_exists_is_not_created_and_what_does_not_is_not_written", |stores| existence(stores).boxed_local()),
    ("of_two_writers_of_one_revision_one_wins", |stores| race(stores).boxed_local()),
    ("what_is_not_valid_is_refused_by_name", |stores| invalid(stores).boxed_local()),
    ("annotations_are_set_and_removed_and_nothing_else_is_touched", |stores| annotations(stores).boxed_local()),
    ("a_watch_tells_all_then_in_sync_then_changes", |stores| watch(stores).boxed_local()),
    ("a_receiver_that_lags_gets_the_latest_state", |stores| lagging(stores).boxed_local()),
    ("a_watch_tells_of_this_nodes_own_blocks", |stores| own_blocks(stores).boxed_local()),
    ("what_calico_wrote_is_worked_on_without_loss", |stores| crate::allocating::worked_on(stores).boxed_local()),
];

/// A pool; its range makes no difference.
pub(crate) fn pool(name: &str) -> Object {
    let body = json!({"metadata": {"name": name}, "spec": {"cidr": "10.65.0.0/16", "nodeSelector": "all()"}});
    Object::deserialize(Kind::IpPool, body).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn labelled(mut object: Object, label: &str) -> Object {
    let labels = &mut object.metadata_mut().labels;
    labels.insert("step".to_owned(), label.to_owned());
    object
}

pub(crate) fn label(object: &Object) -> &str {
    object.metadata().labels.get("step").map_or("", String::as_str)
}

pub(crate) fn revision(object: &Object) -> String {
    object.metadata().resource_version.clone().unwrap_or_default()
}

/// Objects of the kinds that an agent reads and writes, with fields of which it knows nothing.
fn samples() -> [(Kind, Value); 5] {
    // Above 2^53, odd: no float can hold it.
    let sequence = 1_785_578_400_000_000_001_u64;
    let block = json!({
        "metadata": {"name": "10-66-0-0-30", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {
            "cidr": "10.66.0.0/30", "affinity": "host:n", "affinityClaimTime": "2026-08-01T10:00:00Z",
            "allocations": [0, null, null, null], "unallocated": [2, 3, 1],
            "attributes": [{"handle_id": "h", "secondary": {"pod": "p", "namespace": "n"}, "later": {"x": [1]}}],
            "sequenceNumber": sequence, "sequenceNumberForAllocation": {"0": sequence - 1},
            "deleted": false, "strictAffinity": false, "fieldOfALaterVersion": {"kept": true},
        },
    });
    let handle = json!({
        "metadata": {"name": "k8s-pod-network.0a1b"},
        "spec": {"handleID": "k8s-pod-network.0a1b", "block": {"10.66.0.0/30": 1}, "deleted": false},
    });
    let affinity = json!({
        "metadata": {"name": "n-10-66-0-0-30"},
        "spec": {"cidr": "10.66.0.0/30", "node": "n", "state": "confirmed", "type": "host", "deleted": "false"},
    });
    let config = json!({
        "metadata": {"name": "default"},
        "spec": {"strictAffinity": true, "autoAllocateBlocks": true, "maxBlocksPerHost": 3, "ipCooldownSeconds": 5},
    });
    let bgp = json!({
        "metadata": {"name": "default"},
        "spec": {"asNumber": 4_294_967_295_u32, "listenPort": 1790, "logSeverityScreen": "Info", "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}]},
    });
    [
        (Kind::IpamBlock, block),
        (Kind::IpamHandle, handle),
        (Kind::BlockAffinity, affinity),
        (Kind::IpamConfig, config),
        (Kind::BgpConfiguration, bgp),
    ]
}

async fn written_and_read(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    for (kind, body) in samples() {
        let object = Object::deserialize(kind, body.clone())?;
        let created = store.create(object.clone()).await?;
        let read = store.get(&object.key()).await?.ok_or("it is not there")?;
        ensure(read == created, || format!("read {read:?}, created {created:?}"))?;
        let shown = serde_json::to_value(&read)?;
        ensure(shown["spec"] == body["spec"], || {
            format!("{kind:?}: {} is not {}", shown["spec"], body["spec"])
        })?;
        for field in ["labels", "annotations"] {
            ensure(shown["metadata"][field] == body["metadata"][field], || {
                shown.to_string()
            })?;
        }
        let listed = store.list(kind).await?;
        ensure(listed.contains(&created), || format!("{listed:?}"))?;
        // What was read is written back unharmed.
        let changed = store.update(labelled(read, "2")).await?;
        let shown = serde_json::to_value(&changed)?;
        ensure(shown["spec"] == body["spec"], || shown.to_string())?;
        ensure(revision(&changed) != revision(&created), || {
            "the revision stays".to_owned()
        })?;
        store.delete(&changed.key(), &revision(&changed)).await?;
        ensure(store.get(&changed.key()).await?.is_none(), || {
            "it is still there".to_owned()
        })?;
    }
    Ok(())
}

async fn conflict(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    let first = store.create(pool("conflict")).await?;
    let second = store.update(labelled(first.clone(), "2")).await?;
    let is_conflict = |error: &DatastoreError| matches!(error, DatastoreError::Conflict { key, revision: of } if *key == first.key() && *of == revision(&first));
    let error = store.update(labelled(first.clone(), "3")).await.err();
    ensure(error.as_ref().is_some_and(is_conflict), || format!("{error:?}"))?;
    let error = store.delete(&first.key(), &revision(&first)).await.err();
    ensure(error.as_ref().is_some_and(is_conflict), || format!("{error:?}"))?;
    let still = store.get(&first.key()).await?;
    ensure(still == Some(second.clone()), || format!("{still:?}"))?;
    // Without a revision nothing is written over.
    let mut bare = second.clone();
    bare.metadata_mut().resource_version = None;
    let error = store.update(bare).await.err();
    ensure(matches!(error, Some(DatastoreError::Invalid { .. })), || {
        format!("{error:?}")
    })?;
    Ok(store.delete(&second.key(), &revision(&second)).await?)
}

async fn existence(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    let key = Key::new(Kind::IpPool, "existence");
    ensure(store.get(&key).await?.is_none(), || "it is there".to_owned())?;
    let error = store.delete(&key, "1").await.err();
    ensure(
        matches!(&error, Some(DatastoreError::NotFound { key: of }) if *of == key),
        || format!("{error:?}"),
    )?;
    let mut absent = pool("existence");
    absent.metadata_mut().resource_version = Some("1".to_owned());
    let error = store.update(absent.clone()).await.err();
    // Kubernetes says of an update of nothing at a revision that it is not found, or a conflict.
    ensure(error.as_ref().is_some_and(DatastoreError::is_conflict), || {
        format!("{error:?}")
    })?;
    let error = store.annotate(&key, &[("a".to_owned(), None)].into()).await.err();
    ensure(matches!(error, Some(DatastoreError::NotFound { .. })), || {
        format!("{error:?}")
    })?;
    // A revision that an object carries from a former life is no reason not to make it.
    let made = store.create(absent).await?;
    let error = store.create(pool("existence")).await.err();
    ensure(
        matches!(&error, Some(DatastoreError::AlreadyExists { key: of }) if *of == key),
        || format!("{error:?}"),
    )?;
    Ok(store.delete(&key, &revision(&made)).await?)
}

async fn race(stores: Stores) -> Outcome {
    const WRITERS: usize = 16;
    let store = stores.open().await?;
    let first = store.create(pool("race")).await?;
    let writes = (0..WRITERS).map(|n| {
        let (store, object) = (store.clone(), labelled(first.clone(), &n.to_string()));
        tokio::spawn(async move { store.update(object).await })
    });
    let mut won = Vec::new();
    for result in futures_util::future::join_all(writes).await {
        match result? {
            Ok(object) => won.push(object),
            Err(DatastoreError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let now = store.get(&first.key()).await?;
    ensure(won.len() == 1 && now.as_ref() == won.first(), || {
        format!("{won:?}, and then {now:?}")
    })?;
    let revision = now.as_ref().map(revision).unwrap_or_default();
    Ok(store.delete(&first.key(), &revision).await?)
}

async fn invalid(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    let Some(mut wrong) = IpPool::from_object(pool("invalid")) else {
        return Err("no pool".into());
    };
    wrong.spec.block_size = Some(8);
    let error = store.create(wrong.into_object()).await.err();
    let said = error.as_ref().map(ToString::to_string).unwrap_or_default();
    ensure(
        matches!(error, Some(DatastoreError::Invalid { .. }))
            && said.contains("invalid")
            && said.contains("blockSize"),
        || format!("{error:?}"),
    )?;
    ensure(
        store.get(&Key::new(Kind::IpPool, "invalid")).await?.is_none(),
        || "it is there".to_owned(),
    )
}

async fn annotations(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    let mut first = labelled(pool("annotations"), "1");
    first.metadata_mut().annotations = [("theirs", "1"), ("ours", "1"), ("old", "1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let created = store.create(first).await?;
    let wanted = [
        ("ours", Some("2")),
        ("old", None),
        ("new", Some("3")),
        ("never", None),
    ]
    .map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
    let written = store.annotate(&created.key(), &wanted.into()).await?;
    let read = store.get(&created.key()).await?.ok_or("it is gone")?;
    ensure(read == written, || format!("{written:?}, and then {read:?}"))?;
    let expected = [("new", "3"), ("ours", "2"), ("theirs", "1")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    ensure(read.metadata().annotations == expected.into(), || {
        format!("{read:?}")
    })?;
    ensure(label(&read) == "1", || format!("{read:?}"))?;
    Ok(store.delete(&read.key(), &revision(&read)).await?)
}

async fn watch(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    let there = store.create(pool("watch-a")).await?;
    let mut told = Told::in_sync(store.as_ref(), "watch-").await?;
    ensure(
        told.count == 1 && label(&told.state[&there.key()]).is_empty(),
        || format!("{:?}", told.state),
    )?;
    let other = stores.open().await?;
    let b = other.create(pool("watch-b")).await?;
    told.until("a new object", |told| told.state.contains_key(&b.key()))
        .await?;
    let changed = other.update(labelled(there, "2")).await?;
    told.until("a change", |told| {
        told.state.get(&changed.key()).is_some_and(|o| label(o) == "2")
    })
    .await?;
    ensure(
        revision(&told.state[&changed.key()]) == revision(&changed),
        || format!("{:?}", told.state),
    )?;
    for object in [&b, &changed] {
        other.delete(&object.key(), &revision(object)).await?;
    }
    told.until("the end of both", |told| told.deleted.len() == 2)
        .await?;
    ensure(told.state.is_empty(), || format!("{:?}", told.state))?;
    // One that is made again is another.
    let again = other.create(pool("watch-a")).await?;
    told.until("it to be back", |told| told.state.contains_key(&again.key()))
        .await?;
    Ok(other.delete(&again.key(), &revision(&again)).await?)
}

async fn lagging(stores: Stores) -> Outcome {
    const OBJECTS: usize = 150;
    const STEPS: usize = 4;
    let store = stores.open().await?;
    let mut objects = Vec::new();
    for n in 0..OBJECTS {
        objects.push(store.create(pool(&format!("lagging-{n}"))).await?);
    }
    let mut updates = store.watch()?;
    for step in 1..=STEPS {
        for object in &mut objects {
            *object = store.update(labelled(object.clone(), &step.to_string())).await?;
        }
    }
    let last = STEPS.to_string();
    let (mut count, mut done) = (0, std::collections::BTreeSet::new());
    while done.len() < OBJECTS {
        let update = tokio::time::timeout(crate::servers::LIMIT, updates.recv()).await?;
        if let Some(Update::Upsert(object)) = update
            && object.key().name.starts_with("lagging-")
        {
            count += 1;
            if label(&object) == last {
                done.insert(object.key());
            }
        }
    }
    // What the channel held when the receiver began, and each object once or twice more.
    ensure(count <= 3 * OBJECTS, || {
        format!("{count} updates for {OBJECTS} objects in {STEPS} steps")
    })?;
    for object in objects {
        store.delete(&object.key(), &revision(&object)).await?;
    }
    Ok(())
}

async fn own_blocks(stores: Stores) -> Outcome {
    let store = stores.open().await?;
    let block = json!({
        "metadata": {"name": "10-67-0-0-30"},
        "spec": {"cidr": "10.67.0.0/30", "affinity": format!("host:{NODE}"), "allocations": [null, null, null, null],
            "unallocated": [0, 1, 2, 3], "attributes": [], "sequenceNumber": 5, "deleted": false, "strictAffinity": false},
    });
    let block = store.create(Object::deserialize(Kind::IpamBlock, block)?).await?;
    let cidr = "10.67.0.0/30".parse().map_err(Failed::from)?;
    let affinity = BlockAffinity::new(
        "node1-10-67-0-0-30",
        culvert_ipam::affinity::Affinity::pending(NODE, cidr),
    );
    let affinity = store.create(affinity.into_object()).await?;
    // In sync says also that the blocks were told.
    let mut told = Told::in_sync(store.as_ref(), "10-67-").await?;
    ensure(told.state.contains_key(&block.key()), || {
        format!("{:?}", told.state)
    })?;
    let changed = store.update(labelled(block, "2")).await?;
    told.until("the block's change", |told| {
        told.state.values().any(|block| label(block) == "2")
    })
    .await?;
    store.delete(&affinity.key(), &revision(&affinity)).await?;
    store.delete(&changed.key(), &revision(&changed)).await?;
    told.until("the block's end", |told| told.deleted.contains(&changed.key()))
        .await
}
