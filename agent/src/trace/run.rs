//! Sends a few marked packets, has both nodes count them, and asks both doctors where some are missing.
//!
//! Other nodes may ask this one to count, for a few seconds and a few at once. Nobody else may have anything sent: only who
//! opens the agent's socket, or the agent of a node that somebody asked there. All that is sent goes to an address of a pod
//! or of a node's tunnel, twenty-one packets at most for a question.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{End, Seen, Sent, Trace, Way};
use crate::api::Kind as ObjectKind;
use crate::api::{Key, Object};
use crate::cni::Problem;
use crate::dataplane::probe::{Capture, Kind, Sender, Sightings, Token};
use crate::datastore::Datastore;
use crate::doctor::{Check, Finding, Host};
use crate::http::{self, Question};
use crate::inquiry::Inquiries;
use crate::status::AgentStatus;

/// Packets of each size.
const COUNT: u16 = 3;

/// Octets of the small ones.
const SMALL: u16 = 64;

/// Sizes that are tried where the large ones do not come through, in octets: those of usual tunnels in usual networks.
const SIZES: [u16; 9] = [1460, 1440, 1430, 1410, 1390, 1340, 1280, 1180, 576];

/// How long the packets may take there and back.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How often it is looked whether all are there.
const INTERVAL: Duration = Duration::from_millis(50);

/// How long another agent may take for an answer.
const ANSWER: Duration = Duration::from_secs(4);

/// How long a TCP connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);

/// So many counts for other nodes go on at once, each for so long at most.
const WATCHES: usize = 4;
const WATCH: Duration = Duration::from_secs(8);

/// So many traces of this agent's go on at once.
const TRACES: usize = 2;

/// So many ways to other nodes are probed for one question.
const MOST_WAYS: usize = 16;

/// A pod, by its name or its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An address.
    Address(Ipv4Addr),
    /// Namespace and name.
    Pod(String, String),
}

/// It is neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither an IPv4 address such as 10.65.17.70 nor a pod such as default/web-0")]
pub struct NoTarget(String);

impl std::str::FromStr for Target {
    type Err = NoTarget;

    fn from_str(text: &str) -> Result<Self, NoTarget> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Pod(namespace.to_owned(), name.to_owned()))
            }
            _ => Err(NoTarget(text.to_owned())),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Pod(namespace, name) => write!(f, "{namespace}/{name}"),
        }
    }
}

/// A count for another node, which may be ended.
struct Watch {
    stop: oneshot::Sender<()>,
    counting: JoinHandle<Option<Sightings>>,
}

/// Traces, and counts for those of other nodes.
#[derive(Clone)]
pub struct Tracer {
    inquiries: Inquiries,
    status: watch::Receiver<Arc<AgentStatus>>,
    store: Arc<dyn Datastore>,
    /// The port on which the agents of the other nodes answer.
    port: u16,
    watches: Arc<Mutex<BTreeMap<Token, Watch>>>,
    traces: Arc<Semaphore>,
}

fn refused(reason: String) -> Problem {
    Problem { reason, retry: false }
}

fn busy(reason: String) -> Problem {
    Problem { reason, retry: true }
}

impl Tracer {
    /// Asks the loop by `inquiries`, names of pods in `store`, and other agents on their `port`.
    #[must_use]
    pub fn new(
        inquiries: Inquiries,
        status: watch::Receiver<Arc<AgentStatus>>,
        store: Arc<dyn Datastore>,
        port: u16,
    ) -> Self {
        Self {
            inquiries,
            status,
            store,
            port,
            watches: Arc::default(),
            traces: Arc::new(Semaphore::new(TRACES)),
        }
    }

    /// Whether a node of the cluster, or this host, has the address.
    pub async fn knows(&self, caller: IpAddr) -> bool {
        let caller = caller.to_canonical();
        caller.is_loopback() || self.inquiries.is_of_node(caller).await.unwrap_or(false)
    }

    /// Traces the way between two pods, from the node of the first; `asked_by_node` tells that another agent asks.
    ///
    /// # Errors
    /// When one of them is nobody's, or the node of the first cannot be asked.
    pub async fn trace(&self, from: &Target, to: &Target, asked_by_node: bool) -> Result<Trace, Problem> {
        let (from, to) = (self.resolve(from).await?, self.resolve(to).await?);
        let way = self.inquiries.locate(from, to).await?;
        if way.from.node != self.status.borrow().node {
            if asked_by_node {
                return Err(refused(format!(
                    "{from} is on node {} as this node sees it, which is {}",
                    way.from.node,
                    self.status.borrow().node
                )));
            }
            let target = format!("/v1/probe/trace/{from}/{to}");
            return self.other(&way.from, &target).await.map_err(busy);
        }
        self.along(&way).await
    }

    /// Sends along a way from this node, and judges what both nodes have seen.
    async fn along(&self, way: &Way) -> Result<Trace, Problem> {
        let Ok(_place) = self.traces.try_acquire() else {
            return Err(busy(format!(
                "{TRACES} traces go on already: ask again in a moment"
            )));
        };
        let token: Token = fastrand::u64(..);
        let has_far = way.from.node != way.to.node;
        let begun: Result<(), String> = if has_far {
            self.other(&way.to, &format!("/v1/probe/begin/{token}")).await
        } else {
            Ok(())
        };
        let no_raw = |error: std::io::Error| {
            refused(format!(
                "cannot send or count packets: {error}; give the agent CAP_NET_RAW"
            ))
        };
        let mut capture = Capture::begin(token).map_err(no_raw)?;
        let sender = Sender::new(token, way.from.address, way.to.address).map_err(no_raw)?;
        let own = match &way.from.link {
            Some(_) => Some(Sender::new(token, way.to.address, way.from.address).map_err(no_raw)?),
            None => None,
        };
        let sent = send(way, &sender, own.as_ref(), &mut capture).await;
        let near = Seen::new(capture.end(), way.route.clone());
        let far = match begun {
            Ok(()) if has_far => {
                let end = format!("/v1/probe/end/{token}/{}", way.from.address);
                self.other::<Seen>(&way.to, &end).await
            }
            Ok(()) => Ok(Seen::default()),
            Err(reason) => Err(reason),
        };
        let trace = Trace::new(way, sent.clone(), &near, far.as_ref().map_err(Clone::clone));
        if trace.loss.is_none() {
            return Ok(trace);
        }
        // Where something is missing, the doctors may know why.
        let near = Seen {
            findings: self.doctor().await?,
            ..near
        };
        let far = match far {
            Ok(far) if has_far => Ok(Seen {
                findings: self.doctor_of(&way.to).await,
                ..far
            }),
            far => far,
        };
        Ok(Trace::new(way, sent, &near, far.as_ref().map_err(Clone::clone)))
    }

    async fn doctor(&self) -> Result<Vec<Finding>, Problem> {
        let status = Arc::clone(&self.status.borrow());
        let host = Host::look(status.peers.iter().map(|peer| peer.address)).await;
        Ok(self.inquiries.examine(host).await?.findings)
    }

    async fn doctor_of(&self, end: &End) -> Vec<Finding> {
        let report = self
            .other::<crate::doctor::Report>(end, &Question::Doctor.target())
            .await;
        report.map(|report| report.findings).unwrap_or_default()
    }

    /// Asks the agent of a node.
    async fn other<T: DeserializeOwned>(&self, end: &End, target: &str) -> Result<T, String> {
        let address = SocketAddr::from((end.node_address, self.port));
        match timeout(ANSWER, http::ask(address, target)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!(
                "the agent at {address} has not answered within {} s",
                ANSWER.as_secs()
            )),
        }
    }

    /// The address of a pod.
    async fn resolve(&self, target: &Target) -> Result<Ipv4Addr, Problem> {
        let (namespace, name) = match target {
            Target::Address(address) => return Ok(*address),
            Target::Pod(namespace, name) => (namespace, name),
        };
        let failed =
            |error: crate::datastore::DatastoreError| busy(format!("cannot look for {target}: {error}"));
        let key = Key {
            kind: ObjectKind::Pod,
            namespace: Some(namespace.clone()),
            name: name.clone(),
        };
        if let Ok(Some(Object::Pod(pod))) = self.store.get(&key).await
            && let Some(address) = pod.status.pod_ip.as_ref().and_then(|text| text.parse().ok())
        {
            return Ok(address);
        }
        // Who has an address is written beside it in its block.
        let blocks = self.store.list(ObjectKind::IpamBlock).await.map_err(failed)?;
        let of_pod = blocks.iter().find_map(|object| {
            let Object::IpamBlock(block) = object else {
                return None;
            };
            let mut taken = block.spec.taken();
            taken.find_map(|taken| {
                let is = |key: &str, value: &str| taken.attribute.value(key) == Some(value);
                match taken.address {
                    IpAddr::V4(address) if is("namespace", namespace) && is("pod", name) => Some(address),
                    _ => None,
                }
            })
        });
        of_pod.ok_or_else(|| {
            refused(format!(
                "no pod {target} has an IPv4 address of a pool; name it as namespace/name, or by its address"
            ))
        })
    }

    /// Begins to count for another node.
    ///
    /// # Errors
    /// When too many are counted already, or packets cannot be captured.
    pub async fn begin(&self, token: Token) -> Result<(), Problem> {
        let mut watches = self.watches.lock().await;
        watches.retain(|_, watch| !watch.counting.is_finished());
        if watches.len() >= WATCHES {
            return Err(busy(format!(
                "{WATCHES} counts go on already: ask again in a moment"
            )));
        }
        let mut capture = Capture::begin(token).map_err(|error| {
            refused(format!(
                "cannot count packets: {error}; give the agent CAP_NET_RAW"
            ))
        })?;
        let (stop, stopped) = oneshot::channel();
        let counting = tokio::spawn(async move {
            tokio::select! {
                _ = capture.count() => None,
                stopped = stopped => stopped.ok().map(|()| capture.end()),
                // Nobody asked for them.
                () = sleep(WATCH) => None,
            }
        });
        watches.insert(token, Watch { stop, counting });
        Ok(())
    }

    /// What was counted for another node, and the route to its address.
    ///
    /// # Errors
    /// When nothing is counted under that token (any more).
    pub async fn end(&self, token: Token, to: Ipv4Addr) -> Result<Seen, Problem> {
        let watch = self.watches.lock().await.remove(&token);
        let over = || refused("nothing is counted under that token, or not any more".to_owned());
        let watch = watch.ok_or_else(over)?;
        let _ = watch.stop.send(());
        let sightings = watch.counting.await.ok().flatten().ok_or_else(over)?;
        let explained = self.inquiries.explain(IpAddr::V4(to).into()).await?;
        Ok(Seen::new(sightings, explained.kernel))
    }

    /// Whether the speaker of the caller can be reached from here.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn connect_back(&self, caller: IpAddr) -> Result<Connected, Problem> {
        let caller = caller.to_canonical();
        let port = self.inquiries.neighbours().await?.bgp_port;
        let own = self.status.borrow().address;
        Ok(connect(own, SocketAddr::new(caller, port)).await)
    }

    /// Probes the ways to other nodes: the tunnel there and back, and TCP to the speaker where there is no session.
    ///
    /// # Errors
    /// When the agent is about to end, or packets cannot be sent.
    pub async fn ways(&self) -> Result<Vec<Finding>, Problem> {
        let status = Arc::clone(&self.status.borrow());
        let mut found = Vec::new();
        let down: Vec<IpAddr> = status
            .peers
            .iter()
            .filter(|peer| peer.state != "Established")
            .map(|peer| peer.address)
            .take(MOST_WAYS)
            .collect();
        for peer in down {
            found.extend(self.speaker_of(status.address, peer).await?);
        }
        let Some(own) = status.tunnel_address else {
            return Ok(found);
        };
        for other in self
            .inquiries
            .neighbours()
            .await?
            .tunnels
            .into_iter()
            .take(MOST_WAYS)
        {
            let way = self.inquiries.locate(own, other).await?;
            if !way.tunnelled {
                continue;
            }
            let trace = self.along(&way).await?;
            found.extend(trace.loss.map(|loss| Finding {
                check: Check::Ways,
                fix: None,
                finding: format!(
                    "packets through the tunnel to {} and back are lost: {}",
                    way.to.node, loss.cause
                ),
                evidence: format!("probes vanish {}", loss.place),
                consequence: format!("pods here and on {} do not reach each other", way.to.node),
                cure: loss.cure,
            }));
        }
        Ok(found)
    }

    /// What keeps a connection to a speaker from being made, and one from there to ours.
    async fn speaker_of(&self, own: Option<IpAddr>, peer: IpAddr) -> Result<Vec<Finding>, Problem> {
        let port = self.inquiries.neighbours().await?.bgp_port;
        let there = connect(own, SocketAddr::new(peer, port)).await;
        let asked = http::ask::<Connected>(SocketAddr::new(peer, self.port), "/v1/probe/connect");
        let back = timeout(ANSWER, asked).await.ok().and_then(Result::ok);
        let finding = |from: String, to: String, how: Connected| {
            let (finding, cure) = match how {
                Connected::Yes => return None,
                Connected::Filtered => (
                    format!("something drops TCP port {port} from {from} to {to}"),
                    format!(
                        "let TCP port {port} through between the nodes; culvert doctor on both names filters of the hosts"
                    ),
                ),
                Connected::Refused => (
                    format!("nobody takes connections to TCP port {port} at {to}, or a filter refuses them"),
                    format!(
                        "start the agent there, or whatever should listen; `ss -ltn sport = :{port}` there tells"
                    ),
                ),
                Connected::Unreachable => (
                    format!("there is no way from {from} to {to}"),
                    format!("ip route get {to} on the node with {from}"),
                ),
            };
            Some(Finding {
                check: Check::Ways,
                fix: None,
                finding,
                evidence: format!("a connection from {from} to {to}: {}", how.words()),
                consequence: "no BGP session comes about by a connection that way".to_owned(),
                cure,
            })
        };
        let here = own.map_or_else(|| "this node".to_owned(), |own| own.to_string());
        let there = finding(here.clone(), peer.to_string(), there);
        let back = back.and_then(|back| finding(peer.to_string(), here, back));
        Ok(there.into_iter().chain(back).collect())
    }
}

/// What came of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Connected {
    /// It was made.
    Yes,
    /// It was answered with a reset.
    Refused,
    /// It was not answered.
    Filtered,
    /// The kernel, or a router, knows no way.
    Unreachable,
}

impl Connected {
    fn words(self) -> &'static str {
        match self {
            Self::Yes => "made",
            Self::Refused => "refused at once (RST)",
            Self::Filtered => "no answer",
            Self::Unreachable => "no way there",
        }
    }
}

/// Makes a connection, and ends it again before anything is said.
async fn connect(own: Option<IpAddr>, to: SocketAddr) -> Connected {
    let attempt = async {
        let socket = if to.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        if let Some(own) = own.filter(|own| own.is_ipv4() == to.is_ipv4()) {
            socket.bind(SocketAddr::new(own, 0))?;
        }
        socket.connect(to).await
    };
    let made: Result<std::io::Result<TcpStream>, _> = timeout(CONNECT, attempt).await;
    match made {
        Err(_) => Connected::Filtered,
        Ok(Ok(_)) => Connected::Yes,
        Ok(Err(error)) => match error.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => Connected::Refused,
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::PermissionDenied => Connected::Filtered,
            _ => Connected::Unreachable,
        },
    }
}

/// Sends small and large ones, and where the large ones are lost some in between; counts meanwhile. By `own` the first pod is
/// asked as well, as if by the second: what it answers it sends itself, and that takes the way there from its very beginning.
async fn send(way: &Way, sender: &Sender, own: Option<&Sender>, capture: &mut Capture) -> Sent {
    let large = u16::try_from(way.mtu).unwrap_or(u16::MAX).max(SMALL + 1);
    let mut refused = None;
    let mut number = 0;
    let mut send = |size: u16, times: u16| {
        for _ in 0..times {
            number += 1;
            if let Err(error) = sender.send(size, number) {
                refused = Some(error.to_string());
            }
        }
    };
    send(SMALL, COUNT);
    send(large, COUNT);
    // By their sizes they are told from the others.
    let sizes = (SMALL + 1, large.saturating_sub(1));
    let own = own.filter(|_| sizes.1 > sizes.0);
    for number in 0..COUNT {
        if let Some(own) = own {
            // Where the pod cannot be reached, that is told by what does not come to it.
            let _ = own.send(sizes.0, number);
            let _ = own.send(sizes.1, number);
        }
    }
    let own = own.map(|_| sizes);
    let came = |capture: &Capture, size: u16| capture.so_far(Kind::Answer, size) >= u32::from(COUNT);
    count(capture, |capture| {
        let all = came(capture, SMALL) && came(capture, large);
        all && own.is_none_or(|(small, large)| came(capture, small) && came(capture, large))
    })
    .await;
    let mut largest = None;
    if came(capture, SMALL) && !came(capture, large) {
        let sizes: Vec<u16> = SIZES
            .into_iter()
            .filter(|size| *size < large && own.is_none_or(|(_, own)| own != *size))
            .collect();
        sizes.iter().for_each(|size| send(*size, 1));
        let came = |capture: &Capture, size: &u16| capture.so_far(Kind::Answer, *size) > 0;
        // The first is the largest.
        count(capture, |capture| {
            sizes.first().is_none_or(|size| came(capture, size))
        })
        .await;
        largest = sizes.into_iter().find(|size| came(capture, size));
    }
    Sent {
        count: u32::from(COUNT),
        small: SMALL,
        large,
        refused,
        largest,
        own,
    }
}

/// Counts until it is so, or nothing more is to come.
async fn count(capture: &mut Capture, is_all: impl Fn(&Capture) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline && !is_all(capture) {
        if let Ok(Err(_)) = timeout(INTERVAL, capture.count()).await {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_an_address_or_a_pod_with_its_namespace() {
        let parse = |text: &str| text.parse::<Target>();
        assert_eq!(
            parse("10.65.0.2"),
            Ok(Target::Address(Ipv4Addr::new(10, 65, 0, 2)))
        );
        let pod = Target::Pod("default".to_owned(), "web-0".to_owned());
        assert_eq!(parse("default/web-0"), Ok(pod.clone()));
        assert_eq!(pod.to_string().parse(), Ok(pod));
        for wrong in ["web-0", "/web", "default/", "a/b/c", "fd00::1", ""] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_made_or_refused() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let own = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert_eq!(connect(own, address).await, Connected::Yes);
        drop(listener);
        assert_eq!(connect(own, address).await, Connected::Refused);
    }
}
