//! The result of ADD.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};

use super::NetworkConfig;
use crate::dataplane::{POD_GATEWAY, POD_GATEWAY_V6};

/// What ADD made.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached {
    /// The host's end of the veth pair.
    pub host: LinkEnd,
    /// The pod's end.
    pub pod: LinkEnd,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Its address of IPv6, if it has one.
    pub address_v6: Option<Ipv6Addr>,
    /// Bytes, of both ends.
    pub mtu: u32,
}

/// One end of a veth pair.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkEnd {
    /// The interface's name.
    pub name: String,
    /// Its hardware address.
    pub mac: String,
}

impl Attached {
    /// The result in the shape that `config` asks for: before 1.0.0 an address tells its family, since 1.1.0 an
    /// interface tells its MTU.
    #[must_use]
    pub fn to_json(&self, config: &NetworkConfig) -> serde_json::Value {
        let version = config.cni_version.as_str();
        let mut host = serde_json::json!({ "name": self.host.name, "mac": self.host.mac });
        let mut pod = serde_json::json!({
            "name": self.pod.name, "mac": self.pod.mac, "sandbox": self.netns,
        });
        let mut ips = vec![
            serde_json::json!({ "interface": 1, "address": Ipv4Net::from(self.address), "gateway": POD_GATEWAY }),
        ];
        let mut routes = vec![serde_json::json!({ "dst": "0.0.0.0/0", "gw": POD_GATEWAY })];
        if let Some(address) = self.address_v6 {
            ips.push(
                serde_json::json!({ "interface": 1, "address": Ipv6Net::from(address), "gateway": POD_GATEWAY_V6 }),
            );
            routes.push(serde_json::json!({ "dst": "::/0", "gw": POD_GATEWAY_V6 }));
        }
        if version.starts_with("0.") {
            for (ip, family) in ips.iter_mut().zip(["4", "6"]) {
                ip["version"] = family.into();
            }
        }
        if version == "1.1.0" {
            host["mtu"] = self.mtu.into();
            pod["mtu"] = self.mtu.into();
        }
        let mut result = serde_json::json!({
            "cniVersion": version,
            "interfaces": [host, pod],
            "ips": ips,
            "routes": routes,
        });
        if let Some(dns) = &config.dns {
            result["dns"] = dns.clone();
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(version: &str) -> serde_json::Value {
        dual(version, None)
    }

    fn dual(version: &str, address_v6: Option<&str>) -> serde_json::Value {
        let config =
            format!(r#"{{"cniVersion":"{version}","name":"a","dns":{{"nameservers":["10.96.0.10"]}}}}"#);
        let attached = Attached {
            host: LinkEnd {
                name: "cali19f6ea143e3".into(),
                mac: "ee:ee:ee:ee:ee:ee".into(),
            },
            pod: LinkEnd {
                name: "eth0".into(),
                mac: "02:00:00:00:00:01".into(),
            },
            netns: "/run/netns/a".into(),
            address: Ipv4Addr::new(10, 65, 42, 1),
            address_v6: address_v6.map(|address| address.parse().unwrap()),
            mtu: 1480,
        };
        attached.to_json(&NetworkConfig::parse(config.as_bytes()).unwrap())
    }

    /// The "success" type of the specification, section 5.
    #[test]
    fn a_result_is_written_as_the_specification_shows_it() {
        let expected = json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cali19f6ea143e3", "mac": "ee:ee:ee:ee:ee:ee" },
                { "name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/a" },
            ],
            "ips": [{ "address": "10.65.42.1/32", "gateway": "169.254.1.1", "interface": 1 }],
            "routes": [{ "dst": "0.0.0.0/0", "gw": "169.254.1.1" }],
            "dns": { "nameservers": ["10.96.0.10"] },
        });
        assert_eq!(result("1.0.0"), expected);
    }

    #[test]
    fn a_pod_of_both_families_has_a_second_address_and_a_second_default_route() {
        let result = dual("0.4.0", Some("fd00:65::1"));
        assert_eq!(
            result["ips"][1],
            json!({"address": "fd00:65::1/128", "gateway": "fe80::ecee:eeff:feee:eeee", "interface": 1, "version": "6"})
        );
        assert_eq!(
            result["routes"][1],
            json!({"dst": "::/0", "gw": "fe80::ecee:eeff:feee:eeee"})
        );
        assert!(
            dual("1.0.0", Some("fd00:65::1"))["ips"][1]
                .get("version")
                .is_none()
        );
    }

    #[test]
    fn an_older_result_tells_the_family_and_a_newer_one_the_mtu() {
        for version in ["0.3.0", "0.3.1", "0.4.0"] {
            let result = result(version);
            assert_eq!(result["cniVersion"], version);
            assert_eq!(result["ips"][0]["version"], "4");
            assert!(result["interfaces"][1].get("mtu").is_none());
        }
        let result = result("1.1.0");
        assert!(result["ips"][0].get("version").is_none());
        assert_eq!(result["interfaces"][0]["mtu"], 1480);
        assert_eq!(result["interfaces"][1]["mtu"], 1480);
    }
}
