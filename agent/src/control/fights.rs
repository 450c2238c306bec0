//! Routes that another program keeps undoing.
//!
//! A route that is wrong is put back at once. Where that goes on, two programs fight over it: each undoes the other's work,
//! packets suffer from every turn of it, and only a person can end it. So the fight is told, and from then on the route
//! is put back at growing intervals; never not at all, since the other may have stopped.
//!
//! Pure: the time is an argument.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::fib::{RouteKey, protocol_name};

/// So many repairs of one route within [`WINDOW`] are a fight.
const REPAIRS: usize = 10;

/// The time in which repairs are counted, and for which a route must be left alone for its fight to be over.
const WINDOW: Duration = Duration::from_secs(60);

/// The first and the longest wait between two repairs in a fight.
const WAIT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// The repairs of the last while, and the fights they have become.
#[derive(Debug, Default)]
pub(super) struct Fights {
    routes: BTreeMap<RouteKey, History>,
}

/// What becomes of the routes that are wrong now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Not to be repaired yet.
    pub(super) waiting: BTreeSet<RouteKey>,
    /// Fights that began with this.
    pub(super) begun: Vec<RouteKey>,
    /// Fights that are over.
    pub(super) ended: Vec<RouteKey>,
}

#[derive(Debug, Default)]
struct History {
    /// When it was repaired within the minute before the last repair, up to the beginning of a fight.
    repairs: VecDeque<Instant>,
    /// The protocol number of what was last found in its place.
    opponent: Option<u8>,
    fight: Option<Fight>,
}

#[derive(Debug)]
struct Fight {
    wait: Duration,
    /// Before this the route is not repaired again.
    next: Instant,
    /// The route is wrong and waits to be repaired.
    waiting: bool,
    /// Since when nobody has touched it.
    quiet_since: Instant,
}

impl Fights {
    /// Judges all routes that are `wrong` now: those that were in the kernel as they should be, and are not any more,
    /// each with the protocol number of what is there instead, if anything is. Those that are not held back are taken to
    /// be repaired now.
    pub(super) fn judge(&mut self, wrong: &BTreeMap<RouteKey, Option<u8>>, now: Instant) -> Verdict {
        let mut verdict = Verdict::default();
        for (key, opponent) in wrong {
            let history = self.routes.entry(*key).or_default();
            history.opponent = opponent.or(history.opponent);
            match &mut history.fight {
                Some(fight) if now < fight.next => {
                    fight.waiting = true;
                    verdict.waiting.insert(*key);
                }
                Some(fight) => {
                    fight.wait = (fight.wait * 2).min(WAIT.1);
                    fight.next = now + fight.wait;
                    fight.waiting = false;
                    fight.quiet_since = now;
                }
                None if is_fight(&mut history.repairs, now) => {
                    history.fight = Some(Fight {
                        wait: WAIT.0,
                        next: now + WAIT.0,
                        waiting: false,
                        quiet_since: now,
                    });
                    verdict.begun.push(*key);
                }
                None => {}
            }
        }
        self.routes.retain(|key, history| {
            let Some(fight) = &mut history.fight else {
                return history.repairs.back().is_some_and(|last| now < *last + WINDOW);
            };
            if fight.waiting && !wrong.contains_key(key) {
                // It is right again, or not wanted any more, without us.
                fight.waiting = false;
                fight.quiet_since = now;
            }
            let goes_on = fight.waiting || now < fight.quiet_since + WINDOW;
            if !goes_on {
                verdict.ended.push(*key);
            }
            goes_on
        });
        verdict
    }

    /// When to judge again, if nothing happens before: a repair is due, or a fight may be over.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = self.routes.values().filter_map(|history| {
            let fight = history.fight.as_ref()?;
            Some(if fight.waiting {
                fight.next
            } else {
                fight.quiet_since + WINDOW
            })
        });
        due.min()
    }

    /// How many routes are fought over.
    pub(super) fn count(&self) -> usize {
        self.words().count()
    }

    /// The routes that are fought over, and what to do.
    pub(super) fn words(&self) -> impl Iterator<Item = (RouteKey, String)> {
        self.routes.iter().filter_map(|(key, history)| {
            let fight = history.fight.as_ref()?;
            Some((*key, words(history.opponent, fight.wait)))
        })
    }
}

/// Notes a repair; whether it is one too many.
fn is_fight(repairs: &mut VecDeque<Instant>, now: Instant) -> bool {
    while repairs.front().is_some_and(|first| *first + WINDOW <= now) {
        repairs.pop_front();
    }
    repairs.push_back(now);
    repairs.len() >= REPAIRS
}

fn words(opponent: Option<u8>, wait: Duration) -> String {
    let what = match opponent {
        Some(protocol) => format!(
            "another program (route protocol {}) keeps undoing this route: stop it, or keep it from this prefix",
            protocol_name(protocol)
        ),
        // Of a deletion the kernel does not tell whose it was.
        None => "another program keeps deleting this route: `ip monitor route` shows when; look for a routing daemon on this \
                 host and stop it, or keep it from this prefix"
            .to_owned(),
    };
    format!(
        "{what}. Until it is left alone for a minute it is put back only every {} seconds",
        wait.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BIRD: u8 = 12;

    fn key(third: u8) -> RouteKey {
        RouteKey {
            table: 254,
            prefix: format!("10.65.{third}.0/26").parse().unwrap(),
            metric: 0,
        }
    }

    fn wrong(third: u8, by: Option<u8>) -> BTreeMap<RouteKey, Option<u8>> {
        BTreeMap::from([(key(third), by)])
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Ten repairs, one a second; gives the time of the last.
    fn begin(fights: &mut Fights, start: Instant) -> Instant {
        for n in 0..9 {
            assert_eq!(
                fights.judge(&wrong(1, Some(BIRD)), start + seconds(n)),
                Verdict::default()
            );
        }
        let now = start + seconds(9);
        let verdict = fights.judge(&wrong(1, Some(BIRD)), now);
        assert_eq!(verdict.begun, [key(1)]);
        assert!(
            verdict.waiting.is_empty(),
            "the tenth repair is still made at once"
        );
        now
    }

    #[test]
    fn ten_repairs_of_one_route_in_a_minute_are_a_fight_and_it_is_told_once() {
        let mut fights = Fights::default();
        let now = begin(&mut fights, Instant::now());
        let told: Vec<_> = fights.words().collect();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].0, key(1));
        assert!(
            told[0].1.contains("bird") && told[0].1.contains("every 10 seconds"),
            "{told:?}"
        );
        for n in 1..300 {
            let verdict = fights.judge(&wrong(1, Some(BIRD)), now + seconds(n));
            assert_eq!((verdict.begun, verdict.ended), (Vec::new(), Vec::new()));
        }
        assert_eq!(fights.count(), 1);
    }

    #[test]
    fn ten_repairs_of_ten_routes_or_of_one_in_more_than_a_minute_are_no_fight() {
        let start = Instant::now();
        let mut fights = Fights::default();
        for n in 0..10 {
            assert_eq!(fights.judge(&wrong(n, None), start), Verdict::default());
        }
        let mut fights = Fights::default();
        for n in 0..100 {
            // Nine within any minute.
            assert_eq!(
                fights.judge(&wrong(1, None), start + seconds(7 * n)),
                Verdict::default()
            );
        }
        assert_eq!((fights.count(), fights.deadline()), (0, None));
    }

    #[test]
    fn in_a_fight_repairs_come_after_ten_twenty_forty_and_then_every_sixty_seconds() {
        let mut fights = Fights::default();
        let start = begin(&mut fights, Instant::now());
        let mut repaired = Vec::new();
        for n in 1..=260 {
            let verdict = fights.judge(&wrong(1, Some(BIRD)), start + seconds(n));
            if verdict.waiting.is_empty() {
                repaired.push(n);
            } else {
                assert!(fights.deadline().is_some_and(|due| due > start + seconds(n)));
            }
        }
        assert_eq!(repaired, [10, 30, 70, 130, 190, 250]);
    }

    #[test]
    fn a_fight_over_one_route_slows_no_other() {
        let mut fights = Fights::default();
        let now = begin(&mut fights, Instant::now());
        let mut both = wrong(1, Some(BIRD));
        both.extend(wrong(2, Some(BIRD)));
        let verdict = fights.judge(&both, now + seconds(1));
        assert_eq!(verdict.waiting, BTreeSet::from([key(1)]));
    }

    #[test]
    fn a_fight_is_over_after_a_minute_of_quiet_and_the_next_counts_from_the_start() {
        let mut fights = Fights::default();
        let now = begin(&mut fights, Instant::now());
        let nothing = BTreeMap::new();
        assert_eq!(fights.judge(&nothing, now + seconds(59)), Verdict::default());
        assert_eq!(fights.deadline(), Some(now + seconds(60)));
        assert_eq!(fights.judge(&nothing, now + seconds(60)).ended, [key(1)]);
        assert_eq!((fights.count(), fights.deadline()), (0, None));
        begin(&mut fights, now + seconds(61));
    }

    #[test]
    fn a_route_that_waits_to_be_repaired_is_not_quiet_but_one_that_came_back_by_itself_is() {
        let mut fights = Fights::default();
        let start = begin(&mut fights, Instant::now());
        let nothing = BTreeMap::new();
        assert!(
            !fights
                .judge(&wrong(1, None), start + seconds(5))
                .waiting
                .is_empty()
        );
        assert_eq!(fights.deadline(), Some(start + seconds(10)));
        assert_eq!(fights.judge(&nothing, start + seconds(8)), Verdict::default());
        assert_eq!(fights.deadline(), Some(start + seconds(68)));
        assert_eq!(fights.judge(&nothing, start + seconds(67)), Verdict::default());
        assert_eq!(fights.judge(&nothing, start + seconds(68)).ended, [key(1)]);
    }

    #[test]
    fn repairs_of_long_ago_are_forgotten() {
        let mut fights = Fights::default();
        let now = Instant::now();
        let _ = fights.judge(&wrong(1, None), now);
        let _ = fights.judge(&BTreeMap::new(), now + seconds(60));
        assert!(fights.routes.is_empty());
    }
}
