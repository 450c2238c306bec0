//! A network of speakers without a kernel: latency, order within a connection, loss of connections and of nodes,
//! partition. Everything random comes from one seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use culvert_bgp::config::FamilyConfig;
use culvert_bgp::id::{Asn, ConnectionId, NextHop, Prefix, RouterId};
use culvert_bgp::speaker::{
    Input, Output, PeerConfig, SessionChange, Speaker, SpeakerConfig, State, TransportError,
};
use culvert_bgp::wire::message::Family;

pub(crate) const RESTART_TIME: u16 = 120;

/// SplitMix64.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub(crate) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

pub(crate) fn address(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(172, 18, 0, 10 + u8::try_from(node).unwrap())
}

pub(crate) fn prefix(node: usize, block: u8) -> Prefix {
    let net = format!("10.65.{}.{}/26", node, block * 64);
    Prefix::new(net.parse().unwrap())
}

/// What kind of network it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Every node with every other one, over IPv4.
    Mesh,
    /// The same over IPv6, with routes of both families.
    Ipv6,
    /// Node 0 reflects, and the others are its clients.
    Reflector,
    /// The same, all paths are told, and nodes 1 and 2 share a destination.
    AddPath,
}

/// What nodes 1 and 2 share.
pub(crate) fn shared() -> Prefix {
    Prefix::new("10.99.0.0/24".parse().unwrap())
}

impl Kind {
    pub(crate) fn reflects(self) -> bool {
        matches!(self, Kind::Reflector | Kind::AddPath)
    }

    /// Where a node's sessions end.
    pub(crate) fn endpoint(self, node: usize) -> IpAddr {
        match self {
            Kind::Ipv6 => address_v6(node).into(),
            _ => address(node).into(),
        }
    }

    /// What a node originates.
    pub(crate) fn exports(self, node: usize) -> BTreeSet<Prefix> {
        let second = match self {
            Kind::Ipv6 => Prefix::new(format!("fd00:65:{node}::/122").parse().unwrap()),
            _ => prefix(node, 1),
        };
        let mut exports = BTreeSet::from([prefix(node, 0), second]);
        if self == Kind::AddPath && (node == 1 || node == 2) {
            exports.insert(shared());
        }
        exports
    }

    /// What a node speaks with.
    fn peers(self, node: usize, size: usize) -> BTreeMap<IpAddr, PeerConfig> {
        let others = (0..size).filter(|&other| other != node);
        others
            .filter(|&other| !self.reflects() || node == 0 || other == 0)
            .map(|other| {
                let at = self.endpoint(other);
                let mut config = PeerConfig::new(at, Asn::new(64512).unwrap());
                if self.reflects() && node == 0 {
                    config.reflector_client = Some(Ipv4Addr::new(1, 0, 0, 1));
                }
                if self == Kind::Ipv6 {
                    config
                        .families
                        .insert(Family::IPV6_UNICAST, FamilyConfig::default());
                }
                for family in config.families.values_mut() {
                    family.add_path_send = self == Kind::AddPath;
                    family.add_path_receive = self == Kind::AddPath;
                }
                (at, config)
            })
            .collect()
    }

    /// Where a node should send packets: the addresses of those who originate a destination.
    pub(crate) fn table(self, node: usize, size: usize) -> BTreeMap<Prefix, BTreeSet<IpAddr>> {
        let mut table: BTreeMap<Prefix, BTreeSet<IpAddr>> = BTreeMap::new();
        for other in (0..size).filter(|&other| other != node) {
            for prefix in self.exports(other) {
                let hop = if prefix.is_ipv4() {
                    address(other).into()
                } else {
                    address_v6(other).into()
                };
                table.entry(prefix).or_default().insert(hop);
            }
        }
        table.retain(|prefix, _| !self.exports(node).contains(prefix));
        table
    }
}

fn address_v6(node: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 10 + u16::try_from(node).unwrap())
}

fn node_of(peer: IpAddr) -> usize {
    let last = match peer {
        IpAddr::V4(peer) => peer.octets()[3],
        IpAddr::V6(peer) => peer.octets()[15],
    };
    usize::from(last - 10)
}

pub(crate) struct Node {
    pub(crate) speaker: Speaker,
    pub(crate) exports: BTreeSet<Prefix>,
    pub(crate) table: BTreeMap<Prefix, Vec<NextHop>>,
    /// Every prefix that was in the table and left it, since the list was last cleared.
    pub(crate) withdrawn: Vec<(Prefix, Instant)>,
    pub(crate) states: BTreeMap<IpAddr, State>,
    pub(crate) ups: u64,
    pub(crate) downs: u64,
    pub(crate) converged: u64,
}

enum Segment {
    Confirm,
    Bytes(Arc<Vec<u8>>),
    End(TransportError),
}

/// One TCP connection; side 0 opened it.
struct Link {
    nodes: [usize; 2],
    ids: [Option<ConnectionId>; 2],
    towards: [VecDeque<Segment>; 2],
}

enum Event {
    Syn { link: u64 },
    Pump { link: u64, towards: usize },
    Boot { node: usize, restarted: bool },
    Export { node: usize },
}

pub(crate) struct Network {
    pub(crate) random: Random,
    pub(crate) nodes: Vec<Option<Node>>,
    pub(crate) cut: BTreeSet<(usize, usize)>,
    pub(crate) kind: Kind,
    size: usize,
    latency: u64,
    links: BTreeMap<u64, Link>,
    by_id: BTreeMap<(usize, ConnectionId), u64>,
    events: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    boots: u64,
}

/// The clock of the paused runtime.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl Network {
    pub(crate) fn new(seed: u64, size: usize, kind: Kind) -> Self {
        let mut random = Random(seed);
        let latency = [1, 5, 40, 300][usize::try_from(random.below(4)).unwrap()];
        let mut network = Self {
            random,
            nodes: (0..size).map(|_| None).collect(),
            cut: BTreeSet::new(),
            kind,
            size,
            latency,
            links: BTreeMap::new(),
            by_id: BTreeMap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            boots: 0,
        };
        for node in 0..size {
            let after = network.random.millis(0, 50);
            network.schedule(
                after,
                Event::Boot {
                    node,
                    restarted: false,
                },
            );
        }
        network
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((now() + after, self.sequence), event);
    }

    fn delay(&mut self) -> Duration {
        Duration::from_micros(1 + self.random.below(self.latency * 1000))
    }

    fn is_cut(&self, nodes: [usize; 2]) -> bool {
        self.cut
            .contains(&(nodes[0].min(nodes[1]), nodes[0].max(nodes[1])))
    }

    /// Lets `time` pass.
    pub(crate) async fn run(&mut self, time: Duration) {
        let end = now() + time;
        loop {
            let event = self.events.keys().next().map(|&(at, _)| at);
            let deadlines = self
                .nodes
                .iter()
                .flatten()
                .filter_map(|node| node.speaker.deadline());
            let next = deadlines.chain(event).min().unwrap_or(end);
            if next > end {
                tokio::time::advance(end - now()).await;
                return;
            }
            tokio::time::advance(next.saturating_duration_since(now())).await;
            while let Some(entry) = self.events.first_entry()
                && entry.key().0 <= now()
            {
                let event = entry.remove();
                self.happen(&event);
            }
            for node in 0..self.size {
                let due = |node: &Node| node.speaker.deadline().is_some_and(|at| at <= now());
                if self.nodes[node].as_ref().is_some_and(due) {
                    self.input(node, Input::Timer);
                    let left = self.nodes[node].as_ref().and_then(|node| node.speaker.deadline());
                    assert!(
                        left.is_none_or(|at| at > now()),
                        "a deadline does not stay behind"
                    );
                }
            }
        }
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Boot { node, restarted } => self.boot(node, restarted),
            Event::Export { node } => {
                if let Some(exports) = self.nodes[node].as_ref().map(|node| node.exports.clone()) {
                    self.input(node, Input::Exports(exports));
                }
            }
            Event::Syn { link } => self.syn(link),
            Event::Pump { link, towards } => self.pump(link, towards),
        }
    }

    fn boot(&mut self, node: usize, restarted: bool) {
        self.boots += 1;
        let config = SpeakerConfig {
            connect_retry: Duration::from_secs(5),
            restart_time: RESTART_TIME,
            restarted,
            local_address_v6: Some(address_v6(node)),
            multipath: 8,
            seed: self.random.next(),
            ..SpeakerConfig::new(
                Asn::new(64512).unwrap(),
                RouterId::new(address(node)).unwrap(),
                address(node),
            )
        };
        self.nodes[node] = Some(Node {
            speaker: Speaker::new(config, now()),
            exports: self.kind.exports(node),
            table: BTreeMap::new(),
            withdrawn: Vec::new(),
            states: BTreeMap::new(),
            ups: 0,
            downs: 0,
            converged: 0,
        });
        let peers = self.kind.peers(node, self.size);
        self.input(node, Input::Peers(peers));
        // The node learns what it originates after, or long after, it knows its peers.
        let after = self.random.millis(0, 3000);
        self.schedule(after, Event::Export { node });
    }

    /// The process dies. Its kernel closes the connections, unless the whole machine is gone.
    pub(crate) fn kill(&mut self, node: usize, with_machine: bool, back_after: Duration) {
        self.nodes[node] = None;
        let ids: Vec<_> = self.by_id.keys().copied().filter(|(at, _)| *at == node).collect();
        for id in ids {
            if with_machine {
                let link = self.by_id.remove(&id).unwrap();
                let link = self.links.get_mut(&link).unwrap();
                let side = usize::from(link.ids[0] != Some(id.1) || link.nodes[0] != node);
                link.ids[side] = None;
            } else {
                self.close(node, id.1, TransportError::Ended);
            }
        }
        self.schedule(
            back_after,
            Event::Boot {
                node,
                restarted: !with_machine,
            },
        );
    }

    /// A connection breaks, and both ends notice at some time.
    pub(crate) fn break_one(&mut self) {
        let open: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, l)| l.ids[1].is_some())
            .map(|(&at, _)| at)
            .collect();
        if open.is_empty() {
            return;
        }
        let link = open[usize::try_from(self.random.next()).unwrap_or(0) % open.len()];
        for towards in 0..2 {
            self.enqueue(link, towards, Segment::End(TransportError::Reset));
        }
    }

    pub(crate) fn input(&mut self, node: usize, input: Input<'_>) {
        let Some(at) = self.nodes[node].as_mut() else {
            return;
        };
        at.speaker.handle(now(), input);
        while let Some(output) = self.nodes[node].as_mut().and_then(|at| at.speaker.poll_output()) {
            self.output(node, output);
        }
    }

    fn output(&mut self, node: usize, output: Output) {
        let at = self.nodes[node].as_mut().unwrap();
        match output {
            Output::Dial { connection, peer } => {
                self.sequence += 1;
                let link = self.sequence;
                let nodes = [node, node_of(peer)];
                self.links.insert(
                    link,
                    Link {
                        nodes,
                        ids: [Some(connection), None],
                        towards: [VecDeque::new(), VecDeque::new()],
                    },
                );
                self.by_id.insert((node, connection), link);
                let after = self.delay();
                self.schedule(after, Event::Syn { link });
            }
            Output::Send { connection, bytes } => {
                let link = self.by_id[&(node, connection)];
                let side = self.side(link, node, connection);
                self.enqueue(link, 1 - side, Segment::Bytes(bytes));
            }
            Output::Close { connection } => self.close(node, connection, TransportError::Ended),
            Output::RibChange(change) => {
                let old = at.table.remove(&change.prefix).unwrap_or_default();
                assert_ne!(old, change.best, "a change is a change");
                if change.best.is_empty() {
                    // What the node originates itself is its own from then on.
                    if !at.exports.contains(&change.prefix) {
                        at.withdrawn.push((change.prefix, now()));
                    }
                } else {
                    at.table.insert(change.prefix, change.best);
                }
            }
            Output::SessionChange(SessionChange { peer, from, to, .. }) => {
                let before = at.states.insert(peer, to).unwrap_or(State::Idle);
                assert_eq!(before, from, "a change begins where the last one ended");
                at.ups += u64::from(to == State::Established);
                at.downs += u64::from(from == State::Established);
            }
            Output::Converged => at.converged += 1,
        }
    }

    fn side(&self, link: u64, node: usize, connection: ConnectionId) -> usize {
        let link = &self.links[&link];
        usize::from(link.nodes[0] != node || link.ids[0] != Some(connection))
    }

    fn enqueue(&mut self, link: u64, towards: usize, segment: Segment) {
        let Some(at) = self.links.get_mut(&link) else {
            return;
        };
        at.towards[towards].push_back(segment);
        let after = self.delay();
        self.schedule(after, Event::Pump { link, towards });
    }

    fn close(&mut self, node: usize, connection: ConnectionId, error: TransportError) {
        let Some(link) = self.by_id.remove(&(node, connection)) else {
            return;
        };
        let side = self.side(link, node, connection);
        self.links.get_mut(&link).unwrap().ids[side] = None;
        self.enqueue(link, 1 - side, Segment::End(error));
    }

    fn syn(&mut self, link: u64) {
        let Some(at) = self.links.get(&link) else { return };
        let nodes = at.nodes;
        if at.ids[0].is_none() {
            self.links.remove(&link);
        } else if self.is_cut(nodes) {
            // No answer: the kernel tries for a while.
            let after = self.random.millis(500, 3000);
            self.schedule(after, Event::Syn { link });
        } else if self.nodes[nodes[1]].is_none() {
            self.enqueue(link, 0, Segment::End(TransportError::Refused));
        } else {
            let connection = self.nodes[nodes[1]].as_mut().unwrap().speaker.next_connection();
            self.links.get_mut(&link).unwrap().ids[1] = Some(connection);
            self.by_id.insert((nodes[1], connection), link);
            self.enqueue(link, 0, Segment::Confirm);
            let peer = self.kind.endpoint(nodes[0]);
            self.input(nodes[1], Input::Accepted { connection, peer });
        }
    }

    fn pump(&mut self, link: u64, towards: usize) {
        let Some(at) = self.links.get_mut(&link) else {
            return;
        };
        let nodes = at.nodes;
        if at.ids == [None, None] {
            self.links.remove(&link);
            return;
        }
        if self.is_cut(nodes) {
            // TCP sends it again until it gets through.
            let after = self.random.millis(200, 3000);
            self.schedule(after, Event::Pump { link, towards });
            return;
        }
        let Some(at) = self.links.get_mut(&link) else {
            return;
        };
        let Some(segment) = at.towards[towards].pop_front() else {
            return;
        };
        let (node, Some(connection)) = (nodes[towards], at.ids[towards]) else {
            // Nobody is there: a host that knows nothing of the connection says so.
            if matches!(segment, Segment::Bytes(_)) {
                self.enqueue(link, 1 - towards, Segment::End(TransportError::Reset));
            }
            return;
        };
        match segment {
            Segment::Confirm => self.input(node, Input::Dialled { connection }),
            Segment::Bytes(bytes) => self.deliver(node, connection, &bytes),
            Segment::End(error) => {
                at.ids[towards] = None;
                self.by_id.remove(&(node, connection));
                self.input(node, Input::Closed { connection, error });
            }
        }
    }

    /// A stream has no borders: the bytes come in one, two or three pieces.
    fn deliver(&mut self, node: usize, connection: ConnectionId, bytes: &[u8]) {
        let mut rest = bytes;
        for _ in 0..self.random.below(3) {
            let at = usize::try_from(self.random.below(1 + rest.len() as u64)).unwrap();
            let (piece, more) = rest.split_at(at);
            self.input(
                node,
                Input::Received {
                    connection,
                    bytes: piece,
                },
            );
            rest = more;
        }
        self.input(
            node,
            Input::Received {
                connection,
                bytes: rest,
            },
        );
    }

    /// The connections that stand at both ends, by pair of nodes.
    pub(crate) fn connections(&self) -> BTreeMap<(usize, usize), usize> {
        let mut count = BTreeMap::new();
        for link in self
            .links
            .values()
            .filter(|link| link.ids.iter().any(Option::is_some))
        {
            let [a, b] = link.nodes;
            *count.entry((a.min(b), a.max(b))).or_default() += 1;
        }
        count
    }
}
