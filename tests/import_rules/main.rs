//! Which way things point: who may import whom.
