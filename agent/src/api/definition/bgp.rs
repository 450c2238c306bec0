//! The schemas of the BGP kinds.

use serde_json::{Value, json};

use super::{cidr, list, number, object, one_of, switch, text};

/// An AS number of 32 bits, also as Calico lets one write it: `"65536.10"`.
fn as_number(description: &str) -> Value {
    json!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0, "maximum": u32::MAX, "pattern": r"^[0-9]{1,10}$|^[0-9]{1,5}\.[0-9]{1,5}$",
        "description": description,
    })
}

fn password(description: &str) -> Value {
    let key = object(
        &["key"],
        &[
            ("name", text("The name of the Secret.")),
            ("key", text("The key in it.")),
            (
                "optional",
                switch("Without it there is no password, instead of no session."),
            ),
        ],
    );
    let mut password = object(&[], &[("secretKeyRef", key)]);
    password["description"] = json!(description);
    password
}

/// From 1 to 2147483646; the lower is preferred.
fn priority(description: &str) -> Value {
    number((1, 2_147_483_646), description)
}

#[rustfmt::skip]
pub(super) fn configuration() -> Value {
    let ranges = |description| list(&object(&["cidr"], &[("cidr", cidr("A range."))]), description);
    let community = object(&[], &[("name", text("The name.")), ("value", text("AA:NN or AA:NN:MM."))]);
    let texts = |description| list(&json!({"type": "string"}), description);
    let advertisement = object(
        &[],
        &[("cidr", cidr("A range.")), ("communities", texts("Names, or communities themselves."))],
    );
    object(
        &[],
        &[
            ("asNumber", as_number("The AS number of nodes that have none of their own. Default: 64512.")),
            ("nodeToNodeMeshEnabled", switch("Whether every node peers with every other. Default: true.")),
            ("listenPort", number((1, 65_535), "TCP port of the speakers. Default: 179.")),
            ("bindMode", one_of(&["None", "NodeIP"], "The addresses that speakers listen on. Default: None, which is all.")),
            ("nodeMeshPassword", password("The password of the sessions between nodes.")),
            ("nodeMeshMaxRestartTime", text("How long nodes keep each other's routes after a session is lost. Default: 2m0s.")),
            ("serviceClusterIPs", ranges("Ranges of cluster IPs that are advertised.")),
            ("serviceExternalIPs", ranges("Ranges of external IPs that are advertised.")),
            ("serviceLoadBalancerIPs", ranges("Ranges of load balancer IPs that are advertised.")),
            ("serviceLoadBalancerAggregation", one_of(&["Enabled", "Disabled"], "Whether a range of load balancer IPs is advertised as one. Default: Enabled.")),
            ("communities", list(&community, "Names for communities.")),
            ("prefixAdvertisements", list(&advertisement, "The communities that routes go out with, by range.")),
            ("ignoredInterfaces", texts("Interfaces on which no next hop of a route from outside is looked for.")),
            ("ipv4NormalRoutePriority", priority("The priority of an ordinary IPv4 route.")),
            ("ipv6NormalRoutePriority", priority("The priority of an ordinary IPv6 route.")),
        ],
    )
}

#[rustfmt::skip]
pub(super) fn peer() -> Value {
    object(
        &[],
        &[
            ("node", text("The one node that has this peer.")),
            ("nodeSelector", text("The nodes that have this peer. Default, without node: all.")),
            ("peerIP", text("The peer's address, with or without a port.")),
            ("asNumber", as_number("The peer's AS.")),
            ("localASNumber", as_number("The AS that the nodes are in towards this peer. Default: their own.")),
            ("peerSelector", text("The nodes that are the peers, in place of peerIP and asNumber.")),
            ("localWorkloadSelector", text("The pods that are the peers, which Culvert does not do.")),
            ("keepOriginalNextHop", switch("The next hop of a route is left as it is, towards another AS.")),
            ("nextHopMode", one_of(&["Auto", "Self", "Keep"], "Whose address is the next hop of what the peer is told. Default: Auto.")),
            ("password", password("The password of the session.")),
            ("sourceAddress", one_of(&["UseNodeIP", "None"], "The address that the session comes from. Default: UseNodeIP.")),
            ("maxRestartTime", text("How long the peer keeps the node's routes after the session is lost. Default: 2m0s.")),
            ("keepaliveTime", text("How often a KEEPALIVE is sent. Default: a third of the hold time.")),
            ("numAllowedLocalASNumbers", number((0, 2_147_483_647), "How often the node's own AS may stand in a path. Default: 0.")),
            ("ttlSecurity", number((0, 255), "The most hops that the peer is away. Default: not checked.")),
            ("reachableBy", text("The gateway through which the peer is reached.")),
            ("filters", list(&json!({"type": "string"}), "The BGPFilters for this peer, in order.")),
            ("reversePeering", one_of(&["Auto", "Manual"], "Whether nodes that peerSelector names peer back. Default: Auto.")),
        ],
    )
}

#[rustfmt::skip]
pub(super) fn filter() -> Value {
    let lengths = object(&[], &[("min", number((0, 128), "The least.")), ("max", number((0, 128), "The most."))]);
    let communities = object(&[], &[("values", list(&json!({"type": "string"}), "AA:NN or AA:NN:MM; one."))]);
    let operation = object(
        &[],
        &[
            ("addCommunity", object(&["value"], &[("value", text("AA:NN or AA:NN:MM."))])),
            ("prependASPath", object(&["prefix"], &[("prefix", list(&as_number("An AS."), "The nearest first."))])),
            ("setPriority", object(&["value"], &[("value", priority("The lower is preferred."))])),
        ],
    );
    let rule = object(
        &["action"],
        &[
            ("cidr", text("A range to compare destinations with.")),
            ("matchOperator", one_of(&["", "Equal", "NotEqual", "In", "NotIn"], "How to compare.")),
            ("prefixLength", lengths),
            ("source", one_of(&["", "RemotePeers"], "Where the route comes from.")),
            ("interface", text("The interface that packets for the route leave by.")),
            ("peerType", one_of(&["", "eBGP", "iBGP"], "In which AS the peer is.")),
            ("communities", communities),
            ("asPathPrefix", list(&as_number("An AS."), "What the route's path begins with.")),
            ("priority", priority("The route's priority.")),
            ("action", one_of(&["Accept", "Reject"], "What becomes of the routes.")),
            ("operations", list(&operation, "Changes to routes that are let through.")),
        ],
    );
    let rules = |description| list(&rule, description);
    object(
        &[],
        &[
            ("exportV4", rules("For IPv4 routes to a peer.")),
            ("importV4", rules("For IPv4 routes from a peer.")),
            ("exportV6", rules("For IPv6 routes to a peer.")),
            ("importV6", rules("For IPv6 routes from a peer.")),
        ],
    )
}
