//! A bundle of all that tells how a node or a cluster is, for somebody who has to find a fault elsewhere: a gzipped tar.
//!
//! Nothing that proves who somebody is leaves by it: every file passes [`scrubbed`] on its way in.

use std::collections::BTreeMap;
use std::io;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;

/// A file in the bundle is cut off beyond so many bytes: the last part is kept, where the present is.
const FILE_MAX: usize = 16 << 20;

/// What stands in the place of a secret.
const REMOVED: &str = "(removed)";

/// Words in the name of a field that holds a secret. References to Secrets are names, and stay.
const SECRET_WORDS: [&str; 8] = [
    "password",
    "passwd",
    "token",
    "client-key-data",
    "privatekey",
    "private_key",
    "authorization",
    "last-applied-configuration",
];

/// Files by their names.
#[derive(Debug, Default)]
pub struct Bundle {
    files: BTreeMap<String, String>,
    /// What is missing, and why: a line each.
    missing: Vec<String>,
}

impl Bundle {
    /// Puts in an answer as JSON, or says why there is none.
    pub fn answer<T: Serialize, E: std::fmt::Display>(&mut self, name: &str, answer: Result<T, E>) {
        let text = answer
            .map_err(|error| error.to_string())
            .and_then(|answer| serde_json::to_string_pretty(&answer).map_err(|error| error.to_string()));
        self.text(name, text);
    }

    /// Puts in a text without its secrets, or says why there is none.
    pub fn text<E: std::fmt::Display>(&mut self, name: &str, text: Result<String, E>) {
        match text {
            Ok(text) => {
                let mut text = scrubbed(&text);
                if let Some(more @ 1..) = text.len().checked_sub(FILE_MAX) {
                    let cut = (more..text.len()).find(|at| text.is_char_boundary(*at));
                    text = text.split_off(cut.unwrap_or(text.len()));
                    self.missing
                        .push(format!("{name}: the first {more} bytes are left out"));
                }
                self.files.insert(name.to_owned(), text);
            }
            Err(error) => self.missing.push(format!("{name}: {error}")),
        }
    }

    /// Names of what is in it.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// What is missing, and why.
    #[must_use]
    pub fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Writes all of it as a gzipped tar; all files lie in a folder of this name, made at `time` (seconds since 1970).
    ///
    /// # Errors
    /// When `output` cannot be written.
    pub fn write(&self, output: impl io::Write, folder: &str, time: u64) -> io::Result<()> {
        let mut archive = tar::Builder::new(GzEncoder::new(output, Compression::default()));
        let missing = self.missing.iter().map(|line| scrubbed(&format!("{line}\n")));
        let missing = (!self.missing.is_empty()).then(|| ("missing.txt".to_owned(), missing.collect()));
        for (name, text) in self.files.clone().into_iter().chain(missing) {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(time);
            archive.append_data(&mut header, format!("{folder}/{name}"), text.as_bytes())?;
        }
        archive.into_inner()?.finish()?.flush()
    }
}

/// A text without what stands after the name of a secret: in YAML, JSON, a log's `name=value` and a header of HTTP.
#[must_use]
pub fn scrubbed(text: &str) -> String {
    let mut scrubbed = String::with_capacity(text.len());
    // Deeper lines that follow the name of a secret belong to it, as YAML has them.
    let mut inside: Option<usize> = None;
    for line in text.split_inclusive('\n') {
        let depth = line.len() - line.trim_start().len();
        if inside.is_some_and(|of| depth > of && !line.trim().is_empty()) {
            continue;
        }
        inside = None;
        match secret_at(line) {
            None => scrubbed.push_str(line),
            Some(at) => {
                scrubbed.push_str(line.get(..at).unwrap_or_default());
                scrubbed.push(' ');
                scrubbed.push_str(REMOVED);
                // What was one line of JSON stays one field.
                if line.trim_end().ends_with(',') {
                    scrubbed.push(',');
                }
                scrubbed.push('\n');
                inside = Some(depth);
            }
        }
    }
    scrubbed
}

/// Where in a line a secret begins: after the `:` or `=` that follows a name with such a word in it.
fn secret_at(line: &str) -> Option<usize> {
    let lower = line.to_ascii_lowercase();
    let found = SECRET_WORDS.iter().filter_map(|word| {
        let (begin, _) = lower.match_indices(word).find(|(begin, word)| {
            // A name ends with its quotes, and then there is a sign; a sentence goes on.
            let after = lower.get(begin + word.len()..).unwrap_or_default();
            let name =
                after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_-.\"'\\".contains(c));
            let is_reference = ["ref", "file", "secrets", "name"]
                .iter()
                .any(|reference| after.trim_start_matches(['_', '-']).starts_with(reference));
            !is_reference && name.trim_start().starts_with([':', '='])
        })?;
        let sign = lower.get(begin..)?.find([':', '='])?;
        Some(begin + sign + 1)
    });
    found.min()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const SECRET: &str = "correct-horse";

    /// The files of a written bundle.
    fn unpacked(written: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(written));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            (path, text)
        });
        entries.collect()
    }

    #[test]
    fn a_password_is_in_no_file_whatever_form_it_has_and_all_else_is() {
        let mut bundle = Bundle::default();
        let forms = [
            ("a.yaml", format!("bgp:\n  password: {SECRET}\n  port: 179\n")),
            (
                "b.yaml",
                format!("bgp:\n  password: |\n    {SECRET}\n    {SECRET}\n  port: 179\n"),
            ),
            (
                "c.json",
                format!("{{\n  \"md5Password\": \"{SECRET}\",\n  \"port\": 179\n}}"),
            ),
            (
                "d.log",
                format!("10:00 INFO dialing peer=1 md5_password={SECRET}\nport 179\n"),
            ),
            ("e.txt", format!("Authorization: Bearer {SECRET}\nport 179\n")),
            (
                "f.yaml",
                format!(
                    "users:\n- name: a\n  user:\n    token: {SECRET}\n    client-key-data: {SECRET}\nport: 179\n"
                ),
            ),
            (
                "g.yaml",
                format!(
                    "annotations:\n  kubectl.kubernetes.io/last-applied-configuration: |\n    {{\"password\":\"{SECRET}\"}}\nport: 179\n"
                ),
            ),
        ];
        for (name, text) in &forms {
            bundle.text(name, Ok::<_, io::Error>(text.clone()));
        }
        let answer = serde_json::json!({"password": SECRET, "port": 179});
        bundle.answer("h.json", Ok::<_, io::Error>(answer));
        bundle.text("i.txt", Err::<String, _>(format!("password={SECRET} refused")));
        let mut written = Vec::new();
        bundle.write(&mut written, "culvert", 0).unwrap();
        let files = unpacked(&written);
        assert_eq!(files.len(), forms.len() + 2);
        for (name, text) in &files {
            assert!(!text.contains(SECRET), "{name}: {text}");
            assert!(
                text.contains("179") || name == "culvert/missing.txt",
                "{name}: {text}"
            );
        }
        assert_eq!(files["culvert/missing.txt"], "i.txt: password= (removed)\n");
    }

    #[test]
    fn names_of_secrets_and_sentences_about_them_stay() {
        for text in [
            "passwordSecrets: [bgp-passwords]\n",
            "  password:\n",
            "the passwords likely differ\n",
            "tokenFile: /run/token\n",
            "passwordRef: {name: a}\n",
            "reason: the kernel does not take the MD5 password (OutOfMemory)\n",
        ] {
            let kept = scrubbed(text);
            let is_kept = kept == text || (text.trim() == "password:" && kept.contains(REMOVED));
            assert!(is_kept, "{text:?} became {kept:?}");
        }
    }

    #[test]
    fn of_a_file_that_is_too_long_the_end_is_kept_and_that_is_said() {
        let mut bundle = Bundle::default();
        let long = "é".repeat(FILE_MAX / 2) + "xyz";
        bundle.text("long", Ok::<_, io::Error>(long));
        let kept = &bundle.files["long"];
        assert!(kept.len() <= FILE_MAX && kept.ends_with("xyz"));
        assert_eq!(bundle.missing(), ["long: the first 3 bytes are left out"]);
    }
}
