//! IPReservation: addresses that are not given out unless somebody asks for them by name.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Custom, UnknownFields};

/// Addresses that are set aside.
pub type IpReservation = Custom<IpReservationSpec>;

/// What an IPReservation says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpReservationSpec {
    /// Ranges, or single addresses.
    #[serde(
        default,
        rename = "reservedCIDRs",
        deserialize_with = "super::null_as_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub reserved_cidrs: Vec<String>,
    /// Anything else, as it was read.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl IpReservationSpec {
    /// The ranges. Entries that are none are left out, as in Calico; [`super::Object::validate`] names them.
    pub fn ranges(&self) -> impl Iterator<Item = IpNet> {
        self.reserved_cidrs.iter().filter_map(|entry| range(entry))
    }
}

/// A range, or the range of a single address.
pub(super) fn range(entry: &str) -> Option<IpNet> {
    let entry = entry.trim();
    let single = || entry.parse::<IpAddr>().ok().map(IpNet::from);
    entry.parse().ok().or_else(single)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_addresses_are_read_and_anything_else_is_kept_but_not_used() {
        let yaml = "{reservedCIDRs: [10.0.0.0/28, ' 10.0.1.1 ', 'fd00::/120', nonsense], later: 1}";
        let spec: IpReservationSpec = serde_yaml::from_str(yaml).unwrap();
        let ranges: Vec<String> = spec.ranges().map(|r| r.to_string()).collect();
        assert_eq!(ranges, ["10.0.0.0/28", "10.0.1.1/32", "fd00::/120"]);
        assert_eq!(spec.unknown["later"], 1);
        assert_eq!(spec.reserved_cidrs.len(), 4);
    }
}
