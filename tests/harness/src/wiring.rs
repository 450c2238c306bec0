//! The cables of a laboratory: the bridges that stand for networks, and the NICs of the nodes on them.

use crate::bird;
use crate::layout::{Layout, Names, Nic};
use crate::{LabError, Namespace};

/// What the cables follow from.
pub(crate) struct Wiring<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) names: &'a Names,
}

impl Wiring<'_> {
    /// The bridges, with a cable to every node. The fabric is the router between the subnets too; it knows nothing of pods.
    pub(crate) fn fabric(&self) -> Result<(), LabError> {
        let fabric = self.names.fabric();
        fabric.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")])?;
        let mut lines = vec!["link set lo up".to_owned()];
        let bridges: &[(&str, &str)] = if self.layout.two_networks {
            &[("near", "192.168.0.253/24"), ("second", "192.168.3.253/24")]
        } else {
            &[
                ("near", "172.18.0.1/24"),
                ("far", "172.19.0.1/24"),
                ("second", "192.168.3.1/24"),
            ]
        };
        for (bridge, address) in bridges {
            lines.push(format!("link add {bridge} type bridge"));
            lines.push(format!("addr add {address} dev {bridge}"));
            lines.push(format!("link set {bridge} up"));
        }
        if self.layout.dual_stack {
            lines.push("addr add 2001:db8:18::1/64 dev near nodad".to_owned());
        }
        if self.layout.bird {
            lines.extend(cable("bird", "near", "eth0", &self.names.bird()));
        }
        fabric.ip_batch(&lines)?;
        self.layout.numbers().try_for_each(|number| self.plug(number))
    }

    /// The ports of the fabric that a node has a cable to, each with its bridge and the NIC at the other end.
    fn ports(&self, number: u8) -> Vec<(String, &'static str, &'static str)> {
        let bridge = if self.layout.is_far(number) { "far" } else { "near" };
        let mut ports = vec![(format!("node{number}"), bridge, "eth0")];
        if self.layout.has_second_nic(number) {
            ports.push((format!("node{number}-b"), "second", "eth1"));
        }
        if self.layout.nic(number) == Nic::Bond {
            ports.push((format!("node{number}-c"), bridge, "eth1"));
        }
        ports
    }

    /// Connects a node with the bridges.
    pub(crate) fn plug(&self, number: u8) -> Result<(), LabError> {
        let mut lines = Vec::new();
        for (port, bridge, link) in self.ports(number) {
            if self.layout.nic(number) == Nic::Vlan {
                // Tagged on the cable; on the bridge as everybody else.
                let node = self.names.node(number);
                lines.push(format!(
                    "link add {port} type veth peer name {link} netns {}",
                    node.name()
                ));
                lines.push(format!("link set {port} up"));
                lines.push(format!("link add link {port} name {port}.100 type vlan id 100"));
                lines.push(format!("link set {port}.100 master {bridge} up"));
            } else {
                lines.extend(cable(&port, bridge, link, &self.names.node(number)));
            }
        }
        self.names.fabric().ip_batch(&lines)
    }

    /// Takes a node off the bridges; its NICs are gone with that.
    pub(crate) fn unplug(&self, number: u8) -> Result<(), LabError> {
        let ports = self.ports(number);
        let lines: Vec<_> = ports
            .iter()
            .map(|(port, ..)| format!("link del {port}"))
            .collect();
        self.names.fabric().ip_batch(&lines)
    }

    /// The addresses and routes that a node has from whoever configures the host.
    pub(crate) fn node(&self, number: u8) -> Result<(), LabError> {
        let node = self.names.node(number);
        node.sysctl(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        let mut lines = self.underlay(number);
        if self.layout.second_nic == Some(number) {
            lines.push(format!(
                "addr add 192.168.3.{}/24 dev eth1",
                number.saturating_add(10)
            ));
            lines.push("link set eth1 up".to_owned());
        }
        node.ip_batch(&lines)
    }

    /// The same for the node that runs BIRD.
    pub(crate) fn bird(&self) -> Result<(), LabError> {
        let bird = self.names.bird();
        bird.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/rp_filter", "0")])?;
        let mut lines = self.underlay(self.layout.bird_number());
        lines.extend(bird::places(self.layout));
        bird.ip_batch(&lines)
    }

    fn underlay(&self, number: u8) -> Vec<String> {
        let device = self.layout.device(number);
        let mut lines = vec!["link set lo up".to_owned()];
        let more: &[&str] = match self.layout.nic(number) {
            Nic::Ethernet => &[],
            // Smaller than the lower device, so that it shows whose MTU counts.
            Nic::Vlan => &["link add link eth0 name eth0.100 mtu 1400 type vlan id 100"],
            Nic::Bond => &[
                "link add bond0 type bond mode active-backup miimon 50",
                "link set eth0 master bond0",
                "link set eth1 master bond0",
                "link set eth1 up",
            ],
            Nic::Bridge => &["link add br0 type bridge", "link set eth0 master br0"],
        };
        lines.extend(more.iter().map(|line| (*line).to_owned()));
        lines.push(format!(
            "addr add {}/24 dev {device}",
            self.layout.first_address(number)
        ));
        lines.push("link set eth0 up".to_owned());
        if let Some(address) = self.layout.address_v6(number) {
            lines.push(format!("addr add {address}/64 dev {device} nodad"));
        }
        if device != "eth0" {
            lines.push(format!("link set {device} up"));
        }
        if self.layout.two_networks {
            lines.push("link set eth1 up".to_owned());
            if number == Layout::lone_number() {
                // The nodes of the other network are on the wire of the first one too.
                lines.push("route add 192.168.3.0/24 dev eth0".to_owned());
            } else {
                lines.push(format!("addr add {}/24 dev eth1", self.layout.address(number)));
            }
        }
        lines.push(format!("route add default via {}", self.layout.router(number)));
        lines
    }
}

/// A cable from a bridge of the fabric to a NIC of a node.
pub(crate) fn cable(port: &str, bridge: &str, link: &str, node: &Namespace) -> [String; 2] {
    [
        format!("link add {port} type veth peer name {link} netns {}", node.name()),
        format!("link set {port} master {bridge} up"),
    ]
}
