//! What the kernel has, for people: links, addresses, rules and routes as `ip` prints them, and switches. For a bundle that
//! somebody takes along, and only to be read.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::reconcile::Actual;

/// So many routes are told.
const MAX_ROUTES: usize = 20_000;

/// Switches that decide where packets go (ip-sysctl.rst), below `/proc/sys/net`.
const SWITCHES: [&str; 12] = [
    "ipv4/ip_forward",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/default/rp_filter",
    "ipv4/conf/tunl0/rp_filter",
    "ipv4/ip_no_pmtu_disc",
    "ipv4/fib_multipath_hash_policy",
    "ipv4/neigh/default/gc_thresh3",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "bridge/bridge-nf-call-iptables",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
];

/// What the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelView {
    /// A line for each link, with its addresses.
    pub links: Vec<String>,
    /// The rules that Culvert knows of, as `ip rule` prints them.
    pub rules: Vec<String>,
    /// The routes, as `ip route` prints them.
    pub routes: Vec<String>,
    /// How many more there are.
    pub routes_left_out: usize,
    /// Switches and their values; those that this kernel has.
    pub switches: Vec<String>,
}

impl KernelView {
    /// What is known of links, rules and routes.
    #[must_use]
    pub fn of(actual: &Actual) -> Self {
        let name = |index| actual.link_at(index).map(|link| link.name.clone());
        let links = actual.links().map(|link| {
            let state = if link.up { "up" } else { "down" };
            let addresses = actual
                .addresses_of(link.index)
                .map(|address| address.net.to_string());
            let addresses: Vec<String> = addresses.collect();
            let line = format!(
                "{}: {} mtu {} {state} {}",
                link.index,
                link.name,
                link.mtu,
                addresses.join(" ")
            );
            line.trim_end().to_owned()
        });
        let mut routes = actual.routes();
        Self {
            links: links.collect(),
            rules: actual.rules().map(|rule| rule.to_string()).collect(),
            routes: routes
                .by_ref()
                .take(MAX_ROUTES)
                .map(|route| route.with_names(name).to_string())
                .collect(),
            routes_left_out: routes.count(),
            switches: Vec::new(),
        }
    }

    /// The same, with the switches of this host.
    #[must_use]
    pub fn with_switches(mut self) -> Self {
        let read = SWITCHES.iter().filter_map(|name| {
            let value = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
            Some(format!("net/{name} = {}", value.trim()))
        });
        self.switches = read.collect();
        self
    }
}
