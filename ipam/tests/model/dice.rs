//! Chance, from a seed, and what it led to.

/// What happened in a run, or in all.
#[derive(Debug, Default)]
pub(crate) struct Statistics {
    pub(crate) assigned: u64,
    pub(crate) foreign: u64,
    pub(crate) released: u64,
    pub(crate) conflicts: u64,
    pub(crate) crashes: u64,
    pub(crate) refused: u64,
    pub(crate) reclaimed: u64,
    pub(crate) borrowed: u64,
}

impl Statistics {
    pub(crate) fn add(&mut self, one: &Self) {
        self.assigned += one.assigned;
        self.foreign += one.foreign;
        self.released += one.released;
        self.conflicts += one.conflicts;
        self.crashes += one.crashes;
        self.refused += one.refused;
        self.reclaimed += one.reclaimed;
        self.borrowed += one.borrowed;
    }

    pub(crate) fn is_lively(&self, runs: u64) -> bool {
        let often = [
            self.assigned,
            self.foreign,
            self.released,
            self.conflicts,
            self.crashes,
            self.reclaimed,
        ];
        often.iter().all(|n| *n > runs) && self.refused > runs / 10 && self.borrowed > runs / 50
    }
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers on every machine.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit.max(1)).unwrap()).unwrap()
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}
