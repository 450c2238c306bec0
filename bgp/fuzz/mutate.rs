//! Damage: a seeded generator, and what it does to messages that were sound.

use std::ops::Range;

/// Octets at which decoders have their edges: counts, lengths of prefixes, flags.
const EDGES: [u8; 20] = [
    0, 1, 2, 3, 4, 5, 7, 8, 16, 0x10, 0x20, 0x40, 0x80, 0xc0, 0xf0, 32, 33, 128, 129, 255,
];
/// Two octets at which they have them: lengths of messages, fields and next hops.
const WIDE_EDGES: [u16; 12] = [0, 1, 2, 3, 4, 18, 19, 23, 255, 4096, 4097, 65535];

/// A generator (SplitMix64): the same seed gives the same numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(limit).unwrap()).unwrap()
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn octet(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub(crate) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    /// A part of something of `length`, 24 long at most.
    fn range(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        start..length.min(start + self.below(24))
    }
}

/// Damages `octets` in one to four places; `other` is where foreign parts are taken from.
pub(crate) fn damage(octets: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        once(octets, other, random);
    }
}

fn once(octets: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let length = octets.len();
    let place = random.below(length + 1);
    match random.below(10) {
        0 if place < length => octets[place] ^= 1 << random.below(8),
        1 if place < length => octets[place] = random.octet(),
        2 if place < length => octets[place] = *random.pick(&EDGES),
        3 if place + 1 < length => {
            octets[place..place + 2].copy_from_slice(&random.pick(&WIDE_EDGES).to_be_bytes());
        }
        4 => {
            let new: Vec<u8> = (0..=random.below(8)).map(|_| random.octet()).collect();
            octets.splice(place..place, new);
        }
        5 => drop(octets.drain(random.range(length))),
        6 => {
            let again = octets[random.range(length)].to_vec();
            octets.splice(place..place, again);
        }
        7 => {
            let foreign = other[random.range(other.len())].to_vec();
            octets.splice(place..place, foreign);
        }
        8 if random.once_in(4) => octets.truncate(place),
        // Many of the same: what grows with the message shows here.
        9 if random.once_in(16) => {
            let again = octets[random.range(length)].to_vec();
            let times = 1 + random.below(2000);
            if again.len() * times < 60_000 {
                octets.splice(place..place, again.repeat(times));
            }
        }
        _ => {}
    }
}
