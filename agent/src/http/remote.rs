//! The agents of other nodes, asked over TCP; and what an answer says, whichever way it came.

use std::io;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::client::in_words;
use super::exchange::exchange;
use crate::cni::Problem;

/// So much of a reason that somebody else gives is told, in characters.
const REASON_MAX: usize = 300;

/// Why the agent of a node has not answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Unanswered {
    /// The cluster knows of no agent there.
    #[error("no agent runs there: no pod of the DaemonSet is on this node")]
    NoPod,
    /// There is a pod, and it does not run.
    #[error("its agent does not run: the pod {pod} is {state}")]
    NotRunning {
        /// The pod's name.
        pod: String,
        /// Its phase, and why.
        state: String,
    },
    /// Nobody knows where to ask.
    #[error("it has no address yet: its agent has never run")]
    NoAddress,
    /// Nobody listens, or the way there is closed.
    #[error(
        "cannot reach its agent at {address}: {reason}; is it running, and its http.listen not 127.0.0.1?"
    )]
    Unreachable {
        /// Address and port.
        address: SocketAddr,
        /// The system's words.
        reason: String,
    },
    /// The same, seen from the API server.
    #[error(
        "the API server cannot reach its agent: {0}; is the chart's http.address 127.0.0.1, or is the port filtered?"
    )]
    UnreachableByProxy(String),
    /// The one who asks may not.
    #[error("the API server refuses: {0}; the chart's roles culvert-operator allow it (operator.subjects)")]
    Forbidden(String),
    /// The API server itself did not do it.
    #[error("the API server says {code}: {said}")]
    Proxy {
        /// The status code.
        code: u16,
        /// Its words.
        said: String,
    },
    /// The request could not even be sent to the API server.
    #[error("the API server is away: {0}")]
    NoProxy(String),
    /// No answer in time.
    #[error("no answer within {0} s")]
    Timeout(u64),
    /// The time for all nodes was over before its turn came.
    #[error("not asked: the {0} s for all nodes were over")]
    NotAsked(u64),
    /// The agent refused.
    #[error("its agent says: {0}")]
    Refused(String),
    /// It is no answer to the question.
    #[error("its answer cannot be read: {0}: is it another version of the agent?")]
    Unreadable(String),
}

/// Asks the agent at `address`: the status code, and the body.
///
/// # Errors
/// When it cannot be reached, or the connection breaks.
pub async fn get(address: SocketAddr, target: &str) -> Result<(StatusCode, Bytes), Unanswered> {
    let unreachable = |reason: String| Unanswered::Unreachable { address, reason };
    let stream = TcpStream::connect(address)
        .await
        .map_err(|error: io::Error| unreachable(in_words(&error)))?;
    let request = Request::get(target)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::new()))
        .map_err(|error| unreachable(error.to_string()))?;
    let answer = exchange(stream, request)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let (head, body) = answer.into_parts();
    Ok((head.status, body))
}

/// Asks the agent at `address`, and reads its answer.
///
/// # Errors
/// Those of [`get`] and [`read`].
pub async fn ask<T: DeserializeOwned>(address: SocketAddr, target: &str) -> Result<T, Unanswered> {
    let (code, body) = get(address, target).await?;
    read(code, &body)
}

/// What an API server says of a request that it does not grant (meta/v1 Status).
#[derive(Deserialize)]
struct Status {
    kind: String,
    #[serde(default)]
    message: String,
}

/// The answer in a body: of the agent, or of the API server on the way to it.
///
/// # Errors
/// When it is a refusal of either, or nothing that answers the question.
pub fn read<T: DeserializeOwned>(code: StatusCode, body: &[u8]) -> Result<T, Unanswered> {
    if code.is_success() {
        return serde_json::from_slice(body).map_err(|error| Unanswered::Unreadable(error.to_string()));
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(body) {
        return Err(Unanswered::Refused(shortened(&problem.reason)));
    }
    match serde_json::from_slice::<Status>(body) {
        Ok(status) if status.kind == "Status" => Err(refused_on_the_way(code, &status.message)),
        // The API server hands through in plain text that a connection failed, where it did so late.
        _ if code == StatusCode::BAD_GATEWAY || code == StatusCode::SERVICE_UNAVAILABLE => {
            Err(refused_on_the_way(code, &String::from_utf8_lossy(body)))
        }
        _ => Err(Unanswered::Unreadable(format!("it is {code}"))),
    }
}

fn refused_on_the_way(code: StatusCode, message: &str) -> Unanswered {
    const UNREACHABLE: &str = "error trying to reach service: ";
    let said = shortened(message.trim());
    match code {
        StatusCode::FORBIDDEN => Unanswered::Forbidden(said),
        _ => match said.split_once(UNREACHABLE) {
            Some((_, why)) => Unanswered::UnreachableByProxy(why.trim_matches('\'').to_owned()),
            None => Unanswered::Proxy {
                code: code.as_u16(),
                said,
            },
        },
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bodies of refusals as kube-apiserver 1.20 and etcd 3.4 gave them to `kubectl get --raw`.
    #[test]
    fn a_refusal_is_told_by_who_refused() {
        let status = |message: &str| {
            serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message,
                "reason": "ServiceUnavailable", "code": 503})
            .to_string()
        };
        for (code, body, expected) in [
            (
                422,
                r#"{"reason":"no such peer","retry":false}"#.to_owned(),
                "its agent says: no such peer",
            ),
            (
                503,
                status(
                    "error trying to reach service: dial tcp 172.18.0.12:9179: connect: connection refused",
                ),
                "the API server cannot reach its agent: dial tcp 172.18.0.12:9179: connect: connection refused; is the \
                 chart's http.address 127.0.0.1, or is the port filtered?",
            ),
            (
                403,
                status("pods \"a\" is forbidden: User \"o\" cannot get resource \"pods/proxy\""),
                "the API server refuses: pods \"a\" is forbidden: User \"o\" cannot get resource \"pods/proxy\"; the chart's \
                 roles culvert-operator allow it (operator.subjects)",
            ),
            (
                404,
                status("pods \"a\" not found"),
                "the API server says 404: pods \"a\" not found",
            ),
            (
                404,
                String::new(),
                "its answer cannot be read: it is 404 Not Found: is it another version of the agent?",
            ),
            (
                200,
                "[".to_owned(),
                "its answer cannot be read: EOF while parsing a list at line 1 column 1: is it another version of the agent?",
            ),
        ] {
            let code = StatusCode::from_u16(code).unwrap();
            let refused = read::<Vec<u8>>(code, body.as_bytes()).unwrap_err();
            assert_eq!(refused.to_string(), expected);
        }
        assert_eq!(read::<Vec<u8>>(StatusCode::OK, b"[1]"), Ok(vec![1]));
    }

    #[test]
    fn of_a_long_reason_the_beginning_is_told() {
        let body = serde_json::json!({"reason": "x".repeat(10_000), "retry": false}).to_string();
        let refused = read::<()>(StatusCode::UNPROCESSABLE_ENTITY, body.as_bytes()).unwrap_err();
        assert_eq!(refused, Unanswered::Refused("x".repeat(REASON_MAX)));
    }
}
