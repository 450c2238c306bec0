//! The dataplane against a real kernel, each test in a network namespace of its own. Needs root and iproute2, which
//! serves as the other opinion.

#![allow(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

mod attach;
mod changes;
mod events;
mod ipv6;
mod netns;
mod path_mtu;
mod pins;
mod probe;
mod takeover;
mod tunnel;
