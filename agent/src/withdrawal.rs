//! Deletions that would take away much at once are held until the objects come back, or until somebody confirms them.
//!
//! A datastore that was emptied by accident says the same as a cluster that was given up: everything is deleted. To believe
//! it costs every connection; to doubt it costs a question. So deletions wait a moment for each other, are judged together
//! with those of the last seconds, and pass or are held together. What appears or changes is never held.
//!
//! Pure: time is an argument. What is kept is what the agent goes by, held objects included.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use culvert_ipam::affinity::{Affinity, AffinityState};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::api::{Key, Kind, Object, Record};

/// How long a deletion waits for others that belong to it.
const SETTLE: Duration = Duration::from_millis(300);

/// Deletions this close to each other are judged together; and held ones are judged anew only after this long without a
/// change, so that objects that are put back one by one are not taken away meanwhile.
const WINDOW: Duration = Duration::from_secs(10);

/// So few objects of a kind are never too many.
const AT_LEAST: usize = 3;

/// How many names of a kind a sentence names.
const NAMED: usize = 3;

/// The state that the agent goes by, and the deletions that it does not yet, or not at all, follow.
#[derive(Debug)]
pub struct Withdrawals {
    /// Percent of a kind that may vanish at once; 100 for all.
    share: u32,
    objects: BTreeMap<Key, Kept>,
    /// Deleted in the datastore, and still in `objects`.
    missing: BTreeSet<Key>,
    /// Deleted lately.
    gone: BTreeMap<Key, (Instant, Bearing)>,
    /// When `missing` is judged.
    due: Option<Instant>,
    held: Option<Reason>,
}

/// An object that is gone by.
#[derive(Debug)]
struct Kept {
    record: Record,
    bearing: Bearing,
}

/// What of an object a judgement looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bearing {
    /// A node, by the address that it advertises.
    Node(Option<Ipv4Addr>),
    /// A pool, by its range.
    Pool(IpNet),
    /// A confirmed claim, by its block.
    Claim(IpNet),
    /// Anything else.
    None,
}

impl From<&Object> for Bearing {
    fn from(object: &Object) -> Self {
        match object {
            Object::Node(node) => Self::Node(node.advertised_address().map(|net| net.addr())),
            Object::IpPool(pool) => Self::Pool(pool.spec.cidr),
            Object::BlockAffinity(affinity) if is_confirmed(&affinity.spec) => {
                Self::Claim(affinity.spec.cidr)
            }
            _ => Self::None,
        }
    }
}

impl Kept {
    /// None of what cannot be written down.
    fn of(object: &Object) -> Option<Self> {
        Some(Self {
            record: Record::of(object).ok()?,
            bearing: Bearing::from(object),
        })
    }
}

/// Why deletions are held.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// More of a kind than may.
    TooMany {
        kind: Kind,
        lost: usize,
        total: usize,
        share: u32,
    },
    /// A pool with blocks in it.
    PoolInUse { pool: String },
}

/// The answer to a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// How many deletions passed.
    pub objects: usize,
}

/// Deletions that are held: what would vanish, why it is held, and what to do, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    reason: Reason,
    missing: BTreeMap<Kind, Vec<String>>,
}

impl Held {
    /// How many objects would vanish.
    #[must_use]
    pub fn count(&self) -> usize {
        self.missing.values().map(Vec::len).sum()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} objects have vanished from the datastore at once (",
            self.count()
        )?;
        for (nth, (kind, names)) in self.missing.iter().enumerate() {
            let separator = if nth == 0 { "" } else { "; " };
            let first: Vec<&str> = names.iter().take(NAMED).map(String::as_str).collect();
            let more = if names.len() > NAMED { ", …" } else { "" };
            let (count, kind) = (names.len(), kind.as_str());
            write!(f, "{separator}{count} {kind}: {}{more}", first.join(", "))?;
        }
        f.write_str("): ")?;
        match &self.reason {
            Reason::TooMany {
                kind,
                lost,
                total,
                share,
            } => write!(
                f,
                "{lost} of {total} {} are more than the {share} % of safety.maxVanishShare",
                kind.as_str()
            )?,
            Reason::PoolInUse { pool } => write!(f, "pool {pool} has blocks in use")?,
        }
        f.write_str(
            ", so nothing is withdrawn; put the objects back, or confirm with: culvert node accept-withdrawal",
        )
    }
}

impl Withdrawals {
    /// Begins with `objects` (those of a copy, or none). `share` is how many percent of the nodes, or of the confirmed
    /// affinities, may vanish at once; 100 holds nothing.
    #[must_use]
    pub fn new(share: u32, objects: impl IntoIterator<Item = Object>) -> Self {
        let objects = objects.into_iter();
        Self {
            share,
            objects: objects
                .filter_map(|object| Some((object.key(), Kept::of(&object)?)))
                .collect(),
            missing: BTreeSet::new(),
            gone: BTreeMap::new(),
            due: None,
            held: None,
        }
    }

    /// The objects that the agent goes by.
    pub fn records(&self) -> impl Iterator<Item = (&Key, &Record)> {
        self.objects.iter().map(|(key, kept)| (key, &kept.record))
    }

    /// Whether the agent goes by this object.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.objects.contains_key(key)
    }

    /// Takes in an object that is there; whether that changed anything. What it supersedes passes at the next
    /// [`Self::judge`], which is due then.
    pub fn upsert(&mut self, object: &Object, now: Instant) -> bool {
        let key = object.key();
        let Some(kept) = Kept::of(object) else {
            return false;
        };
        self.gone.remove(&key);
        let returned = self.missing.remove(&key);
        if self.missing.is_empty() {
            (self.due, self.held) = (None, None);
        } else if self
            .missing
            .iter()
            .any(|gone| self.supersedes(kept.bearing, gone))
        {
            self.due = Some(now);
        } else if returned && self.held.is_some() {
            self.due = Some(now + WINDOW);
        }
        let changed = self
            .objects
            .get(&key)
            .is_none_or(|known| known.record != kept.record);
        if changed {
            self.objects.insert(key, kept);
        }
        changed
    }

    /// Takes in that an object is deleted: it passes, or is held, when that is [due](Self::due).
    pub fn delete(&mut self, key: &Key, now: Instant) {
        if self.objects.contains_key(key) && self.missing.insert(key.clone()) {
            let wait = if self.held.is_some() { WINDOW } else { SETTLE };
            self.due = Some(now + wait);
        }
    }

    /// Forgets an object that is none of the agent's business any more, though it is still there.
    pub fn forget(&mut self, key: &Key) {
        self.objects.remove(key);
        self.missing.remove(key);
    }

    /// When to judge.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Judges the deletions; those that pass are returned, and are no longer among the objects.
    pub fn judge(&mut self, now: Instant) -> Vec<Key> {
        self.due = None;
        if self.held.is_none() {
            self.gone
                .retain(|_, (since, _)| now.saturating_duration_since(*since) < WINDOW);
        }
        let mut passed = self.superseded();
        for key in &passed {
            self.let_go(key);
        }
        self.held = self.verdict();
        if self.held.is_none() {
            for key in std::mem::take(&mut self.missing) {
                if let Some(kept) = self.let_go(&key) {
                    self.gone.insert(key.clone(), (now, kept.bearing));
                }
                passed.push(key);
            }
        }
        passed
    }

    /// Lets all deletions pass, since somebody confirmed them.
    pub fn accept(&mut self) -> Vec<Key> {
        (self.due, self.held) = (None, None);
        self.gone.clear();
        let passed: Vec<Key> = std::mem::take(&mut self.missing).into_iter().collect();
        for key in &passed {
            self.objects.remove(key);
        }
        passed
    }

    /// The deletions that are held now.
    #[must_use]
    pub fn held(&self) -> Option<Held> {
        let reason = self.held.clone()?;
        let mut missing: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        for key in &self.missing {
            missing.entry(key.kind).or_default().push(key.name.clone());
        }
        Some(Held { reason, missing })
    }

    fn let_go(&mut self, key: &Key) -> Option<Kept> {
        self.missing.remove(key);
        self.objects.remove(key)
    }

    /// Why the missing objects must not go; none if they may.
    fn verdict(&self) -> Option<Reason> {
        if self.share >= 100 || self.missing.is_empty() {
            return None;
        }
        self.too_many(Kind::Node)
            .or_else(|| self.too_many(Kind::BlockAffinity))
            .or_else(|| self.pool_in_use())
    }

    fn too_many(&self, kind: Kind) -> Option<Reason> {
        // Of the claims only those that are confirmed.
        let of_kind = |key: &Key, bearing: Bearing| key.kind == kind && bearing != Bearing::None;
        let here = self
            .objects
            .iter()
            .filter(|(key, kept)| of_kind(key, kept.bearing));
        let missing = here
            .clone()
            .filter(|(key, _)| self.missing.contains(*key))
            .count();
        let gone = self
            .gone
            .iter()
            .filter(|(key, (_, bearing))| of_kind(key, *bearing))
            .count();
        let (lost, total, share) = (missing + gone, here.count() + gone, self.share);
        let percent = u32::try_from(lost.saturating_mul(100) / total.max(1)).unwrap_or(u32::MAX);
        let exact = lost.saturating_mul(100) % total.max(1) == 0;
        let above = percent > share || (percent == share && !exact);
        (missing > 0 && lost >= AT_LEAST && above).then_some(Reason::TooMany {
            kind,
            lost,
            total,
            share,
        })
    }

    fn pool_in_use(&self) -> Option<Reason> {
        let lately = self.gone.values().map(|(_, bearing)| *bearing);
        let blocks: Vec<IpNet> = self
            .bearings()
            .chain(lately)
            .filter_map(|bearing| match bearing {
                Bearing::Claim(block) => Some(block),
                Bearing::Node(_) | Bearing::Pool(_) | Bearing::None => None,
            })
            .collect();
        self.missing.iter().find_map(|key| match self.bearing(key)? {
            Bearing::Pool(cidr) if blocks.iter().any(|block| cidr.contains(block)) => {
                Some(Reason::PoolInUse {
                    pool: key.name.clone(),
                })
            }
            _ => None,
        })
    }

    /// The missing objects that one which is there contradicts. They are not held: an address has one node, and a block
    /// one owner.
    fn superseded(&self) -> Vec<Key> {
        let there = || {
            let there = self
                .objects
                .iter()
                .filter(|(key, _)| !self.missing.contains(*key));
            there.map(|(_, kept)| kept.bearing)
        };
        let missing = self.missing.iter();
        missing
            .filter(|key| there().any(|bearing| self.supersedes(bearing, key)))
            .cloned()
            .collect()
    }

    fn supersedes(&self, there: Bearing, missing: &Key) -> bool {
        match (there, self.bearing(missing)) {
            (Bearing::Node(Some(there)), Some(Bearing::Node(missing))) => Some(there) == missing,
            (Bearing::Claim(a), Some(Bearing::Claim(b))) => a.contains(&b) || b.contains(&a),
            _ => false,
        }
    }

    fn bearing(&self, key: &Key) -> Option<Bearing> {
        self.objects.get(key).map(|kept| kept.bearing)
    }

    fn bearings(&self) -> impl Iterator<Item = Bearing> {
        self.objects.values().map(|kept| kept.bearing)
    }
}

fn is_confirmed(affinity: &Affinity) -> bool {
    affinity.state == AffinityState::Confirmed && !affinity.is_deleted()
}

#[cfg(test)]
mod tests;
