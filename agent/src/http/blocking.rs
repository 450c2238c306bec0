//! The CNI plugin's end of the agent's socket. A process that asks once or twice, and has nothing else to do until it is
//! answered, starts sooner and takes less memory without a runtime and all that HTTP has for others.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use super::client::{ClientError, broken, read_answer};
use super::exchange::MAX_ANSWER;
use super::{Peers, Question};
use crate::cni::{AddAnswer, AddRequest, Addresses, CheckRequest, Container, Containers, NetworkRequest};
use crate::status::AgentStatus;

/// Header fields that an answer may have.
const MAX_HEADERS: usize = 32;

/// Asks an agent over its socket, and waits.
#[derive(Clone, Debug)]
pub struct BlockingClient {
    socket: PathBuf,
    limit: Duration,
}

/// Why there is no answer, before it is known who asked.
enum Fault {
    NotConnected(io::Error),
    TooLate,
    Broken(Box<dyn std::error::Error + Send + Sync>),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The kernel's word for a timeout of a socket.
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TooLate,
            _ => Self::Broken(error.into()),
        }
    }
}

impl BlockingClient {
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
    pub fn status(&self) -> Result<AgentStatus, ClientError> {
        self.ask("GET", &Question::Status(Peers::Counted).target(), &[])
    }

    /// An address for a container.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub fn add(&self, request: &AddRequest) -> Result<AddAnswer, ClientError> {
        self.post("/v1/cni/add", request)
    }

    /// Gives a container's addresses back.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub fn del(&self, request: &Container) -> Result<Addresses, ClientError> {
        self.post("/v1/cni/del", request)
    }

    /// The addresses that a container has.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub fn addresses(&self, request: &Container) -> Result<Addresses, ClientError> {
        self.post("/v1/cni/addresses", request)
    }

    /// The containers of a network that have addresses on this node.
    ///
    /// # Errors
    /// When there is no agent, or it refuses.
    pub fn containers(&self, request: &NetworkRequest) -> Result<Containers, ClientError> {
        self.post("/v1/cni/containers", request)
    }

    /// Whether a container still has its address.
    ///
    /// # Errors
    /// When there is no agent, or the container has not.
    pub fn check(&self, request: &CheckRequest) -> Result<(), ClientError> {
        self.post("/v1/cni/check", request)
    }

    fn post<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| broken(&self.socket, error))?;
        self.ask("POST", path, &body)
    }

    fn ask<T: DeserializeOwned>(&self, method: &str, path: &str, body: &[u8]) -> Result<T, ClientError> {
        let (granted, answer) = self
            .exchange(method, path, body)
            .map_err(|fault| self.error(fault))?;
        read_answer(&self.socket, path, granted, &answer)
    }

    fn error(&self, fault: Fault) -> ClientError {
        match fault {
            Fault::NotConnected(source) => ClientError::NoAgent {
                socket: self.socket.clone(),
                source,
            },
            Fault::TooLate => ClientError::Timeout {
                socket: self.socket.clone(),
                limit: self.limit,
            },
            Fault::Broken(why) => broken(&self.socket, why),
        }
    }

    /// Whether the agent granted it, and its answer.
    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<(bool, Vec<u8>), Fault> {
        let deadline = Instant::now() + self.limit;
        let mut stream = self.connect()?;
        // RFC 9112 §9.6: no second request will come.
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: culvert\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut request = head.into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request)?;
        let mut answer = Vec::with_capacity(4096);
        loop {
            if let Some(whole) = parse(&answer)? {
                return Ok(whole);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::TooLate);
            }
            stream.set_read_timeout(Some(left))?;
            let mut piece = [0; 4096];
            let read = match stream.read(&mut piece) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                return Err(Fault::Broken("it hung up before its answer was whole".into()));
            }
            answer.extend(piece.iter().take(read));
            if answer.len() > MAX_ANSWER {
                return Err(Fault::Broken(
                    format!("its answer has more than {MAX_ANSWER} bytes").into(),
                ));
            }
        }
    }

    fn connect(&self) -> Result<UnixStream, Fault> {
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // That of a connection as well, while an agent that hangs lets nobody in (unix(7)). Zero would be for ever.
            socket.set_write_timeout(Some(self.limit.max(Duration::from_millis(1))))?;
            socket.connect(&SockAddr::unix(&self.socket)?)?;
            Ok(socket.into())
        };
        connect().map_err(Fault::NotConnected)
    }
}

/// Whether the agent granted it, and its answer, once that is whole.
fn parse(answer: &[u8]) -> Result<Option<(bool, Vec<u8>)>, Fault> {
    let wrong =
        |why: String| Fault::Broken(format!("its answer is no HTTP that is known here: {why}").into());
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(answer).map_err(|error| wrong(error.to_string()))?;
    let httparse::Status::Complete(start) = parsed else {
        return Ok(None);
    };
    let length = head
        .headers
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("content-length"))
        .and_then(|field| std::str::from_utf8(field.value).ok())
        .and_then(|text| text.trim().parse::<usize>().ok())
        // The agent knows its answers before it begins to send them.
        .ok_or_else(|| wrong("no content-length".to_owned()))?;
    let body = answer.get(start..).unwrap_or_default();
    let granted = head.code.is_some_and(|code| (200..300).contains(&code));
    Ok(body.get(..length).map(|body| (granted, body.to_vec())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// What a client makes of somebody who answers every request with `answer` in pieces of one byte and hangs up, or who
    /// only listens.
    fn asked(answer: Option<&'static str>) -> ClientError {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert_ne!(stream.read(&mut request).unwrap(), 0);
            match answer {
                Some(answer) => answer.bytes().for_each(|byte| stream.write_all(&[byte]).unwrap()),
                None => drop(is_done.recv()),
            }
        });
        let limit = if answer.is_some() {
            Duration::from_secs(60)
        } else {
            Duration::from_millis(10)
        };
        let error = BlockingClient::new(&path, limit).status().unwrap_err();
        drop(done);
        server.join().unwrap();
        error
    }

    #[test]
    fn silence_and_a_broken_connection_are_temporary() {
        let error = asked(None);
        assert!(
            error.is_temporary() && error.to_string().ends_with("has not answered within 0 s"),
            "{error}"
        );
        for answer in ["", "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", "HTTP/1.1 2"] {
            let error = asked(Some(answer));
            assert!(
                matches!(error, ClientError::Broken { .. }) && error.is_temporary(),
                "{error}"
            );
        }
    }

    #[test]
    fn an_answer_in_other_words_is_not() {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        ] {
            let error = asked(Some(answer));
            assert!(
                matches!(error, ClientError::Unreadable { .. }) && !error.is_temporary(),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_no_http_or_of_unknown_length_is_no_answer() {
        for answer in [
            "ok\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let error = asked(Some(answer));
            assert!(matches!(error, ClientError::Broken { .. }), "{error}");
        }
    }

    #[test]
    fn a_refusal_is_in_the_agents_words_though_it_comes_in_pieces() {
        let answer = "HTTP/1.1 422 -\r\nContent-Length: 33\r\n\r\n{\"reason\":\"no pool\",\"retry\":true}";
        let error = asked(Some(answer));
        assert_eq!(error.to_string(), "no pool");
        assert!(error.is_temporary());
    }

    #[test]
    fn where_nobody_listens_there_is_no_agent() {
        let client = BlockingClient::new(Path::new("/nowhere/agent.sock"), Duration::from_secs(60));
        let error = client.status().unwrap_err();
        assert!(matches!(error, ClientError::NoAgent { .. }), "{error}");
    }
}
