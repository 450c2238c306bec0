//! Conformance, step by step: each file in `steps/` is a conversation with one speaker. A line that begins with `>` is
//! an input, one with `<` is what came of it; `#` is a comment. `UPDATE_GOLDEN=1` writes the answers anew, to be read
//! before they are committed.
//!
//! The speaker is 172.18.0.10 of AS 64512, with hold time 90 s, connect retry 5 s and restart time 120 s. Its
//! connections are c1, c2, … in the order in which they are dialled or accepted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod language;
mod words;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use language::Conversation;

fn steps() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/conformance/steps");
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files
}

/// The conversation with the answers that the speaker gives now.
fn replay(text: &str) -> String {
    let mut out = String::new();
    let mut conversation = Conversation::new();
    for line in text.lines().filter(|line| !line.starts_with('<')) {
        writeln!(out, "{line}").unwrap();
        if let Some(input) = line.strip_prefix('>') {
            for answer in conversation.say(input.trim()) {
                writeln!(out, "< {answer}").unwrap();
            }
        }
    }
    out
}

#[test]
fn every_conversation_goes_as_written() {
    let update = std::env::var("UPDATE_GOLDEN").is_ok();
    let mut differing = Vec::new();
    for file in steps() {
        let written = fs::read_to_string(&file).unwrap();
        let now = replay(&written);
        if update {
            fs::write(&file, now).unwrap();
        } else if now != written {
            let first = now
                .lines()
                .zip(written.lines())
                .find(|(now, written)| now != written);
            differing.push(format!("{}: now and written: {first:#?}", file.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
    assert!(steps().len() >= 10, "the conversations are there");
}
