//! The wire format: messages as values, and their exact bytes.

pub mod message;
