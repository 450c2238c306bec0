//! What is let in and what is let out (RFC 4271 §9.1.1, §9.1.3, §9.2): the rules of the RFCs in [`import`] and
//! [`export`], and those of the operator in [`filter`].

pub mod export;
pub mod filter;
pub mod import;
pub mod rule;

#[cfg(test)]
mod tests;
