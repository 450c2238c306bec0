//! Questions that change nothing, each a GET: the same on the agent's socket and on the port that is open to the network.
//!
//! Strangers may ask on that port. What takes the control loop's or the speaker's time is answered to a few at once, a place
//! stays taken for as long again as the answer took, and until the answer is read: whatever they do, the agent has time
//! left for its work, and no more than a few answers lie in its memory. Nothing is sent, and nothing is written, for a question.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use clap::ValueEnum;
use hyper::body::{Bytes, Frame, SizeHint};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::answer::Refusal;
use crate::cni::Problem;
use crate::config::Config;
use crate::dataplane::Nftables;
use crate::doctor::Host;
use crate::explanation::{Explanation, parse_destination};
use crate::inquiry::Inquiries;
use crate::ribs::{RibRequest, RibTable};
use crate::status::AgentStatus;

/// So many questions that take the loop's or the speaker's time are answered at once.
const AT_ONCE: usize = 4;
/// Who finds all these places taken waits for so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// A place stays taken after its answer for no longer than this.
const REST_MAX: Duration = Duration::from_secs(1);
/// An answer is handed out in pieces of so many bytes.
const PIECE: usize = 64 << 10;

const STATUS: &str = "/v1/status";
/// What the page asks for.
pub(super) const VIEW: &str = "/v1/view";
const DOCTOR: &str = "/v1/doctor";
const KERNEL: &str = "/v1/kernel";
const EXPLAIN: &str = "/v1/route/explain";
const WRONG: &str = "/v1/route/wrong";
const ROUTES: &str = "/v1/bgp/routes";
const CONFIGURATION: &str = "/v1/configuration";
const FILTER: &str = "/v1/packet-filter";

/// So many routes that are wrong are explained at once.
const MOST_EXPLAINED: usize = 16;

/// Of which peers a status tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Peers {
    /// Of all.
    #[default]
    All,
    /// Of all, with what became of the routes that each announces: that has to be counted.
    Counted,
    /// Of the first of those that something is wrong with: a cluster of a thousand nodes has a million sessions.
    Exceptional,
}

/// A question that changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// The agent's status: [`AgentStatus`].
    Status(Peers),
    /// What the page draws: [`View`](crate::page::View).
    View,
    /// What is wrong with the node: [`Report`](crate::doctor::Report).
    Doctor,
    /// What the kernel has: [`KernelView`](crate::kernel_view::KernelView).
    Kernel,
    /// Why packets for a destination go where they go: [`Explanation`](crate::explanation::Explanation).
    Explain(IpNet),
    /// Why packets go where they go to destinations whose routes are wrong: [`WrongRoutes`].
    WrongRoutes,
    /// Routes of the speaker's tables: [`RibRoutes`](crate::ribs::RibRoutes).
    Routes(RibRequest),
    /// What the agent goes by: [`Config`]; there is no secret in it.
    Configuration,
    /// The agent's table of the packet filter, as the kernel has it: [`TableView`](crate::dataplane::TableView).
    PacketFilter,
}

/// Explanations of the routes that are wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WrongRoutes {
    /// Of the first of them.
    pub explanations: Vec<Explanation>,
    /// How many more there are.
    pub left_out: usize,
}

impl Question {
    /// Path and query by which it is asked.
    #[must_use]
    pub fn target(&self) -> String {
        let (path, parameters) = match self {
            Question::Status(Peers::All) => (STATUS, vec![]),
            Question::Status(peers) => (STATUS, vec![("peers", name_of(peers))]),
            Question::View => (VIEW, vec![]),
            Question::Doctor => (DOCTOR, vec![]),
            Question::Kernel => (KERNEL, vec![]),
            Question::WrongRoutes => (WRONG, vec![]),
            Question::Configuration => (CONFIGURATION, vec![]),
            Question::PacketFilter => (FILTER, vec![]),
            Question::Explain(destination) => (EXPLAIN, vec![("destination", destination.to_string())]),
            Question::Routes(request) => {
                let peer = request.peer.map(|peer| ("peer", peer.to_string()));
                let within = request.within.map(|within| ("within", within.to_string()));
                let table = ("table", name_of(&request.table));
                let all = [Some(table), peer, within];
                (ROUTES, all.into_iter().flatten().collect())
            }
        };
        if parameters.is_empty() {
            return path.to_owned();
        }
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(parameters);
        format!("{path}?{}", query.finish())
    }
}

/// A value by its name on the command line.
fn name_of(value: &impl ValueEnum) -> String {
    let name = value.to_possible_value();
    name.map(|name| name.get_name().to_owned()).unwrap_or_default()
}

/// Who answers them.
#[derive(Clone, Debug)]
pub struct Questions {
    status: watch::Receiver<Arc<AgentStatus>>,
    /// None where there is no control loop.
    inquiries: Option<Inquiries>,
    configuration: Option<Arc<Config>>,
    places: Arc<Semaphore>,
}

impl Questions {
    /// Answers by the latest `status`, and by what the control loop says.
    #[must_use]
    pub fn new(status: watch::Receiver<Arc<AgentStatus>>, inquiries: Inquiries) -> Self {
        Self {
            inquiries: Some(inquiries),
            ..Self::about_status(status)
        }
    }

    /// Answers by the latest `status`, and nothing else: there is no control loop.
    #[must_use]
    pub fn about_status(status: watch::Receiver<Arc<AgentStatus>>) -> Self {
        Self {
            status,
            inquiries: None,
            configuration: None,
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The same, who also tell what the agent goes by.
    #[must_use]
    pub fn going_by(mut self, configuration: Arc<Config>) -> Self {
        self.configuration = Some(configuration);
        self
    }

    /// The way to the control loop.
    fn inquiries(&self) -> Result<Inquiries, Refusal> {
        let missing = || Problem {
            reason: "an agent in the shadow tells its status alone; culvert shadow tells the rest".to_owned(),
            retry: false,
        };
        self.inquiries.clone().ok_or_else(|| missing().into())
    }

    /// Their paths, for any server.
    pub(super) fn router(self) -> Router {
        Router::new()
            .route(STATUS, get(status))
            .route(VIEW, get(view))
            .route(DOCTOR, get(doctor))
            .route(KERNEL, get(kernel))
            .route(EXPLAIN, get(explain))
            .route(WRONG, get(wrong_routes))
            .route(ROUTES, get(routes))
            .route(CONFIGURATION, get(configuration))
            .route(FILTER, get(packet_filter))
            .with_state(self)
    }

    /// Does what takes time when there is a place for it. The place is taken until the work is done, even when the one who
    /// asked is gone.
    async fn answer<T: Serialize + Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<Response, Refusal> {
        let free = Arc::clone(&self.places).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(PATIENCE, free).await else {
            return Err(Refusal {
                status: StatusCode::SERVICE_UNAVAILABLE,
                problem: Problem {
                    reason: format!("the agent is busy with {AT_ONCE} other questions: ask again"),
                    retry: true,
                },
            });
        };
        let worked = tokio::spawn(async move {
            let begun = Instant::now();
            let answer = work.await;
            let rest = begun.elapsed().min(REST_MAX);
            (
                answer,
                Place {
                    place: Some(place),
                    rest,
                },
            )
        });
        let failed = |reason: String| Refusal {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            problem: Problem { reason, retry: true },
        };
        let (answer, place) = worked
            .await
            .map_err(|ended| failed(format!("the agent failed in this request: {ended}")))?;
        let answer = serde_json::to_vec(&answer?)
            .map_err(|error| failed(format!("the answer cannot be written as JSON: {error}")))?;
        let pieces = Pieces {
            left: answer.into(),
            _place: place,
        };
        Ok(([(header::CONTENT_TYPE, "application/json")], Body::new(pieces)).into_response())
    }
}

/// A place that stays taken for a while after it is given back.
struct Place {
    place: Option<OwnedSemaphorePermit>,
    rest: Duration,
}

impl Drop for Place {
    fn drop(&mut self) {
        let (place, rest) = (self.place.take(), self.rest);
        // Where the runtime ends there is nobody left to wait.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(rest).await;
                drop(place);
            });
        }
    }
}

/// An answer that is handed out piece by piece, so that its place is taken until nearly all of it is on its way.
struct Pieces {
    left: Bytes,
    _place: Place,
}

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.left.is_empty() {
            return Poll::Ready(None);
        }
        let length = self.left.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

async fn status(State(questions): State<Questions>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let mut parameters = Parameters::read(query.as_deref());
    let peers = parameters.choice("peers")?.unwrap_or_default();
    parameters.end(&["peers"])?;
    let latest = Arc::clone(&questions.status.borrow());
    let mut told = match peers {
        Peers::All | Peers::Counted => AgentStatus::clone(&latest),
        Peers::Exceptional => latest.exceptional(),
    };
    told.answered = Some(Timestamp::now());
    match questions.inquiries() {
        // Where they cannot be counted the rest is told all the same.
        Ok(inquiries) if peers == Peers::Counted => {
            let counted = async move {
                told.peer_routes = inquiries.count_routes().await.unwrap_or_default();
                Ok(told)
            };
            questions.answer(counted).await
        }
        _ => Ok(Json(told).into_response()),
    }
}

async fn kernel(State(questions): State<Questions>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    Parameters::read(query.as_deref()).end(&[])?;
    let inquiries = questions.inquiries()?;
    questions
        .answer(async move { Ok(inquiries.kernel().await?.with_switches()) })
        .await
}

async fn view(State(questions): State<Questions>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    Parameters::read(query.as_deref()).end(&[])?;
    let inquiries = questions.inquiries()?;
    questions.answer(async move { inquiries.view().await }).await
}

async fn doctor(State(questions): State<Questions>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    Parameters::read(query.as_deref()).end(&[])?;
    let inquiries = questions.inquiries()?;
    let status = Arc::clone(&questions.status.borrow());
    questions
        .answer(async move {
            let host = Host::look(status.peers.iter().map(|peer| peer.address)).await;
            inquiries.examine(host).await
        })
        .await
}

async fn explain(State(questions): State<Questions>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let mut parameters = Parameters::read(query.as_deref());
    let destination = parameters.0.remove("destination").unwrap_or_default();
    parameters.end(&["destination"])?;
    let destination = parse_destination(&destination).map_err(|error| wrong(error.to_string()))?;
    let inquiries = questions.inquiries()?;
    questions
        .answer(async move { inquiries.explain(destination).await })
        .await
}

async fn routes(State(questions): State<Questions>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let mut parameters = Parameters::read(query.as_deref());
    let request = RibRequest {
        table: parameters.choice("table")?.unwrap_or(RibTable::Best),
        peer: parameters.parsed::<IpAddr>("peer", "an address such as 172.18.0.12")?,
        within: parameters.parsed("within", "a range such as 10.65.0.0/16")?,
    };
    parameters.end(&["table", "peer", "within"])?;
    let inquiries = questions.inquiries()?;
    questions
        .answer(async move { inquiries.routes(request).await })
        .await
}

async fn wrong_routes(
    State(questions): State<Questions>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    Parameters::read(query.as_deref()).end(&[])?;
    let inquiries = questions.inquiries()?;
    questions
        .answer(async move {
            let wrong = inquiries.wrong_destinations().await?;
            let mut told = WrongRoutes {
                left_out: wrong.len().saturating_sub(MOST_EXPLAINED),
                ..WrongRoutes::default()
            };
            for destination in wrong.into_iter().take(MOST_EXPLAINED) {
                told.explanations.push(inquiries.explain(destination).await?);
            }
            Ok(told)
        })
        .await
}

async fn configuration(
    State(questions): State<Questions>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    Parameters::read(query.as_deref()).end(&[])?;
    let missing = || Problem {
        reason: "nothing is known here of the agent's configuration".to_owned(),
        retry: false,
    };
    let configuration = questions.configuration.as_ref().ok_or_else(missing)?;
    Ok(Json(configuration).into_response())
}

async fn packet_filter(
    State(questions): State<Questions>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    Parameters::read(query.as_deref()).end(&[])?;
    questions
        .answer(async {
            let read = async { Nftables::open()?.view().await };
            read.await.map_err(|error| Problem {
                reason: error.to_string(),
                retry: false,
            })
        })
        .await
}

fn wrong(reason: String) -> Refusal {
    Refusal {
        status: StatusCode::BAD_REQUEST,
        problem: Problem { reason, retry: false },
    }
}

/// The parameters of a question.
struct Parameters(BTreeMap<String, String>);

impl Parameters {
    fn read(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Self(pairs.into_owned().collect())
    }

    fn parsed<T: FromStr>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Refusal> {
        let Some(value) = self.0.remove(name) else {
            return Ok(None);
        };
        match value.parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(_) => Err(wrong(format!("{name} is {value:?}, which is not {expected}"))),
        }
    }

    fn choice<T: ValueEnum>(&mut self, name: &str) -> Result<Option<T>, Refusal> {
        let Some(value) = self.0.remove(name) else {
            return Ok(None);
        };
        let known: Vec<String> = T::value_variants().iter().map(name_of).collect();
        match T::from_str(&value, false) {
            Ok(chosen) => Ok(Some(chosen)),
            Err(_) => Err(wrong(format!(
                "{name} is {value:?}, and may be {}",
                known.join(" or ")
            ))),
        }
    }

    /// What is not known may have been meant to matter.
    fn end(self, known: &[&str]) -> Result<(), Refusal> {
        match self.0.keys().next() {
            None => Ok(()),
            Some(unknown) => Err(wrong(format!(
                "{unknown:?} is no parameter of this question; it has {}",
                if known.is_empty() {
                    "none".to_owned()
                } else {
                    known.join(", ")
                }
            ))),
        }
    }
}

#[cfg(test)]
mod tests;
