//! Malformed UPDATEs, each with the section that says what it costs and the verdict expected.

mod resets;

use culvert_bgp::wire::message::{Message, Notification, Update};
use culvert_bgp::wire::{Decoded, Decoder, Negotiated, Verdict, decode};

use crate::{EXTERNAL, INTERNAL, TWO_OCTETS, clean_update, hex, nlri, update};

pub(crate) const ORIGIN: &str = "40 01 01 00";
pub(crate) const AS_PATH: &str = "40 02 06 02 01 0000fde9";
pub(crate) const NEXT_HOP: &str = "40 03 04 c0000201";
pub(crate) const LOCAL_PREF: &str = "40 05 04 00000064";

/// The prefix that every message of the tables announces.
pub(crate) const ANNOUNCED: &str = "18 0a0001";

use Verdict::{Accept, DiscardAttribute as Discard, TreatAsWithdraw as Withdraw};

/// What a malformed attribute makes of an announcement: the faults, by type code and verdict.
struct Row {
    section: &'static str,
    what: &'static str,
    attributes: String,
    faults: Vec<(u8, Verdict)>,
}

fn row(section: &'static str, what: &'static str, attributes: &[&str], faults: &[(u8, Verdict)]) -> Row {
    Row {
        section,
        what,
        attributes: attributes.concat(),
        faults: faults.to_vec(),
    }
}

/// The attributes of an internal route, and more.
fn and(section: &'static str, what: &'static str, more: &str, faults: &[(u8, Verdict)]) -> Row {
    row(
        section,
        what,
        &[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF, more],
        faults,
    )
}

pub(crate) fn read(octets: &[u8], negotiated: Negotiated) -> (Update, Vec<(u8, Verdict)>) {
    let Decoded { message, faults } = decode(octets, negotiated).unwrap();
    let Message::Update(update) = message else {
        panic!("not an UPDATE: {message:?}")
    };
    (
        update,
        faults
            .iter()
            .map(|fault| (fault.attribute, fault.verdict))
            .collect(),
    )
}

fn check(rows: Vec<Row>, negotiated: Negotiated) {
    for Row {
        section,
        what,
        attributes,
        faults,
    } in rows
    {
        let octets = update(&[], &hex(&attributes), &hex(ANNOUNCED));
        let (update, found) = read(&octets, negotiated);
        assert_eq!(found, faults, "{section}: {what}");
        let prefixes = vec![nlri("10.0.1.0/24")];
        // RFC 7606 §2 (test): treat as withdraw moves the prefixes; anything weaker leaves them.
        if faults.iter().any(|(_, verdict)| *verdict == Withdraw) {
            assert_eq!(
                update,
                Update {
                    withdrawn: prefixes,
                    ..Update::default()
                },
                "{section}: {what}"
            );
        } else {
            assert_eq!(update.announced, prefixes, "{section}: {what}");
            assert!(update.attributes.is_some(), "{section}: {what}");
        }
    }
}

#[test]
fn a_malformed_well_known_attribute_costs_the_routes() {
    let origin = |section, what, origin| {
        row(
            section,
            what,
            &[origin, AS_PATH, NEXT_HOP, LOCAL_PREF],
            &[(1, Withdraw)],
        )
    };
    let hop = |section, what, hop| {
        row(
            section,
            what,
            &[ORIGIN, AS_PATH, hop, LOCAL_PREF],
            &[(3, Withdraw)],
        )
    };
    let pref = |section, what, pref| {
        row(
            section,
            what,
            &[ORIGIN, AS_PATH, NEXT_HOP, pref],
            &[(5, Withdraw)],
        )
    };
    check(
        vec![
            origin("RFC 7606 §7.1", "ORIGIN of no octet", "40 01 00"),
            origin("RFC 7606 §7.1", "ORIGIN of two octets", "40 01 02 0000"),
            origin("RFC 7606 §7.1", "ORIGIN 3", "40 01 01 03"),
            origin("RFC 7606 §3 c", "ORIGIN marked optional", "c0 01 01 00"),
            origin("RFC 7606 §3 c", "ORIGIN not transitive", "00 01 01 00"),
            hop("RFC 7606 §7.3", "NEXT_HOP of three octets", "40 03 03 c00002"),
            hop("RFC 7606 §7.3", "NEXT_HOP of five octets", "40 03 05 c000020101"),
            hop("RFC 7606 §7.3", "NEXT_HOP of no octet", "40 03 00"),
            hop("RFC 7606 §3 c", "NEXT_HOP marked optional", "80 03 04 c0000201"),
            hop("RFC 7606 §3 e", "NEXT_HOP 0.0.0.0", "40 03 04 00000000"),
            hop("RFC 7606 §3 e", "NEXT_HOP a group", "40 03 04 e0000001"),
            hop("RFC 7606 §3 e", "NEXT_HOP broadcast", "40 03 04 ffffffff"),
            pref("RFC 7606 §7.5", "LOCAL_PREF of three octets", "40 05 03 000064"),
            pref("RFC 7606 §7.5", "LOCAL_PREF of no octet", "40 05 00"),
            pref("RFC 7606 §3 c", "LOCAL_PREF marked optional", "c0 05 04 00000064"),
        ],
        INTERNAL,
    );
}

#[test]
fn a_malformed_as_path_costs_the_routes() {
    let path = |section, what, path| {
        row(
            section,
            what,
            &[ORIGIN, path, NEXT_HOP, LOCAL_PREF],
            &[(2, Withdraw)],
        )
    };
    check(
        vec![
            path("RFC 7606 §7.2", "a segment type of 0", "40 02 06 00 01 0000fde9"),
            path("RFC 7606 §7.2", "a segment type of 5", "40 02 06 05 01 0000fde9"),
            path("RFC 7606 §7.2", "an empty segment", "40 02 02 02 00"),
            path(
                "RFC 7606 §7.2",
                "a segment that runs over",
                "40 02 06 02 02 0000fde9",
            ),
            path(
                "RFC 7606 §7.2",
                "numbers of two octets for four",
                "40 02 04 02 01 fde9",
            ),
            path(
                "RFC 7606 §7.2",
                "one octet left over",
                "40 02 07 02 01 0000fde9 02",
            ),
            path(
                "RFC 7606 §7.2",
                "two octets left over",
                "40 02 08 02 01 0000fde9 02 01",
            ),
            path("RFC 7606 §3 c", "marked optional", "c0 02 06 02 01 0000fde9"),
            path(
                "RFC 7607 §2",
                "AS 0 in a sequence",
                "40 02 0a 02 02 0000fde9 00000000",
            ),
            path("RFC 9774 §3", "an AS_SET", "40 02 06 01 01 0000fde9"),
            path(
                "RFC 9774 §3",
                "an AS_SET behind a sequence",
                "40 02 0c 02 01 0000fde9 01 01 0000fdea",
            ),
            path("RFC 9774 §3", "an AS_CONFED_SET", "40 02 06 04 01 0000fde9"),
            path(
                "RFC 5065 §5.3",
                "an AS_CONFED_SEQUENCE",
                "40 02 06 03 01 0000fde9",
            ),
        ],
        INTERNAL,
    );
}

#[test]
fn a_missing_mandatory_attribute_costs_the_routes() {
    check(
        vec![
            row(
                "RFC 7606 §3 d",
                "no ORIGIN",
                &[AS_PATH, NEXT_HOP, LOCAL_PREF],
                &[(1, Withdraw)],
            ),
            row(
                "RFC 7606 §3 d",
                "no AS_PATH",
                &[ORIGIN, NEXT_HOP, LOCAL_PREF],
                &[(2, Withdraw)],
            ),
            row(
                "RFC 7606 §3 d",
                "no NEXT_HOP",
                &[ORIGIN, AS_PATH, LOCAL_PREF],
                &[(3, Withdraw)],
            ),
            row(
                "RFC 4271 §5.1.5",
                "no LOCAL_PREF",
                &[ORIGIN, AS_PATH, NEXT_HOP],
                &[(5, Withdraw)],
            ),
            row(
                "RFC 7606 §3 d",
                "nothing",
                &[],
                &[(1, Withdraw), (2, Withdraw), (3, Withdraw), (5, Withdraw)],
            ),
        ],
        INTERNAL,
    );
    check(
        vec![row(
            "RFC 4271 §5.1.5",
            "no LOCAL_PREF, external",
            &[ORIGIN, AS_PATH, NEXT_HOP],
            &[],
        )],
        EXTERNAL,
    );
}

/// Optional attributes beside a sound announcement: section, what, octets, type code, verdict.
#[rustfmt::skip]
const OPTIONAL: &[(&str, &str, &str, u8, Verdict)] = &[
    ("RFC 7606 §7.4", "MULTI_EXIT_DISC of three octets", "80 04 03 000001", 4, Withdraw),
    ("RFC 7606 §3 c", "MULTI_EXIT_DISC transitive", "c0 04 04 00000001", 4, Withdraw),
    ("RFC 7606 §7.6", "ATOMIC_AGGREGATE of one octet", "40 06 01 00", 6, Discard),
    ("RFC 7606 §3 f", "ATOMIC_AGGREGATE marked optional", "c0 06 00", 6, Discard),
    ("RFC 7606 §7.7", "AGGREGATOR of six octets for eight", "c0 07 06 fde9 c0000201", 7, Discard),
    ("RFC 7607 §2", "AGGREGATOR with AS 0", "c0 07 08 00000000 c0000201", 7, Discard),
    ("RFC 7606 §3 f", "AGGREGATOR well-known", "40 07 08 0000fde9 c0000201", 7, Discard),
    ("RFC 7606 §7.8", "COMMUNITIES of three octets", "c0 08 03 fc0000", 8, Withdraw),
    ("RFC 7606 §7.8", "COMMUNITIES of no octet", "c0 08 00", 8, Withdraw),
    ("RFC 7606 §3 c", "COMMUNITIES not transitive", "80 08 04 fc000064", 8, Withdraw),
    ("RFC 7606 §7.9", "ORIGINATOR_ID of five octets", "80 09 05 c000020101", 9, Withdraw),
    ("RFC 7606 §7.9", "ORIGINATOR_ID of no octet", "80 09 00", 9, Withdraw),
    ("RFC 4456 §8", "ORIGINATOR_ID 0.0.0.0", "80 09 04 00000000", 9, Withdraw),
    ("RFC 7606 §3 c", "ORIGINATOR_ID transitive", "c0 09 04 c0000201", 9, Withdraw),
    ("RFC 7606 §3 c", "CLUSTER_LIST transitive", "c0 0a 04 c0000201", 10, Withdraw),
    ("RFC 7606 §7.14", "EXTENDED_COMMUNITIES of no octet", "c0 10 00", 16, Withdraw),
    ("RFC 7606 §7.14", "EXTENDED_COMMUNITIES of twelve octets", "c0 10 0c 0002fc0000000064 00000000", 16, Withdraw),
    ("RFC 7606 §3 c", "EXTENDED_COMMUNITIES not transitive", "80 10 08 0002fc0000000064", 16, Withdraw),
    ("RFC 8092 §5", "LARGE_COMMUNITY not transitive", "80 20 0c 000000010000000200000003", 32, Withdraw),
    ("RFC 7606 §7.10", "CLUSTER_LIST of six octets", "80 0a 06 c00002010000", 10, Withdraw),
    ("RFC 7606 §7.10", "CLUSTER_LIST of no octet", "80 0a 00", 10, Withdraw),
    ("RFC 7606 §7.14", "EXTENDED_COMMUNITIES of four octets", "c0 10 04 00020000", 16, Withdraw),
    ("RFC 8092 §6", "LARGE_COMMUNITY of eight octets", "c0 20 08 0000fc0000000001", 32, Withdraw),
    ("RFC 8092 §6", "LARGE_COMMUNITY of no octet", "c0 20 00", 32, Withdraw),
    ("RFC 6793 §4.1", "AS4_PATH between four-octet peers", "c0 11 06 02 01 0000fde9", 17, Discard),
    ("RFC 6793 §4.1", "AS4_AGGREGATOR likewise", "c0 12 08 0000fde9 c0000201", 18, Discard),
];

#[test]
fn a_malformed_optional_attribute_costs_what_its_section_says() {
    let rows = OPTIONAL
        .iter()
        .map(|(section, what, octets, code, verdict)| and(section, what, octets, &[(*code, *verdict)]));
    check(rows.collect(), INTERNAL);
}

#[test]
fn what_only_internal_peers_may_send_is_discarded_from_external_ones() {
    let from = |section, what, more: &str| row(section, what, &[ORIGIN, AS_PATH, NEXT_HOP, more], &[]);
    let mut rows = vec![
        from("RFC 7606 §7.5", "LOCAL_PREF", LOCAL_PREF),
        from("RFC 7606 §7.5", "LOCAL_PREF, malformed as well", "40 05 01 00"),
        from("RFC 7606 §7.9", "ORIGINATOR_ID", "80 09 04 c0000201"),
        from("RFC 7606 §7.10", "CLUSTER_LIST", "80 0a 04 c0000201"),
        from("RFC 7606 §7.9", "ORIGINATOR_ID, malformed as well", "80 09 01 00"),
        from("RFC 7606 §7.10", "CLUSTER_LIST, malformed as well", "80 0a 01 00"),
    ];
    for (row, code) in rows.iter_mut().zip([5, 5, 9, 10, 9, 10]) {
        row.faults = vec![(code, Discard)];
    }
    check(rows, EXTERNAL);
    let octets = update(
        &[],
        &hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat()),
        &hex(ANNOUNCED),
    );
    let (update, _) = read(&octets, EXTERNAL);
    assert_eq!(update.attributes.unwrap().local_pref, None);
}

#[test]
fn a_sound_attribute_in_unusual_clothes_is_no_fault() {
    check(
        vec![
            and(
                "RFC 7606 §3 c",
                "Partial and the low bits are not looked at",
                "ef 08 04 fc000064",
                &[],
            ),
            and(
                "RFC 4271 §4.3",
                "an extended length for a short value",
                "90 04 0004 00000001",
                &[],
            ),
            and(
                "RFC 7606 §7.9",
                "ORIGINATOR_ID, internal",
                "80 09 04 c0000201",
                &[],
            ),
            and(
                "RFC 7606 §7.10",
                "CLUSTER_LIST, internal",
                "80 0a 08 c0000201 c0000202",
                &[],
            ),
            and(
                "RFC 4271 §5",
                "an unknown optional attribute",
                "80 63 02 beef",
                &[],
            ),
            row(
                "RFC 4271 §5",
                "an order of its own",
                &[LOCAL_PREF, NEXT_HOP, AS_PATH, ORIGIN],
                &[],
            ),
            row(
                "RFC 7606 §4",
                "an AS_PATH of no octet",
                &[ORIGIN, "40 02 00", NEXT_HOP, LOCAL_PREF],
                &[],
            ),
        ],
        INTERNAL,
    );
}

#[test]
fn of_an_attribute_that_stands_twice_the_first_counts() {
    // RFC 7606 §3 g (test).
    check(
        vec![
            and("RFC 7606 §3 g", "ORIGIN twice", "40 01 01 02", &[(1, Discard)]),
            and(
                "RFC 7606 §3 g",
                "ORIGIN again, malformed",
                "40 01 01 09",
                &[(1, Discard)],
            ),
            and(
                "RFC 7606 §3 g",
                "an unknown one twice",
                "c0 63 01 01 c0 63 01 02",
                &[(99, Discard)],
            ),
        ],
        INTERNAL,
    );
    let twice = and("", "", "c0 63 01 01 c0 63 01 02", &[]).attributes;
    let (update, _) = read(&update(&[], &hex(&twice), &hex(ANNOUNCED)), INTERNAL);
    assert_eq!(update.attributes.unwrap().unknown, [(99, vec![1])]);
}

#[test]
fn an_attribute_that_runs_over_the_area_costs_the_routes_and_no_more() {
    // RFC 7606 §4 (test): the area's length still tells where the prefixes begin.
    check(
        vec![
            and(
                "RFC 7606 §4",
                "a length beyond the area",
                "c0 08 08 fc000064",
                &[(8, Withdraw)],
            ),
            and("RFC 7606 §4", "no room for a length", "c0 08", &[(8, Withdraw)]),
            and(
                "RFC 7606 §4",
                "no room for an extended length",
                "d0 08 00",
                &[(8, Withdraw)],
            ),
            and("RFC 7606 §4", "one octet", "c0", &[(0, Withdraw)]),
            and(
                "RFC 7606 §4",
                "AGGREGATOR, which alone would be discarded",
                "c0 07 08 00",
                &[(7, Withdraw)],
            ),
        ],
        INTERNAL,
    );
}

#[test]
fn the_strongest_verdict_of_several_counts() {
    // RFC 7606 §3 h (test).
    check(
        vec![and(
            "RFC 7606 §3 h",
            "a discard and a withdrawal",
            "40 06 01 00 c0 08 03 fc0000 80 04 00",
            &[(6, Discard), (8, Withdraw), (4, Withdraw)],
        )],
        INTERNAL,
    );
}

#[test]
fn a_discarded_attribute_where_nothing_is_announced_costs_nothing() {
    // RFC 7606 §5.2 (test): attribute discard is the one verdict that does not need routes.
    let octets = update(&hex("18 0a0001"), &hex("40 06 01 00"), &[]);
    let (update, faults) = read(&octets, INTERNAL);
    assert_eq!(
        update,
        Update {
            withdrawn: vec![nlri("10.0.1.0/24")],
            ..Update::default()
        }
    );
    assert_eq!(faults, [(6, Discard)]);
}

#[test]
fn withdrawn_routes_stay_withdrawn_beside_those_that_a_fault_withdraws() {
    let attributes = hex(&["40 01 01 03", AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let octets = update(&hex("18 0a0002"), &attributes, &hex(ANNOUNCED));
    let (update, faults) = read(&octets, INTERNAL);
    assert_eq!(update.withdrawn, [nlri("10.0.2.0/24"), nlri("10.0.1.0/24")]);
    assert_eq!(faults, [(1, Withdraw)]);
}

#[test]
fn a_prefix_both_withdrawn_and_announced_is_announced() {
    // RFC 4271 §4.3 (test).
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let update = clean_update(
        &update(&hex("18 0a0001 18 0a0002"), &attributes, &hex(ANNOUNCED)),
        INTERNAL,
    );
    assert_eq!(update.withdrawn, [nlri("10.0.2.0/24")]);
    assert_eq!(update.announced, [nlri("10.0.1.0/24")]);
}

#[test]
fn bits_behind_a_prefix_mean_nothing() {
    // RFC 4271 §4.3 (test): the value of trailing bits is irrelevant.
    let update = clean_update(&update(&hex("19 0a0001ff 04 ff"), &[], &[]), INTERNAL);
    assert_eq!(update.withdrawn, [nlri("10.0.1.128/25"), nlri("240.0.0.0/4")]);
}

#[test]
fn a_group_is_ignored_and_the_other_prefixes_stand() {
    // RFC 4271 §6.3 (test).
    let attributes = hex(&[ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let (update, faults) = read(&update(&[], &attributes, &hex("08 e0 18 0a0001")), INTERNAL);
    assert_eq!(update.announced, [nlri("10.0.1.0/24")]);
    assert_eq!(faults, [(0, Accept)]);
}

#[test]
fn a_fault_says_which_attribute_what_and_at_what_cost() {
    let attributes = hex(&["40 01 01 03", AS_PATH, NEXT_HOP, LOCAL_PREF].concat());
    let decoded = decode(&update(&[], &attributes, &hex(ANNOUNCED)), INTERNAL).unwrap();
    let texts: Vec<_> = decoded.faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["ORIGIN: value is 3, not 0 (IGP), 1 (EGP) or 2 (incomplete); the routes are treated as withdrawn"]
    );
}

#[test]
fn lengths_of_a_peer_of_two_octets_are_its_own() {
    check(
        vec![
            row(
                "RFC 7606 §7.7",
                "AGGREGATOR of eight octets for six",
                &[
                    ORIGIN,
                    "40 02 04 02 01 fde9",
                    NEXT_HOP,
                    "c0 07 08 0000fde9 c0000201",
                ],
                &[(7, Discard)],
            ),
            row(
                "RFC 7606 §7.2",
                "numbers of four octets for two",
                &[ORIGIN, "40 02 06 02 01 0000fde9", NEXT_HOP],
                &[(2, Withdraw)],
            ),
        ],
        TWO_OCTETS,
    );
}

#[test]
fn of_very_many_faults_a_few_are_told_and_the_strongest_counts() {
    // 500 times the same unknown attribute, and a bad ORIGIN behind them.
    let many = "c0 63 00".repeat(500);
    let attributes = hex(&[&many, AS_PATH, NEXT_HOP, LOCAL_PREF, "40 01 01 09"].concat());
    let (update, faults) = read(&update(&[], &attributes, &hex(ANNOUNCED)), INTERNAL);
    assert_eq!(update.withdrawn, [nlri("10.0.1.0/24")]);
    assert!(faults.len() <= 32, "{} faults", faults.len());
    assert!(faults.contains(&(1, Withdraw)));
}

#[test]
fn of_two_faults_the_first_is_told_whatever_came_before() {
    // Both attributes are cut short; what was remembered of a sound message must not change which one is named.
    let rest = [ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF].concat();
    let sound = update(&[], &hex(&rest), &hex(ANNOUNCED));
    let (reach, unreach) = ("80 0e 04 0002 01 10", "80 0f 02 0002");
    for (first, second) in [(reach, unreach), (unreach, reach)] {
        let broken = update(&[], &hex(&[first, second, &rest].concat()), &[]);
        let mut decoder = Decoder::new(crate::BOTH_FAMILIES);
        assert!(decoder.decode(&sound).is_ok());
        assert_eq!(
            decoder.decode(&broken),
            Err(Notification::with_data(3, 9, hex(first)))
        );
    }
}
