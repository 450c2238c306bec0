//! The variables of the environment, one for each field of the configuration.

use serde_yaml::Value;

/// A field that the environment can set: where it is in the file, and whether its value is text.
pub(super) struct Variable {
    pub(super) path: &'static [&'static str],
    text: bool,
}

/// Every field of [`super::Config`].
pub(super) const VARIABLES: &[Variable] = &[
    Variable {
        path: &["mode"],
        text: true,
    },
    Variable {
        path: &["nodeName"],
        text: true,
    },
    Variable {
        path: &["datastore", "directory"],
        text: true,
    },
    Variable {
        path: &["datastore", "kubernetes", "kubeconfig"],
        text: true,
    },
    Variable {
        path: &["datastore", "syncTimeout"],
        text: false,
    },
    Variable {
        path: &["state", "directory"],
        text: true,
    },
    Variable {
        path: &["safety", "maxVanishShare"],
        text: false,
    },
    Variable {
        path: &["node", "address"],
        text: true,
    },
    Variable {
        path: &["node", "addressV6"],
        text: true,
    },
    Variable {
        path: &["node", "asNumber"],
        text: false,
    },
    Variable {
        path: &["bgp", "listenPort"],
        text: false,
    },
    Variable {
        path: &["bgp", "holdTime"],
        text: false,
    },
    Variable {
        path: &["bgp", "connectRetry"],
        text: false,
    },
    Variable {
        path: &["bgp", "restartTime"],
        text: false,
    },
    Variable {
        path: &["bgp", "longLivedStaleTime"],
        text: false,
    },
    Variable {
        path: &["bgp", "secretNamespace"],
        text: true,
    },
    Variable {
        path: &["bgp", "addPath"],
        text: true,
    },
    Variable {
        path: &["bgp", "maxPrefixes"],
        text: false,
    },
    Variable {
        path: &["bgp", "multipath"],
        text: false,
    },
    Variable {
        path: &["bgp", "externalNeedsPolicy"],
        text: true,
    },
    Variable {
        path: &["bgp", "acceptDefaultRoute"],
        text: true,
    },
    Variable {
        path: &["socket"],
        text: true,
    },
    Variable {
        path: &["http", "listen"],
        text: true,
    },
    Variable {
        path: &["http", "peerMetrics"],
        text: true,
    },
    Variable {
        path: &["routes", "protocol"],
        text: false,
    },
    Variable {
        path: &["routes", "sourcePin"],
        text: true,
    },
    Variable {
        path: &["routes", "pinTable"],
        text: false,
    },
    Variable {
        path: &["tunnel", "mtu"],
        text: false,
    },
    Variable {
        path: &["tunnel", "pathMtuDiscovery"],
        text: false,
    },
    Variable {
        path: &["filter", "unknownTunnelPeers"],
        text: true,
    },
    Variable {
        path: &["garbageCollection", "mode"],
        text: true,
    },
    Variable {
        path: &["garbageCollection", "interval"],
        text: false,
    },
    Variable {
        path: &["garbageCollection", "gracePeriod"],
        text: false,
    },
    Variable {
        path: &["log", "format"],
        text: true,
    },
    Variable {
        path: &["log", "level"],
        text: true,
    },
];

impl Variable {
    /// `CULVERT_BGP_LISTEN_PORT` for `bgp.listenPort`.
    pub(super) fn name(&self) -> String {
        let mut name = "CULVERT".to_owned();
        for part in self.path {
            name.push('_');
            for c in part.chars() {
                if c.is_ascii_uppercase() {
                    name.push('_');
                }
                name.push(c.to_ascii_uppercase());
            }
        }
        name
    }

    /// The value as YAML: text as it is, anything else as YAML reads it.
    pub(super) fn value(&self, text: &str) -> Value {
        if self.text {
            return Value::String(text.to_owned());
        }
        serde_yaml::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
    }
}
