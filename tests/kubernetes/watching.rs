//! What a watch of the API server makes of what the server does to it.

use culvert_agent::api::{Key, Kind};
use culvert_agent::datastore::Datastore as _;
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use futures_util::FutureExt as _;
use harness::api_server::ADMIN;

use crate::contract::{label, labelled, pool, revision};
use crate::servers::{NODE, Server, Told, start};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 2] = [
    ("a_server_that_was_killed_costs_a_watch_nothing", killed),
    (
        "a_revision_that_is_forgotten_costs_a_list_and_no_deletion",
        compacted,
    ),
];

/// Changes and deletions while nobody watches are told as the difference, and nothing else is.
fn killed(_: &Server) -> Outcome {
    let mut server = start(&[])?;
    let access = Access::Kubeconfig(server.kubeconfig(ADMIN));
    on_runtime(
        async move {
            let store = KubernetesStore::open(&access, NODE).await?;
            for name in ["stays", "changes", "goes"] {
                store.create(pool(name)).await?;
            }
            let mut told = Told::in_sync(&store, "").await?;
            server.kill()?;
            told.until("the problem", |told| told.problem.is_some()).await?;
            let said = told.problem.clone().unwrap_or_default();
            ensure(said.contains(&server.address().to_string()), || said.clone())?;
            let error = store.get(&Key::new(Kind::IpPool, "stays")).await.err();
            let words = error.map(|error| error.to_string()).unwrap_or_default();
            ensure(
                words.contains("is away") && words.contains(&server.address().to_string()),
                || words.clone(),
            )?;
            ensure(told.deleted.is_empty() && told.state.len() == 3, || {
                format!("{:?}", told.deleted)
            })?;
            let before = told.count;
            server.start_again()?;
            let other = KubernetesStore::open(&access, NODE).await?;
            let changes = other
                .get(&Key::new(Kind::IpPool, "changes"))
                .await?
                .ok_or("it is gone")?;
            other.update(labelled(changes, "2")).await?;
            let goes = other
                .get(&Key::new(Kind::IpPool, "goes"))
                .await?
                .ok_or("it is gone")?;
            other.delete(&goes.key(), &revision(&goes)).await?;
            told.until("the end of the problem, and what happened since", |told| {
                told.problem.is_none()
                    && told.deleted.len() == 1
                    && told.state.values().any(|o| label(o) == "2")
            })
            .await?;
            ensure(told.count == before + 2, || {
                format!("{} updates, {before} before", told.count)
            })
        }
        .boxed_local(),
    )
}

/// Without its cache the server asks etcd, which is made to forget.
fn compacted(_: &Server) -> Outcome {
    let mut server = start(&["--watch-cache=false"])?;
    let access = Access::Kubeconfig(server.kubeconfig(ADMIN));
    on_runtime(
        async move {
            let store = KubernetesStore::open(&access, NODE).await?;
            for name in ["stays", "changes", "goes"] {
                store.create(pool(name)).await?;
            }
            let mut told = Told::in_sync(&store, "").await?;
            let before = told.count;
            server.kill()?;
            told.until("the problem", |told| told.problem.is_some()).await?;
            // The same etcd behind another server, at an address that the watch does not know.
            let unseen = server.beside()?;
            let other = KubernetesStore::open(&Access::Kubeconfig(unseen.kubeconfig(ADMIN)), NODE).await?;
            let changes = other
                .get(&Key::new(Kind::IpPool, "changes"))
                .await?
                .ok_or("it is gone")?;
            other.update(labelled(changes, "2")).await?;
            let goes = other
                .get(&Key::new(Kind::IpPool, "goes"))
                .await?
                .ok_or("it is gone")?;
            other.delete(&goes.key(), &revision(&goes)).await?;
            server.compact()?;
            drop(unseen);
            server.start_again()?;
            told.until("the end of the problem, and what happened since", |told| {
                told.problem.is_none()
                    && told.deleted.len() == 1
                    && told.state.values().any(|o| label(o) == "2")
            })
            .await?;
            ensure(told.count == before + 2, || {
                format!("{} updates, {before} before", told.count)
            })
        }
        .boxed_local(),
    )
}
