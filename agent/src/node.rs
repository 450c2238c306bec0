//! This node: the address it is known by, and its Node object.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use culvert_bgp::id::Asn;
use ipnet::Ipv4Net;
use tracing::field::display;
use tracing::{info, warn};

use crate::api::{AdvertisedAddress, Node, Resource, annotation};
use crate::datastore::{self, Datastore, DatastoreError};
use crate::fib::{Link, Snapshot};

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
    pub net: Ipv4Net,
}

/// Why it is not known which address to advertise.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The address exists nowhere on this host.
    #[error(
        "{origin} {address} is on no link of this host, which has {}; \
         set node.address to one of these or add the address",
        list(.candidates)
    )]
    Absent {
        /// Where it comes from.
        origin: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// What this host has.
        candidates: Vec<Candidate>,
    },
    /// There are several, and nothing says which.
    #[error(
        "several addresses could be this node's: {}; set node.address to one of them, \
         or give Node {node} an InternalIP",
        list(.candidates)
    )]
    Ambiguous {
        /// The node.
        node: String,
        /// What this host has.
        candidates: Vec<Candidate>,
    },
    /// There is none.
    #[error("this host has no IPv4 address that could be this node's; add one, then set node.address to it")]
    Nothing,
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

/// The addresses of this host that could be this node's: on a link that is up and is a node's, not loopback or
/// link-local, and in none of `pools`.
#[must_use]
pub fn candidates(kernel: &Snapshot, pools: &[Ipv4Net]) -> Vec<Candidate> {
    let usable = |link: &Link| link.up && !OTHERS_LINKS.iter().any(|start| link.name.starts_with(start));
    addresses(kernel)
        .filter(|(link, _)| usable(link))
        .map(|(link, net)| Candidate {
            link: link.name.clone(),
            net,
        })
        .filter(|c| !c.net.addr().is_loopback() && !c.net.addr().is_link_local())
        .filter(|c| !pools.iter().any(|pool| pool.contains(&c.net.addr())))
        .collect()
}

fn addresses(kernel: &Snapshot) -> impl Iterator<Item = (&Link, Ipv4Net)> {
    kernel.addresses.iter().filter_map(|address| {
        let ipnet::IpNet::V4(net) = address.net else {
            return None;
        };
        let link = kernel.links.iter().find(|link| link.index == address.link)?;
        Some((link, net))
    })
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
    pools: &[Ipv4Net],
) -> Result<Ipv4Net, AddressError> {
    let candidates = candidates(kernel, pools);
    let internal = node.internal_addresses().find_map(|address| match address {
        std::net::IpAddr::V4(address) => Some(AdvertisedAddress {
            address,
            prefix_length: None,
        }),
        std::net::IpAddr::V6(_) => None,
    });
    let named = given
        .map(|a| ("node.address", a))
        .or(internal.map(|a| ("InternalIP", a)));
    if let Some((origin, wanted)) = named {
        // Any link will do here, lo included: what was said on purpose is not second-guessed.
        let carried = addresses(kernel)
            .map(|(_, net)| net)
            .find(|net| net.addr() == wanted.address);
        let length = |net: Ipv4Net| wanted.prefix_length.unwrap_or(net.prefix_len());
        return match carried {
            Some(net) => Ok(Ipv4Net::new(wanted.address, length(net)).unwrap_or(net)),
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
    let error = if candidates.is_empty() {
        AddressError::Nothing
    } else {
        AddressError::Ambiguous {
            node: node.metadata.name.clone(),
            candidates: candidates.clone(),
        }
    };
    match node
        .advertised_address()
        .filter(|old| candidates.iter().any(|c| c.net.addr() == old.addr()))
    {
        Some(old) => {
            warn!(address = %old, %error, "keeping the address published before");
            Ok(old)
        }
        None => Err(error),
    }
}

/// What a node says of itself to the others, in annotations of its Node object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// The advertised address.
    pub address: Option<Ipv4Net>,
    /// The AS number, where the node was given one of its own.
    pub as_number: Option<Asn>,
    /// The address of its tunnel device.
    pub tunnel_address: Option<Ipv4Addr>,
}

impl Announcement {
    /// The annotations of it that `node` does not have yet.
    fn missing_in(&self, node: &Node) -> BTreeMap<String, Option<String>> {
        let values = [
            (annotation::IPV4_ADDRESS, self.address.map(|a| a.to_string())),
            (annotation::AS_NUMBER, self.as_number.map(|a| a.to_string())),
            (
                annotation::IPIP_TUNNEL_ADDRESS,
                self.tunnel_address.map(|a| a.to_string()),
            ),
        ];
        let there = &node.metadata.annotations;
        let missing = values
            .into_iter()
            .filter(|(name, value)| value.is_some() && there.get(*name) != value.as_ref());
        missing.map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What becomes of a Node object that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is created: the node is new.
    Create,
    /// It stays away: somebody gave the node up while its agent ran.
    Leave,
}

/// Publishes `announcement` in the Node object of this name, and touches nothing else in it. What is published already is
/// not written again.
///
/// # Errors
/// Those of the datastore; [`DatastoreError::NoNode`] where nobody but the cluster makes Node objects.
pub async fn publish(
    store: &Arc<dyn Datastore>,
    name: &str,
    announcement: &Announcement,
    missing: Missing,
) -> Result<(), DatastoreError> {
    let found: Option<Node> = datastore::get(store.as_ref(), name).await?;
    let node = match found {
        Some(node) => node,
        None if missing == Missing::Leave => return Ok(()),
        None if !store.makes_nodes() => {
            return Err(DatastoreError::NoNode {
                name: name.to_owned(),
            });
        }
        None => {
            let node = Node::named(name);
            match store.create(node.clone().into_object()).await {
                // That somebody else was first is as good.
                Ok(_) | Err(DatastoreError::AlreadyExists { .. }) => node,
                Err(error) => return Err(error),
            }
        }
    };
    let annotations = announcement.missing_in(&node);
    if annotations.is_empty() {
        return Ok(());
    }
    store.annotate(&node.key(), &annotations).await?;
    let (address, tunnel) = (
        announcement.address.map(display),
        announcement.tunnel_address.map(display),
    );
    info!(node = name, address, tunnel, "node published");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NodeAddress;
    use crate::fib::Address;

    fn kernel(addresses: &[(&str, &str)]) -> Snapshot {
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
        kernel
    }

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
        let found = candidates(&kernel, &pools);
        assert_eq!(
            found.iter().map(|c| c.link.as_str()).collect::<Vec<_>>(),
            ["eth0"]
        );
    }
}
