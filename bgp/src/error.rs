//! What can go wrong at the border of this crate.
