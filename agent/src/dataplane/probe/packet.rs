//! The octets of a probe.

use std::net::Ipv4Addr;

use super::Kind;

/// What the data of a probe begins with: `cvpr`.
pub(super) const MARK: u32 = 0x6376_7072;

/// IPv4 without options, echo, mark and token.
const LEAST: u16 = 20 + 8 + 4 + 8;

/// What tells the probes of one question from those of others.
pub type Token = u64;

/// What a packet says, if it is a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// Its token.
    pub token: Token,
    /// Request or answer.
    pub kind: Kind,
    /// Source and destination of the outer header.
    pub outer: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Octets of the inner packet.
    pub size: u16,
}

/// An echo request in IPv4, of `size` octets or as many as it needs, with DF.
pub(super) fn request(
    token: Token,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    size: u16,
    number: u16,
) -> Vec<u8> {
    let size = size.max(LEAST);
    let mut echo = vec![0; usize::from(size - 20)];
    let [high, low, ..] = token.to_be_bytes();
    let number = number.to_be_bytes();
    // RFC 792: type 8, code, checksum, identifier, sequence number, data.
    let head = [8, 0, 0, 0, high, low].into_iter().chain(number);
    let data = MARK.to_be_bytes().into_iter().chain(token.to_be_bytes());
    echo.iter_mut()
        .zip(head.chain(data))
        .for_each(|(place, octet)| *place = octet);
    let sum = checksum(&echo).to_be_bytes();
    echo.iter_mut()
        .skip(2)
        .zip(sum)
        .for_each(|(place, octet)| *place = octet);
    // RFC 791 §3.1. The kernel fills in the checksum and the identification (raw(7)).
    let mut octets = vec![0x45, 0];
    octets.extend(size.to_be_bytes());
    octets.extend([0, 0, 0x40, 0, 64, 1, 0, 0]);
    octets.extend(source.octets());
    octets.extend(destination.octets());
    octets.extend(echo);
    octets
}

/// RFC 1071: the ones' complement of the ones' complement sum of 16-bit words.
fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(!sum & 0xffff).unwrap_or(0)
}

/// Reads a packet, encapsulated in IPv4 or not; none if it is no probe.
#[must_use]
pub fn parse(octets: &[u8]) -> Option<Parsed> {
    let (protocol, addresses, inner) = header(octets)?;
    let (outer, octets, echo) = match protocol {
        1 => (None, octets, inner),
        4 => match header(inner)? {
            (1, _, echo) => (Some(addresses), inner, echo),
            _ => return None,
        },
        _ => return None,
    };
    let kind = match echo.first()? {
        8 => Kind::Request,
        0 => Kind::Answer,
        _ => return None,
    };
    let mark = u32::from_be_bytes(*echo.get(8..)?.first_chunk()?);
    (mark == MARK).then_some(Parsed {
        token: u64::from_be_bytes(*echo.get(12..)?.first_chunk()?),
        kind,
        outer,
        size: u16::from_be_bytes(*octets.get(2..)?.first_chunk()?),
    })
}

/// Protocol, addresses, and what is behind the header; of a fragment only the first is read.
fn header(octets: &[u8]) -> Option<(u8, (Ipv4Addr, Ipv4Addr), &[u8])> {
    let first = *octets.first()?;
    let offset = u16::from_be_bytes(*octets.get(6..)?.first_chunk()?) & 0x1fff;
    let address = |at: usize| Some(Ipv4Addr::from(*octets.get(at..)?.first_chunk::<4>()?));
    if first >> 4 != 4 || offset != 0 {
        return None;
    }
    let behind = octets.get(usize::from(first & 0xf) * 4..)?;
    Some((*octets.get(9)?, (address(12)?, address(16)?), behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 65, 0, 2);
    const B: Ipv4Addr = Ipv4Addr::new(10, 65, 1, 2);

    #[test]
    fn a_probe_is_read_as_it_was_made_encapsulated_or_not() {
        let octets = request(7, A, B, 100, 1);
        assert_eq!(octets.len(), 100);
        let plain = Parsed {
            token: 7,
            kind: Kind::Request,
            outer: None,
            size: 100,
        };
        assert_eq!(parse(&octets), Some(plain));
        // RFC 1071: over all of it, the checksum included, there is nothing left.
        assert_eq!(checksum(&octets[20..]), 0);
        let mut outer = vec![
            0x45, 0, 0, 120, 0, 0, 0x40, 0, 64, 4, 0, 0, 172, 18, 0, 11, 172, 18, 0, 12,
        ];
        outer.extend(&octets);
        let nodes = (Ipv4Addr::new(172, 18, 0, 11), Ipv4Addr::new(172, 18, 0, 12));
        assert_eq!(
            parse(&outer),
            Some(Parsed {
                outer: Some(nodes),
                ..plain
            })
        );
    }

    #[test]
    fn what_is_no_probe_is_none_however_short() {
        let octets = request(7, A, B, 0, 1);
        assert_eq!(octets.len(), usize::from(LEAST));
        for length in 0..octets.len() {
            assert_eq!(parse(&octets[..length]), None, "{length}");
        }
        let changed = |at: usize, to: u8| {
            let mut octets = octets.clone();
            octets[at] = to;
            parse(&octets)
        };
        assert_eq!(changed(20, 3), None, "another type");
        assert_eq!(changed(28, 0), None, "another mark");
        assert_eq!(changed(7, 1), None, "a later fragment");
        assert_eq!(changed(9, 17), None, "another protocol");
        assert_eq!(changed(20, 0).map(|answer| answer.kind), Some(Kind::Answer));
    }
}
