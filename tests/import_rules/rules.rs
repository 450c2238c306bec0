//! The rules: which file may name what.

use crate::paths::named;

/// A rule for some files: what they must not name.
pub(crate) struct Rule {
    /// Why, in the words of the design.
    pub(crate) why: &'static str,
    /// The files it holds for, by the beginnings of their paths; those of `except` are free.
    pub(crate) files: &'static [&'static str],
    /// Beginnings of the paths of files that may.
    pub(crate) except: &'static [&'static str],
    /// Beginnings of what must not be named, whole segments but for a last `*`.
    pub(crate) names: &'static [&'static str],
}

const EVERYWHERE: &[&str] = &["agent/", "bgp/", "ipam/", "tests/", "examples/"];
const PURE: &[&str] = &["bgp/src/", "ipam/src/"];
const PURE_MODULES: &[&str] = &[
    "agent/src/cluster",
    "agent/src/desired",
    "agent/src/filter.rs",
    "agent/src/peering",
    "agent/src/reconcile",
    "agent/src/ruleset",
    "agent/src/selector",
    "agent/src/shadow",
];

/// Who may import whom.
pub(crate) const RULES: &[Rule] = &[
    Rule {
        why: "no byte of a peer reaches zettabgp unchecked: one file imports it",
        files: EVERYWHERE,
        // Tests hold its encoding against ours.
        except: &["bgp/src/wire/zetta.rs", "bgp/tests/"],
        names: &["zettabgp"],
    },
    Rule {
        why: "the kernel is reached through the dataplane only",
        files: EVERYWHERE,
        // The benchmark's yardstick is a socket of its own.
        except: &[
            "agent/src/dataplane/netlink",
            "agent/tests/netlink/",
            "agent/benches/routes.rs",
        ],
        names: &["rtnetlink", "netlink_*"],
    },
    Rule {
        why: "the Kubernetes API is reached through the datastore only",
        files: EVERYWHERE,
        except: &["agent/src/datastore/kubernetes"],
        // Each by its whole name: the laboratory has modules kube_….
        names: &[
            "kube",
            "kube_client",
            "kube_core",
            "kube_derive",
            "kube_runtime",
            "k8s_openapi",
        ],
    },
    Rule {
        why: "control wires everything: nothing but the command line, which starts it, may import it",
        files: &["agent/"],
        except: &["agent/src/control", "agent/src/cli/"],
        names: &["crate::control", "culvert_agent::control"],
    },
    Rule {
        why: "bgp and ipam do no input or output, and know neither clocks nor threads",
        files: PURE,
        except: &[],
        names: &[
            "tokio",
            "futures*",
            "socket2",
            "nix",
            "rand",
            "getrandom",
            "std::fs",
            "std::env",
            "std::process",
            "std::thread",
            "std::io::Read",
            "std::io::Write",
            "std::io::stdin",
            "std::io::stdout",
            "std::io::stderr",
            "std::net::TcpStream",
            "std::net::TcpListener",
            "std::net::UdpSocket",
            "std::collections::HashMap",
            "std::collections::HashSet",
        ],
    },
    Rule {
        why: "the speaker stands on sessions, routes and policies, and none of them on the speaker",
        files: &["bgp/src/"],
        except: &["bgp/src/speaker"],
        names: &["crate::speaker"],
    },
    Rule {
        why: "bgp knows nothing of the other crates",
        files: &["bgp/"],
        except: &[],
        names: &["culvert_ipam", "culvert_agent"],
    },
    Rule {
        why: "ipam knows nothing of the other crates",
        files: &["ipam/"],
        except: &[],
        names: &["culvert_bgp", "culvert_agent"],
    },
    Rule {
        why: "cluster, desired and reconcile are functions of values",
        files: PURE_MODULES,
        except: &[],
        names: &[
            "tokio",
            "futures*",
            "nix",
            "std::fs",
            "std::env",
            "std::process",
            "std::thread",
            "std::time::Instant",
            "std::time::SystemTime",
            "crate::datastore",
            "crate::dataplane",
            "crate::speaker",
            "crate::http",
            "crate::cni",
            "crate::config",
            "crate::node",
        ],
    },
    Rule {
        why: "the datastore knows resources, and neither routes nor sessions",
        files: &["agent/src/datastore"],
        except: &[],
        names: &["culvert_bgp", "crate::dataplane", "crate::speaker", "crate::fib"],
    },
    Rule {
        why: "the dataplane knows the kernel, and neither sessions nor resources",
        files: &["agent/src/dataplane"],
        except: &[],
        names: &[
            "culvert_bgp",
            "culvert_ipam",
            "crate::datastore",
            "crate::speaker",
            "crate::api",
        ],
    },
];

/// What a file breaks: a line for each place.
pub(crate) fn broken(file: &str, source: &str) -> Vec<String> {
    let begins = |beginnings: &[&str]| beginnings.iter().any(|beginning| file.starts_with(beginning));
    let rules: Vec<_> = RULES
        .iter()
        .filter(|rule| begins(rule.files) && !begins(rule.except))
        .collect();
    let mut broken = Vec::new();
    for place in named(source) {
        let path = absolute(file, &place.segments);
        for rule in &rules {
            if rule.names.iter().any(|name| matches(&path, name)) {
                broken.push(format!(
                    "{file}:{}: names {}: {}",
                    place.line,
                    place.segments.join("::"),
                    rule.why
                ));
            }
        }
    }
    broken
}

/// Whether a path begins with a name of a rule.
fn matches(path: &[String], name: &str) -> bool {
    let wanted: Vec<_> = name.split("::").collect();
    let same = |(segment, wanted): (&String, &&str)| match wanted.strip_suffix('*') {
        Some(beginning) => segment.starts_with(beginning),
        None => segment == wanted,
    };
    path.len() >= wanted.len() && path.iter().zip(&wanted).all(same)
}

/// A path seen from the root of its crate: `super` stands for the module above that of the file.
fn absolute(file: &str, segments: &[String]) -> Vec<String> {
    let ups = segments.iter().take_while(|segment| *segment == "super").count();
    if ups == 0 {
        return segments.to_vec();
    }
    let module = file
        .split_once("src/")
        .map_or("", |(_, module)| module)
        .trim_end_matches(".rs");
    let mut here: Vec<_> = module
        .split('/')
        .filter(|name| !matches!(*name, "mod" | "lib" | "main"))
        .collect();
    here.truncate(here.len().saturating_sub(ups));
    let whole = std::iter::once("crate").chain(here).map(str::to_owned);
    whole.chain(segments.iter().skip(ups).cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Snippets, each with a file that may not say so, and one that may.
    #[rustfmt::skip]
    const SNIPPETS: [(&str, &str, &str); 15] = [
        ("use zettabgp::prelude::*;", "bgp/src/session.rs", "bgp/src/wire/zetta.rs"),
        ("fn f() { zettabgp::x() }", "agent/src/speaker.rs", "bgp/src/wire/zetta.rs"),
        ("use rtnetlink::Handle;", "agent/src/control.rs", "agent/src/dataplane/netlink/mod.rs"),
        ("use netlink_packet_route::*;", "agent/src/fib.rs", "agent/src/dataplane/netlink.rs"),
        ("use kube::Client;", "agent/src/node.rs", "agent/src/datastore/kubernetes.rs"),
        ("use crate::control;", "agent/src/speaker.rs", "agent/src/cli/agent.rs"),
        ("use crate::{api, control::run};", "agent/src/http/mod.rs", "agent/src/control/report.rs"),
        ("use super::control::run;", "agent/src/speaker.rs", "agent/src/control/report.rs"),
        ("use std::collections::{BTreeMap, HashMap};", "ipam/src/pool.rs", "agent/src/speaker.rs"),
        ("use tokio::time;", "agent/src/desired.rs", "agent/src/speaker.rs"),
        ("use crate::dataplane::Dataplane;", "agent/src/reconcile/tests.rs", "agent/src/control.rs"),
        ("use crate::node::publish;", "agent/src/cluster.rs", "agent/src/claims.rs"),
        ("use culvert_ipam::pool;", "bgp/tests/mesh.rs", "agent/src/claims.rs"),
        ("use culvert_bgp::id;", "agent/src/datastore/mod.rs", "agent/src/desired.rs"),
        ("use super::super::api::Node;", "agent/src/dataplane/netlink/mod.rs", "agent/src/control.rs"),
    ];

    #[test]
    fn what_is_forbidden_is_seen_where_it_is_forbidden_only() {
        for (source, forbidden, allowed) in SNIPPETS {
            assert!(
                !broken(forbidden, source).is_empty(),
                "{forbidden} may not: {source}"
            );
            assert_eq!(
                broken(allowed, source),
                Vec::<String>::new(),
                "{allowed} may: {source}"
            );
        }
    }

    #[test]
    fn a_breach_names_file_line_path_and_reason() {
        let broken = broken("bgp/src/fsm.rs", "\nuse std::thread;\n");
        assert_eq!(broken.len(), 1);
        assert!(
            broken[0].starts_with("bgp/src/fsm.rs:2: names std::thread: "),
            "{}",
            broken[0]
        );
    }
}
