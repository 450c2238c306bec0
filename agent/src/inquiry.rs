//! Questions to the running agent, and their way to the control loop, which knows the answers or who does.
//!
//! The loop may be a new one from time to time (this node got another address): a question waits until one listens.

use std::net::IpAddr;

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
use crate::page::View;
use crate::reconcile::Actual;
use crate::ribs::{PeerUnknown, RibRequest, RibRoutes};
use crate::speaker::{Clear, Query};
use crate::status::AgentStatus;

/// What the control loop knows at one moment, for whoever answers.
pub(crate) struct Known<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) cluster: &'a Cluster,
    pub(crate) plan: &'a Plan,
    pub(crate) actual: &'a Actual,
    pub(crate) status: &'a AgentStatus,
    /// Why the kernel does not hold a route, or not for long.
    pub(crate) refused: &'a dyn Fn(&RouteKey) -> Option<String>,
}

impl Known<'_> {
    /// A route as `ip route` prints it.
    pub(crate) fn named(&self, route: &Route) -> String {
        let name = |index| self.actual.link_at(index).map(|link| link.name.clone());
        route.with_names(name).to_string()
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
