//! A BGP-4 speaker (RFC 4271) without sockets or clocks.
//!
//! Time is an argument and effects are values: a driver feeds [`speaker::Speaker`] with what happened and carries out
//! what it asks for. The same inputs give the same outputs, in the same order, on every run.

pub mod config;
pub mod error;
pub mod fsm;
pub mod id;
pub mod input;
pub mod output;
pub mod policy;
pub mod reason;
pub mod rib;
mod session;
pub mod speaker;
mod transport;
pub mod wire;
