//! The language, word by word, and what is said where it is not kept.

use std::collections::BTreeMap;

use super::{Selector, SelectorError};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// Whether `selector` means an object with the labels `rack: a1`, `zone: "east"`, `node-role.kubernetes.io/worker: ""`.
fn selects(selector: &str) -> bool {
    let labels = labels(&[
        ("rack", "a1"),
        ("zone", "east"),
        ("node-role.kubernetes.io/worker", ""),
    ]);
    match Selector::parse(selector) {
        Ok(selector) => selector.matches(&labels),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn each_operator_means_what_it_says() {
    let table = [
        ("", true),
        ("  ", true),
        ("all()", true),
        ("all( )", true),
        ("global()", true),
        ("has(rack)", true),
        ("has(node-role.kubernetes.io/worker)", true),
        ("has(missing)", false),
        ("!has(missing)", true),
        ("rack == 'a1'", true),
        ("rack == \"a1\"", true),
        ("rack=='a2'", false),
        ("rack != 'a2'", true),
        ("rack != 'a1'", false),
        ("rack in {'a1', 'a2'}", true),
        ("rack in {}", false),
        ("rack in {'b'}", false),
        ("rack not in {'b'}", true),
        ("rack notin {'a1'}", false),
        ("rack contains '1'", true),
        ("rack contains '2'", false),
        ("rack starts with 'a'", true),
        ("rack startswith 'b'", false),
        ("rack ends with '1'", true),
        ("rack endswith 'a'", false),
        ("node-role.kubernetes.io/worker == ''", true),
    ];
    for (selector, expected) in table {
        assert_eq!(selects(selector), expected, "{selector}");
    }
}

#[test]
fn an_object_without_the_label_is_what_it_is_said_not_to_be() {
    for (selector, expected) in [
        ("missing == ''", false),
        ("missing != 'x'", true),
        ("missing in {'x'}", false),
        ("missing not in {'x'}", true),
        ("missing contains ''", false),
        ("missing starts with ''", false),
        ("missing ends with ''", false),
    ] {
        assert_eq!(selects(selector), expected, "{selector}");
    }
}

#[test]
fn and_binds_before_or_and_not_before_both() {
    for (selector, expected) in [
        ("has(rack) || has(no) && has(no)", true),
        ("(has(rack) || has(no)) && has(no)", false),
        ("has(no) && has(no) || has(rack)", true),
        ("!has(rack) || has(zone)", true),
        ("!(has(rack) || has(zone))", false),
        ("!!has(rack)", true),
        ("! has(no) && rack == 'a1' && zone == 'east'", true),
    ] {
        assert_eq!(selects(selector), expected, "{selector}");
    }
}

#[test]
fn labels_named_like_words_of_the_language_are_labels() {
    let labels = labels(&[("in", "x"), ("not", "x"), ("all", "x"), ("has", "x")]);
    for selector in [
        "in == 'x'",
        "not in {'x'}",
        "all == 'x'",
        "has in {'x'}",
        "has(all)",
    ] {
        let parsed = Selector::parse(selector).unwrap_or_else(|e| panic!("{e}"));
        assert!(parsed.matches(&labels), "{selector}");
    }
}

#[test]
fn what_is_not_understood_is_named_with_its_place() {
    for (selector, words) in [
        ("rack = 'a'", "at character 6 stands '=', where ==, != , in"),
        (
            "rack == a1",
            "at character 9 stands \"a1\", where a string in quotation marks should",
        ),
        ("rack ==", "at character 8 stands the end, where a string"),
        (
            "rack in {'a' 'b'}",
            "at character 14 stands '\\'', where , or } should",
        ),
        ("has(rack", "at character 9 stands the end, where ) should"),
        ("any()", "at character 1 stands \"any\", where a label"),
        (
            "has(rack) has(zone)",
            "at character 11 stands \"has\", where &&, || or the end should",
        ),
        ("(rack == 'a'", "the end, where ) should"),
        ("rack == 'a", "the string that begins at character 9 does not end"),
        ("é == 'a'", "at character 1 stands 'é'"),
        ("!= 'a'", "at character 1 stands '!'"),
        ("rack starts 'a'", "at character 6 stands \"starts\""),
    ] {
        let error =
            Selector::parse(selector).map_or_else(|e| e.to_string(), |s| panic!("{s} was understood"));
        let words = words.replace("!= ,", "!=,");
        assert!(error.contains(&words), "{selector}: {error}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let deep = |n: usize| format!("{}all(){}", "(".repeat(n), ")".repeat(n));
    assert!(Selector::parse(&deep(64)).is_ok());
    assert!(matches!(
        Selector::parse(&deep(100_000 / 4)),
        Err(SelectorError::TooDeep { .. })
    ));
    assert!(matches!(
        Selector::parse(&"!".repeat(60_000)),
        Err(SelectorError::TooDeep { .. })
    ));
    let long = format!("rack == '{}'", "a".repeat(70_000));
    assert!(matches!(
        Selector::parse(&long),
        Err(SelectorError::TooLong { .. })
    ));
    // Wide is not deep.
    let wide = vec!["has(rack)"; 1000].join(" || ");
    assert!(selects(&wide));
}

#[test]
fn it_is_shown_as_it_was_written() {
    for (selector, shown) in [("", "all()"), ("rack=='a'", "rack=='a'")] {
        assert_eq!(Selector::parse(selector).unwrap_or_default().to_string(), shown);
    }
}
