//! The kernel's own sign that passwords differ: what it counts of segments that it refuses (RFC 2385 §3).

use std::fs;

use culvert_bgp::speaker::TransportError;

/// Where the kernel tells it, of the network namespace that this thread is in.
const NETSTAT: &str = "/proc/thread-self/net/netstat";

/// Segments that the kernel refused so far, by the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    /// With another signature than expected.
    differs: u64,
    /// Without one.
    missing: u64,
    /// With one where none is expected.
    unexpected: u64,
}

impl Refused {
    /// As of now; nothing where the kernel does not tell.
    pub(super) fn now() -> Self {
        fs::read_to_string(NETSTAT).map_or_else(|_| Self::default(), |text| Self::read(&text))
    }

    /// A line of names and one of numbers follow each other.
    fn read(text: &str) -> Self {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
            return Self::default();
        };
        let of = |wanted| {
            let mut both = names.split_whitespace().zip(numbers.split_whitespace());
            let found = both.find(|(name, _)| *name == wanted);
            found.and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
        };
        Self {
            differs: of("TCPMD5Failure"),
            missing: of("TCPMD5NotFound"),
            unexpected: of("TCPMD5Unexpected"),
        }
    }

    /// What attempts to connect to a peer, with a password or without, have likely failed for that got no answer while
    /// this became `now`.
    pub(super) fn explain(self, now: Self, has_password: bool) -> TransportError {
        if has_password && now.differs > self.differs {
            TransportError::Md5Differs
        } else if has_password && now.missing > self.missing {
            TransportError::Md5Missing
        } else if !has_password && now.unexpected > self.unexpected {
            TransportError::Md5Unexpected
        } else {
            TransportError::TimedOut
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_of_the_kernel_are_found_by_their_names() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPLast\n\
                    TcpExt: 9 1 2 3 8\nIpExt: TCPMD5Failure\nIpExt: 7\n";
        let read = Refused::read(text);
        let expected = Refused {
            differs: 3,
            missing: 1,
            unexpected: 2,
        };
        assert_eq!(read, expected);
        assert_eq!(Refused::read("TcpExt: A B\n"), Refused::default());
    }

    #[test]
    fn what_was_refused_meanwhile_says_why_there_was_no_answer() {
        let before = Refused {
            differs: 5,
            missing: 5,
            unexpected: 5,
        };
        let after = |has_password, change: fn(&mut Refused)| {
            let mut now = before;
            change(&mut now);
            before.explain(now, has_password)
        };
        assert_eq!(after(true, |_| {}), TransportError::TimedOut);
        assert_eq!(after(true, |now| now.differs = 6), TransportError::Md5Differs);
        assert_eq!(after(true, |now| now.missing = 6), TransportError::Md5Missing);
        assert_eq!(after(true, |now| now.unexpected = 6), TransportError::TimedOut);
        assert_eq!(
            after(false, |now| now.unexpected = 6),
            TransportError::Md5Unexpected
        );
        assert_eq!(after(false, |now| now.differs = 6), TransportError::TimedOut);
    }
}
