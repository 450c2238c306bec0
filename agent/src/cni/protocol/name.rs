//! Names that the specification restricts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network's name or a container's id: begins with a letter or a digit, goes on with those, `_`, `.` and `-`
/// (CNI specification, sections 1 and 2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A text that is no [`Name`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name: it must begin with a letter or digit and go on with letters, digits, '_', '.' and '-'"
)]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_hold_only_what_the_specification_allows() {
        for name in ["a", "0", "k8s-pod-network", "A_b.c-9"] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        for text in ["", "-a", ".", "..", "_a", "a/b", "../a", "a b", "a\n", "é"] {
            assert_eq!(text.parse::<Name>(), Err(NameError(text.into())), "{text:?}");
            assert!(serde_json::from_value::<Name>(text.into()).is_err(), "{text:?}");
        }
    }
}
