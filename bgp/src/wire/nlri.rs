//! Lists of prefixes (RFC 4271 §4.3): a length in bits, then as many octets as hold them.

use ipnet::IpNet;

use super::fault::FaultReason;
use super::octets::Octets;
use super::zetta;
use crate::id::Prefix;

/// Bits of an IPv4 address.
pub(super) const IPV4_BITS: u8 = 32;

/// The prefixes of a field of IPv4 NLRI.
///
/// # Errors
/// RFC 7606 §5.3: a prefix longer than 32 bits, or the last one cut off.
pub(super) fn decode_ipv4(field: &[u8]) -> Result<Vec<Prefix>, FaultReason> {
    check(field, IPV4_BITS)?;
    Ok(zetta::ipv4_prefixes(field))
}

/// RFC 7606 §5.3: each length within the family's, and the last prefix whole.
fn check(field: &[u8], most: u8) -> Result<(), FaultReason> {
    let mut field = Octets::new(field);
    while let Some(bits) = field.u8() {
        if bits > most {
            return Err(FaultReason::PrefixTooLong { got: bits, most });
        }
        let wanted = usize::from(bits.div_ceil(8));
        let left = field.len();
        field
            .take(wanted)
            .ok_or(FaultReason::PrefixOverrun { wanted, left })?;
    }
    Ok(())
}

/// Octets that a prefix takes.
pub(super) fn length(prefix: Prefix) -> usize {
    1 + usize::from(prefix.net().prefix_len().div_ceil(8))
}

/// Appends a prefix.
pub(super) fn push(field: &mut Vec<u8>, prefix: Prefix) {
    let bits = prefix.net().prefix_len();
    field.push(bits);
    let octets = usize::from(bits.div_ceil(8));
    match prefix.net() {
        IpNet::V4(net) => field.extend(net.addr().octets().into_iter().take(octets)),
        IpNet::V6(net) => field.extend(net.addr().octets().into_iter().take(octets)),
    }
}
