//! A whole session under damaged messages, in any cut.
