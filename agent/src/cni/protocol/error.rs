//! Errors as the runtime is told them.

/// The codes of errors that the specification knows, and our own from 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The version is not spoken.
    IncompatibleVersion = 1,
    /// A field of the configuration is not supported.
    UnsupportedField = 2,
    /// The container is not there: nothing needs to be cleaned up.
    UnknownContainer = 3,
    /// A variable of the environment is absent or wrong.
    InvalidEnvironment = 4,
    /// Something could not be read or written.
    Io = 5,
    /// The configuration is not JSON.
    Undecodable = 6,
    /// The configuration is wrong.
    InvalidConfig = 7,
    /// It may work later.
    TryAgainLater = 11,
    /// Containers cannot be attached now (STATUS).
    NotAvailable = 50,
    /// The agent refused.
    Refused = 100,
    /// The kernel refused.
    Kernel = 101,
    /// What CHECK found is not what ADD made.
    Changed = 102,
}

/// An error as the runtime is told it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CniError {
    /// What kind of error.
    pub code: Code,
    /// What is wrong, and with what.
    pub message: String,
}

impl CniError {
    /// An error of this kind.
    #[must_use]
    pub fn new(code: Code, message: String) -> Self {
        Self { code, message }
    }

    pub(super) fn environment(message: String) -> Self {
        Self::new(Code::InvalidEnvironment, message)
    }

    /// The error as the runtime reads it on standard output.
    #[must_use]
    pub fn to_json(&self, version: &str, details: &str) -> serde_json::Value {
        serde_json::json!({
            "cniVersion": version, "code": self.code as u32, "msg": self.message, "details": details,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers are those of the specification's table of error codes.
    #[test]
    fn an_error_is_written_as_the_specification_shows_it() {
        let error = CniError::new(Code::TryAgainLater, "later".into());
        let expected = serde_json::json!({"cniVersion":"1.0.0","code":11,"msg":"later","details":"more"});
        assert_eq!(error.to_json("1.0.0", "more"), expected);
        for (code, number) in [
            (Code::IncompatibleVersion, 1),
            (Code::UnsupportedField, 2),
            (Code::UnknownContainer, 3),
            (Code::InvalidEnvironment, 4),
            (Code::Io, 5),
            (Code::Undecodable, 6),
            (Code::InvalidConfig, 7),
            (Code::NotAvailable, 50),
        ] {
            assert_eq!(
                CniError::new(code, String::new()).to_json("1.0.0", "")["code"],
                number
            );
        }
    }
}
