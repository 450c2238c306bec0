//! What may be mended at once: switches of the kernel, each safe and easily put back.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The switches that are ever set, `*` for the name of a link.
const ALLOWED: [&[&str]; 4] = [
    &["net", "ipv4", "ip_forward"],
    &["net", "ipv4", "conf", "*", "rp_filter"],
    &["net", "netfilter", "nf_conntrack_max"],
    &["net", "bridge", "bridge-nf-call-iptables"],
];

/// A switch of the kernel, and the value that it should have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    /// The segments of its path under /proc/sys.
    path: Vec<String>,
    /// The value.
    value: String,
}

/// Why something was not mended.
#[derive(Debug, thiserror::Error)]
pub enum FixError {
    /// It is none of the switches that are ever set.
    #[error("{0} is none of the switches that are set by --fix: set it by hand")]
    NotAllowed(String),
    /// The kernel, or the container, refuses.
    #[error("cannot set {name} to {value}: {source}; do it on the host, as root: sysctl -w {name}={value}")]
    Refused {
        /// The switch.
        name: String,
        /// The value.
        value: String,
        /// Why.
        source: io::Error,
    },
}

impl Fix {
    /// `value` for the switch of this path, segment by segment.
    pub(super) fn sysctl(path: &[&str], value: u64) -> Self {
        Self {
            path: path.iter().map(|segment| (*segment).to_owned()).collect(),
            value: value.to_string(),
        }
    }

    /// A link's strict reverse-path filter made loose.
    pub(super) fn loose_reverse_path(link: &str) -> Self {
        Self::sysctl(&["net", "ipv4", "conf", link, "rp_filter"], 2)
    }

    /// The switch as sysctl(8) takes it: with slashes where a link has a dot in its name.
    fn name(&self) -> String {
        let has_dots = self.path.iter().any(|segment| segment.contains('.'));
        self.path.join(if has_dots { "/" } else { "." })
    }

    /// The command that does the same.
    #[must_use]
    pub fn command(&self) -> String {
        format!("sysctl -w {}={}", self.name(), self.value)
    }

    fn file(&self) -> PathBuf {
        let mut path = PathBuf::from("/proc/sys");
        path.extend(&self.path);
        path
    }

    /// Whether it is one of the switches that may be set: what an agent says is not taken for good as it is.
    fn is_allowed(&self) -> bool {
        let is_name = |text: &str| !text.is_empty() && ![".", ".."].contains(&text) && !text.contains('/');
        let is_number = !self.value.is_empty() && self.value.bytes().all(|octet| octet.is_ascii_digit());
        let mut allowed = ALLOWED.iter().filter(|allowed| {
            allowed.len() == self.path.len()
                && allowed
                    .iter()
                    .zip(&self.path)
                    .all(|(allowed, segment)| allowed == segment || (*allowed == "*" && is_name(segment)))
        });
        is_number && allowed.next().is_some()
    }

    /// The command that puts it back as it is now.
    ///
    /// # Errors
    /// When it is none of those that may be set, or cannot be read.
    pub fn undo(&self) -> Result<String, FixError> {
        if !self.is_allowed() {
            return Err(FixError::NotAllowed(self.name()));
        }
        let now = fs::read_to_string(self.file()).map_err(|source| self.refused(source))?;
        Ok(format!("sysctl -w {}={}", self.name(), now.trim()))
    }

    /// Sets it, in the network namespace of the calling thread, until the next start of the host.
    ///
    /// # Errors
    /// When it is none of those that may be set, or the kernel refuses.
    pub fn apply(&self) -> Result<(), FixError> {
        if !self.is_allowed() {
            return Err(FixError::NotAllowed(self.name()));
        }
        fs::write(self.file(), &self.value).map_err(|source| self.refused(source))
    }

    fn refused(&self, source: io::Error) -> FixError {
        FixError::Refused {
            name: self.name(),
            value: self.value.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_switch_as_sysctl_takes_it() {
        assert_eq!(
            Fix::loose_reverse_path("eth1").command(),
            "sysctl -w net.ipv4.conf.eth1.rp_filter=2"
        );
        assert_eq!(
            Fix::loose_reverse_path("eth0.100").command(),
            "sysctl -w net/ipv4/conf/eth0.100/rp_filter=2"
        );
    }

    #[test]
    fn nothing_is_set_but_what_is_known_to_be_safe() {
        for (path, value) in [
            (&["kernel", "core_pattern"][..], "1"),
            (&["net", "ipv4", "conf", "..", "rp_filter"], "2"),
            (&["net", "ipv4", "conf", "a/b", "rp_filter"], "2"),
            (&["net", "ipv4", "conf", "eth0", "rp_filter"], "|x"),
            (&["net", "ipv4", "conf", "eth0", "forwarding"], "1"),
        ] {
            let fix = Fix {
                value: value.to_owned(),
                ..Fix::sysctl(path, 0)
            };
            assert!(matches!(fix.apply(), Err(FixError::NotAllowed(_))), "{fix:?}");
            assert!(matches!(fix.undo(), Err(FixError::NotAllowed(_))), "{fix:?}");
        }
        let wrong = Fix::loose_reverse_path("no-such-link")
            .undo()
            .unwrap_err()
            .to_string();
        assert!(
            wrong.starts_with("cannot set net.ipv4.conf.no-such-link.rp_filter to 2: "),
            "{wrong}"
        );
    }
}
