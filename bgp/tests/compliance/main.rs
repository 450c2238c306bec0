//! COMPLIANCE.md is held to the code and the tests: whatever it cites is there.

// A test that cannot go on is a test that failed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// An RFC and a section of it; the section is empty where the RFC as a whole is meant.
type Citation = (String, String);

/// A row of a table, by the names of the columns.
struct Row {
    line: usize,
    sections: String,
    state: String,
    code: String,
    tests: String,
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rows() -> Vec<Row> {
    let page = fs::read_to_string(here().join("COMPLIANCE.md")).unwrap();
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for (number, line) in page.lines().enumerate() {
        let Some(line) = line.strip_prefix("| ") else {
            continue;
        };
        let cells: Vec<String> = line
            .trim_end_matches('|')
            .split(" | ")
            .map(|cell| cell.trim().to_owned())
            .collect();
        if cells[0] == "RFC section" {
            columns = cells;
            continue;
        }
        assert_eq!(
            cells.len(),
            columns.len(),
            "line {}: cells and columns differ",
            number + 1
        );
        let cell = |name: &str| {
            let place = columns.iter().position(|column| column == name);
            let place =
                place.unwrap_or_else(|| panic!("line {}: its table has no column {name}", number + 1));
            cells[place].clone()
        };
        rows.push(Row {
            line: number + 1,
            sections: cell("RFC section"),
            state: cell("State"),
            code: cell("Code"),
            tests: cell("Test"),
        });
    }
    assert!(rows.len() > 50, "{} rows are no page", rows.len());
    rows
}

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// The citations of a text: after the number of an RFC, its sections, each behind a paragraph sign. A row needs no
/// "RFC" before the number, code does.
fn citations(text: &str, mark: &str) -> BTreeSet<Citation> {
    let mut found = BTreeSet::new();
    let mut rfc = String::new();
    let words: Vec<&str> = text
        .split([' ', '\n'])
        .filter(|word| !matches!(*word, "" | "//" | "///" | "//!"))
        .collect();
    let mut before = "";
    for word in words {
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '§');
        let is_number = bare.len() == 4 && bare.bytes().all(|digit| digit.is_ascii_digit());
        if is_number && (mark.is_empty() || before.ends_with(mark)) {
            bare.clone_into(&mut rfc);
            found.insert((rfc.clone(), String::new()));
        } else if let Some(section) = bare.strip_prefix('§').filter(|_| !rfc.is_empty()) {
            found.insert((rfc.clone(), section.to_owned()));
        }
        before = word;
    }
    found
}

/// All files below `folder`, by name.
fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, found);
        } else {
            found.push(path);
        }
    }
    found.sort();
}

fn files() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in ["src", "tests", "fuzz", "../agent/src"] {
        files_below(&here().join(folder), &mut found);
    }
    found
}

/// Whether `place`, a file or a folder by its name, holds the test `function`.
fn holds(path: &Path, place: &str, function: &str) -> bool {
    let folder = if place == "mesh" { "mesh_simulation" } else { place };
    let is_place = path
        .with_extension("")
        .iter()
        .any(|part| part.to_str().is_some_and(|part| part == folder));
    is_place
        && fs::read_to_string(path)
            .unwrap()
            .contains(&format!("fn {function}("))
}

#[test]
fn each_test_that_is_cited_exists() {
    let files = files();
    let mut missing = Vec::new();
    for Row {
        line, state, tests, ..
    } in rows()
    {
        for test in quoted(&tests) {
            let exists = match test.split_once("::") {
                Some((place, function)) => files.iter().any(|path| holds(path, place, function)),
                None => here()
                    .join("tests/conformance")
                    .join(test)
                    .with_extension("steps")
                    .exists(),
            };
            if !exists {
                missing.push(format!("line {line}: no test {test}"));
            }
        }
        let is_done = state.starts_with("done");
        assert!(
            !is_done || !quoted(&tests).is_empty(),
            "COMPLIANCE.md, line {line}: done, but by which test?"
        );
    }
    assert!(missing.is_empty(), "COMPLIANCE.md, {}", missing.join("\n"));
}

#[test]
fn each_requirement_that_is_done_is_cited_where_the_code_does_it() {
    let src = here().join("src");
    for Row {
        line,
        sections,
        state,
        code,
        ..
    } in rows()
    {
        let files = quoted(&code);
        let read = |file: &&str| {
            let path = if file.starts_with("agent/") {
                here().join("..").join(file)
            } else {
                src.join(file)
            };
            fs::read_to_string(path).unwrap_or_else(|_| panic!("COMPLIANCE.md, line {line}: no file {file}"))
        };
        let texts: Vec<String> = files.iter().map(read).collect();
        if !state.starts_with("done") {
            continue;
        }
        assert!(!files.is_empty(), "COMPLIANCE.md, line {line}: done, but where?");
        let wanted = citations(&sections, "");
        let there: BTreeSet<Citation> = texts.iter().flat_map(|text| citations(text, "RFC")).collect();
        let missing: Vec<_> = wanted.difference(&there).collect();
        assert!(
            missing.is_empty(),
            "COMPLIANCE.md, line {line}: the code does not cite {missing:?}"
        );
    }
}

#[test]
fn citations_are_found_in_all_their_forms() {
    let cited = |text: &str, mark| citations(text, mark).into_iter().collect::<Vec<_>>();
    let pair = |rfc: &str, section: &str| (rfc.to_owned(), section.to_owned());
    assert_eq!(
        cited("4271 §5.1.3, §6.3, 8092 §4 to §6", ""),
        [
            pair("4271", ""),
            pair("4271", "5.1.3"),
            pair("4271", "6.3"),
            pair("8092", ""),
            pair("8092", "4"),
            pair("8092", "6")
        ]
    );
    assert_eq!(
        cited("// RFC 7606 §3 g: 4096 octets, (RFC\n/// 4271 §6.1).", "RFC"),
        [
            pair("4271", ""),
            pair("4271", "6.1"),
            pair("7606", ""),
            pair("7606", "3")
        ]
    );
}
