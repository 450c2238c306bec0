//! What holds for a speaker whatever comes: properties, and limits that are too large for a conversation.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_bgp::id::{Asn, ConnectionId, HoldTime, NextHop, Prefix, RouterId};
use culvert_bgp::speaker::{
    Input, Output, PeerConfig, Reason, Speaker, SpeakerConfig, State, TransportError,
};
use culvert_bgp::wire::message::{
    Capability, Family, GracefulRestart, Message, Nlri, Notification, Open, PathAttributes, RefreshKind,
    Update,
};
use culvert_bgp::wire::{self, Negotiated};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};

const INTERNAL: Negotiated = Negotiated {
    four_octet_as: true,
    ..Negotiated::plain(true)
};
const PEERS: u8 = 3;
const MAX_PREFIXES: usize = 200_000;

/// The one origin of time; all else is measured from it.
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
fn origin() -> Instant {
    Instant::now()
}

fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, node)
}

fn prefix(number: u32) -> Prefix {
    let base = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    Prefix::new(format!("{}/32", Ipv4Addr::from(base + number)).parse().unwrap())
}

fn open(node: u8) -> Message {
    Message::Open(Open {
        asn: Asn::new(64512).unwrap(),
        hold_time: HoldTime::new(90).unwrap(),
        router_id: RouterId::new(address(node)).unwrap(),
        capabilities: vec![
            Capability::MultiProtocol(Family::IPV4_UNICAST),
            Capability::FourOctetAs(Asn::new(64512).unwrap()),
            Capability::GracefulRestart(GracefulRestart {
                restarted: false,
                notification: false,
                restart_time: 30,
                families: vec![(Family::IPV4_UNICAST, true)],
            }),
        ],
    })
}

fn attributes(node: u8, preference: u32) -> Arc<PathAttributes> {
    Arc::new(PathAttributes {
        local_pref: Some(preference),
        ..PathAttributes::new(address(node).into())
    })
}

/// A speaker, and what a driver would hold of it: every output is checked against what went before.
struct Watched {
    speaker: Speaker,
    now: Instant,
    /// The open connections and attempts, with the peer, and whether the connection stands.
    connections: BTreeMap<ConnectionId, (IpAddr, bool)>,
    table: BTreeMap<Prefix, Vec<NextHop>>,
    states: BTreeMap<IpAddr, State>,
    ups: u64,
    downs: u64,
    reasons: Vec<Reason>,
}

impl Watched {
    fn new() -> Self {
        let now = origin();
        let config = SpeakerConfig {
            connect_retry: Duration::from_secs(5),
            seed: 7,
            ..SpeakerConfig::new(
                Asn::new(64512).unwrap(),
                RouterId::new(address(10)).unwrap(),
                address(10),
            )
        };
        let mut watched = Self {
            speaker: Speaker::new(config, now),
            now,
            connections: BTreeMap::new(),
            table: BTreeMap::new(),
            states: BTreeMap::new(),
            ups: 0,
            downs: 0,
            reasons: Vec::new(),
        };
        watched.input(Input::Exports(BTreeSet::from([prefix(1)])));
        watched.peers(PEERS);
        watched
    }

    fn peers(&mut self, count: u8) {
        let peer = |node| {
            let at = IpAddr::V4(address(node));
            (at, PeerConfig::new(at, Asn::new(64512).unwrap()))
        };
        self.input(Input::Peers((11..11 + count).map(peer).collect()));
    }

    fn input(&mut self, input: Input<'_>) {
        self.speaker.handle(self.now, input);
        while let Some(output) = self.speaker.poll_output() {
            self.output(output);
        }
        let mut each: BTreeMap<IpAddr, u64> = BTreeMap::new();
        for (peer, _) in self.connections.values() {
            *each.entry(*peer).or_default() += 1;
        }
        assert!(
            each.values().all(|&count| count <= 2),
            "no more than two connections to a peer: {each:?}"
        );
        let up = self
            .states
            .values()
            .filter(|&&state| state == State::Established)
            .count() as u64;
        assert_eq!(self.ups, self.downs + up, "every up has one down");
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Dial { connection, peer } => {
                assert_eq!(
                    self.connections.insert(connection, (peer, false)),
                    None,
                    "numbers are new"
                );
            }
            Output::Send { connection, bytes } => {
                assert!(
                    self.connections[&connection].1,
                    "nothing is sent before the connection stands"
                );
                assert!(
                    wire::frame(&bytes, INTERNAL).unwrap().is_some(),
                    "messages are sent whole"
                );
            }
            Output::Close { connection } => {
                assert!(
                    self.connections.remove(&connection).is_some(),
                    "what is closed was open"
                );
            }
            Output::RibChange(change) => {
                let old = self.table.remove(&change.prefix).unwrap_or_default();
                assert_ne!(old, change.best, "a change is a change");
                if !change.best.is_empty() {
                    self.table.insert(change.prefix, change.best);
                }
            }
            Output::SessionChange(change) => {
                let before = self.states.insert(change.peer, change.to).unwrap_or(State::Idle);
                assert_eq!(before, change.from);
                assert_ne!(change.from, change.to);
                self.ups += u64::from(change.to == State::Established);
                self.downs += u64::from(change.from == State::Established);
                self.reasons.extend(change.reason);
            }
            Output::Converged => {}
        }
    }

    fn accept(&mut self, node: u8) -> ConnectionId {
        let connection = self.speaker.next_connection();
        let peer = IpAddr::V4(address(node));
        self.connections.insert(connection, (peer, true));
        self.input(Input::Accepted { connection, peer });
        connection
    }

    fn receive(&mut self, connection: ConnectionId, bytes: &[u8]) {
        self.input(Input::Received { connection, bytes });
    }

    fn establish(&mut self, node: u8) -> ConnectionId {
        let connection = self.accept(node);
        self.receive(connection, &wire::encode(&open(node), INTERNAL));
        self.receive(connection, &wire::encode(&Message::Keepalive, INTERNAL));
        assert_eq!(self.states[&IpAddr::V4(address(node))], State::Established);
        connection
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.speaker.deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.input(Input::Timer);
            assert!(
                self.speaker.deadline().is_none_or(|next| next > self.now),
                "what was due is done"
            );
        }
        self.now = end;
    }

    /// One of the connections, if there is any.
    fn some_connection(&self, choice: u8) -> Option<(ConnectionId, bool)> {
        let at = usize::from(choice) % self.connections.len().max(1);
        self.connections
            .iter()
            .nth(at)
            .map(|(&connection, &(_, stands))| (connection, stands))
    }
}

/// Something that a peer, a kernel or an operator may do.
#[derive(Clone, Debug)]
enum Act {
    Confirm(u8),
    Accept(u8),
    Break(u8),
    Receive(u8, Vec<u8>),
    Wait(u64),
    Peers(u8),
    Exports(BTreeSet<u32>),
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let node = 11..11 + PEERS;
    let routes = (
        node.clone(),
        0u32..4,
        proptest::collection::btree_set(0u32..6, 0..4),
        any::<bool>(),
    );
    let refresh = Message::RouteRefresh {
        family: Family::IPV4_UNICAST,
        kind: RefreshKind::Request,
    };
    prop_oneof![
        4 => node.prop_map(|node| wire::encode(&open(node), INTERNAL)),
        4 => Just(wire::encode(&Message::Keepalive, INTERNAL)),
        4 => routes.prop_map(|(node, preference, numbers, announce)| {
            let prefixes = numbers.into_iter().map(|number| prefix(number).into()).collect();
            let update = if announce {
                Update { announced: prefixes, attributes: Some(attributes(node, preference)), ..Update::default() }
            } else {
                Update { withdrawn: prefixes, ..Update::default() }
            };
            wire::encode(&Message::Update(update), INTERNAL)
        }),
        1 => Just(wire::encode_end_of_rib(Family::IPV4_UNICAST)),
        1 => Just(wire::encode(&refresh, INTERNAL)),
        1 => (0u8..8, 0u8..12).prop_map(|(code, subcode)| {
            let notification = Notification { code, subcode, data: Vec::new() };
            wire::encode(&Message::Notification(notification), INTERNAL)
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => any::<u8>().prop_map(Act::Confirm),
        2 => (11..11 + PEERS).prop_map(Act::Accept),
        1 => any::<u8>().prop_map(Act::Break),
        12 => (any::<u8>(), message()).prop_map(|(at, bytes)| Act::Receive(at, bytes)),
        2 => prop_oneof![0u64..3000, 0u64..200_000].prop_map(Act::Wait),
        1 => (0..=PEERS).prop_map(Act::Peers),
        1 => proptest::collection::btree_set(0u32..6, 0..4).prop_map(Act::Exports),
    ]
}

fn perform(watched: &mut Watched, act: Act) {
    match act {
        Act::Confirm(at) => {
            if let Some((connection, false)) = watched.some_connection(at) {
                watched.connections.get_mut(&connection).unwrap().1 = true;
                watched.input(Input::Dialled { connection });
            }
        }
        Act::Accept(node) => {
            watched.accept(node);
        }
        Act::Break(at) => {
            if let Some((connection, stands)) = watched.some_connection(at) {
                watched.connections.remove(&connection);
                let error = if stands {
                    TransportError::Reset
                } else {
                    TransportError::Refused
                };
                watched.input(Input::Closed { connection, error });
            }
        }
        Act::Receive(at, bytes) => {
            if let Some((connection, true)) = watched.some_connection(at) {
                watched.receive(connection, &bytes);
            }
        }
        Act::Wait(millis) => watched.wait(Duration::from_millis(millis)),
        Act::Peers(count) => watched.peers(count),
        Act::Exports(numbers) => watched.input(Input::Exports(numbers.into_iter().map(prefix).collect())),
    }
}

proptest! {
    #[test]
    fn whatever_happens_what_the_driver_is_told_holds_together(acts in proptest::collection::vec(act(), 0..120)) {
        let mut watched = Watched::new();
        for act in acts {
            perform(&mut watched, act);
        }
        // And in the end everything can be left behind.
        watched.peers(0);
        assert!(watched.table.is_empty(), "the routes of removed peers are gone");
        assert!(watched.connections.is_empty(), "and their connections");
        watched.wait(Duration::from_secs(1000));
    }

    #[test]
    fn any_bytes_in_any_pieces_end_in_a_notification_or_in_waiting(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        marker in any::<bool>(),
        greeted in any::<bool>(),
        pieces in 1usize..40,
    ) {
        let mut watched = Watched::new();
        let connection = if greeted { watched.establish(11) } else { watched.accept(11) };
        let mut stream = if marker { vec![0xff; 16] } else { Vec::new() };
        stream.extend(bytes);
        for piece in stream.chunks(pieces) {
            if watched.connections.contains_key(&connection) {
                watched.receive(connection, piece);
            }
        }
    }

    #[test]
    fn the_table_ignores_the_order_in_which_peers_announce(
        routes in proptest::collection::vec((0..PEERS, 0u32..3, 0u32..4), 1..20),
        keys in proptest::collection::vec(any::<u32>(), 20),
    ) {
        // The last word of each peer on each prefix, in two orders.
        let last: BTreeMap<(u8, u32), u32> =
            routes.iter().map(|&(peer, preference, number)| ((peer, number), preference)).collect();
        let mut shuffled: Vec<_> = last.iter().zip(&keys).collect();
        let table = |order: &[(&(u8, u32), &u32)]| {
            let mut watched = Watched::new();
            let connections: Vec<_> = (0..PEERS).map(|peer| watched.establish(11 + peer)).collect();
            for &(&(peer, number), &preference) in order {
                let update = Update {
                    announced: vec![prefix(number).into()],
                    attributes: Some(attributes(11 + peer, preference)),
                    ..Update::default()
                };
                let bytes = wire::encode(&Message::Update(update), INTERNAL);
                watched.receive(connections[usize::from(peer)], &bytes);
            }
            watched.table
        };
        let in_order = table(&last.iter().collect::<Vec<_>>());
        shuffled.sort_by_key(|(_, key)| **key);
        let out_of_order = table(&shuffled.into_iter().map(|(route, _)| route).collect::<Vec<_>>());
        assert_eq!(in_order, out_of_order);
    }
}

#[test]
fn a_peer_that_announces_more_than_the_limit_is_told_so_and_loses_its_routes() {
    // RFC 4486 §4 (test): Maximum Number of Prefixes Reached.
    let mut watched = Watched::new();
    let connection = watched.establish(11);
    let prefixes: Vec<Nlri> = (0..=u32::try_from(MAX_PREFIXES).unwrap())
        .map(|n| prefix(n + 100).into())
        .collect();
    let messages = wire::encode_announcements(&attributes(11, 100), &prefixes, INTERNAL);
    let (last, but_last) = messages.split_last().unwrap();
    for message in but_last {
        watched.receive(connection, message);
    }
    assert!(
        watched.table.len() > MAX_PREFIXES - 2000,
        "up to the limit all is well"
    );
    watched.receive(connection, last);
    assert_eq!(watched.states[&IpAddr::V4(address(11))], State::Idle);
    let want = Reason::TooManyPrefixes {
        got: MAX_PREFIXES + 1,
        limit: MAX_PREFIXES,
    };
    assert_eq!(watched.reasons, [want]);
    assert!(watched.table.is_empty());
}

#[test]
fn a_fault_in_an_update_is_counted_and_costs_no_session() {
    let mut watched = Watched::new();
    let connection = watched.establish(11);
    let update = |preference| {
        let update = Update {
            announced: vec![prefix(5).into()],
            attributes: Some(attributes(11, preference)),
            ..Update::default()
        };
        wire::encode(&Message::Update(update), INTERNAL)
    };
    watched.receive(connection, &update(100));
    assert!(watched.table.contains_key(&prefix(5)));
    // RFC 7606 §7.1 (test): an ORIGIN that does not exist; the route is treated as withdrawn.
    let mut broken = update(101);
    let at = broken
        .windows(4)
        .position(|octets| octets == [0x40, 1, 1, 0])
        .unwrap();
    broken[at + 3] = 9;
    watched.receive(connection, &broken);
    assert!(!watched.table.contains_key(&prefix(5)));
    let status = watched.speaker.peers().next().unwrap();
    assert_eq!(
        (status.state, status.faults, status.prefixes_received),
        (State::Established, 1, 0)
    );
}

#[test]
fn two_losses_in_a_row_cost_no_route_and_a_stale_one_does_not_live_for_ever() {
    // RFC 4724 §4.2 (test), with the exception of COMPLIANCE.md.
    let mut watched = Watched::new();
    let mut connection = watched.establish(11);
    let update = Update {
        announced: vec![prefix(5).into(), prefix(6).into()],
        attributes: Some(attributes(11, 100)),
        ..Update::default()
    };
    watched.receive(connection, &wire::encode(&Message::Update(update), INTERNAL));
    let end = watched.now + Duration::from_secs(2 * 30);
    while watched.table.contains_key(&prefix(6)) {
        assert!(
            watched.now <= end,
            "a restart time after the first loss no stale route survives another"
        );
        // It comes back each time, says half of what it said, and is lost before its End-of-RIB.
        watched.connections.remove(&connection);
        watched.input(Input::Closed {
            connection,
            error: TransportError::Reset,
        });
        watched.wait(Duration::from_secs(7));
        connection = watched.establish(11);
        let half = Update {
            announced: vec![prefix(5).into()],
            attributes: Some(attributes(11, 100)),
            ..Update::default()
        };
        watched.receive(connection, &wire::encode(&Message::Update(half), INTERNAL));
        assert!(
            watched.table.contains_key(&prefix(5)),
            "what is announced each time is never withdrawn"
        );
    }
    assert!(watched.ups > 2);
}

#[test]
fn a_connection_from_an_address_that_is_no_peer_is_closed() {
    let mut watched = Watched::new();
    let stranger = watched.accept(99);
    assert!(!watched.connections.contains_key(&stranger));
    let known = watched.accept(11);
    assert!(watched.connections.contains_key(&known));
}

#[test]
fn all_internal_peers_are_told_of_an_own_block_in_the_same_bytes() {
    let mut speaker = Watched::new();
    speaker.peers(100);
    for node in 11..111 {
        speaker.establish(node);
    }
    let exports = BTreeSet::from([prefix(1), prefix(2)]);
    speaker.speaker.handle(speaker.now, Input::Exports(exports));
    let mut sent: Vec<Arc<Vec<u8>>> = Vec::new();
    while let Some(output) = speaker.speaker.poll_output() {
        if let Output::Send { bytes, .. } = output {
            sent.push(bytes);
        }
    }
    assert_eq!(sent.len(), 100);
    assert!(
        sent.iter().all(|bytes| Arc::ptr_eq(bytes, &sent[0])),
        "written out once, and never copied"
    );
}

#[test]
fn failures_are_counted_with_the_time_of_the_last_until_a_session_stands() {
    let start = origin();
    let own = SpeakerConfig::new(
        Asn::new(64512).unwrap(),
        RouterId::new(address(1)).unwrap(),
        address(1),
    );
    let mut speaker = Speaker::new(own, start);
    let peer = IpAddr::V4(address(2));
    let config = PeerConfig::new(peer, Asn::new(64512).unwrap());
    speaker.handle(start, Input::Peers([(peer, config)].into()));
    let mut now = start;
    // The next connection that is dialled.
    let dial = |speaker: &mut Speaker, now: &mut Instant| loop {
        while let Some(output) = speaker.poll_output() {
            if let Output::Dial { connection, .. } = output {
                return connection;
            }
        }
        *now = speaker.deadline().unwrap().max(*now);
        speaker.handle(*now, Input::Timer);
    };
    let told = |speaker: &Speaker| {
        let status = speaker.peers().next().unwrap();
        (status.failures, status.failed)
    };
    assert_eq!(told(&speaker), (0, None));
    for count in 1..=3 {
        let connection = dial(&mut speaker, &mut now);
        now += Duration::from_secs(1);
        let error = TransportError::Refused;
        speaker.handle(now, Input::Closed { connection, error });
        assert_eq!(told(&speaker), (count, Some(now)));
    }
    let failed = now;
    let connection = dial(&mut speaker, &mut now);
    speaker.handle(now, Input::Dialled { connection });
    let greeting = [open(2), Message::Keepalive].map(|message| wire::encode(&message, INTERNAL));
    let bytes = &greeting.concat();
    speaker.handle(now, Input::Received { connection, bytes });
    assert_eq!(speaker.peers().next().unwrap().state, State::Established);
    assert_eq!(told(&speaker), (0, Some(failed)));
    now += Duration::from_secs(1);
    let error = TransportError::Reset;
    speaker.handle(now, Input::Closed { connection, error });
    assert_eq!(told(&speaker), (1, Some(now)));
}
