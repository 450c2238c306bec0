use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::{Strategy, any, proptest};

use super::{Candidate, Neighbour, Rule, Verdict, best, explain, select};
use crate::id::{Asn, RouterId};
use crate::rib::community::LLGR_STALE;
use crate::wire::message::{AsPath, AsSegment, Origin, PathAttributes};

fn path(peer: u8, edit: impl FnOnce(&mut Neighbour, &mut PathAttributes)) -> Candidate {
    let mut attributes = PathAttributes {
        local_pref: Some(100),
        ..PathAttributes::new(Ipv4Addr::new(172, 18, 0, peer).into())
    };
    let address = Ipv4Addr::new(172, 18, 0, peer);
    let mut from = Neighbour {
        peer: IpAddr::V4(address),
        router_id: RouterId::new(address).unwrap(),
        internal: true,
        reflector_client: None,
    };
    edit(&mut from, &mut attributes);
    Candidate {
        from: Arc::new(from),
        received_id: 0,
        path_id: 0,
        attributes: Arc::new(attributes),
    }
}

fn as_path(numbers: &[u32]) -> AsPath {
    let numbers: Vec<Asn> = numbers.iter().map(|&number| Asn::new(number).unwrap()).collect();
    AsPath {
        segments: if numbers.is_empty() {
            vec![]
        } else {
            vec![AsSegment::Sequence(numbers)]
        },
    }
}

/// The peer of the best, whichever way round the candidates stand.
fn winner(candidates: &[Candidate]) -> u8 {
    let forward = best(candidates).unwrap().from.peer;
    let backward: Vec<Candidate> = candidates.iter().rev().cloned().collect();
    assert_eq!(
        best(&backward).unwrap().from.peer,
        forward,
        "order does not matter"
    );
    let IpAddr::V4(address) = forward else {
        panic!("{forward}")
    };
    address.octets()[3]
}

#[test]
fn nothing_is_best_of_nothing() {
    assert_eq!(best(&[]), None);
}

// RFC 4271 §9.1.1, §9.1.2.2 (test): in each pair the second has all the later rules against it, and wins.
#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn each_rule_counts_more_than_those_after_it() {
    type Edit = fn(&mut Neighbour, &mut PathAttributes);
    let rules: [(&str, Edit, Edit); 8] = [
        (
            "long-lived stale",
            |_, a| a.communities = vec![LLGR_STALE],
            |_, a| a.local_pref = Some(1),
        ),
        (
            "LOCAL_PREF",
            |_, a| a.local_pref = Some(99),
            |_, a| a.as_path = as_path(&[1, 2]),
        ),
        (
            "AS_PATH",
            |_, a| a.as_path = as_path(&[1, 2]),
            |_, a| {
                a.as_path = as_path(&[1]);
                a.origin = Origin::Incomplete;
            },
        ),
        ("ORIGIN", |_, a| a.origin = Origin::Egp, |_, a| a.med = Some(7)),
        (
            "MED",
            |c, a| {
                a.med = Some(7);
                c.internal = false;
            },
            |_, a| a.med = Some(6),
        ),
        (
            "EBGP",
            |_, _| {},
            |c, _| {
                c.internal = false;
            },
        ),
        (
            "identifier",
            |c, _| c.router_id = RouterId::new(Ipv4Addr::new(9, 9, 9, 9)).unwrap(),
            |c, _| {
                c.router_id = RouterId::new(Ipv4Addr::new(9, 9, 9, 8)).unwrap();
            },
        ),
        (
            "cluster list",
            |c, a| {
                c.router_id = RouterId::new(Ipv4Addr::new(9, 9, 9, 9)).unwrap();
                a.cluster_list = vec![Ipv4Addr::new(1, 1, 1, 1)];
            },
            |_, a| {
                // RFC 4456 §9: the originator stands for the router id.
                a.originator_id = RouterId::new(Ipv4Addr::new(9, 9, 9, 9));
            },
        ),
    ];
    for (rule, worse, better) in rules {
        // The lower peer address, which is the last rule, speaks for the worse one.
        assert_eq!(winner(&[path(1, worse), path(2, better)]), 2, "{rule}");
    }
    let same = |c: &mut Neighbour, _: &mut PathAttributes| {
        c.router_id = RouterId::new(Ipv4Addr::new(9, 9, 9, 9)).unwrap();
    };
    assert_eq!(winner(&[path(2, same), path(1, same)]), 1, "peer address");
}

// RFC 4271 §9.1.2.2 (c) (test).
#[test]
fn med_counts_among_paths_of_one_neighbour_as_only() {
    let through = |peer, neighbour, med| {
        path(peer, move |_, a| {
            a.as_path = as_path(&[neighbour]);
            a.med = Some(med);
        })
    };
    assert_eq!(
        winner(&[through(1, 65001, 9), through(2, 65002, 1)]),
        1,
        "different neighbours"
    );
    assert_eq!(
        winner(&[through(1, 65001, 9), through(2, 65001, 1)]),
        2,
        "one neighbour"
    );
    // Pairwise 1 beats 2 and 2 beats 3, but 3 beats 1: only a look at all of them at once is an answer.
    let all = [through(1, 65001, 9), through(2, 65002, 5), through(3, 65001, 1)];
    assert_eq!(winner(&all), 2);
}

#[test]
fn an_absent_med_is_the_lowest_and_an_absent_preference_the_default() {
    assert_eq!(winner(&[path(1, |_, a| a.med = Some(1)), path(2, |_, _| {})]), 2);
    assert_eq!(
        winner(&[
            path(1, |_, a| a.local_pref = Some(99)),
            path(2, |_, a| a.local_pref = None)
        ]),
        2
    );
}

proptest! {
    // RFC 4271 §9.1.2.2 (test): "the tie-breaking ... independent of the order".
    #[test]
    fn the_best_path_ignores_the_order_of_arrival(
        traits in proptest::collection::vec(
            (0u8..3, proptest::collection::vec(1u32..4, 0..3), 0u8..3, any::<bool>(), 1u8..4), 1..8),
        shuffle in proptest::collection::vec(any::<u32>(), 8).prop_map(|keys| keys),
    ) {
        let candidates: Vec<Candidate> = traits.iter().zip(1u8..).map(|((preference, numbers, med, internal, id), peer)| {
            path(peer, |c, a| {
                a.local_pref = Some(u32::from(*preference));
                a.as_path = as_path(numbers);
                a.med = Some(u32::from(*med));
                c.internal = *internal;
                c.router_id = RouterId::new(Ipv4Addr::new(9, 9, 9, *id)).unwrap();
            })
        }).collect();
        let mut order: Vec<usize> = (0..candidates.len()).collect();
        order.sort_by_key(|&at| shuffle[at]);
        let shuffled: Vec<Candidate> = order.iter().map(|&at| candidates[at].clone()).collect();
        assert_eq!(best(&candidates), best(&shuffled));
    }
}

#[test]
fn each_path_is_told_which_rule_beat_it_with_both_values() {
    let candidates = [
        path(1, |_, _| {}),
        path(2, |_, a| a.local_pref = Some(200)),
        path(3, |c, a| {
            a.local_pref = Some(200);
            c.router_id = RouterId::new(Ipv4Addr::new(1, 1, 1, 1)).unwrap();
        }),
    ];
    let verdicts = explain(&candidates);
    let words: Vec<String> = verdicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        words,
        [
            "higher LOCAL_PREF wins: 100 here, 200 from 172.18.0.2",
            "as good as the best, which has the lower originator or router id",
            "best",
        ]
    );
    assert_eq!(verdicts[1], Verdict::Equal(Rule::RouterId));
}

#[test]
fn paths_that_only_the_last_rules_tell_apart_are_equal() {
    let candidates = [
        path(1, |_, a| a.as_path = as_path(&[1])),
        path(2, |_, a| a.as_path = as_path(&[2])),
        path(3, |_, a| a.as_path = as_path(&[1, 2])),
    ];
    let selection = select(&candidates).unwrap();
    assert_eq!((selection.best, selection.equal), (0, vec![0, 1]));
}

#[test]
fn of_two_paths_of_one_peer_the_lower_path_id_is_the_better() {
    // RFC 7911 (test): the decision must not depend on the order.
    let mut second = path(1, |_, _| {});
    second.received_id = 1;
    let mut first = path(1, |_, _| {});
    first.received_id = 2;
    assert_eq!(best(&[first.clone(), second.clone()]), Some(&second));
    assert_eq!(best(&[second.clone(), first]), Some(&second));
}
