//! Time that begins in one task and ends in another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most times that run at once: for one more, the oldest is given up. It is of something that came to nothing.
const RUNNING_MAX: usize = 1024;

/// Times that run, by what they are of; a clone stops what another has started.
#[derive(Clone, Debug)]
pub struct Stopwatch<K> {
    running: Arc<Mutex<BTreeMap<K, Instant>>>,
}

impl<K> Default for Stopwatch<K> {
    fn default() -> Self {
        Self {
            running: Arc::default(),
        }
    }
}

impl<K: Ord + Clone> Stopwatch<K> {
    /// Starts the time of `key`; one that runs goes on.
    pub fn start(&self, key: K) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest = running.iter().min_by_key(|(_, since)| **since);
        if running.len() >= RUNNING_MAX
            && !running.contains_key(&key)
            && let Some((oldest, _)) = oldest
        {
            let oldest = oldest.clone();
            running.remove(&oldest);
        }
        running.entry(key).or_insert_with(Instant::now);
    }

    /// Ends the time of `key`, if it runs, and says how long that was.
    #[must_use]
    pub fn stop(&self, key: &K) -> Option<Duration> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.remove(key).map(|since| since.elapsed())
    }

    /// Whether the time of `key` runs.
    #[must_use]
    pub fn runs(&self, key: &K) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.contains_key(key)
    }

    /// Whether no time runs.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_ends_once_and_only_if_it_was_begun() {
        let watch = Stopwatch::default();
        assert!(watch.is_idle());
        watch.start("a");
        assert_eq!(watch.stop(&"b"), None);
        assert!(watch.clone().stop(&"a").is_some());
        assert_eq!(watch.stop(&"a"), None);
        assert!(watch.is_idle());
    }

    #[test]
    fn what_begins_without_end_is_bounded() {
        let watch = Stopwatch::default();
        for key in 0..=RUNNING_MAX {
            watch.start(key);
        }
        assert_eq!(watch.running.lock().unwrap().len(), RUNNING_MAX);
        assert!(watch.runs(&RUNNING_MAX));
    }
}
