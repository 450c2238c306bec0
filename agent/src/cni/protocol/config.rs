//! The network's configuration.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::IpNet;
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
    /// The attachments that are still wanted, for GC.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// What ADD answered, for CHECK.
    #[serde(default)]
    prev_result: Option<serde_json::Value>,
}

/// An attachment that is still wanted. Ours are one a container, so that its interface's name says nothing more.
#[derive(Clone, Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: Name,
}

#[derive(Clone, Debug, Deserialize)]
struct ForeignIpam {
    #[serde(rename = "type")]
    plugin: Option<String>,
}

/// The part of an earlier result that CHECK holds against what is there.
#[derive(Deserialize)]
struct PreviousResult {
    #[serde(default)]
    ips: Vec<PreviousAddress>,
}

#[derive(Deserialize)]
struct PreviousAddress {
    address: IpNet,
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

    /// The containers that are still wanted.
    ///
    /// # Errors
    /// When the configuration does not say: to take that for none would cut every pod off.
    pub fn valid_containers(&self) -> Result<BTreeSet<Name>, CniError> {
        let valid = self.valid_attachments.as_ref().ok_or_else(|| {
            CniError::new(
                Code::InvalidConfig,
                "GC needs cni.dev/valid-attachments, the attachments that are still wanted".to_owned(),
            )
        })?;
        Ok(valid.iter().map(|valid| valid.container_id.clone()).collect())
    }

    /// The address that ADD answered. Only CHECK reads it: a DEL must not fail over it.
    ///
    /// # Errors
    /// When there is no earlier result, or no IPv4 address in it.
    pub fn previous_addresses(&self) -> Result<(Ipv4Addr, Option<Ipv6Addr>), CniError> {
        let invalid = |message| CniError::new(Code::InvalidConfig, message);
        let previous = self
            .prev_result
            .as_ref()
            .ok_or_else(|| invalid("CHECK needs prevResult, the answer to ADD".to_owned()))?;
        let previous: PreviousResult = serde_path_to_error::deserialize(previous).map_err(|error| {
            invalid(format!(
                "network configuration, field prevResult.{}: {}",
                error.path(),
                error.inner()
            ))
        })?;
        let ipv4 = |ip: &PreviousAddress| match ip.address.addr() {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        let ipv6 = |ip: &PreviousAddress| match ip.address.addr() {
            IpAddr::V6(address) => Some(address),
            IpAddr::V4(_) => None,
        };
        let address = previous.ips.iter().find_map(ipv4);
        let address = address.ok_or_else(|| invalid("prevResult.ips has no IPv4 address".to_owned()))?;
        Ok((address, previous.ips.iter().find_map(ipv6)))
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
    }

    #[test]
    fn the_earlier_result_is_read_only_where_it_is_needed() {
        let previous = |json: &str| {
            let input = format!(r#"{{"cniVersion":"1.0.0","name":"a","prevResult":{json}}}"#);
            NetworkConfig::parse(input.as_bytes())
                .unwrap()
                .previous_addresses()
                .map_err(|error| error.message)
        };
        let both = r#"{"ips":[{"address":"fd00::1/128"},{"address":"10.65.1.1/32","interface":1}]}"#;
        let v4 = Ipv4Addr::new(10, 65, 1, 1);
        assert_eq!(previous(both), Ok((v4, Some("fd00::1".parse().unwrap()))));
        assert_eq!(
            previous(r#"{"ips":[{"address":"10.65.1.1/32"}]}"#),
            Ok((v4, None))
        );
        assert_eq!(
            previous("null"),
            Err("CHECK needs prevResult, the answer to ADD".into())
        );
        assert_eq!(previous("{}"), Err("prevResult.ips has no IPv4 address".into()));
        let error = previous(r#"{"ips":[{"address":"10.65.1.1"}]}"#).unwrap_err();
        assert!(
            error.starts_with("network configuration, field prevResult.ips[0].address: "),
            "{error}"
        );
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
