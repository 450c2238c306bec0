//! Block address allocation on Calico's data model, as plain values.
//!
//! A pool of addresses is cut into blocks; a node claims a block, and hands out the addresses in it. This crate decides
//! what to write; it does not write. Its caller reads, plans, writes by compare-and-swap, and on a conflict reads again.
//!
//! [`snapshot::Snapshot`] is the whole cluster at one moment: [`collect::collect`] says what of it leaked, [`check::cluster`]
//! what is wrong with it, [`forecast::forecast`] how long its pools last.
//!
//! [`allocator::plan`] is a function of what was read and of what is asked for; it tells the one next thing to read or to
//! write. It has no memory of its own: whatever a crashed process left half done, the next plan finds and carries on.

pub mod affinity;
pub mod allocator;
pub mod block;
pub mod check;
pub mod collect;
pub mod error;
pub mod forecast;
pub mod handle;
pub mod limits;
pub mod name;
pub mod ordinals;
pub mod pool;
pub mod ranges;
pub mod sequence;
pub mod snapshot;
pub mod timestamp;
