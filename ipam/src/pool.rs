//! Pools: ranges of addresses, cut into blocks of one size.
//!
//! A pool can have more blocks than fit in memory (a /8 has 262144; IPv6 pools have far more), so that blocks are counted
//! and computed, never listed. All arithmetic is on `u128`, for both families.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::ranges::Ranges;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Self {
        Self::of(IpNet::from(address))
    }

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
    /// A service of type LoadBalancer.
    LoadBalancer,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Use::Workload => "Workload",
            Use::Tunnel => "Tunnel",
            Use::LoadBalancer => "LoadBalancer",
        })
    }
}

/// Why no new address may come from a pool, whatever it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Excluded {
    /// It is disabled, or being deleted.
    Disabled,
    /// Its node selector does not take this node in.
    NodeSelector(String),
    /// Its namespace selector does not take the pod's namespace in.
    NamespaceSelector(String),
    /// Packets to its addresses are not tunnelled, where only a pool with a tunnel will do.
    NotTunnelled,
    /// Its addresses are only given out by name (`assignmentMode: Manual`).
    Manual,
    /// It overlaps a pool that comes before it.
    Overlaps {
        /// Its own range.
        cidr: IpNet,
        /// The other pool.
        pool: String,
        /// The other pool's range.
        other: IpNet,
    },
}

impl Excluded {
    /// Whether it only holds for what is taken from any pool, and not for a pool or an address that is asked for by name: as
    /// in Calico, whose selectors came later than its requests by name.
    #[must_use]
    pub fn yields_to_names(&self) -> bool {
        match self {
            Excluded::NodeSelector(_) | Excluded::NamespaceSelector(_) | Excluded::Manual => true,
            Excluded::Disabled | Excluded::NotTunnelled | Excluded::Overlaps { .. } => false,
        }
    }
}

impl fmt::Display for Excluded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Excluded::Disabled => f.write_str("disabled"),
            Excluded::NodeSelector(selector) => {
                write!(f, "nodeSelector {selector:?} does not select this node")
            }
            Excluded::NamespaceSelector(selector) => {
                write!(
                    f,
                    "namespaceSelector {selector:?} does not select the pod's namespace"
                )
            }
            Excluded::NotTunnelled => f.write_str("ipipMode is Never"),
            Excluded::Manual => f.write_str("assignmentMode is Manual"),
            Excluded::Overlaps { cidr, pool, other } => {
                write!(
                    f,
                    "its cidr {cidr} overlaps {other} of pool {pool}; delete one of the two"
                )
            }
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

    /// Why nothing new may come from it; `None` when something may, for some use.
    #[must_use]
    pub fn excluded(&self) -> Option<&Excluded> {
        self.excluded.as_ref()
    }

    /// Whether its addresses are for this use.
    #[must_use]
    pub fn allows(&self, usage: Use) -> bool {
        self.allowed.contains(&usage)
    }

    /// The place of one of its blocks in this node's walking order, from 0; `None` for what is none of its blocks.
    #[must_use]
    pub fn rank(&self, node: &str, block: IpNet) -> Option<u128> {
        if !self.has_block(block) {
            return None;
        }
        let offset = number(block.network()).checked_sub(number(self.cidr.network()))?;
        let index = offset / self.addresses_per_block();
        let start = self.start(node);
        // Both are less than the number of blocks, which is at most 2^127.
        Some((index + self.block_count() - start) % self.block_count())
    }

    /// Where a node begins to walk.
    fn start(&self, node: &str) -> u128 {
        u128::from(fnv1a_32(node.as_bytes())) % self.block_count()
    }

    /// The first block, in this node's walking order, that overlaps nothing of `taken` and is not reserved as a whole.
    ///
    /// Every node walks all blocks in order of address and around the end, from a start of its own, so that nodes that
    /// claim at the same time seldom want the same block. The start is FNV-1a-32 of the node's name modulo the number of
    /// blocks. Calico seeds Go's random number generator with such a hash and takes its first number; that generator's
    /// tables are not repeated here, because nothing depends on the two being equal: a start only spreads the nodes, and
    /// what two nodes want at once is settled by whose block is created first. It is FNV-1a where Calico has FNV-1, which
    /// leaves names that differ in their last letter next to each other.
    #[must_use]
    pub fn free_block(&self, node: &str, taken: &Ranges, reserved: &Ranges) -> Option<IpNet> {
        let start = self.start(node);
        self.scan(start, self.block_count(), taken, reserved)
            .or_else(|| self.scan(0, start, taken, reserved))
    }

    /// The first block in `from..to` that overlaps nothing of `taken` and is not in `reserved` as a whole.
    fn scan(&self, from: u128, to: u128, taken: &Ranges, reserved: &Ranges) -> Option<IpNet> {
        let origin = number(self.cidr.network());
        let mut index = from;
        while index < to {
            let block = self.block(index)?;
            let behind = if let Some(end) = taken.end_of_overlap(block) {
                // What is taken can be larger than a block: go on behind its end.
                (end - origin) / self.addresses_per_block() + 1
            } else if let Some(end) = reserved.end_of_cover(block) {
                // A block of which something is not reserved can be had.
                (end - origin).saturating_add(1) / self.addresses_per_block()
            } else {
                return Some(block);
            };
            index = behind.max(index + 1);
        }
        None
    }
}

/// All pools, in the order in which they are used (Calico's is that of their names).
#[derive(Clone, Debug, Default)]
pub struct Pools {
    pools: Vec<Pool>,
    wrong: Vec<PoolError>,
    known: bool,
}

impl Pools {
    /// All pools that there are. Those that are wrong are only told about; one that overlaps one before it gives nothing.
    #[must_use]
    pub fn new(pools: impl IntoIterator<Item = Result<Pool, PoolError>>) -> Self {
        let mut all = Self {
            known: true,
            ..Self::default()
        };
        for pool in pools {
            match pool {
                Ok(pool) => {
                    let pool = all.marked(pool);
                    all.pools.push(pool);
                }
                Err(error) => all.wrong.push(error),
            }
        }
        all
    }

    /// No knowledge of the pools: nothing is taken, and nothing is given up because its pool is gone.
    #[must_use]
    pub fn unknown() -> Self {
        Self::default()
    }

    /// The pool with a mark if it overlaps one that is there.
    fn marked(&self, pool: Pool) -> Pool {
        let cidr = pool.cidr();
        let overlapped = self.pools.iter().find(|p| {
            let overlaps = p.cidr().contains(&cidr) || cidr.contains(&p.cidr());
            overlaps && !matches!(p.excluded, Some(Excluded::Overlaps { .. }))
        });
        let Some(other) = overlapped else { return pool };
        let excluded = Excluded::Overlaps {
            cidr,
            pool: other.name.clone(),
            other: other.cidr,
        };
        pool.excluding(Some(excluded))
    }

    /// The sound ones, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter()
    }

    /// What is wrong with the others.
    #[must_use]
    pub fn wrong(&self) -> &[PoolError] {
        &self.wrong
    }

    /// Whether these are all pools: no longer true of [`Pools::unknown`], nor while one of them cannot be understood.
    #[must_use]
    pub fn are_known(&self) -> bool {
        self.known && self.wrong.is_empty()
    }

    /// The pool that an address is in, disabled or not: the first, where several overlap.
    #[must_use]
    pub fn of_address(&self, address: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|p| p.cidr.contains(&address))
    }

    /// The pool that a block is in: the first, where several overlap.
    #[must_use]
    pub fn of_block(&self, block: IpNet) -> Option<&Pool> {
        self.pools.iter().find(|p| p.cidr.contains(&block))
    }
}

/// A reason not to take an address from a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// For no use at all.
    Excluded(Excluded),
    /// Not for this use.
    Use(Use),
    /// Not for this request.
    Request(Excluded),
    /// It is of the other family.
    Family(Family),
    /// Its values are wrong.
    Wrong(PoolError),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Excluded(excluded) | Refusal::Request(excluded) => write!(f, "{excluded}"),
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

/// FNV-1a, 32 bits (draft-eastlake-fnv-17 §2).
fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash: u32, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests;
