//! The packet filter on this host's own kernel, each test in network namespaces of its own. Needs root, iproute2, and
//! nftables, whose program serves as the other opinion.

#![allow(clippy::unwrap_used, reason = "what a test cannot set up fails it")]

#[path = "../netlink/netns.rs"]
#[allow(dead_code, reason = "shared with the tests of netlink")]
mod netns;

mod agent;
mod masquerade;
mod ruleset;
mod table;
mod tunnel_peers;
mod world;
