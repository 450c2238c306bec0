//! What the messages and the routes cost: octets, the decision, what comes in, what goes out, what is lost.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_bgp::id::{Asn, ConnectionId, HoldTime, Prefix, RouterId};
use culvert_bgp::rib::decision::{self, Candidate, Neighbour};
use culvert_bgp::speaker::{Input, PeerConfig, Speaker, SpeakerConfig, TransportError};
use culvert_bgp::wire::message::{Capability, Family, Message, Nlri, Open, PathAttributes};
use culvert_bgp::wire::{self, Negotiated};

fn address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 18, 0, 10)) + node)
}

fn asn() -> Asn {
    Asn::new(64512).unwrap()
}

/// The n-th /26.
fn prefix(n: u32) -> Prefix {
    let base = u32::from(Ipv4Addr::new(10, 0, 0, 0));
    Prefix::new(format!("{}/26", Ipv4Addr::from(base + 64 * n)).parse().unwrap())
}

fn negotiated() -> Negotiated {
    Negotiated {
        four_octet_as: true,
        ..Negotiated::plain(true)
    }
}

/// A speaker, and the peers that it has a session with.
struct Bench {
    speaker: Speaker,
    now: Instant,
    connections: Vec<ConnectionId>,
}

impl Bench {
    #[allow(
        clippy::disallowed_methods,
        reason = "a benchmark needs some instant to begin at"
    )]
    fn new(peers: u32) -> Self {
        let now = Instant::now();
        let config = SpeakerConfig::new(asn(), RouterId::new(address(0)).unwrap(), address(0));
        let mut bench = Self {
            speaker: Speaker::new(config, now),
            now,
            connections: Vec::new(),
        };
        let configs = (1..=peers).map(|node| {
            let at = IpAddr::V4(address(node));
            let mut config = PeerConfig::new(at, asn());
            config.passive = true;
            (at, config)
        });
        bench.input(Input::Exports(BTreeSet::from([prefix(1_000_000)])));
        bench.input(Input::Peers(configs.collect()));
        for node in 1..=peers {
            let connection = bench.speaker.next_connection();
            let peer = IpAddr::V4(address(node));
            bench.input(Input::Accepted { connection, peer });
            let open = Message::Open(Open {
                asn: asn(),
                hold_time: HoldTime::SUGGESTED,
                router_id: RouterId::new(address(node)).unwrap(),
                capabilities: vec![
                    Capability::MultiProtocol(Family::IPV4_UNICAST),
                    Capability::FourOctetAs(asn()),
                ],
            });
            let mut bytes = wire::encode(&open, negotiated());
            bytes.extend(wire::encode(&Message::Keepalive, negotiated()));
            bench.receive(connection, &bytes);
            bench.connections.push(connection);
        }
        bench
    }

    fn input(&mut self, input: Input<'_>) -> usize {
        self.speaker.handle(self.now, input);
        let mut outputs = 0;
        while let Some(output) = self.speaker.poll_output() {
            black_box(&output);
            outputs += 1;
        }
        outputs
    }

    fn receive(&mut self, connection: ConnectionId, bytes: &[u8]) {
        for bytes in bytes.chunks(65_536) {
            self.input(Input::Received { connection, bytes });
        }
    }

    /// Each peer's routes, as it would send them.
    fn announcements(peers: u32, routes: u32) -> Vec<Vec<u8>> {
        (0..peers)
            .map(|peer| {
                let attributes = PathAttributes {
                    local_pref: Some(100),
                    ..PathAttributes::new(address(peer + 1).into())
                };
                let nlri: Vec<Nlri> = (0..routes).map(|n| prefix(peer * routes + n).into()).collect();
                wire::encode_announcements(&attributes, &nlri, negotiated()).concat()
            })
            .collect()
    }

    fn learn(&mut self, announcements: &[Vec<u8>]) {
        for (at, bytes) in announcements.iter().enumerate() {
            self.receive(self.connections[at], bytes);
        }
    }
}

/// UPDATEs of one block, and as full as they can be.
fn messages(c: &mut Criterion) {
    for (what, routes) in [("one block", 1), ("the most blocks", 800)] {
        let attributes = PathAttributes {
            local_pref: Some(100),
            communities: vec![0xfc00_0001, 0xfc00_0002],
            ..PathAttributes::new(address(1).into())
        };
        let nlri: Vec<Nlri> = (0..routes).map(|n| prefix(n).into()).collect();
        let octets = wire::encode_announcements(&attributes, &nlri, negotiated());
        let [octets] = octets.as_slice() else {
            panic!("{routes} blocks take one message");
        };
        let message = wire::decode(octets, negotiated()).unwrap().message;
        let mut group = c.benchmark_group("message");
        group.throughput(Throughput::Elements(u64::from(routes)));
        group.bench_function(format!("decode {what}"), |b| {
            b.iter(|| wire::decode(black_box(octets), negotiated()));
        });
        group.bench_function(format!("encode {what}"), |b| {
            b.iter(|| wire::encode(black_box(&message), negotiated()));
        });
    }
}

fn best_path(c: &mut Criterion) {
    let mut group = c.benchmark_group("best path");
    for count in [1, 2, 8, 64] {
        let candidates: Vec<Candidate> = (1..=count)
            .map(|node| Candidate {
                from: Arc::new(Neighbour {
                    peer: address(node).into(),
                    router_id: RouterId::new(address(node)).unwrap(),
                    internal: true,
                    reflector_client: None,
                }),
                received_id: 0,
                path_id: 0,
                attributes: Arc::new(PathAttributes::new(address(node).into())),
            })
            .collect();
        group.bench_with_input(
            BenchmarkId::from_parameter(count),
            &candidates,
            |b, candidates| {
                b.iter(|| decision::select(black_box(candidates)));
            },
        );
    }
}

fn learn(c: &mut Criterion) {
    let mut group = c.benchmark_group("learn");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    for (peers, routes) in [(1, 100_000), (50, 2000), (1000, 1)] {
        let announcements = Bench::announcements(peers, routes);
        group.throughput(Throughput::Elements(u64::from(peers * routes)));
        group.bench_function(format!("{peers} peers x {routes} routes"), |b| {
            b.iter_batched(
                || Bench::new(peers),
                |mut bench| {
                    bench.learn(&announcements);
                    bench
                },
                BatchSize::PerIteration,
            );
        });
    }
}

fn tell(c: &mut Criterion) {
    let mut group = c.benchmark_group("tell");
    group.sample_size(20);
    let mut bench = Bench::new(1000);
    let mut even = false;
    group.bench_function("an own block to 1000 peers", |b| {
        b.iter(|| {
            even = !even;
            let blocks = if even {
                vec![prefix(1), prefix(2)]
            } else {
                vec![prefix(1)]
            };
            let outputs = bench.input(Input::Exports(blocks.into_iter().collect()));
            assert!(outputs >= 1000);
        });
    });
    let routes: Vec<Nlri> = (0..100_000).map(|n| prefix(n).into()).collect();
    let attributes = PathAttributes::new(address(1).into());
    group.throughput(Throughput::Elements(100_000));
    group.bench_function("100,000 routes packed", |b| {
        b.iter(|| wire::encode_announcements(black_box(&attributes), &routes, negotiated()));
    });
}

fn lose(c: &mut Criterion) {
    let mut group = c.benchmark_group("lose");
    group.sample_size(10);
    let announcements = Bench::announcements(50, 2000);
    group.bench_function("one peer of 50 and its 2000 routes", |b| {
        b.iter_batched(
            || {
                let mut bench = Bench::new(50);
                bench.learn(&announcements);
                bench
            },
            |mut bench| {
                let (connection, error) = (bench.connections[7], TransportError::Reset);
                let outputs = bench.input(Input::Closed { connection, error });
                assert!(outputs > 2000);
                bench
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, messages, best_path, learn, tell, lose);
criterion_main!(benches);
