//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

use crate::{LabError, interruption};

/// How long to rest between two looks. A look often starts a process, which is dear in a guest.
const REST: Duration = Duration::from_millis(50);

/// Looks again and again until `look` finds what it wants. What it sees instead goes into the error if it never does.
///
/// # Errors
/// [`LabError::Timeout`] after `limit`, [`LabError::Interrupted`] when somebody asked to end.
pub fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let start = Instant::now();
    loop {
        interruption::check()?;
        // Read the clock before the look: a machine that stood still meanwhile gets one more chance.
        let late = start.elapsed() >= limit;
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if late => {
                return Err(LabError::Timeout {
                    what: what.to_owned(),
                    limit,
                    last,
                });
            }
            Err(_) => std::thread::sleep(REST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_as_soon_as_the_condition_holds() {
        let mut looks = 0;
        let found = wait_for("three looks", Duration::from_secs(60), || {
            looks += 1;
            if looks == 3 {
                Ok(looks)
            } else {
                Err(looks.to_string())
            }
        });
        assert_eq!(found.unwrap(), 3);
    }

    #[test]
    fn a_wait_that_fails_says_what_it_saw_last() {
        let error = wait_for::<()>("rain", Duration::ZERO, || Err("sunshine".to_owned())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "waited 0ns for rain; the last look saw: sunshine"
        );
    }
}
