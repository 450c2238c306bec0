//! The table itself: written once, compared, repaired, removed, and nobody else's touched.

use std::net::Ipv4Addr;

use culvert_agent::dataplane::{Nftables, Written};
use culvert_agent::filter::{Filter, Owner, Wanted};
use culvert_agent::firewall;
use culvert_agent::metrics::Metrics;
use culvert_agent::status::FirewallStatus;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::netns::in_namespace;
use crate::world::{Host, LIMIT, address, admitting, nft, table, to, until};

fn filter() -> Filter {
    Filter {
        pools: ["10.65.0.0/16", "10.65.4.0/24", "172.16.0.0/12"]
            .map(|net| net.parse().unwrap())
            .into(),
        masqueraded: ["10.65.0.0/16".parse().unwrap()].into(),
        ..admitting(&["192.0.2.1", "192.0.2.2"])
    }
}

#[test]
fn nft_reads_it_as_it_is_meant() {
    in_namespace(|| async {
        Nftables::open().unwrap().apply(&filter()).await.unwrap();
        let printed: String = nft("list table ip culvert")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        for part in [
            "elements = { 192.0.2.1, 192.0.2.2 }",
            "elements = { 10.65.0.0/16, 172.16.0.0/12 }",
            "size 1024 flags dynamic,timeout timeout 1h",
            "type filter hook input priority filter - 10; policy accept;",
            "ip protocol != 4 accept",
            "ip saddr @nodes accept",
            "update @refused { ip saddr timeout 1h counter }",
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr @masqueraded ip daddr != @pools ip daddr != @nodes masquerade fully-random",
            "oifname \"tunl0\" fib saddr . oif type != local fib saddr type local masquerade fully-random",
        ] {
            // An old nft names protocol 4 as /etc/protocols does.
            let printed = printed.replace("ipencap", "4");
            assert!(printed.contains(part), "{part:?} is not in\n{printed}");
        }
    });
}

#[test]
fn it_is_told_with_what_others_have_done_to_it() {
    in_namespace(|| async {
        let mut nftables = Nftables::open().unwrap();
        let view = nftables.view().await.unwrap();
        assert!(!view.is_there && view.rules.is_empty(), "{view:?}");
        nftables.apply(&filter()).await.unwrap();
        nft("add rule ip culvert input counter");
        let view = nftables.view().await.unwrap();
        assert_eq!(
            view.chains,
            [
                "input: type filter hook input priority -10, policy accept",
                "postrouting: type nat hook postrouting priority 100, policy accept"
            ]
        );
        assert_eq!(view.sets["nodes"], ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(
            view.sets["pools"],
            ["10.65.0.0-10.65.255.255", "172.16.0.0-172.31.255.255"]
        );
        assert_eq!(view.rules.len(), 7, "{view:?}");
        let is_ours =
            |rule: &&String| rule.starts_with("input: culvert ") || rule.starts_with("postrouting: culvert ");
        assert_eq!(view.rules.iter().filter(is_ours).count(), 6, "{view:?}");
        assert!(
            view.rules
                .contains(&"input: (no comment: not Culvert's): 0 packets".to_owned()),
            "{view:?}"
        );
    });
}

#[test]
fn applied_again_nothing_is_written() {
    in_namespace(|| async {
        let mut nftables = Nftables::open().unwrap();
        assert_eq!(nftables.apply(&filter()).await.unwrap(), Written::Table);
        let before = table();
        assert_eq!(nftables.apply(&filter()).await.unwrap(), Written::Nothing);
        // As after a restart: nothing is remembered.
        let mut nftables = Nftables::open().unwrap();
        assert_eq!(nftables.apply(&filter()).await.unwrap(), Written::Nothing);
        assert_eq!(table(), before);
    });
}

#[test]
fn five_thousand_nodes_are_one_transaction() {
    in_namespace(|| async {
        let mut nftables = Nftables::open().unwrap();
        let nodes = (0..5000_u32).map(|n| Ipv4Addr::from(0x0a00_0000 + n)).collect();
        let many = Filter { nodes, ..filter() };
        assert_eq!(nftables.apply(&many).await.unwrap(), Written::Table);
        assert_eq!(nftables.apply(&many).await.unwrap(), Written::Nothing);
        assert_eq!(nftables.apply(&filter()).await.unwrap(), Written::Elements);
        assert_eq!(nftables.apply(&filter()).await.unwrap(), Written::Nothing);
    });
}

#[test]
fn whatever_was_changed_by_hand_is_put_right_and_as_before() {
    in_namespace(|| async {
        let mut nftables = Nftables::open().unwrap();
        nftables.apply(&filter()).await.unwrap();
        let listed = || nft("list table ip culvert");
        let before = listed();
        for (command, written) in [
            ("flush ruleset", Written::Table),
            ("delete table ip culvert", Written::Table),
            ("flush chain ip culvert postrouting", Written::Table),
            ("insert rule ip culvert input drop", Written::Table),
            ("chain ip culvert input { policy drop; }", Written::Table),
            ("add table ip culvert { flags dormant; }", Written::Table),
            ("delete element ip culvert nodes { 192.0.2.2 }", Written::Elements),
            ("add element ip culvert nodes { 203.0.113.9 }", Written::Elements),
            ("flush set ip culvert pools", Written::Elements),
        ] {
            nft(command);
            assert_ne!(nft("list ruleset"), before, "{command} changes something");
            assert_eq!(nftables.apply(&filter()).await.unwrap(), written, "{command}");
            assert_eq!(listed(), before, "{command}");
        }
    });
}

#[test]
fn a_table_of_somebody_else_is_not_touched() {
    in_namespace(|| async {
        nft("add table ip other");
        nft("add set ip other nodes { type ipv4_addr; elements = { 203.0.113.9 }; }");
        nft("add chain ip other input { type filter hook input priority 0; policy accept; }");
        nft("add rule ip other input ip saddr @nodes counter drop");
        nft("add table inet culvert");
        nft("add chain inet culvert input { type filter hook input priority 0; policy accept; }");
        let others = || {
            let other = crate::world::run("nft", &["-a", "list", "table", "ip", "other"]);
            other + &crate::world::run("nft", &["-a", "list", "table", "inet", "culvert"])
        };
        let before = others();
        let mut nftables = Nftables::open().unwrap();
        nftables.apply(&filter()).await.unwrap();
        assert_eq!(nftables.apply(&filter()).await.unwrap(), Written::Nothing);
        nftables.apply(&admitting(&["192.0.2.9"])).await.unwrap();
        assert_eq!(others(), before);
        nftables.remove().await.unwrap();
        assert_eq!(nft("list tables"), "table ip other\ntable inet culvert\n");
        assert_eq!(others(), before);
        nftables.remove().await.expect("what is not there is removed");
    });
}

#[test]
fn who_touches_the_table_is_told_and_our_own_writes_are_not() {
    in_namespace(|| async {
        let mut nftables = Nftables::open().unwrap();
        let mut changes = nftables.changes().unwrap();
        nftables.apply(&filter()).await.unwrap();
        nft("add table ip other");
        nft("flush ruleset");
        let change = timeout(LIMIT, changes.next()).await.expect("it is told").unwrap();
        let by = change.by.expect("the kernel knows by whom");
        assert!(by.starts_with("nft ("), "{by}");
        // The one told is the flush: after it nothing is left to tell.
        assert!(timeout(std::time::Duration::ZERO, changes.next()).await.is_err());
    });
}

/// The task, with what it is told and what it tells.
fn keeping(
    wanted: Wanted,
) -> (
    watch::Sender<Option<Wanted>>,
    watch::Receiver<FirewallStatus>,
    Metrics,
) {
    let (sender, wanted_reader) = watch::channel(None);
    let (status, status_reader) = watch::channel(FirewallStatus::default());
    let metrics = Metrics::register().unwrap();
    tokio::spawn(firewall::keep(wanted_reader, status, metrics.clone()));
    sender.send_replace(Some(wanted));
    (sender, status_reader, metrics)
}

fn has(metrics: &Metrics, line: &str) -> bool {
    metrics.encode().unwrap().lines().any(|found| found == line)
}

#[test]
fn a_flush_by_hand_is_repaired_and_counted() {
    in_namespace(|| async {
        let wanted = Wanted {
            filter: filter(),
            ..Wanted::default()
        };
        let (_wanted, _status, metrics) = keeping(wanted);
        until("the table is there", || nft("list tables").contains("culvert")).await;
        nft("flush ruleset");
        until("the table is there again", || {
            nft("list tables").contains("culvert")
        })
        .await;
        until("the repair is counted", || {
            has(&metrics, "culvert_firewall_repairs_total 1")
        })
        .await;
        assert!(table().contains("192.0.2.2"));
    });
}

#[test]
fn whose_packets_are_refused_is_told_in_the_status_and_counted() {
    in_namespace(|| async {
        let peer = Host::joined("u0", "192.0.2.1/24", &["192.0.2.3/24"]);
        let mut wanted = Wanted {
            filter: filter(),
            ..Wanted::default()
        };
        let owner = Owner {
            node: "node4".into(),
            advertised: Some(address("198.51.100.4")),
        };
        wanted.owners.insert(address("192.0.2.3"), owner);
        let (sender, status, metrics) = keeping(wanted.clone());
        until("the table is there", || nft("list tables").contains("culvert")).await;
        let strange = peer.ipip_from("192.0.2.3");
        for _ in 0..5 {
            strange.send_to(&[0x45; 28], &to("192.0.2.1")).unwrap();
        }
        until("the source is told", || !status.borrow().refused.is_empty()).await;
        assert_eq!(
            status.borrow().refused,
            [
                "5 packets from 192.0.2.3, which no node advertises; node4 advertises 198.51.100.4 and owns that address: \
              its source pin is missing"
            ]
        );
        assert!(has(&metrics, "culvert_tunnel_packets_refused_total 5"));

        // Once the node advertises it, nothing is wrong any more.
        wanted.filter.nodes.insert(address("192.0.2.3"));
        sender.send_replace(Some(wanted));
        until("the source is no more told", || {
            status.borrow().refused.is_empty()
        })
        .await;
        assert!(has(&metrics, "culvert_tunnel_packets_refused_total 5"));
    });
}

#[test]
fn what_is_never_wanted_is_never_written_and_what_was_wanted_stays_when_the_agent_ends() {
    in_namespace(|| async {
        let (wanted, reader) = watch::channel(None);
        let (status, _status) = watch::channel(FirewallStatus::default());
        let task = tokio::spawn(firewall::keep(reader, status, Metrics::register().unwrap()));
        wanted.send_replace(None);
        tokio::task::yield_now().await;
        assert_eq!(nft("list ruleset"), "");
        let first = Wanted {
            filter: filter(),
            ..Wanted::default()
        };
        wanted.send_replace(Some(first));
        until("the table is there", || nft("list tables").contains("culvert")).await;
        drop(wanted);
        timeout(LIMIT, task).await.expect("the task ends").unwrap();
        assert!(table().contains("192.0.2.2"));
    });
}
