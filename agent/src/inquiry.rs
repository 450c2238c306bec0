//! Questions to the running agent, and their way to the control loop, which knows the answers or who does.
//!
//! The loop may be a new one from time to time (this node got another address): a question waits until one listens.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use culvert_bgp::speaker::RouteView;
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::api::IpPoolSpec;
use crate::cluster::Cluster;
use crate::cni::Problem;
use crate::desired::{Plan, Settings};
use crate::doctor::{Host, Report};
use crate::explanation::{self, Explanation};
use crate::fib::{Route, RouteKey};
use crate::kernel_view::KernelView;
use crate::page::View;
use crate::reconcile::Actual;
use crate::ribs::{PeerUnknown, RibRequest, RibRoutes};
use crate::speaker::{Clear, Query};
use crate::status::{AgentStatus, PeerRoutes};
use crate::trace::{NoWay, Way};

/// What the control loop knows at one moment, for whoever answers.
pub(crate) struct Known<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) cluster: &'a Cluster,
    pub(crate) plan: &'a Plan,
    pub(crate) actual: &'a Actual,
    pub(crate) status: &'a AgentStatus,
    /// What others undo on this host.
    pub(crate) undone: Undone,
    /// Why the kernel does not hold a route, or not for long.
    pub(crate) refused: &'a dyn Fn(&RouteKey) -> Option<String>,
}

/// How often within an hour something of the host's was made right that others had undone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Undone {
    /// Forwarding was switched on.
    pub(crate) forwarding: usize,
    /// The tunnel device was set up.
    pub(crate) tunnel: usize,
}

impl Known<'_> {
    /// A route as `ip route` prints it.
    pub(crate) fn named(&self, route: &Route) -> String {
        let name = |index| self.actual.link_at(index).map(|link| link.name.clone());
        route.with_names(name).to_string()
    }

    /// Why a route that should be in the kernel is not there as it should be, or not for long.
    pub(crate) fn problem(&self, route: &Route) -> Option<String> {
        let refused = (self.refused)(&route.key);
        match self.actual.route(&route.key) {
            None => Some(refused.unwrap_or_else(|| "it is not in the kernel".to_owned())),
            Some(actual) if !actual.is_same_as(route) => {
                Some(refused.unwrap_or_else(|| "another route is there in its place".to_owned()))
            }
            Some(_) => refused,
        }
    }

    /// Whether a node has this address, advertised or not.
    pub(crate) fn is_of_node(&self, address: IpAddr) -> bool {
        let mut nodes = self.cluster.nodes();
        nodes.any(|(_, node)| {
            let others = node.addresses.iter().map(|other| IpAddr::V4(*other));
            node.advertised().chain(others).any(|other| other == address)
        })
    }

    /// Whom probes may be sent to.
    pub(crate) fn neighbours(&self) -> Neighbours {
        let tunnelled = |address: &Ipv4Addr| self.plan.tunnelled_to.contains(address);
        let nodes = self.cluster.nodes().filter(|(_, node)| {
            let address = node.address.map(|net| net.addr());
            address.as_ref().is_some_and(tunnelled)
        });
        Neighbours {
            tunnels: nodes.filter_map(|(_, node)| node.tunnel_address).collect(),
            bgp_port: self.plan.peering.endpoint.port,
        }
    }

    /// The next hop of a route that lies inside the pod network, where no node can be, and the pool that it lies in.
    pub(crate) fn next_hop_in_pool(&self, route: &Route) -> Option<(IpAddr, &IpPoolSpec)> {
        route.next_hops.iter().find_map(|hop| {
            let gateway = hop.gateway?;
            Some((gateway, self.cluster.pool_of(&gateway.into())?))
        })
    }
}

/// Questions that wait for the loop; who asks more waits for his turn.
const WAITING: usize = 8;

/// A question.
#[derive(Debug)]
pub enum Inquiry {
    /// For the speaker.
    Speaker(Query),
    /// What is wrong with this node.
    Examine {
        /// What the loop does not know of the host.
        host: Box<Host>,
        /// Takes the answer.
        answer: oneshot::Sender<Report>,
    },
    /// What becomes of the routes that the peers announce.
    Count {
        /// How many of each are let in, as the speaker says.
        accepted: BTreeMap<IpAddr, usize>,
        /// Takes the answer.
        answer: oneshot::Sender<BTreeMap<IpAddr, PeerRoutes>>,
    },
    /// What the kernel has, as it is known.
    Kernel {
        /// Takes the answer.
        answer: oneshot::Sender<KernelView>,
    },
    /// What the page draws.
    View {
        /// Takes the answer.
        answer: oneshot::Sender<View>,
    },
    /// Why packets for a destination go where they go.
    Explain {
        /// The destination.
        destination: IpNet,
        /// What the speaker says of it.
        bgp: Box<Option<RouteView>>,
        /// Takes the answer.
        answer: oneshot::Sender<Explanation>,
    },
    /// The destinations whose routes are wrong.
    Wrong {
        /// Takes the answer.
        answer: oneshot::Sender<Vec<IpNet>>,
    },
    /// The way between two addresses.
    Locate {
        /// Of the one that sends.
        from: Ipv4Addr,
        /// Of the one that answers.
        to: Ipv4Addr,
        /// Takes the answer.
        answer: oneshot::Sender<Result<Way, NoWay>>,
    },
    /// Whether an address is a node's.
    IsOfNode {
        /// The address.
        address: IpAddr,
        /// Takes the answer.
        answer: oneshot::Sender<bool>,
    },
    /// Whom probes may be sent to.
    Neighbours {
        /// Takes the answer.
        answer: oneshot::Sender<Neighbours>,
    },
}

/// What probes need to know of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// The addresses of the other nodes' tunnel devices to which packets are tunnelled.
    pub tunnels: Vec<Ipv4Addr>,
    /// The TCP port of the speakers.
    pub bgp_port: u16,
}

/// The way to the loop, for whoever serves people.
#[derive(Clone, Debug)]
pub struct Inquiries(mpsc::Sender<Inquiry>);

impl Inquiries {
    /// A way, and its end.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Inquiry>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Routes of the speaker's tables.
    ///
    /// # Errors
    /// When the peer that is asked for is none, or the agent is about to end.
    pub async fn routes(&self, request: RibRequest) -> Result<RibRoutes, Problem> {
        let routes = self.ask(|answer| Inquiry::Speaker(Query::Routes { request, answer }));
        routes.await?.map_err(|unknown| refused(&unknown))
    }

    /// Begins sessions anew; returns the peers whose sessions these are.
    ///
    /// # Errors
    /// When the peer is none, or the agent is about to end.
    pub async fn clear(&self, clear: Clear) -> Result<Vec<IpAddr>, Problem> {
        let cleared = self.ask(|answer| Inquiry::Speaker(Query::Clear { clear, answer }));
        cleared.await?.map_err(|unknown| refused(&unknown))
    }

    /// Why packets for `destination` go where they go.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn explain(&self, destination: IpNet) -> Result<Explanation, Problem> {
        let prefixes = explanation::around(destination);
        let bgp = self.ask(|answer| Inquiry::Speaker(Query::Explain { prefixes, answer }));
        let bgp = Box::new(bgp.await?);
        self.ask(|answer| Inquiry::Explain {
            destination,
            bgp,
            answer,
        })
        .await
    }

    /// The destinations whose routes are wrong.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn wrong_destinations(&self) -> Result<Vec<IpNet>, Problem> {
        self.ask(|answer| Inquiry::Wrong { answer }).await
    }

    /// What the page draws.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn view(&self) -> Result<View, Problem> {
        self.ask(|answer| Inquiry::View { answer }).await
    }

    /// What is wrong with this node.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn examine(&self, host: Host) -> Result<Report, Problem> {
        let host = Box::new(host);
        self.ask(|answer| Inquiry::Examine { host, answer }).await
    }

    /// What becomes of the routes that each peer announces.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn count_routes(&self) -> Result<BTreeMap<IpAddr, PeerRoutes>, Problem> {
        let accepted = self.ask(|answer| Inquiry::Speaker(Query::Count { answer }));
        let accepted = accepted.await?;
        self.ask(|answer| Inquiry::Count { accepted, answer }).await
    }

    /// What the kernel has: links, addresses, rules and routes.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn kernel(&self) -> Result<KernelView, Problem> {
        self.ask(|answer| Inquiry::Kernel { answer }).await
    }

    /// The way between two addresses, as this node knows it.
    ///
    /// # Errors
    /// When nobody has one of them, or the agent is about to end.
    pub async fn locate(&self, from: Ipv4Addr, to: Ipv4Addr) -> Result<Way, Problem> {
        let located = self.ask(|answer| Inquiry::Locate { from, to, answer }).await?;
        located.map_err(|no_way| Problem {
            reason: no_way.to_string(),
            retry: false,
        })
    }

    /// Whether a node of the cluster has this address.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn is_of_node(&self, address: IpAddr) -> Result<bool, Problem> {
        self.ask(|answer| Inquiry::IsOfNode { address, answer }).await
    }

    /// Whom probes may be sent to.
    ///
    /// # Errors
    /// When the agent is about to end.
    pub async fn neighbours(&self) -> Result<Neighbours, Problem> {
        self.ask(|answer| Inquiry::Neighbours { answer }).await
    }

    async fn ask<T>(&self, inquiry: impl FnOnce(oneshot::Sender<T>) -> Inquiry) -> Result<T, Problem> {
        let ending = || Problem {
            reason: "the agent is about to end, or begins anew under another address: ask again".to_owned(),
            retry: true,
        };
        let (answer, answered) = oneshot::channel();
        self.0.send(inquiry(answer)).await.map_err(|_| ending())?;
        answered.await.map_err(|_| ending())
    }
}

fn refused(unknown: &PeerUnknown) -> Problem {
    Problem {
        reason: unknown.to_string(),
        retry: false,
    }
}
