//! The agent's side of the plugin: addresses for containers, and what is known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use culvert_ipam::pool::Use;
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::info;

use super::request::{
    AddAnswer, AddRequest, Addresses, CheckRequest, Container, Containers, NetworkRequest, Problem,
};
use crate::allocation::{AllocationError, Allocator, Assignment};
use crate::events::Happening;
use crate::status::AgentStatus;

/// Where addresses come from.
#[async_trait]
pub trait AddressSource: Send + Sync {
    /// A new IPv4 address under this handle, described by these attributes.
    ///
    /// # Errors
    /// When there is none, or the datastore fails.
    async fn assign(&self, handle: &str, attributes: BTreeMap<String, String>) -> Result<IpAddr, Problem>;

    /// Gives back all addresses of a handle, and says which they were.
    ///
    /// # Errors
    /// When the datastore fails.
    async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, Problem>;

    /// The addresses of a handle.
    ///
    /// # Errors
    /// When the datastore fails.
    async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, Problem>;

    /// The handles under which this node has addresses in these blocks.
    ///
    /// # Errors
    /// When the datastore fails.
    async fn handles(&self, blocks: &[IpNet]) -> Result<BTreeSet<String>, Problem>;
}

#[async_trait]
impl AddressSource for Allocator {
    async fn assign(&self, handle: &str, attributes: BTreeMap<String, String>) -> Result<IpAddr, Problem> {
        let wanted = Assignment::one(handle, attributes, Use::Workload);
        let addresses = in_time(Allocator::assign(self, wanted)).await?;
        // One was asked for, and no other outcome is a success.
        addresses.first().copied().ok_or_else(|| Problem {
            reason: format!(
                "no address came of the request for {handle}; this is an error in culvert, report it"
            ),
            retry: false,
        })
    }

    async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        in_time(Allocator::release(self, handle)).await
    }

    async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        in_time(Allocator::addresses(self, handle)).await
    }

    async fn handles(&self, blocks: &[IpNet]) -> Result<BTreeSet<String>, Problem> {
        in_time(self.handles_in(blocks)).await
    }
}

/// How long a plugin waits for the datastore, and for those before it: a runtime that gets no answer at all tries again
/// only after minutes.
const PATIENCE: Duration = Duration::from_secs(25);

/// What is given up half-way is what a crash would leave: the same request made again takes up where it was.
async fn in_time<T>(work: impl Future<Output = Result<T, AllocationError>>) -> Result<T, Problem> {
    match timeout(PATIENCE, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Problem {
            reason: format!(
                "the datastore did not answer within {} s: look whether it is away or slow (culvert node status)",
                PATIENCE.as_secs()
            ),
            retry: true,
        }),
    }
}

impl From<AllocationError> for Problem {
    fn from(error: AllocationError) -> Self {
        // What the pools cannot give stays so until somebody changes them; the others pass.
        let retry = !matches!(error, AllocationError::Plan(_));
        Self {
            reason: error.to_string(),
            retry,
        }
    }
}

/// Answers the plugin.
pub struct Attachments {
    source: Arc<dyn AddressSource>,
    status: watch::Receiver<Arc<AgentStatus>>,
    turns: Mutex<BTreeMap<String, Turn>>,
    /// Who is told of what people must see to.
    events: Option<mpsc::Sender<Happening>>,
}

/// Requests for one handle take turns.
type Turn = Arc<tokio::sync::Mutex<()>>;

impl Attachments {
    /// Answers with addresses of `source` and with the MTU that `status` tells.
    #[must_use]
    pub fn new(source: Arc<dyn AddressSource>, status: watch::Receiver<Arc<AgentStatus>>) -> Self {
        Self {
            source,
            status,
            turns: Mutex::default(),
            events: None,
        }
    }

    /// The same, which tells `events` of addresses that it had to refuse.
    #[must_use]
    pub fn telling(mut self, events: mpsc::Sender<Happening>) -> Self {
        self.events = Some(events);
        self
    }

    /// What passes by itself is not worth people's time.
    fn tell(&self, problem: &Problem) {
        if let Some(events) = self.events.as_ref().filter(|_| !problem.retry) {
            // Events that nobody takes in are no reason to wait.
            let _ = events.try_send(("AddressRefused", problem.reason.clone()));
        }
    }

    /// An address for a container: the one that it has, when it asks again.
    ///
    /// # Errors
    /// While the agent does not know the datastore and the MTU yet (to be tried again), and those of the source.
    pub async fn add(&self, request: AddRequest) -> Result<AddAnswer, Problem> {
        let (node, mtu) = self.node_and_mtu()?;
        let handle = super::handle(&request.network, &request.container_id);
        let turn = self.turn(&handle);
        let _guard = turn.lock().await;
        let held = self.source.addresses(&handle).await?;
        let address = match held.into_iter().find(IpAddr::is_ipv4) {
            Some(address) => address,
            None => {
                let attributes = attributes(&request, &node, Timestamp::now());
                let assigned = self.source.assign(&handle, attributes).await;
                assigned.inspect_err(|problem| self.tell(problem))?
            }
        };
        let IpAddr::V4(address) = address else {
            self.source.release(&handle).await?;
            return Err(Problem {
                reason: format!("{address} was allocated, but pods get an IPv4 address: check the pools"),
                retry: false,
            });
        };
        let pod = request
            .pod
            .as_ref()
            .map(|pod| format!("{}/{}", pod.namespace, pod.name));
        info!(%handle, %address, pod, "address for a pod");
        Ok(AddAnswer { address, mtu })
    }

    /// Gives back what a container has; that it has nothing is no error.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn del(&self, request: Container) -> Result<Addresses, Problem> {
        let handle = super::handle(&request.network, &request.container_id);
        let turn = self.turn(&handle);
        let _guard = turn.lock().await;
        let released = self.source.release(&handle).await?;
        info!(%handle, ?released, "addresses released");
        Ok(Addresses { addresses: released })
    }

    /// What a container has.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn addresses(&self, request: Container) -> Result<Addresses, Problem> {
        let handle = super::handle(&request.network, &request.container_id);
        let turn = self.turn(&handle);
        let _guard = turn.lock().await;
        Ok(Addresses {
            addresses: self.source.addresses(&handle).await?,
        })
    }

    /// The containers of a network that have addresses in this node's blocks. What it has in the blocks of others is left to
    /// the collection of garbage.
    ///
    /// # Errors
    /// While the agent does not know the datastore yet (to be tried again), and those of the source.
    pub async fn containers(&self, request: NetworkRequest) -> Result<Containers, Problem> {
        self.node_and_mtu()?;
        let blocks = self.status.borrow().blocks.clone();
        let handles = self.source.handles(&blocks).await?;
        let prefix = format!("{}.", request.network);
        // A runtime's ids have no dot: with one it would not be clear where the network's name ends.
        let of_network = handles
            .iter()
            .filter_map(|handle| handle.strip_prefix(&prefix))
            .filter(|id| !id.contains('.'));
        Ok(Containers {
            containers: of_network.filter_map(|id| id.parse().ok()).collect(),
        })
    }

    /// Whether a container still has the address that it was given.
    ///
    /// # Errors
    /// When it has not, and those of the source.
    pub async fn check(&self, request: CheckRequest) -> Result<(), Problem> {
        let handle = super::handle(&request.network, &request.container_id);
        let held = self.source.addresses(&handle).await?;
        if held.contains(&IpAddr::V4(request.address)) {
            return Ok(());
        }
        Err(Problem {
            reason: format!(
                "handle {handle} has the addresses {held:?}, and {} is not one of them",
                request.address
            ),
            retry: false,
        })
    }

    fn node_and_mtu(&self) -> Result<(String, u32), Problem> {
        let status = self.status.borrow();
        status.can_attach().map_err(|reason| Problem {
            reason: format!("the agent is starting: {reason}"),
            retry: true,
        })?;
        Ok((status.node.clone(), status.pod_mtu))
    }

    /// An ADD whose plugin was killed goes on here, and the runtime's DEL must not overtake it: the address would be
    /// assigned after it was released, and stay so for ever.
    fn turn(&self, handle: &str) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(handle.to_owned()).or_default())
    }
}

/// What Calico's plugin notes of an address; its time is as Go prints one.
fn attributes(request: &AddRequest, node: &str, now: Timestamp) -> BTreeMap<String, String> {
    let mut attributes = BTreeMap::from([
        ("node".to_owned(), node.to_owned()),
        (
            "timestamp".to_owned(),
            now.strftime("%Y-%m-%d %H:%M:%S%.f +0000 UTC").to_string(),
        ),
    ]);
    if let Some(pod) = &request.pod {
        attributes.insert("namespace".to_owned(), pod.namespace.clone());
        attributes.insert("pod".to_owned(), pod.name.clone());
    }
    attributes
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv4Addr;

    use tokio::sync::Semaphore;

    use super::*;
    use crate::cni::Pod;
    use crate::status::DatastoreStatus;

    /// Addresses in memory; an assignment waits until the test lets it go on.
    pub(in crate::cni) struct Source {
        pub(in crate::cni) held: Mutex<BTreeMap<String, Vec<IpAddr>>>,
        pub(in crate::cni) attributes: Mutex<Vec<BTreeMap<String, String>>>,
        first: IpAddr,
        gate: Semaphore,
    }

    impl Source {
        pub(in crate::cni) fn open(first: &str) -> Arc<Self> {
            Arc::new(Self {
                held: Mutex::default(),
                attributes: Mutex::default(),
                first: first.parse().unwrap(),
                gate: Semaphore::new(100),
            })
        }
    }

    #[async_trait]
    impl AddressSource for Source {
        async fn assign(
            &self,
            handle: &str,
            attributes: BTreeMap<String, String>,
        ) -> Result<IpAddr, Problem> {
            self.gate.acquire().await.unwrap().forget();
            self.attributes.lock().unwrap().push(attributes);
            self.held
                .lock()
                .unwrap()
                .entry(handle.to_owned())
                .or_default()
                .push(self.first);
            Ok(self.first)
        }

        async fn release(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
            Ok(self.held.lock().unwrap().remove(handle).unwrap_or_default())
        }

        async fn addresses(&self, handle: &str) -> Result<Vec<IpAddr>, Problem> {
            Ok(self.held.lock().unwrap().get(handle).cloned().unwrap_or_default())
        }

        async fn handles(&self, _: &[IpNet]) -> Result<BTreeSet<String>, Problem> {
            Ok(self.held.lock().unwrap().keys().cloned().collect())
        }
    }

    pub(in crate::cni) fn running() -> AgentStatus {
        AgentStatus {
            node: "a".into(),
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            pod_mtu: 1480,
            ..AgentStatus::default()
        }
    }

    pub(in crate::cni) fn attachments(source: &Arc<Source>, status: AgentStatus) -> Attachments {
        let (_, status) = watch::channel(Arc::new(status));
        Attachments::new(Arc::clone(source) as _, status)
    }

    fn add_request() -> AddRequest {
        AddRequest {
            network: "k8s-pod-network".parse().unwrap(),
            container_id: "c1".parse().unwrap(),
            pod: Some(Pod {
                namespace: "default".into(),
                name: "web-0".into(),
            }),
        }
    }

    fn del_request() -> Container {
        Container {
            network: "k8s-pod-network".parse().unwrap(),
            container_id: "c1".parse().unwrap(),
        }
    }

    #[tokio::test]
    async fn an_address_is_assigned_under_calicos_handle_and_attributes_and_given_back() {
        let source = Source::open("10.65.42.1");
        let attachments = attachments(&source, running());
        let answer = attachments.add(add_request()).await.unwrap();
        assert_eq!(
            answer,
            AddAnswer {
                address: Ipv4Addr::new(10, 65, 42, 1),
                mtu: 1480
            }
        );
        let noted = source.attributes.lock().unwrap()[0].clone();
        assert_eq!(noted["pod"], "web-0");
        assert_eq!(noted["namespace"], "default");
        assert_eq!(noted["node"], "a");
        assert!(noted["timestamp"].ends_with(" +0000 UTC"));
        assert!(source.held.lock().unwrap().contains_key("k8s-pod-network.c1"));
        let released = attachments.del(del_request()).await.unwrap().addresses;
        assert_eq!(released, [source.first]);
        assert_eq!(
            attachments.del(del_request()).await.unwrap().addresses,
            Vec::<IpAddr>::new()
        );
    }

    #[tokio::test]
    async fn a_container_that_asks_again_gets_the_address_it_has() {
        let source = Source::open("10.65.42.1");
        let attachments = attachments(&source, running());
        let first = attachments.add(add_request()).await.unwrap();
        assert_eq!(attachments.add(add_request()).await.unwrap(), first);
        assert_eq!(source.attributes.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_agent_that_starts_asks_for_patience() {
        let source = Source::open("10.65.42.1");
        let problem = attachments(&source, AgentStatus::default())
            .add(add_request())
            .await
            .unwrap_err();
        assert!(problem.retry, "{problem:?}");
        let problem = attachments(
            &source,
            AgentStatus {
                pod_mtu: 0,
                ..running()
            },
        )
        .add(add_request())
        .await
        .unwrap_err();
        assert!(problem.retry && problem.reason.contains("MTU"), "{problem:?}");
    }

    #[tokio::test]
    async fn an_address_of_the_other_family_is_given_back() {
        let source = Source::open("fd00::1");
        let problem = attachments(&source, running())
            .add(add_request())
            .await
            .unwrap_err();
        assert!(
            problem.reason.contains("fd00::1") && !problem.retry,
            "{problem:?}"
        );
        assert!(source.held.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_del_does_not_overtake_an_add_of_the_same_container() {
        let source = Source::open("10.65.42.1");
        source.gate.forget_permits(100);
        let attachments = Arc::new(attachments(&source, running()));
        let mut add = Box::pin(attachments.add(add_request()));
        assert!(
            futures_util::poll!(&mut add).is_pending(),
            "the source does not answer yet"
        );
        let mut del = Box::pin(attachments.del(del_request()));
        assert!(
            futures_util::poll!(&mut del).is_pending(),
            "it waits for its turn"
        );
        let other = Container {
            container_id: "c2".parse().unwrap(),
            ..del_request()
        };
        attachments.del(other).await.unwrap();
        source.gate.add_permits(1);
        add.await.unwrap();
        assert_eq!(del.await.unwrap().addresses, [source.first]);
    }

    #[tokio::test]
    async fn check_names_the_addresses_that_there_are() {
        let source = Source::open("10.65.42.1");
        let attachments = attachments(&source, running());
        let request = CheckRequest {
            network: "k8s-pod-network".parse().unwrap(),
            container_id: "c1".parse().unwrap(),
            address: Ipv4Addr::new(10, 65, 42, 1),
        };
        let problem = attachments.check(request.clone()).await.unwrap_err();
        assert!(problem.reason.contains("k8s-pod-network.c1"), "{problem:?}");
        attachments.add(add_request()).await.unwrap();
        attachments.check(request).await.unwrap();
    }

    #[test]
    fn the_time_is_written_as_go_prints_it() {
        let now: Timestamp = "2026-11-21T06:57:01.0305Z".parse().unwrap();
        let request = AddRequest {
            pod: None,
            ..add_request()
        };
        let attributes = attributes(&request, "a", now);
        assert_eq!(attributes["timestamp"], "2026-11-21 06:57:01.0305 +0000 UTC");
        assert!(!attributes.contains_key("pod"));
    }
}
