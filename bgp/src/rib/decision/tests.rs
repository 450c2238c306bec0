use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use proptest::prelude::{Strategy, any, proptest};

use super::{Candidate, best};
use crate::id::{Asn, RouterId};
use crate::wire::message::{AsPath, AsSegment, Origin, PathAttributes};

fn path(peer: u8, edit: impl FnOnce(&mut Candidate, &mut PathAttributes)) -> Candidate {
    let mut attributes = PathAttributes {
        local_pref: Some(100),
        ..PathAttributes::new(Ipv4Addr::new(172, 18, 0, peer).into())
    };
    let address = Ipv4Addr::new(172, 18, 0, peer);
    let mut candidate = Candidate {
        peer: IpAddr::V4(address),
        router_id: RouterId::new(address).unwrap(),
        internal: true,
        attributes: Arc::new(attributes.clone()),
    };
    edit(&mut candidate, &mut attributes);
    candidate.attributes = Arc::new(attributes);
    candidate
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
    let forward = best(candidates).unwrap().peer;
    let backward: Vec<Candidate> = candidates.iter().rev().cloned().collect();
    assert_eq!(best(&backward).unwrap().peer, forward, "order does not matter");
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
fn each_rule_counts_more_than_those_after_it() {
    type Edit = fn(&mut Candidate, &mut PathAttributes);
    let rules: [(&str, Edit, Edit); 6] = [
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
    ];
    for (rule, worse, better) in rules {
        // The lower peer address, which is the last rule, speaks for the worse one.
        assert_eq!(winner(&[path(1, worse), path(2, better)]), 2, "{rule}");
    }
    let same = |c: &mut Candidate, _: &mut PathAttributes| {
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
