//! The agent: all the input and output around the pure crates, and all the wiring.

pub mod allocation;
pub mod api;
pub mod claims;
pub mod cli;
pub mod cluster;
pub mod cni;
pub mod collector;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod datastore;
pub mod desired;
pub mod doctor;
pub mod events;
pub mod explanation;
pub mod fib;
pub mod filter;
pub mod firewall;
#[cfg(test)]
mod fixtures;
pub mod http;
pub mod inquiry;
pub mod inventory;
pub mod leader;
pub mod logging;
pub mod metrics;
pub mod node;
pub mod peering;
pub mod reconcile;
pub mod ribs;
pub mod selector;
pub mod shadow;
pub mod speaker;
pub mod status;
mod table;
pub mod uapi;
pub mod withdrawal;
