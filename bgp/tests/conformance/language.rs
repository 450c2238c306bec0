//! A conversation with one speaker.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_bgp::id::{ConnectionId, Prefix};
use culvert_bgp::speaker::{Input, Output, Speaker};
use culvert_bgp::wire::message::{Message, Open};
use culvert_bgp::wire::{self, Negotiated};

use super::words::{error, message, open, pairs, peer, prefix, speaker, words_of_messages, words_of_status};

pub(crate) struct Conversation {
    speaker: Speaker,
    now: Instant,
    start: Instant,
    /// The connections by the numbers of the text.
    connections: Vec<ConnectionId>,
    /// The OPENs that were sent, and what they settled, as the peer sees it.
    opens: BTreeMap<ConnectionId, Open>,
    settled: BTreeMap<ConnectionId, Negotiated>,
}

/// The one origin of time; all else is measured from it.
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
fn origin() -> Instant {
    Instant::now()
}

impl Conversation {
    pub(crate) fn new() -> Self {
        let now = origin();
        Self {
            speaker: speaker(now, &BTreeMap::new()),
            now,
            start: now,
            connections: Vec::new(),
            opens: BTreeMap::new(),
            settled: BTreeMap::new(),
        }
    }

    fn settled(&self, connection: ConnectionId) -> Negotiated {
        let plain = Negotiated {
            four_octet_as: true,
            ..Negotiated::plain(true)
        };
        self.settled.get(&connection).copied().unwrap_or(plain)
    }

    /// The octets of a message of the peer; its OPEN settles how those after it are written.
    fn written(&mut self, connection: ConnectionId, words: &[&str]) -> Vec<u8> {
        if words.first() == Some(&"open")
            && let (Message::Open(theirs), Some(ours)) = (open(&words[1..]), self.opens.get(&connection))
        {
            self.settled
                .insert(connection, Negotiated::between(&theirs, ours));
        }
        message(words, self.settled(connection))
    }

    fn connection(&self, name: &str) -> ConnectionId {
        match name
            .strip_prefix('c')
            .and_then(|number| number.parse::<usize>().ok())
        {
            Some(number) => self.connections[number - 1],
            None if name == "last" => *self.connections.last().unwrap(),
            None => panic!("{name} is no connection"),
        }
    }

    fn name(&self, connection: ConnectionId) -> String {
        let at = self
            .connections
            .iter()
            .position(|&known| known == connection)
            .unwrap();
        format!("c{}", at + 1)
    }

    /// Lets one input act, and tells what came of it.
    pub(crate) fn say(&mut self, input: &str) -> Vec<String> {
        let words: Vec<&str> = input.split_whitespace().collect();
        let (verb, rest) = words.split_first().unwrap();
        match *verb {
            "speaker" => {
                let settings = pairs(rest);
                self.speaker = speaker(self.now, &settings);
                self.connections.clear();
            }
            "peers" => {
                let peers = rest.iter().map(|word| {
                    let config = peer(word);
                    (config.address, config)
                });
                self.speaker.handle(self.now, Input::Peers(peers.collect()));
            }
            "exports" => {
                let exports = rest.iter().map(|word| prefix(word)).collect();
                self.speaker.handle(self.now, Input::Exports(exports));
            }
            "wait" => return self.wait(Duration::from_secs_f64(rest[0].parse().unwrap())),
            "ask" => {
                let peer = rest[0].parse().unwrap();
                self.speaker.handle(self.now, Input::Refresh { peer });
            }
            "reset" => {
                let peer = rest[0].parse().unwrap();
                self.speaker.handle(self.now, Input::Reset { peer });
            }
            "explain" => return self.explain(prefix(rest[0])),
            "tables" => return self.tables(rest[0].parse().unwrap()),
            "stop" => self.speaker.handle(
                self.now,
                Input::Stop {
                    notify: rest == ["notify"],
                },
            ),
            "status" => {
                return self
                    .speaker
                    .peers()
                    .map(|status| words_of_status(&status))
                    .collect();
            }
            other => self.connect(other, rest),
        }
        self.answers()
    }

    /// The inputs that are about connections.
    fn connect(&mut self, verb: &str, rest: &[&str]) {
        match verb {
            "dialled" => {
                let connection = self.connection(rest[0]);
                self.speaker.handle(self.now, Input::Dialled { connection });
            }
            "accepted" => {
                let connection = self.speaker.next_connection();
                self.connections.push(connection);
                let peer = rest[0].parse().unwrap();
                self.speaker
                    .handle(self.now, Input::Accepted { connection, peer });
            }
            "received" => {
                let connection = self.connection(rest[0]);
                let messages = rest[1..].split(|&word| word == "+");
                let bytes: Vec<u8> = messages
                    .flat_map(|words| self.written(connection, words))
                    .collect();
                self.speaker.handle(
                    self.now,
                    Input::Received {
                        connection,
                        bytes: &bytes,
                    },
                );
            }
            "stalled" => {
                let connection = self.connection(rest[0]);
                self.speaker.handle(self.now, Input::Stalled { connection });
            }
            "sent" => {
                let connection = self.connection(rest[0]);
                self.speaker.handle(self.now, Input::Sent { connection });
            }
            "closed" => {
                let connection = self.connection(rest[0]);
                self.speaker.handle(
                    self.now,
                    Input::Closed {
                        connection,
                        error: error(rest[1]),
                    },
                );
            }
            other => panic!("{other} is no input"),
        }
    }

    fn explain(&self, prefix: Prefix) -> Vec<String> {
        let Some(view) = self.speaker.explain(prefix) else {
            return vec!["unknown".to_owned()];
        };
        let local = view.local.then(|| "local".to_owned());
        let paths = view.paths.iter().map(|path| {
            let (peer, id) = (path.peer, path.path_id);
            format!("from {peer} path {id}: {}", path.verdict)
        });
        let rejected = view
            .rejected
            .iter()
            .map(|(peer, why)| format!("from {peer}: not let in: {why}"));
        local.into_iter().chain(paths).chain(rejected).collect()
    }

    /// The three tables, as far as they concern a peer.
    fn tables(&self, peer: IpAddr) -> Vec<String> {
        let received = self.speaker.adj_rib_in(peer).map(|(nlri, path, why)| {
            let why = why.map(|why| format!(", not let in: {why}")).unwrap_or_default();
            format!("received {nlri} via {}{why}", path.next_hop)
        });
        let best = self.speaker.loc_rib().map(|(prefix, hops)| {
            let hops: Vec<_> = hops.iter().map(|hop| hop.address.to_string()).collect();
            format!("best {prefix} via [{}]", hops.join(" "))
        });
        let told = self.speaker.adj_rib_out(peer);
        let told = told.map(|(nlri, path)| format!("told {nlri} via {}", path.next_hop));
        received.chain(best).chain(told).collect()
    }

    fn wait(&mut self, time: Duration) -> Vec<String> {
        let end = self.now + time;
        let mut out = Vec::new();
        while let Some(at) = self.speaker.deadline().filter(|&at| at <= end) {
            self.now = at.max(self.now);
            self.speaker.handle(self.now, Input::Timer);
            let stamp = (self.now - self.start).as_secs_f64();
            out.extend(
                self.answers()
                    .into_iter()
                    .map(|answer| format!("{stamp:.1} s: {answer}")),
            );
        }
        self.now = end;
        out
    }

    fn answers(&mut self) -> Vec<String> {
        let mut out = Vec::new();
        while let Some(output) = self.speaker.poll_output() {
            match output {
                Output::Dial { connection, peer } => {
                    self.connections.push(connection);
                    out.push(format!("dial {} {peer}", self.name(connection)));
                }
                Output::Send { connection, bytes } => {
                    let name = self.name(connection);
                    let settled = self.settled(connection);
                    if let Ok(Message::Open(open)) =
                        wire::decode(&bytes, settled).map(|decoded| decoded.message)
                    {
                        self.opens.insert(connection, open);
                    }
                    out.extend(
                        words_of_messages(&bytes, settled)
                            .into_iter()
                            .map(|words| format!("send {name} {words}")),
                    );
                }
                Output::Close { connection } => out.push(format!("close {}", self.name(connection))),
                Output::RibChange(change) => {
                    let best: Vec<_> = change
                        .best
                        .iter()
                        .map(|hop| format!("via {} from {}", hop.address, hop.peer))
                        .collect();
                    let best = if best.is_empty() {
                        "none".to_owned()
                    } else {
                        best.join(", ")
                    };
                    out.push(format!("route {} {best}", change.prefix));
                }
                Output::SessionChange(change) => {
                    let reason = change
                        .reason
                        .map(|reason| format!(": {reason}"))
                        .unwrap_or_default();
                    out.push(format!(
                        "state {} {} to {}{reason}",
                        change.peer, change.from, change.to
                    ));
                }
                Output::Converged => out.push("converged".to_owned()),
            }
        }
        out
    }
}
