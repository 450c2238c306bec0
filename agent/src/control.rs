//! The loop that joins everything, and how it starts and stops.
//!
//! It alone owns what is known (the cluster, the routes learned, the kernel) and what should be. Whatever changes, it
//! takes in all that has happened, computes the plan, tells the speaker, and applies the difference to the kernel.
//! Nothing is touched before the datastore has told all it has, and nothing is removed before the peers have.

mod event_loop;
mod fights;
mod report;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use culvert_bgp::id::{Asn, RouterId};
use culvert_bgp::speaker::SpeakerConfig;
use ipnet::{IpNet, Ipv4Net};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::allocation::Allocator;
use crate::api::{BgpConfiguration, IpPool, Node, Resource};
use crate::claims::{self, Needs};
use crate::cluster::Cluster;
use crate::cni::Attachments;
use crate::config::{Config, Ranged};
use crate::dataplane::{Dataplane, DataplaneError, Netlink};
use crate::datastore::directory::DirectoryStore;
use crate::datastore::{self, Datastore, DatastoreError};
use crate::desired::{Settings, TUNNEL_DEVICE};
use crate::fib::{Change, Desired, PROTOCOL_KERNEL, Route, Snapshot};
use crate::http;
use crate::metrics::Metrics;
use crate::node::{self, AddressError, Announcement};
use crate::reconcile::{Actual, Ours, Removal, diff};
use crate::speaker::{self, Endpoint, SpeakerError};
use crate::status::AgentStatus;

use event_loop::EventLoop;

/// The port of BGP (RFC 4271 §8.2.1.5, IANA).
const BGP_PORT: u16 = 179;

/// Why the agent does not run, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The datastore.
    #[error("datastore: {0}")]
    Datastore(#[from] DatastoreError),
    /// The kernel.
    #[error("kernel: {0}")]
    Dataplane(#[from] DataplaneError),
    /// The advertised address.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// The speaker.
    #[error("{0}")]
    Speaker(#[from] SpeakerError),
    /// The unix socket.
    #[error("{0}")]
    Socket(#[from] http::SocketError),
    /// The metrics' port.
    #[error("cannot listen for HTTP on {address}: {source}; set http.listen to a free address and port")]
    Http {
        /// What was tried.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The signals.
    #[error("cannot wait for signals: {0}")]
    Signals(std::io::Error),
    /// The advertised address is not one that a router can be named by.
    #[error("{address} cannot be this node's address: it is no unicast address; set node.address to another")]
    NotUnicast {
        /// The address.
        address: Ipv4Net,
    },
    /// A task of the agent's own ended.
    #[error("the {task} ended by itself: a fault of the agent; please report it together with the log")]
    TaskEnded {
        /// Which.
        task: &'static str,
    },
}

/// Runs the agent until it is told to stop (SIGTERM or SIGINT). Its routes stay in the kernel: a restart cuts nothing.
///
/// # Errors
/// When something that it cannot run without is missing at the start, or breaks.
pub async fn run(config: &Config) -> Result<(), AgentError> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let node = config.node_name.as_str().to_owned();
    let store: Arc<dyn Datastore> = Arc::new(DirectoryStore::open(&config.datastore.directory)?);
    let dataplane = Netlink::open()?;
    // Subscribed before the dump: what happens in between is told.
    let kernel_events = dataplane.events()?;
    let kernel = dataplane.dump().await?;

    let (status, status_reader) = watch::channel(Arc::new(AgentStatus::starting(&node)));
    let metrics = Metrics::register()?;
    let allocator = Allocator::new(Arc::clone(&store), node.clone());
    serve_http(config, &metrics, status_reader.clone(), &stop).await?;
    serve_socket(&config.socket, &allocator, status_reader, &stop)?;

    let identity = Identity::find(config, store.as_ref(), &kernel).await?;
    let announcement = Announcement {
        address: Some(identity.address),
        as_number: identity.own_asn,
        tunnel_address: None,
    };
    node::publish(&store, &node, &announcement).await?;

    let settings = Settings {
        node: node.clone(),
        address: identity.address.addr(),
        protocol: route_protocol(config),
        tunnel_mtu: config.tunnel.mtu.map(Ranged::get),
    };
    let speaker = start_speaker(config, &identity, &kernel, settings.protocol)?;
    let (needs, needs_reader) = watch::channel(Needs::default());
    let claims = tokio::spawn(claims::keep(Arc::clone(&store), allocator, node, needs_reader));

    let updates = store.watch()?;
    let event_loop = EventLoop::new(
        settings,
        identity.asn,
        Actual::new(kernel),
        dataplane,
        speaker,
        needs,
        status,
        metrics,
    );
    let ended = event_loop.run(updates, kernel_events, &stop).await;
    claims.abort();
    stop.cancel();
    ended
}

/// Removes all that the agent ever put into the kernel: routes with its protocol number, and what it gave to the tunnel
/// device. Addresses stay assigned in the datastore: pods may still have them.
///
/// # Errors
/// When the kernel refuses.
pub async fn cleanup(config: &Config) -> Result<(), AgentError> {
    let dataplane = Netlink::open()?;
    let actual = Actual::new(dataplane.dump().await?);
    let ours = Ours {
        protocol: route_protocol(config),
    };
    let mut changes = diff(&Desired::default(), &actual, &ours, Removal::Now);
    let used_by_others = |link: u32| {
        let through = |route: &&Route| route.next_hops.iter().any(|hop| hop.link == link);
        let mut others = actual
            .routes()
            .filter(|route| ![ours.protocol, PROTOCOL_KERNEL].contains(&route.protocol));
        others.any(|route| through(&route))
    };
    if let Some(link) = actual
        .link_named(TUNNEL_DEVICE)
        .filter(|link| !used_by_others(link.index))
    {
        changes.extend(actual.addresses_of(link.index).map(Change::DeleteAddress));
        changes.push(Change::SetLinkDown { link: link.index });
    }
    info!(changes = changes.len(), "removing what is ours from the kernel");
    for result in dataplane.apply(&changes).await {
        result?;
    }
    Ok(())
}

/// How this node is known to the others.
struct Identity {
    address: Ipv4Net,
    router_id: RouterId,
    /// Its AS number.
    asn: Asn,
    /// The AS number that the configuration gives it for its own.
    own_asn: Option<Asn>,
    port: u16,
}

impl Identity {
    async fn find(config: &Config, store: &dyn Datastore, kernel: &Snapshot) -> Result<Self, AgentError> {
        let name = config.node_name.as_str();
        let node: Node = datastore::get(store, name)
            .await?
            .unwrap_or_else(|| Node::named(name));
        let pools: Vec<IpPool> = datastore::list(store).await?;
        let pools: Vec<Ipv4Net> = pools
            .iter()
            .filter_map(|pool| match pool.spec.cidr {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            })
            .collect();
        let address = node::advertised_address(config.node.address, &node, kernel, &pools)?;
        let unicast = !address.addr().is_multicast() && !address.addr().is_broadcast();
        let router_id = RouterId::new(address.addr()).filter(|_| unicast);
        let router_id = router_id.ok_or(AgentError::NotUnicast { address })?;
        let mut cluster = Cluster::default();
        let bgp: Option<BgpConfiguration> = datastore::get(store, "default").await?;
        if let Some(bgp) = bgp {
            cluster.upsert(&bgp.into_object());
        }
        let own_asn = config.node.as_number.and_then(|number| Asn::new(number.get()));
        let published = node::published_as_number(&node);
        let asn = own_asn
            .or(published)
            .unwrap_or_else(|| cluster.default_as_number());
        let configured = config
            .bgp
            .listen_port
            .and_then(|port| u16::try_from(port.get()).ok());
        let port = configured.or(cluster.listen_port()).unwrap_or(BGP_PORT);
        info!(%address, %asn, port, "this node");
        Ok(Self {
            address,
            router_id,
            asn,
            own_asn,
            port,
        })
    }
}

fn route_protocol(config: &Config) -> u8 {
    // The configuration allows 5 to 255.
    u8::try_from(config.routes.protocol.get()).unwrap_or(u8::MAX)
}

fn start_speaker(
    config: &Config,
    identity: &Identity,
    kernel: &Snapshot,
    protocol: u8,
) -> Result<speaker::Running, SpeakerError> {
    // RFC 4724 §4.1: the routes of a former run are what "restarted" means to the peers.
    let restarted = kernel.routes.iter().any(|route| route.protocol == protocol);
    let speaker = SpeakerConfig {
        asn: identity.asn,
        router_id: identity.router_id,
        local_address: identity.address.addr(),
        hold_time: config.bgp.hold_time.get(),
        connect_retry: Duration::from_secs(u64::from(config.bgp.connect_retry.get())),
        restart_time: u16::try_from(config.bgp.restart_time.get()).unwrap_or(0),
        restarted,
        // Nodes must not jitter in step: their addresses differ, and so do their starts.
        seed: u64::from(u32::from(identity.address.addr())) ^ u64::from(std::process::id()).rotate_left(32),
    };
    speaker::start(
        speaker,
        Endpoint {
            local_address: identity.address.addr(),
            port: identity.port,
        },
    )
}

async fn serve_http(
    config: &Config,
    metrics: &Metrics,
    status: watch::Receiver<Arc<AgentStatus>>,
    stop: &CancellationToken,
) -> Result<(), AgentError> {
    let address = config.http.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Http { address, source })?;
    let (metrics, stop) = (metrics.clone(), stop.clone());
    tokio::spawn(async move {
        if let Err(error) = http::serve(listener, metrics, status, stop).await {
            warn!(%error, "metrics and health are no longer served");
        }
    });
    Ok(())
}

fn serve_socket(
    path: &Path,
    allocator: &Allocator,
    status: watch::Receiver<Arc<AgentStatus>>,
    stop: &CancellationToken,
) -> Result<(), AgentError> {
    let listener = http::bind_socket(path)?;
    let attachments = Arc::new(Attachments::new(Arc::new(allocator.clone()), status.clone()));
    let api = http::SocketApi { status, attachments };
    let stop = stop.clone();
    tokio::spawn(async move {
        if let Err(error) = http::serve_socket(listener, api, stop).await {
            warn!(%error, "the agent's socket is no longer served");
        }
    });
    Ok(())
}

fn stop_on_signals(stop: &CancellationToken) -> Result<(), AgentError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(AgentError::Signals)?;
    let stop = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "stopping; the routes stay in the kernel");
        stop.cancel();
    });
    Ok(())
}
