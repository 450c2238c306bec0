//! The three kinds of routing information base of RFC 4271 §3.2, and the decision between them.

pub mod adj_in;
pub mod adj_out;
pub mod attributes;
pub mod community;
pub mod decision;
pub mod loc;
