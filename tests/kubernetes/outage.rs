//! A server that refuses, is not there, or does not answer: what is said then, and that nothing is withdrawn.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use culvert_agent::api::{Key, Kind};
use culvert_agent::datastore::kubernetes::{Access, KubernetesStore};
use culvert_agent::datastore::{Datastore as _, DatastoreError};
use futures_util::FutureExt as _;
use harness::ApiServer;
use harness::api_server::{ADMIN, Setup};
use libtest_mimic::Failed;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::contract::{label, labelled, pool, revision};
use crate::servers::{LIMIT, NOBODY, NODE, Server, Told};
use crate::{Outcome, ensure, on_runtime};

type Act = fn(&Server) -> Outcome;

pub(crate) const TRIALS: [(&str, Act); 5] = [
    ("a_refusal_says_what_is_not_allowed_and_by_which_role", forbidden),
    ("a_token_that_is_not_accepted_is_named", unauthorized),
    ("a_server_that_is_not_there_is_named", refused),
    (
        "a_server_without_our_resources_is_told_from_one_without_the_object",
        no_crds,
    ),
    (
        "a_server_that_does_not_answer_is_waited_for_until_a_deadline",
        stalled,
    ),
];

/// Fails unless the words of an error have all of these in them.
fn says(error: Option<DatastoreError>, words: &[&str]) -> Outcome {
    let said = error.map(|error| error.to_string()).unwrap_or_default();
    let missing = words.iter().find(|word| !said.contains(**word));
    ensure(missing.is_none(), || format!("{said:?} does not say {missing:?}"))
}

fn forbidden(server: &Server) -> Outcome {
    let access = server.with(|server| Access::Kubeconfig(server.kubeconfig(NOBODY)))?;
    on_runtime(
        async move {
            let store = KubernetesStore::open(&access, NODE).await?;
            let url = store.server().to_owned();
            let error = store.list(Kind::IpPool).await.err();
            says(
                error,
                &[
                    "list ippools",
                    &url,
                    "403",
                    "nobody",
                    "verb list",
                    "resource ippools",
                    "\"crd.projectcalico.org\"",
                    "ClusterRole culvert",
                ],
            )?;
            let key = Key::new(Kind::Node, "n1");
            let error = store.annotate(&key, &[("a".to_owned(), None)].into()).await.err();
            says(
                error,
                &["patch Node n1", "verb patch", "resource nodes", "API group \"\""],
            )?;
            // A watch says so, and goes on trying.
            let mut told = Told::new(&store, "")?;
            told.until("the problem", |told| told.problem.is_some()).await?;
            ensure(!told.in_sync, || {
                "in sync without having read anything".to_owned()
            })?;
            ensure(
                told.problem.iter().any(|problem| problem.contains("verb list")),
                || format!("{:?}", told.problem),
            )
        }
        .boxed_local(),
    )
}

fn unauthorized(server: &Server) -> Outcome {
    let folder = tempfile::tempdir()?;
    let token = folder.path().join("wrong.token");
    std::fs::write(&token, "wrong")?;
    let right = server.with(|server| (server.kubeconfig(ADMIN), server.token_file(ADMIN)))?;
    let text = std::fs::read_to_string(&right.0)?;
    let text = text.replace(&right.1.display().to_string(), &token.display().to_string());
    let kubeconfig = folder.path().join("kubeconfig");
    std::fs::write(&kubeconfig, text)?;
    on_runtime(
        async move {
            let store = KubernetesStore::open(&Access::Kubeconfig(kubeconfig), NODE).await?;
            let error = store.get(&Key::new(Kind::Node, "n1")).await.err();
            says(
                error,
                &["get Node n1", "401", &token.display().to_string(), "renew it"],
            )?;
            let missing = Access::Kubeconfig(folder.path().join("none"));
            let error = KubernetesStore::open(&missing, NODE).await.err();
            says(error, &[&missing.to_string(), "datastore.kubernetes.kubeconfig"])
        }
        .boxed_local(),
    )
}

fn refused(server: &Server) -> Outcome {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let kubeconfig = server.with(|server| server.kubeconfig_through(ADMIN, free))??;
    on_runtime(
        async move {
            let store = KubernetesStore::open(&Access::Kubeconfig(kubeconfig), NODE).await?;
            let error = store.create(pool("refused")).await.err();
            ensure(matches!(error, Some(DatastoreError::Away { .. })), || {
                format!("{error:?}")
            })?;
            says(
                error,
                &["create IPPool refused", &free.to_string(), "is away", "refused"],
            )
        }
        .boxed_local(),
    )
}

fn no_crds(_: &Server) -> Outcome {
    let server = ApiServer::start(Setup::default())?;
    let kubeconfig = server.kubeconfig(ADMIN);
    on_runtime(
        async move {
            let store = KubernetesStore::open(&Access::Kubeconfig(kubeconfig), NODE).await?;
            let nobody = store.get(&Key::new(Kind::Node, "n1")).await?;
            ensure(nobody.is_none(), || format!("{nobody:?}"))?;
            for error in [
                store.get(&Key::new(Kind::IpPool, "p")).await.err(),
                store.list(Kind::IpPool).await.err(),
                store.create(pool("p")).await.err(),
            ] {
                says(error, &["has no ippools", "charts/culvert/crds"])?;
            }
            // What a cluster may do without is no problem.
            let mut told = Told::new(&store, "")?;
            told.until("a problem", |told| told.problem.is_some()).await?;
            server.kubectl(ADMIN, &["apply", "-f", "-"], &only_what_is_needed()?)?;
            told.until("in sync", |told| told.in_sync && told.problem.is_none())
                .await
        }
        .boxed_local(),
    )
}

/// The CRDs that no cluster can do without.
fn only_what_is_needed() -> Result<String, Failed> {
    use culvert_agent::api::definition;

    let needed = [
        Kind::IpPool,
        Kind::BgpConfiguration,
        Kind::BlockAffinity,
        Kind::IpamBlock,
    ];
    let definitions = needed.into_iter().filter_map(definition);
    let texts = definitions.map(|definition| serde_yaml::to_string(&definition));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("---\n"))
}

fn stalled(server: &Server) -> Outcome {
    let (to, admin) = server.with(|server| (server.address(), server.kubeconfig(ADMIN)))?;
    let proxy = std::net::TcpListener::bind("127.0.0.1:0")?;
    let through = server.with(|server| {
        server
            .kubeconfig_through(ADMIN, proxy.local_addr()?)
            .map_err(Failed::from)
    })??;
    on_runtime(
        async move {
            let (stall, stalled) = watch::channel(false);
            proxy.set_nonblocking(true)?;
            tokio::spawn(pass_on(TcpListener::from_std(proxy)?, to, stalled));
            let direct = KubernetesStore::open(&Access::Kubeconfig(admin), NODE).await?;
            let store = KubernetesStore::open(&Access::Kubeconfig(through), NODE).await?;
            let first = direct.create(pool("stalled")).await?;
            let mut told = Told::in_sync(&store, "stalled").await?;

            stall.send(true)?;
            let began = Instant::now();
            let error = store.get(&first.key()).await.err();
            ensure(matches!(error, Some(DatastoreError::Away { .. })), || {
                format!("{error:?}")
            })?;
            says(error, &["get IPPool stalled", "no answer"])?;
            ensure(began.elapsed() < LIMIT, || {
                format!("it took {:?}", began.elapsed())
            })?;
            let second = direct.update(labelled(first, "2")).await?;
            ensure(told.deleted.is_empty() && told.state.len() == 1, || {
                format!("{:?}", told.deleted)
            })?;

            stall.send(false)?;
            told.until("the change", |told| {
                told.state.values().any(|object| label(object) == "2")
            })
            .await?;
            direct.delete(&second.key(), &revision(&second)).await?;
            told.until("the end", |told| told.state.is_empty()).await
        }
        .boxed_local(),
    )
}

/// Passes connections on to a server, and nothing at all while `stalled`.
async fn pass_on(listener: TcpListener, to: SocketAddr, stalled: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let stalled = stalled.clone();
        tokio::spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else {
                return;
            };
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::join!(
                copy(from_client, to_server, stalled.clone()),
                copy(from_server, to_client, stalled)
            );
        });
    }
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut stalled: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if stalled.wait_for(|stalled| !stalled).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
    // Held for as long as the other side waits: a server that stalls does not hang up.
    let _ = tokio::time::timeout(Duration::from_millis(100), to.shutdown()).await;
}
