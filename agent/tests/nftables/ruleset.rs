//! Rules of others, as nft writes them, read back and followed.

use culvert_agent::dataplane::Nftables;
use culvert_agent::ruleset::{Fate, Hook, Packet, Ruleset};

use crate::netns::in_namespace;
use crate::world::{address, nft};

async fn fate(packet: &Packet, hook: Hook) -> Fate {
    let chains = Nftables::open().unwrap().ruleset().await.unwrap();
    Ruleset { chains }.fate(packet, &[hook])
}

/// Commands of nft in the table `inet filter`, whose chain `input` drops what it does not accept; and whether a connection
/// to port 179 is certainly lost, or perhaps.
const CASES: &[(&str, bool, bool)] = &[
    ("", true, false),
    ("add rule inet filter input tcp dport 179 accept", false, false),
    (
        "add rule inet filter input tcp dport { 22, 179 } accept",
        false,
        false,
    ),
    (
        "add rule inet filter input tcp dport { 22, 80 } accept",
        true,
        false,
    ),
    (
        "add rule inet filter input tcp dport 100-200 accept",
        false,
        false,
    ),
    (
        "add rule inet filter input tcp dport { 100-178 } accept",
        true,
        false,
    ),
    (
        "add rule inet filter input ip saddr 172.18.0.0/24 accept",
        false,
        false,
    ),
    (
        "add rule inet filter input ip saddr 172.18.0.0/17 accept",
        false,
        false,
    ),
    (
        "add rule inet filter input ip saddr != 172.18.0.12 accept",
        true,
        false,
    ),
    ("add rule inet filter input ip6 nexthdr tcp accept", true, false),
    ("add rule inet filter input iifname \"eth*\" accept", false, false),
    (
        "add rule inet filter input iifname { lo, docker0 } accept",
        true,
        false,
    ),
    (
        "add rule inet filter input ct state established,related accept",
        true,
        false,
    ),
    (
        "add rule inet filter input ct state vmap { established : accept, new : jump later }",
        true,
        false,
    ),
    (
        "add rule inet filter input ct state vmap { invalid : drop, new : accept }",
        false,
        false,
    ),
    ("add rule inet filter input meta mark 7 accept", false, true),
    (
        "add rule inet filter input meta l4proto tcp meta mark 7 counter reject",
        true,
        true,
    ),
    (
        "add rule inet filter input ip saddr . tcp dport { 172.18.0.12 . 179 } accept",
        false,
        true,
    ),
    (
        "add rule inet filter input limit rate 1/second accept",
        false,
        true,
    ),
];

#[test]
fn rules_of_others_are_read_as_they_are_meant() {
    in_namespace(|| async {
        let packet = Packet::tcp(address("172.18.0.12"), address("172.18.0.11"), 179).from_link("eth0");
        for (rules, is_lost, may_be) in CASES {
            nft(
                "add table inet filter; flush table inet filter; delete table inet filter; add table inet filter; \
                 add chain inet filter input { type filter hook input priority 0; policy drop; }; \
                 add chain inet filter later",
            );
            if !rules.is_empty() {
                nft(rules);
            }
            let told = fate(&packet, Hook::Input).await;
            assert_eq!(
                (told.dropped.is_some(), !told.perhaps.is_empty()),
                (*is_lost, *may_be),
                "{rules}: {told:#?}"
            );
        }
    });
}

#[test]
fn a_rule_that_drops_is_named_with_its_handle_and_its_counter() {
    in_namespace(|| async {
        nft(
            "add table ip guard; add chain ip guard in { type filter hook input priority 5; }; \
             add rule ip guard in ip protocol 4 counter packets 3 bytes 60 drop",
        );
        let packet = Packet::new(4, address("172.18.0.12"), address("172.18.0.11"));
        let place = fate(&packet, Hook::Input).await.dropped.unwrap();
        let listed = crate::world::run("nft", &["-a", "list", "chain", "ip", "guard", "in"]);
        let handle = place.handle.unwrap();
        assert!(listed.contains(&format!("drop # handle {handle}\n")), "{listed}");
        assert_eq!(place.packets, Some(3));
        assert_eq!(
            place.to_string(),
            format!("nftables, table ip guard, chain in, rule with handle {handle}: drop")
        );
        // Asleep it drops nothing.
        nft("add table ip guard { flags dormant; }");
        assert_eq!(fate(&packet, Hook::Input).await, Fate::default());
    });
}

/// iptables of today writes nf_tables, with matches of its own in it.
#[test]
fn what_iptables_writes_is_read_too() {
    in_namespace(|| async {
        let iptables = |arguments: &str| {
            let all: Vec<&str> = arguments.split_whitespace().collect();
            crate::world::run("iptables-nft", &all)
        };
        let new = |port| Packet::tcp(address("172.18.0.12"), address("172.18.0.11"), port).from_link("eth0");
        iptables("-A INPUT -p tcp -m tcp --dport 170:180 --syn -j DROP");
        iptables(
            "-A INPUT -m conntrack --ctstate NEW -m comment --comment x -s 172.18.0.12 -p tcp --dport 200 -j REJECT",
        );
        assert!(fate(&new(179), Hook::Input).await.dropped.is_some());
        assert!(
            fate(&new(200), Hook::Input)
                .await
                .dropped
                .is_some_and(|place| place.rejects)
        );
        assert_eq!(fate(&new(201), Hook::Input).await, Fate::default());
        iptables("-P FORWARD DROP");
        iptables("-A FORWARD -i cali+ -j ACCEPT");
        let forwarded = new(80).to_link("cali12");
        assert!(
            fate(&forwarded, Hook::Forward)
                .await
                .dropped
                .is_some_and(|place| place.handle.is_none())
        );
        let from_pod = new(80).from_link("cali12");
        assert_eq!(fate(&from_pod, Hook::Forward).await, Fate::default());
    });
}
