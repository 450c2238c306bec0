//! The table: a line for each measure, all speakers side by side.

use std::collections::BTreeMap;

use crate::scenario::{GOALS, Measure, SCENARIOS, Samples};
use crate::speaker::Kind;

/// All that was measured.
pub(crate) type Results = BTreeMap<(&'static str, Kind), Samples>;

/// Adds what one run has measured.
pub(crate) fn add(results: &mut Results, scenario: &'static str, kind: Kind, samples: Samples) {
    let all = results.entry((scenario, kind)).or_default();
    for (measure, values) in samples {
        all.entry(measure).or_default().extend(values);
    }
}

/// A line of what one run has measured.
pub(crate) fn line(samples: &Samples) -> String {
    let parts = samples
        .iter()
        .filter_map(|(measure, values)| Some(format!("{} {}", short(*measure), number(median(values)?))));
    parts.collect::<Vec<_>>().join(", ")
}

/// Prints medians, the ratio to the better BIRD, and what was to be reached.
pub(crate) fn print(results: &Results) {
    println!(
        "| {:8} | {:34} | {:>8} | {:>8} | {:>8} | {:>5} | {:>11} | {:7} |",
        "peers", "measure", "Culvert", "BIRD 1.6", "BIRD 2", "ratio", "must (aim)", ""
    );
    println!(
        "|{0:-<10}|{0:-<36}|{0:->10}|{0:->10}|{0:->10}|{0:->7}|{0:->13}|{0:-<9}|",
        ""
    );
    for scenario in SCENARIOS {
        for measure in MEASURES {
            let value = |kind| {
                let samples = results.get(&(scenario.name, kind))?;
                median(samples.get(&measure)?)
            };
            let values = Kind::ALL.map(value);
            if values.iter().any(Option::is_some) {
                row(scenario.name, measure, values);
            }
        }
    }
}

fn row(scenario: &str, measure: Measure, values: [Option<f64>; 3]) {
    let [ours, bird1, bird2] = values;
    let better = bird1.into_iter().chain(bird2).min_by(f64::total_cmp);
    let ratio = ours.zip(better).map(|(ours, better)| ours / better);
    let goal = GOALS
        .iter()
        .find(|goal| goal.scenario == scenario && goal.measure == measure);
    let verdict = goal.and_then(|goal| {
        let reached = if goal.is_ratio { ratio? } else { ours? };
        Some(match reached {
            r if r <= goal.aim => "aim",
            r if r <= goal.must => "reached",
            _ => "MISSED",
        })
    });
    let wanted = goal.map(|goal| {
        let unit = if goal.is_ratio { "x" } else { "" };
        format!("{}{unit} ({})", goal.must, goal.aim)
    });
    let shown = |value: Option<f64>| value.map(number).unwrap_or_default();
    println!(
        "| {scenario:8} | {:34} | {:>8} | {:>8} | {:>8} | {:>5} | {:>11} | {:7} |",
        long(measure),
        shown(ours),
        shown(bird1),
        shown(bird2),
        ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
        wanted.unwrap_or_default(),
        verdict.unwrap_or_default()
    );
}

const MEASURES: [Measure; 8] = [
    Measure::FullFib,
    Measure::Cpu,
    Measure::Memory,
    Measure::RouteMedian,
    Measure::RouteLast,
    Measure::OwnBlock,
    Measure::PeerLost,
    Measure::Idle,
];

fn short(measure: Measure) -> &'static str {
    match measure {
        Measure::FullFib => "full FIB",
        Measure::Cpu => "CPU",
        Measure::Memory => "memory",
        Measure::RouteMedian => "route p50",
        Measure::RouteLast => "p99",
        Measure::OwnBlock => "own block",
        Measure::PeerLost => "peer lost",
        Measure::Idle => "idle",
    }
}

fn long(measure: Measure) -> &'static str {
    match measure {
        Measure::FullFib => "all routes in the kernel, ms",
        Measure::Cpu => "CPU until then, s",
        Measure::Memory => "peak memory, MiB",
        Measure::RouteMedian => "one route, wire to kernel, p50 ms",
        Measure::RouteLast => "one route, wire to kernel, p99 ms",
        Measure::OwnBlock => "own new block at all peers, ms",
        Measure::PeerLost => "a peer lost, its routes gone, ms",
        Measure::Idle => "idle CPU, s a minute",
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn number(value: f64) -> String {
    match value {
        v if v.is_infinite() => "never".to_owned(),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}
