use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::civil::date;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::status::{AgentStatus, DatastoreStatus, PeerStatus, SessionCounts};
use crate::table::Paint;

/// Far more than anything here takes.
const GENEROUS: Duration = Duration::from_secs(300);

/// An agent at every address of the loopback network, on one port: node `nN` at 127.0.H.L. Where the address ends in 255 nobody
/// says anything, and at [`SLOW`] only who asks a second time is answered.
struct Servers {
    port: u16,
    /// How many were asked at once, at the most.
    most: Arc<AtomicUsize>,
}

const SLOW: [u8; 4] = [127, 0, 200, 254];

impl Servers {
    async fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let high = Arc::clone(&most);
        tokio::spawn(async move {
            let mut first = None;
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                if stream.local_addr().unwrap().ip() == IpAddr::from(SLOW) && first.is_none() {
                    first = Some(stream);
                    continue;
                }
                let (now, high) = (Arc::clone(&now), Arc::clone(&high));
                tokio::spawn(async move {
                    high.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    answer(stream, &now).await;
                });
            }
        });
        Self { port, most }
    }

    fn members(&self, count: u16) -> Vec<Member> {
        let member = |n: u16| {
            let [high, low] = n.to_be_bytes();
            let address = IpAddr::from([127, 0, high, low]);
            Member {
                node: format!("n{n:04}"),
                address: Some(address),
                way: Ok(Way::Direct(SocketAddr::new(address, self.port))),
            }
        };
        (1..=count).map(member).collect()
    }
}

async fn answer(mut stream: TcpStream, now: &AtomicUsize) {
    let mut request = [0; 1024];
    let length = stream.read(&mut request).await.unwrap();
    let request = String::from_utf8_lossy(&request[..length]).into_owned();
    let address = stream.local_addr().unwrap().ip();
    if address.to_string().ends_with(".255") {
        std::future::pending::<()>().await;
    }
    let status = AgentStatus {
        node: request.split(' ').nth(1).unwrap().to_owned(),
        address: Some(address),
        answered: Some(Timestamp::now()),
        ..AgentStatus::starting("n")
    };
    let body = serde_json::to_string(&status).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    // Before the answer, so that who has it may ask the next.
    now.fetch_sub(1, Ordering::SeqCst);
    stream.write_all((head + &body).as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_thousand_nodes_are_asked_a_few_at_once_and_answer_in_their_order() {
    let servers = Servers::start().await;
    let members: Vec<_> = servers
        .members(1004)
        .into_iter()
        .filter(|member| !member.address.unwrap().to_string().ends_with(".255"))
        .collect();
    let agents = Agents::of(members.clone());
    let terms = Terms {
        each: GENEROUS,
        all: GENEROUS,
        at_once: 64,
    };
    let question = Question::Status(http::Peers::Exceptional);
    let answered = ask::<AgentStatus>(&agents, question, terms).await;
    assert_eq!(answered.len(), 1001);
    for (answered, member) in answered.iter().zip(&members) {
        assert_eq!(answered.member, *member);
        let status = answered.outcome.as_ref().unwrap();
        assert_eq!(
            (status.node.as_str(), status.address),
            ("/v1/status?peers=exceptional", member.address)
        );
        // Both clocks are this machine's.
        let clock = answered.clock(status.answered.unwrap());
        assert!(clock.ahead.abs() <= clock.error, "{clock:?}");
    }
    let most = servers.most.load(Ordering::SeqCst);
    assert!((2..=64).contains(&most), "{most} at once");
}

#[tokio::test]
async fn who_does_not_answer_is_told_with_the_reason_and_holds_up_nobody() {
    let servers = Servers::start().await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.9:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let mut members = servers.members(2);
    let silent = SocketAddr::new([127, 0, 0, 255].into(), servers.port);
    members[1].way = Ok(Way::Direct(silent));
    for (node, way) in [
        ("n3", Ok(Way::Direct(closed))),
        ("n4", Err(Unanswered::NoPod)),
        (
            "n5",
            Err(Unanswered::NotRunning {
                pod: "culvert-abcde".into(),
                state: "Pending".into(),
            }),
        ),
    ] {
        members.push(Member {
            node: node.into(),
            address: None,
            way,
        });
    }
    let agents = Agents::of(members);
    let terms = Terms {
        each: Duration::from_secs(5),
        all: GENEROUS,
        at_once: 5,
    };
    let question = Question::Status(http::Peers::All);
    let answered = ask::<AgentStatus>(&agents, question, terms).await;
    let words: Vec<String> = answered
        .iter()
        .map(|answered| match &answered.outcome {
            Ok(status) => status.node.clone(),
            Err(reason) => reason.to_string(),
        })
        .collect();
    assert_eq!(
        words,
        [
            "/v1/status".to_owned(),
            "no answer within 5 s".to_owned(),
            format!(
                "cannot reach its agent at {closed}: connection refused; is it running, and its http.listen not 127.0.0.1?"
            ),
            "no agent runs there: no pod of the DaemonSet is on this node".to_owned(),
            "its agent does not run: the pod culvert-abcde is Pending".to_owned(),
        ]
    );
    let late = Terms {
        all: Duration::ZERO,
        ..terms
    };
    let answered = ask::<AgentStatus>(&agents, question, late).await;
    assert_eq!(answered[0].outcome, Err(Unanswered::NotAsked(0)));
}

#[tokio::test]
async fn a_silent_node_keeps_no_other_from_being_asked_and_is_asked_again() {
    let servers = Servers::start().await;
    let mut members = servers.members(2);
    members[0].way = Ok(Way::Direct(SocketAddr::new(SLOW.into(), servers.port)));
    let agents = Agents::of(members);
    // One after the other; the first alone would be waited for until all the time is over.
    let terms = Terms {
        each: GENEROUS,
        all: Duration::from_secs(8),
        at_once: 1,
    };
    let question = Question::Status(http::Peers::Exceptional);
    let answered = ask::<AgentStatus>(&agents, question, terms).await;
    let addresses = answered
        .iter()
        .map(|answered| answered.outcome.as_ref().unwrap().address);
    let expected = [Some(IpAddr::from(SLOW)), Some(IpAddr::from([127, 0, 0, 2]))];
    assert!(addresses.eq(expected), "{answered:?}");
}

#[test]
fn so_many_nodes_are_waited_for_as_the_time_for_all_allows() {
    let terms = Terms {
        each: Duration::from_secs(5),
        all: Duration::from_secs(10),
        at_once: 64,
    };
    let half = terms.all / 2;
    let first = |nodes| terms.patience(nodes, half, AT_FIRST).as_millis();
    // Nobody needs to be hurried where all can be asked at once; and nobody is given less than a node that is well may need.
    assert_eq!([0, 64, 65, 128, 1000].map(first), [5000, 5000, 2500, 2500, 1000]);
}

#[tokio::test]
async fn who_has_not_answered_is_not_asked_the_next_question() {
    let servers = Servers::start().await;
    let mut members = servers.members(2);
    members[1].way = Ok(Way::Direct(SocketAddr::new(
        [127, 0, 0, 255].into(),
        servers.port,
    )));
    let mut agents = Agents::of(members);
    let terms = Terms {
        each: Duration::from_secs(1),
        all: GENEROUS,
        at_once: 64,
    };
    let question = Question::Status(http::Peers::Exceptional);
    let answered = ask::<AgentStatus>(&agents, question, terms).await;
    assert_eq!(answered[1].outcome, Err(Unanswered::Timeout(1)));
    agents.leave_out(&answered);
    let [first, second] = agents.members() else {
        panic!("two members");
    };
    assert!(first.way.is_ok());
    assert_eq!(second.way, Err(Unanswered::Timeout(1)));
}

/// What a node says of itself that is well, with these peers: by number and state.
fn node(n: u16, peers: &[(u16, &str)], left_out: usize) -> Answered<AgentStatus> {
    let address = |n: u16| {
        let [high, low] = n.to_be_bytes();
        IpAddr::from([172, 18, high, low])
    };
    let peers: Vec<PeerStatus> = peers
        .iter()
        .map(|(n, state)| PeerStatus {
            node: Some(format!("n{n}")),
            reason: (*state != "Established").then(|| {
                "connection refused: no speaker listens there yet, or a filter there rejects TCP port 179"
                    .into()
            }),
            ..PeerStatus::example(address(*n), state)
        })
        .collect();
    let mut sessions = SessionCounts::of(&peers);
    sessions.peers += left_out;
    sessions.established += left_out;
    Answered {
        member: Member {
            node: format!("n{n}"),
            address: Some(address(n)),
            way: Err(Unanswered::NoAddress),
        },
        outcome: Ok(AgentStatus {
            address: Some(address(n)),
            version: "1.0.0".into(),
            datastore: DatastoreStatus {
                in_sync: true,
                problem: None,
            },
            started: now().timestamp() - SignedDuration::from_secs(3_725),
            blocks: vec!["10.65.42.0/26".parse().unwrap()],
            addresses_in_use: 3,
            sessions,
            peers,
            ..AgentStatus::starting(&format!("n{n}"))
        }),
        sent: Timestamp::UNIX_EPOCH,
        took: Duration::from_millis(12),
    }
}

fn silent(n: u16) -> Answered<AgentStatus> {
    Answered {
        outcome: Err(Unanswered::Timeout(5)),
        ..node(n, &[], 0)
    }
}

fn now() -> jiff::Zoned {
    date(2026, 11, 21).at(12, 0, 0, 0).in_tz("UTC").unwrap()
}

fn of(answered: Vec<Answered<AgentStatus>>) -> ClusterStatus {
    ClusterStatus::of(Timestamp::UNIX_EPOCH, answered)
}

#[test]
fn of_a_small_cluster_every_session_is_shown() {
    let status = of(vec![
        node(1, &[(2, "Established"), (3, "Active")], 0),
        node(2, &[(1, "Established"), (3, "Active")], 0),
        silent(3),
    ]);
    let expected = "\
3 nodes: 2 answered, 2 ready. 2 of 4 ends of sessions are Established. Version 1.0.0.
Something is wrong on 3 nodes.

NODE   ADDRESS      AGENT       SESSIONS   ROUTES   BLOCKS   REMARKS
n1     172.18.0.1   ready       1/2        0/0      1        1 of 2 sessions down
n2     172.18.0.2   ready       1/2        0/0      1        1 of 2 sessions down
n3     172.18.0.3   no answer   -          -        -        no answer within 5 s

BGP sessions
      1     2     3
1 n1  ·     up    DOWN
2 n2  up    ·     DOWN
3 n3  ?     ?     ·
(a row is what that node says; -: not its peer; ?: it has not answered)

Sessions that are down
  n1, n2 -> n3 (172.18.0.3): connection refused: no speaker listens there yet, or a filter there rejects TCP port 179
";
    assert_eq!(status.render(false, &now(), Paint::Plain), expected);
    let wide = status.render(true, &now(), Paint::Plain);
    assert!(
        wide.contains("n1     172.18.0.1   ready       1/2        0/0      1        3           1h2m     1.0.0     12 ms    1 of 2"),
        "{wide}"
    );
    let coloured = status.render(false, &now(), Paint::Coloured);
    assert!(coloured.contains("\u{1b}[31mDOWN  \u{1b}[0m"), "{coloured}");
}

#[test]
fn of_a_cluster_that_is_well_that_is_said_first() {
    let status = of(vec![
        node(1, &[(2, "Established")], 0),
        node(2, &[(1, "Established")], 0),
    ]);
    assert_eq!(status.summary.wrong, 0);
    let text = status.render(false, &now(), Paint::Plain);
    assert!(
        text.starts_with(
            "2 nodes: 2 answered, 2 ready. 2 of 2 ends of sessions are Established. Version 1.0.0.\nNothing is wrong.\n"
        ),
        "{text}"
    );
    assert!(!text.contains("down"), "{text}");
}

#[test]
fn of_a_large_cluster_what_is_wrong_is_shown_and_what_many_say_is_said_once() {
    let mut nodes: Vec<_> = (1..=999).map(|n| node(n, &[(1000, "Connect")], 998)).collect();
    nodes.push(silent(1000));
    let status = of(nodes);
    let text = status.render(false, &now(), Paint::Plain);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() < 70, "{} lines: {text}", lines.len());
    assert_eq!(
        lines[0],
        "1000 nodes: 999 answered, 999 ready. 997002 of 998001 ends of sessions are Established. Version 1.0.0."
    );
    assert!(
        text.contains("\nand 950 more nodes; -o json names all of them\n"),
        "{text}"
    );
    assert!(
        text.ends_with(
            "\nSessions that are down\n  n1, n2, n3, 996 more -> n1000 (172.18.3.232): connection refused: no speaker listens \
             there yet, or a filter there rejects TCP port 179\n"
        ),
        "{text}"
    );
    let well = of((1..=1000).map(|n| node(n, &[], 999)).collect());
    assert_eq!(
        well.render(false, &now(), Paint::Plain).lines().count(),
        2,
        "nothing is wrong: two lines say so"
    );
}
