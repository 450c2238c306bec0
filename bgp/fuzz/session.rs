//! A whole session under damaged messages, in any cut: the speaker goes on, what it tells holds together, and how the
//! stream was cut makes no difference.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use culvert_bgp::config::{FamilyConfig, PeerConfig, SpeakerConfig};
use culvert_bgp::fsm::State;
use culvert_bgp::id::{Asn, ConnectionId, HoldTime, NextHop, Prefix, RouterId};
use culvert_bgp::input::Input;
use culvert_bgp::output::Output;
use culvert_bgp::speaker::Speaker;
use culvert_bgp::wire::message::{Capability, Directions, Family, Message, Open};
use culvert_bgp::wire::{Negotiated, encode, frame};

use crate::corpus;
use crate::mutate::{Random, damage};

/// Streams of one test run, of up to 24 messages each.
const CASES: u64 = 800;

/// The one origin of time; all else is measured from it.
#[allow(clippy::disallowed_methods, reason = "a test needs some instant to begin at")]
fn origin() -> Instant {
    Instant::now()
}

fn asn(number: u32) -> Asn {
    Asn::new(number).unwrap()
}

fn address(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, node)
}

/// An internal peer with everything, a client of ours, and an external one.
fn peers() -> BTreeMap<IpAddr, PeerConfig> {
    let everything = FamilyConfig {
        add_path_send: true,
        add_path_receive: true,
        extended_next_hop: true,
        ..FamilyConfig::default()
    };
    let families = || [Family::IPV4_UNICAST, Family::IPV6_UNICAST].map(|family| (family, everything));
    let peer = |node, number| {
        let at = IpAddr::V4(address(node));
        let config = PeerConfig {
            families: families().into(),
            long_lived_stale_time: 60,
            ..PeerConfig::new(at, asn(number))
        };
        (at, config)
    };
    let mut peers = BTreeMap::from([peer(11, 64512), peer(12, 64512), peer(13, 65001)]);
    if let Some(client) = peers.get_mut(&IpAddr::V4(address(12))) {
        client.reflector_client = Some(address(10));
    }
    peers
}

/// The OPEN of a peer: every capability, or some.
fn open(node: u8, number: u32, random: &mut Random) -> Vec<u8> {
    let mut capabilities = corpus::capabilities();
    capabilities.retain(|capability| match capability {
        Capability::FourOctetAs(_) => false,
        _ => !random.once_in(6),
    });
    capabilities.push(Capability::FourOctetAs(asn(number)));
    let open = Open {
        asn: asn(number),
        hold_time: HoldTime::new(90).unwrap(),
        router_id: RouterId::new(address(node)).unwrap(),
        capabilities,
    };
    encode(&Message::Open(open), Negotiated::plain(true))
}

/// What the driver knows after all.
#[derive(Debug, Default, PartialEq, Eq)]
struct Known {
    table: BTreeMap<Prefix, Vec<NextHop>>,
    states: BTreeMap<IpAddr, State>,
    closed: Vec<ConnectionId>,
}

struct Driver {
    speaker: Speaker,
    now: Instant,
    known: Known,
}

impl Driver {
    fn new(now: Instant) -> Self {
        let router_id = RouterId::new(address(10)).unwrap();
        let config = SpeakerConfig {
            local_address_v6: Some("2001:db8::10".parse().unwrap()),
            multipath: 4,
            seed: 7,
            ..SpeakerConfig::new(asn(64512), router_id, address(10))
        };
        let mut driver = Self {
            speaker: Speaker::new(config, now),
            now,
            known: Known::default(),
        };
        let exports = ["10.65.42.0/26", "2001:db8:42::/64"].map(|net| Prefix::new(net.parse().unwrap()));
        driver.input(Input::Exports(exports.into()));
        driver.input(Input::Peers(peers()));
        driver
    }

    fn input(&mut self, input: Input<'_>) {
        self.speaker.handle(self.now, input);
        while let Some(output) = self.speaker.poll_output() {
            match output {
                Output::Send { bytes, .. } => check_sent(&bytes),
                Output::Close { connection } => self.known.closed.push(connection),
                Output::RibChange(change) if change.best.is_empty() => {
                    let gone = self.known.table.remove(&change.prefix);
                    assert!(gone.is_some(), "{} was not there", change.prefix);
                }
                Output::RibChange(change) => {
                    self.known.table.insert(change.prefix, change.best);
                }
                Output::SessionChange(change) => {
                    let before = self.known.states.insert(change.peer, change.to);
                    assert_eq!(before.unwrap_or(State::Idle), change.from);
                }
                Output::Dial { .. } | Output::Converged => {}
            }
        }
    }

    /// A peer connects, says all of `stream`, in pieces of at most `piece` octets, and goes.
    fn converse(&mut self, node: u8, stream: &[u8], piece: impl FnMut() -> usize) {
        let connection = self.speaker.next_connection();
        let peer = IpAddr::V4(address(node));
        self.input(Input::Accepted { connection, peer });
        let (mut rest, mut piece) = (stream, piece);
        while !rest.is_empty() {
            let (bytes, after) = rest.split_at(piece().clamp(1, rest.len()));
            self.input(Input::Received { connection, bytes });
            rest = after;
        }
    }
}

/// Only whole messages are sent.
fn check_sent(mut bytes: &[u8]) {
    let both = Directions {
        send: true,
        receive: true,
    };
    let terms = Negotiated {
        extended_messages: both,
        ..Negotiated::plain(true)
    };
    while !bytes.is_empty() {
        let length = frame(bytes, terms).unwrap().unwrap();
        bytes = &bytes[length..];
    }
}

/// What a peer says in one connection: a sound beginning, mostly, and then messages of which some are damaged.
fn stream(node: u8, number: u32, messages: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut stream = open(node, number, random);
    let keepalive = encode(&Message::Keepalive, Negotiated::plain(true));
    stream.extend(&keepalive);
    for _ in 0..random.below(24) {
        let mut next = random.pick(messages).clone();
        if random.once_in(8) {
            let other: &Vec<u8> = random.pick(messages);
            let mut body = next.split_off(19);
            damage(&mut body, other, random);
            next.extend(&body);
            let length = u16::try_from(next.len()).unwrap_or(u16::MAX);
            next[16..18].copy_from_slice(&length.to_be_bytes());
        }
        stream.extend(next);
    }
    if random.once_in(16) {
        let copy = stream.clone();
        damage(&mut stream, &copy, random);
    }
    stream
}

#[test]
fn a_session_under_damaged_messages_in_any_cut_ends_alike() {
    let now = origin();
    let mut messages = corpus::updates();
    messages.extend(corpus::refreshes());
    messages.extend(corpus::notifications().into_iter().take(1));
    let cases = crate::from_environment("CULVERT_FUZZ_CASES").map_or(CASES, |all| all.div_ceil(1000));
    let mut case = crate::Case {
        target: "session",
        number: 0,
    };
    let mut learned = 0;
    for number in 0..cases {
        case.number = number;
        let mut random = Random::new(crate::seed().wrapping_mul(0x0100_0000_01b3).wrapping_add(number));
        let nodes = [(11, 64512), (12, 64512), (13, 65001)];
        let streams = nodes.map(|(node, asn)| (node, stream(node, asn, &messages, &mut random)));
        let (mut whole, mut cut) = (Driver::new(now), Driver::new(now));
        for (node, stream) in &streams {
            whole.converse(*node, stream, || usize::MAX);
            cut.converse(*node, stream, || 1 + random.below(200));
        }
        assert_eq!(whole.known, cut.known);
        learned += whole.known.table.len();
        for driver in [&mut whole, &mut cut] {
            driver.now += Duration::from_secs(5);
            driver.input(Input::Timer);
            driver.input(Input::Stop { notify: true });
        }
    }
    eprintln!("session: {cases} cases, {learned} routes learned");
    assert!(learned > 0, "no stream got as far as a route");
}
