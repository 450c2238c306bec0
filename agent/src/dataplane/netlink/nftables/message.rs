//! Messages of nf_tables, as bytes (linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h).
//!
//! A message is a netlink header, the four bytes of nfgenmsg, and attributes. Numbers inside are big-endian, but for
//! what is compared with a value of the machine's own order.

/// `NFPROTO_IPV4`.
pub(super) const FAMILY: u8 = 2;

/// `NFNL_SUBSYS_NFTABLES`: the upper byte of a message's type.
const SUBSYSTEM: u16 = 10;

/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`.
pub(super) const BATCH: (u16, u16) = (0x10, 0x11);

/// linux/netlink.h.
pub(super) mod flag {
    pub(in super::super) const REQUEST: u16 = 0x1;
    pub(in super::super) const ACK: u16 = 0x4;
    pub(in super::super) const DUMP_INTERRUPTED: u16 = 0x10;
    pub(in super::super) const DUMP: u16 = 0x300;
    pub(in super::super) const CREATE: u16 = 0x400;
    pub(in super::super) const APPEND: u16 = 0x800;
}

/// `NFT_MSG_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    NewRule = 6,
    GetRule = 7,
    NewSet = 9,
    NewElements = 12,
    GetElements = 13,
    DeleteElements = 14,
    NewGeneration = 15,
}

impl Kind {
    /// The type in the netlink header.
    pub(super) const fn number(self) -> u16 {
        (SUBSYSTEM << 8) | self as u16
    }
}

/// A request, and what it is for, in words.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) flags: u16,
    /// `NFPROTO_*`.
    family: u8,
    pub(super) attributes: Attributes,
    pub(super) purpose: String,
}

impl Message {
    pub(super) fn new(kind: Kind, flags: u16, attributes: Attributes, purpose: impl Into<String>) -> Self {
        let purpose = purpose.into();
        Self {
            kind,
            flags,
            family: FAMILY,
            attributes,
            purpose,
        }
    }

    /// The same about tables of another family (`NFPROTO_*`).
    pub(super) fn of_family(mut self, family: u8) -> Self {
        self.family = family;
        self
    }

    pub(super) fn append_to(&self, bytes: &mut Vec<u8>, flags: u16, sequence: u32) {
        let body = (self.family, 0, self.attributes.bytes());
        append(bytes, self.kind.number(), self.flags | flags, sequence, body);
    }
}

/// Appends the begin or the end of a batch.
pub(super) fn append_batch(bytes: &mut Vec<u8>, kind: u16, sequence: u32) {
    append(bytes, kind, flag::REQUEST, sequence, (0, SUBSYSTEM, &[]));
}

fn append(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, body: (u8, u16, &[u8])) {
    let (family, resource, attributes) = body;
    // struct nlmsghdr is 16 bytes, struct nfgenmsg 4; attributes are padded already.
    let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
}

/// Attributes, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

impl Attributes {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// An attribute of bytes. Nothing here comes near the 65,531 that fit into one.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        debug_assert!(value.len() < 65_532, "attribute {kind} is too long");
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(super) fn with_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    pub(super) fn with_u32(self, kind: u16, value: u32) -> Self {
        self.with(kind, &value.to_be_bytes())
    }

    pub(super) fn with_u64(self, kind: u16, value: u64) -> Self {
        self.with(kind, &value.to_be_bytes())
    }

    pub(super) fn with_nested(self, kind: u16, inner: &Self) -> Self {
        // NLA_F_NESTED.
        self.with(kind | 0x8000, &inner.0)
    }
}

/// The value of the first attribute of this kind.
pub(super) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    all(attributes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Every attribute, until one is not whole. Kinds are without the flags in their upper two bits.
pub(super) fn all(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let kind = u16::from_ne_bytes(*after.first_chunk()?) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Text that ends in a zero byte.
pub(super) fn text(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

pub(super) fn u32_of(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

pub(super) fn u64_of(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}
