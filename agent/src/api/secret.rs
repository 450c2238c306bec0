//! core/v1 Secret: passwords of BGP peers.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{Metadata, UnknownFields};

/// A secret. Its values are not shown where it is printed for people.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Secret {
    /// Name, namespace.
    pub metadata: Metadata,
    /// Values by key, in base64.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub data: BTreeMap<String, String>,
    /// Values by key, as they are; they win over those of `data`.
    #[serde(
        default,
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub string_data: BTreeMap<String, String>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Secret {
    /// The value of `key`, as octets; `None` where there is none, or what stands there is not base64.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<Vec<u8>> {
        if let Some(value) = self.string_data.get(key) {
            return Some(value.clone().into_bytes());
        }
        STANDARD.decode(self.data.get(key)?).ok()
    }

    /// All its keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.data
            .keys()
            .chain(self.string_data.keys())
            .map(String::as_str)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&str> = self.keys().collect();
        f.debug_struct("Secret")
            .field("metadata", &self.metadata.name)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_from_base64_or_as_it_stands_and_never_printed() {
        let json =
            r#"{"metadata":{"name":"bgp"},"data":{"a":"aHVudGVyMg==","b":"?"},"stringData":{"c":"hunter3"}}"#;
        let secret: Secret = serde_json::from_str(json).unwrap();
        assert_eq!(secret.value("a").as_deref(), Some(&b"hunter2"[..]));
        assert_eq!(secret.value("b"), None);
        assert_eq!(secret.value("c").as_deref(), Some(&b"hunter3"[..]));
        assert_eq!(secret.value("d"), None);
        let printed = format!("{secret:?}");
        assert!(printed.contains("bgp") && !printed.contains("hunter") && !printed.contains("aHVu"));
    }
}
