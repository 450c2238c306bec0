//! The only place that calls zettabgp, with pieces that are delimited and checked before it sees them.
//!
//! It is given what it gets right: prefixes of both families one by one, communities of both sizes, and six
//! capabilities. The differential tests hold the rest of it against this crate, and name each known difference.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use zettabgp::prelude::{BgpAddrV4, BgpAddrV6, BgpCapability, BgpCommunityList, BgpLargeCommunityList};

use super::message::{Capability, Directions, Family, GracefulRestart, LongLivedFamily};
use super::nlri::{IPV4_BITS, IPV6_BITS};
use crate::id::{Asn, Prefix};

/// The prefix of `bits` bits whose address begins with `octets`. `None` where there are more bits than an address has,
/// or too few octets: the library adds to the number of bits in eight bits, without looking.
pub(super) fn ipv4_prefix(bits: u8, octets: &[u8]) -> Option<Prefix> {
    if bits > IPV4_BITS {
        return None;
    }
    let (item, _) = BgpAddrV4::from_bits(bits, octets).ok()?;
    let net = Ipv4Net::new(item.addr, item.prefixlen).ok()?;
    Some(Prefix::new(IpNet::V4(net)))
}

/// As [`ipv4_prefix`].
pub(super) fn ipv6_prefix(bits: u8, octets: &[u8]) -> Option<Prefix> {
    if bits > IPV6_BITS {
        return None;
    }
    let (item, _) = BgpAddrV6::from_bits(bits, octets).ok()?;
    let net = Ipv6Net::new(item.addr, item.prefixlen).ok()?;
    Some(Prefix::new(IpNet::V6(net)))
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

/// A capability that the library reads rightly: route refresh, graceful restart, four-octet AS, ADD-PATH, enhanced route
/// refresh, long-lived graceful restart. `None` when its length is wrong, its AS is 0, or it is another one.
pub(super) fn capability(code: u8, value: &[u8]) -> Option<Capability> {
    if !matches!(code, 2 | 64 | 65 | 69..=71) {
        return None;
    }
    let mut octets = vec![code, u8::try_from(value.len()).ok()?];
    octets.extend_from_slice(value);
    let (capability, _) = BgpCapability::from_buffer(&octets).ok()?;
    let family = |afi, safi| Family { afi, safi };
    match capability.ok()? {
        BgpCapability::CapRR => Some(Capability::RouteRefresh),
        BgpCapability::CapEnhancedRR => Some(Capability::EnhancedRouteRefresh),
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
                .map(|kept| (family(kept.afi, kept.safi), kept.forwarding_state))
                .collect(),
        })),
        BgpCapability::CapAddPath(families) => Some(Capability::AddPath(
            families
                .into_iter()
                .map(|said| {
                    let directions = Directions {
                        send: said.send,
                        receive: said.receive,
                    };
                    (family(said.afi, said.safi), directions)
                })
                .collect(),
        )),
        BgpCapability::CapLLGR(families) => Some(Capability::LongLivedGracefulRestart(
            families
                .into_iter()
                .map(|kept| LongLivedFamily {
                    family: family(kept.afi, kept.safi),
                    forwarding_kept: kept.flags & 0x80 != 0,
                    stale_time: kept.stale_time,
                })
                .collect(),
        )),
        _ => None,
    }
}
