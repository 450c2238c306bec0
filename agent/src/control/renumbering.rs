//! When this node is known by another address from now on, or by one of IPv6 for the first time.
//!
//! Router ID, session ends and the sources of packets all hang on the address, so that another one is a new beginning.
//! It is made only when the old address is gone from every link, and only to one that the same rules name as at the
//! start (`node::advertised_address`): what is ambiguous is told, and not guessed.

use std::net::IpAddr;
use std::time::Duration;

use culvert_ipam::pool::Family;
use ipnet::IpNet;
use tokio::time::Instant;

use crate::api::{AdvertisedAddress, Node};
use crate::cluster::Cluster;
use crate::config::NodeConfig;
use crate::fib::Snapshot;
use crate::node;
use crate::peering::Local;
use crate::reconcile::Actual;

/// How long the answer must stand that somebody gave by name: whoever changes an address does so in more than one step.
const NAMED: Duration = Duration::from_secs(1);

/// How long it must stand where the new address is merely the only one left: the old one may come back.
const FOUND: Duration = Duration::from_secs(10);

/// What is known of the addresses that come next.
#[derive(Debug, Default)]
pub(super) struct Renumbering {
    /// The addresses that the configuration gives.
    given: Option<AdvertisedAddress>,
    given_v6: Option<AdvertisedAddress>,
    /// This node's object.
    node: Option<Node>,
    v4: Succession,
    v6: Succession,
}

/// What comes after the address of one family.
#[derive(Debug, Default)]
struct Succession {
    next: Option<Next>,
    /// The address is on no link.
    gone: bool,
    problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Next {
    address: IpNet,
    due: Instant,
}

impl Renumbering {
    pub(super) fn new(config: &NodeConfig) -> Self {
        Self {
            given: config.address,
            given_v6: config.address_v6,
            ..Self::default()
        }
    }

    /// Takes in this node's object.
    pub(super) fn take(&mut self, node: &Node) {
        self.node = Some(node.clone());
    }

    /// Looks which addresses should take the place of those that are gone, and of an IPv6 address that there was none of;
    /// whether one of ours went, or came back, just now.
    pub(super) fn observe(
        &mut self,
        local: Local<'_>,
        actual: &Actual,
        cluster: &Cluster,
        now: Instant,
    ) -> bool {
        let is_gone = |address: IpAddr| actual.link_with_address(address).is_none();
        let ours_v6 = local.speaking.address_v6;
        let changed = [
            self.v4.begin(is_gone(IpAddr::V4(local.address))),
            self.v6
                .begin(ours_v6.is_some_and(|address| is_gone(IpAddr::V6(address)))),
        ];
        let changed = changed.contains(&true);
        let uses_v6 = cluster.gives_ipv6();
        let asks_for_v6 = ours_v6.is_none() && (uses_v6 || self.given_v6.is_some());
        let (wants_v4, wants_v6) = (self.v4.gone, self.v6.gone || asks_for_v6);
        for (of, wants) in [(&mut self.v4, wants_v4), (&mut self.v6, wants_v6)] {
            of.next = of.next.filter(|_| wants && self.node.is_some());
        }
        let node = self.node.as_ref().filter(|_| wants_v4 || wants_v6);
        let Some(node) = node else {
            return changed;
        };
        let kernel = Snapshot {
            links: actual.links().cloned().collect(),
            addresses: actual
                .links()
                .flat_map(|link| actual.addresses_of(link.index))
                .collect(),
            deprecated: actual.deprecated().clone(),
            ..Snapshot::default()
        };
        let pools: Vec<IpNet> = cluster.pools().map(|(_, pool)| pool.cidr).collect();
        if wants_v4 {
            match node::advertised_address(self.given, node, &kernel, &pools) {
                Ok(address) => self.v4.expect(IpNet::V4(address), node, now),
                Err(error) => self.v4.fail(format!(
                    "this node's address {} is gone, and no other takes its place: {error}",
                    local.address
                )),
            }
        }
        if wants_v6 {
            match (
                node::advertised_address_v6(self.given_v6, node, &kernel, &pools, uses_v6),
                ours_v6,
            ) {
                (Ok(Some(address)), _) => self.v6.expect(IpNet::V6(address), node, now),
                (Ok(None), _) => self.v6.next = None,
                (Err(error), Some(ours)) => self.v6.fail(format!(
                    "this node's IPv6 address {ours} is gone, and no other takes its place: {error}"
                )),
                (Err(error), None) => self
                    .v6
                    .fail(format!("IPv6 is not routed from and to this node: {error}")),
            }
        }
        changed
    }

    /// When an answer has stood for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.each().filter_map(|of| of.next).map(|next| next.due).min()
    }

    /// The new address, once it is due.
    pub(super) fn settled(&self, now: Instant) -> Option<IpNet> {
        let mut next = self.each().filter_map(|of| of.next);
        next.find(|next| next.due <= now).map(|next| next.address)
    }

    /// Whether the address that this node is known by in this family is on no link.
    pub(super) fn is_gone(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4.gone,
            Family::V6 => self.v6.gone,
        }
    }

    /// Why no other address takes the place of one that is gone or missing.
    pub(super) fn problems(&self) -> impl Iterator<Item = &String> {
        self.each().filter_map(|of| of.problem.as_ref())
    }

    fn each(&self) -> impl Iterator<Item = &Succession> {
        [&self.v4, &self.v6].into_iter()
    }
}

impl Succession {
    /// Begins to look again; whether the address went, or came back.
    fn begin(&mut self, gone: bool) -> bool {
        self.problem = None;
        std::mem::replace(&mut self.gone, gone) != gone
    }

    /// This address should be the next one.
    fn expect(&mut self, address: IpNet, node: &Node, now: Instant) {
        if self.next.is_none_or(|next| next.address != address) {
            let wait = if is_named(node, address.addr()) {
                NAMED
            } else {
                FOUND
            };
            let due = now + wait;
            self.next = Some(Next { address, due });
        }
    }

    fn fail(&mut self, problem: String) {
        self.next = None;
        self.problem = Some(problem);
    }
}

/// Whether the Node object says so, as InternalIP or in the annotation of the address.
fn is_named(node: &Node, address: IpAddr) -> bool {
    let v4 = node.advertised_address().map(|net| IpAddr::V4(net.addr()));
    let v6 = node.advertised_address_v6().map(|net| IpAddr::V6(net.addr()));
    let mut published = v4.into_iter().chain(v6);
    published.any(|published| published == address) || node.internal_addresses().any(|named| named == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{IpPool, NodeAddress, Object, annotation};
    use crate::fixtures::addressed;
    use crate::peering::Speaking;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const OLD: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 11);

    fn kernel(addresses: &[(&str, &str)]) -> Actual {
        Actual::new(addressed(addresses))
    }

    fn node(internal: Option<&str>, published: Option<&str>) -> Node {
        let mut node = Node::named("node1");
        node.status.addresses = internal
            .map(|address| NodeAddress {
                r#type: "InternalIP".to_owned(),
                address: address.to_owned(),
            })
            .into_iter()
            .collect();
        let published = published.map(|text| (annotation::IPV4_ADDRESS.to_owned(), text.to_owned()));
        node.metadata.annotations.extend(published);
        node
    }

    fn known_by(speaking: &Speaking) -> Local<'_> {
        Local {
            node: "node1",
            address: OLD,
            speaking,
        }
    }

    /// Tries each step, a second after the one before; the address at the end, when that is taken, and the problem.
    fn after(steps: &[(&Node, &Actual)]) -> (Option<String>, Option<Duration>, Option<String>) {
        let mut renumbering = Renumbering::new(&NodeConfig::default());
        let start = Instant::now();
        let mut now = start;
        let speaking = Speaking::default();
        for (node, actual) in steps {
            now += Duration::from_secs(1);
            renumbering.take(node);
            renumbering.observe(known_by(&speaking), actual, &Cluster::default(), now);
        }
        let due = renumbering.due();
        let just_before = due.map(|due| due.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(just_before.and_then(|then| renumbering.settled(then)), None);
        let taken = due.and_then(|due| renumbering.settled(due));
        let problem = renumbering.problems().next().cloned();
        (
            taken.map(|net| net.to_string()),
            due.map(|due| due - now),
            problem,
        )
    }

    #[test]
    fn an_address_is_kept_while_a_link_has_it_whatever_is_said_of_another() {
        let both = kernel(&[("eth0", "172.18.0.11/24"), ("eth1", "172.18.0.31/24")]);
        assert_eq!(
            after(&[(&node(Some("172.18.0.31"), None), &both)]),
            (None, None, None)
        );
    }

    #[test]
    fn one_that_the_node_object_names_is_taken_after_a_moment() {
        let new = kernel(&[("eth0", "172.18.0.31/24"), ("eth1", "192.168.7.7/24")]);
        let moment = Some(NAMED);
        let (taken, wait, _) = after(&[(&node(Some("172.18.0.31"), Some("172.18.0.11/24")), &new)]);
        assert_eq!((taken.as_deref(), wait), (Some("172.18.0.31/24"), moment));
        let (taken, wait, _) = after(&[(&node(None, Some("192.168.7.7/24")), &new)]);
        assert_eq!((taken.as_deref(), wait), (Some("192.168.7.7/24"), moment));
    }

    #[test]
    fn one_that_is_merely_left_over_is_taken_after_a_while() {
        let new = kernel(&[("lo", "127.0.0.1/8"), ("eth0", "172.18.0.31/24")]);
        let (taken, wait, _) = after(&[(&node(None, Some("172.18.0.11/24")), &new)]);
        assert_eq!((taken.as_deref(), wait), (Some("172.18.0.31/24"), Some(FOUND)));
    }

    #[test]
    fn what_is_ambiguous_or_missing_is_told_and_not_guessed() {
        let two = kernel(&[("eth0", "172.18.0.31/24"), ("eth1", "172.18.0.32/24")]);
        let (taken, _, problem) = after(&[(&node(None, Some("172.18.0.11/24")), &two)]);
        let problem = problem.unwrap();
        assert_eq!(taken, None);
        assert!(
            problem.contains("172.18.0.11") && problem.contains("172.18.0.32/24 on eth1"),
            "{problem}"
        );
        let (taken, _, problem) = after(&[(&node(Some("172.18.0.11"), None), &two)]);
        assert_eq!(taken, None);
        assert!(problem.unwrap().contains("add the address"));
    }

    #[test]
    fn the_wait_begins_anew_with_another_answer_and_ends_when_the_old_address_is_back() {
        let named = node(Some("172.18.0.31"), None);
        let found = node(None, None);
        let (one, other) = (
            kernel(&[("eth0", "172.18.0.31/24")]),
            kernel(&[("eth0", "172.18.0.32/24")]),
        );
        let (_, wait, _) = after(&[(&found, &one), (&found, &one)]);
        assert_eq!(wait, Some(FOUND - Duration::from_secs(1)), "it goes on");
        let (taken, wait, _) = after(&[(&found, &one), (&found, &other)]);
        assert_eq!((taken.as_deref(), wait), (Some("172.18.0.32/24"), Some(FOUND)));
        let back = kernel(&[("eth0", "172.18.0.11/24")]);
        assert_eq!(after(&[(&named, &one), (&named, &back)]), (None, None, None));
    }

    /// A node known by this IPv6 address, in a cluster with or without a pool of IPv6, some time after the last event.
    fn of_ipv6(ours: Option<&str>, has_pool: bool, actual: &Actual) -> Renumbering {
        let speaking = Speaking {
            address_v6: ours.map(|text| text.parse::<Ipv6Addr>().unwrap()),
            ..Speaking::default()
        };
        let mut cluster = Cluster::default();
        if has_pool {
            let yaml = "metadata: {name: pods-v6}\nspec: {cidr: 'fd00:65::/64'}";
            let pool: IpPool = serde_yaml::from_str(yaml).unwrap();
            cluster.upsert(&Object::IpPool(pool));
        }
        let mut renumbering = Renumbering::new(&NodeConfig::default());
        renumbering.take(&node(None, None));
        renumbering.observe(known_by(&speaking), actual, &cluster, Instant::now());
        renumbering
    }

    #[test]
    fn an_ipv6_address_is_taken_up_once_there_is_a_pool_and_the_host_has_one() {
        let v4 = ("eth0", "172.18.0.11/24");
        let one = kernel(&[v4, ("eth0", "2001:db8::11/64")]);
        let late = Instant::now() + 2 * FOUND;
        let taken = |ours, has_pool, actual| {
            let renumbering = of_ipv6(ours, has_pool, actual);
            renumbering.settled(late).map(|net| net.to_string())
        };
        assert_eq!(taken(None, true, &one).as_deref(), Some("2001:db8::11/64"));
        assert_eq!(taken(None, false, &one), None, "nobody asks for it");
        assert_eq!(taken(Some("2001:db8::11"), true, &one), None, "it is known by it");
        let other = kernel(&[v4, ("eth0", "2001:db8::12/64")]);
        assert_eq!(
            taken(Some("2001:db8::11"), true, &other).as_deref(),
            Some("2001:db8::12/64")
        );
    }

    #[test]
    fn an_ipv6_address_that_is_missing_or_open_is_told_and_ipv4_goes_on() {
        let v4 = ("eth0", "172.18.0.11/24");
        let two = kernel(&[v4, ("eth0", "2001:db8::11/64"), ("eth1", "2001:db8:1::11/64")]);
        for (actual, words) in [
            (&two, "2001:db8:1::11/64 on eth1; set node.addressV6"),
            (&kernel(&[v4]), "this host has no IPv6 address"),
        ] {
            let renumbering = of_ipv6(None, true, actual);
            let problems: Vec<_> = renumbering.problems().collect();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(words), "{problems:?}");
            assert_eq!(renumbering.due(), None);
            assert!(!renumbering.is_gone(Family::V4) && !renumbering.is_gone(Family::V6));
        }
    }
}
