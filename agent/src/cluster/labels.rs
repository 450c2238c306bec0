//! Labels that are kept for long.

use std::collections::BTreeMap;

use crate::selector::Labelled;

/// The labels of a node, in one piece of memory: there may be ten thousand nodes with dozens of them each.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Box<str>);

/// Stands behind each key and each value. No label may have it (Kubernetes: letters, digits, `-`, `_`, `.` and `/`).
const END: char = '\0';

impl Labels {
    /// The value of a label.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut parts = self.0.split_terminator(END);
        std::iter::from_fn(move || Some((parts.next()?, parts.next()?)))
    }
}

impl From<&BTreeMap<String, String>> for Labels {
    /// A label that cannot be one, in a manifest that no API server has checked, is left out.
    fn from(labels: &BTreeMap<String, String>) -> Self {
        let sound = labels
            .iter()
            .filter(|(key, value)| !key.contains(END) && !value.contains(END));
        let mut text = String::new();
        for (key, value) in sound {
            for part in [key, value] {
                text.push_str(part);
                text.push(END);
            }
        }
        Self(text.into())
    }
}

impl std::fmt::Debug for Labels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Labelled for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_key_also_those_without_a_value() {
        let labels = [("a", "1"), ("a/b", ""), ("c", "3"), ("d\0", "x")];
        let labels: BTreeMap<String, String> = labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let kept = Labels::from(&labels);
        assert_eq!(
            kept.iter().collect::<Vec<_>>(),
            [("a", "1"), ("a/b", ""), ("c", "3")]
        );
        assert_eq!(
            (kept.get("a/b"), kept.get("1"), kept.get("")),
            (Some(""), None, None)
        );
        assert_eq!(Labels::default().iter().count(), 0);
    }
}
