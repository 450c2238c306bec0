//! The loop that joins everything, and how it starts and stops.
//!
//! It alone owns what is known (the cluster, the routes learned, the kernel) and what should be. Whatever changes, it
//! takes in all that has happened, computes the plan, tells the speaker, and applies the difference to the kernel.
//! Nothing is touched before the datastore has told all it has, and nothing is removed before the peers have.

mod answers;
mod availability;
mod configuration;
mod event_loop;
mod fights;
mod identity;
mod intake;
mod measures;
mod pool_modes;
mod renumbering;
mod repairs;
mod report;
mod said;
pub mod shadow;
mod sources;
mod told;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use culvert_bgp::speaker::SpeakerConfig;
use ipnet::Ipv4Net;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::allocation::Allocator;
use crate::claims::{self, Needs};
use crate::cni::Attachments;
use crate::collector;
use crate::config::{Config, Ranged};
use crate::dataplane::{Dataplane, DataplaneError, Netlink, Nftables};
use crate::datastore::deferred::Deferred;
use crate::datastore::last_good::{LastGood, LastGoodCopy};
use crate::datastore::{self, Datastore, DatastoreError, MissingFolder};
use crate::desired::{Settings, TUNNEL_DEVICE};
use crate::events;
use crate::fib::{Change, Desired, PROTOCOL_KERNEL, PROTOCOLS_OF_CALICO, Route, Snapshot};
use crate::firewall;
use crate::http::{self, Confirmations, Questions};
use crate::inquiry::{Inquiries, Inquiry};
use crate::metrics::Metrics;
use crate::node::{self, AddressError, Missing};
use crate::peering::{PathTerms, Speaking};
use crate::reconcile::{Actual, Ours, Removal, diff};
use crate::speaker::{self, SpeakerError};
use crate::status::AgentStatus;
use crate::trace::run::Tracer;

use event_loop::{Ended, EventLoop};
use identity::Identity;
use intake::{Intake, Terms};
use renumbering::Renumbering;

/// How long the last good copy may take to be written when the agent stops.
const SAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a removal waits for the agent of the node to end.
const AGENT_TIMEOUT: Duration = Duration::from_secs(60);

/// How often it looks whether the agent has ended.
const AGENT_INTERVAL: Duration = Duration::from_millis(200);

/// How long the lease of garbage collection may take to be given back when the agent stops.
const GIVE_BACK_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// An agent runs, which would put back what is removed.
    #[error("the agent that listens on {} still runs after {} s, and would put everything back: stop it first", socket.display(), AGENT_TIMEOUT.as_secs())]
    StillRuns {
        /// Its socket.
        socket: PathBuf,
    },
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

/// Runs the agent until it is told to stop (SIGTERM or SIGINT). Its routes stay in the kernel: a restart cuts nothing. When
/// `config_file`, which `config` was read from, says something else, that is told.
///
/// # Errors
/// When something that it cannot run without is missing at the start, or breaks.
pub async fn run(config: &Config, config_file: Option<&Path>) -> Result<(), AgentError> {
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let node = config.node_name.as_str().to_owned();
    let file = last_good_of(config);
    let mut copy = file.read();
    let (status, status_reader) = watch::channel(Arc::new(AgentStatus::starting(&node)));
    let metrics = Metrics::register()?;
    let store = Arc::new(datastore_of(config, copy.is_some()).measured(metrics.clone()));
    let allocator = Allocator::measured(Arc::clone(&store) as _, node, metrics.clone());
    let (inquiries, mut asked) = Inquiries::channel();
    let (answers, tracer) = answers_of(config, &inquiries, &status_reader, &store);
    serve_http(config, &metrics, status_reader.clone(), answers, &stop).await?;
    let (confirmations, mut confirmed) = Confirmations::channel();
    let (tell, told) = events::channel();
    if let Some(file) = config_file {
        let (file, config) = (file.to_owned(), config.clone());
        tokio::spawn(configuration::watch(file, config, tell.clone()));
    }
    let attachments = Attachments::new(
        Arc::new(allocator.clone()),
        Arc::clone(&store) as _,
        status_reader.clone(),
    )
    .telling(tell);
    let api = http::SocketApi {
        status: status_reader.clone(),
        attachments: Arc::new(attachments),
        confirmations,
        inquiries,
        configuration: Arc::new(config.clone()),
        tracer: Some(tracer),
        metrics: metrics.clone(),
    };
    serve_socket(&config.socket, api, &stop)?;
    let told_of_node = tell_of_node(&(Arc::clone(&store) as _), config, status_reader.clone(), told);
    let collector = start_collector(config, &store, status_reader, &metrics, &stop);
    let agent = Agent {
        config,
        store,
        file,
        allocator,
        status,
        metrics,
        stop,
    };
    loop {
        let (ended, unheard) = agent.be_known(copy, confirmed, &mut asked).await?;
        let Ended::Renumbered(address) = ended else {
            told_of_node.abort();
            // It gives its lease back, so that another need not wait until that runs out.
            let _ = timeout(GIVE_BACK_TIMEOUT, collector).await;
            return Ok(());
        };
        warn!(%address, "this node has another address: beginning anew under it; the routes stay in the kernel");
        confirmed = unheard.ok_or(AgentError::TaskEnded {
            task: "watch of the datastore",
        })?;
        copy = agent.file.read();
    }
}

/// What outlives a change of this node's address.
struct Agent<'a> {
    config: &'a Config,
    store: Arc<Deferred>,
    file: LastGood,
    allocator: Allocator,
    status: watch::Sender<Arc<AgentStatus>>,
    metrics: Metrics,
    stop: CancellationToken,
}

/// Whoever waits to have withdrawals confirmed.
type Unheard = mpsc::Receiver<oneshot::Sender<usize>>;

impl Agent<'_> {
    /// Finds the address that this node is known by, and runs until it is told to stop or that address changes.
    async fn be_known(
        &self,
        copy: Option<LastGoodCopy>,
        confirmed: Unheard,
        asked: &mut mpsc::Receiver<Inquiry>,
    ) -> Result<(Ended, Option<Unheard>), AgentError> {
        let config = self.config;
        let store: Arc<dyn Datastore> = Arc::clone(&self.store) as _;
        let node = config.node_name.as_str().to_owned();
        let patience = Duration::from_secs(u64::from(config.datastore.sync_timeout.get()));
        let deadline = Instant::now() + patience;
        let dataplane = Netlink::open()?;
        // Subscribed before the dump: what happens in between is told.
        let kernel_events = dataplane.events()?;
        let kernel = dataplane.dump().await?;

        let identity = Identity::find(config, store.as_ref(), &kernel, copy.as_ref(), deadline).await?;
        let announcement = identity.announcement();
        // With a last good copy at hand this may wait until the datastore is back: the claims see to it.
        if copy.is_none() {
            node::publish(&store, &node, &announcement, Missing::Create).await?;
        }

        let settings = settings_of(config, &identity);
        let speaker = start_speaker(config, &identity, &kernel, settings.protocol, &self.metrics)?;
        let (needs, needs_reader) = watch::channel(Needs::default());
        let allocator = self.allocator.clone();
        let claims = tokio::spawn(claims::keep(store, allocator, node, announcement, needs_reader));

        let terms = terms_of(config, &settings, (deadline, patience));
        let deferred = Arc::clone(&self.store);
        let (intake, outlets) = Intake::new(terms, deferred, self.file.clone(), copy.as_ref(), confirmed);
        // Stopped after the loop: to that the end of the updates would be a fault.
        let stop_intake = CancellationToken::new();
        let intake = tokio::spawn(intake.run(stop_intake.clone()));
        let firewall = firewall::start(config.filter.unknown_tunnel_peers, self.metrics.clone());
        let event_loop = EventLoop::new(
            settings,
            identity.asn,
            Renumbering::new(&config.node),
            Actual::new(kernel),
            dataplane,
            speaker,
            needs,
            firewall,
            self.status.clone(),
            self.metrics.clone(),
        );
        let ended = event_loop.run(outlets, kernel_events, asked, &self.stop).await;
        claims.abort();
        stop_intake.cancel();
        // It writes the last good copy; should that take longer, the former one stands.
        let unheard = timeout(SAVE_TIMEOUT, intake).await;
        Ok((ended?, unheard.ok().and_then(Result::ok)))
    }
}

/// Tells the cluster what it should know of the node: that its network is there, and what people must see to.
fn tell_of_node(
    store: &Arc<dyn Datastore>,
    config: &Config,
    status: watch::Receiver<Arc<AgentStatus>>,
    told: mpsc::Receiver<events::Happening>,
) -> JoinHandle<()> {
    let node = config.node_name.as_str().to_owned();
    let available = availability::keep(Arc::clone(store), node.clone(), status.clone());
    let events = events::keep(Arc::clone(store), node, status, told);
    tokio::spawn(async move {
        tokio::join!(available, events);
    })
}

fn settings_of(config: &Config, identity: &Identity) -> Settings {
    let routes = &config.routes;
    Settings {
        node: config.node_name.as_str().to_owned(),
        address: identity.address.addr(),
        speaking: Speaking {
            asn: identity.asn,
            address_v6: identity.address_v6.map(|net| net.addr()),
            port: identity.port,
            secret_namespace: config.bgp.secret_namespace.clone(),
            accepts_default: config.bgp.accept_default_route.0,
            long_lived_stale_time: config.bgp.long_lived_stale_time.get(),
            paths: PathTerms {
                add_path: config.bgp.add_path,
                max_prefixes: config.bgp.max_prefixes.get(),
            },
        },
        protocol: route_protocol(config),
        tunnel_mtu: config.tunnel.mtu.map(Ranged::get),
        path_mtu_discovery: config.tunnel.path_mtu_discovery,
        pin_table: routes.source_pin.0.then_some(routes.pin_table.get()),
    }
}

fn start_collector(
    config: &Config,
    store: &Arc<Deferred>,
    status: watch::Receiver<Arc<AgentStatus>>,
    metrics: &Metrics,
    stop: &CancellationToken,
) -> JoinHandle<()> {
    let node = config.node_name.as_str().to_owned();
    let store = Arc::clone(store) as _;
    let config = &config.garbage_collection;
    let terms = collector::Terms {
        mode: config.mode,
        interval: Duration::from_secs(u64::from(config.interval.get())),
        grace_seconds: u64::from(config.grace_period.get()),
    };
    collector::start(store, node, terms, status, metrics.clone(), stop.clone())
}

fn terms_of(config: &Config, settings: &Settings, patience: (Instant, Duration)) -> Terms {
    Terms {
        node: settings.node.clone(),
        address: settings.address,
        address_is_configured: config.node.address.is_some(),
        max_vanish_share: config.safety.max_vanish_share.get(),
        patience,
    }
}

/// Where the resources live. With a last good copy at hand a folder that is gone is not made anew: it may yet come back.
fn datastore_of(config: &Config, has_copy: bool) -> Deferred {
    let (location, node) = (config.datastore.location(), config.node_name.as_str().to_owned());
    let secrets = config.bgp.secret_namespace.clone();
    let missing = if has_copy {
        MissingFolder::Refuse
    } else {
        MissingFolder::Make
    };
    Deferred::new(move || {
        let (location, node, secrets) = (location.clone(), node.clone(), secrets.clone());
        Box::pin(async move { datastore::open(&location, &node, &secrets, missing).await })
    })
}

fn last_good_of(config: &Config) -> LastGood {
    let datastore = config.datastore.location().to_string();
    LastGood::new(&config.state.directory, config.node_name.as_str(), &datastore)
}

/// Removes all that the agent ever put into the kernel: routes with its protocol number, what it gave to the tunnel
/// device, and its nftables table. Addresses stay assigned in the datastore: pods may still have them. An agent that is
/// about to end is waited for.
///
/// # Errors
/// When the agent goes on, or the kernel refuses.
pub async fn cleanup(config: &Config) -> Result<(), AgentError> {
    let deadline = Instant::now() + AGENT_TIMEOUT;
    while http::somebody_listens(&config.socket) {
        if Instant::now() >= deadline {
            return Err(AgentError::StillRuns {
                socket: config.socket.clone(),
            });
        }
        tokio::time::sleep(AGENT_INTERVAL).await;
    }
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
    // Where there is no nf_tables there is nothing to remove.
    if let Ok(mut nftables) = Nftables::open()
        && let Err(error) = nftables.remove().await
    {
        warn!(%error, "the packet filter stays");
    }
    Ok(())
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
    metrics: &Metrics,
) -> Result<speaker::Running, SpeakerError> {
    // RFC 4724 §4.1: the routes of a former run are what "restarted" means to the peers; so are those of the daemon whose place
    // this one takes. Peers that were told otherwise would drop this node's blocks until they are told them anew.
    let is_kept = |of: u8| of == protocol || PROTOCOLS_OF_CALICO.contains(&of);
    let restarted = kernel.routes.iter().any(|route| is_kept(route.protocol));
    let speaker = SpeakerConfig {
        hold_time: config.bgp.hold_time.get(),
        connect_retry: Duration::from_secs(u64::from(config.bgp.connect_retry.get())),
        restart_time: u16::try_from(config.bgp.restart_time.get()).unwrap_or(0),
        restarted,
        // Nodes must not jitter in step: their addresses differ, and so do their starts.
        seed: u64::from(u32::from(identity.address.addr())) ^ u64::from(std::process::id()).rotate_left(32),
        local_address_v6: identity.address_v6.map(|net| net.addr()),
        multipath: usize::try_from(config.bgp.multipath.get()).unwrap_or(1),
        external_needs_policy: config.bgp.external_needs_policy.0,
        ..SpeakerConfig::new(identity.asn, identity.router_id, identity.address.addr())
    };
    speaker::start(speaker, identity.endpoint.clone(), metrics.clone())
}

/// Who answers questions, and who follows packets for the agents of other nodes; the latter also for who asks this one.
type Answers = (Questions, Option<Tracer>);

fn answers_of(
    config: &Config,
    inquiries: &Inquiries,
    status: &watch::Receiver<Arc<AgentStatus>>,
    store: &Arc<Deferred>,
) -> (Answers, Tracer) {
    let port = config.http.listen.port();
    let tracer = Tracer::new(inquiries.clone(), status.clone(), Arc::clone(store) as _, port);
    let questions = Questions::new(status.clone(), inquiries.clone()).going_by(Arc::new(config.clone()));
    ((questions, Some(tracer.clone())), tracer)
}

async fn serve_http(
    config: &Config,
    metrics: &Metrics,
    status: watch::Receiver<Arc<AgentStatus>>,
    (questions, tracer): Answers,
    stop: &CancellationToken,
) -> Result<(), AgentError> {
    let address = config.http.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Http { address, source })?;
    let (metrics, stop) = (metrics.clone(), stop.clone());
    let all_peers = config.http.peer_metrics.0;
    tokio::spawn(async move {
        if let Err(error) = http::serve(listener, metrics, all_peers, status, questions, tracer, stop).await {
            warn!(%error, "metrics, health and answers are no longer served");
        }
    });
    Ok(())
}

fn serve_socket(path: &Path, api: http::SocketApi, stop: &CancellationToken) -> Result<(), AgentError> {
    let listener = http::bind_socket(path)?;
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
