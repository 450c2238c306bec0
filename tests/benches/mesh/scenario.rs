//! What is done with a speaker, and what is measured of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::peers::{Peers, Size};
use crate::place::{self, Place};
use crate::speaker::{Kind, Programs, Speaker};

/// No mesh takes longer to come up, unless it never does.
const FULL_LIMIT: Duration = Duration::from_secs(60);
/// So long after the last route work that was put off still counts.
const AFTERWARDS: Duration = Duration::from_millis(500);
/// For anything else.
const LIMIT: Duration = Duration::from_secs(20);
/// The first of the blocks that one peer announces by itself: beyond all others.
const SINGLE: usize = 196_608;
/// The first of the blocks that the speaker gets.
const OWN: usize = 262_080;

/// What is measured, in order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    FullFib,
    Cpu,
    Memory,
    RouteMedian,
    RouteLast,
    OwnBlock,
    PeerLost,
    Idle,
}

/// A measure, its name and unit, what it must reach and should: ratios to the better BIRD, or absolute.
pub(crate) struct Goal {
    pub(crate) scenario: &'static str,
    pub(crate) measure: Measure,
    pub(crate) must: f64,
    pub(crate) aim: f64,
    pub(crate) is_ratio: bool,
}

/// How many peers with how many routes, and what is measured once all is in the kernel.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) size: Size,
    then: &'static [Then],
}

enum Then {
    /// One peer announces one route, so many times.
    OneRoute(usize),
    /// The speaker gets a block of its own, so many times.
    OwnBlock(usize),
    /// Nothing happens for a while.
    Idle,
    /// One peer is lost.
    PeerLost,
}

const fn size(peers: usize, routes_each: usize) -> Size {
    Size {
        peers,
        routes_each,
        at_once: 8,
    }
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "100x4",
        size: size(100, 4),
        then: &[Then::OneRoute(200), Then::OwnBlock(5), Then::PeerLost],
    },
    Scenario {
        name: "500x2",
        size: size(500, 2),
        then: &[],
    },
    Scenario {
        name: "1000x1",
        size: size(1000, 1),
        then: &[Then::Idle, Then::OneRoute(200), Then::OwnBlock(5), Then::PeerLost],
    },
    Scenario {
        name: "50x2000",
        size: size(50, 2000),
        then: &[Then::PeerLost],
    },
    Scenario {
        name: "1x100000",
        size: size(1, 100_000),
        then: &[Then::Idle, Then::OneRoute(400)],
    },
    Scenario {
        name: "dial",
        size: Size {
            at_once: 1000,
            ..size(1000, 1)
        },
        then: &[],
    },
];

/// How thorough to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) idle: Duration,
    /// One of so many repetitions is made.
    pub(crate) share: usize,
}

pub(crate) type Samples = BTreeMap<Measure, Vec<f64>>;

/// Runs a scenario on a speaker once. Times are in milliseconds, processor time in seconds, memory in MiB.
pub(crate) fn run(scenario: &Scenario, kind: Kind, programs: &Programs, terms: Terms) -> Outcome<Samples> {
    let folder = tempfile::Builder::new().prefix("mesh-").tempdir()?;
    let place = Place::new(scenario.size.peers)?;
    let mut peers = Peers::new(&place, scenario.size)?;
    let mut speaker = Speaker::start(kind, programs, &place, folder.path(), scenario.size.peers)?;
    let mut samples = Samples::new();
    let ended = measure(scenario, terms, &mut peers, &mut speaker, &mut samples);
    for complaint in peers.complaints() {
        eprintln!("  {} {}: {complaint}", scenario.name, kind.name());
    }
    if let Err(error) = ended {
        return Err(format!("{error}\n{}", speaker.log()).into());
    }
    Ok(samples)
}

fn measure(
    scenario: &Scenario,
    terms: Terms,
    peers: &mut Peers<'_>,
    speaker: &mut Speaker,
    samples: &mut Samples,
) -> Outcome<()> {
    let mut note = |measure, value| samples.entry(measure).or_default().push(value);
    let Size {
        peers: count,
        routes_each,
        ..
    } = scenario.size;
    let all = count * routes_each;
    let (begin, cpu) = (Instant::now(), speaker.cpu()?);
    peers.dial();
    if !peers.run_until(FULL_LIMIT, |p| p.fib.count() == all)? {
        let (up, there) = (peers.established(), peers.fib.count());
        eprintln!("  after {FULL_LIMIT:?} {up} of {count} sessions are up, {there} of {all} routes there");
        note(Measure::FullFib, f64::INFINITY);
        note(Measure::Memory, speaker.peak_memory()?);
        return Ok(());
    }
    note(Measure::FullFib, milliseconds(peers.fib.changed() - begin));
    peers.run_for(AFTERWARDS)?;
    note(Measure::Cpu, (speaker.cpu()? - cpu).as_secs_f64());
    for then in scenario.then {
        match then {
            Then::Idle => {
                // What was put off is done by then.
                peers.run_for(Duration::from_secs(3))?;
                let (begin, cpu) = (Instant::now(), speaker.cpu()?);
                peers.run_for(terms.idle)?;
                let share = (speaker.cpu()? - cpu).as_secs_f64() / begin.elapsed().as_secs_f64();
                note(Measure::Idle, share * 60.0);
            }
            Then::OneRoute(repetitions) => {
                let mut times = one_route(peers, repetitions / terms.share, count)?;
                times.sort_by(f64::total_cmp);
                note(Measure::RouteMedian, times[times.len() / 2]);
                note(Measure::RouteLast, times[(times.len() * 99).div_ceil(100) - 1]);
            }
            Then::OwnBlock(repetitions) => {
                for n in 0..*repetitions {
                    note(Measure::OwnBlock, own_block(peers, speaker, n)?);
                }
            }
            Then::PeerLost => note(Measure::PeerLost, peer_lost(peers, all, routes_each)?),
        }
    }
    note(Measure::Memory, speaker.peak_memory()?);
    Ok(())
}

/// From the UPDATE on the wire to the route in the kernel; one after another, with pauses of different lengths.
fn one_route(peers: &mut Peers<'_>, repetitions: usize, count: usize) -> Outcome<Vec<f64>> {
    let mut times = Vec::new();
    for n in 0..repetitions {
        let block = place::block(SINGLE + n);
        // A stride that is prime to the numbers of peers.
        let from = n * 37 % count;
        let begin = Instant::now();
        peers.announce(from, block);
        if !peers.run_until(LIMIT, |p| p.fib.holds(block))? {
            return Err(format!("{block}/26 does not come into the kernel").into());
        }
        times.push(milliseconds(peers.fib.changed() - begin));
        peers.run_for(Duration::from_millis(5 + n as u64 % 11))?;
        peers.withdraw(from, block);
        if !peers.run_until(LIMIT, |p| !p.fib.holds(block))? {
            return Err(format!("{block}/26 does not go from the kernel").into());
        }
        peers.run_for(Duration::from_millis(5 + n as u64 % 7))?;
    }
    Ok(times)
}

/// From the request to the UPDATE at the last peer.
fn own_block(peers: &mut Peers<'_>, speaker: &mut Speaker, n: usize) -> Outcome<f64> {
    let block = place::block(OWN + n);
    let give = speaker.prepare_block(block)?;
    peers.await_block(block);
    let begin = Instant::now();
    give()?;
    if !peers.run_until(LIMIT, Peers::all_have_heard)? {
        return Err(format!("the speaker's own {block}/26 does not come to all peers").into());
    }
    let took = milliseconds(begin.elapsed());
    peers.run_for(Duration::from_millis(300))?;
    Ok(took)
}

/// From the end of a connection to the last of its routes gone.
fn peer_lost(peers: &mut Peers<'_>, all: usize, routes_each: usize) -> Outcome<f64> {
    let begin = Instant::now();
    peers.lose(0);
    if !peers.run_until(LIMIT, |p| p.fib.count() == all - routes_each)? {
        return Err(format!("{} routes are left of {}", peers.fib.count(), all - routes_each).into());
    }
    Ok(milliseconds(peers.fib.changed() - begin))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

const fn goal(scenario: &'static str, measure: Measure, must: f64, aim: f64, is_ratio: bool) -> Goal {
    Goal {
        scenario,
        measure,
        must,
        aim,
        is_ratio,
    }
}

/// What is to be reached.
pub(crate) const GOALS: &[Goal] = &[
    goal("100x4", Measure::FullFib, 1.0, 0.6, true),
    goal("500x2", Measure::FullFib, 1.0, 0.6, true),
    goal("1000x1", Measure::FullFib, 1.0, 0.6, true),
    goal("50x2000", Measure::FullFib, 0.8, 0.5, true),
    goal("1x100000", Measure::FullFib, 0.8, 0.5, true),
    goal("100x4", Measure::Cpu, 1.0, 0.6, true),
    goal("500x2", Measure::Cpu, 1.0, 0.6, true),
    goal("1000x1", Measure::Cpu, 1.0, 0.6, true),
    goal("50x2000", Measure::Cpu, 1.0, 0.6, true),
    goal("1x100000", Measure::Cpu, 1.0, 0.6, true),
    goal("1000x1", Measure::Memory, 50.0, 30.0, false),
    goal("1000x1", Measure::RouteMedian, 1.0, 0.3, false),
    goal("1x100000", Measure::RouteLast, 5.0, 1.0, false),
    goal("1000x1", Measure::OwnBlock, 1.0, 0.3, true),
    goal("50x2000", Measure::PeerLost, 1.0, 0.5, true),
    goal("dial", Measure::FullFib, 1000.0, 500.0, false),
    goal("1000x1", Measure::Idle, 0.3, 0.1, false),
    goal("1x100000", Measure::Idle, 0.1, 0.03, false),
];
