//! A full mesh of speakers, in a network that treats them badly.
//!
//! Each test runs many seeds (`SIMULATION_SEEDS=1000` for more). A failure prints its seed: `SIMULATION_SEED=… cargo
//! test -p culvert-bgp --test mesh_simulation` runs that one alone.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use culvert_bgp::id::Prefix;
use culvert_bgp::speaker::{Input, State};
use network::{Kind, Network, address, prefix, shared};

const QUIET: Duration = Duration::from_secs(60);

/// Runs `story` once for each seed, each on a clock of its own, in a mesh.
fn for_each_seed<F: Future<Output = ()>>(count: u64, story: impl Fn(Network, usize) -> F) {
    for_each_seed_of(Kind::Mesh, count, story);
}

/// The same in each kind of network.
fn for_each_kind<F: Future<Output = ()>>(count: u64, story: impl Fn(Network, usize) -> F) {
    for kind in [Kind::Mesh, Kind::Ipv6, Kind::Reflector, Kind::AddPath] {
        for_each_seed_of(kind, count, &story);
    }
}

fn for_each_seed_of<F: Future<Output = ()>>(kind: Kind, count: u64, story: impl Fn(Network, usize) -> F) {
    let number = |name| {
        std::env::var(name)
            .ok()
            .map(|value: String| value.parse::<u64>().unwrap())
    };
    let seeds = match number("SIMULATION_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SIMULATION_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        println!("{kind:?} SIMULATION_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let least = if kind == Kind::AddPath { 4 } else { 2 };
            let size = least + usize::try_from(seed % 7).unwrap();
            story(Network::new(seed, size, kind), size).await;
        });
    }
}

fn assert_whole(network: &Network, size: usize) {
    let kind = network.kind;
    for (at, node) in network.nodes.iter().enumerate() {
        let node = node.as_ref().unwrap();
        for status in node.speaker.peers() {
            assert_eq!(status.state, State::Established, "at {at}: {status:?}");
            assert!(status.end_of_rib, "at {at}: {status:?}");
            assert_eq!(status.stale, 0, "at {at}: {status:?}");
            if !kind.reflects() {
                assert_eq!((status.prefixes_received, status.prefixes_sent), (2, 2));
            }
        }
        let table: BTreeMap<Prefix, BTreeSet<IpAddr>> = node
            .table
            .iter()
            .map(|(&prefix, hops)| (prefix, hops.iter().map(|hop| hop.address).collect()))
            .collect();
        assert_eq!(table, kind.table(at, size), "at {at}");
        let up = node
            .states
            .values()
            .filter(|&&state| state == State::Established)
            .count() as u64;
        assert_eq!(node.ups, node.downs + up, "at {at}: every up has one down");
        assert_eq!(
            (node.converged, node.speaker.is_converged()),
            (1, true),
            "at {at}"
        );
    }
    let connections = network.connections();
    let pairs = if kind.reflects() {
        size - 1
    } else {
        size * (size - 1) / 2
    };
    assert_eq!(connections.len(), pairs, "each pair is connected");
    assert!(
        connections.values().all(|&count| count == 1),
        "by exactly one connection: {connections:?}"
    );
}

fn forget_withdrawn(network: &mut Network) {
    for node in network.nodes.iter_mut().flatten() {
        node.withdrawn.clear();
    }
}

#[test]
fn a_mesh_that_starts_at_once_settles_on_one_session_for_each_pair() {
    for_each_kind(20, |mut network, size| async move {
        network.run(Duration::from_secs(15)).await;
        assert_whole(&network, size);
    });
}

#[test]
fn the_routes_of_a_killed_and_restarted_node_are_never_withdrawn() {
    for_each_kind(20, |mut network, size| async move {
        network.run(QUIET).await;
        assert_whole(&network, size);
        forget_withdrawn(&mut network);
        for _ in 0..4 {
            let node = usize::try_from(network.random.below(size as u64)).unwrap();
            let away = network.random.millis(1, 30_000);
            network.kill(node, false, away);
            let pause = network.random.millis(0, 40_000);
            network.run(away + pause).await;
        }
        network.run(QUIET).await;
        assert_whole(&network, size);
        for (at, node) in network.nodes.iter().enumerate() {
            let withdrawn = &node.as_ref().unwrap().withdrawn;
            assert!(withdrawn.is_empty(), "{at} withdrew {withdrawn:?}");
        }
    });
}

#[test]
fn connections_that_break_cost_no_route() {
    for_each_kind(20, |mut network, size| async move {
        network.run(QUIET).await;
        forget_withdrawn(&mut network);
        for _ in 0..20 {
            network.break_one();
            let pause = network.random.millis(0, 8_000);
            network.run(pause).await;
        }
        network.run(QUIET).await;
        assert_whole(&network, size);
        for (at, node) in network.nodes.iter().enumerate() {
            let withdrawn = &node.as_ref().unwrap().withdrawn;
            assert!(withdrawn.is_empty(), "{at} withdrew {withdrawn:?}");
        }
    });
}

#[test]
fn a_mesh_is_whole_again_after_partitions_crashes_and_broken_connections() {
    for_each_kind(20, |mut network, size| async move {
        for _ in 0..8 {
            match network.random.below(4) {
                0 => network.break_one(),
                1 => {
                    let node = usize::try_from(network.random.below(size as u64)).unwrap();
                    let with_machine = network.random.below(2) == 0;
                    let away = network.random.millis(1, 60_000);
                    // A node that is away already stays as it is.
                    if network.nodes[node].is_some() {
                        network.kill(node, with_machine, away);
                    }
                }
                2 => {
                    let border = usize::try_from(network.random.below(size as u64)).unwrap();
                    network.cut = (0..=border)
                        .flat_map(|a| (border + 1..size).map(move |b| (a, b)))
                        .collect();
                }
                _ => network.cut.clear(),
            }
            let pause = network.random.millis(0, 200_000);
            network.run(pause).await;
        }
        network.cut.clear();
        // Long enough for a hold timer, the pause after it, and the patience with what was stale.
        network.run(Duration::from_secs(300)).await;
        assert_whole(&network, size);
    });
}

#[test]
fn a_node_that_does_not_come_back_loses_its_routes_after_its_restart_time() {
    for_each_seed(10, |mut network, size| async move {
        network.run(QUIET).await;
        network.kill(0, false, Duration::from_secs(100_000));
        network
            .run(Duration::from_secs(u64::from(network::RESTART_TIME) - 2))
            .await;
        for node in network.nodes.iter().flatten() {
            assert!(node.table.contains_key(&prefix(0, 0)), "within the restart time");
        }
        network.run(Duration::from_secs(4)).await;
        for node in network.nodes.iter().flatten() {
            assert!(!node.table.contains_key(&prefix(0, 0)), "after it");
            assert_eq!(node.table.len(), 2 * (size - 2), "the others stay");
        }
    });
}

#[test]
fn a_stopped_node_that_says_so_loses_its_routes_at_once_and_a_silent_one_does_not() {
    for notify in [false, true] {
        for_each_seed(10, |mut network, _| async move {
            network.run(QUIET).await;
            network.input(0, Input::Stop { notify });
            network.run(Duration::from_secs(2)).await;
            for node in network.nodes.iter().flatten().skip(1) {
                assert_eq!(node.table.contains_key(&prefix(0, 0)), !notify);
                let state = node.states[&IpAddr::V4(address(0))];
                assert!(state < State::Established, "{state}");
            }
            let stopped = network.nodes[0].as_ref().unwrap();
            assert_eq!(stopped.ups, stopped.downs);
            assert!(
                !stopped.table.is_empty(),
                "a node that stops keeps its own routes"
            );
        });
    }
}

#[test]
fn clients_of_one_reflector_hear_of_each_other() {
    // RFC 4456 §6 (test).
    for_each_seed_of(Kind::Reflector, 10, |mut network, size| async move {
        network.run(QUIET).await;
        assert_whole(&network, size);
        network.kill(0, false, Duration::from_secs(100_000));
        network
            .run(Duration::from_secs(u64::from(network::RESTART_TIME) + 2))
            .await;
        for node in network.nodes.iter().flatten() {
            assert!(node.table.is_empty(), "who heard all from one loses all with it");
        }
    });
}

#[test]
fn every_path_reaches_a_peer_that_takes_several() {
    // RFC 7911 (test): with ECMP, packets for a shared destination go to both who originate it.
    for_each_seed_of(Kind::AddPath, 10, |mut network, size| async move {
        network.run(QUIET).await;
        assert_whole(&network, size);
        let hops = |network: &Network| network.nodes[3].as_ref().unwrap().table[&shared()].len();
        assert_eq!(hops(&network), 2);
        network.input(1, Input::Exports(BTreeSet::from([prefix(1, 0)])));
        network.run(Duration::from_secs(2)).await;
        assert_eq!(hops(&network), 1, "one of them has stopped");
    });
}
