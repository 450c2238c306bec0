use super::*;
use crate::datastore::directory::DirectoryStore;

fn lease(holder: &str, revision: &str) -> Lease {
    let mut lease = Lease::new(
        "x",
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            lease_transitions: Some(4),
            acquire_time: Some("2026-08-01T10:00:00.000000Z".to_owned()),
            ..LeaseSpec::default()
        },
    );
    lease.metadata.resource_version = Some(revision.to_owned());
    lease
}

fn candidate() -> Candidate {
    Candidate {
        identity: "n1".to_owned(),
        seen: None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_taken_only_after_it_stood_still_for_as_long_as_it_is_held() {
    let (mut us, now, wall) = (candidate(), Instant::now(), Timestamp::UNIX_EPOCH);
    let second = Duration::from_secs(1);
    assert_eq!(us.judge(Some(&lease("n2", "1")), now, wall), Step::Follow);
    assert_eq!(
        us.judge(Some(&lease("n2", "1")), now + 14 * second, wall),
        Step::Follow
    );
    // A renewal begins the wait anew.
    assert_eq!(
        us.judge(Some(&lease("n2", "2")), now + 14 * second, wall),
        Step::Follow
    );
    assert_eq!(
        us.judge(Some(&lease("n2", "2")), now + 28 * second, wall),
        Step::Follow
    );
    let Step::Write(spec) = us.judge(Some(&lease("n2", "2")), now + 29 * second, wall) else {
        panic!("not taken");
    };
    assert_eq!(spec.holder(), Some("n1"));
    assert_eq!(spec.lease_transitions, Some(5));
    assert_eq!(spec.acquire_time.as_deref(), Some("1970-01-01T00:00:00.000000Z"));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_ours_is_renewed_and_one_that_is_nobodys_is_taken_at_once() {
    let (mut us, now, wall) = (candidate(), Instant::now(), Timestamp::UNIX_EPOCH);
    let Step::Write(ours) = us.judge(Some(&lease("n1", "1")), now, wall) else {
        panic!("not renewed");
    };
    assert_eq!(ours.acquire_time.as_deref(), Some("2026-08-01T10:00:00.000000Z"));
    assert_eq!(ours.renew_time.as_deref(), Some("1970-01-01T00:00:00.000000Z"));
    assert_eq!(ours.lease_transitions, Some(4));
    assert!(matches!(
        us.judge(Some(&lease("", "2")), now, wall),
        Step::Write(_)
    ));
    assert!(matches!(us.judge(None, now, wall), Step::Write(_)));
}

/// Real time: the store's files are read by other threads, for which a clock that stands still would not wait.
#[tokio::test]
async fn one_of_two_leads_and_the_other_follows_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = || -> Arc<dyn Datastore> { Arc::new(DirectoryStore::open(folder.path()).unwrap()) };
    let (stop_first, stop_second) = (CancellationToken::new(), CancellationToken::new());
    let look = Duration::from_millis(200);
    let first = stand(store(), "gc", "n1", look, stop_first.clone());
    let mut first_leads = first.is_leader();
    first_leads.wait_for(|leads| *leads).await.unwrap();
    let second = stand(store(), "gc", "n2", look, stop_second.clone());
    assert!(!*second.is_leader().borrow());
    stop_first.cancel();
    first.ended().await;
    assert!(!*first_leads.borrow());
    // It was given back, so that nobody waits until it runs out.
    let began = Instant::now();
    second.is_leader().wait_for(|leads| *leads).await.unwrap();
    let key = Key::namespaced(Kind::Lease, Some(NAMESPACE), "gc");
    let lease = store()
        .get(&key)
        .await
        .unwrap()
        .and_then(Lease::from_object)
        .unwrap();
    assert_eq!(lease.spec.holder(), Some("n2"), "after {:?}", began.elapsed());
    stop_second.cancel();
    second.ended().await;
}
