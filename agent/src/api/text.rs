//! Texts that stand for values in several kinds: AS numbers, durations, addresses with a port, communities.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use culvert_bgp::policy::rule::Community;
use jiff::SignedDuration;
use serde::de::{self, Deserializer, Unexpected};
use serde::{Deserialize, Serialize, Serializer};

/// An AS number as Calico takes it: a number, or a text that is one, plain or as `HIGH.LOW` (RFC 5396 §2, asdot+). Zero is
/// let in here, since it stands for "none" in some fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AsNumber(pub u32);

impl AsNumber {
    fn parse(text: &str) -> Option<Self> {
        let number = match text.split_once('.') {
            None => text.parse().ok()?,
            Some((high, low)) => {
                let (high, low): (u16, u16) = (high.parse().ok()?, low.parse().ok()?);
                (u32::from(high) << 16) | u32::from(low)
            }
        };
        Some(Self(number))
    }
}

impl fmt::Display for AsNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for AsNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = AsNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an AS number from 0 to 4294967295, such as 64512 or \"65536.10\"")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<AsNumber, E> {
                let wrong = |_| E::invalid_value(Unexpected::Unsigned(number), &self);
                u32::try_from(number).map(AsNumber).map_err(wrong)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<AsNumber, E> {
                let wrong = |_| E::invalid_value(Unexpected::Signed(number), &self);
                u32::try_from(number).map(AsNumber).map_err(wrong)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<AsNumber, E> {
                AsNumber::parse(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for AsNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.0)
    }
}

/// A length of time as Kubernetes writes it: `2m0s`, `90s`, `1h30m`. It is written back as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoDuration {
    text: String,
    length: Duration,
}

impl GoDuration {
    /// The length.
    #[must_use]
    pub fn get(&self) -> Duration {
        self.length
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for GoDuration {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let length: SignedDuration = text.parse().map_err(|_| ())?;
        Ok(Self {
            text: text.to_owned(),
            length: Duration::try_from(length).map_err(|_| ())?,
        })
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |()| {
            let allowed = &"a length of time such as 2m0s or 90s";
            de::Error::invalid_value(Unexpected::Str(&text), allowed)
        };
        text.parse().map_err(wrong)
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

/// An address and, where one is given, a TCP port: `A.B.C.D`, `A.B.C.D:PORT`, `A::B`, `[A::B]:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// The address.
    pub address: IpAddr,
    /// The port; none for the usual one.
    pub port: Option<u16>,
}

impl FromStr for PeerAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Ok(address) = text.parse() {
            return Ok(Self { address, port: None });
        }
        let both: SocketAddr = text.parse().map_err(|_| ())?;
        if both.port() == 0 {
            return Err(());
        }
        Ok(Self {
            address: both.ip(),
            port: Some(both.port()),
        })
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.address, port).fmt(f),
            None => self.address.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for PeerAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wrong = |()| {
            let allowed =
                &"an address with or without a port, such as 192.0.2.1, 192.0.2.1:179 or [2001:db8::1]:179";
            de::Error::invalid_value(Unexpected::Str(&text), allowed)
        };
        text.parse().map_err(wrong)
    }
}

impl Serialize for PeerAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Reads a community: `AA:NN` with two numbers from 0 to 65535 (RFC 1997), or `AA:NN:MM` with three from 0 to 4294967295
/// (RFC 8092); or an extended one (RFC 4360 §4, §5), a route target `rt:AA:NN` or route origin `ro:AA:NN`, where AA is an AS or
/// an IPv4 address. `None` for anything else.
#[must_use]
pub fn community(text: &str) -> Option<Community> {
    if let Some((kind @ ("rt" | "ro"), rest)) = text.split_once(':') {
        return extended_community(if kind == "rt" { 2 } else { 3 }, rest);
    }
    let mut parts = text.split(':');
    let (first, second, third) = (parts.next()?, parts.next()?, parts.next());
    match (third, parts.next()) {
        (None, _) => {
            let (high, low): (u16, u16) = (first.parse().ok()?, second.parse().ok()?);
            Some(Community::Standard((u32::from(high) << 16) | u32::from(low)))
        }
        (Some(third), None) => {
            let large = [first.parse().ok()?, second.parse().ok()?, third.parse().ok()?];
            Some(Community::Large(large))
        }
        (Some(_), Some(_)) => None,
    }
}

/// Of an AS that fits into two octets NN has four, else two (RFC 4360 §3.1, RFC 5668 §2), as with an address (§3.2).
fn extended_community(subtype: u8, text: &str) -> Option<Community> {
    let (administrator, local) = text.split_once(':')?;
    let (kind, [a, b, c, d], two_octets) = if let Ok(asn) = administrator.parse::<u16>() {
        let ([a, b], [c, d, e, f]) = (asn.to_be_bytes(), local.parse::<u32>().ok()?.to_be_bytes());
        return Some(Community::Extended([0, subtype, a, b, c, d, e, f]));
    } else if let Ok(address) = administrator.parse::<Ipv4Addr>() {
        (1, address.octets(), local)
    } else {
        (2, administrator.parse::<u32>().ok()?.to_be_bytes(), local)
    };
    let [e, f] = two_octets.parse::<u16>().ok()?.to_be_bytes();
    Some(Community::Extended([kind, subtype, a, b, c, d, e, f]))
}

/// Reads a BGP Identifier or cluster number: four octets as an address, not 0.0.0.0.
#[must_use]
pub(super) fn four_octets(text: &str) -> Option<Ipv4Addr> {
    let id: Ipv4Addr = text.trim().parse().ok()?;
    (!id.is_unspecified()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_as_number_is_a_number_or_a_text_that_is_one() {
        for (json, number) in [
            ("64512", Some(64_512)),
            ("4294967295", Some(u32::MAX)),
            ("\"64512\"", Some(64_512)),
            ("\"1.10\"", Some(65_546)),
            ("0", Some(0)),
            ("4294967296", None),
            ("-1", None),
            ("\"1.65536\"", None),
            ("\"AS1\"", None),
            ("1.5", None),
        ] {
            let read = serde_json::from_str::<AsNumber>(json);
            assert_eq!(read.ok(), number.map(AsNumber), "{json}");
        }
        let error = serde_json::from_str::<AsNumber>("\"x\"").unwrap_err().to_string();
        assert!(
            error.starts_with("invalid value: string \"x\", expected an AS number from 0 to"),
            "{error}"
        );
    }

    #[test]
    fn a_length_of_time_is_read_as_kubernetes_writes_it_and_written_back_as_it_was() {
        for (text, seconds) in [
            ("2m0s", Some(120.0)),
            ("90s", Some(90.0)),
            ("1h30m", Some(5400.0)),
            ("1h0m0s", Some(3600.0)),
            ("1.5s", Some(1.5)),
            ("250ms", Some(0.25)),
            ("0s", Some(0.0)),
            ("-5s", None),
            ("5", None),
            ("", None),
            ("soon", None),
        ] {
            let read: Result<GoDuration, ()> = text.parse();
            let length = read.as_ref().ok().map(|d| d.get().as_secs_f64());
            assert_eq!(length, seconds, "{text}");
            if let Ok(read) = read {
                assert_eq!(serde_json::to_value(&read).unwrap(), text);
            }
        }
    }

    #[test]
    fn a_peer_is_an_address_with_or_without_a_port() {
        for (text, address, port) in [
            ("192.0.2.1", "192.0.2.1", None),
            ("192.0.2.1:1790", "192.0.2.1", Some(1790)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]:179", "2001:db8::1", Some(179)),
        ] {
            let peer: PeerAddress = text.parse().unwrap();
            assert_eq!((peer.address.to_string().as_str(), peer.port), (address, port));
            assert_eq!(peer.to_string(), text);
        }
        for text in [
            "",
            "192.0.2.1:0",
            "192.0.2.1:65536",
            "router",
            "router:179",
            "[2001:db8::1]",
            "192.0.2.1/32",
        ] {
            assert_eq!(text.parse::<PeerAddress>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_community_has_two_short_numbers_or_three_long_ones_or_says_that_it_is_extended() {
        let extended = |octets| Some(Community::Extended(octets));
        for (text, read) in [
            ("65535:65281", Some(Community::Standard(0xffff_ff01))),
            ("0:0", Some(Community::Standard(0))),
            ("4294967295:0:7", Some(Community::Large([u32::MAX, 0, 7]))),
            ("65536:1", None),
            ("1:65536", None),
            ("1:2:4294967296", None),
            ("1", None),
            ("1:2:3:4", None),
            ("no-export", None),
            ("", None),
            // RFC 4360 §3.1, §3.2, §4, §5, RFC 5668 §2 (test).
            ("rt:64512:100", extended([0, 2, 0xfc, 0, 0, 0, 0, 100])),
            (
                "ro:64512:4294967295",
                extended([0, 3, 0xfc, 0, 255, 255, 255, 255]),
            ),
            ("rt:192.0.2.1:7", extended([1, 2, 192, 0, 2, 1, 0, 7])),
            ("rt:65536:65535", extended([2, 2, 0, 1, 0, 0, 255, 255])),
            ("rt:65536:65536", None),
            ("rt:64512", None),
            ("rt:64512:1:2", None),
            ("rt:", None),
        ] {
            assert_eq!(community(text), read, "{text}");
            if let Some(extended @ Community::Extended(_)) = read {
                assert_eq!(extended.to_string(), text);
            }
        }
    }
}
