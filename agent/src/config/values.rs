//! The values of the configuration: each knows what is allowed, and says so.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use culvert_bgp::id::HoldTime;
use serde::de::{self, Deserializer, Unexpected, Visitor};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::api::AdvertisedAddress;

/// The name of a node: that of a Kubernetes object (RFC 1123: lower case letters, digits, `-` and `.`, at most 253).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeName(String);

impl NodeName {
    /// `None` when it is no such name.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let label = |l: &str| {
            let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !l.is_empty() && l.chars().all(inner) && !l.starts_with('-') && !l.ends_with('-')
        };
        (name.len() <= 253 && name.split('.').all(label)).then(|| Self(name.to_owned()))
    }

    /// The host's name in lower case, as kubelet takes it; `localhost` when the host has none that would do.
    pub(super) fn of_host() -> Self {
        let host = nix::unistd::gethostname().unwrap_or_default();
        let host = host.to_string_lossy().to_lowercase();
        Self::new(&host).unwrap_or_else(|| Self("localhost".to_owned()))
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let allowed = &"a node name: lower case letters, digits, '-' and '.', at most 253";
        NodeName::new(&text).ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), allowed))
    }
}

pub(super) fn socket_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    let allowed = &"an address and a port, such as 127.0.0.1:9179 or [::]:9179";
    // Kubernetes puts a host's address before a colon as it is: of IPv6 without brackets.
    let unbracketed = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    text.parse()
        .ok()
        .or_else(unbracketed)
        .ok_or_else(|| de::Error::invalid_value(Unexpected::Str(&text), allowed))
}

pub(super) fn ipv4_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<AdvertisedAddress>, D::Error> {
    let allowed = "an IPv4 address, with or without a prefix length, such as 172.18.0.11 or 172.18.0.11/24";
    advertised_address(deserializer, IpAddr::is_ipv4, allowed)
}

pub(super) fn ipv6_address<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<AdvertisedAddress>, D::Error> {
    let is_global = |address: &IpAddr| match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => {
            !address.is_unicast_link_local()
                && !address.is_multicast()
                && !address.is_loopback()
                && !address.is_unspecified()
        }
    };
    let allowed =
        "a global IPv6 address, with or without a prefix length, such as 2001:db8::11 or 2001:db8::11/64";
    advertised_address(deserializer, is_global, allowed)
}

fn advertised_address<'de, D: Deserializer<'de>>(
    deserializer: D,
    is_allowed: fn(&IpAddr) -> bool,
    allowed: &'static str,
) -> Result<Option<AdvertisedAddress>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let address = AdvertisedAddress::parse(&text).filter(|given| is_allowed(&given.address));
    match address {
        Some(address) => Ok(Some(address)),
        None => Err(de::Error::invalid_value(Unexpected::Str(&text), &allowed)),
    }
}

/// A whole number from `LOW` to `HIGH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Ranged<const LOW: u32, const HIGH: u32>(u32);

impl<const LOW: u32, const HIGH: u32> Ranged<LOW, HIGH> {
    /// A number written in this program; one out of range does not compile.
    pub(super) const fn new(number: u32) -> Self {
        assert!(LOW <= number && number <= HIGH);
        Self(number)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl<'de, const LOW: u32, const HIGH: u32> Deserialize<'de> for Ranged<LOW, HIGH> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let range = Range {
            low: LOW,
            high: HIGH,
            also: None,
        };
        deserializer.deserialize_any(range).map(Self)
    }
}

/// `on` or `off`. What YAML 1.1 makes of the two on their way through a chart, `true` and `false`, means the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl Serialize for Switch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0 { "on" } else { "off" })
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OnOrOff;

        impl Visitor<'_> for OnOrOff {
            type Value = Switch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("on or off")
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch, E> {
                Ok(Switch(on))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Switch, E> {
                match text {
                    "on" | "true" => Ok(Switch(true)),
                    "off" | "false" => Ok(Switch(false)),
                    other => Err(de::Error::invalid_value(Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(OnOrOff)
    }
}

/// A hold time: 0 seconds, or 3 to 65535 (RFC 4271 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldSeconds(HoldTime);

impl HoldSeconds {
    /// The hold time.
    #[must_use]
    pub fn get(self) -> HoldTime {
        self.0
    }
}

impl Default for HoldSeconds {
    /// What RFC 4271 §10 suggests.
    fn default() -> Self {
        const { Self(HoldTime::new(90).unwrap()) }
    }
}

impl Serialize for HoldSeconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(self.0.seconds())
    }
}

impl<'de> Deserialize<'de> for HoldSeconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let range = Range {
            low: 3,
            high: 65_535,
            also: Some(0),
        };
        let seconds = deserializer.deserialize_any(range)?;
        let hold_time = u16::try_from(seconds).ok().and_then(HoldTime::new);
        let allowed = &"0 or a whole number from 3 to 65535";
        let wrong = || de::Error::invalid_value(Unexpected::Unsigned(u64::from(seconds)), allowed);
        hold_time.map(Self).ok_or_else(wrong)
    }
}

/// Reads a number, and says what is allowed when it is none of them.
struct Range {
    low: u32,
    high: u32,
    also: Option<u32>,
}

impl Visitor<'_> for Range {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(also) = self.also {
            write!(f, "{also} or ")?;
        }
        write!(f, "a whole number from {} to {}", self.low, self.high)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<u32, E> {
        let in_range = |n: &u32| (self.low..=self.high).contains(n) || self.also == Some(*n);
        let number = u32::try_from(value).ok().filter(in_range);
        number.ok_or_else(|| de::Error::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<u32, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(de::Error::invalid_value(Unexpected::Signed(value), &self)),
        }
    }
}
