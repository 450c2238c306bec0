//! The agent's side of the plugin: addresses for containers, and what is known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use culvert_ipam::allocator::Wanted;
use culvert_ipam::pool::{Family, Use};
use ipnet::IpNet;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::info;

use super::annotations::{self, AnnotationError};
use super::protocol::Pod;
use super::request::{
    AddAnswer, AddRequest, Addresses, CheckRequest, Container, Containers, NetworkRequest, Problem,
};
use crate::allocation::{AllocationError, Allocator, Assignment};
use crate::api::{IpPool, Key, Kind};
use crate::datastore::{self, Datastore, DatastoreError};
use crate::events::Happening;
use crate::status::AgentStatus;

/// Where addresses come from.
#[async_trait]
pub trait AddressSource: Send + Sync {
    /// Addresses for a handle; those that it has already count.
    ///
    /// # Errors
    /// When there is none, or the datastore fails.
    async fn assign(&self, wanted: Assignment) -> Result<Vec<IpAddr>, Problem>;

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
    async fn assign(&self, wanted: Assignment) -> Result<Vec<IpAddr>, Problem> {
        in_time(Allocator::assign(self, wanted)).await
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
async fn in_time<T, E: Into<Problem>>(work: impl Future<Output = Result<T, E>>) -> Result<T, Problem> {
    match timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(Into::into),
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

impl From<DatastoreError> for Problem {
    fn from(error: DatastoreError) -> Self {
        Self {
            reason: error.to_string(),
            retry: true,
        }
    }
}

/// What stays so until somebody changes an annotation.
impl From<AnnotationError> for Problem {
    fn from(error: AnnotationError) -> Self {
        Self {
            reason: error.to_string(),
            retry: false,
        }
    }
}

impl Problem {
    /// The same, with the pod that has it.
    fn of(self, pod: Option<&Pod>) -> Self {
        match pod {
            Some(Pod { namespace, name }) => Self {
                reason: format!("pod {namespace}/{name}: {}", self.reason),
                ..self
            },
            None => self,
        }
    }
}

/// Answers the plugin.
pub struct Attachments {
    source: Arc<dyn AddressSource>,
    store: Arc<dyn Datastore>,
    status: watch::Receiver<Arc<AgentStatus>>,
    turns: Mutex<BTreeMap<String, Turn>>,
    /// Who is told of what people must see to.
    events: Option<mpsc::Sender<Happening>>,
}

/// What a pod asks for, and the labels of its namespace.
type Asked = (Vec<Wanted>, Option<BTreeMap<String, String>>);

/// Requests for one handle take turns.
type Turn = Arc<tokio::sync::Mutex<()>>;

impl Attachments {
    /// Answers with addresses of `source`, as the pods and namespaces in `store` ask for them, and with the MTU that `status`
    /// tells.
    #[must_use]
    pub fn new(
        source: Arc<dyn AddressSource>,
        store: Arc<dyn Datastore>,
        status: watch::Receiver<Arc<AgentStatus>>,
    ) -> Self {
        Self {
            source,
            store,
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
        let pod = request.pod.as_ref();
        let assigned = self.assign(&request, &node, &handle).await;
        let assigned = assigned.map_err(|problem| problem.of(pod));
        let addresses = assigned.inspect_err(|problem| self.tell(problem))?;
        let of_v4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let address_v6 = addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        let Some(address) = of_v4 else {
            self.source.release(&handle).await?;
            return Err(Problem {
                reason: format!(
                    "{addresses:?} was allocated, but pods get an IPv4 address first: check the pools, and what the pod's annotations name"
                ),
                retry: false,
            });
        };
        let pod = pod.map(|pod| format!("{}/{}", pod.namespace, pod.name));
        info!(%handle, %address, ?address_v6, pod, "address for a pod");
        Ok(AddAnswer {
            address,
            address_v6,
            mtu,
        })
    }

    /// The families of which pods get an address at the moment.
    fn families(&self) -> &'static [Family] {
        annotations::families(self.status.borrow().pods_get_ipv6)
    }

    /// What the pod asks for, or what it has already.
    async fn assign(&self, request: &AddRequest, node: &str, handle: &str) -> Result<Vec<IpAddr>, Problem> {
        let (wanted, namespace) = match &request.pod {
            Some(pod) => in_time(self.asked_for(pod)).await?,
            None => (self.families().iter().copied().map(Wanted::one).collect(), None),
        };
        let assignment = Assignment {
            handle: handle.to_owned(),
            attributes: attributes(request, node, Timestamp::now()),
            usage: Use::Workload,
            wanted,
            namespace,
        };
        self.source.assign(assignment).await
    }

    /// What the annotations of a pod and of its namespace ask for, and the namespace's labels. A pod that is not there has
    /// none: a static one is told to its node before it is told to the cluster.
    async fn asked_for(&self, pod: &Pod) -> Result<Asked, Problem> {
        let Pod { namespace, name } = pod;
        let (of_pod, of_namespace) = (
            Key::namespaced(Kind::Pod, Some(namespace), name),
            Key::new(Kind::Namespace, namespace),
        );
        let (pod, namespace) =
            futures_util::try_join!(self.store.get(&of_pod), self.store.get(&of_namespace))?;
        let namespace = namespace.map(|namespace| namespace.metadata().clone());
        let none = BTreeMap::new();
        let of_pod = pod.as_ref().map_or(&none, |pod| &pod.metadata().annotations);
        let of_namespace = namespace.as_ref().map_or(&none, |metadata| &metadata.annotations);
        let families = self.families();
        let pools = if annotations::name_pools(of_pod, of_namespace, families) {
            datastore::list::<IpPool>(&*self.store).await?
        } else {
            Vec::new()
        };
        let pools: Vec<_> = pools
            .into_iter()
            .map(|p| (p.metadata.name, p.spec.cidr))
            .collect();
        let wanted = annotations::wanted(of_pod, of_namespace, &pools, families)?;
        Ok((wanted, namespace.map(|metadata| metadata.labels)))
    }

    /// Gives back what a container has; that it has nothing is no error.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn del(&self, request: Container) -> Result<Addresses, Problem> {
        let handle = super::handle(&request.network, &request.container_id);
        let turn = self.turn(&handle);
        let _guard = turn.lock().await;
        // As Calico's plugin does: an address may be from before an upgrade. The two share what is read and written.
        let of_workload = async {
            match &request.pod {
                Some(pod) => self.source.release(&super::workload_handle(pod)).await,
                None => Ok(Vec::new()),
            }
        };
        let (mut released, of_workload) = futures_util::try_join!(self.source.release(&handle), of_workload)?;
        released.extend(of_workload);
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

    /// Whether a container still has the addresses that it was given.
    ///
    /// # Errors
    /// When it has not, and those of the source.
    pub async fn check(&self, request: CheckRequest) -> Result<(), Problem> {
        let handle = super::handle(&request.network, &request.container_id);
        let held = self.source.addresses(&handle).await?;
        let given = [
            Some(IpAddr::V4(request.address)),
            request.address_v6.map(IpAddr::V6),
        ];
        match given
            .into_iter()
            .flatten()
            .find(|address| !held.contains(address))
        {
            None => Ok(()),
            Some(address) => Err(Problem {
                reason: format!(
                    "handle {handle} has the addresses {held:?}, and {address} is not one of them"
                ),
                retry: false,
            }),
        }
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
pub(super) mod tests;
