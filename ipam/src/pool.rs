//! Pools: ranges of addresses, cut into blocks of one size.
//!
//! A pool can have more blocks than fit in memory (a /8 has 262144; IPv6 pools have far more), so that blocks are counted
//! and computed, never listed. All arithmetic is on `u128`, for both families.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a range.
    #[must_use]
    pub fn of(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Family::V4,
            IpNet::V6(_) => Family::V6,
        }
    }

    /// Bits of an address.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// Smallest and largest prefix length of a block.
    #[must_use]
    pub fn block_sizes(self) -> (u8, u8) {
        match self {
            Family::V4 => (20, 32),
            Family::V6 => (116, 128),
        }
    }

    /// Prefix length of a block where the pool gives none.
    #[must_use]
    pub fn default_block_size(self) -> u8 {
        match self {
            Family::V4 => 26,
            Family::V6 => 122,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A pod.
    Workload,
    /// A node's tunnel device.
    Tunnel,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Use::Workload => "Workload",
            Use::Tunnel => "Tunnel",
        })
    }
}

/// Why no new address may come from a pool, whatever it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Excluded {
    /// It is disabled.
    Disabled,
    /// Its node selector does not take this node in.
    NodeSelector(String),
    /// It is for the pods of some namespaces only.
    NamespaceSelector(String),
    /// Packets to its addresses are not tunnelled, where only a pool with a tunnel will do.
    NotTunnelled,
    /// Its addresses are only given out by name (`assignmentMode: Manual`).
    Manual,
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excluded::Disabled => f.write_str("disabled"),
            Excluded::NodeSelector(selector) => {
                write!(f, "nodeSelector {selector:?} does not select this node")
            }
            Excluded::NamespaceSelector(selector) => {
                write!(f, "namespaceSelector {selector:?} is not known here")
            }
            Excluded::NotTunnelled => f.write_str("ipipMode is Never"),
            Excluded::Manual => f.write_str("assignmentMode is Manual"),
        }
    }
}

/// A pool whose values were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    name: String,
    cidr: IpNet,
    block_size: u8,
    allowed: BTreeSet<Use>,
    excluded: Option<Excluded>,
}

impl Pool {
    /// A pool for every use. Host bits of `cidr` are cleared; without a `block_size` it is 26, for IPv6 122.
    ///
    /// # Errors
    /// When the block size is out of range for the family, or larger than the pool.
    pub fn new(name: impl Into<String>, cidr: IpNet, block_size: Option<u8>) -> Result<Self, PoolError> {
        let name = name.into();
        let family = Family::of(cidr);
        let (smallest, largest) = family.block_sizes();
        let block_size = block_size.unwrap_or(family.default_block_size());
        if !(smallest..=largest).contains(&block_size) {
            return Err(PoolError::BlockSize {
                pool: name,
                block_size,
                family,
                smallest,
                largest,
            });
        }
        if block_size < cidr.prefix_len() {
            return Err(PoolError::BlockLargerThanPool {
                pool: name,
                block_size,
                cidr,
            });
        }
        if u32::from(block_size - cidr.prefix_len()) >= u128::BITS {
            return Err(PoolError::TooManyBlocks {
                pool: name,
                block_size,
                cidr,
            });
        }
        Ok(Self {
            name,
            cidr: cidr.trunc(),
            block_size,
            allowed: BTreeSet::from([Use::Workload, Use::Tunnel]),
            excluded: None,
        })
    }

    /// The same for these uses only.
    #[must_use]
    pub fn allowing(mut self, uses: impl IntoIterator<Item = Use>) -> Self {
        self.allowed = uses.into_iter().collect();
        self
    }

    /// The same, but nothing new comes from it; `None` puts it back to use.
    #[must_use]
    pub fn excluding(mut self, excluded: Option<Excluded>) -> Self {
        self.excluded = excluded;
        self
    }

    /// The name of its IPPool.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its range, host bits cleared.
    #[must_use]
    pub fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// Prefix length of its blocks.
    #[must_use]
    pub fn block_size(&self) -> u8 {
        self.block_size
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::of(self.cidr)
    }

    /// Why nothing new may come from it for this use; `None` when it may.
    #[must_use]
    pub fn refusal(&self, usage: Use) -> Option<Refusal> {
        match &self.excluded {
            Some(excluded) => Some(Refusal::Excluded(excluded.clone())),
            None if self.allowed.contains(&usage) => None,
            None => Some(Refusal::Use(usage)),
        }
    }

    /// Number of its blocks.
    #[must_use]
    pub fn block_count(&self) -> u128 {
        // The difference was checked to be less than 128 when the pool was made.
        1 << (self.block_size - self.cidr.prefix_len())
    }

    /// Number of addresses in one of its blocks, at most 4096.
    #[must_use]
    pub fn addresses_per_block(&self) -> u128 {
        1 << (self.family().bits() - self.block_size)
    }

    /// Its block number `index`, counted from 0 in order of address.
    #[must_use]
    pub fn block(&self, index: u128) -> Option<IpNet> {
        if index >= self.block_count() {
            return None;
        }
        let offset = index.checked_mul(self.addresses_per_block())?;
        let first = number(self.cidr.network()).checked_add(offset)?;
        IpNet::new(address(self.family(), first)?, self.block_size).ok()
    }

    /// The block that `address` lies in; `None` when it is not in the pool.
    #[must_use]
    pub fn block_of(&self, address: IpAddr) -> Option<IpNet> {
        if !self.cidr.contains(&address) {
            return None;
        }
        Some(IpNet::new(address, self.block_size).ok()?.trunc())
    }

    /// Whether `cidr` is one of its blocks.
    #[must_use]
    pub fn has_block(&self, cidr: IpNet) -> bool {
        cidr.prefix_len() == self.block_size && self.block_of(cidr.network()) == Some(cidr)
    }

    /// The first block, in this node's walking order, that overlaps nothing of `taken`.
    ///
    /// Every node walks all blocks in order of address and around the end, from a start of its own, so that nodes that
    /// claim at the same time seldom want the same block. The start is FNV-1a-32 of the node's name modulo the number of
    /// blocks. Calico seeds Go's random number generator with such a hash and takes its first number; that generator's
    /// tables are not repeated here, because nothing depends on the two being equal: a start only spreads the nodes, and
    /// what two nodes want at once is settled by whose block is created first.
    #[must_use]
    pub fn free_block(&self, node: &str, taken: &Ranges) -> Option<IpNet> {
        let start = u128::from(fnv1a_32(node.as_bytes())) % self.block_count();
        self.scan(start, self.block_count(), taken)
            .or_else(|| self.scan(0, start, taken))
    }

    /// The first block in `from..to` that overlaps nothing of `taken`.
    fn scan(&self, from: u128, to: u128, taken: &Ranges) -> Option<IpNet> {
        let origin = number(self.cidr.network());
        let mut index = from;
        while index < to {
            let block = self.block(index)?;
            let Some(end) = taken.end_of_overlap(block) else {
                return Some(block);
            };
            // What is taken can be larger than a block: go on behind its end.
            let behind = (end - origin) / self.addresses_per_block() + 1;
            index = behind.max(index + 1);
        }
        None
    }
}

/// Ranges that may not be claimed, merged, for quick search.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// First and last address, ascending and disjoint.
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Ranges {
    /// The last address of the range that overlaps `net`.
    fn end_of_overlap(&self, net: IpNet) -> Option<u128> {
        let ranges = match net {
            IpNet::V4(_) => &self.v4,
            IpNet::V6(_) => &self.v6,
        };
        let (first, last) = bounds(net);
        let nearest = ranges.partition_point(|(_, end)| *end < first);
        ranges
            .get(nearest)
            .filter(|(begin, _)| *begin <= last)
            .map(|(_, end)| *end)
    }

    /// Whether `net` overlaps one of them.
    #[must_use]
    pub fn overlaps(&self, net: IpNet) -> bool {
        self.end_of_overlap(net).is_some()
    }
}

impl FromIterator<IpNet> for Ranges {
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let mut all = Self::default();
        for net in nets {
            match net {
                IpNet::V4(_) => all.v4.push(bounds(net)),
                IpNet::V6(_) => all.v6.push(bounds(net)),
            }
        }
        for ranges in [&mut all.v4, &mut all.v6] {
            ranges.sort_unstable();
            ranges.dedup_by(|next, kept| {
                let touches = next.0 <= kept.1.saturating_add(1);
                if touches {
                    kept.1 = kept.1.max(next.1);
                }
                touches
            });
        }
        all
    }
}

/// A reason not to take an address from a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// For no use at all.
    Excluded(Excluded),
    /// Not for this use.
    Use(Use),
    /// It is of the other family.
    Family(Family),
    /// Its values are wrong.
    Wrong(PoolError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Excluded(excluded) => write!(f, "{excluded}"),
            Refusal::Use(usage) => write!(f, "allowedUses does not have {usage}"),
            Refusal::Family(family) => write!(f, "is {family}"),
            Refusal::Wrong(error) => write!(f, "{error}"),
        }
    }
}

/// Why a pool's values are wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Calico does not know blocks of this size.
    #[error("pool {pool}: blockSize is {block_size}, for {family} it must be {smallest} to {largest}")]
    BlockSize {
        /// The pool.
        pool: String,
        /// What it says.
        block_size: u8,
        /// Its family.
        family: Family,
        /// Smallest prefix length allowed.
        smallest: u8,
        /// Largest prefix length allowed.
        largest: u8,
    },
    /// Not even one block fits.
    #[error("pool {pool}: blockSize is {block_size}, larger than the whole pool {cidr}; give {} or more", .cidr.prefix_len())]
    BlockLargerThanPool {
        /// The pool.
        pool: String,
        /// What it says.
        block_size: u8,
        /// Its range.
        cidr: IpNet,
    },
    /// The blocks cannot be counted.
    #[error(
        "pool {pool}: {cidr} has 2^128 blocks of size /{block_size}, more than can be counted; give a smaller cidr"
    )]
    TooManyBlocks {
        /// The pool.
        pool: String,
        /// What it says.
        block_size: u8,
        /// Its range.
        cidr: IpNet,
    },
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// A number as an address, where the family has one.
pub(crate) fn address(family: Family, number: u128) -> Option<IpAddr> {
    match family {
        Family::V4 => Some(IpAddr::V4(Ipv4Addr::from(u32::try_from(number).ok()?))),
        Family::V6 => Some(IpAddr::V6(Ipv6Addr::from(number))),
    }
}

fn bounds(net: IpNet) -> (u128, u128) {
    (number(net.network()), number(net.broadcast()))
}

/// FNV-1a, 32 bits (draft-eastlake-fnv-17 §2).
fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pool(cidr: &str, block_size: u8) -> Pool {
        Pool::new("p", net(cidr), Some(block_size)).unwrap()
    }

    #[test]
    fn blocks_are_26_and_122_unless_told() {
        assert_eq!(
            Pool::new("p", net("10.244.0.0/16"), None).unwrap().block_size(),
            26
        );
        assert_eq!(Pool::new("p", net("fd00::/48"), None).unwrap().block_size(), 122);
    }

    #[test]
    fn a_wrong_block_size_is_named_with_what_is_allowed() {
        let error = Pool::new("blue", net("10.0.0.0/8"), Some(19)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pool blue: blockSize is 19, for IPv4 it must be 20 to 32"
        );
        assert!(Pool::new("p", net("10.0.0.0/8"), Some(33)).is_err());
        assert!(Pool::new("p", net("fd00::/64"), Some(115)).is_err());
        assert!(matches!(
            Pool::new("p", net("10.0.0.0/28"), Some(26)),
            Err(PoolError::BlockLargerThanPool { block_size: 26, .. })
        ));
        assert!(matches!(
            Pool::new("p", net("::/0"), Some(128)),
            Err(PoolError::TooManyBlocks { .. })
        ));
        assert_eq!(pool("::/0", 127).block_count(), 1 << 127);
    }

    #[test]
    fn blocks_are_counted_and_found() {
        let p = pool("10.0.0.0/8", 26);
        assert_eq!(p.block_count(), 262_144);
        assert_eq!(p.block(1), Some(net("10.0.0.64/26")));
        assert_eq!(p.block(262_143), Some(net("10.255.255.192/26")));
        assert_eq!(p.block(262_144), None);
        assert_eq!(
            p.block_of("10.1.2.200".parse().unwrap()),
            Some(net("10.1.2.192/26"))
        );
        assert_eq!(p.block_of("11.0.0.0".parse().unwrap()), None);
        assert!(p.has_block(net("10.0.0.64/26")));
        assert!(!p.has_block(net("10.0.0.64/27")) && !p.has_block(net("11.0.0.0/26")));
        let six = pool("fd00:1::/32", 122);
        assert_eq!(
            six.block(six.block_count() - 1),
            Some(net("fd00:1:ffff:ffff:ffff:ffff:ffff:ffc0/122"))
        );
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // Test vectors of draft-eastlake-fnv-17, Appendix C.
        for (text, hash) in [("", 0x811c_9dc5), ("a", 0xe40c_292c), ("foobar", 0xbf9c_f968)] {
            assert_eq!(fnv1a_32(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn a_huge_taken_range_is_passed_in_one_stride() {
        let p = pool("fd00::/16", 128);
        let taken = Ranges::from_iter([net("fd00::/17")]);
        let found = p.free_block("n", &taken).unwrap();
        assert!(net("fd00:8000::/17").contains(&found), "{found}");
        assert_eq!(p.free_block("n", &Ranges::from_iter([net("fd00::/15")])), None);
    }

    #[test]
    fn a_refusal_says_why() {
        let p = pool("10.0.0.0/16", 26).allowing([Use::Workload]);
        assert_eq!(p.refusal(Use::Workload), None);
        assert_eq!(
            p.refusal(Use::Tunnel).unwrap().to_string(),
            "allowedUses does not have Tunnel"
        );
        let p = p.excluding(Some(Excluded::Disabled));
        assert_eq!(p.refusal(Use::Workload).unwrap().to_string(), "disabled");
    }

    proptest! {
        #[test]
        fn a_walk_takes_every_block_once_and_in_order(node in "[a-z]{1,8}", length in 24_u8..=28) {
            let p = pool(&format!("10.0.0.0/{length}"), 28);
            let mut taken = Vec::new();
            while let Some(block) = p.free_block(&node, &taken.iter().copied().collect()) {
                prop_assert!(p.has_block(block) && !taken.contains(&block));
                taken.push(block);
            }
            prop_assert_eq!(taken.len() as u128, p.block_count());
            let falls = taken.windows(2).filter(|pair| pair[1] < pair[0]).count();
            prop_assert!(falls <= 1, "the walk wraps once: {:?}", taken);
        }

        #[test]
        fn the_first_free_block_is_that_of_a_plain_search(
            node in "[a-z]{1,8}",
            taken in prop::collection::vec((0_u32..256, 24_u8..=32), 0..12),
        ) {
            let p = pool("10.0.0.0/24", 28);
            let taken: Vec<IpNet> = taken
                .iter()
                .map(|(last, length)| net(&format!("10.0.0.{last}/{length}")).trunc())
                .collect();
            let start = u128::from(fnv1a_32(node.as_bytes())) % 16;
            let plain = (0..16)
                .filter_map(|i| p.block((start + i) % 16))
                .find(|b| !taken.iter().any(|t| t.contains(b) || b.contains(t)));
            prop_assert_eq!(p.free_block(&node, &taken.into_iter().collect()), plain);
        }
    }
}
