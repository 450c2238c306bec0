//! Any number of allocators on one store, interleaved read by read and write by write: ours and Calico's, on IPv4, IPv6 and
//! both, with conflicts, crashes between any two accesses, restarts, and a garbage collector that works on what it saw some
//! time ago.
//!
//! Each run is made from a seed, which a failure prints; `CULVERT_MODEL_SEED` runs that one alone, and `CULVERT_MODEL_RUNS`
//! so many. After every write:
//!
//! - no address is given to a second handle before the first has begun to release it, and who was told has it;
//! - every block is sound, and at most one node has a confirmed claim to it.
//!
//! At the end of each run some pods and perhaps a node are gone without a word. Once everybody has come to rest and the
//! collector finds nothing more, only those addresses are taken that living pods were told, and the check finds no fault.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test that panics has failed"
)]

#[path = "../common/mod.rs"]
mod common;

mod calico;
mod dice;
mod world;

use dice::Statistics;
use world::World;

/// So many interleavings are tried unless told otherwise.
const RUNS: u64 = 10_000;
const SEED: u64 = 0x0cc1_0e57;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[test]
fn no_interleaving_gives_an_address_twice_or_a_block_two_owners_and_nothing_is_lost_after_a_collection() {
    let only = from_environment("CULVERT_MODEL_SEED");
    let runs = from_environment("CULVERT_MODEL_RUNS").unwrap_or(RUNS);
    let seeds = only.map_or(SEED..SEED + runs, |seed| seed..seed + 1);
    println!("seeds {seeds:?}");
    let mut total = Statistics::default();
    for seed in seeds.clone() {
        let outcome = std::panic::catch_unwind(|| World::run(seed));
        match outcome {
            Ok(statistics) => total.add(&statistics),
            Err(panic) => {
                eprintln!("seed {seed}: run it again with CULVERT_MODEL_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{total:?}");
    // A model in which nobody ever collides proves nothing.
    let floor = seeds.end - seeds.start;
    assert!(
        only.is_some() || total.is_lively(floor),
        "{total:?} in {floor} runs"
    );
}
