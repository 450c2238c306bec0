//! Where the addresses of a request come from.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::error::{Error, Holder, PoolRefusal, PoolSize};
use crate::name;
use crate::pool::{Excluded, Family, Pool, Refusal, Use};
use crate::ranges::Ranges;

use super::claim::announced;
use super::object::Key;
use super::object::Kind;
use super::request::{Assign, Wanted};
use super::round::Round;
use super::view::BlockSeen;
use super::{Halt, Progress};

/// Ordinals of a block that a request is to get.
pub(super) struct Pick {
    pub(super) block: IpNet,
    pub(super) ordinals: Vec<usize>,
}

/// What a request gets.
pub(super) struct Placed {
    /// In the order in which they were asked for.
    pub(super) addresses: Vec<IpAddr>,
    /// Those of them that the handle has not got yet.
    pub(super) picks: Vec<Pick>,
}

impl<'a> Round<'a> {
    /// Finds an address for each that is wanted, in what the handle has or in a block.
    pub(super) fn place(&mut self, request: &'a Assign, mut held: Vec<IpAddr>) -> Progress<Placed> {
        let mut placed = Placed {
            addresses: Vec::new(),
            picks: Vec::new(),
        };
        // Those that are wanted by name are not for anything else.
        let named = |address: &IpAddr| request.wanted.contains(&Wanted::Address(*address));
        let kept: Vec<IpAddr> = held.iter().copied().filter(named).collect();
        held.retain(|address| !named(address));
        for wanted in &request.wanted {
            match wanted {
                Wanted::Address(address) => {
                    placed.addresses.push(*address);
                    if !kept.contains(address) {
                        let pick = self.pick_address(request, *address)?;
                        placed.picks.push(pick);
                    }
                }
                Wanted::Any { family, count, pools } => {
                    let of_family = |a: &IpAddr| Family::of_address(*a) == *family;
                    let old: Vec<IpAddr> = held.iter().copied().filter(of_family).take(*count).collect();
                    held.retain(|address| !old.contains(address));
                    let missing = count.saturating_sub(old.len());
                    placed.addresses.extend(old);
                    if missing > 0 {
                        self.pick_any(request, *family, pools, missing, &mut placed)?;
                    }
                }
            }
        }
        Ok(placed)
    }

    /// The pools from which a request is served, in order. Pools that it names are used whatever their selectors say.
    pub(super) fn pools(
        &self,
        node: &str,
        usage: Use,
        family: Family,
        named: &[IpNet],
        excluded: &BTreeMap<String, Excluded>,
    ) -> Progress<Vec<&'a Pool>> {
        let all = &self.view.policy().pools;
        let refusal = |pool: &Pool| {
            let of_family = (pool.family() != family).then(|| Refusal::Family(pool.family()));
            let for_request = || excluded.get(pool.name()).cloned().map(Refusal::Request);
            let refusal = of_family.or_else(|| pool.refusal(usage)).or_else(for_request)?;
            let yields = match &refusal {
                Refusal::Excluded(reason) | Refusal::Request(reason) => reason.yields_to_names(),
                Refusal::Use(_) | Refusal::Family(_) | Refusal::Wrong(_) => false,
            };
            // A selector that yields may hide that the pool is for another use.
            match yields && !named.is_empty() {
                true => (!pool.allows(usage)).then_some(Refusal::Use(usage)),
                false => Some(refusal),
            }
        };
        let mut found = Vec::new();
        let mut refusals = Vec::new();
        let mut consider = |pool: &'a Pool| match refusal(pool) {
            None => found.push(pool),
            Some(refusal) => refusals.push(PoolRefusal {
                pool: pool.name().to_owned(),
                refusal,
            }),
        };
        if named.is_empty() {
            all.iter().for_each(&mut consider);
        }
        for cidr in named {
            match all.iter().find(|p| p.cidr() == *cidr) {
                Some(pool) => consider(pool),
                None => {
                    let (node, cidr) = (node.to_owned(), *cidr);
                    return Err(Error::NoSuchPool { node, cidr }.into());
                }
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        refusals.extend(all.wrong().iter().map(|error| PoolRefusal {
            pool: String::new(),
            refusal: Refusal::Wrong(error.clone()),
        }));
        Err(Error::NoPool {
            node: node.to_owned(),
            usage,
            family,
            refusals,
        }
        .into())
    }

    /// Any free addresses: of the node's own blocks, then of a new one, then, unless affinity is strict, of any (Calico's
    /// `autoAssign`). A limit of blocks that is reached is an error before anything is borrowed.
    fn pick_any(
        &mut self,
        request: &'a Assign,
        family: Family,
        named: &[IpNet],
        mut missing: usize,
        placed: &mut Placed,
    ) -> Progress<()> {
        let pools = self.pools(&request.node, request.usage, family, named, &request.excluded)?;
        let owned: Vec<IpNet> = self
            .settle(&request.node)?
            .owned
            .iter()
            .map(|o| o.affinity.cidr)
            .collect();
        for pool in &pools {
            for block in owned.iter().filter(|c| pool.cidr().contains(*c)) {
                self.pick_from(*block, &mut missing, placed)?;
            }
        }
        if missing == 0 {
            return Ok(());
        }
        let exhausted = match self.new_block(&request.node, request.usage, family, &pools) {
            Err(Halt::Error(error)) if matches!(*error, Error::Exhausted { .. }) => error,
            Ok(halt) | Err(halt) => return Err(halt),
        };
        if !self.view.policy().limits.strict_affinity {
            for pool in &pools {
                for block in self.walk(&request.node, pool)? {
                    self.pick_from(block, &mut missing, placed)?;
                }
            }
        }
        if missing == 0 {
            return Ok(());
        }
        Err(Halt::Error(exhausted))
    }

    fn pick_from(&mut self, block: IpNet, missing: &mut usize, placed: &mut Placed) -> Progress<()> {
        if *missing == 0 {
            return Ok(());
        }
        let Some(draft) = self.draft(block)? else {
            return Ok(());
        };
        let ordinals = draft.pick(*missing);
        *missing = missing.saturating_sub(ordinals.len());
        placed.addresses.extend(draft.addresses(&ordinals));
        if !ordinals.is_empty() {
            placed.picks.push(Pick { block, ordinals });
        }
        Ok(())
    }

    /// This very address (Calico's `AssignIP`): its block is claimed if nobody has it.
    fn pick_address(&mut self, request: &'a Assign, address: IpAddr) -> Progress<Pick> {
        let node = &request.node;
        let pool = self.pool_of(request, address)?;
        let blocks = self.view.blocks()?;
        let found = blocks.iter().find(|b| b.cidr.contains(&address)).map(|b| b.cidr);
        let cidr = match found.or_else(|| pool.block_of(address)) {
            Some(cidr) if found.is_some() => cidr,
            Some(cidr) => return Err(self.claim_for(node, cidr, &blocks)?),
            None => return Err(Halt::Wait),
        };
        let own = self.settle(node)?.owned.iter().any(|o| o.affinity.cidr == cidr);
        let strict = self.view.policy().limits.strict_affinity;
        let Some(draft) = self.draft(cidr)? else {
            let key = Key::new(Kind::Block, name::block(cidr));
            let reason = "it is broken, see `culvert ipam check`".to_owned();
            return Err(Error::Unreadable { key, reason }.into());
        };
        let block = draft.block;
        if block.is_of_node(node) && !own {
            // Not confirmed yet, or nobody has announced it.
            self.adopt(node)?;
            return Err(self.waiting(node, cidr)?);
        }
        if strict && !own {
            let owner = block.affinity.clone().unwrap_or_else(|| "nobody".to_owned());
            let node = node.clone();
            return Err(Error::StrictAffinity {
                node,
                address,
                block: cidr,
                owner,
            }
            .into());
        }
        let ordinal = block.ordinal_of(address).ok_or(Halt::Wait)?;
        if let Some(holder) = block.holder(ordinal) {
            let holder = Holder::of(holder);
            let node = node.clone();
            return Err(Error::AddressTaken {
                node,
                address,
                holder,
            }
            .into());
        }
        draft.pick_one(ordinal);
        Ok(Pick {
            block: cidr,
            ordinals: vec![ordinal],
        })
    }

    /// The pool of an address that is asked for by name.
    fn pool_of(&self, request: &Assign, address: IpAddr) -> Progress<&'a Pool> {
        let node = request.node.clone();
        let Some(pool) = self.view.policy().pools.of_address(address) else {
            let family = Family::of_address(address);
            let pools = self.view.policy().pools.iter().filter(|p| p.family() == family);
            let pools = pools.map(PoolSize::of).collect();
            return Err(Error::NotInPool { node, address, pools }.into());
        };
        let excluded = pool.excluded().filter(|e| !e.yields_to_names());
        let refusal = excluded
            .cloned()
            .map(Refusal::Excluded)
            .or_else(|| (!pool.allows(request.usage)).then_some(Refusal::Use(request.usage)));
        if let Some(refusal) = refusal {
            let refusal = PoolRefusal {
                pool: pool.name().to_owned(),
                refusal,
            };
            return Err(Error::AddressRefused {
                node,
                address,
                refusal,
            }
            .into());
        }
        Ok(pool)
    }

    /// The first write of a claim to this block, which is not there.
    fn claim_for(&mut self, node: &'a str, cidr: IpNet, blocks: &[&crate::block::Block]) -> Progress<Halt> {
        match self.view.block(cidr)? {
            BlockSeen::Unreadable { reason } => {
                let key = Key::new(Kind::Block, name::block(cidr));
                let reason = reason.to_owned();
                return Err(Error::Unreadable { key, reason }.into());
            }
            BlockSeen::Absent | BlockSeen::Deleted { .. } | BlockSeen::Present { .. } => {}
        }
        if Ranges::from_iter(blocks.iter().map(|b| b.cidr)).overlaps(cidr) {
            let pools = self.view.policy().pools.of_block(cidr).map(PoolSize::of);
            return Err(Error::Exhausted {
                node: node.to_owned(),
                usage: Use::Workload,
                pools: pools.into_iter().collect(),
            }
            .into());
        }
        match self.view.affinity(node, cidr)? {
            Some(_) => self.waiting(node, cidr),
            None => Ok(announced(node, cidr)),
        }
    }

    /// Waits for the node's claims; it is an error when nothing of them is under way.
    fn waiting(&mut self, node: &'a str, cidr: IpNet) -> Progress<Halt> {
        if self.settle(node)?.is_unsettled {
            return Ok(Halt::Wait);
        }
        let key = Key::new(Kind::Affinity, name::affinity(node, cidr));
        let reason = "it is in the way of the node's own claim, see `culvert ipam check`".to_owned();
        Err(Error::Unreadable { key, reason }.into())
    }
}
