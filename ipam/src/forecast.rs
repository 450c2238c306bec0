//! How many addresses of a pool are left, and for how long.

use crate::pool::Pool;
use crate::ranges::{Ranges, bounds};
use crate::snapshot::Snapshot;
use crate::timestamp::Timestamp;

/// How the addresses of a pool are used. Numbers that exceed 2^128 - 1 are that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// All of its addresses.
    pub total: u128,
    /// Those that somebody has.
    pub in_use: u128,
    /// Those that were released and rest.
    pub resting: u128,
    /// Those that are reserved, and nobody's.
    pub reserved: u128,
}

impl Usage {
    /// How a pool is used.
    #[must_use]
    pub fn of(pool: &Pool, snapshot: &Snapshot) -> Self {
        let (first, last) = bounds(pool.cidr());
        let mut usage = Self {
            total: (last - first).saturating_add(1),
            ..Self::default()
        };
        let mut taken_and_reserved = 0_u128;
        for stored in snapshot.live_blocks() {
            if !pool.cidr().contains(&stored.spec.cidr) {
                continue;
            }
            for taken in stored.spec.taken() {
                if taken.attribute.rests() {
                    usage.resting += 1;
                } else {
                    usage.in_use += 1;
                }
                taken_and_reserved += u128::from(snapshot.reserved.contains(taken.address));
            }
        }
        let reserved = reserved_in(&snapshot.reserved, pool);
        usage.reserved = reserved.saturating_sub(taken_and_reserved);
        usage
    }

    /// Those that can be had.
    #[must_use]
    pub fn free(&self) -> u128 {
        self.total
            .saturating_sub(self.in_use)
            .saturating_sub(self.resting)
            .saturating_sub(self.reserved)
    }
}

fn reserved_in(reserved: &Ranges, pool: &Pool) -> u128 {
    reserved.count_in(pool.cidr())
}

/// How many addresses were in use at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The instant.
    pub at: Timestamp,
    /// Addresses in use.
    pub in_use: u128,
}

/// How fast a pool fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// More addresses in use each day, rounded down; less than 0 when it empties.
    pub per_day: i128,
    /// Seconds until none is left; `None` when it does not fill.
    pub seconds_left: Option<u128>,
}

const DAY: i128 = 86_400;

/// How long `free` addresses last if use goes on as in the samples: along the straight line that fits them best (least
/// squares), so that one busy moment at an end of them does not decide. `None` for samples of fewer than two instants, or
/// too large to be counted with.
#[must_use]
pub fn forecast(free: u128, samples: &[Sample]) -> Option<Forecast> {
    let start = samples.iter().map(|s| s.at).min()?;
    let base = samples.first()?.in_use;
    let points = samples.iter().map(|s| {
        let t = i128::from(s.at.seconds_since(start));
        let used = i128::try_from(s.in_use)
            .ok()?
            .checked_sub(i128::try_from(base).ok()?)?;
        Some((t, used))
    });
    let points: Vec<(i128, i128)> = points.collect::<Option<_>>()?;
    let n = i128::try_from(points.len()).ok()?;
    let sum = |value: fn(&(i128, i128)) -> Option<i128>| {
        points
            .iter()
            .try_fold(0_i128, |sum, p| sum.checked_add(value(p)?))
    };
    let (t, used) = (sum(|p| Some(p.0))?, sum(|p| Some(p.1))?);
    let (tt, tu) = (sum(|p| p.0.checked_mul(p.0))?, sum(|p| p.0.checked_mul(p.1))?);
    // The slope is rise over run, in addresses a second.
    let rise = n.checked_mul(tu)?.checked_sub(t.checked_mul(used)?)?;
    let run = n.checked_mul(tt)?.checked_sub(t.checked_mul(t)?)?;
    if run == 0 {
        return None;
    }
    let per_day = rise.checked_mul(DAY)?.div_euclid(run);
    let seconds_left = match u128::try_from(rise) {
        Ok(rise) if rise > 0 => free.checked_mul(u128::try_from(run).ok()?)?.checked_div(rise),
        _ => None,
    };
    Some(Forecast {
        per_day,
        seconds_left,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(points: &[(u64, u128)]) -> Vec<Sample> {
        let sample = |(seconds, in_use): &(u64, u128)| Sample {
            at: Timestamp::from_unix_nanos(1_790_000_000_000_000_000 + seconds * 1_000_000_000),
            in_use: *in_use,
        };
        points.iter().map(sample).collect()
    }

    #[test]
    fn a_pool_that_fills_by_one_a_minute_lasts_as_many_minutes_as_it_has_addresses() {
        let steady = samples(&[(0, 100), (60, 101), (120, 102), (180, 103)]);
        let expected = Forecast {
            per_day: 1440,
            seconds_left: Some(500 * 60),
        };
        assert_eq!(forecast(500, &steady), Some(expected));
    }

    #[test]
    fn a_pool_that_does_not_fill_lasts() {
        let flat = forecast(500, &samples(&[(0, 100), (60, 100)])).unwrap();
        assert_eq!(
            flat,
            Forecast {
                per_day: 0,
                seconds_left: None
            }
        );
        let emptying = forecast(500, &samples(&[(0, 100), (60, 99)])).unwrap();
        assert_eq!(
            emptying,
            Forecast {
                per_day: -1440,
                seconds_left: None
            }
        );
    }

    #[test]
    fn one_busy_moment_does_not_decide() {
        let mut points: Vec<(u64, u128)> = (0..100).map(|n| (n * 60, 100)).collect();
        points.push((6000, 150));
        let left = forecast(500, &samples(&points)).unwrap().seconds_left.unwrap();
        // From the first and the last alone it would be 500 addresses at 50 in 6000 s.
        assert!(left > 60_000 * 5, "{left}");
    }

    #[test]
    fn too_little_or_too_much_to_count_with_is_no_forecast() {
        assert_eq!(forecast(1, &[]), None);
        assert_eq!(forecast(1, &samples(&[(0, 1)])), None);
        assert_eq!(forecast(1, &samples(&[(5, 1), (5, 2)])), None);
        assert_eq!(
            forecast(1, &samples(&[(0, 0), (u64::from(u32::MAX), u128::MAX)])),
            None
        );
    }
}
