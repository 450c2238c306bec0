//! Where the agents of a cluster are.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use hyper::StatusCode;
use hyper::body::Bytes;
use tokio::time::timeout;

use super::{Answered, Member, Terms, Way};
use crate::api::Node;
use crate::datastore::kubernetes::{Access, AgentPods};
use crate::datastore::{self, Datastore, DatastoreError};
use crate::http::{self, Unanswered};

/// The agents of a cluster.
pub struct Agents {
    members: Vec<Member>,
    /// Where they are asked through the API server.
    pods: Option<AgentPods>,
}

impl Agents {
    /// Those that the Node objects in `store` tell of, each asked at its address and this port.
    ///
    /// # Errors
    /// When the nodes cannot be listed.
    pub async fn direct(store: &Arc<dyn Datastore>, port: u16) -> Result<Self, DatastoreError> {
        let nodes = datastore::list::<Node>(store.as_ref()).await?;
        let members = nodes.iter().map(|node| {
            let address = address_of(node);
            let way = address.map(|address| Way::Direct(SocketAddr::new(address, port)));
            member(node, way.ok_or(Unanswered::NoAddress))
        });
        Ok(Self::of(members.collect()))
    }

    /// These, each asked at its address.
    #[must_use]
    pub fn of(members: Vec<Member>) -> Self {
        Self { members, pods: None }
    }

    /// Those of the DaemonSet in `namespace`, asked through the API server. Of a node without such a pod that is told.
    ///
    /// # Errors
    /// When nodes or pods cannot be listed.
    pub async fn by_proxy(
        store: &Arc<dyn Datastore>,
        access: &Access,
        namespace: &str,
        port: u16,
    ) -> Result<Self, DatastoreError> {
        let pods = AgentPods::open(access, namespace).await?;
        // First, since its refusal tells an operator what an operator needs.
        let mut running = pods.by_node().await?;
        let nodes = datastore::list::<Node>(store.as_ref()).await?;
        let members = nodes.iter().map(|node| {
            let way = match running.remove(&node.metadata.name) {
                None => Err(Unanswered::NoPod),
                Some(pod) if pod.is_running() => Ok(Way::Proxy(pod.name, pod.port.unwrap_or(port))),
                Some(pod) => Err(Unanswered::NotRunning {
                    pod: pod.name,
                    state: pod.state,
                }),
            };
            member(node, way)
        });
        Ok(Self {
            members: members.collect(),
            pods: Some(pods),
        })
    }

    /// The nodes, by name.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Who has not answered one question is not asked the next ones: the reason stands for them as well.
    pub fn leave_out<T>(&mut self, answered: &[Answered<T>]) {
        for (member, answered) in self.members.iter_mut().zip(answered) {
            if let Err(reason) = &answered.outcome {
                member.way = Err(reason.clone());
            }
        }
    }

    /// The last lines of the agents' logs, by node, as far as the API server has them.
    pub async fn logs(&self, lines: usize, terms: Terms) -> Vec<(String, Result<String, String>)> {
        let Some(pods) = &self.pods else {
            return Vec::new();
        };
        let running = self.members.iter().filter_map(|member| match &member.way {
            Ok(Way::Proxy(pod, _)) => Some((member.node.clone(), pod)),
            _ => None,
        });
        let asked = stream::iter(running).map(|(node, pod)| async move {
            let log = timeout(terms.each, pods.log(pod, lines)).await;
            let late = || Err(format!("no log within {} s", terms.each.as_secs()));
            (node, log.unwrap_or_else(|_| late()))
        });
        asked.buffered(terms.at_once.max(1)).collect().await
    }

    /// What an agent answers to a GET.
    pub(super) async fn get(&self, way: &Way, target: &str) -> Result<(StatusCode, Bytes), Unanswered> {
        match (way, &self.pods) {
            (Way::Direct(address), _) => http::get(*address, target).await,
            (Way::Proxy(pod, port), Some(pods)) => {
                pods.get(pod, *port, target).await.map_err(Unanswered::NoProxy)
            }
            (Way::Proxy(..), None) => Err(Unanswered::NoPod),
        }
    }
}

fn member(node: &Node, way: Result<Way, Unanswered>) -> Member {
    Member {
        node: node.metadata.name.clone(),
        address: address_of(node),
        way,
    }
}

/// The address that a node advertises, or else its first internal one.
fn address_of(node: &Node) -> Option<IpAddr> {
    let advertised = node.advertised_address().map(|net| IpAddr::V4(net.addr()));
    advertised.or_else(|| node.internal_addresses().next())
}
