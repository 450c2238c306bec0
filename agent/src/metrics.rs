//! All metrics, in one place.
