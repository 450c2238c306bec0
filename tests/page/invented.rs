//! The page of agents that no laboratory has: of a thousand nodes, of names that are markup, of an answer that does not come.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use culvert_agent::page::{BlockView, NodeView, PAGE, POLICY, PoolView, RouteView, Time, View};
use culvert_agent::status::{AgentStatus, PeerStatus, PeerType, RouteStatus};
use libtest_mimic::Failed;

use crate::browser::{Scheme, elements, picture};
use crate::{Outcome, names};

/// Nodes whose agents are down.
const DOWN: [u16; 4] = [101, 205, 309, 777];

/// A thousand nodes: those without a session are named, and the others counted.
pub(crate) fn thousand() -> Outcome {
    let server = Server::start(serde_json::to_vec(&view(1000, |n| format!("node{n}"), &DOWN))?)?;
    let url = server.url();
    let page = elements(None, &url)?;
    let expected = [
        "data-drawn=\"yes\"",
        "4 things are wrong.",
        "995 sessions of 999 are Established.",
        "995 peers",
        "no session with node777",
        "1,000 blocks of 4,096 are taken, by 1,000 nodes.",
        "Show all 1,000",
    ];
    names(&page, &expected)?;
    picture(None, &url, "thousand", Scheme::Light)?;
    picture(None, &url, "thousand-dark", Scheme::Dark)?;
    Ok(())
}

/// Names are shown as they are written, and do nothing.
pub(crate) fn markup() -> Outcome {
    let evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>";
    let server = Server::start(serde_json::to_vec(&view(3, |_| evil.to_owned(), &[2]))?)?;
    let page = elements(None, &server.url())?;
    names(&page, &["data-drawn=\"yes\"", "&lt;img src=x onerror="])?;
    for made in ["<img", "<title>owned"] {
        if page.contains(made) {
            return Err(format!("a name has become {made}:\n{page}").into());
        }
    }
    Ok(())
}

/// Where no answer comes, that is said, and nothing is drawn.
pub(crate) fn gone() -> Outcome {
    let server = Server::start(b"{\"reason\": \"the agent is about to end\"}".to_vec())?;
    server.refuse();
    let page = elements(None, &server.url())?;
    names(&page, &["The agent does not answer: the agent is about to end."])?;
    if page.contains("data-drawn") {
        return Err(format!("something was drawn:\n{page}").into());
    }
    Ok(())
}

/// The address of a node.
fn address(n: u16) -> IpAddr {
    IpAddr::from([172, 18, n.to_be_bytes()[0], n.to_be_bytes()[1]])
}

/// The block of a node.
fn block(n: u16) -> String {
    format!("10.{}.{}.{}/26", 64 + n / 1024, n % 1024 / 4, n % 4 * 64)
}

fn peer(n: u16, name: String, is_up: bool) -> PeerStatus {
    PeerStatus {
        address: address(n),
        node: Some(name),
        r#type: PeerType::Mesh,
        state: if is_up { "Established" } else { "Active" }.into(),
        since: Time::UNIX_EPOCH,
        reason: (!is_up).then(|| {
            "connection refused: no speaker listens there yet, or a filter there rejects TCP port 179".into()
        }),
        failures: 0,
        failed: None,
        prefixes_received: usize::from(is_up),
        prefixes_sent: usize::from(is_up),
        established_count: 1,
        stale: false,
        outer_source: None,
    }
}

fn route(n: u16, name: String) -> RouteView {
    let expected = format!("{} via {} dev tunl0 proto culvert onlink", block(n), address(n));
    RouteView {
        destination: block(n).parse().expect("a range"),
        node: Some(name),
        actual: Some(expected.clone()),
        expected,
        problem: None,
    }
}

fn owned(n: u16, name: String) -> BlockView {
    BlockView {
        cidr: block(n).parse().expect("a range"),
        node: name,
        is_orphan: false,
        in_use: (n == 1).then_some(17),
    }
}

/// What the agent of the first of `count` nodes tells; `down` have no session.
fn view(count: u16, name: impl Fn(u16) -> String, down: &[u16]) -> View {
    let without = |n: &u16| {
        format!(
            "no session with {} ({}): connection refused",
            name(*n),
            address(*n)
        )
    };
    let node = |n: u16| NodeView {
        name: name(n),
        address: Some(address(n)),
        blocks: 1,
    };
    View {
        at: Time::UNIX_EPOCH,
        status: AgentStatus {
            address: Some(address(1)),
            asn: 64_512,
            peers: (2..=count)
                .map(|n| peer(n, name(n), !down.contains(&n)))
                .collect(),
            routes: RouteStatus {
                desired: usize::from(count),
                programmed: usize::from(count),
                ..RouteStatus::default()
            },
            ..AgentStatus::starting(&name(1))
        },
        problems: down.iter().map(without).collect(),
        nodes: (1..=count).map(node).collect(),
        pools: vec![PoolView {
            name: name(0),
            cidr: "10.64.0.0/14".parse().expect("a range"),
            block_size: 26,
            disabled: false,
            blocks: (1..=count).map(|n| owned(n, name(n))).collect(),
        }],
        blocks_left_out: 0,
        routes: (1..=count).map(|n| route(n, name(n))).collect(),
        routes_left_out: 0,
        events: Vec::new(),
    }
}

/// Serves the page with the headers that an agent gives it, and one answer. It ends with the test.
struct Server {
    address: SocketAddr,
    refuses: Arc<AtomicBool>,
}

impl Server {
    fn start(answer: Vec<u8>) -> Result<Self, Failed> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let refuses = Arc::new(AtomicBool::new(false));
        let is_refused = Arc::clone(&refuses);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let is_refused = is_refused.load(Ordering::Relaxed);
                let answer = Arc::clone(&answer);
                // A browser opens connections that it does not use.
                std::thread::spawn(move || serve(stream, &answer, is_refused));
            }
        });
        Ok(Self { address, refuses })
    }

    /// Answers what is asked with an error from now on.
    fn refuse(&self) {
        self.refuses.store(true, Ordering::Relaxed);
    }

    fn url(&self) -> String {
        format!("http://{}/", self.address)
    }
}

fn serve(mut stream: TcpStream, answer: &[u8], is_refused: bool) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let policy: &str = &POLICY;
    let (status, kind, body): (&str, &str, &[u8]) = match request.split(' ').nth(1) {
        Some("/") => ("200 OK", "text/html; charset=utf-8", PAGE.as_bytes()),
        Some("/v1/view") if is_refused => ("503 Service Unavailable", "application/json", answer),
        Some("/v1/view") => ("200 OK", "application/json", answer),
        _ => ("404 Not Found", "text/plain", b""),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-security-policy: {policy}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
