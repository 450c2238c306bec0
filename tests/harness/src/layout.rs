//! What a laboratory is made of: how many nodes, where they are, and what their names and addresses are.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::{LabError, Namespace};

/// The pods' addresses.
pub const POOL: &str = "10.65.0.0/16";
/// The pods' IPv6 addresses, where they have some.
pub const POOL_V6: &str = "fd00:65::/64";
/// The cluster's AS number.
pub const AS_NUMBER: u32 = 64512;
/// The block that a BIRD node has, whose addresses no agent hands out.
pub const BIRD_BLOCK: &str = "10.65.200.0/26";
/// An address in [`BIRD_BLOCK`] that answers.
pub const BIRD_POD: Ipv4Addr = Ipv4Addr::new(10, 65, 200, 1);
/// How many nodes a laboratory may have.
pub const NODES: RangeInclusive<u8> = 2..=20;

/// When packets between pods travel in packets between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Always.
    Ipip,
    /// Between subnets; some of the nodes are behind a router, on a subnet of their own.
    CrossSubnet,
    /// Never.
    Direct,
}

impl Mode {
    /// What an IPPool calls it.
    #[must_use]
    pub fn ipip_mode(self) -> &'static str {
        match self {
            Mode::Ipip => "Always",
            Mode::CrossSubnet => "CrossSubnet",
            Mode::Direct => "Never",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Ipip => "ipip",
            Mode::CrossSubnet => "crosssubnet",
            Mode::Direct => "direct",
        })
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Mode::Ipip, Mode::CrossSubnet, Mode::Direct];
        let found = all.into_iter().find(|mode| mode.to_string() == text);
        found.ok_or_else(|| format!("{text} is no mode: ipip, crosssubnet and direct are"))
    }
}

/// The kind of link that carries the address by which a node is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nic {
    /// `eth0` itself.
    Ethernet,
    /// A VLAN on it, `eth0.100`.
    Vlan,
    /// `bond0`, of which `eth0` is the active half and `eth1` the other.
    Bond,
    /// A bridge with it as a port, `br0`.
    Bridge,
}

/// What a laboratory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many nodes run an agent, see [`NODES`].
    pub nodes: u8,
    /// When their packets are encapsulated.
    pub mode: Mode,
    /// The node that has a second NIC on a network of its own (192.168.3.0/24), by number from 1.
    pub second_nic: Option<u8>,
    /// Whether one more node, without an agent, runs BIRD 2.
    pub bird: bool,
    /// Whether every node has two NICs, on 192.168.0.0/24 and on 192.168.3.0/24, and is known by its address on the second;
    /// but for [`Layout::lone_number`], which has none there and is known by that on the first.
    pub two_networks: bool,
    /// Whether every node has an IPv6 address as well, and there is a pool of IPv6.
    pub dual_stack: bool,
    /// Whether the first nodes are known by an address on a VLAN, a bond and a bridge, one each ([`Layout::nic`]).
    pub stacked_nics: bool,
}

impl Layout {
    /// Three nodes, one of which has a second NIC.
    #[must_use]
    pub const fn new(mode: Mode) -> Self {
        Self {
            nodes: 3,
            mode,
            second_nic: Some(2),
            bird: false,
            two_networks: false,
            dual_stack: false,
            stacked_nics: false,
        }
    }

    /// Three nodes that are known by an address on a VLAN, on a bond and on a bridge.
    #[must_use]
    pub const fn on_stacked_nics(mode: Mode) -> Self {
        Self {
            second_nic: None,
            stacked_nics: true,
            ..Self::new(mode)
        }
    }

    /// Five nodes on two networks each, one of which lacks its second address.
    #[must_use]
    pub const fn on_two_networks() -> Self {
        Self {
            nodes: 5,
            second_nic: None,
            two_networks: true,
            ..Self::new(Mode::Ipip)
        }
    }

    /// Of nodes on two networks the one that has no address on the second.
    #[must_use]
    pub const fn lone_number() -> u8 {
        2
    }

    /// Whether it can be built.
    pub(crate) fn check(&self) -> Result<(), LabError> {
        if !NODES.contains(&self.nodes) {
            return Err(LabError::Layout("a laboratory has 2 to 20 nodes"));
        }
        if self.stacked_nics && (self.two_networks || self.second_nic.is_some()) {
            return Err(LabError::Layout("nodes with stacked NICs have no others"));
        }
        if self.two_networks && (self.bird || self.second_nic.is_some() || self.mode != Mode::Ipip) {
            return Err(LabError::Layout(
                "nodes on two networks have IPIP and nothing else besides",
            ));
        }
        if self.second_nic.is_some_and(|n| n == 0 || n > self.nodes) {
            return Err(LabError::Layout(
                "the node with the second NIC is none of the nodes",
            ));
        }
        Ok(())
    }

    /// The numbers of the nodes that run an agent, from 1.
    pub fn numbers(&self) -> RangeInclusive<u8> {
        1..=self.nodes
    }

    /// The number that a BIRD node has, after those of all the others.
    #[must_use]
    pub fn bird_number(&self) -> u8 {
        self.nodes.saturating_add(1)
    }

    /// Whether this node is on the subnet behind the router: the last third of the nodes, where subnets matter.
    #[must_use]
    pub fn is_far(&self, number: u8) -> bool {
        let near = self.nodes - self.nodes.div_ceil(3);
        self.mode == Mode::CrossSubnet && number > near && number <= self.nodes
    }

    /// The kind of NIC that this node is known by.
    #[must_use]
    pub fn nic(&self, number: u8) -> Nic {
        match number {
            1 if self.stacked_nics => Nic::Vlan,
            2 if self.stacked_nics => Nic::Bond,
            3 if self.stacked_nics => Nic::Bridge,
            _ => Nic::Ethernet,
        }
    }

    /// The name of this node's first NIC that has an address.
    #[must_use]
    pub fn device(&self, number: u8) -> &'static str {
        match self.nic(number) {
            Nic::Ethernet => "eth0",
            Nic::Vlan => "eth0.100",
            Nic::Bond => "bond0",
            Nic::Bridge => "br0",
        }
    }

    /// Whether this node has two NICs.
    pub(crate) fn has_second_nic(&self, number: u8) -> bool {
        self.two_networks || self.second_nic == Some(number)
    }

    /// The address that this node has on its first NIC.
    #[must_use]
    pub fn first_address(&self, number: u8) -> Ipv4Addr {
        if self.two_networks {
            Ipv4Addr::new(192, 168, 0, number.saturating_add(109))
        } else {
            self.address(number)
        }
    }

    /// The address by which the others know this node.
    #[must_use]
    pub fn address(&self, number: u8) -> Ipv4Addr {
        if self.two_networks {
            let network = if number == Self::lone_number() { 0 } else { 3 };
            return Ipv4Addr::new(192, 168, network, number.saturating_add(109));
        }
        let subnet = if self.is_far(number) { 19 } else { 18 };
        Ipv4Addr::new(172, subnet, 0, number.saturating_add(10))
    }

    /// The IPv6 address by which the others know this node.
    #[must_use]
    pub fn address_v6(&self, number: u8) -> Option<Ipv6Addr> {
        let subnet = if self.is_far(number) { 19 } else { 18 };
        let address = Ipv6Addr::new(0x2001, 0xdb8, subnet, 0, 0, 0, 0, u16::from(number) + 10);
        self.dual_stack.then_some(address)
    }

    /// The router of this node's subnet.
    #[must_use]
    pub fn router(&self, number: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.address(number).octets();
        Ipv4Addr::new(a, b, c, if self.two_networks { 253 } else { 1 })
    }

    /// Whether a packet between pods on these nodes has to travel in a packet between the nodes.
    #[must_use]
    pub fn tunnelled(&self, from: u8, to: u8) -> bool {
        match self.mode {
            Mode::Ipip => true,
            Mode::CrossSubnet => self.is_far(from) != self.is_far(to),
            Mode::Direct => false,
        }
    }
}

/// What the namespaces of one laboratory are called: `PREFIX-node1`, `PREFIX-n1p1`, …
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) prefix: String,
}

impl Names {
    /// The bridges, and the router between the subnets.
    pub(crate) fn fabric(&self) -> Namespace {
        Namespace::named(format!("{}-fabric", self.prefix))
    }

    pub(crate) fn node(&self, number: u8) -> Namespace {
        Namespace::named(format!("{}-node{number}", self.prefix))
    }

    pub(crate) fn pod(&self, name: &str) -> Namespace {
        Namespace::named(format!("{}-{name}", self.prefix))
    }

    pub(crate) fn bird(&self) -> Namespace {
        Namespace::named(format!("{}-bird", self.prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_the_addresses_of_the_examples() {
        let layout = Layout::new(Mode::Ipip);
        let addresses: Vec<_> = layout.numbers().map(|n| layout.address(n).to_string()).collect();
        assert_eq!(addresses, ["172.18.0.11", "172.18.0.12", "172.18.0.13"]);
    }

    #[test]
    fn nodes_on_two_networks_are_known_by_the_second_but_for_one() {
        let layout = Layout::on_two_networks();
        let known_by: Vec<_> = layout.numbers().map(|n| layout.address(n).to_string()).collect();
        let third = |n: u8| format!("192.168.3.{n}");
        assert_eq!(
            known_by,
            [
                third(110),
                "192.168.0.111".to_owned(),
                third(112),
                third(113),
                third(114)
            ]
        );
        assert_eq!(layout.first_address(4).to_string(), "192.168.0.113");
        assert!(layout.check().is_ok());
    }

    #[test]
    fn where_subnets_matter_there_are_nodes_on_both() {
        for nodes in NODES {
            let layout = Layout {
                nodes,
                ..Layout::new(Mode::CrossSubnet)
            };
            let far = layout.numbers().filter(|n| layout.is_far(*n)).count();
            assert!(
                far >= 1 && far < usize::from(nodes),
                "{nodes} nodes, {far} of them far"
            );
            assert!(layout.tunnelled(1, nodes) && !layout.tunnelled(1, 1));
            assert!(!layout.is_far(layout.bird_number()), "BIRD is on the near subnet");
        }
    }

    #[test]
    fn a_layout_that_cannot_be_built_is_refused() {
        let layout = Layout::new(Mode::Ipip);
        assert!(layout.check().is_ok());
        assert!(Layout { nodes: 1, ..layout }.check().is_err());
        assert!(Layout { nodes: 21, ..layout }.check().is_err());
        assert!(
            Layout {
                second_nic: Some(4),
                ..layout
            }
            .check()
            .is_err()
        );
    }

    #[test]
    fn a_mode_reads_as_it_is_written() {
        for mode in [Mode::Ipip, Mode::CrossSubnet, Mode::Direct] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert!("vxlan".parse::<Mode>().is_err());
    }
}
