//! What `COMPLIANCE.md` claims can be found: each test that it names is there, and the code cites each RFC.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// All text of the files below a folder, with the paths of the files.
fn read(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            found.push((path.display().to_string(), text));
        }
    }
}

/// What stands between back quotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Rows of four cells, without the heads.
fn rows(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| RFC"))
        .map(|line| {
            line.trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().to_owned())
                .collect()
        })
        .collect()
}

#[test]
fn every_test_that_is_named_exists_and_every_rfc_is_cited_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut sources, mut tests) = (Vec::new(), Vec::new());
    read(&root.join("src"), &mut sources);
    read(&root.join("tests"), &mut tests);
    let mut faults = Vec::new();
    let rows = rows(&fs::read_to_string(root.join("COMPLIANCE.md")).unwrap());
    assert!(rows.len() > 80, "the rows are found: {}", rows.len());
    for row in &rows {
        let [section, _, state, test] = row.as_slice() else {
            faults.push(format!("{row:?} has not four cells"));
            continue;
        };
        for name in quoted(test) {
            let (file, function) = name.split_once("::").unwrap_or((name, ""));
            let there = if let Some(steps) = file.strip_prefix("steps/") {
                root.join("tests/conformance/steps")
                    .join(format!("{steps}.steps"))
                    .exists()
            } else {
                let written = format!("fn {function}(");
                let named = |path: &str| function.is_empty() && path.ends_with(&format!("{file}.rs"));
                sources
                    .iter()
                    .chain(&tests)
                    .any(|(path, text)| named(path) || (!function.is_empty() && text.contains(&written)))
            };
            if !there {
                faults.push(format!("{section}: there is no test {name}"));
            }
        }
        if state.starts_with("done") && test == "-" {
            faults.push(format!("{section}: done, but no test"));
        }
        let numbers: BTreeSet<&str> = section
            .split([' ', ','])
            .filter(|word| word.len() == 4 && word.bytes().all(|octet| octet.is_ascii_digit()))
            .collect();
        for number in numbers {
            let citation = format!("RFC {number}");
            if state.starts_with("done") && !sources.iter().any(|(_, text)| text.contains(&citation)) {
                faults.push(format!("{section}: the code does not cite {citation}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
