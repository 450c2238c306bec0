//! What becomes of packets in rules as people write them.

use super::*;

const NODE: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 12);
const OWN: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 11);

fn chain(name: &str, base: Option<(Hook, i32, bool)>, rules: Vec<(Vec<Match>, Action)>) -> Chain {
    let rules = (1..).zip(rules).map(|(handle, (matches, action))| Rule {
        handle,
        matches,
        packets: Some(handle),
        action,
    });
    Chain {
        program: Program::Nftables,
        family: "inet",
        table: "filter".to_owned(),
        name: name.to_owned(),
        base: base.map(|(hook, priority, drops)| Base {
            hook,
            priority,
            drops,
            packets: None,
        }),
        rules: rules.collect(),
    }
}

fn input(drops: bool, rules: Vec<(Vec<Match>, Action)>) -> Ruleset {
    Ruleset {
        chains: vec![chain("input", Some((Hook::Input, 0, drops)), rules)],
    }
}

fn compare(field: Field, is: Relation, value: &[u8]) -> Match {
    Match::Compare {
        field,
        mask: Vec::new(),
        is,
        value: value.to_vec(),
    }
}

fn port(port: u16) -> Match {
    compare(Field::Transport(2), Relation::Equal, &port.to_be_bytes())
}

fn protocol(number: u8) -> Match {
    compare(Field::Protocol, Relation::Equal, &[number])
}

fn established() -> Match {
    Match::Compare {
        field: Field::Connection,
        mask: 6_u32.to_ne_bytes().to_vec(),
        is: Relation::Different,
        value: vec![0; 4],
    }
}

/// The handle of the rule that certainly drops a connection to port 179, zero for the policy; and those that may.
fn told(ruleset: &Ruleset) -> (Option<u64>, Vec<u64>) {
    let packet = Packet::tcp(NODE, OWN, 179).from_link("eth0");
    let fate = ruleset.fate(&packet, &[Hook::Prerouting, Hook::Input]);
    let handle = |place: &Place| place.handle.unwrap_or(0);
    (
        fate.dropped.as_ref().map(handle),
        fate.perhaps.iter().map(handle).collect(),
    )
}

#[test]
fn what_is_certain_is_told_apart_from_what_may_be() {
    let jump = || Action::Jump("own".to_owned());
    let lost = |handle: u64| (Some(handle), vec![]);
    let well = (None, vec![]);
    for (drops, rules, wanted) in [
        (false, vec![], well.clone()),
        (true, vec![], lost(0)),
        (true, vec![(vec![port(179)], Action::Accept)], well.clone()),
        (true, vec![(vec![port(22)], Action::Accept)], lost(0)),
        (false, vec![(vec![port(179)], Action::Drop)], lost(1)),
        (false, vec![(vec![port(179)], Action::Reject)], lost(1)),
        (false, vec![(vec![protocol(4)], Action::Drop)], well.clone()),
        // The first packet of a connection is not of one that is established.
        (true, vec![(vec![established()], Action::Accept)], lost(0)),
        // A mark, or a set of another program.
        (
            false,
            vec![(vec![port(179), Match::Unknown], Action::Drop)],
            (None, vec![1]),
        ),
        (
            true,
            vec![
                (vec![Match::Unknown], Action::Accept),
                (vec![port(179)], Action::Drop),
            ],
            (None, vec![2]),
        ),
        // What is not known does not matter where what is known does not match.
        (
            true,
            vec![(vec![port(22), Match::Unknown], Action::Accept)],
            lost(0),
        ),
        (true, vec![(vec![], jump())], (None, vec![0])),
        (
            false,
            vec![
                (vec![], Action::Continue),
                (vec![], Action::Return),
                (vec![], Action::Drop),
            ],
            well.clone(),
        ),
    ] {
        let ruleset = input(drops, rules);
        assert_eq!(told(&ruleset), wanted, "{ruleset:#?}");
    }
}

#[test]
fn chains_are_followed_there_and_back() {
    let called = |rules| chain("own", None, rules);
    let mut ruleset = input(
        true,
        vec![
            (vec![], Action::Jump("own".to_owned())),
            (vec![port(179)], Action::Accept),
        ],
    );
    ruleset.chains.push(called(vec![(vec![port(179)], Action::Drop)]));
    assert_eq!(told(&ruleset), (Some(1), vec![]));
    ruleset.chains[1] = called(vec![(vec![port(179)], Action::Return), (vec![], Action::Drop)]);
    assert_eq!(told(&ruleset), (None, vec![]));
    // It may have been called: then it drops.
    ruleset.chains[0].rules[0].matches = vec![Match::Unknown];
    ruleset.chains[1] = called(vec![(vec![], Action::Drop)]);
    assert_eq!(told(&ruleset), (None, vec![1]));
    ruleset.chains[0].rules[1].action = Action::Drop;
    assert_eq!(told(&ruleset), (Some(2), vec![1]));
    // After a goto nothing comes back.
    ruleset.chains[0].rules[0] = Rule {
        matches: vec![],
        action: Action::Goto("own".to_owned()),
        ..ruleset.chains[0].rules[0].clone()
    };
    ruleset.chains[0].rules[1].action = Action::Accept;
    ruleset.chains[1] = called(vec![]);
    assert_eq!(told(&ruleset), (Some(0), vec![]));
}

#[test]
fn chains_that_call_each_other_end() {
    let call = |name: &str| vec![(vec![], Action::Jump(name.to_owned())); 40];
    let mut ruleset = input(true, call("a"));
    ruleset.chains.push(chain("a", None, call("b")));
    ruleset.chains.push(chain("b", None, call("a")));
    assert_eq!(told(&ruleset), (None, vec![0]));
    ruleset.chains[0].rules[0].matches = vec![Match::Unknown];
    assert_eq!(told(&ruleset), (None, vec![0]));
}

#[test]
fn base_chains_are_called_by_their_priority_and_an_accept_is_for_one_of_them() {
    let mut ruleset = input(false, vec![(vec![port(179)], Action::Accept)]);
    let late = chain(
        "late",
        Some((Hook::Input, 10, false)),
        vec![(vec![protocol(6)], Action::Drop)],
    );
    ruleset.chains.push(late);
    assert_eq!(told(&ruleset), (Some(1), vec![]));
    ruleset.chains[1].base.as_mut().unwrap().hook = Hook::Output;
    assert_eq!(told(&ruleset), (None, vec![]));
}

#[test]
fn fields_are_compared_masked_and_looked_up() {
    let packet = Packet::new(4, NODE, OWN).from_link("eth0").to_link("tunl0");
    let subnet = |value: [u8; 4], is| Match::Compare {
        field: Field::Network(12),
        mask: vec![255, 255, 0, 0],
        is,
        value: value.to_vec(),
    };
    let among = |first: [u8; 4], last: [u8; 4], negated| Match::Among {
        field: Field::Network(16),
        ranges: vec![(first.to_vec(), last.to_vec())],
        negated,
    };
    for (condition, wanted) in [
        (subnet([172, 18, 0, 0], Relation::Equal), Some(true)),
        (subnet([172, 19, 0, 0], Relation::Equal), Some(false)),
        (subnet([172, 19, 0, 0], Relation::Less), Some(true)),
        (among([172, 18, 0, 0], [172, 18, 0, 255], false), Some(true)),
        (among([172, 18, 0, 0], [172, 18, 0, 10], false), Some(false)),
        (among([172, 18, 0, 0], [172, 18, 0, 10], true), Some(true)),
        // nft compares as many octets as there are before a `*`.
        (compare(Field::Input, Relation::Equal, b"eth"), Some(true)),
        (
            compare(Field::Output, Relation::Different, b"tunl0\0\0\0\0\0\0\0\0\0\0\0"),
            Some(false),
        ),
        (compare(Field::Network(19), Relation::Equal, &[11, 0]), None),
        (compare(Field::Family, Relation::Equal, &[10]), Some(false)),
        (Match::Unknown, None),
    ] {
        assert_eq!(condition.holds(&packet), wanted, "{condition:?}");
    }
    let nowhere = Packet::new(4, NODE, OWN);
    assert_eq!(
        compare(Field::Output, Relation::Equal, b"eth0").holds(&nowhere),
        None
    );
}
