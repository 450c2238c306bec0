//! Path attributes, each set of them kept once, however many routes of however many peers carry it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::wire::message::PathAttributes;

/// So many sets may be unused before they are looked for.
const SWEEP: usize = 1024;

/// The sets in use. Two sets that came from one table are equal exactly when they are the same.
#[derive(Clone, Debug, Default)]
pub struct AttributeTable {
    sets: BTreeSet<Arc<PathAttributes>>,
    sweep_at: usize,
}

impl AttributeTable {
    /// The one set that is equal to `attributes`.
    pub fn intern(&mut self, attributes: &Arc<PathAttributes>) -> Arc<PathAttributes> {
        if let Some(known) = self.sets.get(attributes) {
            return Arc::clone(known);
        }
        if self.sets.len() >= self.sweep_at {
            // What only the table holds, no route has. Twice as many may come before the next look, so that a look
            // costs each of them little.
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.sweep_at = self.sets.len().saturating_mul(2).max(SWEEP);
        }
        self.sets.insert(Arc::clone(attributes));
        Arc::clone(attributes)
    }

    /// How many sets there are, at most twice those in use and some.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn set(number: u32) -> Arc<PathAttributes> {
        Arc::new(PathAttributes {
            med: Some(number),
            ..PathAttributes::new(IpAddr::V4(Ipv4Addr::new(172, 18, 0, 11)))
        })
    }

    #[test]
    fn equal_sets_become_one_and_unused_ones_are_let_go() {
        let mut table = AttributeTable::default();
        let kept = table.intern(&set(0));
        for number in 0..100_000 {
            let one = table.intern(&set(number));
            assert!(Arc::ptr_eq(&one, &table.intern(&set(number))));
        }
        assert!(
            table.len() <= SWEEP,
            "{} sets for one that is in use",
            table.len()
        );
        assert!(Arc::ptr_eq(&kept, &table.intern(&set(0))));
    }
}
