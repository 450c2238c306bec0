//! The loop that joins everything.
