//! What is taken back, when, and what never is.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

mod common;

use std::collections::BTreeMap;

use culvert_ipam::affinity::{Affinity, AffinityState};
use culvert_ipam::block::Block;
use culvert_ipam::check::{self, Finding};
use culvert_ipam::collect::{Collection, Leftover, Memory, Reclaim, Settings, collect};
use culvert_ipam::handle::Handle;
use culvert_ipam::ordinals::Ordinals;
use culvert_ipam::pool::Pools;
use culvert_ipam::snapshot::{Pod, Snapshot, Source, Stored};
use culvert_ipam::timestamp::Timestamp;

use common::{NOW, net, pool};

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_unix_nanos(NOW + seconds * 1_000_000_000)
}

fn secondary(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn stored<T>(name: &str, spec: T) -> Stored<T> {
    Stored {
        name: name.to_owned(),
        revision: "1".to_owned(),
        spec,
    }
}

/// n1 with two blocks: pod web has 10.0.0.0 and 10.0.0.1, the tunnel 10.0.0.2; the second is empty.
fn cluster() -> Snapshot {
    let mut ordinals = Ordinals::of(&Block::new(net("10.0.0.0/30"), "n1", at(0))).unwrap();
    ordinals.assign(
        2,
        "c1",
        &secondary(&[("namespace", "d"), ("pod", "web"), ("node", "n1")]),
    );
    ordinals.assign(
        1,
        "ipip-tunnel-addr-n1",
        &secondary(&[("type", "ipipTunnelAddress"), ("node", "n1")]),
    );
    let claim = |cidr: &str| {
        let mut affinity = Affinity::pending("n1", net(cidr));
        affinity.state = AffinityState::Confirmed;
        affinity
    };
    let handle = |id: &str, count| {
        let mut handle = Handle::new(id);
        handle.set(net("10.0.0.0/30"), count);
        stored(id, handle)
    };
    Snapshot {
        pools: Pools::new([Ok(pool("p", "10.0.0.0/28", 30))]),
        blocks: vec![
            stored("10-0-0-0-30", ordinals.into_written()),
            stored("10-0-0-4-30", Block::new(net("10.0.0.4/30"), "n1", at(0))),
        ],
        affinities: vec![
            stored("n1-10-0-0-0-30", claim("10.0.0.0/30")),
            stored("n1-10-0-0-4-30", claim("10.0.0.4/30")),
        ],
        handles: vec![handle("c1", 2), handle("ipip-tunnel-addr-n1", 1)],
        nodes: BTreeMap::from([("n1".to_owned(), vec!["10.0.0.2".parse().unwrap()])]),
        pods: vec![Pod {
            namespace: "d".to_owned(),
            name: "web".to_owned(),
            node: Some("n1".to_owned()),
            addresses: vec!["10.0.0.0".parse().unwrap(), "10.0.0.1".parse().unwrap()],
        }],
        in_sync: Source::ALL.into_iter().collect(),
        ..Snapshot::default()
    }
}

/// Two looks, so many seconds apart.
fn twice(snapshot: &Snapshot, apart: u64) -> Collection {
    let settings = Settings::default();
    let first = collect(snapshot, settings, &Memory::default(), at(0));
    assert!(
        first.reclaims.is_empty(),
        "one look is never enough: {:?}",
        first.reclaims
    );
    collect(snapshot, settings, &first.memory, at(apart))
}

fn words(collection: &Collection) -> Vec<String> {
    collection.reclaims.iter().map(ToString::to_string).collect()
}

#[test]
fn a_sound_cluster_loses_nothing_but_a_second_empty_block() {
    let cluster = cluster();
    assert_eq!(
        words(&twice(&cluster, 900)),
        ["release block 10.0.0.4/30, which node n1 does not use"]
    );
    assert!(twice(&cluster, 899).reclaims.is_empty(), "the grace period");
    assert_eq!(check::cluster(&cluster, at(0)), []);
}

#[test]
fn addresses_of_a_pod_that_is_gone_go_together_after_the_grace_period() {
    let mut cluster = cluster();
    cluster.pods.clear();
    let early = twice(&cluster, 899);
    assert_eq!((early.candidates.len(), early.reclaims.len()), (2, 0));
    let collection = twice(&cluster, 900);
    let said = words(&collection).remove(0);
    assert_eq!(
        said,
        "release 10.0.0.0 (handle c1, node n1): there is no pod d/web; 10.0.0.1 (handle c1, node n1): there is no pod d/web"
    );
    assert!(collection.reclaims[0].is_still_due(&cluster, Settings::default()));
    assert!(
        !collection.reclaims[0].is_still_due(&cluster_again(), Settings::default()),
        "the pod is back"
    );
}

fn cluster_again() -> Snapshot {
    cluster()
}

#[test]
fn all_or_none_of_a_handle() {
    let mut cluster = cluster();
    cluster.pods[0].addresses.pop();
    let collection = twice(&cluster, 900);
    assert_eq!(collection.candidates.len(), 1);
    assert!(
        words(&collection).iter().all(|w| !w.contains("10.0.0.1")),
        "{:?}",
        words(&collection)
    );
}

#[test]
fn nothing_is_taken_on_half_a_view() {
    let mut whole = cluster();
    whole.pods.clear();
    for source in Source::ALL {
        let mut half = whole.clone();
        half.in_sync.remove(&source);
        let collection = twice(&half, 90_000);
        assert_eq!(
            (collection.missing.clone(), collection.reclaims.len()),
            (vec![source], 0)
        );
    }
}

/// A snapshot of a datastore that never tells of pods, looked at twice.
fn twice_without_pods(mut snapshot: Snapshot, apart: u64) -> Collection {
    snapshot.pods.clear();
    snapshot.in_sync.remove(&Source::Pods);
    let settings = Settings {
        pods_are_told: false,
        ..Settings::default()
    };
    let first = collect(&snapshot, settings, &Memory::default(), at(0));
    assert!(first.reclaims.is_empty() && first.missing.is_empty());
    let second = collect(&snapshot, settings, &first.memory, at(apart));
    let still_due = second
        .reclaims
        .iter()
        .all(|r| r.is_still_due(&snapshot, settings));
    assert!(still_due, "{:?}", second.reclaims);
    second
}

#[test]
fn where_nobody_tells_of_pods_only_a_node_that_is_gone_leaves_addresses() {
    let alive = twice_without_pods(cluster(), 900);
    assert_eq!(
        words(&alive),
        ["release block 10.0.0.4/30, which node n1 does not use"]
    );
    let mut cluster = cluster();
    cluster.nodes.clear();
    // Nothing but the Node speaks for it: so it has its grace.
    let early = twice_without_pods(cluster.clone(), 899);
    assert_eq!(words(&early), Vec::<String>::new());
    assert_eq!(early.waiting[&Leftover::PodAddress], 2);
    assert_eq!(early.waiting[&Leftover::TunnelAddress], 1);
    let said = words(&twice_without_pods(cluster.clone(), 900));
    assert_eq!(
        said,
        [
            "release 10.0.0.0 (handle c1, node n1): the Node is gone; 10.0.0.1 (handle c1, node n1): the Node is gone",
            "release 10.0.0.2 (handle ipip-tunnel-addr-n1, node n1): the Node is gone",
        ]
    );
    // Others than pods were left out of account.
    cluster.in_sync.remove(&Source::Nodes);
    let settings = Settings {
        pods_are_told: false,
        ..Settings::default()
    };
    let half = collect(&cluster, settings, &Memory::default(), at(0));
    assert_eq!(half.missing, [Source::Nodes]);
}

#[test]
fn what_is_taken_back_is_counted_by_its_sort() {
    let mut cluster = cluster();
    cluster.pods.clear();
    let collection = twice(&cluster, 900);
    let counts: Vec<_> = collection.reclaims.iter().map(Reclaim::leftover).collect();
    assert_eq!(counts, [(Leftover::PodAddress, 2), (Leftover::EmptyBlock, 1)]);
    assert!(collection.waiting.is_empty(), "{:?}", collection.waiting);
    let early = twice(&cluster, 1).waiting;
    assert_eq!(
        early,
        BTreeMap::from([(Leftover::PodAddress, 2), (Leftover::EmptyBlock, 1)])
    );
}

#[test]
fn a_node_that_is_gone_needs_no_grace_and_takes_its_tunnel_with_it() {
    let mut cluster = cluster();
    cluster.pods.clear();
    cluster.nodes.clear();
    let said = words(&twice(&cluster, 1));
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[1].contains("10.0.0.2 (handle ipip-tunnel-addr-n1, node n1): the Node is gone"),
        "{said:?}"
    );
    cluster.blocks.remove(0);
    cluster.affinities.remove(0);
    cluster.handles.clear();
    assert_eq!(
        words(&twice(&cluster, 1)),
        ["release block 10.0.0.4/30 of node n1, which is gone"]
    );
}

#[test]
fn what_is_wrong_is_found_in_words_and_with_what_mends_it() {
    let mut cluster = cluster();
    cluster.pods[0].addresses.push("10.0.0.3".parse().unwrap());
    cluster.pods[0].addresses.push("192.0.2.1".parse().unwrap());
    cluster.handles.remove(1);
    cluster.handles[0].spec.set(net("10.0.0.0/30"), 5);
    cluster.handles.push(stored("lost", Handle::new("lost")));
    let other = Affinity {
        state: AffinityState::Confirmed,
        ..Affinity::pending("n2", net("10.0.0.0/30"))
    };
    cluster.affinities.push(stored("n2-10-0-0-0-30", other));
    cluster.affinities[1].spec.state = AffinityState::Pending;
    let found = check::cluster(&cluster, at(0));
    let has = |wanted: fn(&Finding) -> bool| found.iter().any(|p| wanted(&p.finding));
    assert!(has(|f| matches!(f, Finding::NotAllocated { .. })));
    assert!(has(|f| matches!(f, Finding::NotInPool { .. })));
    assert!(has(|f| matches!(f, Finding::MissingHandle { addresses: 1, .. })));
    assert!(has(|f| matches!(
        f,
        Finding::WrongCount {
            counts: 5,
            has: 2,
            ..
        }
    )));
    assert!(has(|f| matches!(f, Finding::EmptyHandle { .. })));
    assert!(has(|f| matches!(f, Finding::TwoOwners { .. })));
    assert!(has(|f| matches!(f, Finding::AffinityOfAnother { .. })));
    assert!(has(|f| matches!(f, Finding::HalfDone { .. })));
    assert_eq!(found.len(), 8, "{found:#?}");
    let mended = found.iter().filter(|p| !p.mends.is_empty()).count();
    assert_eq!(mended, 4, "handles and the claim to another's block");
}
