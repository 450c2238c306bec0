//! The only place that calls zettabgp, with pieces that are delimited and checked before it sees them.
//!
//! It is given what it gets right: fields of IPv4 prefixes, communities of both sizes, and three capabilities. The
//! differential tests hold the rest of it against this crate, and name each known difference.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use zettabgp::prelude::{
    BgpAddrV4, BgpCapability, BgpCommunityList, BgpLargeCommunityList, decode_bgpitems_from,
};

use super::message::{Capability, Family, GracefulRestart};
use crate::id::{Asn, Prefix};

/// The prefixes of `field`, of which every length is at most 32 and every prefix whole: the library reads an address
/// past the end of the field, and adds to the length in eight bits, without looking.
pub(super) fn ipv4_prefixes(field: &[u8]) -> Vec<Prefix> {
    let Ok((items, _)) = decode_bgpitems_from::<BgpAddrV4>(field) else {
        return Vec::new();
    };
    items
        .into_iter()
        .filter_map(|item| prefix(item.addr, item.prefixlen))
        .collect()
}

fn prefix(address: Ipv4Addr, bits: u8) -> Option<Prefix> {
    Ipv4Net::new(address, bits)
        .ok()
        .map(|net| Prefix::new(IpNet::V4(net)))
}

/// The communities of `value`, ascending, each once. `None`, where the library would panic: not a multiple of four.
pub(super) fn communities(value: &[u8]) -> Option<Vec<u32>> {
    if !value.len().is_multiple_of(4) {
        return None;
    }
    let list = BgpCommunityList::decode_from(value).ok()?;
    Some(list.value.into_iter().map(|community| community.value).collect())
}

/// The large communities of `value`, ascending, each once (RFC 8092 §5). `None`, where the library would panic: not a
/// multiple of twelve.
pub(super) fn large_communities(value: &[u8]) -> Option<Vec<[u32; 3]>> {
    if !value.len().is_multiple_of(12) {
        return None;
    }
    let list = BgpLargeCommunityList::decode_from(value).ok()?;
    Some(
        list.value
            .into_iter()
            .map(|community| [community.ga, community.ldp1, community.ldp2])
            .collect(),
    )
}

/// A capability that the library reads rightly: route refresh, four-octet AS, graceful restart. `None` when its length
/// is wrong, its AS is 0, or it is another one.
pub(super) fn capability(code: u8, value: &[u8]) -> Option<Capability> {
    if !matches!(code, 2 | 64 | 65) {
        return None;
    }
    let mut octets = vec![code, u8::try_from(value.len()).ok()?];
    octets.extend_from_slice(value);
    let (capability, _) = BgpCapability::from_buffer(&octets).ok()?;
    match capability.ok()? {
        BgpCapability::CapRR => Some(Capability::RouteRefresh),
        BgpCapability::CapASN32(number) => Asn::new(number).map(Capability::FourOctetAs),
        BgpCapability::CapGR {
            restart_time,
            restart_state,
            afis,
        } => Some(Capability::GracefulRestart(GracefulRestart {
            restarted: restart_state,
            // RFC 8538 §2: the library does not look at this bit.
            notification: value.first().is_some_and(|flags| flags & 0x40 != 0),
            restart_time,
            families: afis
                .into_iter()
                .map(|kept| {
                    (
                        Family {
                            afi: kept.afi,
                            safi: kept.safi,
                        },
                        kept.forwarding_state,
                    )
                })
                .collect(),
        })),
        _ => None,
    }
}
