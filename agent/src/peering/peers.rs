//! The peers: those that BGPPeers name, and the nodes of the full mesh.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use culvert_bgp::config::{NextHopMode as Mode, PeerConfig};
use culvert_bgp::id::Asn;
use culvert_bgp::wire::message::Family;

use super::passwords::password;
use super::policies::Policies;
use super::{BGP_PORT, Fault, Local, Origin, OriginKind, PathTerms, Peering, Problem};
use crate::api::{AsNumber, BgpPeerSpec, GoDuration, NextHopMode, ReversePeering, SourceAddress};
use crate::cluster::{Cluster, ClusterNode, Labels};
use crate::selector::Selector;

/// Somebody to speak with.
struct Neighbour<'a> {
    address: IpAddr,
    port: Option<u16>,
    asn: Asn,
    node: Option<(&'a str, &'a ClusterNode)>,
}

/// Every other node, in a full mesh. Route reflectors are left out of it, and have none themselves.
pub(super) fn add_mesh(
    local: Local<'_>,
    cluster: &Cluster,
    policies: &mut Policies<'_>,
    peering: &mut Peering,
) {
    let reflects = |node: &ClusterNode| node.reflector_cluster.is_some();
    if !cluster.is_full_mesh() || cluster.node(local.node).is_some_and(reflects) {
        return;
    }
    let bgp = cluster.bgp().configuration();
    let resource = "BGPConfiguration default";
    let password = match password(local, cluster, bgp.node_mesh_password.as_ref()) {
        Ok(password) => password,
        Err(fault) => {
            peering.problems.insert(Problem {
                resource: resource.to_owned(),
                fault,
            });
            return;
        }
    };
    for neighbour in nodes(local, cluster, |_, node| !reflects(node)) {
        let Some(source) = local.address_for(neighbour.address) else {
            continue;
        };
        if peering.peers.contains_key(&neighbour.address) {
            // A BGPPeer says more of it.
            continue;
        }
        let mut config = config_of(&neighbour, local.speaking.paths, local, cluster);
        config.source = Some(source);
        config.password.clone_from(&password);
        config.restart_time = seconds(bgp.node_mesh_max_restart_time.as_ref());
        policies.apply(resource, &[], &mut config);
        let origin = Origin {
            kind: OriginKind::Mesh,
            node: neighbour.node.map(|(name, _)| name.to_owned()),
            resource: None,
        };
        peering.origins.insert(neighbour.address, origin);
        peering.peers.insert(neighbour.address, config);
    }
}

/// The peers that BGPPeers name. Of two for one peer the one that names this node counts, else the first by name.
pub(super) fn add_configured(
    local: Local<'_>,
    cluster: &Cluster,
    policies: &mut Policies<'_>,
    peering: &mut Peering,
) {
    let own_labels = cluster.node(local.node).map(|node| node.labels.clone());
    let own_labels = own_labels.unwrap_or_default();
    for wanted in [OriginKind::Node, OriginKind::Global] {
        for (name, spec) in cluster.bgp().peers() {
            let kind = if given(spec.node.as_ref()).is_some() || given(spec.node_selector.as_ref()).is_some()
            {
                OriginKind::Node
            } else {
                OriginKind::Global
            };
            if kind != wanted {
                continue;
            }
            let resource = format!("BGPPeer {name}");
            let neighbours = match neighbours(spec, local, cluster, &own_labels) {
                Ok(neighbours) => neighbours,
                Err(fault) => {
                    peering.problems.insert(Problem { resource, fault });
                    continue;
                }
            };
            for neighbour in neighbours.values() {
                if let Err(fault) = add(name, spec, kind, neighbour, (local, cluster), policies, peering) {
                    let resource = resource.clone();
                    peering.problems.insert(Problem { resource, fault });
                }
            }
        }
    }
}

/// Adds one neighbour of the BGPPeer of this name.
fn add(
    name: &str,
    spec: &BgpPeerSpec,
    kind: OriginKind,
    neighbour: &Neighbour<'_>,
    (local, cluster): (Local<'_>, &Cluster),
    policies: &mut Policies<'_>,
    peering: &mut Peering,
) -> Result<(), Fault> {
    let address = neighbour.address;
    let by = peering.origins.get(&address);
    if let Some(by) = by.and_then(|origin| origin.resource.clone()) {
        return Err(Fault::Twice { address, by });
    }
    let mut faults = Vec::new();
    let annotations = cluster.bgp().annotations_of_peer(name);
    let paths = local.speaking.paths.overlaid(annotations, &mut faults);
    let resource = format!("BGPPeer {name}");
    peering.problems.extend(faults.into_iter().map(|fault| Problem {
        resource: resource.clone(),
        fault,
    }));
    let mut config = configured(spec, neighbour, paths, local, cluster)?;
    policies.apply(&resource, &spec.filters, &mut config);
    let gateway = spec.reachable_by.filter(|_| spec.peer_ip.is_some());
    peering.gateways.extend(gateway.map(|gateway| (address, gateway)));
    peering.peers.insert(address, config);
    let origin = Origin {
        kind,
        node: neighbour.node.map(|(name, _)| name.to_owned()),
        resource: Some(name.to_owned()),
    };
    peering.origins.insert(address, origin);
    Ok(())
}

/// Whom a BGPPeer makes this node speak with, by address.
fn neighbours<'a>(
    spec: &BgpPeerSpec,
    local: Local<'_>,
    cluster: &'a Cluster,
    own_labels: &Labels,
) -> Result<BTreeMap<IpAddr, Neighbour<'a>>, Fault> {
    let selector = |field: &'static str, text: Option<&String>| {
        Selector::parse(text.map_or("", String::as_str)).map_err(|error| Fault::Selector {
            field,
            reason: error.to_string(),
        })
    };
    let node_selector = selector("nodeSelector", spec.node_selector.as_ref())?;
    let peer_selector = selector("peerSelector", spec.peer_selector.as_ref())?;
    let node = given(spec.node.as_ref());
    let has = |name: &str, labels: &Labels| match node {
        Some(node) => node == name,
        None => node_selector.matches(labels),
    };
    let selected = has(local.node, own_labels);
    let mut out = BTreeMap::new();
    if given(spec.peer_selector.as_ref()).is_some() {
        let reverse = spec.reverse_peering.unwrap_or_default() == ReversePeering::Auto;
        let reversed = reverse && peer_selector.matches(own_labels);
        let found = nodes(local, cluster, |name, node| {
            (selected && peer_selector.matches(&node.labels)) || (reversed && has(name, &node.labels))
        });
        out.extend(found.into_iter().map(|neighbour| (neighbour.address, neighbour)));
        return Ok(out);
    }
    if !selected {
        return Ok(out);
    }
    if given(spec.local_workload_selector.as_ref()).is_some() {
        return Err(Fault::Workloads {
            field: "localWorkloadSelector",
        });
    }
    let asn = spec.as_number.and_then(|number| Asn::new(number.0));
    let (Some(peer), Some(asn)) = (spec.peer_ip, asn) else {
        return Err(Fault::NoPeer);
    };
    // A resource for all nodes may name one of them.
    if local.addresses().any(|own| own == peer.address) {
        return Ok(out);
    }
    let node = cluster
        .nodes()
        .find(|(_, node)| node.advertised().any(|address| address == peer.address));
    let neighbour = Neighbour {
        address: peer.address,
        port: peer.port,
        asn,
        node,
    };
    out.insert(peer.address, neighbour);
    Ok(out)
}

/// The other nodes that are `wanted`, each by its addresses of the families that this node has an address of.
fn nodes<'a>(
    local: Local<'_>,
    cluster: &'a Cluster,
    wanted: impl Fn(&str, &ClusterNode) -> bool,
) -> Vec<Neighbour<'a>> {
    let by_address = cluster.nodes_by_address();
    let mut out = Vec::new();
    for (name, node) in cluster.nodes() {
        if name == local.node || !wanted(name, node) {
            continue;
        }
        let counts = node
            .advertised()
            .filter(|address| local.address_for(*address).is_some_and(|own| own != *address))
            // Of two nodes with one address, the first by name is taken at its word.
            .filter(|address| by_address.get(address).is_none_or(|first| *first == name));
        out.extend(counts.map(|address| Neighbour {
            address,
            port: None,
            asn: cluster.as_number(node),
            node: Some((name, node)),
        }));
    }
    out
}

/// What holds for every neighbour, however it came to be one.
fn config_of(neighbour: &Neighbour<'_>, paths: PathTerms, local: Local<'_>, cluster: &Cluster) -> PeerConfig {
    let mut config = PeerConfig::new(neighbour.address, neighbour.asn);
    // As Calico has it: a session for each family, over it.
    let family = match neighbour.address {
        IpAddr::V4(_) => Family::IPV4_UNICAST,
        IpAddr::V6(_) => Family::IPV6_UNICAST,
    };
    config.families = [(family, paths.of_family())].into();
    config.long_lived_stale_time = local.speaking.long_lived_stale_time;
    let of_node = neighbour
        .node
        .and_then(|(name, _)| cluster.bgp().listen_port(name));
    let at_node = neighbour
        .node
        .is_some()
        .then_some(local.speaking.port.unwrap_or(BGP_PORT));
    config.port = neighbour.port.or(of_node).or(at_node);
    config
}

fn configured(
    spec: &BgpPeerSpec,
    neighbour: &Neighbour<'_>,
    paths: PathTerms,
    local: Local<'_>,
    cluster: &Cluster,
) -> Result<PeerConfig, Fault> {
    let mut config = config_of(neighbour, paths, local, cluster);
    config.local_asn = spec
        .local_as_number
        .and_then(|AsNumber(number)| Asn::new(number))
        .filter(|asn| *asn != local.speaking.asn);
    let internal = neighbour.asn == config.local_asn.unwrap_or(local.speaking.asn);
    config.source = match spec.source_address.unwrap_or_default() {
        SourceAddress::None => None,
        SourceAddress::UseNodeIP => {
            let peer = neighbour.address;
            Some(local.address_for(peer).ok_or(Fault::NoSource { peer })?)
        }
    };
    config.next_hop = match spec.next_hop_mode.unwrap_or_default() {
        NextHopMode::Own => Mode::Own,
        NextHopMode::Keep => Mode::Keep,
        // As Calico has it: towards peers in another AS alone.
        NextHopMode::Auto if spec.keep_original_next_hop && !internal => Mode::Keep,
        NextHopMode::Auto => Mode::Auto,
    };
    config.password = password(local, cluster, spec.password.as_ref())?;
    config.restart_time = seconds(spec.max_restart_time.as_ref());
    config.keepalive = spec.keepalive_time.as_ref().map(GoDuration::get);
    let allowed = spec.num_allowed_local_as_numbers.unwrap_or(0);
    config.allowed_own_as = u8::try_from(allowed.clamp(0, 255)).unwrap_or(u8::MAX);
    config.ttl_security = spec
        .ttl_security
        .and_then(|hops| u8::try_from(hops).ok())
        .filter(|hops| *hops > 0);
    config.reflector_client = reflector_client(neighbour, internal, local, cluster);
    Ok(config)
}

/// The cluster in which the neighbour is a client of this node, if this node is a route reflector: one in this AS that is
/// no reflector of the same cluster.
fn reflector_client(
    neighbour: &Neighbour<'_>,
    internal: bool,
    local: Local<'_>,
    cluster: &Cluster,
) -> Option<Ipv4Addr> {
    let own = cluster.node(local.node)?.reflector_cluster?;
    let theirs = neighbour.node.and_then(|(_, node)| node.reflector_cluster);
    (internal && theirs != Some(own)).then_some(own)
}

/// A restart time in whole seconds, as far as RFC 4724 §3 has bits for it.
fn seconds(time: Option<&GoDuration>) -> Option<u16> {
    let seconds = time?.get().min(Duration::from_secs(4095)).as_secs();
    u16::try_from(seconds).ok()
}

/// A text that is not empty.
fn given(text: Option<&String>) -> Option<&str> {
    text.map(|text| text.trim()).filter(|text| !text.is_empty())
}
