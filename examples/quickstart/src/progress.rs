//! One line for each step: what is done, what came of it, and how long it took.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use harness::LabError;

/// Times steps, and all of them together.
pub(crate) struct Progress {
    start: Instant,
    before: Duration,
}

impl Progress {
    /// Starts the clock. `QUICKSTART_STARTED` (seconds since 1970) says when the script that called us began.
    pub(crate) fn new() -> Self {
        let began = std::env::var("QUICKSTART_STARTED")
            .ok()
            .and_then(|text| text.parse().ok());
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let before = began.and_then(|began: f64| Duration::try_from_secs_f64(began).ok());
        Self {
            start: Instant::now(),
            before: before.map_or(Duration::ZERO, |began| now.saturating_sub(began)),
        }
    }

    /// Does a step, and prints its line.
    pub(crate) fn step<T>(
        &self,
        what: &str,
        act: impl FnOnce() -> Result<(T, String), LabError>,
    ) -> Result<T, LabError> {
        print!("{what:<32} ");
        // A terminal shows what is being done; the rest of the line follows.
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let done = act();
        match done {
            Ok((result, outcome)) => {
                println!("{outcome:<36} {:>6.1} s", start.elapsed().as_secs_f64());
                Ok(result)
            }
            Err(error) => {
                println!("FAILED");
                Err(error)
            }
        }
    }

    /// How long everything took, from the start of the script.
    pub(crate) fn total(&self) -> Duration {
        self.before + self.start.elapsed()
    }
}
