//! Block address allocation on Calico's data model, as plain values.
//!
//! A pool of addresses is cut into blocks; a node claims a block, and hands out the addresses in it. This crate decides
//! what to write; it does not write. Its caller reads, plans, writes by compare-and-swap, and on a conflict reads again.

pub mod affinity;
pub mod block;
pub mod handle;
