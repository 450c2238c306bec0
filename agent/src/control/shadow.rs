//! The agent in the shadow of another: it reads, computes everything, says what it would change, and writes nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::identity::Identity;
use super::{AgentError, serve_http, settings_of, stop_on_signals};
use crate::api::Kind;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::dataplane::{Dataplane, Netlink};
use crate::datastore::{self, Datastore, MissingFolder};
use crate::http::Questions;
use crate::metrics::Metrics;
use crate::reconcile::Actual;
use crate::shadow::{self, Shadow};
use crate::status::{AgentStatus, DatastoreStatus, RouteStatus};

/// How often it looks again: often enough for one who changes something and looks.
const INTERVAL: Duration = Duration::from_secs(30);

/// What a plan is made of. Endpoints and Secrets change no route, but which services are told to peers, and how.
const KINDS: [Kind; 8] = [
    Kind::Node,
    Kind::IpPool,
    Kind::BlockAffinity,
    Kind::IpamBlock,
    Kind::BgpConfiguration,
    Kind::BgpPeer,
    Kind::BgpFilter,
    Kind::Service,
];

/// Looks once at the datastore and the kernel, and says what an agent would change.
///
/// # Errors
/// When one of the two cannot be read, or it is not clear which address this node would be known by.
pub async fn look(config: &Config) -> Result<Shadow, AgentError> {
    let location = config.datastore.location();
    let (node, secrets) = (config.node_name.as_str(), &config.bgp.secret_namespace);
    let store = datastore::open(&location, node, secrets, MissingFolder::Refuse).await?;
    of(config, store.as_ref()).await
}

async fn of(config: &Config, store: &dyn Datastore) -> Result<Shadow, AgentError> {
    let kernel = Netlink::open()?.dump().await?;
    let patience = Duration::from_secs(u64::from(config.datastore.sync_timeout.get()));
    let identity = Identity::find(config, store, &kernel, None, Instant::now() + patience).await?;
    let settings = settings_of(config, &identity);
    let mut cluster = Cluster::default();
    for kind in KINDS {
        for object in store.list(kind).await? {
            cluster.upsert(&object);
        }
    }
    Ok(shadow::compare(&settings, &cluster, &Actual::new(kernel)))
}

/// Looks until it is told to stop, and says in the log what has changed since it last looked. Ready it is while every route
/// that it would want is in the kernel, whoever wrote it.
///
/// # Errors
/// When metrics and health cannot be served.
pub async fn run(config: &Config) -> Result<(), AgentError> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let node = config.node_name.as_str();
    let (status, reader) = watch::channel(Arc::new(AgentStatus::starting(node)));
    let questions = Questions::about_status(reader.clone()).going_by(Arc::new(config.clone()));
    serve_http(config, &Metrics::register()?, reader, (questions, None), &stop).await?;
    info!(
        node,
        "in the shadow: nothing is written, neither to the kernel nor to the datastore"
    );
    let mut said: Option<Result<String, String>> = None;
    loop {
        let seen = look(config).await;
        let former = Arc::clone(&status.borrow());
        status.send_replace(Arc::new(told(&former, &seen)));
        let text = match &seen {
            Ok(shadow) => Ok(shadow.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if said.as_ref() != Some(&text) {
            match &text {
                Ok(text) => text.lines().for_each(|line| info!("{line}")),
                Err(error) => warn!(%error, "cannot tell what would be changed"),
            }
            said = Some(text);
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(INTERVAL) => {}
        }
    }
}

fn told(former: &AgentStatus, seen: &Result<Shadow, AgentError>) -> AgentStatus {
    match seen {
        Ok(shadow) => AgentStatus {
            address: Some(shadow.address.into()),
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            routes: RouteStatus {
                desired: shadow.wanted,
                programmed: shadow.there,
                ..RouteStatus::default()
            },
            ..former.clone()
        },
        Err(error) => AgentStatus {
            datastore: DatastoreStatus {
                problem: Some(error.to_string()),
                ..former.datastore.clone()
            },
            ..former.clone()
        },
    }
}
