//! Adj-RIB-Out: what one peer is told (RFC 4271 §3.2), and what is still to be told.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::Prefix;
use crate::wire::message::PathAttributes;

/// What is to be sent so that the peer knows what it should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Prefixes to withdraw.
    pub withdrawn: Vec<Prefix>,
    /// Prefixes to announce, by the attributes they share: one UPDATE carries many.
    pub announced: BTreeMap<Arc<PathAttributes>, Vec<Prefix>>,
}

/// The routes that one peer is told.
#[derive(Clone, Debug, Default)]
pub struct AdjRibOut {
    sent: BTreeMap<Prefix, Arc<PathAttributes>>,
    pending: BTreeMap<Prefix, Option<Arc<PathAttributes>>>,
}

impl AdjRibOut {
    /// What the peer should know of `prefix` from now on; `None` for nothing. Several changes between two calls of
    /// [`AdjRibOut::take_pending`] cost one message.
    pub fn set(&mut self, prefix: Prefix, attributes: Option<Arc<PathAttributes>>) {
        if self.sent.get(&prefix) == attributes.as_ref() {
            self.pending.remove(&prefix);
        } else {
            self.pending.insert(prefix, attributes);
        }
    }

    /// RFC 2918 §4: everything is to be sent once more.
    pub fn send_again(&mut self) {
        for (&prefix, attributes) in &self.sent {
            self.pending.entry(prefix).or_insert_with(|| Some(Arc::clone(attributes)));
        }
    }

    /// What is to be sent now; it counts as sent.
    pub fn take_pending(&mut self) -> Pending {
        let mut out = Pending::default();
        for (prefix, attributes) in std::mem::take(&mut self.pending) {
            match attributes {
                Some(attributes) => {
                    out.announced.entry(Arc::clone(&attributes)).or_default().push(prefix);
                    self.sent.insert(prefix, attributes);
                }
                None => {
                    self.sent.remove(&prefix);
                    out.withdrawn.push(prefix);
                }
            }
        }
        out
    }

    /// Forgets everything: the next session starts from nothing.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether there is something to send.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// How many routes the peer has been told.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sent.len()
    }

    /// Whether the peer has been told none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }
}
