//! Lists of destinations (RFC 4271 §4.3): a length in bits, then as many octets as hold them; before both, where it
//! was agreed on, four octets of Path Identifier (RFC 7911 §3).

use ipnet::IpNet;

use super::fault::FaultReason;
use super::message::{Family, Nlri};
use super::octets::Octets;
use super::zetta;
use crate::id::Prefix;

/// Bits of an IPv4 address.
pub(super) const IPV4_BITS: u8 = 32;
/// Bits of an IPv6 address.
pub(super) const IPV6_BITS: u8 = 128;

/// How the destinations of one field are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Whether they are of IPv4; of IPv6 else.
    pub(super) ipv4: bool,
    /// Whether each has a Path Identifier.
    pub(super) add_path: bool,
}

impl Form {
    pub(super) fn of(family: Family, add_path: bool) -> Self {
        Self {
            ipv4: family == Family::IPV4_UNICAST,
            add_path,
        }
    }

    fn most_bits(self) -> u8 {
        if self.ipv4 { IPV4_BITS } else { IPV6_BITS }
    }

    /// Octets that a destination takes.
    pub(super) fn length(self, nlri: Nlri) -> usize {
        let identifier = if self.add_path { 4 } else { 0 };
        identifier + 1 + usize::from(nlri.prefix.net().prefix_len().div_ceil(8))
    }

    /// Appends a destination.
    pub(super) fn push(self, field: &mut Vec<u8>, nlri: Nlri) {
        if self.add_path {
            field.extend_from_slice(&nlri.path_id.to_be_bytes());
        }
        let bits = nlri.prefix.net().prefix_len();
        let octets = usize::from(bits.div_ceil(8));
        field.push(bits);
        match nlri.prefix.net() {
            IpNet::V4(net) => field.extend_from_slice(net.addr().octets().get(..octets).unwrap_or_default()),
            IpNet::V6(net) => field.extend_from_slice(net.addr().octets().get(..octets).unwrap_or_default()),
        }
    }
}

/// A field of destinations that parses. It is read only once it is known what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field<'a> {
    octets: &'a [u8],
    form: Form,
    count: usize,
}

impl<'a> Field<'a> {
    /// A field of nothing.
    pub(super) const EMPTY: Field<'static> = Field {
        octets: &[],
        form: Form {
            ipv4: true,
            add_path: false,
        },
        count: 0,
    };

    /// Looks whether `octets` are destinations.
    ///
    /// # Errors
    /// RFC 7606 §5.3: a prefix longer than its family allows, or the last one cut off.
    pub(super) fn check(octets: &'a [u8], form: Form) -> Result<Self, FaultReason> {
        let mut count = 0_usize;
        let mut rest = Octets::new(octets);
        while !rest.is_empty() {
            one(&mut rest, form)?;
            count = count.saturating_add(1);
        }
        Ok(Self { octets, form, count })
    }

    pub(super) fn is_empty(self) -> bool {
        self.count == 0
    }

    fn append_to(self, list: &mut Vec<Nlri>) {
        let mut rest = Octets::new(self.octets);
        while let Ok((path_id, bits, address)) = one(&mut rest, self.form) {
            if let Some(prefix) = prefix(bits, address, self.form) {
                list.push(Nlri { prefix, path_id });
            }
        }
    }
}

/// The destinations of all `fields`, one field after the other. What is there was counted, so that there is room for as
/// many and no more.
pub(super) fn list<const N: usize>(fields: [Field<'_>; N]) -> Vec<Nlri> {
    let count = fields.iter().map(|field| field.count).sum();
    let mut list = Vec::with_capacity(count);
    for field in fields {
        field.append_to(&mut list);
    }
    list
}

fn prefix(bits: u8, address: &[u8], form: Form) -> Option<Prefix> {
    if form.ipv4 {
        zetta::ipv4_prefix(bits, address)
    } else {
        zetta::ipv6_prefix(bits, address)
    }
}

/// One destination off the front: Path Identifier, bits, and the octets that hold them.
fn one<'a>(field: &mut Octets<'a>, form: Form) -> Result<(u32, u8, &'a [u8]), FaultReason> {
    let left = field.len();
    let cut = |wanted, left| FaultReason::PrefixOverrun { wanted, left };
    let path_id = if form.add_path {
        field.u32().ok_or(cut(5, left))?
    } else {
        0
    };
    let bits = field.u8().ok_or(cut(5, left))?;
    let most = form.most_bits();
    if bits > most {
        return Err(FaultReason::PrefixTooLong { got: bits, most });
    }
    let wanted = usize::from(bits.div_ceil(8));
    let left = field.len();
    let address = field.take(wanted).ok_or(cut(wanted, left))?;
    Ok((path_id, bits, address))
}
