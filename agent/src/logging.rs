//! The log, on standard error.

use std::io::{self, IsTerminal};

use serde::de::{self, Unexpected};
use serde::{Deserialize, Deserializer, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people, in colours on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// The least important lines that are written: `error`, `warn`, `info`, `debug`, `trace` or `off`, with exceptions for
/// single targets as in `info,culvert_agent::speaker=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Level(String);

impl Level {
    /// `None` when it is no such level.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        // A word alone would be taken for a target, and a misspelt level would not be noticed.
        let mut words = text.split(',').filter(|word| !word.contains('='));
        let known = words.all(|word| LEVELS.contains(&word.trim()));
        (known && EnvFilter::builder().parse(text).is_ok()).then(|| Self(text.to_owned()))
    }
}

impl Default for Level {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl<'de> Deserialize<'de> for Level {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = &"error, warn, info, debug, trace or off, or such a level with exceptions for single targets, \
                        as in info,culvert_agent::speaker=debug";
        Self::new(&text).ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), allowed))
    }
}

/// Starts the log of this process.
///
/// # Errors
/// When the log was started before.
pub fn start(format: Format, level: &Level) -> Result<(), TryInitError> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse_lossy(&level.0))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        Format::Human => subscriber.finish().try_init(),
        Format::Json => subscriber.json().flatten_event(true).finish().try_init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_one_of_the_known_with_exceptions_for_targets() {
        for level in [
            "error",
            "warn",
            "info",
            "debug",
            "trace",
            "off",
            "info,culvert_agent::speaker=debug",
        ] {
            assert!(Level::new(level).is_some(), "{level}");
        }
        for level in ["loud", "", "info,loud", "culvert_agent=loud"] {
            assert_eq!(Level::new(level), None, "{level}");
        }
    }
}
