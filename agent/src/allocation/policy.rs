//! What allocation goes by: the pools that are for this node, reservations, settings.

use std::collections::BTreeMap;

use culvert_ipam::allocator::Policy;
use culvert_ipam::limits::Limits;
use culvert_ipam::pool::{Excluded, Pool, PoolError, Pools, Use};
use culvert_ipam::ranges::Ranges;
use tracing::warn;

use crate::api::{IpPool, IpReservation, IpamConfig, IpamConfigSpec, Node};
use crate::datastore::{self, Datastore, DatastoreError, Recollection};
use crate::selector::Selector;

/// The name of the only IPAMConfig that counts.
const CONFIG: &str = "default";

type Labels = BTreeMap<String, String>;

/// What allocation goes by, read at one time.
pub(super) struct PoolChoice {
    pools: Vec<IpPool>,
    /// The node's labels.
    labels: Labels,
    reserved: Ranges,
    limits: Limits,
}

impl PoolChoice {
    /// Reads it, all at once.
    pub(super) async fn read(store: &dyn Datastore, node: &str) -> Result<Self, DatastoreError> {
        let (pools, reservations, config, node) = futures_util::try_join!(
            datastore::list::<IpPool>(store),
            datastore::list::<IpReservation>(store),
            datastore::get::<IpamConfig>(store, CONFIG),
            datastore::get::<Node>(store, node),
        )?;
        Ok(Self::of(Recollection {
            pools,
            reservations,
            config,
            node,
            affinities: Vec::new(),
        }))
    }

    /// As it was read, or is remembered.
    pub(super) fn of(found: Recollection) -> Self {
        let limits = limits(&found.config.map(|c| c.spec).unwrap_or_default());
        if let Err(error) = limits.check() {
            warn!(%error, "IPAMConfig {CONFIG} contradicts itself");
        }
        let reserved = found.reservations.iter().flat_map(|r| r.spec.ranges());
        Self {
            pools: found.pools,
            labels: found.node.map(|node| node.metadata.labels).unwrap_or_default(),
            reserved: reserved.collect(),
            limits,
        }
    }

    /// As a plan has it.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            pools: Pools::new(self.pools.iter().map(|object| pool(object, &self.labels))),
            reserved: self.reserved.clone(),
            limits: self.limits,
        }
    }

    /// The pools that one request may not use, beyond those that the node may not: for a tunnel those whose packets are not
    /// tunnelled, else those that are for other namespaces.
    pub(super) fn excluded(&self, tunnelled: bool, namespace: Option<&Labels>) -> BTreeMap<String, Excluded> {
        let refusal = |object: &IpPool| {
            if tunnelled {
                return (!object.spec.may_tunnel()).then_some(Excluded::NotTunnelled);
            }
            let selector = namespace_selector(object)?;
            let selects = Selector::parse(selector)
                .is_ok_and(|selector| namespace.is_some_and(|labels| selector.matches(labels)));
            (!selects).then(|| Excluded::NamespaceSelector(selector.to_owned()))
        };
        let refused = self.pools.iter().filter_map(|object| {
            let name = object.metadata.name.clone();
            refusal(object).map(|excluded| (name, excluded))
        });
        refused.collect()
    }
}

/// What allocation goes by in the whole cluster: pools are looked at without asking which nodes they are for.
///
/// # Errors
/// When something of it cannot be read.
pub(crate) async fn policy_of_cluster(store: &dyn Datastore) -> Result<Policy, DatastoreError> {
    let (pools, reservations, config) = futures_util::try_join!(
        datastore::list_whole::<IpPool>(store),
        datastore::list_whole::<IpReservation>(store),
        datastore::get::<IpamConfig>(store, CONFIG),
    )?;
    let pools = pools.iter().map(|object| {
        let spec = &object.spec;
        Pool::new(&object.metadata.name, spec.cidr, spec.block_size)
    });
    Ok(Policy {
        pools: Pools::new(pools),
        reserved: reservations.iter().flat_map(|r| r.spec.ranges()).collect(),
        limits: limits(&config.map(|c| c.spec).unwrap_or_default()),
    })
}

/// What chooses among namespaces; none where it chooses all.
fn namespace_selector(object: &IpPool) -> Option<&str> {
    let selector = object.spec.unknown.get("namespaceSelector")?.as_str()?;
    (!matches!(selector.trim(), "" | "all()")).then_some(selector)
}

/// An IPPool as allocation on a node with these labels sees it.
///
/// # Errors
/// When its block size is wrong.
pub fn pool(object: &IpPool, node: &Labels) -> Result<Pool, PoolError> {
    let spec = &object.spec;
    let selector = spec.node_selector.as_deref().unwrap_or_default();
    // A selector that is not understood selects nothing: a pool that is meant for others is worse than none.
    let is_selected = match Selector::parse(selector) {
        Ok(selector) => selector.matches(node),
        Err(error) => {
            warn!(pool = %object.metadata.name, %error, "no node may use this pool until its nodeSelector is mended");
            false
        }
    };
    let excluded = if spec.disabled || object.metadata.unknown.contains_key("deletionTimestamp") {
        Some(Excluded::Disabled)
    } else if !is_selected {
        Some(Excluded::NodeSelector(selector.to_owned()))
    } else {
        spec.is_manual().then_some(Excluded::Manual)
    };
    let pool = Pool::new(&object.metadata.name, spec.cidr, spec.block_size)?.excluding(excluded);
    if spec.allowed_uses.is_empty() {
        return Ok(pool);
    }
    let uses = [Use::Workload, Use::Tunnel];
    Ok(pool.allowing(
        uses.into_iter()
            .filter(|u| spec.allowed_uses.contains(&u.to_string())),
    ))
}

/// The settings of allocation, as an IPAMConfig has them.
pub(crate) fn limits(config: &IpamConfigSpec) -> Limits {
    let cooldown = config
        .unknown
        .get("ipCooldownSeconds")
        .and_then(serde_json::Value::as_u64);
    Limits {
        strict_affinity: config.strict_affinity,
        auto_allocate_blocks: config.auto_allocate_blocks,
        max_blocks_per_host: config.max_blocks_per_host,
        cooldown_seconds: cooldown.and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
    }
}
