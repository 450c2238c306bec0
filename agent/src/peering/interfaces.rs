//! Interfaces that routing has nothing to do with: `ignoredInterfaces`.

use crate::cluster::Cluster;

use super::Local;

/// Those that Calico leaves out in any case: the ends of pods' links, and the device that holds the addresses of services.
const ALWAYS: [&str; 2] = ["cali*", "kube-ipvs*"];

/// The interfaces whose subnets lead to no router.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IgnoredInterfaces(Vec<String>);

impl IgnoredInterfaces {
    pub(super) fn new(local: Local<'_>, cluster: &Cluster) -> Self {
        let named = cluster.bgp().setting(local.node, |bgp| {
            (!bgp.ignored_interfaces.is_empty()).then_some(&bgp.ignored_interfaces)
        });
        Self(named.cloned().unwrap_or_default())
    }

    /// Whether the interface of this name is one of them.
    #[must_use]
    pub fn contain(&self, name: &str) -> bool {
        let named = self.0.iter().map(String::as_str);
        named
            .chain(ALWAYS)
            .any(|pattern| is_like(name.as_bytes(), pattern.as_bytes()))
    }
}

/// A pattern as BIRD has it: `*` stands for any text, `?` for any octet.
fn is_like(name: &[u8], pattern: &[u8]) -> bool {
    // Where the last asterisk is, and what it stands for so far: of several only the last need be tried anew.
    let (mut at, mut in_pattern) = (0, 0);
    let mut asterisk: Option<(usize, usize)> = None;
    while at < name.len() {
        match pattern.get(in_pattern) {
            Some(b'*') => {
                asterisk = Some((in_pattern, at));
                in_pattern += 1;
            }
            Some(wanted) if *wanted == b'?' || name.get(at) == Some(wanted) => {
                at += 1;
                in_pattern += 1;
            }
            _ => {
                let Some((place, stood_for)) = asterisk else {
                    return false;
                };
                asterisk = Some((place, stood_for + 1));
                (at, in_pattern) = (stood_for + 1, place + 1);
            }
        }
    }
    pattern
        .get(in_pattern..)
        .is_some_and(|rest| rest.iter().all(|octet| *octet == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_bird() {
        for (name, pattern, is) in [
            ("eth0", "eth0", true),
            ("eth0", "eth", false),
            ("eth0", "eth01", false),
            ("eth0", "eth*", true),
            ("eth", "eth*", true),
            ("docker0", "*", true),
            ("eth0.100", "eth?.1*", true),
            ("eth10.100", "eth?.1*", false),
            ("br-aab-b", "br*-b", true),
            ("br-aab-bc", "br*-b", false),
            ("", "", true),
            ("lo", "", false),
        ] {
            assert_eq!(
                is_like(name.as_bytes(), pattern.as_bytes()),
                is,
                "{name} {pattern}"
            );
        }
        let ignored = IgnoredInterfaces(vec!["docker*".to_owned()]);
        assert!(ignored.contain("docker0") && ignored.contain("cali19f6ea143e3"));
        assert!(!ignored.contain("eth0"));
    }
}
