//! Addresses that a node has in the block of another.

use super::*;
use crate::api::{IpamBlock, Key, Kind};
use crate::cluster::ClusterChange;

/// The block, with the second address taken by `holder`.
fn block(cidr: &str, affinity: Option<&str>, holder: Option<&str>) -> Object {
    let affinity = affinity.map_or("null".to_owned(), |node| format!("host:{node}"));
    let attribute = holder.map_or("{handle_id: h}".to_owned(), |node| {
        format!("{{handle_id: h, secondary: {{node: {node}, pod: p}}}}")
    });
    let name = cidr.replace(['.', '/'], "-");
    let yaml = format!(
        "metadata: {{name: {name}}}\n\
         spec: {{cidr: {cidr}, affinity: '{affinity}', allocations: [null, 0, null], attributes: [{attribute}]}}"
    );
    let block: IpamBlock = serde_yaml::from_str(&yaml.replace("'null'", "null")).unwrap();
    Object::IpamBlock(block)
}

fn exported(cluster: &Cluster) -> Vec<String> {
    let exports = plan_of(cluster, &Learned::new(), kernel()).exports;
    exports.iter().map(ToString::to_string).collect()
}

#[test]
fn an_address_in_a_block_that_is_not_the_nodes_own_is_advertised_by_itself() {
    for (affinity, holder, expected) in [
        (
            Some("node2"),
            Some("node1"),
            &["10.65.17.65/32", "10.65.42.0/26"][..],
        ),
        (None, Some("node1"), &["10.65.17.65/32", "10.65.42.0/26"]),
        (Some("node1"), Some("node1"), &["10.65.42.0/26"]),
        (Some("node2"), Some("node2"), &["10.65.42.0/26"]),
        (Some("node2"), Some("node3"), &["10.65.42.0/26"]),
        (Some("node2"), None, &["10.65.42.0/26"]),
    ] {
        let mut cluster = cluster("ipipMode: Always");
        cluster.upsert(&block("10.65.17.64/26", affinity, holder));
        assert_eq!(
            exported(&cluster),
            expected,
            "{holder:?} in the block of {affinity:?}"
        );
    }
}

#[test]
fn nothing_more_specific_than_an_own_block_is_advertised_whatever_the_block_says() {
    let mut cluster = cluster("ipipMode: Always");
    cluster.upsert(&block("10.65.42.0/26", Some("node2"), Some("node1")));
    assert_eq!(exported(&cluster), ["10.65.42.0/26"]);
}

#[test]
fn a_borrowed_address_of_a_pool_that_is_not_exported_stays_here() {
    let mut cluster = cluster("ipipMode: Always, disableBGPExport: true");
    cluster.upsert(&block("10.65.17.64/26", Some("node2"), Some("node1")));
    assert_eq!(exported(&cluster), Vec::<String>::new());
}

#[test]
fn only_a_change_of_who_has_an_address_elsewhere_is_more_than_a_count() {
    let mut cluster = cluster("ipipMode: Always");
    let lent = block("10.65.17.64/26", Some("node2"), Some("node1"));
    let own = block("10.65.17.64/26", Some("node2"), Some("node2"));
    let free: Object = match own.clone() {
        Object::IpamBlock(mut block) => {
            block.spec.allocations = vec![None; 3];
            Object::IpamBlock(block)
        }
        other => other,
    };
    for (object, change) in [
        (&free, ClusterChange::Usage),
        (&own, ClusterChange::Usage),
        (&own, ClusterChange::Nothing),
        (&lent, ClusterChange::Blocks),
        (&lent, ClusterChange::Nothing),
        (&free, ClusterChange::Blocks),
    ] {
        assert_eq!(cluster.upsert(object), change, "{object:?}");
    }
    cluster.upsert(&lent);
    let key = Key::new(Kind::IpamBlock, "10-65-17-64-26");
    assert_eq!(cluster.remove(&key), ClusterChange::Blocks);
    assert_eq!(cluster.borrowed_by("node1").count(), 0);
}

#[test]
fn an_address_that_rests_after_its_release_is_nobodys() {
    let mut cluster = cluster("ipipMode: Always");
    let Object::IpamBlock(mut released) = block("10.65.17.64/26", Some("node2"), Some("node1")) else {
        unreachable!("it is a block");
    };
    let attribute = std::sync::Arc::make_mut(&mut released.spec.attributes[0]);
    attribute.handle_id = None;
    attribute.released_at = Some("2026-11-21T10:00:00Z".to_owned());
    cluster.upsert(&Object::IpamBlock(released));
    assert_eq!(exported(&cluster), ["10.65.42.0/26"]);
}

#[test]
fn the_owner_of_the_block_sends_packets_to_the_borrower_past_its_blackhole() {
    let plan = plan_of(
        &cluster("ipipMode: Always"),
        &learned(&[("10.65.42.9/32", "172.18.0.12")]),
        kernel(),
    );
    assert_eq!(
        printed(&plan),
        [
            "blackhole 10.65.42.0/26 proto 86",
            "10.65.42.9 via 172.18.0.12 dev tunl0 proto 86 onlink",
        ]
    );
}

#[test]
fn the_route_to_a_pod_of_this_node_is_not_taken_over_by_what_a_peer_says() {
    let lent = learned(&[("10.65.42.9/32", "172.18.0.12")]);
    let mut with_pod = kernel();
    with_pod.routes.push(route("10.65.42.9/32", None, 3));
    let plan = plan_of(&cluster("ipipMode: Always"), &lent, with_pod);
    assert_eq!(printed(&plan), ["blackhole 10.65.42.0/26 proto 86"]);
    let reasons: Vec<_> = plan.rejected.values().flatten().collect();
    assert!(
        matches!(reasons[..], [Rejection::OnThisHost { .. }]),
        "{reasons:?}"
    );

    // A route of another router's, such as the one that is taken over from BIRD, is no pod's.
    let mut with_bird = kernel();
    with_bird
        .routes
        .push(route("10.65.42.9/32", Some("172.18.0.12"), 12));
    let plan = plan_of(&cluster("ipipMode: Always"), &lent, with_bird);
    assert_eq!(plan.desired.routes.len(), 2);
}
