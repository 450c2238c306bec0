//! BGP as the load generator speaks it: just what a node of a mesh sends and needs to read, written by hand. It shares no
//! code with the speaker that it loads.

use std::net::Ipv4Addr;

/// The AS of the whole mesh.
pub(crate) const AS_NUMBER: u16 = 64_512;
/// Seconds; a third of it is between two KEEPALIVEs.
pub(crate) const HOLD_TIME: u16 = 90;
/// Every route is a block of this length.
pub(crate) const BLOCK_LENGTH: u8 = 26;

/// RFC 4271 §4.1: marker, length, type.
const HEADER: usize = 19;
/// RFC 4271 §4.1.
const LONGEST: usize = 4096;

/// Types of message (RFC 4271 §4.1).
pub(crate) mod kind {
    pub(crate) const OPEN: u8 = 1;
    pub(crate) const UPDATE: u8 = 2;
    pub(crate) const NOTIFICATION: u8 = 3;
    pub(crate) const KEEPALIVE: u8 = 4;
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    let length = u16::try_from(HEADER + body.len()).expect("messages are made to fit");
    bytes.extend(length.to_be_bytes());
    bytes.push(kind);
    bytes.extend(body);
    bytes
}

/// OPEN (RFC 4271 §4.2) with the capabilities that every daemon has: IPv4 unicast, route refresh, four-octet AS. No
/// graceful restart: a peer that is lost takes its routes along at once.
pub(crate) fn open(router_id: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![4];
    body.extend(AS_NUMBER.to_be_bytes());
    body.extend(HOLD_TIME.to_be_bytes());
    body.extend(router_id.octets());
    let [high, low] = AS_NUMBER.to_be_bytes();
    let capabilities = [1, 4, 0, 1, 0, 1, 2, 0, 65, 4, 0, 0, high, low];
    // One optional parameter, of type 2 (RFC 5492 §4).
    body.extend([16, 2, 14]);
    body.extend(capabilities);
    message(kind::OPEN, &body)
}

pub(crate) fn keepalive() -> Vec<u8> {
    message(kind::KEEPALIVE, &[])
}

/// What a node sends of a block: ORIGIN IGP, an empty AS_PATH, NEXT_HOP, LOCAL_PREF 100.
fn attributes(next_hop: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4];
    bytes.extend(next_hop.octets());
    bytes.extend([0x40, 5, 4, 0, 0, 0, 100]);
    bytes
}

fn update(withdrawn: &[u8], attributes: &[u8], announced: &[u8]) -> Vec<u8> {
    let length = |part: &[u8]| {
        u16::try_from(part.len())
            .expect("messages are made to fit")
            .to_be_bytes()
    };
    let mut body = Vec::new();
    body.extend(length(withdrawn));
    body.extend(withdrawn);
    body.extend(length(attributes));
    body.extend(attributes);
    body.extend(announced);
    message(kind::UPDATE, &body)
}

fn nlri(block: Ipv4Addr) -> [u8; 5] {
    let [a, b, c, d] = block.octets();
    [BLOCK_LENGTH, a, b, c, d]
}

/// The UPDATEs that announce blocks, as few as hold them.
pub(crate) fn announce(next_hop: Ipv4Addr, blocks: &[Ipv4Addr]) -> Vec<u8> {
    let attributes = attributes(next_hop);
    let room = (LONGEST - HEADER - 4 - attributes.len()) / 5;
    let one = |blocks: &[Ipv4Addr]| {
        let nlri: Vec<u8> = blocks.iter().flat_map(|&block| nlri(block)).collect();
        update(&[], &attributes, &nlri)
    };
    blocks.chunks(room).flat_map(one).collect()
}

pub(crate) fn withdraw(block: Ipv4Addr) -> Vec<u8> {
    update(&nlri(block), &[], &[])
}

/// RFC 4724 §2: nothing more to come for now.
pub(crate) fn end_of_rib() -> Vec<u8> {
    update(&[], &[], &[])
}

/// Takes the first whole message off `bytes`: its type, its body, and what is left.
pub(crate) fn split(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let header = bytes.get(..HEADER)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let body = bytes.get(HEADER..length)?;
    Some((header[18], body, &bytes[length..]))
}

/// Whether an UPDATE announces this block.
pub(crate) fn announces(update: &[u8], block: Ipv4Addr) -> bool {
    announced(update).is_some_and(|nlri| {
        let mut left = nlri;
        while let Some((&bits, rest)) = left.split_first() {
            let octets = usize::from(bits).div_ceil(8);
            let Some((prefix, rest)) = rest.split_at_checked(octets) else {
                return false;
            };
            if bits == BLOCK_LENGTH && prefix == block.octets() {
                return true;
            }
            left = rest;
        }
        false
    })
}

/// The NLRI of an UPDATE (RFC 4271 §4.3).
fn announced(update: &[u8]) -> Option<&[u8]> {
    let (withdrawn, rest) = update.split_first_chunk()?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*withdrawn))..)?;
    let (attributes, rest) = rest.split_first_chunk()?;
    rest.get(usize::from(u16::from_be_bytes(*attributes))..)
}
