//! What can go wrong at the border of this crate.

/// Why the text of an administrative shutdown cannot be shown (RFC 9003 §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShutdownTextError {
    /// The length octet promises more than came.
    #[error(
        "shutdown text is said to have {announced} octets, but {present} came: ask the peer's operator instead"
    )]
    Length {
        /// Octets promised.
        announced: u8,
        /// Octets that came.
        present: usize,
    },
    /// It is not UTF-8.
    #[error(
        "shutdown text is valid UTF-8 for {valid} of its {length} octets only: ask the peer's operator instead"
    )]
    NotUtf8 {
        /// Octets from the start that are valid.
        valid: usize,
        /// Octets in all.
        length: usize,
    },
}
