//! Driver of the crate `culvert_ipam`: read, plan, write by compare-and-swap, and again on a conflict.
