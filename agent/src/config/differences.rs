//! What two configurations do not have in common.

use super::{Config, NodeConfig};

impl Config {
    /// The fields in which `other` says otherwise, but for the node's name: of this node each, of the others the section.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        // Taken apart, so that a new field is not forgotten here.
        let Self {
            mode,
            node_name: _,
            datastore,
            state,
            safety,
            node,
            bgp,
            socket,
            http,
            routes,
            tunnel,
            filter,
            garbage_collection,
            log,
        } = self;
        let NodeConfig {
            address,
            address_v6,
            as_number,
        } = node;
        let fields = [
            ("mode", *mode == other.mode),
            ("datastore", *datastore == other.datastore),
            ("state", *state == other.state),
            ("safety", *safety == other.safety),
            ("node.address", *address == other.node.address),
            ("node.addressV6", *address_v6 == other.node.address_v6),
            ("node.asNumber", *as_number == other.node.as_number),
            ("bgp", *bgp == other.bgp),
            ("socket", *socket == other.socket),
            ("http", *http == other.http),
            ("routes", *routes == other.routes),
            ("tunnel", *tunnel == other.tunnel),
            ("filter", *filter == other.filter),
            (
                "garbageCollection",
                *garbage_collection == other.garbage_collection,
            ),
            ("log", *log == other.log),
        ];
        let different = fields.into_iter().filter(|(_, same)| !same);
        different.map(|(field, _)| field).collect()
    }
}
