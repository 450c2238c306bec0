//! When this node is known by another address from now on.
//!
//! Router ID, session ends and the sources of packets all hang on the address, so that another one is a new beginning.
//! It is made only when the old address is gone from every link, and only to one that the same rules name as at the
//! start (`node::advertised_address`): what is ambiguous is told, and not guessed.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use tokio::time::Instant;

use crate::api::{AdvertisedAddress, Node};
use crate::cluster::Cluster;
use crate::fib::Snapshot;
use crate::node;
use crate::reconcile::Actual;

/// How long the answer must stand that somebody gave by name: whoever changes an address does so in more than one step.
const NAMED: Duration = Duration::from_secs(1);

/// How long it must stand where the new address is merely the only one left: the old one may come back.
const FOUND: Duration = Duration::from_secs(10);

/// What is known of the address that comes next.
#[derive(Debug, Default)]
pub(super) struct Renumbering {
    /// The address that the configuration gives.
    given: Option<AdvertisedAddress>,
    /// This node's object.
    node: Option<Node>,
    next: Option<Next>,
    gone: bool,
    problem: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Next {
    address: Ipv4Net,
    due: Instant,
}

impl Renumbering {
    pub(super) fn new(given: Option<AdvertisedAddress>) -> Self {
        Self {
            given,
            ..Self::default()
        }
    }

    /// Takes in this node's object.
    pub(super) fn take(&mut self, node: &Node) {
        self.node = Some(node.clone());
    }

    /// Looks which address should take the place of `ours`, if that is gone; whether it went, or came back, just now.
    pub(super) fn observe(
        &mut self,
        ours: Ipv4Addr,
        actual: &Actual,
        cluster: &Cluster,
        now: Instant,
    ) -> bool {
        let gone = actual.link_with_address(IpAddr::V4(ours)).is_none();
        let changed = std::mem::replace(&mut self.gone, gone) != gone;
        self.problem = None;
        let node = self.node.as_ref().filter(|_| self.gone);
        let Some(node) = node else {
            self.next = None;
            return changed;
        };
        let kernel = Snapshot {
            links: actual.links().cloned().collect(),
            addresses: actual
                .links()
                .flat_map(|link| actual.addresses_of(link.index))
                .collect(),
            ..Snapshot::default()
        };
        let pools: Vec<Ipv4Net> = cluster
            .pools()
            .filter_map(|(_, pool)| match pool.cidr {
                IpNet::V4(net) => Some(net),
                IpNet::V6(_) => None,
            })
            .collect();
        match node::advertised_address(self.given, node, &kernel, &pools) {
            Ok(address) => {
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
            Err(error) => {
                self.next = None;
                self.problem = Some(format!(
                    "this node's address {ours} is gone, and no other takes its place: {error}"
                ));
            }
        }
        changed
    }

    /// When the answer has stood for long enough.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.map(|next| next.due)
    }

    /// The new address, once it is due.
    pub(super) fn settled(&self, now: Instant) -> Option<Ipv4Net> {
        self.next.filter(|next| next.due <= now).map(|next| next.address)
    }

    /// Whether the address that this node is known by is on no link.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Why no other address takes its place, if it is gone.
    pub(super) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }
}

/// Whether the Node object says so, as InternalIP or in the annotation of the address.
fn is_named(node: &Node, address: Ipv4Addr) -> bool {
    let published = node.advertised_address().map(|net| net.addr());
    published == Some(address)
        || node
            .internal_addresses()
            .any(|named| named == IpAddr::V4(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NodeAddress, annotation};
    use crate::fib::{Address, Link};

    const OLD: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 11);

    fn kernel(addresses: &[(&str, &str)]) -> Actual {
        let mut kernel = Snapshot::default();
        for (index, (name, net)) in (1..).zip(addresses) {
            kernel.links.push(Link {
                index,
                name: (*name).to_owned(),
                up: true,
                running: true,
                mtu: 1500,
                kind: None,
                path_mtu_discovery: None,
            });
            kernel.addresses.push(Address {
                link: index,
                net: net.parse().unwrap(),
            });
        }
        Actual::new(kernel)
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

    /// Tries each step, a second after the one before; the address at the end, when that is taken, and the problem.
    fn after(steps: &[(&Node, &Actual)]) -> (Option<String>, Option<Duration>, Option<String>) {
        let mut renumbering = Renumbering::new(None);
        let start = Instant::now();
        let mut now = start;
        for (node, actual) in steps {
            now += Duration::from_secs(1);
            renumbering.take(node);
            renumbering.observe(OLD, actual, &Cluster::default(), now);
        }
        let due = renumbering.due();
        let just_before = due.map(|due| due.checked_sub(Duration::from_millis(1)).unwrap());
        assert_eq!(just_before.and_then(|then| renumbering.settled(then)), None);
        let taken = due.and_then(|due| renumbering.settled(due));
        let problem = renumbering.problem().cloned();
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
}
