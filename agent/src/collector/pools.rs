//! How full the pools are, and how long they last at the rate at which they fill.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use culvert_ipam::forecast::{Sample, Usage, forecast};
use culvert_ipam::pool::Pool;
use culvert_ipam::snapshot::Snapshot;
use culvert_ipam::timestamp::Timestamp;
use prometheus::GaugeVec;

use crate::metrics::Metrics;

/// Samples of a pool that a forecast goes by: a day of them, at the default interval.
const SAMPLES: usize = 192;

/// Most pools that are told of, those with the fewest free addresses first: no monitoring is to be flooded.
pub(super) const POOLS_MAX: usize = 100;

/// The pools' use over time.
#[derive(Debug, Default)]
pub(super) struct Outlook {
    /// By pool and range: one that was made anew begins anew.
    samples: BTreeMap<(String, String), VecDeque<Sample>>,
}

impl Outlook {
    /// Takes in how the pools are used now, and tells it.
    pub(super) fn take_in(&mut self, snapshot: &Snapshot, now: Timestamp, metrics: &Metrics) {
        let mut pools: Vec<(&Pool, Usage)> = snapshot
            .pools
            .iter()
            .map(|pool| (pool, Usage::of(pool, snapshot)))
            .collect();
        pools.sort_by_key(|(pool, usage)| (usage.free(), pool.name().to_owned()));
        pools.truncate(POOLS_MAX);
        let mut before = std::mem::take(&mut self.samples);
        for (pool, usage) in pools {
            let key = (pool.name().to_owned(), pool.cidr().to_string());
            let mut samples = before.remove(&key).unwrap_or_default();
            samples.push_back(Sample {
                at: now,
                in_use: usage.in_use,
            });
            while samples.len() > SAMPLES {
                samples.pop_front();
            }
            tell(metrics, pool.name(), usage, samples.make_contiguous());
            self.samples.insert(key, samples);
        }
        let told: BTreeSet<&String> = self.samples.keys().map(|(pool, _)| pool).collect();
        for (pool, _) in before.keys().filter(|(pool, _)| !told.contains(pool)) {
            for gauge in gauges(metrics) {
                // It may never have been there.
                let _ = gauge.remove_label_values(&[pool]);
            }
        }
    }
}

fn tell(metrics: &Metrics, pool: &str, usage: Usage, samples: &[Sample]) {
    metrics
        .ipam_pool_addresses
        .with_label_values(&[pool])
        .set(number(usage.total));
    metrics
        .ipam_pool_addresses_free
        .with_label_values(&[pool])
        .set(number(usage.free()));
    let left = forecast(usage.free(), samples).and_then(|forecast| forecast.seconds_left);
    match left {
        Some(left) => {
            let gauge = metrics.ipam_pool_seconds_left.with_label_values(&[pool]);
            gauge.set(number(left));
        }
        None => {
            let _ = metrics.ipam_pool_seconds_left.remove_label_values(&[pool]);
        }
    }
}

fn gauges(metrics: &Metrics) -> [&GaugeVec; 3] {
    [
        &metrics.ipam_pool_addresses,
        &metrics.ipam_pool_addresses_free,
        &metrics.ipam_pool_seconds_left,
    ]
}

/// Takes the series of all pools away.
pub(super) fn forget(metrics: &Metrics) {
    gauges(metrics).into_iter().for_each(GaugeVec::reset);
}

/// As Prometheus counts. Nobody sees beyond 2^53 that the last digits are lost.
fn number(count: u128) -> f64 {
    count as f64
}
