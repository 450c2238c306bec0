//! The network's configuration.

use std::path::PathBuf;

use serde::Deserialize;

use super::{CniError, Code, Name, VERSIONS};

/// Where the agent listens unless the configuration names another socket.
const DEFAULT_SOCKET: &str = "/run/culvert/agent.sock";

/// The network's configuration, from standard input.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The version of the specification that the runtime speaks, and wants the answer in.
    pub cni_version: String,
    /// The network's name.
    pub name: Name,
    /// Where the agent listens.
    #[serde(default = "default_socket")]
    pub agent_socket: PathBuf,
    /// Resolver settings, handed through.
    #[serde(default)]
    pub dns: Option<serde_json::Value>,
    /// Another plugin that would allocate addresses.
    #[serde(default)]
    ipam: Option<ForeignIpam>,
    /// What ADD answered, for CHECK.
    #[serde(default)]
    pub prev_result: Option<PreviousResult>,
}

#[derive(Clone, Debug, Deserialize)]
struct ForeignIpam {
    #[serde(rename = "type")]
    plugin: Option<String>,
}

/// The part of an earlier result that CHECK holds against what is there.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PreviousResult {
    /// The addresses.
    #[serde(default)]
    pub ips: Vec<PreviousAddress>,
}

/// An address of an earlier result.
#[derive(Clone, Debug, Deserialize)]
pub struct PreviousAddress {
    /// With its prefix length.
    pub address: ipnet::IpNet,
}

fn default_socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

/// The version that a configuration asks for, whatever else is in it: even a refusal is written in it.
#[must_use]
pub fn asked_version(input: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        cni_version: String,
    }
    serde_json::from_slice::<Asked>(input)
        .ok()
        .map(|asked| asked.cni_version)
}

impl NetworkConfig {
    /// Reads a configuration.
    ///
    /// # Errors
    /// When it is not JSON, a field is missing or wrong, the version is not spoken, or it names an IPAM plugin.
    pub fn parse(input: &[u8]) -> Result<Self, CniError> {
        // The version comes first: of a version that is not spoken, the other fields may mean something else.
        if let Some(version) = asked_version(input)
            && !VERSIONS.contains(&version.as_str())
        {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                format!(
                    "cniVersion {version:?} is not spoken: choose one of {}",
                    VERSIONS.join(", ")
                ),
            ));
        }
        let json = &mut serde_json::Deserializer::from_slice(input);
        let config: Self = serde_path_to_error::deserialize(json).map_err(|error| {
            let path = error.path().to_string();
            let error = error.into_inner();
            match error.classify() {
                serde_json::error::Category::Data if path == "." => {
                    CniError::new(Code::InvalidConfig, format!("network configuration: {error}"))
                }
                serde_json::error::Category::Data => CniError::new(
                    Code::InvalidConfig,
                    format!("network configuration, field {path}: {error}"),
                ),
                _ => CniError::new(
                    Code::Undecodable,
                    format!("network configuration is not JSON: {error}"),
                ),
            }
        })?;
        if let Some(plugin) = config.ipam.as_ref().and_then(|ipam| ipam.plugin.as_deref()) {
            return Err(CniError::new(
                Code::UnsupportedField,
                format!("ipam.type is {plugin:?}, but the agent allocates the addresses: leave ipam out"),
            ));
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refuses(input: &str, code: Code, words: &str) {
        let error = NetworkConfig::parse(input.as_bytes()).unwrap_err();
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(words), "{error}");
    }

    #[test]
    fn a_configuration_needs_a_version_and_a_name_and_has_a_default_socket() {
        let input = br#"{"cniVersion":"1.0.0","name":"k8s-pod-network","type":"culvert-cni","anything":{}}"#;
        let config = NetworkConfig::parse(input).unwrap();
        assert_eq!(config.agent_socket, PathBuf::from("/run/culvert/agent.sock"));
        assert_eq!(config.name.as_str(), "k8s-pod-network");
        refuses(
            r#"{"cniVersion":"1.0.0"}"#,
            Code::InvalidConfig,
            "missing field `name`",
        );
        refuses(
            r#"{"name":"a"}"#,
            Code::InvalidConfig,
            "missing field `cniVersion`",
        );
    }

    #[test]
    fn a_wrong_field_is_named() {
        let input = r#"{"cniVersion":"1.0.0","name":"../a"}"#;
        refuses(input, Code::InvalidConfig, "field name: \"../a\" is not a name");
        let input = r#"{"cniVersion":"1.0.0","name":"a","agentSocket":7}"#;
        refuses(
            input,
            Code::InvalidConfig,
            "field agentSocket: invalid type: integer `7`",
        );
        let input = r#"{"cniVersion":"1.0.0","name":"a","prevResult":{"ips":[{"address":"10.65.1.1"}]}}"#;
        refuses(input, Code::InvalidConfig, "field prevResult.ips[0].address: ");
    }

    #[test]
    fn what_is_not_json_is_another_error() {
        refuses("", Code::Undecodable, "is not JSON");
        refuses("{\"cniVersion\":", Code::Undecodable, "is not JSON");
        refuses("[", Code::Undecodable, "is not JSON");
    }

    #[test]
    fn versions_that_are_not_spoken_are_refused_before_anything_else() {
        for version in ["0.1.0", "0.2.0", "2.0.0", "", "1.0"] {
            let input = format!(r#"{{"cniVersion":{version:?},"name":7}}"#);
            refuses(
                &input,
                Code::IncompatibleVersion,
                "0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0",
            );
        }
        for version in VERSIONS {
            let input = format!(r#"{{"cniVersion":{version:?},"name":"a"}}"#);
            assert_eq!(
                NetworkConfig::parse(input.as_bytes()).unwrap().cni_version,
                version
            );
        }
    }

    #[test]
    fn another_plugin_for_addresses_is_refused() {
        let input = r#"{"cniVersion":"1.0.0","name":"a","ipam":{"type":"host-local"}}"#;
        refuses(input, Code::UnsupportedField, "host-local");
        assert!(NetworkConfig::parse(br#"{"cniVersion":"1.0.0","name":"a","ipam":{}}"#).is_ok());
    }
}
