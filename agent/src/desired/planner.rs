//! The plan, kept: of what has changed only what follows from it is computed anew.
//!
//! The plan is a function of what is known, not of how that came about. [`Planner::update`] gives what a computation of
//! everything would give; it is told what may have changed, and leaves the rest as it was. To say too much costs time;
//! to say too little is a fault, which every build with debug assertions looks for at every update.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::IpAddr;

use culvert_bgp::id::{NextHop as BgpNextHop, Prefix};
use ipnet::IpNet;

use super::external::{External, Outside};
use super::multipath::equal_shares;
use super::underlay::{self, Former, Underlay};
use super::ways::{Way, Ways, could_lead};
use super::{IPIP_OVERHEAD, Known, Plan, Rejected, Rejection, Settings, TUNNEL_DEVICE};
use crate::cluster::ClusterChange;
use crate::fib::{Desired, Link, MAIN_TABLE, Route, RouteKey, RouteKind, SCOPE_UNIVERSE, Tunnel};
use crate::peering::{OriginKind, exports, is_service_range, peering};
use crate::reconcile::{Actual, Touched};

/// What may have changed since the plan was last brought up to date.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    /// Anything: the kernel was read anew, or this is the beginning.
    pub everything: bool,
    /// The cluster.
    pub cluster: ClusterChange,
    /// The destinations that were learned or withdrawn.
    pub learned: BTreeSet<Prefix>,
    /// The kernel.
    pub kernel: Touched,
}

/// What an update of the plan did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Updated {
    /// More than routes may be another: peers, exports, the tunnel, rules, what is not pinned.
    pub beyond_routes: bool,
    /// The keys whose routes are others than before, are wanted no longer, or are held or not held now.
    pub keys: BTreeSet<RouteKey>,
    /// Destinations that were not rejected before for the same reason.
    pub rejected: Vec<Rejected>,
}

/// The plan, and what it was made with.
#[derive(Clone, Debug)]
pub struct Planner {
    settings: Settings,
    plan: Plan,
    ways: Ways,
    /// The advertised addresses of all nodes.
    nodes: BTreeSet<IpAddr>,
    /// This node's blocks.
    own_blocks: BTreeSet<IpNet>,
    /// The destinations outside the cluster.
    external: External,
}

/// What becomes of one destination.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    route: Option<Route>,
    is_held: bool,
    rejected: Vec<Rejection>,
    /// The next hops outside the cluster.
    outside: BTreeSet<IpAddr>,
}

impl Planner {
    /// A plan of nothing, to be updated with everything.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            plan: Plan::default(),
            ways: Ways::default(),
            nodes: BTreeSet::new(),
            own_blocks: BTreeSet::new(),
            external: External::default(),
        }
    }

    /// What should be, as of the last update.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(super) fn into_plan(self) -> Plan {
        self.plan
    }

    /// Brings the plan up to date with what is `known`, of which no more than `changed` says is another than at the last
    /// update.
    pub fn update(&mut self, known: Known<'_>, changed: &Changed) -> Updated {
        let beyond_routes = changed.everything
            || changed.cluster == ClusterChange::Everything
            || self.ways.may_move(&changed.kernel, known.actual);
        if beyond_routes {
            return self.update_everything(known);
        }
        let mut prefixes: BTreeSet<IpNet> = changed.learned.iter().map(|prefix| prefix.net()).collect();
        prefixes.extend(self.external.touched(&changed.kernel, known.actual));
        if prefixes.iter().any(|prefix| self.is_way_to_node(known, prefix)) {
            return self.update_everything(known);
        }
        let updated = self.update_touched(known, changed, prefixes);
        debug_assert_eq!(
            self.plan,
            super::plan(&self.settings, known),
            "after {changed:?} the plan is not what it would be from the start"
        );
        updated
    }

    fn update_everything(&mut self, known: Known<'_>) -> Updated {
        let before = mem::replace(&mut self.plan, frame(&self.settings, known));
        self.nodes = known.cluster.nodes_by_address().into_keys().collect();
        let (learned, held) = self.learned_ways_to_nodes(known);
        let former = Former {
            cluster: known.cluster,
            held: &held,
            all: !known.converged,
        };
        let underlay = Underlay::new(&self.settings, known.actual, &learned, former);
        self.ways = Ways::new(
            &self.settings,
            known,
            tunnel_mtu(&self.settings, known),
            &underlay,
        );
        self.own_blocks = known.cluster.blocks_of(&self.settings.node).collect();
        self.external = External::default();
        let own = self.own_blocks.iter().copied();
        let reachable = self.plan.peering.gateways.keys().map(|peer| IpNet::from(*peer));
        let unlearned: Vec<Prefix> = own
            .chain(reachable)
            .map(Prefix::new)
            .filter(|prefix| !known.learned.contains_key(prefix))
            .collect();
        for prefix in known.learned.keys().chain(&unlearned) {
            let outcome = self.outcome(known, prefix.net());
            self.put(prefix.net(), outcome);
        }
        if self.plan.desired.tunnel.is_some() {
            self.plan.tunnelled_to = self.ways.other_nodes().collect();
            pin_sources(&self.settings, &underlay, &mut self.plan);
        }
        Updated {
            beyond_routes: true,
            keys: differing_keys(&before.desired, &self.plan.desired),
            rejected: newly_rejected(&before.rejected, &self.plan.rejected),
        }
    }

    /// The routes to destinations outside the cluster by which packets get to nodes, and those of them that are held as they
    /// are. They rest on no way to a node.
    fn learned_ways_to_nodes(&self, known: Known<'_>) -> (BTreeMap<RouteKey, Route>, BTreeSet<RouteKey>) {
        let (mut routes, mut held) = (BTreeMap::new(), BTreeSet::new());
        let gateways = self.plan.peering.gateways.keys();
        let gateways = gateways.map(|peer| IpNet::from(*peer));
        for prefix in known.learned.keys().map(|prefix| prefix.net()).chain(gateways) {
            let range = prefix.network()..=prefix.broadcast();
            if self.nodes.range(range).next().is_none() || known.cluster.pool_of(&prefix).is_some() {
                continue;
            }
            let outcome = self.outcome(known, prefix);
            let key = RouteKey::main(prefix);
            // What nodes say of it is judged by the ways to them, which are not known yet, and is no way to one anyhow.
            let lacks = |reason: &Rejection| matches!(reason, Rejection::NotConnected { .. });
            if outcome.route.is_none() && outcome.rejected.iter().any(lacks) {
                held.insert(key);
            }
            routes.extend(outcome.route.map(|route| (key, route)));
        }
        (routes, held)
    }

    /// Whether a way to a node may be a route of ours that is in the kernel and is not wanted. Before the peers have told all
    /// it counts, afterwards it does not.
    #[must_use]
    pub fn rests_on_former_run(&self, actual: &Actual) -> bool {
        actual.routes().any(|route| {
            route.protocol == self.settings.protocol
                && route.key.table == MAIN_TABLE
                && self.ways.are_asked_of(&route.key.prefix)
                && !self.plan.desired.routes.contains_key(&route.key)
        })
    }

    /// Whether packets to a node may take what a router tells of `prefix`.
    fn is_way_to_node(&self, known: Known<'_>, prefix: &IpNet) -> bool {
        self.ways.are_asked_of(prefix) && known.cluster.pool_of(prefix).is_none()
    }

    /// Looks again at `prefixes`, and at what else changed.
    fn update_touched(
        &mut self,
        known: Known<'_>,
        changed: &Changed,
        mut prefixes: BTreeSet<IpNet>,
    ) -> Updated {
        let mut updated = Updated::default();
        let in_main = changed.kernel.routes.iter().filter(|key| key.table == MAIN_TABLE);
        prefixes.extend(in_main.map(|key| key.prefix));
        if changed.cluster >= ClusterChange::Blocks {
            let now = known.cluster.blocks_of(&self.settings.node).collect();
            let before = mem::replace(&mut self.own_blocks, now);
            prefixes.extend(self.own_blocks.symmetric_difference(&before));
            self.plan.exports = exports(self.settings.local(), known.cluster);
            updated.beyond_routes = true;
        }
        for prefix in prefixes {
            let outcome = self.outcome(known, prefix);
            let key = RouteKey::main(prefix);
            let desired = &self.plan.desired;
            if desired.routes.get(&key) != outcome.route.as_ref()
                || desired.held.contains(&key) != outcome.is_held
            {
                updated.keys.insert(key);
            }
            let before = self.plan.rejected.get(&prefix).map_or(&[][..], Vec::as_slice);
            let new = outcome.rejected.iter().filter(|reason| !before.contains(reason));
            updated.rejected.extend(new.map(|reason| Rejected {
                prefix,
                reason: reason.clone(),
            }));
            self.put(prefix, outcome);
        }
        updated
    }

    /// What becomes of `prefix`: the way to it that the peers tell, else nothing, in a block of ours by a blackhole.
    fn outcome(&self, known: Known<'_>, prefix: IpNet) -> Outcome {
        let mut outcome = Outcome::default();
        let key = RouteKey::main(prefix);
        let best = self.told(known, prefix);
        let mut ways: Vec<Cow<'_, Way>> = Vec::new();
        let mut source = None;
        let mut mtu: Option<u32> = None;
        // This node answers for services itself: what others say of them is no way to go, and no fault either.
        let is_service = !best.is_empty() && is_service_range(known.cluster, &prefix);
        let is_here = !best.is_empty() && self.is_on_this_host(known.actual, &key);
        for hop in best.iter().filter(|_| !is_service) {
            let way = if is_here {
                Err(Rejection::OnThisHost { peer: hop.peer })
            } else {
                self.way(known, prefix, *hop, &mut outcome.outside)
            };
            match way {
                Ok(way) => {
                    // Of a way through the tunnel and one past it, the latter has one: it is none to the tunnel's harm.
                    source = source.or(way.source);
                    // The kernel has one for all next hops.
                    mtu = mtu.into_iter().chain(way.mtu).min();
                    ways.push(way);
                }
                Err(reason) => outcome.rejected.push(reason),
            }
        }
        let next_hops = equal_shares(&ways);
        if !next_hops.is_empty() {
            outcome.route = Some(Route {
                key,
                kind: RouteKind::Unicast,
                next_hops,
                source,
                protocol: self.settings.protocol,
                scope: SCOPE_UNIVERSE,
                mtu,
            });
        } else if self.own_blocks.contains(&prefix) && !is_single_address(&prefix) {
            // Packets to addresses of our blocks that no pod has end here, instead of following the default route.
            outcome.route = Some(Route::blackhole(key, self.settings.protocol));
        } else {
            outcome.is_held = outcome.rejected.iter().any(Rejection::may_pass);
        }
        outcome
    }

    /// Where packets to `prefix` are to go, as the peers tell it, or the configuration of a peer.
    fn told<'a>(&self, known: Known<'a>, prefix: IpNet) -> Cow<'a, [BgpNextHop]> {
        let gateways = &self.plan.peering.gateways;
        let gateway = is_single_address(&prefix)
            .then(|| gateways.get(&prefix.addr()))
            .flatten();
        match gateway {
            Some(gateway) => Cow::Owned(vec![BgpNextHop {
                address: *gateway,
                peer: prefix.addr(),
            }]),
            None => Cow::Borrowed(known.learned.get(&Prefix::new(prefix)).map_or(&[], Vec::as_slice)),
        }
    }

    /// The way to `prefix` through `hop`: to a node, or out of the cluster. The latter is added to `outside`.
    fn way(
        &self,
        known: Known<'_>,
        prefix: IpNet,
        hop: BgpNextHop,
        outside: &mut BTreeSet<IpAddr>,
    ) -> Result<Cow<'_, Way>, Rejection> {
        let peering = &self.plan.peering;
        let is_to_router = is_single_address(&prefix) && peering.gateways.contains_key(&prefix.addr());
        if !is_to_router {
            // A node of the mesh has nothing to tell of what lies outside the pools.
            let is_router = || {
                let origin = peering.origins.get(&hop.peer);
                origin.is_some_and(|origin| origin.kind != OriginKind::Mesh)
            };
            let is_outside = !self.nodes.contains(&hop.address)
                && known.cluster.pool_of(&prefix).is_none()
                && is_router()
                && could_lead(known.cluster, prefix, hop).is_ok();
            if !is_outside {
                return self.ways.to(known.cluster, prefix, hop).map(Cow::Borrowed);
            }
        }
        outside.insert(hop.address);
        let out = Outside {
            settings: &self.settings,
            peering,
            actual: known.actual,
        };
        out.way(prefix, hop.address).map(Cow::Owned)
    }

    fn put(&mut self, prefix: IpNet, mut outcome: Outcome) {
        self.external.note(prefix, mem::take(&mut outcome.outside));
        put(&mut self.plan, prefix, outcome);
    }

    /// Whether a route of somebody else, such as the CNI plugin, leads to this single address on a link of this host. Ours
    /// would take its place, and the pod's packets would go elsewhere.
    fn is_on_this_host(&self, actual: &Actual, key: &RouteKey) -> bool {
        let is_link = |route: &Route| {
            route.kind == RouteKind::Unicast
                && route.protocol != self.settings.protocol
                && route.next_hops.iter().all(|hop| hop.gateway.is_none())
        };
        is_single_address(&key.prefix) && actual.route(key).is_some_and(is_link)
    }
}

/// All but the routes.
fn frame(settings: &Settings, known: Known<'_>) -> Plan {
    let mut pools = known.cluster.pools();
    let tunnelled = pools.any(|(_, pool)| pool.may_tunnel());
    let mut pools = known.cluster.pools();
    // Where IPv6 is not used it stays off: it costs a link its routes from router advertisements, unless accept_ra is 2.
    let forwarding_v6 =
        settings.speaking.address_v6.is_some() && pools.any(|(_, pool)| pool.cidr.addr().is_ipv6());
    let tunnel_mtu = tunnel_mtu(settings, known);
    let tunnel = tunnelled.then(|| Tunnel {
        name: TUNNEL_DEVICE.to_owned(),
        mtu: tunnel_mtu,
        address: known
            .cluster
            .node(&settings.node)
            .and_then(|node| node.tunnel_address),
        path_mtu_discovery: settings.path_mtu_discovery,
    });
    let overhead = if tunnelled { 0 } else { IPIP_OVERHEAD };
    Plan {
        desired: Desired {
            tunnel,
            forwarding: true,
            forwarding_v6,
            ..Desired::default()
        },
        peering: peering(settings.local(), known.cluster),
        exports: exports(settings.local(), known.cluster),
        pod_mtu: tunnel_mtu.saturating_add(overhead),
        ..Plan::default()
    }
}

fn put(plan: &mut Plan, prefix: IpNet, outcome: Outcome) {
    let key = RouteKey::main(prefix);
    match outcome.route {
        Some(route) => drop(plan.desired.routes.insert(key, route)),
        None => drop(plan.desired.routes.remove(&key)),
    }
    if outcome.is_held {
        plan.desired.held.insert(key);
    } else {
        plan.desired.held.remove(&key);
    }
    if outcome.rejected.is_empty() {
        plan.rejected.remove(&prefix);
    } else {
        plan.rejected.insert(prefix, outcome.rejected);
    }
}

/// Gives packets to the other nodes the advertised address as source, unless that is switched off.
fn pin_sources(settings: &Settings, underlay: &Underlay<'_>, plan: &mut Plan) {
    let Some(table) = settings.pin_table else {
        return;
    };
    let pins = underlay::pins(settings, table, plan.tunnelled_to.iter().copied(), underlay);
    plan.desired.routes.extend(pins.routes);
    plan.desired.held.extend(pins.held);
    plan.desired.rules.insert(underlay::rule(settings, table));
    plan.unpinned = pins.unpinned;
}

/// The tunnel's MTU: what is configured, else what fits into the link that carries the advertised address.
fn tunnel_mtu(settings: &Settings, known: Known<'_>) -> u32 {
    let link: Option<&Link> = known
        .actual
        .link_with_address(IpAddr::V4(settings.address))
        .map(|(link, _)| link);
    // 1500 is Ethernet's; it stands in only while the address is on no link, when no packet leaves anyway.
    let link_mtu = link.map_or(1500, |link| link.mtu);
    settings
        .tunnel_mtu
        .unwrap_or_else(|| link_mtu.saturating_sub(IPIP_OVERHEAD))
}

/// A /32 gets no blackhole: it would have the key of the pod's own route and keep it out.
fn is_single_address(block: &IpNet) -> bool {
    block.prefix_len() == block.max_prefix_len()
}

/// The keys under which the two differ.
fn differing_keys(before: &Desired, now: &Desired) -> BTreeSet<RouteKey> {
    let mut keys: BTreeSet<RouteKey> = before.held.symmetric_difference(&now.held).copied().collect();
    let mut former = before.routes.iter().peekable();
    for (key, route) in &now.routes {
        while let Some((gone, _)) = former.next_if(|(other, _)| *other < key) {
            keys.insert(*gone);
        }
        let same = former.next_if(|(other, _)| *other == key);
        if same.is_none_or(|(_, former)| former != route) {
            keys.insert(*key);
        }
    }
    keys.extend(former.map(|(key, _)| *key));
    keys
}

/// Those of `now` that are not among `before`. A peer decides how many there are: each is looked up, not searched for.
fn newly_rejected(
    before: &BTreeMap<IpNet, Vec<Rejection>>,
    now: &BTreeMap<IpNet, Vec<Rejection>>,
) -> Vec<Rejected> {
    let mut new = Vec::new();
    for (prefix, reasons) in now {
        let known = before.get(prefix).map_or(&[][..], Vec::as_slice);
        new.extend(
            reasons
                .iter()
                .filter(|reason| !known.contains(reason))
                .map(|reason| Rejected {
                    prefix: *prefix,
                    reason: reason.clone(),
                }),
        );
    }
    new
}

#[cfg(test)]
mod tests;
