//! Filters of others, and what they do to the packets between pods and between nodes.

use super::*;
use crate::ruleset::{Action, Base, Chain, Field, Hook, Match, Program, Relation, Rule, Ruleset};

fn table(program: Program, hook: Hook, drops: bool, rules: Vec<Rule>) -> Ruleset {
    Ruleset {
        chains: vec![Chain {
            program,
            family: "ip",
            table: "filter".to_owned(),
            name: format!("{hook:?}").to_uppercase(),
            base: Some(Base {
                hook,
                priority: 0,
                drops,
                packets: Some(12),
            }),
            rules,
        }],
    }
}

fn rule(matches: Vec<Match>, packets: u64) -> Rule {
    Rule {
        handle: 5,
        matches,
        packets: Some(packets),
        action: Action::Drop,
    }
}

fn of_protocol(number: u8) -> Match {
    Match::Compare {
        field: Field::Protocol,
        mask: Vec::new(),
        is: Relation::Equal,
        value: vec![number],
    }
}

#[test]
fn filters_that_drop_what_goes_between_nodes_are_found_with_the_rule_that_lets_it_through() {
    let tunnelled = only(Check::Filters, |world| {
        let rules = vec![rule(vec![of_protocol(4)], 7)];
        world.host.rules.1 = table(Program::Nftables, Hook::Input, false, rules);
    });
    assert_eq!(
        tunnelled.finding,
        "a packet filter on this host drops tunnelled packets (IP protocol 4) from 192.168.0.111"
    );
    assert_eq!(
        tunnelled.evidence,
        "nftables, table ip filter, chain INPUT, rule with handle 5: drop; its counter is at 7"
    );
    assert_eq!(
        tunnelled.cure,
        "nft insert rule ip filter INPUT ip protocol 4 accept"
    );
    let bgp = only(Check::Filters, |world| {
        let rules = vec![rule(vec![of_protocol(6)], 0)];
        world.host.rules.1 = table(Program::Iptables, Hook::Output, false, rules);
    });
    assert_eq!(
        bgp.finding,
        "a packet filter on this host drops BGP connections (TCP port 179) to 192.168.0.111"
    );
    assert_eq!(
        bgp.cure,
        "iptables-legacy -t filter -I OUTPUT -p tcp --dport 179 -j ACCEPT"
    );
}

#[test]
fn a_rule_that_keeps_several_nodes_out_is_told_once_with_all_of_them() {
    let with_peers = |world: &mut World| {
        let first = world.status.peers[0].clone();
        for n in 112..=116 {
            world.status.peers.push(PeerStatus {
                address: [192, 168, 0, n].into(),
                ..first.clone()
            });
        }
    };
    let all = only(Check::Filters, |world| {
        with_peers(world);
        let rules = vec![rule(vec![of_protocol(6)], 7)];
        world.host.rules.1 = table(Program::Nftables, Hook::Input, false, rules);
    });
    assert_eq!(
        (all.finding.as_str(), all.consequence.as_str()),
        (
            "a packet filter on this host drops BGP connections (TCP port 179) from every peer",
            "BGP sessions with every peer do not come about, unless the other side can connect"
        )
    );
    // 192.168.0.112/29 and no others.
    let some = only(Check::Filters, |world| {
        with_peers(world);
        let from = Match::Compare {
            field: Field::Network(12),
            mask: vec![255, 255, 255, 248],
            is: Relation::Equal,
            value: vec![192, 168, 0, 112],
        };
        let rules = vec![rule(vec![of_protocol(6), from], 7)];
        world.host.rules.1 = table(Program::Nftables, Hook::Input, false, rules);
    });
    assert_eq!(
        some.finding,
        "a packet filter on this host drops BGP connections (TCP port 179) from 192.168.0.112, 192.168.0.113, \
         192.168.0.114 and 2 more"
    );
}

#[test]
fn a_policy_that_drops_what_is_forwarded_is_found_and_one_that_lets_pods_through_is_not() {
    let break_it = |world: &mut World, rules| {
        world.cluster.upsert(&affinity("node2", "10.122.17.64/26"));
        world.host.rules.1 = table(Program::Iptables, Hook::Forward, true, rules);
    };
    let dropped = only(Check::Filters, |world| break_it(world, vec![]));
    assert_eq!(
        dropped.finding,
        "a packet filter on this host drops packets between pods that it forwards, from pods of this node"
    );
    assert_eq!(
        dropped.cure,
        "iptables-legacy -t filter -I FORWARD -s 10.122.0.0/16 -j ACCEPT && iptables-legacy -t filter -I FORWARD -d \
         10.122.0.0/16 -j ACCEPT"
    );
    let mut world = World::new();
    let from_the_pool = Match::Compare {
        field: Field::Network(12),
        mask: vec![255, 255, 0, 0],
        is: Relation::Equal,
        value: vec![10, 122, 0, 0],
    };
    let accept = Rule {
        action: Action::Accept,
        ..rule(vec![from_the_pool], 0)
    };
    break_it(&mut world, vec![accept]);
    assert_eq!(world.examine().findings, []);
}

#[test]
fn a_rule_that_may_drop_is_told_only_while_its_counter_rises() {
    let rules = |packets| {
        let rules = vec![rule(vec![of_protocol(4), Match::Unknown], packets)];
        table(Program::Nftables, Hook::Input, false, rules)
    };
    let rising = only(Check::Filters, |world| world.host.rules = (rules(7), rules(9)));
    assert!(
        rising
            .evidence
            .ends_with("its counter rose by 2 while it was looked at"),
        "{rising:#?}"
    );
    let mut world = World::new();
    world.host.rules = (rules(7), rules(7));
    assert_eq!(world.examine().findings, []);
}

#[test]
fn a_bridge_whose_packets_pass_the_filter_of_what_is_forwarded_is_found() {
    let found = only(Check::Filters, |world| {
        world.kernel.links[2].kind = Some("bridge".to_owned());
        world.host.bridge_calls_iptables = true;
        world.host.rules.1 = table(Program::Iptables, Hook::Forward, true, vec![]);
    });
    assert_eq!(found.cure, "sysctl -w net.bridge.bridge-nf-call-iptables=0");
}
