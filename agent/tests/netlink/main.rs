//! The dataplane against a real kernel, each test in a network namespace of its own. Needs root and iproute2, which
//! serves as the other opinion.

mod attach;
mod changes;
mod events;
mod netns;
mod tunnel;
