//! How fast a node of a mesh comes up, how quickly a route gets from the wire into the kernel, and what it costs: Culvert,
//! BIRD 1.6 and BIRD 2 in turns, in the same run.
//!
//! A load generator plays N internal peers with K blocks of /26 each, from N addresses, against one speaker in a network
//! namespace of its own. Its BGP is written by hand and shares no code with ours. At most eight handshakes are under way
//! at once, but for the scenario `dial`. The kernel's own events say when a route is there. BIRD is configured as Calico's
//! templates do it. Medians over the rounds are printed, and the ratio to the better BIRD: the machine may be slow or
//! loaded, it is so for all.
//!
//! ```sh
//! cargo build --release -p culvert-agent
//! cargo bench -p culvert-tests --bench mesh -- [--quick] [--rounds N] [--only culvert|bird1|bird2] [SCENARIO…]
//! ```
//!
//! It needs root, the packages bird2, iproute2 and util-linux, and downloads BIRD 1.6 (package bird) beside them.

#![allow(clippy::indexing_slicing, reason = "a benchmark that miscounts ends")]

mod fib;
mod message;
mod peers;
mod place;
mod scenario;
mod speaker;
mod table;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use harness::interruption;

use scenario::{SCENARIOS, Scenario, Terms};
use speaker::{Kind, Programs};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

struct Wanted {
    scenarios: Vec<&'static Scenario>,
    kinds: Vec<Kind>,
    rounds: usize,
    terms: Terms,
}

fn run() -> Outcome<()> {
    let wanted = wanted(std::env::args().skip(1))?;
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let programs = Programs::find(&target.join("bird1"))?;
    interruption::listen()?;
    let mut results = table::Results::new();
    for round in 0..wanted.rounds {
        for scenario in &wanted.scenarios {
            for turn in 0..wanted.kinds.len() {
                // Nobody is always first.
                let kind = wanted.kinds[(turn + round) % wanted.kinds.len()];
                let samples = scenario::run(scenario, kind, &programs, wanted.terms)?;
                eprintln!("{} {}: {}", scenario.name, kind.name(), table::line(&samples));
                table::add(&mut results, scenario.name, kind, samples);
            }
        }
    }
    println!("medians of {} rounds", wanted.rounds);
    table::print(&results);
    Ok(())
}

fn wanted(mut arguments: impl Iterator<Item = String>) -> Outcome<Wanted> {
    let mut wanted = Wanted {
        scenarios: Vec::new(),
        kinds: Vec::new(),
        rounds: 3,
        terms: Terms {
            idle: Duration::from_secs(60),
            share: 1,
        },
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            // What cargo says to every benchmark.
            "--bench" => {}
            "--quick" => {
                wanted.rounds = 1;
                wanted.terms = Terms {
                    idle: Duration::from_secs(10),
                    share: 4,
                };
            }
            "--rounds" => wanted.rounds = arguments.next().ok_or("--rounds takes a number")?.parse()?,
            "--only" => wanted.kinds.push(match arguments.next().as_deref() {
                Some("culvert") => Kind::Culvert,
                Some("bird1") => Kind::Bird1,
                Some("bird2") => Kind::Bird2,
                other => return Err(format!("--only takes culvert, bird1 or bird2, not {other:?}").into()),
            }),
            name => {
                let names = || SCENARIOS.iter().map(|scenario| scenario.name);
                let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
                let unknown = || {
                    format!(
                        "no scenario {name}; there are {}",
                        names().collect::<Vec<_>>().join(", ")
                    )
                };
                wanted.scenarios.push(found.ok_or_else(unknown)?);
            }
        }
    }
    if wanted.scenarios.is_empty() {
        wanted.scenarios = SCENARIOS.iter().collect();
    }
    if wanted.kinds.is_empty() {
        wanted.kinds = Kind::ALL.to_vec();
    }
    if wanted.rounds == 0 {
        return Err("--rounds must be at least 1".into());
    }
    Ok(wanted)
}
