//! The log, on standard error.

use std::io::{self, IsTerminal};

use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people, in colours on a terminal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The level is none.
    #[error(
        "log level {0:?} is none: it must be error, warn, info, debug, trace or off, or such a level with exceptions for \
         single targets as in info,culvert_agent::speaker=debug"
    )]
    Level(String),
    /// There is one already.
    #[error("the log was started twice: {0}")]
    Twice(#[from] TryInitError),
}

fn filter(level: &str) -> Result<EnvFilter, LoggingError> {
    // A word alone would be taken for a target, and a misspelt level would not be noticed.
    let mut words = level.split(',').filter(|word| !word.contains('='));
    if !words.all(|word| LEVELS.contains(&word.trim())) {
        return Err(LoggingError::Level(level.to_owned()));
    }
    EnvFilter::builder()
        .parse(level)
        .map_err(|_| LoggingError::Level(level.to_owned()))
}

/// Starts the log of this process.
///
/// # Errors
/// When `level` is no filter of levels, or the log was started before.
pub fn start(format: Format, level: &str) -> Result<(), LoggingError> {
    let filter = filter(level)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        Format::Human => subscriber.finish().try_init(),
        Format::Json => subscriber.json().flatten_event(true).finish().try_init(),
    }?;
    Ok(())
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
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["loud", "", "info,loud", "culvert_agent=loud"] {
            let error = filter(level).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("log level {level:?} is none: ")),
                "{error}"
            );
        }
    }
}
