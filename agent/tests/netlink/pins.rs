//! Rules, and the source that they and a private table give to encapsulated packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use culvert_agent::dataplane::{Dataplane, Netlink};
use culvert_agent::fib::{Change, Desired, KernelEvent, NextHop, Route, RouteKey, Rule, SCOPE_LINK};
use culvert_agent::reconcile::{Actual, Observed, Removal, diff};

use crate::events::event;
use crate::netns::{OURS, in_namespace, ip, key, link, unicast};

const TABLE: u32 = 886;
/// Another node, on the network of the first NIC.
const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 111);
const FIRST: Ipv4Addr = Ipv4Addr::new(192, 168, 0, 113);
/// What the others know this node by: the address of the second NIC.
const ADVERTISED: Ipv4Addr = Ipv4Addr::new(192, 168, 3, 113);

fn rule() -> Rule {
    Rule {
        priority: 110,
        ip_protocol: Some(4),
        table: TABLE,
        protocol: OURS.protocol,
    }
}

/// The two NICs of the field report.
fn two_nics() {
    for (nic, address) in [("e0", FIRST), ("e1", ADVERTISED)] {
        ip(&format!("link add name {nic} type veth peer name {nic}-peer"));
        ip(&format!("addr add {address}/24 dev {nic}"));
        ip(&format!("link set {nic} up"));
        ip(&format!("link set {nic}-peer up"));
    }
}

/// The pin of the peer through the link of this index.
fn pin(link: u32) -> Route {
    let hop = NextHop {
        gateway: None,
        link,
        onlink: false,
        weight: 1,
    };
    Route {
        key: RouteKey {
            table: TABLE,
            ..key(&format!("{PEER}/32"))
        },
        source: Some(IpAddr::V4(ADVERTISED)),
        scope: SCOPE_LINK,
        ..unicast(&format!("{PEER}/32"), vec![hop])
    }
}

async fn pinned(netlink: &Netlink) -> Desired {
    let pin = pin(link(netlink, "e0").await.index);
    Desired {
        routes: BTreeMap::from([(pin.key, pin)]),
        rules: BTreeSet::from([rule()]),
        ..Desired::default()
    }
}

/// Makes it so, and gives the changes that it took.
async fn converge(netlink: &Netlink, desired: &Desired) -> Vec<Change> {
    let actual = Actual::new(netlink.dump().await.unwrap());
    let changes = diff(desired, &actual, &OURS, Removal::Now);
    for (change, result) in changes.iter().zip(netlink.apply(&changes).await) {
        assert!(result.is_ok(), "{change:?}: {result:?}");
    }
    changes
}

fn source(netlink: &Netlink) -> Option<Ipv4Addr> {
    netlink.outer_sources([PEER]).unwrap().get(&PEER).copied()
}

#[test]
fn a_pin_changes_the_source_of_encapsulated_packets_and_of_nothing_else() {
    in_namespace(async || {
        two_nics();
        let netlink = Netlink::open().unwrap();
        let others = || {
            (
                ip(&format!("route get {PEER}")),
                ip(&format!("route get {PEER} ipproto tcp")),
                ip("route show"),
            )
        };
        let before = others();
        assert!(before.0.contains(&format!("src {FIRST}")), "{before:?}");
        assert_eq!(source(&netlink), Some(FIRST), "without a pin");

        let changes = converge(&netlink, &pinned(&netlink).await).await;
        assert!(
            matches!(changes.as_slice(), [Change::ReplaceRoute(_), Change::AddRule(_)]),
            "{changes:?}"
        );
        assert_eq!(source(&netlink), Some(ADVERTISED), "with a pin");
        assert_eq!(others(), before);
        assert_eq!(converge(&netlink, &pinned(&netlink).await).await, []);

        // A peer that no table knows is no error.
        let unknown = Ipv4Addr::new(203, 0, 113, 1);
        assert_eq!(netlink.outer_sources([unknown]).unwrap(), BTreeMap::new());

        let changes = converge(&netlink, &Desired::default()).await;
        assert!(
            matches!(
                changes.as_slice(),
                [Change::DeleteRule(_), Change::DeleteRoute(_)]
            ),
            "{changes:?}"
        );
        assert_eq!(source(&netlink), Some(FIRST), "without the pin again");
        assert_eq!(others(), before);
    });
}

#[test]
fn a_rule_is_for_packets_that_this_host_makes_and_is_printed_so() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        converge(&netlink, &pinned_rule_only()).await;
        let shown = ip("-N rule show pref 110");
        assert_eq!(
            shown.split_whitespace().collect::<Vec<_>>().join(" "),
            "110: from all iif lo ipproto ipproto-4 lookup 886 proto 201"
        );
        assert_eq!(
            rule().to_string(),
            "pref 110 iif lo ipproto 4 lookup 886 proto 201"
        );
    });
}

fn pinned_rule_only() -> Desired {
    Desired {
        rules: BTreeSet::from([rule()]),
        ..Desired::default()
    }
}

#[test]
fn the_rules_of_others_are_neither_taken_for_ours_nor_touched() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        let foreign = [
            // The same but for the protocol.
            "rule add pref 110 iif lo ipproto 4 lookup 886 protocol 3",
            // Our number, and more to select by than our rules ever have.
            "rule add pref 109 iif lo ipproto 4 lookup 886 protocol 201 fwmark 7",
            "rule add pref 111 from 10.0.0.0/8 lookup 886 protocol 201",
            "rule add pref 112 not iif lo ipproto 4 lookup 886 protocol 201",
            "rule add pref 113 iif lo ipproto 4 blackhole protocol 201",
        ];
        for words in foreign {
            ip(words);
        }
        let before = ip("rule show");
        let rules = netlink.dump().await.unwrap().rules;
        let others = Rule {
            protocol: 3,
            ..rule()
        };
        assert_eq!(rules, [others]);
        assert_eq!(
            converge(&netlink, &pinned_rule_only()).await,
            [Change::AddRule(rule())]
        );
        assert_eq!(
            converge(&netlink, &Desired::default()).await,
            [Change::DeleteRule(rule())]
        );
        assert_eq!(ip("rule show"), before);
        // What is so already is no error.
        for change in [
            Change::AddRule(rule()),
            Change::AddRule(rule()),
            Change::DeleteRule(rule()),
        ] {
            netlink.apply(&[change]).await.remove(0).unwrap();
        }
        assert_eq!(ip("rule show"), before);
    });
}

#[test]
fn a_rule_added_or_deleted_by_hand_is_seen() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        let mut events = netlink.events().unwrap();
        let is_rule = |event: &KernelEvent| matches!(event, KernelEvent::Rule(_) | KernelEvent::RuleGone(_));
        ip("rule add pref 110 iif lo ipproto 4 lookup 886 protocol 201");
        assert_eq!(event(&mut events, is_rule).await, KernelEvent::Rule(rule()));
        ip("rule del pref 110");
        assert_eq!(event(&mut events, is_rule).await, KernelEvent::RuleGone(rule()));
    });
}

#[test]
fn when_the_advertised_address_goes_the_pins_are_looked_for_and_can_be_put_back() {
    in_namespace(async || {
        two_nics();
        let netlink = Netlink::open().unwrap();
        let wanted = pinned(&netlink).await;
        converge(&netlink, &wanted).await;
        let mut actual = Actual::new(netlink.dump().await.unwrap());
        let mut events = netlink.events().unwrap();

        ip(&format!("addr del {ADVERTISED}/24 dev e1"));
        let gone = event(&mut events, |event| matches!(event, KernelEvent::AddressGone(_))).await;
        // Whether the kernel keeps them depends on its version: only a dump tells.
        assert_eq!(actual.observe(&gone), Observed::MustDump);
        let left = netlink.dump().await.unwrap();
        let pins = left
            .routes
            .iter()
            .filter(|route| route.key.table == TABLE)
            .count();
        println!("of 1 pin this kernel kept {pins}");

        ip(&format!("addr add {ADVERTISED}/24 dev e1"));
        let back = event(&mut events, |event| matches!(event, KernelEvent::Address(_))).await;
        assert_ne!(actual.observe(&back), Observed::Unchanged);
        assert_eq!(converge(&netlink, &wanted).await.len(), 1 - pins);
        assert_eq!(source(&netlink), Some(ADVERTISED));
    });
}
