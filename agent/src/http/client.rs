//! The other end of the agent's socket.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request, header};
use ipnet::IpNet;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::exchange::exchange;
use super::{Peers, Question};
use crate::cni::Problem;
use crate::doctor::{Finding, Report};
use crate::explanation::Explanation;
use crate::ribs::{RibRequest, RibRoutes};
use crate::speaker::Clear;
use crate::status::AgentStatus;
use crate::trace::Trace;
use crate::trace::run::Target;
use crate::withdrawal::Accepted;

/// Asks an agent over its socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    limit: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no agent answers on {} ({}): is it running? systemctl status culvert", socket.display(), in_words(source))]
    NoAgent {
        /// The socket.
        socket: PathBuf,
        /// Why it could not be connected to.
        source: io::Error,
    },
    /// Somebody listens and says nothing.
    #[error("the agent on {} has not answered within {} s", socket.display(), limit.as_secs())]
    Timeout {
        /// The socket.
        socket: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The connection broke.
    #[error("the agent on {} broke off: {source}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// How.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The answer is not what the question asks for.
    #[error("the answer of {} to {path} cannot be read: {source}: is it another version of the agent?", socket.display())]
    Unreadable {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        path: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The agent said no.
    #[error("{}", .0.reason)]
    Refused(Problem),
}

/// The system's words for an error, without its number.
pub(super) fn in_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

impl ClientError {
    /// Whether the same question may be answered later.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            ClientError::NoAgent { .. } | ClientError::Timeout { .. } | ClientError::Broken { .. } => true,
            ClientError::Unreadable { .. } => false,
            ClientError::Refused(problem) => problem.retry,
        }
    }
}

impl Client {
    /// A client that waits for an answer no longer than `limit`.
    #[must_use]
    pub fn new(socket: &Path, limit: Duration) -> Self {
        Self {
            socket: socket.to_owned(),
            limit,
        }
    }

    /// The agent's status.
    ///
    /// # Errors
    /// When there is no agent, or no answer of it.
    pub async fn status(&self) -> Result<AgentStatus, ClientError> {
        self.question(Question::Status(Peers::Counted)).await
    }

    /// Confirms the deletions that the agent holds.
    ///
    /// # Errors
    /// When there is no agent, or it holds none.
    pub async fn accept_withdrawal(&self) -> Result<Accepted, ClientError> {
        self.ask(Method::POST, "/v1/withdrawal/accept", Bytes::new())
            .await
    }

    /// Routes of the speaker's tables.
    ///
    /// # Errors
    /// When there is no agent, or the peer that is asked for is none of its.
    pub async fn bgp_routes(&self, request: &RibRequest) -> Result<RibRoutes, ClientError> {
        self.question(Question::Routes(*request)).await
    }

    /// Begins sessions anew; returns their peers.
    ///
    /// # Errors
    /// When there is no agent, or the peer is none of its.
    pub async fn bgp_clear(&self, clear: &Clear) -> Result<Vec<IpAddr>, ClientError> {
        self.post("/v1/bgp/clear", clear).await
    }

    /// Why packets for `destination` go where they go.
    ///
    /// # Errors
    /// When there is no agent, or it is about to end.
    pub async fn explain(&self, destination: IpNet) -> Result<Explanation, ClientError> {
        self.question(Question::Explain(destination)).await
    }

    /// What is wrong with the agent's node.
    ///
    /// # Errors
    /// When there is no agent, or it is about to end.
    pub async fn doctor(&self) -> Result<Report, ClientError> {
        self.question(Question::Doctor).await
    }

    /// Asks what changes nothing. `T` is what [`Question`] says of the answer.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub async fn question<T: DeserializeOwned>(&self, question: Question) -> Result<T, ClientError> {
        self.ask(Method::GET, &question.target(), Bytes::new()).await
    }

    /// The way of packets between two pods.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub async fn trace(&self, from: &Target, to: &Target) -> Result<Trace, ClientError> {
        self.post("/v1/trace", &(from.to_string(), to.to_string())).await
    }

    /// What is wrong with the ways to other nodes, by probes.
    ///
    /// # Errors
    /// When there is no agent, or it cannot send any.
    pub async fn ways(&self) -> Result<Vec<Finding>, ClientError> {
        self.ask(Method::POST, "/v1/ways", Bytes::new()).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.broken(error))?;
        self.ask(Method::POST, path, body.into()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let (granted, answer) = tokio::time::timeout(self.limit, self.exchange(method, path, body))
            .await
            .map_err(|_| ClientError::Timeout {
                socket: self.socket.clone(),
                limit: self.limit,
            })??;
        read_answer(&self.socket, path, granted, &answer)
    }

    /// Whether the agent granted it, and its answer.
    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(bool, Bytes), ClientError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::NoAgent {
                socket: self.socket.clone(),
                source,
            })?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "culvert")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.broken(error))?;
        let answer = exchange(stream, request)
            .await
            .map_err(|error| self.broken(error))?;
        Ok((answer.status().is_success(), answer.into_body()))
    }

    fn broken(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
        broken(&self.socket, source)
    }
}

/// What an agent's answer to `path` says: what was asked for, where it was granted, else why not.
///
/// # Errors
/// When it was not granted, or says something else.
pub(super) fn read_answer<T: DeserializeOwned>(
    socket: &Path,
    path: &str,
    granted: bool,
    answer: &[u8],
) -> Result<T, ClientError> {
    let unreadable = |source| ClientError::Unreadable {
        socket: socket.to_owned(),
        path: path.to_owned(),
        source,
    };
    if granted {
        return serde_json::from_slice(answer).map_err(unreadable);
    }
    let problem = serde_json::from_slice(answer).map_err(unreadable)?;
    Err(ClientError::Refused(problem))
}

pub(super) fn broken(
    socket: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ClientError {
    ClientError::Broken {
        socket: socket.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// What a client makes of somebody who answers every request with `answer` and hangs up, or only listens.
    async fn asked(answer: Option<&'static str>) -> ClientError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            assert_ne!(stream.read(&mut request).await.unwrap(), 0);
            match answer {
                Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                None => std::future::pending().await,
            }
        });
        let limit = Duration::from_secs(if answer.is_some() { 60 } else { 0 });
        let error = Client::new(&path, limit).status().await.unwrap_err();
        server.abort();
        error
    }

    #[tokio::test]
    async fn silence_and_a_broken_connection_are_temporary() {
        let error = asked(None).await;
        assert!(
            error.is_temporary() && error.to_string().ends_with("has not answered within 0 s"),
            "{error}"
        );
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"] {
            let error = asked(Some(answer)).await;
            assert!(
                matches!(error, ClientError::Broken { .. }) && error.is_temporary(),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn an_answer_in_other_words_is_not() {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        ] {
            let error = asked(Some(answer)).await;
            assert!(
                matches!(error, ClientError::Unreadable { .. }) && !error.is_temporary(),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_refusal_is_in_the_agents_words() {
        let answer = "HTTP/1.1 422 -\r\ncontent-length: 33\r\n\r\n{\"reason\":\"no pool\",\"retry\":true}";
        let error = asked(Some(answer)).await;
        assert_eq!(error.to_string(), "no pool");
        assert!(error.is_temporary());
    }
}
