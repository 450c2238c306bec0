//! Sequence numbers by ordinal, as a block keeps them (Calico's `sequenceNumberForAllocation`).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};

/// The block's sequence number when an ordinal was taken, by ordinal.
///
/// In an object the keys are texts. They are kept as numbers, since a block is copied for every write; a key that is no
/// ordinal is kept as it is, for the next write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceNumbers {
    /// Ascending, each ordinal once.
    by_ordinal: Vec<(usize, u64)>,
    /// What is under a key that is no ordinal in its usual spelling.
    odd: BTreeMap<String, u64>,
}

impl SequenceNumbers {
    /// That of an ordinal.
    #[must_use]
    pub fn get(&self, ordinal: usize) -> Option<u64> {
        let place = self.place(ordinal).ok()?;
        self.by_ordinal.get(place).map(|(_, number)| *number)
    }

    /// Notes that of an ordinal.
    pub fn insert(&mut self, ordinal: usize, number: u64) {
        match self.place(ordinal) {
            Ok(place) => drop(self.by_ordinal.splice(place..=place, [(ordinal, number)])),
            Err(place) => self.by_ordinal.insert(place, (ordinal, number)),
        }
    }

    /// Forgets that of an ordinal.
    pub fn remove(&mut self, ordinal: usize) {
        if let Ok(place) = self.place(ordinal) {
            self.by_ordinal.remove(place);
        }
    }

    /// All ordinals that have one, ascending, each with its number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.by_ordinal.iter().copied()
    }

    fn place(&self, ordinal: usize) -> Result<usize, usize> {
        self.by_ordinal.binary_search_by_key(&ordinal, |(o, _)| *o)
    }

    fn note(&mut self, key: String, number: u64) {
        // `+3` and `007` are numbers to a parser, and other keys to whoever wrote them.
        match key.parse::<usize>() {
            Ok(ordinal) if ordinal.to_string() == key => self.insert(ordinal, number),
            _ => drop(self.odd.insert(key, number)),
        }
    }
}

impl Serialize for SequenceNumbers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.by_ordinal.len() + self.odd.len()))?;
        for (ordinal, number) in self.iter() {
            map.serialize_entry(&ordinal.to_string(), &number)?;
        }
        for (key, number) in &self.odd {
            map.serialize_entry(key, number)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for SequenceNumbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;

        impl<'de> Visitor<'de> for Numbers {
            type Value = SequenceNumbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from ordinals to sequence numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SequenceNumbers, A::Error> {
                let mut numbers = SequenceNumbers::default();
                while let Some((key, number)) = map.next_entry::<String, u64>()? {
                    numbers.note(key, number);
                }
                Ok(numbers)
            }
        }

        deserializer.deserialize_map(Numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written_even_what_is_no_ordinal() {
        let written = serde_json::json!({"10": 9_007_199_254_740_993_u64, "2": u64::MAX, "007": 7, "+3": 3, "later": 1});
        let numbers: SequenceNumbers = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(
            numbers.iter().collect::<Vec<_>>(),
            [(2, u64::MAX), (10, 9_007_199_254_740_993)]
        );
        assert_eq!(serde_json::to_value(&numbers).unwrap(), written);
    }

    #[test]
    fn an_ordinal_has_one_number_or_none() {
        let mut numbers = SequenceNumbers::default();
        for (ordinal, number) in [(3, 1), (0, 2), (3, 3)] {
            numbers.insert(ordinal, number);
        }
        assert_eq!(
            (numbers.get(3), numbers.get(1), numbers.iter().count()),
            (Some(3), None, 2)
        );
        numbers.remove(3);
        numbers.remove(1);
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [(0, 2)]);
    }
}
