//! The paths that a Rust source names, in `use` and elsewhere: enough of the language to see who imports whom.

/// A path in a source, as far as it is spelled there: `["crate", "control", "run"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// From 1.
    pub(crate) line: usize,
    /// Its segments.
    pub(crate) segments: Vec<String>,
}

/// All paths of two and more segments, and all that `use` names.
pub(crate) fn named(source: &str) -> Vec<Named> {
    let tokens = tokens(source);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let (line, token) = &tokens[at];
        if token == "use" || (token == "crate" && at > 0 && tokens[at - 1].1 == "extern") {
            at = use_tree(&tokens, at + 1, &[], &mut found);
        } else if is_name(token) {
            let mut segments = vec![token.clone()];
            at += 1;
            while at + 1 < tokens.len() && tokens[at].1 == "::" && is_name(&tokens[at + 1].1) {
                segments.push(tokens[at + 1].1.clone());
                at += 2;
            }
            if segments.len() > 1 {
                found.push(Named {
                    line: *line,
                    segments,
                });
            }
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one tree of a `use`, with what stands before it, and returns where it ends.
fn use_tree(tokens: &[(usize, String)], mut at: usize, before: &[String], found: &mut Vec<Named>) -> usize {
    let mut segments = before.to_vec();
    let line = tokens.get(at).map_or(0, |(line, _)| *line);
    while let Some((_, token)) = tokens.get(at) {
        match token.as_str() {
            "::" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|(_, token)| token != "}") {
                    at = use_tree(tokens, at, &segments, found);
                    at += usize::from(tokens.get(at).is_some_and(|(_, token)| token == ","));
                }
                return at + 1;
            }
            // The new name is nobody's import.
            "as" => at += 2,
            name if is_name(name) || name == "*" => {
                segments.push(name.to_owned());
                at += 1;
            }
            _ => break,
        }
    }
    found.push(Named { line, segments });
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The tokens with their lines, without comments, strings and characters.
fn tokens(source: &str) -> Vec<(usize, String)> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' {
            string(rest)
        } else if first == '\'' {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(rest.len());
            tokens.push((line, rest[..length].to_owned()));
            length
        } else if rest.starts_with("::") {
            tokens.push((line, "::".to_owned()));
            2
        } else {
            if !first.is_whitespace() {
                tokens.push((line, first.to_string()));
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// The length of a raw string, if here is one.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = after.find(|c| c != '#')?;
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let start = text.len() - body.len();
    Some(body.find(&end).map_or(text.len(), |at| start + at + end.len()))
}

/// The length of a string, quotes included.
fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character with its quotes, or of the quote of a lifetime.
fn character(text: &str) -> usize {
    let mut inside = text.char_indices().skip(1);
    match inside.next() {
        Some((_, '\\')) => text
            .get(3..)
            .and_then(|rest| rest.find('\''))
            .map_or(1, |end| end + 4),
        Some(_) => inside
            .next()
            .filter(|(_, c)| *c == '\'')
            .map_or(1, |(at, _)| at + 1),
        None => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str) -> Vec<String> {
        named(source).into_iter().map(|n| n.segments.join("::")).collect()
    }

    #[test]
    fn a_use_is_named_whole() {
        assert_eq!(paths("use a::b;"), ["a::b"]);
        assert_eq!(paths("pub(crate) use a;"), ["a"]);
        assert_eq!(paths("use ::a as b;"), ["a"]);
        assert_eq!(paths("extern crate a;"), ["a"]);
        assert_eq!(paths("use a::*;"), ["a::*"]);
    }

    #[test]
    fn groups_are_taken_apart() {
        assert_eq!(
            paths("use crate::{a, b::{c, d as e}, self, f};"),
            [
                "crate::a",
                "crate::b::c",
                "crate::b::d",
                "crate::self",
                "crate::f"
            ]
        );
        assert_eq!(
            paths("use {\n a::b,\n c,\n};\nlet x = d::e();"),
            ["a::b", "c", "d::e"]
        );
    }

    #[test]
    fn paths_outside_of_use_are_seen() {
        assert_eq!(
            paths("fn f(x: &a::B<c::D>) { e::f::<g::H>(x.i) }"),
            ["a::B", "c::D", "e::f", "g::H"]
        );
    }

    #[test]
    fn comments_and_texts_name_nothing() {
        assert_eq!(
            paths("// a::b\n/* c::d */ let x = \"e::f\\\" g::h\"; let y = r#\"i::\"j\"#;"),
            Vec::<String>::new()
        );
        assert_eq!(
            paths("let c = '\"'; let d = '\\''; a::b(); fn f<'l>(x: &'l c::D) {}"),
            ["a::b", "c::D"]
        );
    }

    #[test]
    fn lines_are_counted() {
        assert_eq!(named("\n\"\n\"\nuse a::b;\n")[0].line, 4);
    }
}
