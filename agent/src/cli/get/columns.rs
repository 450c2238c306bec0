//! The columns of each kind: those of calicoctl where it has some.

use crate::api::{BgpFilterSpec, BgpPeerSpec, EncapsulationMode, IpPoolSpec, Kind, Node, Object};
use crate::cluster::Cluster;
use culvert_ipam::affinity::AffinityState;

/// The names of the columns.
pub(super) fn header(kind: Kind, wide: bool) -> &'static [&'static str] {
    match (kind, wide) {
        (Kind::IpPool, false) => &["NAME", "CIDR", "SELECTOR"],
        (Kind::IpPool, true) => &[
            "NAME",
            "CIDR",
            "NAT",
            "IPIPMODE",
            "VXLANMODE",
            "DISABLED",
            "DISABLEBGPEXPORT",
            "SELECTOR",
            "ASSIGNMENTMODE",
        ],
        (Kind::IpReservation, _) => &["NAME", "CIDRS"],
        (Kind::Node, true) => &["NAME", "ASN", "IPV4", "IPV6"],
        (Kind::BgpConfiguration, _) => &["NAME", "LOGSEVERITY", "MESHENABLED", "ASNUMBER"],
        (Kind::IpamBlock, false) => &["NAME", "CIDR", "AFFINITY", "IN USE", "FREE"],
        (Kind::IpamBlock, true) => &[
            "NAME", "CIDR", "AFFINITY", "IN USE", "FREE", "CLAIMED", "SEQUENCE",
        ],
        (Kind::BlockAffinity, false) => &["NAME", "CIDR", "NODE", "STATE"],
        (Kind::BlockAffinity, true) => &["NAME", "CIDR", "NODE", "STATE", "TYPE", "DELETED"],
        (Kind::IpamHandle, _) => &["NAME", "HANDLE", "ADDRESSES", "BLOCKS"],
        (Kind::IpamConfig, _) => &["NAME", "STRICTAFFINITY", "AUTOALLOCATEBLOCKS", "MAXBLOCKSPERHOST"],
        (Kind::BgpPeer, _) => &["NAME", "PEERIP", "NODE", "ASN"],
        (Kind::BgpFilter, _) => &["NAME", "NUMEXPORTV4", "NUMIMPORTV4", "NUMEXPORTV6", "NUMIMPORTV6"],
        (Kind::Lease, _) => &["NAME", "NAMESPACE", "HOLDER"],
        (Kind::Service | Kind::EndpointSlice | Kind::Secret | Kind::Pod, _) => &["NAME", "NAMESPACE"],
        _ => &["NAME"],
    }
}

/// What stands in them for `object`. `cluster` tells what holds for a node that says nothing itself.
pub(super) fn row(object: &Object, wide: bool, cluster: &Cluster) -> Vec<String> {
    let mut cells = vec![object.metadata().name.clone()];
    match object {
        Object::IpPool(pool) => cells.extend(pool_cells(&pool.spec, wide)),
        Object::IpReservation(reservation) => cells.push(reservation.spec.reserved_cidrs.join(",")),
        Object::Node(node) if wide => cells.extend(node_cells(node, cluster)),
        Object::BgpConfiguration(bgp) => {
            let bgp = &bgp.spec;
            cells.extend([
                text_of(bgp.unknown.get("logSeverityScreen")),
                bgp.node_to_node_mesh_enabled.map_or_else(String::new, yes_or_no),
                bgp.as_number
                    .map_or_else(String::new, |number| number.0.to_string()),
            ]);
        }
        Object::IpamBlock(block) => cells.extend(block_cells(&block.spec, wide)),
        Object::BlockAffinity(affinity) => {
            let affinity = &affinity.spec;
            cells.extend([
                affinity.cidr.to_string(),
                affinity.node.clone(),
                state(affinity.state).to_owned(),
            ]);
            if wide {
                // Rows of older versions have no type, and mean this one.
                cells.push(affinity.r#type.clone().unwrap_or_else(|| "host".to_owned()));
                cells.push(affinity.deleted.clone());
            }
        }
        Object::IpamHandle(handle) => {
            let blocks: Vec<String> = handle.spec.block.keys().map(ToString::to_string).collect();
            let addresses: u64 = handle.spec.block.values().map(|count| u64::from(*count)).sum();
            cells.extend([
                handle.spec.handle_id.clone(),
                addresses.to_string(),
                blocks.join(","),
            ]);
        }
        Object::IpamConfig(config) => cells.extend([
            yes_or_no(config.spec.strict_affinity),
            yes_or_no(config.spec.auto_allocate_blocks),
            config.spec.max_blocks_per_host.to_string(),
        ]),
        Object::BgpPeer(peer) => cells.extend(peer_cells(&peer.spec)),
        Object::BgpFilter(filter) => cells.extend(filter_cells(&filter.spec)),
        Object::Service(_) | Object::EndpointSlice(_) | Object::Secret(_) | Object::Pod(_) => {
            cells.push(object.key().namespace.unwrap_or_default());
        }
        Object::Lease(lease) => {
            cells.push(object.key().namespace.unwrap_or_default());
            cells.push(lease.spec.holder().unwrap_or_default().to_owned());
        }
        Object::Node(_) | Object::Namespace(_) => {}
    }
    cells
}

fn block_cells(block: &culvert_ipam::block::Block, wide: bool) -> Vec<String> {
    let in_use = block.allocations.iter().flatten().count();
    let mut cells = vec![
        block.cidr.to_string(),
        block.affinity.clone().unwrap_or_default(),
        in_use.to_string(),
        block.allocations.len().saturating_sub(in_use).to_string(),
    ];
    if wide {
        cells.push(block.affinity_claim_time.clone().unwrap_or_default());
        cells.push(block.sequence_number.to_string());
    }
    cells
}

fn filter_cells(filter: &BgpFilterSpec) -> [String; 4] {
    let lists = [
        &filter.export_v4,
        &filter.import_v4,
        &filter.export_v6,
        &filter.import_v6,
    ];
    lists.map(|rules| rules.len().to_string())
}

fn peer_cells(peer: &BgpPeerSpec) -> [String; 3] {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
    let address = peer.peer_ip.map(|peer| peer.to_string());
    let nodes = given(&peer.node).or_else(|| given(&peer.node_selector));
    let asn = peer.as_number.map(|number| number.to_string());
    [
        address.or_else(|| given(&peer.peer_selector)).unwrap_or_default(),
        nodes.unwrap_or_else(|| "(global)".to_owned()),
        asn.unwrap_or_default(),
    ]
}

fn pool_cells(pool: &IpPoolSpec, wide: bool) -> Vec<String> {
    // Nothing selects every node, and calicoctl shows it as what it means.
    let selector = pool.node_selector.as_deref().filter(|s| !s.trim().is_empty());
    let selector = selector.unwrap_or("all()").to_owned();
    let cidr = pool.cidr.to_string();
    if !wide {
        return vec![cidr, selector];
    }
    let assignment = if pool.is_manual() { "Manual" } else { "Automatic" };
    vec![
        cidr,
        yes_or_no(pool.nat_outgoing),
        mode(pool.ipip_mode).to_owned(),
        mode(pool.vxlan_mode).to_owned(),
        yes_or_no(pool.disabled),
        yes_or_no(pool.disable_bgp_export),
        selector,
        assignment.to_owned(),
    ]
}

/// The AS number in parentheses is the cluster's.
fn node_cells(node: &Node, cluster: &Cluster) -> [String; 3] {
    let own = node.as_number().map(|number| number.to_string());
    [
        own.unwrap_or_else(|| format!("({})", cluster.default_as_number())),
        node.advertised_address()
            .map_or_else(String::new, |a| a.to_string()),
        node.metadata
            .annotations
            .get("projectcalico.org/IPv6Address")
            .cloned()
            .unwrap_or_default(),
    ]
}

fn mode(mode: EncapsulationMode) -> &'static str {
    match mode {
        EncapsulationMode::Never => "Never",
        EncapsulationMode::Always => "Always",
        EncapsulationMode::CrossSubnet => "CrossSubnet",
    }
}

fn state(state: AffinityState) -> &'static str {
    match state {
        AffinityState::Pending => "pending",
        AffinityState::Confirmed => "confirmed",
        AffinityState::PendingDeletion => "pendingDeletion",
    }
}

fn yes_or_no(value: bool) -> String {
    value.to_string()
}

fn text_of(value: Option<&serde_json::Value>) -> String {
    value
        .and_then(serde_json::Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: Kind, manifest: &str) -> Object {
        let body: serde_yaml::Value = serde_yaml::from_str(manifest).unwrap();
        Object::deserialize(kind, body).unwrap()
    }

    /// Whether an object of `kind` fills its columns with these cells, narrow and wide.
    fn check(kind: Kind, manifest: &str, narrow: &[&str], wide: &[&str]) {
        let object = object(kind, manifest);
        for (is_wide, expected) in [(false, narrow), (true, wide)] {
            assert_eq!(row(&object, is_wide, &Cluster::default()), expected, "{kind:?}");
            assert_eq!(header(kind, is_wide).len(), expected.len(), "{kind:?}");
        }
    }

    #[test]
    fn pools_nodes_and_configurations_stand_in_the_columns_of_calicoctl() {
        check(
            Kind::IpPool,
            "{metadata: {name: p}, spec: {cidr: 10.65.0.0/16, ipipMode: CrossSubnet, natOutgoing: true}}",
            &["p", "10.65.0.0/16", "all()"],
            &[
                "p",
                "10.65.0.0/16",
                "true",
                "CrossSubnet",
                "Never",
                "false",
                "false",
                "all()",
                "Automatic",
            ],
        );
        check(
            Kind::Node,
            "{metadata: {name: n, annotations: {projectcalico.org/IPv4Address: 192.168.3.110/24}}}",
            &["n"],
            &["n", "(64512)", "192.168.3.110/24", ""],
        );
        let bgp = ["default", "Info", "true", "65001"];
        check(
            Kind::BgpConfiguration,
            "{metadata: {name: default}, spec: {logSeverityScreen: Info, nodeToNodeMeshEnabled: true, asNumber: 65001}}",
            &bgp,
            &bgp,
        );
    }

    #[test]
    fn what_allocation_writes_has_columns_of_its_own() {
        let block = ["10-65-0-0-30", "10.65.0.0/30", "host:n", "1", "3"];
        check(
            Kind::IpamBlock,
            "{metadata: {name: 10-65-0-0-30}, spec: {cidr: 10.65.0.0/30, affinity: 'host:n', \
             allocations: [0, null, null, null], unallocated: [1, 2, 3], attributes: [{handle_id: h}], \
             sequenceNumber: 18014398509481984, affinityClaimTime: '2026-11-21T09:00:00Z'}}",
            &block,
            &[&block[..], &["2026-11-21T09:00:00Z", "18014398509481984"]].concat(),
        );
        let affinity = ["n-10-65-0-0-26", "10.65.0.0/26", "n", "pendingDeletion"];
        check(
            Kind::BlockAffinity,
            "{metadata: {name: n-10-65-0-0-26}, spec: {cidr: 10.65.0.0/26, node: n, state: pendingDeletion}}",
            &affinity,
            &[&affinity[..], &["host", "false"]].concat(),
        );
        let handle = ["h", "h", "3", "10.65.0.0/26,10.65.1.0/26"];
        check(
            Kind::IpamHandle,
            "{metadata: {name: h}, spec: {handleID: h, block: {10.65.0.0/26: 2, 10.65.1.0/26: 1}}}",
            &handle,
            &handle,
        );
        let config = ["default", "true", "true", "4"];
        check(
            Kind::IpamConfig,
            "{metadata: {name: default}, spec: {strictAffinity: true, autoAllocateBlocks: true, maxBlocksPerHost: 4}}",
            &config,
            &config,
        );
    }
}
