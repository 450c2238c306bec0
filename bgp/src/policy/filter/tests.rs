use std::sync::Arc;

use super::super::rule::{
    Action, Community, Match, Operation, Operator, PeerType, PrefixMatch, Rule, Source,
};
use super::{Chain, Filter, Otherwise, Policy, RejectedBy};
use crate::id::{Asn, Prefix};
use crate::policy::tests::{asn, received, sequence};
use crate::wire::message::{AsPath, AsSegment, PathAttributes};

fn prefix(text: &str) -> Prefix {
    Prefix::new(text.parse().unwrap())
}

fn rule(matching: Match, action: Action) -> Rule {
    Rule { matching, action }
}

fn accept(matching: Match) -> Rule {
    rule(matching, Action::Accept(Vec::new()))
}

fn filter(name: &str, rules: Vec<Rule>) -> Arc<Filter> {
    Arc::new(Filter {
        name: name.into(),
        rules,
    })
}

fn chain(filters: Vec<Arc<Filter>>, otherwise: Otherwise) -> Chain {
    Chain { filters, otherwise }
}

/// Whether a rule with this condition applies to a route.
fn applies(matching: Match, destination: &str, source: Source, peer: PeerType, path: PathAttributes) -> bool {
    chain(vec![filter("f", vec![accept(matching)])], Otherwise::Reject)
        .evaluate(prefix(destination), source, peer, &Arc::new(path))
        .is_ok()
}

fn path() -> PathAttributes {
    received(|_| {})
}

#[test]
fn a_rule_without_conditions_applies_to_every_route() {
    for source in [Source::Own, Source::Peers] {
        for peer in [PeerType::Internal, PeerType::External] {
            for destination in ["0.0.0.0/0", "10.0.0.0/8", "10.1.2.3/32", "::/0", "fd00::1/128"] {
                assert!(applies(Match::default(), destination, source, peer, path()));
            }
        }
    }
}

#[test]
fn a_destination_is_compared_with_a_range_and_its_length_with_the_bounds() {
    use Operator::{Equal, In, NotEqual, NotIn};
    const V4: &str = "10.0.0.0/8";
    const V6: &str = "fd00::/48";
    const ANY: (Option<u8>, Option<u8>) = (None, None);
    const MIDDLE: (Option<u8>, Option<u8>) = (Some(16), Some(24));
    const LONGER: (Option<u8>, Option<u8>) = (Some(9), None);
    const SHORT: (Option<u8>, Option<u8>) = (None, Some(16));
    for (operator, range, lengths, met, not_met) in [
        (Equal, V4, ANY, "10.0.0.0/8", "10.0.0.0/9 0.0.0.0/0 11.0.0.0/8"),
        (NotEqual, V4, ANY, "10.0.0.0/9 0.0.0.0/0", "10.0.0.0/8"),
        (In, V4, ANY, "10.0.0.0/8 10.1.2.3/32", "0.0.0.0/0 11.0.0.0/8"),
        (NotIn, V4, ANY, "0.0.0.0/0 8.0.0.0/7", "10.0.0.0/8 10.1.2.3/32"),
        (
            In,
            V4,
            MIDDLE,
            "10.9.0.0/16 10.9.1.0/24",
            "10.8.0.0/15 10.9.1.0/25",
        ),
        (In, V4, MIDDLE, "", "11.9.0.0/16"),
        (NotIn, V4, MIDDLE, "10.0.0.0/8 10.9.1.0/25", "10.9.0.0/16"),
        (NotIn, V4, MIDDLE, "11.9.0.0/16", "10.9.1.0/24"),
        (In, V4, LONGER, "10.0.0.0/9 10.9.1.1/32", "10.0.0.0/8"),
        (In, V4, SHORT, "10.0.0.0/8 10.9.0.0/16", "10.9.0.0/17"),
        (Equal, V4, LONGER, "", "10.0.0.0/8 10.0.0.0/9"),
        (NotEqual, V4, LONGER, "10.0.0.0/8 10.0.0.0/9", ""),
        (In, V6, ANY, "fd00::/48 fd00::1/128", "fd00::/47 fd00:0:1::/48"),
        (
            NotIn,
            V6,
            (Some(64), Some(64)),
            "fd00::/48 fd00::/65",
            "fd00::/64",
        ),
    ] {
        let condition = PrefixMatch::new(operator, prefix(range), lengths);
        let matching = Match {
            prefix: Some(condition),
            ..Match::default()
        };
        let applies = |to| applies(matching.clone(), to, Source::Peers, PeerType::Internal, path());
        let words = format!("{operator:?} {range} {lengths:?}");
        for destination in met.split_whitespace() {
            assert!(applies(destination), "{destination} {words}");
        }
        for destination in not_met.split_whitespace() {
            assert!(!applies(destination), "{destination} {words}");
        }
    }
}

#[test]
fn a_rule_may_be_about_own_routes_or_those_of_peers_only() {
    for (wanted, source) in [
        (Source::Own, Source::Own),
        (Source::Own, Source::Peers),
        (Source::Peers, Source::Own),
        (Source::Peers, Source::Peers),
    ] {
        let matching = Match {
            source: Some(wanted),
            ..Match::default()
        };
        let applied = applies(matching, "10.0.0.0/8", source, PeerType::Internal, path());
        assert_eq!(applied, wanted == source, "{wanted:?} {source:?}");
    }
}

#[test]
fn a_rule_may_be_about_internal_or_external_peers_only() {
    for wanted in [PeerType::Internal, PeerType::External] {
        for peer in [PeerType::Internal, PeerType::External] {
            let matching = Match {
                peer: Some(wanted),
                ..Match::default()
            };
            let applied = applies(matching, "10.0.0.0/8", Source::Peers, peer, path());
            assert_eq!(applied, wanted == peer, "{wanted:?} {peer:?}");
        }
    }
}

#[test]
fn a_community_is_looked_for_in_the_attribute_of_its_kind() {
    let with = |communities: &[u32], large: &[[u32; 3]]| {
        received(|path| {
            path.communities = communities.to_vec();
            path.large_communities = large.to_vec();
        })
    };
    let standard = Community::Standard((65000 << 16) | 100);
    let large = Community::Large([65000, 10, 20]);
    for (wanted, path, met) in [
        (standard, with(&[7, (65000 << 16) | 100], &[]), true),
        (
            standard,
            with(&[7, (65000 << 16) | 101], &[[65000, 100, 0]]),
            false,
        ),
        (large, with(&[], &[[65000, 10, 20]]), true),
        (large, with(&[65000], &[[65000, 10, 21], [65000, 20, 10]]), false),
    ] {
        let matching = Match {
            community: Some(wanted),
            ..Match::default()
        };
        let applied = applies(matching, "10.0.0.0/8", Source::Peers, PeerType::External, path);
        assert_eq!(applied, met, "{wanted}");
    }
    let target = [0, 2, 0xfd, 0xe8, 0, 0, 0, 100];
    let matching = Match {
        community: Some(Community::Extended(target)),
        ..Match::default()
    };
    for (carried, met) in [(target, true), ([0, 3, 0xfd, 0xe8, 0, 0, 0, 100], false)] {
        let path = received(|path| path.extended_communities = vec![carried]);
        let (from, matching) = ((Source::Peers, PeerType::External), matching.clone());
        assert_eq!(
            applies(matching, "10.0.0.0/8", from.0, from.1, path),
            met,
            "{carried:?}"
        );
    }
}

#[test]
fn an_as_path_is_compared_from_its_near_end_across_segments() {
    let two_segments = AsPath {
        segments: vec![
            AsSegment::Sequence(vec![asn(65001)]),
            AsSegment::Sequence(vec![asn(65002), asn(65003)]),
        ],
    };
    for (wanted, as_path, met) in [
        (&[65001][..], sequence(&[65001]), true),
        (&[65001], sequence(&[65001, 65002]), true),
        (&[65001, 65002], sequence(&[65001, 65002, 65003]), true),
        (&[65001, 65002], two_segments, true),
        (&[65002], sequence(&[65001, 65002]), false),
        (&[65001, 65002], sequence(&[65001]), false),
        (&[65001], AsPath::default(), false),
    ] {
        let matching = Match {
            as_path_prefix: wanted.iter().map(|&number| asn(number)).collect(),
            ..Match::default()
        };
        let path = received(|path| path.as_path = as_path.clone());
        let applied = applies(matching, "10.0.0.0/8", Source::Peers, PeerType::External, path);
        assert_eq!(applied, met, "{wanted:?} {as_path:?}");
    }
}

#[test]
fn a_local_preference_is_one_of_those_asked_for_and_100_where_the_path_has_none() {
    for (wanted, has, met) in [
        (&[200][..], Some(200), true),
        (&[200], Some(100), false),
        (&[100], None, true),
        (&[200], None, false),
        (&[5, 100], Some(5), true),
    ] {
        let matching = Match {
            local_pref: wanted.to_vec(),
            ..Match::default()
        };
        let path = received(|path| path.local_pref = has);
        let applied = applies(matching, "10.0.0.0/8", Source::Peers, PeerType::Internal, path);
        assert_eq!(applied, met, "{wanted:?} {has:?}");
    }
}

#[test]
fn all_conditions_of_a_rule_must_be_met() {
    let matching = Match {
        prefix: Some(PrefixMatch::new(Operator::In, prefix("10.0.0.0/8"), (None, None))),
        source: Some(Source::Peers),
        peer: Some(PeerType::External),
        community: Some(Community::Standard(7)),
        as_path_prefix: vec![asn(65001)],
        local_pref: vec![200],
    };
    let (to, from, peer) = ("10.1.0.0/16", Source::Peers, PeerType::External);
    assert!(applies(matching.clone(), to, from, peer, path()));
    assert!(!applies(matching.clone(), "11.0.0.0/8", from, peer, path()));
    assert!(!applies(matching.clone(), to, Source::Own, peer, path()));
    assert!(!applies(matching.clone(), to, from, PeerType::Internal, path()));
    for broken in [
        received(|path| path.communities.clear()),
        received(|path| path.as_path = AsPath::default()),
        received(|path| path.local_pref = Some(1)),
    ] {
        assert!(!applies(matching.clone(), to, from, peer, broken));
    }
}

fn after(operations: Vec<Operation>, path: PathAttributes) -> PathAttributes {
    let rules = vec![rule(Match::default(), Action::Accept(operations))];
    let chain = chain(vec![filter("f", rules)], Otherwise::Reject);
    let result = chain.evaluate(
        prefix("10.0.0.0/8"),
        Source::Peers,
        PeerType::External,
        &Arc::new(path),
    );
    Arc::unwrap_or_clone(result.unwrap())
}

#[test]
fn a_community_is_added_once_and_in_order() {
    let before = received(|path| {
        path.communities = vec![3, 9];
        path.large_communities = vec![[1, 2, 3]];
    });
    let add = |community| Operation::AddCommunity(community);
    let path = after(
        vec![
            add(Community::Standard(5)),
            add(Community::Standard(9)),
            add(Community::Standard(5)),
            add(Community::Large([0, 9, 9])),
            add(Community::Large([1, 2, 3])),
        ],
        before,
    );
    assert_eq!(path.communities, [3, 5, 9]);
    assert_eq!(path.large_communities, [[0, 9, 9], [1, 2, 3]]);
}

#[test]
fn as_numbers_are_put_in_front_in_their_order() {
    let prepend =
        |numbers: &[u32]| Operation::PrependAsPath(numbers.iter().map(|&number| asn(number)).collect());
    let path = after(vec![prepend(&[65010, 65011])], path());
    assert_eq!(path.as_path, sequence(&[65010, 65011, 65001]));
    let path = after(
        vec![prepend(&[65010]), prepend(&[65009])],
        received(|path| path.as_path = AsPath::default()),
    );
    assert_eq!(path.as_path, sequence(&[65009, 65010]));
}

#[test]
fn no_segment_grows_beyond_255_as_numbers() {
    // RFC 4271 §4.3 (test).
    let lengths = |path: &PathAttributes| -> Vec<usize> {
        let length = |segment: &AsSegment| match segment {
            AsSegment::Sequence(numbers) | AsSegment::ConfedSequence(numbers) => numbers.len(),
        };
        path.as_path.segments.iter().map(length).collect()
    };
    let numbers = |count: u32| (1..=count).map(asn).collect::<Vec<Asn>>();
    for (prepended, expected) in [(254, &[255][..]), (255, &[255, 1]), (600, &[90, 255, 255, 1])] {
        let path = after(vec![Operation::PrependAsPath(numbers(prepended))], path());
        assert_eq!(lengths(&path), expected);
        let first = path.as_path.segments.first().unwrap();
        let AsSegment::Sequence(first) = first else {
            panic!("{first:?}")
        };
        assert_eq!(first.first(), Some(&asn(1)));
    }
}

#[test]
fn a_local_preference_is_set() {
    for before in [None, Some(100)] {
        let path = received(|path| path.local_pref = before);
        assert_eq!(after(vec![Operation::SetLocalPref(7)], path).local_pref, Some(7));
    }
}

#[test]
fn the_first_rule_that_applies_decides() {
    let inside = |net| Match {
        prefix: Some(PrefixMatch::new(Operator::In, prefix(net), (None, None))),
        ..Match::default()
    };
    let first = filter(
        "first",
        vec![
            rule(inside("10.1.0.0/16"), Action::Reject),
            accept(inside("10.0.0.0/8")),
        ],
    );
    let second = filter("second", vec![rule(inside("10.0.0.0/7"), Action::Reject)]);
    for (otherwise, elsewhere) in [
        (Otherwise::Accept, None),
        (Otherwise::Reject, Some(RejectedBy::Default)),
    ] {
        let chain = chain(vec![Arc::clone(&first), Arc::clone(&second)], otherwise);
        let rejected = |filter: &str, rule| {
            Some(RejectedBy::Rule {
                filter: filter.into(),
                rule,
            })
        };
        for (destination, by) in [
            ("10.1.2.0/24", rejected("first", 1)),
            ("10.2.0.0/16", None),
            ("11.0.0.0/8", rejected("second", 1)),
            ("172.16.0.0/12", elsewhere),
        ] {
            let decided = chain.evaluate(
                prefix(destination),
                Source::Peers,
                PeerType::Internal,
                &Arc::new(path()),
            );
            assert_eq!(decided.err(), by, "{destination} {otherwise:?}");
        }
    }
}

#[test]
fn a_rule_that_continues_changes_the_route_for_those_that_follow() {
    let tagged = Community::Standard(42);
    let rules = vec![
        rule(
            Match {
                source: Some(Source::Own),
                ..Match::default()
            },
            Action::Continue(vec![Operation::AddCommunity(tagged)]),
        ),
        accept(Match {
            community: Some(tagged),
            ..Match::default()
        }),
    ];
    let chain = chain(vec![filter("f", rules)], Otherwise::Reject);
    let evaluate = |source| {
        chain.evaluate(
            prefix("10.0.0.0/8"),
            source,
            PeerType::External,
            &Arc::new(path()),
        )
    };
    assert_eq!(evaluate(Source::Own).unwrap().communities, [7, 42]);
    assert_eq!(evaluate(Source::Peers), Err(RejectedBy::Default));
}

#[test]
fn a_path_that_does_not_change_is_shared_and_one_that_does_leaves_the_other_holders_alone() {
    let path = Arc::new(path());
    let through = |operations| {
        let rules = vec![rule(Match::default(), Action::Accept(operations))];
        let chain = chain(vec![filter("f", rules)], Otherwise::Reject);
        chain
            .evaluate(prefix("10.0.0.0/8"), Source::Peers, PeerType::Internal, &path)
            .unwrap()
    };
    let unchanging = vec![
        Operation::AddCommunity(Community::Standard(7)),
        Operation::PrependAsPath(Vec::new()),
        Operation::SetLocalPref(200),
    ];
    assert!(Arc::ptr_eq(&through(unchanging), &path));
    let changed = through(vec![Operation::SetLocalPref(1)]);
    assert_eq!((changed.local_pref, path.local_pref), (Some(1), Some(200)));
}

#[test]
fn each_family_has_its_own_chain() {
    let policy = Policy {
        ipv4: Chain::REJECT,
        ipv6: Chain::ACCEPT,
    };
    let accepts = |destination| {
        policy
            .evaluate(
                prefix(destination),
                Source::Own,
                PeerType::Internal,
                &Arc::new(path()),
            )
            .is_ok()
    };
    assert_eq!((accepts("10.0.0.0/8"), accepts("fd00::/48")), (false, true));
}

#[test]
fn what_kept_a_route_out_is_told_in_words() {
    let by = RejectedBy::Rule {
        filter: "no-defaults".into(),
        rule: 2,
    };
    assert_eq!(by.to_string(), "rule 2 of the filter no-defaults rejects it");
    assert_eq!(RejectedBy::Default.to_string(), "no filter lets it through");
    assert_eq!(Community::Standard((65000 << 16) | 100).to_string(), "65000:100");
    assert_eq!(Community::Large([65000, 1, 2]).to_string(), "65000:1:2");
    let opaque = Community::Extended([3, 6, 0, 0, 0, 0, 0, 1]);
    assert_eq!(opaque.to_string(), "0x0306000000000001");
}
