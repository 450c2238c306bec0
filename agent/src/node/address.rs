//! Which of this host's addresses a node is known by: one of IPv4, and one of IPv6 where that is used.

use std::net::IpAddr;

use culvert_ipam::pool::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use tracing::warn;

use crate::api::{AdvertisedAddress, Node};
use crate::fib::{Address, Link, Snapshot};

/// Names of links whose addresses are no node's: those of pods, bridges, tunnels and local services. Calico leaves out
/// the same ones when it looks for a node's address.
const OTHERS_LINKS: &[&str] = &[
    "lo",
    "tunl",
    "cali",
    "docker",
    "cbr",
    "br-",
    "virbr",
    "lxcbr",
    "podman",
    "cni",
    "flannel",
    "kube-ipvs",
    "vxlan",
    "wireguard",
    "nodelocaldns",
    "dummy",
];

/// An address that the kernel has, and the link that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The link's name.
    pub link: String,
    /// The address with its prefix length on that link.
    pub net: IpNet,
}

/// Why it is not known which address to advertise.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The address exists nowhere on this host.
    #[error(
        "{origin} {address} is on no link of this host, which has {}; \
         set {} to one of these or add the address",
        list(.candidates),
        field(Family::of_address(*.address))
    )]
    Absent {
        /// Where it comes from.
        origin: &'static str,
        /// The address.
        address: IpAddr,
        /// What this host has.
        candidates: Vec<Candidate>,
    },
    /// There are several, and nothing says which.
    #[error(
        "several addresses could be this node's: {}; set {} to one of them, \
         or give Node {node} an InternalIP",
        list(.candidates),
        field(*.family)
    )]
    Ambiguous {
        /// The node.
        node: String,
        /// Of which family.
        family: Family,
        /// What this host has.
        candidates: Vec<Candidate>,
    },
    /// There is none.
    #[error(
        "this host has no {} address that could be this node's; add one, then set {} to it",
        name(*.family),
        field(*.family)
    )]
    Nothing {
        /// Of which family.
        family: Family,
    },
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Where the configuration gives it.
fn field(family: Family) -> &'static str {
    match family {
        Family::V4 => "node.address",
        Family::V6 => "node.addressV6",
    }
}

fn list(candidates: &[Candidate]) -> String {
    if candidates.is_empty() {
        return "no usable address".to_owned();
    }
    let words: Vec<String> = candidates
        .iter()
        .map(|c| format!("{} on {}", c.net, c.link))
        .collect();
    words.join(", ")
}

/// The addresses of this host that could be this node's: on a link that is up and is a node's, not loopback, link-local
/// or deprecated, and in none of `pools`.
#[must_use]
pub fn candidates(family: Family, kernel: &Snapshot, pools: &[IpNet]) -> Vec<Candidate> {
    let usable = |link: &Link| link.up && !OTHERS_LINKS.iter().any(|start| link.name.starts_with(start));
    let is_a_nodes = |address: &Address| {
        let ip = address.net.addr();
        let is_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !is_local
            && !ip.is_loopback()
            && !kernel.deprecated.contains(address)
            && !pools.iter().any(|pool| pool.contains(&ip))
    };
    let addresses = kernel.addresses.iter().copied();
    addresses
        .filter(|address| Family::of(address.net) == family && is_a_nodes(address))
        .filter_map(|address| {
            let link = kernel.links.iter().find(|link| link.index == address.link)?;
            usable(link).then(|| Candidate {
                link: link.name.clone(),
                net: address.net,
            })
        })
        .collect()
}

/// The address that this node advertises, with its prefix length: the one given, else the first InternalIP of its Node
/// object, else the only candidate. When that leaves it open, the address published before is kept if this host still
/// has it: a detection that fails must not take a node out of the mesh.
///
/// # Errors
/// When no rule names an address that this host has.
pub fn advertised_address(
    given: Option<AdvertisedAddress>,
    node: &Node,
    kernel: &Snapshot,
    pools: &[IpNet],
) -> Result<Ipv4Net, AddressError> {
    let published = node.advertised_address().map(IpNet::V4);
    let of = Host {
        family: Family::V4,
        kernel,
        pools,
    };
    match of.advertised(given, node, published)? {
        IpNet::V4(net) => Ok(net),
        IpNet::V6(_) => Err(AddressError::Nothing { family: Family::V4 }),
    }
}

/// The IPv6 address that this node advertises, found by the same rules. None where nobody asks for one: it is not given
/// and not published, and `is_used` says that no pods have IPv6.
///
/// # Errors
/// When one is asked for, and no rule names an address that this host has.
pub fn advertised_address_v6(
    given: Option<AdvertisedAddress>,
    node: &Node,
    kernel: &Snapshot,
    pools: &[IpNet],
    is_used: bool,
) -> Result<Option<Ipv6Net>, AddressError> {
    let published = node.advertised_address_v6().map(IpNet::V6);
    if !is_used && given.is_none() && published.is_none() {
        return Ok(None);
    }
    let of = Host {
        family: Family::V6,
        kernel,
        pools,
    };
    match of.advertised(given, node, published)? {
        IpNet::V4(_) => Err(AddressError::Nothing { family: Family::V6 }),
        IpNet::V6(net) => Ok(Some(net)),
    }
}

/// This host, seen through one family.
struct Host<'a> {
    family: Family,
    kernel: &'a Snapshot,
    pools: &'a [IpNet],
}

impl Host<'_> {
    fn advertised(
        &self,
        given: Option<AdvertisedAddress>,
        node: &Node,
        published: Option<IpNet>,
    ) -> Result<IpNet, AddressError> {
        let candidates = candidates(self.family, self.kernel, self.pools);
        let internal = node
            .internal_addresses()
            .find(|address| Family::of_address(*address) == self.family);
        let named = given
            .map(|address| (field(self.family), address))
            .or(internal.map(|address| ("InternalIP", address.into())));
        if let Some((origin, wanted)) = named {
            // Any link will do here, lo included: what was said on purpose is not second-guessed.
            let mut nets = self.kernel.addresses.iter().map(|address| address.net);
            return match nets.find(|net| net.addr() == wanted.address) {
                Some(net) => Ok(wanted.carried_as(net)),
                None => Err(AddressError::Absent {
                    origin,
                    address: wanted.address,
                    candidates,
                }),
            };
        }
        if let [only] = candidates.as_slice() {
            return Ok(only.net);
        }
        let kept = published.filter(|old| candidates.iter().any(|c| c.net.addr() == old.addr()));
        let error = if candidates.is_empty() {
            AddressError::Nothing { family: self.family }
        } else {
            AddressError::Ambiguous {
                node: node.metadata.name.clone(),
                family: self.family,
                candidates,
            }
        };
        match kept {
            Some(old) => {
                warn!(address = %old, %error, "keeping the address published before");
                Ok(old)
            }
            None => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{NodeAddress, annotation};
    use crate::fixtures::addressed as kernel;

    fn node(internal: &[&str]) -> Node {
        let mut node = Node::named("node1");
        node.status.addresses = internal
            .iter()
            .map(|a| NodeAddress {
                r#type: "InternalIP".to_owned(),
                address: (*a).to_owned(),
            })
            .collect();
        node
    }

    fn given(text: &str) -> Option<AdvertisedAddress> {
        AdvertisedAddress::parse(text)
    }

    #[test]
    fn the_given_address_comes_before_the_internal_one_and_that_before_the_only_candidate() {
        let two = kernel(&[("eth0", "192.168.0.113/24"), ("eth1", "192.168.3.113/24")]);
        let three = |given, node: &Node| advertised_address(given, node, &two, &[]).map(|n| n.to_string());
        assert_eq!(
            three(given("192.168.3.113"), &node(&["192.168.0.113"])),
            Ok("192.168.3.113/24".to_owned())
        );
        assert_eq!(
            three(None, &node(&["fe80::1", "192.168.0.113"])),
            Ok("192.168.0.113/24".to_owned())
        );
        let one = kernel(&[
            ("lo", "127.0.0.1/8"),
            ("eth0", "172.18.0.11/24"),
            ("tunl0", "10.65.0.1/32"),
        ]);
        let only = advertised_address(None, &node(&[]), &one, &[]).map(|n| n.to_string());
        assert_eq!(only, Ok("172.18.0.11/24".to_owned()));
    }

    #[test]
    fn a_prefix_length_that_was_not_given_is_that_of_the_link() {
        let kernel = kernel(&[("eth0", "172.18.0.11/20")]);
        let length = |text| advertised_address(given(text), &node(&[]), &kernel, &[]).map(|n| n.prefix_len());
        assert_eq!(length("172.18.0.11"), Ok(20));
        assert_eq!(length("172.18.0.11/24"), Ok(24));
    }

    #[test]
    fn several_candidates_are_an_error_that_lists_them() {
        let two = kernel(&[("eth0", "192.168.0.113/24"), ("eth1", "192.168.3.113/24")]);
        let error = advertised_address(None, &node(&[]), &two, &[])
            .expect_err("ambiguous")
            .to_string();
        for word in [
            "192.168.0.113/24 on eth0",
            "192.168.3.113/24 on eth1",
            "node.address",
            "node1",
        ] {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    #[test]
    fn several_candidates_keep_an_address_published_before_while_the_host_has_it() {
        let two = kernel(&[("eth0", "192.168.0.113/24"), ("eth1", "192.168.3.113/24")]);
        let mut known = node(&[]);
        let published = |text: &str| (annotation::IPV4_ADDRESS.to_owned(), text.to_owned());
        known.metadata.annotations.extend([published("192.168.3.113/24")]);
        let kept = advertised_address(None, &known, &two, &[]).map(|n| n.addr().to_string());
        assert_eq!(kept, Ok("192.168.3.113".to_owned()));
        known.metadata.annotations.extend([published("192.168.7.7/24")]);
        assert!(matches!(
            advertised_address(None, &known, &two, &[]),
            Err(AddressError::Ambiguous { .. })
        ));
    }

    #[test]
    fn an_address_that_the_host_lacks_is_an_error_with_what_it_has() {
        let one = kernel(&[("eth0", "172.18.0.11/24")]);
        let error = advertised_address(given("172.18.0.99"), &node(&[]), &one, &[]).expect_err("absent");
        let error = error.to_string();
        for word in ["node.address", "172.18.0.99", "172.18.0.11/24 on eth0"] {
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
    }

    #[test]
    fn addresses_of_pools_and_of_links_that_are_down_are_no_candidates() {
        let mut kernel = kernel(&[
            ("eth0", "172.18.0.11/24"),
            ("eth1", "10.65.0.9/24"),
            ("eth2", "172.19.0.1/24"),
        ]);
        if let Some(link) = kernel.links.iter_mut().find(|l| l.name == "eth2") {
            link.up = false;
        }
        let pools = ["10.65.0.0/16".parse().unwrap()];
        let found = candidates(Family::V4, &kernel, &pools);
        assert_eq!(
            found.iter().map(|c| c.link.as_str()).collect::<Vec<_>>(),
            ["eth0"]
        );
    }

    /// As of a host that has several addresses of both families.
    fn dual_stack(addresses: &[(&str, &str)]) -> Snapshot {
        let all: Vec<_> = [("eth0", "172.18.0.11/24"), ("lo", "::1/128")]
            .iter()
            .chain(addresses)
            .copied()
            .collect();
        kernel(&all)
    }

    /// What is found where IPv6 is used.
    fn found(given: Option<&str>, node: &Node, kernel: &Snapshot) -> Result<Option<String>, AddressError> {
        let given = given.and_then(AdvertisedAddress::parse);
        let pools = ["fd00:65::/64".parse().unwrap()];
        let net = advertised_address_v6(given, node, kernel, &pools, true)?;
        Ok(net.map(|net| net.to_string()))
    }

    #[test]
    fn an_ipv6_address_is_looked_for_only_where_somebody_asks_for_one() {
        let one = dual_stack(&[("eth0", "2001:db8::11/64")]);
        let asked = |given, node: &Node, is_used| {
            let net = advertised_address_v6(given, node, &one, &[], is_used).unwrap();
            net.map(|net| net.to_string())
        };
        let only = Some("2001:db8::11/64".to_owned());
        assert_eq!(asked(None, &node(&["2001:db8::11"]), false), None);
        assert_eq!(asked(None, &node(&[]), true), only);
        assert_eq!(asked(given("2001:db8::11"), &node(&[]), false), only);
        let mut known = node(&[]);
        let annotations = &mut known.metadata.annotations;
        annotations.insert(annotation::IPV6_ADDRESS.to_owned(), "2001:db8::99/64".to_owned());
        assert_eq!(asked(None, &known, false), only, "as Calico left it");
        let none = dual_stack(&[]);
        assert_eq!(
            advertised_address_v6(None, &node(&[]), &none, &[], false),
            Ok(None)
        );
    }

    #[test]
    fn of_ipv6_addresses_the_given_one_comes_first_then_the_internal_one_then_the_only_candidate() {
        let two = dual_stack(&[("eth0", "2001:db8::11/64"), ("eth1", "2001:db8:1::11/64")]);
        let named = node(&["172.18.0.11", "2001:db8:1::11", "2001:db8::11"]);
        assert_eq!(
            found(Some("2001:db8::11"), &named, &two),
            Ok(Some("2001:db8::11/64".to_owned()))
        );
        assert_eq!(
            found(Some("2001:db8::11/56"), &named, &two),
            Ok(Some("2001:db8::11/56".to_owned()))
        );
        assert_eq!(
            found(None, &named, &two),
            Ok(Some("2001:db8:1::11/64".to_owned()))
        );
        // A pod's, and one of a bridge that is not the host's, are no candidates.
        let other = [
            ("eth0", "2001:db8::11/64"),
            ("eth1", "fd00:65::7/64"),
            ("docker0", "2001:db8:9::1/64"),
        ];
        assert_eq!(
            found(None, &node(&[]), &dual_stack(&other)),
            Ok(Some("2001:db8::11/64".to_owned()))
        );
    }

    #[test]
    fn a_deprecated_ipv6_address_is_taken_only_where_it_is_named() {
        let mut renumbered = dual_stack(&[("eth0", "2001:db8::11/64"), ("eth0", "2001:db8:1::11/64")]);
        let old = renumbered.addresses[2];
        renumbered.deprecated.insert(old);
        assert_eq!(
            found(None, &node(&[]), &renumbered),
            Ok(Some("2001:db8:1::11/64".to_owned()))
        );
        let named = node(&["2001:db8::11"]);
        assert_eq!(
            found(None, &named, &renumbered),
            Ok(Some("2001:db8::11/64".to_owned()))
        );
    }

    #[test]
    fn an_ipv6_address_that_is_open_or_missing_is_an_error_that_says_what_to_set() {
        let two = dual_stack(&[("eth0", "2001:db8::11/64"), ("eth1", "2001:db8:1::11/64")]);
        for (host, named, words) in [
            (
                &two,
                &[][..],
                [
                    "2001:db8::11/64 on eth0",
                    "2001:db8:1::11/64 on eth1",
                    "set node.addressV6",
                ],
            ),
            (
                &two,
                &["2001:db8::99"],
                [
                    "InternalIP 2001:db8::99",
                    "2001:db8::11/64 on eth0",
                    "set node.addressV6",
                ],
            ),
            (
                &dual_stack(&[]),
                &[],
                ["no IPv6 address", "add one", "set node.addressV6"],
            ),
        ] {
            let error = found(None, &node(named), host)
                .expect_err("not to be known")
                .to_string();
            for word in words {
                assert!(error.contains(word), "{error:?} does not say {word:?}");
            }
        }
    }
}
