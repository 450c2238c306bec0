//! Connections from addresses that are no peers': closed before a byte is read, counted, and not let in faster than they can
//! be closed at leisure.

use std::net::IpAddr;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;
use tracing::warn;

/// More than this many within a [`WINDOW`] pause the accepting: the others wait in the backlog, as peers do for a moment.
const MOST: u32 = 1000;

/// The time over which they are counted, and for which an error pauses the accepting.
const WINDOW: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Strangers {
    refused: IntCounter,
    since: Instant,
    count: u32,
    paused_until: Option<Instant>,
}

impl Strangers {
    pub(super) fn new(refused: IntCounter) -> Self {
        Self {
            refused,
            since: Instant::now(),
            count: 0,
            paused_until: None,
        }
    }

    /// Counts one that is closed.
    pub(super) fn refuse(&mut self, from: IpAddr) {
        self.refused.inc();
        // Written only now and then: anybody can do this to us.
        let total = self.refused.get();
        if total.is_power_of_two() {
            warn!(%from, total, "refused a BGP connection from an address that is no peer's");
        }
        let now = Instant::now();
        if now.duration_since(self.since) >= WINDOW {
            (self.since, self.count) = (now, 0);
        }
        self.count = self.count.saturating_add(1);
        if self.count >= MOST {
            self.pause();
        }
    }

    /// Accepts nothing for a while.
    pub(super) fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + WINDOW);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    /// When the pause ends; now without one.
    pub(super) fn pause_until(&self) -> Instant {
        self.paused_until.unwrap_or_else(Instant::now)
    }

    /// The pause is over.
    pub(super) fn go_on(&mut self) {
        self.paused_until = None;
        (self.since, self.count) = (Instant::now(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn strangers_are_counted_and_too_many_at_once_pause_the_accepting() {
        let counter = IntCounter::new("refused", "them").unwrap();
        let mut strangers = Strangers::new(counter.clone());
        let from = IpAddr::from([192, 0, 2, 1]);
        for _ in 1..MOST {
            strangers.refuse(from);
        }
        assert!(!strangers.is_paused());
        tokio::time::advance(WINDOW).await;
        strangers.refuse(from);
        assert!(!strangers.is_paused(), "a new second");
        for _ in 1..MOST {
            strangers.refuse(from);
        }
        assert!(strangers.is_paused());
        assert_eq!(strangers.pause_until(), Instant::now() + WINDOW);
        strangers.go_on();
        assert!(!strangers.is_paused());
        assert_eq!(counter.get(), u64::from(MOST) * 2 - 1);
    }
}
