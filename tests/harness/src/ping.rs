//! Pings between pods: a single one, and a train in which every loss is counted.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::record::kill;
use crate::{LabError, Namespace, wait_for};

/// Pings once and waits up to five seconds for the answer: the round-trip time in milliseconds as `ping` prints it.
///
/// # Errors
/// When no answer comes.
pub fn ping(from: &Namespace, to: impl Into<IpAddr>) -> Result<String, LabError> {
    let to = to.into();
    let text = from.run("ping", &["-n", "-c", "1", "-W", "5", &to.to_string()])?;
    let time = text
        .split("time=")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    Ok(time.unwrap_or("?").to_owned())
}

/// Pings that go out one after the other until they are stopped.
#[derive(Debug)]
pub struct PingTrain {
    child: Child,
    answered: Arc<Mutex<BTreeSet<u32>>>,
    route: String,
}

/// How a train went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How many were answered.
    pub answered: usize,
    /// The sequence numbers of those that were not, although a later one was.
    pub lost: Vec<u32>,
}

impl PingTrain {
    /// Starts a train with this interval, and waits for its first answer.
    ///
    /// # Errors
    /// When `ping` cannot be started or nothing answers.
    pub fn start(from: &Namespace, to: impl Into<IpAddr>, interval: Duration) -> Result<Self, LabError> {
        let to = to.into();
        let mut command = Command::new("ping");
        command.args([
            "-n",
            "-i",
            &format!("{:.3}", interval.as_secs_f32()),
            &to.to_string(),
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = from.spawn(command)?;
        let answered = Arc::new(Mutex::new(BTreeSet::new()));
        if let Some(stdout) = child.stdout.take() {
            let answered = Arc::clone(&answered);
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if let Some(number) = sequence_number(&line) {
                        answered
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .insert(number);
                    }
                }
            });
        }
        let train = Self {
            child,
            answered,
            route: format!("{} to {to}", from.name()),
        };
        train.wait_for_more(1)?;
        Ok(train)
    }

    /// Waits until so many more were answered than now.
    ///
    /// # Errors
    /// When they do not come within half a minute.
    pub fn wait_for_more(&self, more: usize) -> Result<(), LabError> {
        let goal = self.count() + more;
        let what = format!("{more} more answered pings from {}", self.route);
        wait_for(&what, Duration::from_secs(30), || {
            let count = self.count();
            if count >= goal {
                Ok(())
            } else {
                Err(format!("{count} of {goal}"))
            }
        })
    }

    /// How many were answered so far.
    #[must_use]
    pub fn answered(&self) -> usize {
        self.count()
    }

    /// Stops the train. The packets that were still under way do not count.
    #[must_use]
    pub fn stop(mut self) -> Outcome {
        self.end();
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        outcome(&answered)
    }

    fn count(&self) -> usize {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn end(&mut self) {
        kill(self.child.id(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for PingTrain {
    fn drop(&mut self) {
        self.end();
    }
}

/// The sequence number in a line of `ping` that tells of an answer.
fn sequence_number(line: &str) -> Option<u32> {
    let (_, rest) = line.split_once(" bytes from ")?;
    let (_, rest) = rest.split_once("icmp_seq=")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn outcome(answered: &BTreeSet<u32>) -> Outcome {
    let last = answered.last().copied().unwrap_or(0);
    let lost = (1..=last).filter(|number| !answered.contains(number)).collect();
    Outcome {
        answered: answered.len(),
        lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_count() {
        assert_eq!(
            sequence_number("64 bytes from 10.65.1.2: icmp_seq=17 ttl=62 time=0.06 ms"),
            Some(17)
        );
        assert_eq!(
            sequence_number("From 10.65.1.1 icmp_seq=18 Destination Host Unreachable"),
            None
        );
        assert_eq!(
            sequence_number("PING 10.65.1.2 (10.65.1.2) 56(84) bytes of data."),
            None
        );
    }

    #[test]
    fn a_hole_is_a_loss_and_the_end_is_not() {
        let outcome = outcome(&BTreeSet::from([1, 2, 4, 5]));
        assert_eq!(
            outcome,
            Outcome {
                answered: 4,
                lost: vec![3]
            }
        );
    }
}
