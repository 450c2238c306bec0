//! The agent: all the input and output around the pure crates, and all the wiring.

pub mod allocation;
pub mod api;
pub mod claims;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod datastore;
pub mod desired;
pub mod events;
pub mod fib;
pub mod filter;
pub mod firewall;
pub mod http;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod reconcile;
pub mod selector;
pub mod speaker;
pub mod status;
mod table;
pub mod uapi;
pub mod withdrawal;
