//! Calico's selector language: which objects are meant, by their labels.
//!
//! Used wherever a resource names others by label: the nodes of an IPPool or a BGPPeer, the namespaces of an IPPool.
//!
//! ```text
//! any         = all { "||" all }
//! all         = term { "&&" term }
//! term        = "!" term | "(" any ")" | "all()" | "global()" | "has(" label ")" | comparison
//! comparison  = label ( "==" | "!=" | "contains" | "starts with" | "ends with" ) string
//!             | label [ "not" ] "in" "{" [ string { "," string } ] "}"
//! ```
//!
//! A string stands in double or single quotes; there are no escapes. An empty selector means all.

mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub use parse::SelectorError;

/// What has labels.
pub trait Labelled {
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for BTreeMap<String, String> {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// A selector that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    text: String,
    expression: Expression,
}

impl Selector {
    /// Reads a selector. Empty, or nothing but white space, means `all()`.
    ///
    /// # Errors
    /// Names the place, what stands there and what was expected.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Ok(Self {
            text: text.to_owned(),
            expression: parse::expression(text)?,
        })
    }

    /// The selector that means every object.
    #[must_use]
    pub fn all() -> Self {
        Self {
            text: "all()".to_owned(),
            expression: Expression::All,
        }
    }

    /// Whether an object with these labels is meant.
    #[must_use]
    pub fn matches(&self, labels: &impl Labelled) -> bool {
        self.expression.matches(labels)
    }
}

impl Default for Selector {
    fn default() -> Self {
        Self::all()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.trim().is_empty() {
            f.write_str("all()")
        } else {
            f.write_str(&self.text)
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    All,
    /// Calico's `global()`: objects without a namespace. No label says so, and what is selected here by labels is either a
    /// node, which has none, or a namespace itself.
    Global,
    Has(String),
    Compare(String, Comparison),
    Not(Box<Expression>),
    And(Vec<Expression>),
    Or(Vec<Expression>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Comparison {
    Equal(String),
    NotEqual(String),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
}

impl Expression {
    fn matches(&self, labels: &impl Labelled) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => labels.label(label).is_some(),
            Self::Compare(label, comparison) => comparison.holds(labels.label(label)),
            Self::Not(inner) => !inner.matches(labels),
            Self::And(all) => all.iter().all(|inner| inner.matches(labels)),
            Self::Or(any) => any.iter().any(|inner| inner.matches(labels)),
        }
    }
}

impl Comparison {
    /// Whether it holds for the value of a label; `None` where the object has no such label. As in Calico, what is said
    /// not to be so holds for an object without the label.
    fn holds(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (Self::NotEqual(_) | Self::NotIn(_), None) => true,
            (_, None) => false,
            (Self::Equal(want), Some(value)) => value == want,
            (Self::NotEqual(want), Some(value)) => value != want,
            (Self::Contains(part), Some(value)) => value.contains(part.as_str()),
            (Self::StartsWith(part), Some(value)) => value.starts_with(part.as_str()),
            (Self::EndsWith(part), Some(value)) => value.ends_with(part.as_str()),
            (Self::In(set), Some(value)) => set.contains(value),
            (Self::NotIn(set), Some(value)) => !set.contains(value),
        }
    }
}

#[cfg(test)]
mod tests;
