//! The words of the conversations.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_bgp::id::{Asn, ConnectionId, HoldTime, Prefix, RouterId};
use culvert_bgp::speaker::{Input, Output, PeerConfig, Speaker, SpeakerConfig, TransportError};
use culvert_bgp::wire::message::{
    AsPath, AsSegment, Capability, Family, GracefulRestart, Message, Nlri, Notification, Open,
    PathAttributes, RefreshKind, Update,
};
use culvert_bgp::wire::{self, Negotiated};

pub(crate) struct Conversation {
    speaker: Speaker,
    now: Instant,
    start: Instant,
    /// The connections by the numbers of the text.
    connections: Vec<ConnectionId>,
}

/// The one origin of time; all else is measured from it.
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
fn origin() -> Instant {
    Instant::now()
}

fn asn(text: &str) -> Asn {
    Asn::new(text.parse().unwrap()).unwrap()
}

fn prefix(text: &str) -> Prefix {
    Prefix::new(text.parse().unwrap())
}

/// `key=value` words.
fn pairs<'a>(words: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    words.iter().filter_map(|word| word.split_once('=')).collect()
}

fn open(words: &[&str]) -> Message {
    let options = pairs(words);
    let get = |key, default| *options.get(key).unwrap_or(&default);
    let asn = asn(get("as", "64512"));
    let mut capabilities = match get("families", "1/1") {
        "none" => vec![],
        families => families
            .split(',')
            .map(|family| {
                let (afi, safi) = family.split_once('/').unwrap();
                Capability::MultiProtocol(Family {
                    afi: afi.parse().unwrap(),
                    safi: safi.parse().unwrap(),
                })
            })
            .collect(),
    };
    capabilities.push(Capability::FourOctetAs(asn));
    // gr=120, gr=120R, gr=120F, gr=120RF
    let restart = get("gr", "120F");
    if restart != "none" {
        capabilities.push(Capability::GracefulRestart(GracefulRestart {
            notification: false,
            restarted: restart.contains('R'),
            restart_time: restart.trim_end_matches(['R', 'F']).parse().unwrap(),
            families: vec![(Family::IPV4_UNICAST, restart.contains('F'))],
        }));
    }
    Message::Open(Open {
        asn,
        hold_time: HoldTime::new(get("hold", "90").parse().unwrap()).unwrap(),
        router_id: RouterId::new(get("id", "172.18.0.11").parse().unwrap()).unwrap(),
        capabilities,
    })
}

fn announce(words: &[&str]) -> Message {
    let options = pairs(words);
    let path = options
        .get("path")
        .map(|path| path.split(',').map(asn).collect::<Vec<_>>());
    let attributes = PathAttributes {
        as_path: AsPath {
            segments: path.into_iter().map(AsSegment::Sequence).collect(),
        },
        med: options.get("med").map(|med| med.parse().unwrap()),
        local_pref: Some(options.get("pref").unwrap_or(&"100").parse().unwrap()),
        ..PathAttributes::new(options.get("via").unwrap_or(&"172.18.0.11").parse().unwrap())
    };
    let announced = words
        .iter()
        .filter(|word| !word.contains('='))
        .map(|word| Nlri::from(prefix(word)))
        .collect();
    Message::Update(Update {
        announced,
        attributes: Some(Arc::new(attributes)),
        ..Update::default()
    })
}

fn message(words: &[&str]) -> Vec<u8> {
    let negotiated = Negotiated {
        four_octet_as: true,
        ..Negotiated::plain(true)
    };
    let (kind, rest) = words.split_first().unwrap();
    let message = match *kind {
        "open" => open(rest),
        "keepalive" => Message::Keepalive,
        "refresh" => Message::RouteRefresh {
            family: Family::IPV4_UNICAST,
            kind: RefreshKind::Request,
        },
        "announce" => announce(rest),
        "withdraw" => {
            let withdrawn = rest.iter().map(|word| Nlri::from(prefix(word))).collect();
            Message::Update(Update {
                withdrawn,
                ..Update::default()
            })
        }
        "end-of-rib" => return wire::encode_end_of_rib(Family::IPV4_UNICAST),
        "notification" => {
            let (code, subcode) = rest[0].split_once('/').unwrap();
            let (code, subcode) = (code.parse().unwrap(), subcode.parse().unwrap());
            let text = rest[1..].join(" ");
            Message::Notification(if text.is_empty() {
                Notification::new(code, subcode)
            } else {
                Notification::cease_with_text(subcode, &text)
            })
        }
        "octets" => {
            let octet = |word: &&str| u8::from_str_radix(word, 16).unwrap();
            return rest.iter().map(octet).collect();
        }
        other => panic!("{other} is no message"),
    };
    wire::encode(&message, negotiated)
}

fn error(word: &str) -> TransportError {
    match word {
        "refused" => TransportError::Refused,
        "timed-out" => TransportError::TimedOut,
        "reset" => TransportError::Reset,
        "unreachable" => TransportError::Unreachable,
        "ended" => TransportError::Ended,
        "queue-full" => TransportError::SendQueueFull,
        other => panic!("{other} is no error"),
    }
}

impl Conversation {
    pub(crate) fn new() -> Self {
        let now = origin();
        Self {
            speaker: speaker(now, &BTreeMap::new()),
            now,
            start: now,
            connections: Vec::new(),
        }
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
                    let (address, number) = word.split_once('=').unwrap_or((word, "64512"));
                    let address: IpAddr = address.parse().unwrap();
                    (address, PeerConfig::new(address, asn(number)))
                });
                self.speaker.handle(self.now, Input::Peers(peers.collect()));
            }
            "exports" => {
                let exports = rest.iter().map(|word| prefix(word)).collect();
                self.speaker.handle(self.now, Input::Exports(exports));
            }
            "wait" => return self.wait(Duration::from_secs_f64(rest[0].parse().unwrap())),
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
                let bytes: Vec<u8> = rest[1..].split(|&word| word == "+").flat_map(message).collect();
                self.speaker.handle(
                    self.now,
                    Input::Received {
                        connection,
                        bytes: &bytes,
                    },
                );
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
                    out.extend(
                        words_of_messages(&bytes)
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

fn speaker(now: Instant, settings: &BTreeMap<&str, &str>) -> Speaker {
    let get = |key, default| *settings.get(key).unwrap_or(&default);
    let config = SpeakerConfig {
        asn: asn(get("as", "64512")),
        router_id: RouterId::new(get("id", "172.18.0.10").parse().unwrap()).unwrap(),
        local_address: Ipv4Addr::new(172, 18, 0, 10),
        hold_time: HoldTime::new(get("hold", "90").parse().unwrap()).unwrap(),
        connect_retry: Duration::from_secs(5),
        restart_time: 120,
        restarted: get("restarted", "no") == "yes",
        seed: 1,
    };
    Speaker::new(config, now)
}

fn words_of_status(status: &culvert_bgp::speaker::PeerStatus) -> String {
    let reason = status
        .reason
        .as_ref()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    format!(
        "{} AS {} {}{reason}: received {} stale {} sent {} up {} times, end-of-rib {}, faults {}, hold {:?}",
        status.peer,
        status.asn,
        status.state,
        status.prefixes_received,
        status.stale,
        status.prefixes_sent,
        status.established_count,
        status.end_of_rib,
        status.faults,
        status.hold_time.map(HoldTime::seconds),
    )
}

fn words_of_messages(mut bytes: &[u8]) -> Vec<String> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (message, rest) = bytes.split_at(wire::frame(bytes, Negotiated::plain(true)).unwrap().unwrap());
        // The form of UPDATEs to external peers differs in LOCAL_PREF only.
        let internal = Negotiated {
            four_octet_as: true,
            ..Negotiated::plain(true)
        };
        let external = Negotiated {
            four_octet_as: true,
            ..Negotiated::plain(false)
        };
        let decoded = wire::decode(message, internal).unwrap();
        let decoded = if decoded.faults.is_empty() {
            decoded
        } else {
            wire::decode(message, external).unwrap()
        };
        assert_eq!(decoded.faults, [], "what we send is sound");
        out.push(words_of_message(&decoded.message));
        bytes = rest;
    }
    out
}

fn list(prefixes: &[Nlri]) -> String {
    prefixes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
}

fn words_of_message(message: &Message) -> String {
    match message {
        Message::Open(open) => {
            let capabilities: Vec<_> = open.capabilities.iter().map(words_of_capability).collect();
            format!(
                "OPEN as={} hold={} id={} {}",
                open.asn,
                open.hold_time.seconds(),
                open.router_id,
                capabilities.join(" ")
            )
        }
        Message::Keepalive => "KEEPALIVE".to_owned(),
        Message::Notification(notification) => format!("NOTIFICATION {notification}"),
        Message::RouteRefresh { family, kind } => {
            let kind = match kind {
                RefreshKind::Request => String::new(),
                kind => format!(" {kind:?}"),
            };
            format!("ROUTE-REFRESH {}/{}{kind}", family.afi, family.safi)
        }
        Message::Update(update) if update.end_of_rib.is_some() => "END-OF-RIB".to_owned(),
        Message::Update(update) => {
            let mut words = "UPDATE".to_owned();
            if !update.withdrawn.is_empty() {
                words += &format!(" withdraw {}", list(&update.withdrawn));
            }
            if let Some(attributes) = update
                .attributes
                .as_ref()
                .filter(|_| !update.announced.is_empty())
            {
                let path: Vec<String> = attributes
                    .as_path
                    .segments
                    .iter()
                    .flat_map(|segment| match segment {
                        AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => numbers,
                    })
                    .map(ToString::to_string)
                    .collect();
                words += &format!(
                    " announce {} via {} path [{}] pref {:?} med {:?} {:?}",
                    list(&update.announced),
                    attributes.next_hop,
                    path.join(" "),
                    attributes.local_pref,
                    attributes.med,
                    attributes.origin,
                );
            }
            words
        }
    }
}

fn words_of_capability(capability: &Capability) -> String {
    match capability {
        Capability::MultiProtocol(family) => format!("family={}/{}", family.afi, family.safi),
        Capability::RouteRefresh => "refresh".to_owned(),
        Capability::FourOctetAs(asn) => format!("as4={asn}"),
        Capability::GracefulRestart(restart) => {
            let kept = restart.families.iter().any(|&(_, kept)| kept);
            let bits = [(restart.restarted, "R"), (kept, "F")];
            let bits: String = bits.iter().filter(|(set, _)| *set).map(|&(_, bit)| bit).collect();
            format!("gr={}{bits}", restart.restart_time)
        }
        Capability::EnhancedRouteRefresh => "enhanced-refresh".to_owned(),
        Capability::ExtendedMessage => "extended-message".to_owned(),
        Capability::AddPath(_) | Capability::ExtendedNextHop(_) | Capability::LongLivedGracefulRestart(_) => {
            format!("{capability:?}")
        }
        Capability::Unknown { code, .. } => format!("unknown={code}"),
    }
}
